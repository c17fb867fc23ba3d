//! Names of tar entries: their validation, and the role that each gives its entry.

use super::error::EntryProblem;

/// The limit on the length of a path in bytes, which is that of Linux.
const PATH_MAX_BYTES: usize = 4095;
/// The limit on the length of a path component in bytes, which is that of common file systems.
const COMPONENT_MAX_BYTES: usize = 255;

/// The role of a tar entry in a build request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryRole {
    /// The entry is the root of the tar (`./`).
    Root,
    /// The entry is the build configuration, `com.openfaas.docker.config`.
    Config,
    /// The entry contains the sealed secrets, `com.openfaas.secrets`.
    Secrets,
    /// The entry is the folder `context` itself.
    ContextRoot,
    /// The entry belongs to the context, at this path.
    InContext(String),
    /// The entry is outside of the context, and is ignored.
    Ignored,
}

impl EntryRole {
    /// Validates the name of a tar entry, and returns the entry's role.
    ///
    /// # Errors
    /// Fails if the name is absolute, contains `..` or a NUL, is not UTF-8, or is too long.
    pub(super) fn from_entry_name(name: &[u8]) -> Result<Self, EntryProblem> {
        let name = parse_utf8_without_nul(name)?;
        if name.is_empty() {
            return Err(EntryProblem::NoName);
        }
        if name.starts_with('/') {
            return Err(EntryProblem::Absolute);
        }
        let mut path = String::with_capacity(name.len());
        for component in name
            .split('/')
            .filter(|component| !matches!(*component, "" | "."))
        {
            if component == ".." {
                return Err(EntryProblem::ParentComponent);
            }
            if component.len() > COMPONENT_MAX_BYTES {
                return Err(EntryProblem::ComponentTooLong {
                    limit: COMPONENT_MAX_BYTES,
                });
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(component);
        }
        if path.len() > PATH_MAX_BYTES {
            return Err(EntryProblem::PathTooLong {
                limit: PATH_MAX_BYTES,
            });
        }
        Ok(match path.as_str() {
            "" => Self::Root,
            "com.openfaas.docker.config" => Self::Config,
            "com.openfaas.secrets" => Self::Secrets,
            "context" => Self::ContextRoot,
            _ => match path.strip_prefix("context/") {
                Some(inner) => Self::InContext(inner.to_owned()),
                None => Self::Ignored,
            },
        })
    }
}

/// Validates the text of a symbolic link's target. It may lead anywhere: only BuildKit follows it, within the context.
///
/// # Errors
/// Fails if the target is empty, too long, not UTF-8, or contains a NUL.
pub(super) fn parse_symlink_target(target: &[u8]) -> Result<String, EntryProblem> {
    let target = parse_utf8_without_nul(target)?;
    if target.is_empty() {
        return Err(EntryProblem::NoTarget);
    }
    if target.len() > PATH_MAX_BYTES {
        return Err(EntryProblem::PathTooLong {
            limit: PATH_MAX_BYTES,
        });
    }
    Ok(target.to_owned())
}

/// Parses a name or target as UTF-8; fails if it contains a NUL.
fn parse_utf8_without_nul(bytes: &[u8]) -> Result<&str, EntryProblem> {
    if bytes.contains(&0) {
        return Err(EntryProblem::Nul);
    }
    std::str::from_utf8(bytes).map_err(|_| EntryProblem::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_entry_name_has_the_same_role() {
        let inside = |path: &str| EntryRole::InContext(path.to_owned());
        for (name, role) in [
            ("./", EntryRole::Root),
            (".", EntryRole::Root),
            ("com.openfaas.docker.config", EntryRole::Config),
            ("./com.openfaas.docker.config", EntryRole::Config),
            ("com.openfaas.secrets", EntryRole::Secrets),
            ("context", EntryRole::ContextRoot),
            ("./context/", EntryRole::ContextRoot),
            ("context/Dockerfile", inside("Dockerfile")),
            ("././context//a/./b/", inside("a/b")),
            (
                "context/com.openfaas.docker.config",
                inside("com.openfaas.docker.config"),
            ),
            ("context/...", inside("...")),
            ("context/a\\..\\b", inside("a\\..\\b")),
            ("contexts/a", EntryRole::Ignored),
            ("x/context/a", EntryRole::Ignored),
            ("x/com.openfaas.docker.config", EntryRole::Ignored),
        ] {
            assert_eq!(
                EntryRole::from_entry_name(name.as_bytes()).unwrap(),
                role,
                "{name}"
            );
        }
    }

    #[test]
    fn entry_names_that_lead_out_of_the_context_or_cannot_exist_are_rejected() {
        let long = format!("context/{}", "x".repeat(256));
        let deep = format!("context/{}", "x/".repeat(2100));
        for name in [
            &b""[..],
            b"/context/a",
            b"/",
            b"context/../a",
            b"../context/a",
            b"context/a/..",
            b"context/a\0b",
            b"context/\xff",
            long.as_bytes(),
            deep.as_bytes(),
        ] {
            assert!(
                EntryRole::from_entry_name(name).is_err(),
                "{}",
                String::from_utf8_lossy(name)
            );
        }
    }

    #[test]
    fn a_symlink_may_have_any_target_that_a_file_system_can_hold() {
        for target in ["a", "../../etc/passwd", "/etc/passwd", "a//b/"] {
            assert_eq!(parse_symlink_target(target.as_bytes()).unwrap(), target);
        }
        for target in [&b""[..], b"a\0", b"\xff", "x".repeat(5000).as_bytes()] {
            assert!(parse_symlink_target(target).is_err());
        }
    }
}
