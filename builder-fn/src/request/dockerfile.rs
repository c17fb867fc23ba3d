//! The checks of a build request's Dockerfile: whether the context has it, which frontend reads it, and which patterns
//! of its ignore file are malformed.

use function_host::policy::Tenant;

use super::frontend::DIRECTIVES_SEARCHED_BYTES;
use super::{AllowedFrontends, Frontend, RequestError};
use crate::context::{Kind, SourceContext, pattern_problems};

/// The most malformed patterns of an ignore file for which there are warnings.
const MAX_MALFORMED_PATTERNS_SHOWN: usize = 20;

/// The length of the part of an ignore file that is checked, in bytes.
const IGNORE_FILE_CHECKED_BYTES: usize = 1 << 20;

/// The name of the Dockerfile if the configuration names none.
pub(super) const DEFAULT_DOCKERFILE: &str = "Dockerfile";

/// Returns the path of the Dockerfile, and the one that BuildKit's frontend reads if it cannot read the first:
/// for a file called `Dockerfile`, `dockerfile` in the same folder (`frontend/dockerui/config.go`,
/// `ReadEntrypoint`).
fn dockerfile_and_fallback(dockerfile_path: Option<&str>) -> (&str, Option<String>) {
    let path = dockerfile_path.unwrap_or(DEFAULT_DOCKERFILE);
    let folder = path.strip_suffix(DEFAULT_DOCKERFILE);
    let folder = folder.filter(|folder| folder.is_empty() || folder.ends_with('/'));
    let fallback = folder.map(|folder| format!("{folder}{}", DEFAULT_DOCKERFILE.to_lowercase()));
    (path, fallback)
}

/// Fails if the context has no Dockerfile, sooner and with a clearer text than BuildKit would.
///
/// A Dockerfile that can be reached only through a symbolic link is left to BuildKit.
pub(super) fn check_dockerfile_exists(
    context: &SourceContext,
    dockerfile_path: Option<&str>,
) -> Result<(), RequestError> {
    let (path, fallback) = dockerfile_and_fallback(dockerfile_path);
    let may_be_present = |path: &str| {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let is_symlink = |path: &str| {
            context
                .get(path)
                .is_some_and(|entry| matches!(entry.kind, Kind::Symlink { .. }))
        };
        context.get(path).is_some_and(|entry| !entry.is_folder()) || above.into_iter().any(is_symlink)
    };
    match may_be_present(path) || fallback.as_deref().is_some_and(may_be_present) {
        true => Ok(()),
        false => Err(RequestError::NoDockerfile {
            path: path.to_owned(),
            is_named: dockerfile_path.is_some(),
        }),
    }
}

/// Chooses the frontend that reads the Dockerfile: the one that its first lines name, or else the built-in one.
///
/// A Dockerfile that can be reached only through a symbolic link is not looked at; the built-in frontend reads it.
///
/// # Errors
/// Fails if the Dockerfile names a frontend that is not allowed, or cannot be read back from the spool.
pub(super) fn choose_frontend(
    context: &SourceContext,
    dockerfile_path: Option<&str>,
    allowed: &AllowedFrontends,
    tenant: Option<&Tenant>,
) -> Result<Frontend, RequestError> {
    let (path, fallback) = dockerfile_and_fallback(dockerfile_path);
    let is_readable = |path: &str| context.get(path).is_some_and(|entry| !entry.is_folder());
    let path = match &fallback {
        Some(fallback) if !is_readable(path) => fallback,
        _ => path,
    };
    let start = read_file_start(context, path, DIRECTIVES_SEARCHED_BYTES)?.unwrap_or_default();
    allowed.choose_for_dockerfile(&start, tenant)
}

/// Returns a warning for each malformed pattern, up to [`MAX_MALFORMED_PATTERNS_SHOWN`], in the ignore file that
/// BuildKit's frontend reads: the Dockerfile's own (`Dockerfile.dockerignore`), or else `.dockerignore`.
///
/// # Errors
/// Fails if the file cannot be read back from the spool.
pub(super) fn ignore_file_warnings(
    context: &SourceContext,
    dockerfile_path: Option<&str>,
) -> Result<Vec<String>, RequestError> {
    let own = format!("{}.dockerignore", dockerfile_path.unwrap_or(DEFAULT_DOCKERFILE));
    let (path, content) = match read_file_start(context, &own, IGNORE_FILE_CHECKED_BYTES)? {
        Some(content) => (own.as_str(), content),
        None => {
            let shared = ".dockerignore";
            (
                shared,
                read_file_start(context, shared, IGNORE_FILE_CHECKED_BYTES)?.unwrap_or_default(),
            )
        }
    };
    let problems = pattern_problems(&content).take(MAX_MALFORMED_PATTERNS_SHOWN);
    let warnings = problems.map(|problem| {
        let pattern: String = problem.pattern.chars().take(100).collect();
        format!(
            "context/{path}, line {}: the pattern {pattern:?} is malformed: {}",
            problem.line, problem.reason
        )
    });
    Ok(warnings.collect())
}

/// Returns up to `limit` bytes from the start of the file at `path`, or `None` if there is no such file.
fn read_file_start(
    context: &SourceContext,
    path: &str,
    limit: usize,
) -> Result<Option<Vec<u8>>, RequestError> {
    let entry = context.get(path);
    let Some(entry) = entry.filter(|entry| matches!(entry.kind, Kind::File { .. })) else {
        return Ok(None);
    };
    let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
    let mut start = vec![0; size.min(limit)];
    context
        .read_file_exact(entry, 0, &mut start)
        .map_err(RequestError::ReadSpool)?;
    Ok(Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context_with_files(files: &[(&str, &[u8])]) -> SourceContext {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, format!("context/{path}"), *content)
                .unwrap();
        }
        SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap()
    }

    #[test]
    fn the_frontend_is_chosen_from_the_dockerfile_that_buildkit_reads() {
        let evil = b"# syntax=evil/frontend\n";
        let none = AllowedFrontends::default();
        for (files, given, is_rejected) in [
            (&[("Dockerfile", &evil[..])][..], None, true),
            (&[("dockerfile", evil)], None, true),
            (&[("build/My", evil)], Some("build/My"), true),
            (&[("dockerfile", evil)], Some("Dockerfile"), true),
            (&[("build/dockerfile", evil)], Some("build/Dockerfile"), true),
            (&[("Dockerfile/x", b""), ("dockerfile", evil)], None, true),
            (
                &[("build/Dockerfile", b"FROM x"), ("build/dockerfile", evil)],
                Some("build/Dockerfile"),
                false,
            ),
            (&[("Dockerfile", b"FROM x"), ("dockerfile", evil)], None, false),
            (
                &[("Dockerfile", evil), ("other", b"FROM x")],
                Some("other"),
                false,
            ),
        ] {
            let chosen = choose_frontend(&context_with_files(files), given, &none, None);
            assert_eq!(chosen.is_err(), is_rejected, "{files:?}");
        }
        let context = context_with_files(&[("Dockerfile", evil)]);
        let allowed = "evil/frontend".parse().unwrap();
        assert_eq!(
            choose_frontend(&context, None, &allowed, None).unwrap(),
            Frontend::Named
        );
    }

    #[test]
    fn malformed_patterns_cause_warnings_only_in_the_ignore_file_that_buildkit_reads() {
        let shared = (".dockerignore", &b"*.md\n![z-a]\n"[..]);
        let own = ("build/Dockerfile.dockerignore", &b"a*/b\\\n"[..]);
        for (files, given, expected) in [
            (
                &[shared][..],
                None,
                Some("context/.dockerignore, line 2: the pattern \"![z-a]\""),
            ),
            (&[shared, own], None, Some("context/.dockerignore, line 2")),
            (
                &[shared, own],
                Some("build/Dockerfile"),
                Some("context/build/Dockerfile.dockerignore, line 1: the pattern \"a*/b\\\\\""),
            ),
            (&[(".dockerignore", b"*.md\n!README.md\n")], None, None),
            (&[("other", b"")], None, None),
        ] {
            let warnings = ignore_file_warnings(&context_with_files(files), given).unwrap();
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
            assert!(
                warnings
                    .iter()
                    .all(|warning| warning.starts_with(expected.unwrap())),
                "{warnings:?}"
            );
        }
    }

    #[test]
    fn a_missing_dockerfile_is_rejected_unless_a_symlink_may_lead_to_it() {
        let context = |files: &[(&str, Option<&str>)]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, target) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                let path = format!("context/{path}");
                match target {
                    Some(target) => {
                        header.set_entry_type(tar::EntryType::Symlink);
                        tar.append_link(&mut header, path, target).unwrap();
                    }
                    None => tar.append_data(&mut header, path, &[][..]).unwrap(),
                }
            }
            SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap()
        };
        for (files, given, expected) in [
            (&[("Dockerfile", None)][..], None, true),
            (&[("dockerfile", None)], None, true),
            (&[("Dockerfile", Some("elsewhere"))], None, true),
            (&[("other", None)], None, false),
            (&[("Dockerfile/x", None)], None, false),
            (&[("build/Dockerfile", None)], Some("build/Dockerfile"), true),
            (&[("build", Some("real"))], Some("build/Dockerfile"), true),
            (&[("dockerfile", None)], Some("Dockerfile"), true),
            (&[("build/dockerfile", None)], Some("build/Dockerfile"), true),
            (&[("Dockerfile/x", None), ("dockerfile", None)], None, true),
            (&[("dockerfile", None)], Some("build/Dockerfile"), false),
            (&[("mydockerfile", None)], Some("myDockerfile"), false),
            (&[("Dockerfile", None)], Some("dockerfile"), false),
            (&[("other", None)], Some("Other"), false),
            (&[("build/x", None)], Some("build"), false),
        ] {
            assert_eq!(
                check_dockerfile_exists(&context(files), given).is_ok(),
                expected,
                "{files:?}, {given:?}"
            );
        }
    }
}
