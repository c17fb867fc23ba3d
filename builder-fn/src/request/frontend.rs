//! Decides which frontend reads a Dockerfile: the one built into BuildKit, unless the operator allows others.
//!
//! A Dockerfile's first lines can name an image to use as the frontend (`# syntax=`). That is a program of the caller's
//! choice which decides what is built, so it has to be one of `allowed_frontends` (`docs/pitfalls.md#frontends`).
//! Source of the directives' grammar: BuildKit `frontend/dockerfile/parser/directives.go`.

use std::str::FromStr;

use function_host::policy::Tenant;

use super::RequestError;
use super::image::{ImageRef, ImageRefError};

/// The repository of the built-in frontend's released images. Dockerfiles often name it; the built-in frontend
/// is used then.
const BUILT_IN_FRONTEND_REPOSITORY: &str = "docker.io/docker/dockerfile";

/// The number of a Dockerfile's bytes that are searched for directives. BuildKit's own reader accepts no longer
/// line.
pub(super) const DIRECTIVES_SEARCHED_BYTES: usize = 64 << 10;

/// The names of a Dockerfile's parser directives. A comment with another name ends the directives.
const DIRECTIVE_NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// The frontend: the program that reads a Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Frontend {
    /// The frontend built into BuildKit, whatever the Dockerfile names.
    #[default]
    BuiltIn,
    /// The frontend image that the Dockerfile names, which is an allowed one.
    Named,
}

/// Images that a Dockerfile may name as its frontend, besides the built-in one, on a builder without a policy.
#[derive(Clone, Debug, Default)]
pub struct AllowedFrontends(Vec<String>);

/// The error for a Dockerfile that names a frontend which is not allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the Dockerfile's line \"syntax={name}\" names a frontend that this builder does not allow{}; remove the line, or name \
     docker/dockerfile, which is built in",
    allowed_images_in_parentheses(.allowed)
)]
pub struct ForbiddenFrontend {
    /// The frontend's name in the Dockerfile, shortened.
    name: String,
    /// The images of the setting `allowed_frontends`, which the message lists.
    allowed: Vec<String>,
}

/// Lists the allowed images in parentheses, with a space before; returns an empty text if there are none.
fn allowed_images_in_parentheses(images: &[String]) -> String {
    match images {
        [] => String::new(),
        images => format!(" (allowed are {})", images.join(", ")),
    }
}

impl AllowedFrontends {
    /// Returns the frontend for a Dockerfile of `tenant` that begins with `dockerfile_start`. With a policy, the
    /// tenant's own list applies.
    ///
    /// # Errors
    /// Fails if the Dockerfile names a frontend that is not allowed.
    pub(super) fn choose_for_dockerfile(
        &self,
        dockerfile_start: &[u8],
        tenant: Option<&Tenant>,
    ) -> Result<Frontend, RequestError> {
        let Some(name) = find_syntax_directive(dockerfile_start) else {
            return Ok(Frontend::BuiltIn);
        };
        // The name as BuildKit resolves it. A digest has to be allowed with the name.
        let full = complete_reference(&name).unwrap_or_default();
        if let Some(tenant) = tenant {
            return match tenant.may_use_frontend(without_tag_or_digest(&full)) {
                Ok(()) => Ok(Frontend::Named),
                Err(_) if without_tag_or_digest(&full) == BUILT_IN_FRONTEND_REPOSITORY => {
                    Ok(Frontend::BuiltIn)
                }
                Err(violation) => Err(RequestError::Forbidden(violation.into())),
            };
        }
        if self.0.contains(&full) {
            return Ok(Frontend::Named);
        }
        if without_tag_or_digest(&full) == BUILT_IN_FRONTEND_REPOSITORY {
            return Ok(Frontend::BuiltIn);
        }
        const MAX_NAME_BYTES_SHOWN: usize = 200;
        let end = name.floor_char_boundary(MAX_NAME_BYTES_SHOWN);
        Err(RequestError::Frontend(ForbiddenFrontend {
            name: name[..end].to_owned(),
            allowed: self.0.clone(),
        }))
    }
}

impl FromStr for AllowedFrontends {
    type Err = String;

    /// Parses the allowed frontends: image references, separated by commas or blanks.
    fn from_str(text: &str) -> Result<Self, String> {
        let names = text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|name| !name.is_empty());
        let full = names.map(|name| {
            complete_reference(name)
                .map_err(|error| format!("should be images, separated by commas; {name:?}: {error}"))
        });
        full.collect::<Result<_, _>>().map(Self)
    }
}

/// Returns an image reference in full, with a tag or a digest.
fn complete_reference(name: &str) -> Result<String, ImageRefError> {
    match name.split_once('@') {
        None => ImageRef::parse(name).map(|image| image.to_string()),
        Some((name, digest)) => ImageRef::parse(name).map(|image| image.with_digest(digest)),
    }
}

/// Returns a full image reference without its tag or digest.
fn without_tag_or_digest(full: &str) -> &str {
    let name = full.split('@').next().unwrap_or(full);
    let slash = name.rfind('/').unwrap_or_default();
    match name[slash..].find(':') {
        Some(colon) => &name[..slash + colon],
        None => name,
    }
}

/// Returns the name in a Dockerfile's `syntax` directive, in any of its three forms: `# syntax=`, `// syntax=`, and JSON.
fn find_syntax_directive(start: &[u8]) -> Option<String> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = String::from_utf8_lossy(&start[..start.len().min(DIRECTIVES_SEARCHED_BYTES)]);
    let text = match text.strip_prefix("#!") {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest),
        None => &text,
    };
    let json = || {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        Some(value.get("syntax")?.as_str()?.to_owned())
    };
    let named = find_syntax_in_comments(text, "#")
        .or_else(|| find_syntax_in_comments(text, "//"))
        .or_else(json)?;
    Some(named.split(' ').next().unwrap_or_default().to_owned())
}

/// Returns the value of the directive `syntax` in a Dockerfile whose comments begin with `comment`.
fn find_syntax_in_comments(text: &str, comment: &str) -> Option<String> {
    let mut seen = Vec::new();
    for line in text.lines() {
        let (name, value) = split_directive(line.strip_prefix(comment)?)?;
        let name = name.to_ascii_lowercase();
        if name == "syntax" {
            return Some(value.to_owned());
        }
        if !DIRECTIVE_NAMES.contains(&name.as_str()) || seen.contains(&name) {
            return None;
        }
        seen.push(name);
    }
    None
}

/// Splits a directive `name = value`, the text of a Dockerfile's comment, into name and value.
fn split_directive(line: &str) -> Option<(&str, &str)> {
    const BLANK_CHARS: [char; 5] = ['\t', '\n', '\u{c}', '\r', ' '];
    let (name, value) = line.trim_start().split_once('=')?;
    let name = name.trim_end_matches(BLANK_CHARS);
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| (name, value.trim_matches(BLANK_CHARS)))
}

#[cfg(test)]
mod tests {
    use function_host::policy::Policy;

    use super::*;

    fn frontend_in_syntax_directive(dockerfile: &str) -> Option<String> {
        find_syntax_directive(dockerfile.as_bytes())
    }

    #[test]
    fn a_syntax_directive_is_found_wherever_buildkit_finds_it() {
        for dockerfile in [
            "# syntax=evil/frontend:1\nFROM x",
            "#syntax=evil/frontend:1",
            "#  SYNTAX \t=  evil/frontend:1  \r\nFROM x",
            "# syntax=evil/frontend:1 // with options",
            "#!/usr/bin/env builder\n# syntax=evil/frontend:1\n",
            "\u{feff}# syntax=evil/frontend:1\n",
            "# escape=`\n# check=skip=all\n# syntax=evil/frontend:1\n",
            "// syntax=evil/frontend:1\n",
            "#!x\n//syntax=evil/frontend:1",
            "{\"syntax\": \"evil/frontend:1\", \"x\": [1]}",
        ] {
            assert_eq!(
                frontend_in_syntax_directive(dockerfile).as_deref(),
                Some("evil/frontend:1"),
                "{dockerfile:?}"
            );
        }
    }

    #[test]
    fn a_comment_that_is_not_a_directive_names_no_frontend() {
        for dockerfile in [
            "",
            "FROM scratch\n# syntax=evil/frontend:1\n",
            "\n# syntax=evil/frontend:1\n",
            "# a comment\n# syntax=evil/frontend:1\n",
            "# key=value\n# syntax=evil/frontend:1\n",
            "# escape=`\n# escape=`\n# syntax=evil/frontend:1\n",
            "#!/bin/sh\n\n# syntax=evil/frontend:1\n",
            "#!# syntax=evil/frontend:1",
            "{\"syntax\": \"evil/frontend:1\"",
            "{\"syntax\": 1}",
            "# syn tax=evil/frontend:1\n",
        ] {
            assert_eq!(frontend_in_syntax_directive(dockerfile), None, "{dockerfile:?}");
        }
        let far = format!(
            "{}\n# syntax=evil/frontend:1\n",
            "#escape=".repeat(DIRECTIVES_SEARCHED_BYTES)
        );
        assert_eq!(frontend_in_syntax_directive(&far), None);
    }

    #[test]
    fn every_version_of_the_built_in_frontend_may_be_named_and_the_built_in_one_is_used() {
        let none = AllowedFrontends::default();
        for name in [
            "docker/dockerfile:1",
            "docker/dockerfile",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile@sha256:12",
        ] {
            let frontend = none.choose_for_dockerfile(format!("# syntax={name}\nFROM x").as_bytes(), None);
            assert!(matches!(frontend, Ok(Frontend::BuiltIn)), "{name}");
        }
        assert!(matches!(
            none.choose_for_dockerfile(b"FROM scratch", None),
            Ok(Frontend::BuiltIn)
        ));
    }

    #[test]
    fn a_frontend_other_than_the_built_in_one_has_to_be_allowed_by_its_exact_name() {
        let allowed: AllowedFrontends = "r.example/frontend:2, other/one r.example/by@sha256:12"
            .parse()
            .unwrap();
        for name in [
            "r.example/frontend:2",
            "docker.io/other/one:latest",
            "r.example/by@sha256:12",
        ] {
            let chosen = allowed.choose_for_dockerfile(format!("# syntax={name}\n").as_bytes(), None);
            assert!(matches!(chosen, Ok(Frontend::Named)), "{name}");
        }
        for name in [
            "r.example/frontend:1",
            "r.example/frontend:2@sha256:34",
            "docker/dockerfile-upstream:1",
            "UPPER/x",
        ] {
            let error = allowed
                .choose_for_dockerfile(format!("# syntax={name} x\n").as_bytes(), None)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("\"syntax={name}\"")) && error.contains("r.example/frontend:2"),
                "{error}"
            );
        }
        let none = AllowedFrontends::default()
            .choose_for_dockerfile(b"# syntax=r.example/frontend:2", None)
            .unwrap_err()
            .to_string();
        assert!(!none.contains("allowed are"), "{none}");
    }

    #[test]
    fn with_a_policy_only_the_tenants_own_frontends_and_the_built_in_one_are_allowed() {
        let policy = r#"{"tenants": {"acme": {
            "keys": ["k"], "frontends": ["r.example/acme/"], "buildkit": "tcp://buildkit-of-acme:1234"
        }, "globex": {"keys": ["l"]}}}"#;
        let policy = Policy::parse(policy).unwrap();
        let allowed: AllowedFrontends = "r.example/frontend:2".parse().unwrap();
        let choose = |tenant: &str, name: &str| {
            let tenant = policy.tenant(tenant).map(|tenant| &**tenant);
            allowed.choose_for_dockerfile(format!("# syntax={name}\n").as_bytes(), tenant)
        };
        assert!(matches!(
            choose("acme", "r.example/acme/frontend:1"),
            Ok(Frontend::Named)
        ));
        for tenant in ["acme", "globex"] {
            let built_in = choose(tenant, "docker/dockerfile:1");
            assert!(matches!(built_in, Ok(Frontend::BuiltIn)), "{built_in:?}");
            let error = choose(tenant, "r.example/frontend:2").unwrap_err().to_string();
            assert!(
                error.contains(&format!("rule frontends of tenant {tenant}")),
                "{error}"
            );
        }
        assert!(matches!(
            choose("globex", "UPPER/x"),
            Err(RequestError::Forbidden(_))
        ));
    }

    #[test]
    fn an_allowed_frontend_that_is_not_an_image_reference_is_rejected() {
        let error = "good/one:1,Bad".parse::<AllowedFrontends>().unwrap_err();
        assert!(error.contains("\"Bad\""), "{error}");
        assert!("".parse::<AllowedFrontends>().unwrap().0.is_empty());
    }
}
