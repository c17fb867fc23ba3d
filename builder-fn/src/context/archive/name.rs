//! Names in a tar: what they say and where in a build request they lead.

use super::error::EntryProblem;

/// Longest path, in bytes, as Linux has it.
const PATH_MAX: usize = 4095;
/// Longest component, in bytes, as common file systems have it.
const NAME_MAX: usize = 255;

/// Where an entry belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The folder that the tar was made of (`./`).
    Root,
    /// `com.openfaas.docker.config`.
    Config,
    /// `com.openfaas.secrets`.
    Secrets,
    /// The folder `context` itself.
    Context,
    /// In the context, at this path.
    InContext(String),
    /// Something else, which is not looked at.
    Elsewhere,
}

impl Place {
    /// Finds the place of a name as it stands in the tar.
    ///
    /// # Errors
    /// When the name is absolute, climbs with `..`, is not UTF-8, holds a NUL or is too long.
    pub(super) fn of(name: &[u8]) -> Result<Self, EntryProblem> {
        let name = text(name)?;
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
                return Err(EntryProblem::Climbs);
            }
            if component.len() > NAME_MAX {
                return Err(EntryProblem::ComponentTooLong { limit: NAME_MAX });
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(component);
        }
        if path.len() > PATH_MAX {
            return Err(EntryProblem::PathTooLong { limit: PATH_MAX });
        }
        Ok(match path.as_str() {
            "" => Self::Root,
            "com.openfaas.docker.config" => Self::Config,
            "com.openfaas.secrets" => Self::Secrets,
            "context" => Self::Context,
            _ => match path.strip_prefix("context/") {
                Some(inner) => Self::InContext(inner.to_owned()),
                None => Self::Elsewhere,
            },
        })
    }
}

/// The target of a symbolic link. Where it leads is no concern here: only BuildKit follows it, within the context.
///
/// # Errors
/// When there is none, or none that a file system could hold.
pub(super) fn symlink_target(target: &[u8]) -> Result<String, EntryProblem> {
    let target = text(target)?;
    if target.is_empty() {
        return Err(EntryProblem::NoTarget);
    }
    if target.len() > PATH_MAX {
        return Err(EntryProblem::PathTooLong { limit: PATH_MAX });
    }
    Ok(target.to_owned())
}

fn text(bytes: &[u8]) -> Result<&str, EntryProblem> {
    if bytes.contains(&0) {
        return Err(EntryProblem::Nul);
    }
    std::str::from_utf8(bytes).map_err(|_| EntryProblem::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_their_place_however_they_are_written() {
        let inside = |path: &str| Place::InContext(path.to_owned());
        for (name, place) in [
            ("./", Place::Root),
            (".", Place::Root),
            ("com.openfaas.docker.config", Place::Config),
            ("./com.openfaas.docker.config", Place::Config),
            ("com.openfaas.secrets", Place::Secrets),
            ("context", Place::Context),
            ("./context/", Place::Context),
            ("context/Dockerfile", inside("Dockerfile")),
            ("././context//a/./b/", inside("a/b")),
            (
                "context/com.openfaas.docker.config",
                inside("com.openfaas.docker.config"),
            ),
            ("context/...", inside("...")),
            ("context/a\\..\\b", inside("a\\..\\b")),
            ("contexts/a", Place::Elsewhere),
            ("x/context/a", Place::Elsewhere),
            ("x/com.openfaas.docker.config", Place::Elsewhere),
        ] {
            assert_eq!(Place::of(name.as_bytes()).unwrap(), place, "{name}");
        }
    }

    #[test]
    fn names_that_lead_out_or_nowhere_are_refused() {
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
            assert!(Place::of(name).is_err(), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_link_may_point_anywhere_but_not_nowhere() {
        for target in ["a", "../../etc/passwd", "/etc/passwd", "a//b/"] {
            assert_eq!(symlink_target(target.as_bytes()).unwrap(), target);
        }
        for target in [&b""[..], b"a\0", b"\xff", "x".repeat(5000).as_bytes()] {
            assert!(symlink_target(target).is_err());
        }
    }
}
