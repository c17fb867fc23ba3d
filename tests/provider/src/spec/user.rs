//! The user of a function's process: the image configuration's `User`, looked up in the image's own files.

use oci_spec::runtime::User;

use crate::error::ProviderError;

/// The `User` of an image's configuration: `user` or `user:group`, each by name or number, or empty.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ImageUser<'a> {
    user: &'a str,
    group: Option<&'a str>,
}

/// The contents of an image's user and group files.
#[derive(Debug, Default)]
pub(crate) struct UserFiles {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

impl<'a> ImageUser<'a> {
    /// Splits a `User` into user and group; an empty group counts as none.
    pub(crate) fn new(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((user, group)) => Self {
                user,
                group: Some(group).filter(|group| !group.is_empty()),
            },
            None => Self {
                user: text,
                group: None,
            },
        }
    }

    /// Returns the user of the process, if it needs no lookup in the image's files: both user and group are numbers, or
    /// neither is given, which means root.
    pub(crate) fn ids_if_numeric_pair_or_empty(&self) -> Option<User> {
        if self.user.is_empty() && self.group.is_none() {
            return Some(user_with_ids(0, 0));
        }
        Some(user_with_ids(self.user.parse().ok()?, self.group?.parse().ok()?))
    }

    /// Looks up the user of the process in the image's files. An unknown number is used as it is; its group is 0 unless
    /// one is given.
    pub(crate) fn resolve_ids(&self, files: &UserFiles) -> Result<User, ProviderError> {
        let entry = colon_separated_fields_of_nonempty_lines(&files.passwd)
            .find(|line| line[0] == self.user || line.get(2) == Some(&self.user));
        let number = |line: &[&str], field: usize| line.get(field).and_then(|text| text.parse().ok());
        let uid = match &entry {
            Some(line) => number(line, 2),
            None if self.user.is_empty() => Some(0),
            None => self.user.parse().ok(),
        };
        let uid =
            uid.ok_or_else(|| ProviderError::Invalid(format!("the image has no user {:?}", self.user)))?;
        let gid = match self.group {
            Some(group) => {
                let line =
                    colon_separated_fields_of_nonempty_lines(&files.group).find(|line| line[0] == group);
                line.as_deref()
                    .and_then(|line| number(line, 2))
                    .or_else(|| group.parse().ok())
            }
            None => Some(entry.as_deref().and_then(|line| number(line, 3)).unwrap_or(0)),
        };
        let gid = gid.ok_or_else(|| {
            ProviderError::Invalid(format!(
                "the image has no group {:?}",
                self.group.unwrap_or_default()
            ))
        })?;
        let name = entry.as_ref().map_or(self.user, |line| line[0]);
        let is_member = |line: &Vec<&str>| {
            line.get(3)
                .is_some_and(|all| all.split(',').any(|one| one == name))
        };
        let others = colon_separated_fields_of_nonempty_lines(&files.group)
            .filter(is_member)
            .filter_map(|line| number(&line, 2));
        let others: Vec<u32> = others.filter(|other| *other != gid).collect();
        let mut user = user_with_ids(uid, gid);
        if !others.is_empty() {
            user.set_additional_gids(Some(others));
        }
        Ok(user)
    }
}

/// Creates a process's user from numeric ids.
pub(crate) fn user_with_ids(uid: u32, gid: u32) -> User {
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid);
    user
}

/// Returns the fields of each line, which colons separate.
fn colon_separated_fields_of_nonempty_lines(file_text: &str) -> impl Iterator<Item = Vec<&str>> {
    file_text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_user_files() -> UserFiles {
        UserFiles {
            passwd: "root:x:0:0::/root:/bin/sh\napp:x:100:101::/home/app:/sbin/nologin\n".into(),
            group: "root:x:0:\napp:x:101:\nextra:x:200:other,app\n".into(),
        }
    }

    #[test]
    fn a_numeric_user_with_group_and_an_empty_user_need_no_lookup() {
        assert_eq!(
            ImageUser::new("").ids_if_numeric_pair_or_empty(),
            Some(user_with_ids(0, 0))
        );
        assert_eq!(
            ImageUser::new("65532:65532").ids_if_numeric_pair_or_empty(),
            Some(user_with_ids(65532, 65532))
        );
        assert_eq!(ImageUser::new("100").ids_if_numeric_pair_or_empty(), None);
        assert_eq!(ImageUser::new("app:101").ids_if_numeric_pair_or_empty(), None);
    }

    #[test]
    fn a_name_resolves_to_its_number_its_group_and_its_additional_groups() {
        let mut app = user_with_ids(100, 101);
        app.set_additional_gids(Some(vec![200]));
        assert_eq!(
            ImageUser::new("app").resolve_ids(&test_user_files()).unwrap(),
            app
        );
        assert_eq!(
            ImageUser::new("100").resolve_ids(&test_user_files()).unwrap(),
            app
        );
    }

    #[test]
    fn a_group_can_be_given_by_name() {
        assert_eq!(
            ImageUser::new("root:app")
                .resolve_ids(&test_user_files())
                .unwrap(),
            user_with_ids(0, 101)
        );
        assert!(
            ImageUser::new("root:nobody")
                .resolve_ids(&test_user_files())
                .is_err()
        );
    }

    #[test]
    fn an_unknown_number_is_used_and_an_unknown_name_is_rejected() {
        assert_eq!(
            ImageUser::new("1234").resolve_ids(&test_user_files()).unwrap(),
            user_with_ids(1234, 0)
        );
        let error = ImageUser::new("nobody")
            .resolve_ids(&UserFiles::default())
            .unwrap_err();
        assert_eq!(error.to_string(), r#"the image has no user "nobody""#);
    }
}
