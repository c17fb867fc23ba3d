//! Reads the key `commitStatus`: the commit at GitHub or GitLab that shows how its build goes.

use function_host::http::Uri;
use serde_json::{Map, Value};

use super::error::escape_and_shorten_key;
use super::fields::ConfigFields;
use crate::sources::WebUrl;

/// The keys of `commitStatus`.
const COMMIT_STATUS_KEYS: [&str; 6] = ["github", "gitlab", "commit", "name", "api", "link"];

/// The name of a status whose config gives none.
const DEFAULT_STATUS_NAME: &str = "slipway";

/// The length of the longest name of a status, in characters.
const MAX_STATUS_NAME_CHARS: usize = 100;

/// The length of the longest path of a project, in bytes.
const MAX_PROJECT_PATH_BYTES: usize = 255;

/// A service that keeps git repositories and shows the statuses of their commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forge {
    /// GitHub, or a service with its API.
    GitHub,
    /// GitLab.
    GitLab,
}

/// The status of a commit that a build sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommitStatusConfig {
    /// The service that has the repository.
    pub(crate) forge: Forge,
    /// The full hash of the commit; `None` if it is that of the build's context.
    pub(crate) commit: Option<String>,
    /// The name of the status, which distinguishes it from others of the same commit.
    pub(crate) name: String,
    /// The URL that the status links to.
    pub(crate) link: Option<String>,
    /// The URL of the project in the API, with the project's path as it is.
    project: WebUrl,
    /// The URL of the project in the API, with the project's path encoded as the forge wants it.
    encoded: String,
}

impl CommitStatusConfig {
    /// Returns the URL of the project in the API. Rules and settings name projects by it.
    pub(crate) fn project_api_url(&self) -> &WebUrl {
        &self.project
    }

    /// Returns the URL that sets the status of a commit, a full hash.
    pub(crate) fn status_url_for(&self, commit: &str) -> Option<Uri> {
        format!("{}/statuses/{commit}", self.encoded).parse().ok()
    }
}

/// Reads the key `commitStatus`.
pub(super) fn read_commit_status(fields: &mut ConfigFields) -> Option<CommitStatusConfig> {
    if !fields.has_unread_key("commitStatus") {
        return None;
    }
    let given = fields.read_object_with_known_keys_in_any_case("commitStatus", &COMMIT_STATUS_KEYS)?;
    for key in given
        .keys()
        .filter(|key| !COMMIT_STATUS_KEYS.contains(&key.as_str()))
    {
        fields.record_wrong_key(
            format_args!("commitStatus.{}", escape_and_shorten_key(key)),
            format_args!(
                "is unknown; commitStatus should have {}",
                COMMIT_STATUS_KEYS.join(", ")
            ),
        );
    }
    let project = read_forge_and_project_api_urls(fields, &given);
    let commit = read_optional_text(
        fields,
        &given,
        "commit",
        "should be the full hash of a commit",
        is_full_commit_hash,
    );
    let name = read_optional_text(
        fields,
        &given,
        "name",
        "should be a text of at most 100 characters, such as ci/slipway",
        |name| name.chars().count() <= MAX_STATUS_NAME_CHARS && !name.contains(char::is_control),
    );
    let link = read_optional_text(fields, &given, "link", "should be a URL", |link| {
        WebUrl::parse(link).is_ok()
    });
    let (forge, project, encoded) = project?;
    Some(CommitStatusConfig {
        forge,
        commit: commit.ok()?.map(|commit| commit.to_ascii_lowercase()),
        name: name.ok()?.unwrap_or_else(|| DEFAULT_STATUS_NAME.to_owned()),
        link: link.ok()?,
        project,
        encoded,
    })
}

/// Reads the project, and the API that has it.
fn read_forge_and_project_api_urls(
    fields: &mut ConfigFields,
    status_object: &Map<String, Value>,
) -> Option<(Forge, WebUrl, String)> {
    let (forge, key, api, folder, example) = match (status_object.get("github"), status_object.get("gitlab"))
    {
        (Some(_), None) => (
            Forge::GitHub,
            "github",
            "https://api.github.com",
            "repos",
            "should be OWNER/NAME, like acme/hello",
        ),
        (None, Some(_)) => (
            Forge::GitLab,
            "gitlab",
            "https://gitlab.com/api/v4",
            "projects",
            "should be the path of a project, like acme/functions/hello",
        ),
        _ => {
            fields.record_wrong_key("commitStatus", "should have exactly one of github and gitlab");
            return None;
        }
    };
    let is_valid = |path: &str| {
        let parts = path.split('/').count();
        path.len() <= MAX_PROJECT_PATH_BYTES
            && path.split('/').all(is_project_path_component)
            && (parts == 2 || (parts > 2 && forge == Forge::GitLab))
    };
    let project = read_optional_text(fields, status_object, key, example, is_valid).ok()??;
    let api_problem = "should be the URL of the API, like https://git.example/api/v4, without a query and encoded characters";
    let is_api = |api: &str| !api.contains(['?', '%']) && WebUrl::parse(api).is_ok();
    let api = read_optional_text(fields, status_object, "api", api_problem, is_api)
        .ok()?
        .unwrap_or_else(|| api.to_owned());
    let api = api.trim_end_matches('/');
    let encoded = match forge {
        Forge::GitHub => project.clone(),
        Forge::GitLab => project.replace('/', "%2F"),
    };
    let Ok(url) = WebUrl::parse(&format!("{api}/{folder}/{project}")) else {
        fields.record_wrong_key("commitStatus.api", api_problem);
        return None;
    };
    // The same server, whose name and port have been read.
    let base = url.to_string();
    let base = base.strip_suffix(project.as_str())?;
    let encoded = format!("{base}{encoded}");
    Some((forge, url, encoded))
}

/// Reads an optional text, and records one that `is_valid` rejects. `Err` stands for such a text.
fn read_optional_text(
    fields: &mut ConfigFields,
    status_object: &Map<String, Value>,
    key: &str,
    problem: &str,
    is_valid: impl Fn(&str) -> bool,
) -> Result<Option<String>, ()> {
    match status_object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() && is_valid(text) => Ok(Some(text.clone())),
        Some(_) => {
            fields.record_wrong_key(format_args!("commitStatus.{key}"), problem);
            Err(())
        }
    }
}

/// Returns whether a text is the full hash of a commit.
pub(crate) fn is_full_commit_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns whether a text is a name in the path of a project.
fn is_project_path_component(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::BuildConfig;

    const COMMIT_HASH: &str = "0123456789012345678901234567890123456789";

    fn parse_commit_status(status: Value) -> Result<CommitStatusConfig, String> {
        let config = json!({"image": "r.example/a", "commitStatus": status}).to_string();
        let config = BuildConfig::parse(config.as_bytes()).map_err(|error| error.to_string())?;
        Ok(config.commit_status.unwrap())
    }

    #[test]
    fn github_and_gitlab_statuses_have_a_project_url_a_status_url_and_a_default_name() {
        for (status, project, url) in [
            (
                json!({"github": "acme/hello"}),
                "https://api.github.com/repos/acme/hello",
                "https://api.github.com/repos/acme/hello/statuses/",
            ),
            (
                json!({"gitlab": "acme/functions/hello", "api": "https://git.example/api/v4/"}),
                "https://git.example/api/v4/projects/acme/functions/hello",
                "https://git.example/api/v4/projects/acme%2Ffunctions%2Fhello/statuses/",
            ),
        ] {
            let status = parse_commit_status(status).unwrap();
            assert_eq!(status.project_api_url().to_string(), project);
            let sent = status.status_url_for(COMMIT_HASH).unwrap();
            assert_eq!(sent.to_string(), format!("{url}{COMMIT_HASH}"));
            assert_eq!((status.name.as_str(), status.commit), ("slipway", None));
        }
    }

    #[test]
    fn every_wrong_member_of_commit_status_is_named_in_one_error() {
        let status = json!({
            "github": "acme", "commit": "main", "name": "a\u{7}", "api": "api.github.com", "link": "javascript:x", "sha": COMMIT_HASH,
        });
        let error = parse_commit_status(status).unwrap_err();
        for expected in [
            "commitStatus.github should be OWNER/NAME",
            "commitStatus.commit should be the full hash",
            "commitStatus.name should be",
            "commitStatus.link should be a URL",
            "commitStatus.sha is unknown",
        ] {
            assert!(error.contains(expected), "{expected}: {error}");
        }
        for (status, expected) in [
            (json!({}), "exactly one of github and gitlab"),
            (
                json!({"github": "a/b", "gitlab": "a/b"}),
                "exactly one of github and gitlab",
            ),
            (
                json!({"github": "a/b", "api": "ftp://x"}),
                "commitStatus.api should be",
            ),
            (json!({"github": "a/.."}), "commitStatus.github should be"),
            (json!({"github": "a/b/c"}), "commitStatus.github should be"),
            (json!({"gitlab": "a/b%2Fc"}), "commitStatus.gitlab should be"),
            (json!({"gitlab": "a/b?x"}), "commitStatus.gitlab should be"),
            (json!({"github": 1}), "commitStatus.github should be"),
        ] {
            let error = parse_commit_status(status.clone()).unwrap_err();
            assert!(error.contains(expected), "{status}: {error}");
        }
    }
}
