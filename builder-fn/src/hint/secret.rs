//! Build secrets, keys and logins that a step uses and the build does not have.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The folder in which BuildKit mounts secrets.
const SECRETS_FOLDER: &str = "/run/secrets/";

/// The words with which programs say that a file is not there.
const MISSING_FILE_WORDS: &[&str] = &[
    "No such file",
    "cannot open",
    "can't open",
    "cannot access",
    "ENOENT",
    "not found",
    "does not exist",
    "nonexistent",
];

/// The words with which programs say that a server wants a login, or does not accept the one that it was given.
const MISSING_LOGIN_WORDS: &[&str] = &[
    // git
    "could not read Username for",
    "could not read Password for",
    "Authentication failed for '",
    "Permission denied (publickey",
    // npm and pnpm
    "npm error code E401",
    "npm ERR! code E401",
    "ERR_PNPM_FETCH_401",
    // pip and poetry
    "401 Error, Credentials not correct for",
    "HTTP error 401 while getting",
    "401 Client Error: ",
    // Maven and Gradle
    "status code: 401",
    "status: 401 ",
    "Received status code 401 from server",
    // Composer
    "Could not authenticate against ",
];

/// The answer of a server that wants a login.
const UNAUTHORIZED_WORDS: &str = "401 Unauthorized";

/// The number of last lines in which a cause is looked for: what a program wrote before did not stop it.
const LAST_LINES_SEARCHED: usize = 80;

/// The number of lines in which the URL follows the code of an error of npm.
const LINES_FROM_CODE_TO_URL: usize = 8;

/// Explains a secret that the build does not have.
pub(super) fn explain_missing_secret(evidence: &Evidence<'_>) -> Option<Hint> {
    if let Some(name) = evidence
        .error
        .strip_prefix("secret ")
        .and_then(|rest| rest.strip_suffix(": not found"))
    {
        return Some(missing_build_secret_hint(name));
    }
    if evidence.error.starts_with("no SSH key ") && evidence.error.ends_with(" forwarded from the client") {
        return Some(Hint::new(
            HintKind::SecretMissing,
            "the step mounts an SSH agent (--mount=type=ssh), and the builder forwards none",
            "give a token or the key as a build secret, and mount that in the step (RUN --mount=type=secret)",
        ));
    }
    evidence.process_failure_reason()?;
    let line = evidence.lines().find(|line| {
        line.contains(SECRETS_FOLDER) && MISSING_FILE_WORDS.iter().any(|words| line.contains(words))
    })?;
    let (_, rest) = line.split_once(SECRETS_FOLDER)?;
    let end =
        rest.find(|character: char| !(character.is_alphanumeric() || matches!(character, '-' | '_' | '.')));
    let name = rest.get(..end.unwrap_or(rest.len()))?.trim_end_matches('.');
    // A program may look for a secret that the step does not mount at all.
    let instruction = evidence.instruction()?;
    let is_mounted = instruction.text.split_whitespace().any(|word| {
        word.strip_prefix("--mount=").is_some_and(|mount| {
            let mut options = mount.split(',');
            options.any(|option| option == "type=secret")
                && mount
                    .split(',')
                    .any(|option| option.strip_prefix("id=") == Some(name))
        })
    });
    is_mounted.then(|| missing_build_secret_hint(name))
}

/// Explains a login that a server wants for a download of the step, and that the step does not have.
pub(super) fn explain_missing_login(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    let first = lines.len().saturating_sub(LAST_LINES_SEARCHED);
    let (at, words) = (first..lines.len()).rev().find_map(|at| {
        let line = lines.get(at)?;
        let mut words = MISSING_LOGIN_WORDS.iter().copied();
        let found = words.find(|words| line.contains(words));
        // What a server answered, in a line about an error with a URL.
        let is_answer = || {
            line.contains(UNAUTHORIZED_WORDS)
                && text::host_of_first_url(line).is_some()
                && (line.to_lowercase().contains("error") || line.starts_with("go: "))
        };
        let found = found.or_else(|| is_answer().then_some(UNAUTHORIZED_WORDS))?;
        Some((at, found))
    })?;
    let line = lines.get(at)?.trim_start();
    // OpenSSH: "git@example.com: Permission denied (publickey)."
    let of_ssh = text::between(line, "@", ": Permission denied").filter(|host| text::may_be_host(host));
    let of_url = || text::host_of_first_url(line);
    // npm gives its code first, and then the URL.
    let of_next_lines = || {
        let next = lines.iter().skip(at).take(LINES_FROM_CODE_TO_URL);
        next.filter(|line| line.contains("401"))
            .find_map(|line| text::host_of_first_url(line))
    };
    let host = of_ssh
        .or_else(of_url)
        .or_else(of_next_lines)
        .unwrap_or(match words.starts_with("npm ") {
            true => "the npm registry",
            false => "a server",
        });
    // go names the module on the line before git's.
    let module = at
        .checked_sub(1)
        .and_then(|before| lines.get(before)?.strip_prefix("go: ")?.split([' ', ':']).next());
    let purpose = module.map_or_else(String::new, |module| format!(" for {module}"));
    let answer = match words {
        "could not read Username for" | "could not read Password for" => String::new(),
        _ => format!(": {line}"),
    };
    Some(Hint::new(
        HintKind::SecretMissing,
        format!("{host} wants a login{purpose}, and the step has none that it accepts{answer}"),
        "give the login as a build secret (build_secrets in the stack file), and mount it in the step (RUN --mount=type=secret)",
    ))
}

/// Returns the hint for a secret that the build does not have.
fn missing_build_secret_hint(name: &str) -> Hint {
    let name = text::one_line_cut_with_ellipsis(name, super::MAX_NAME_OR_LINE_BYTES);
    Hint::new(
        HintKind::SecretMissing,
        format!("the step uses the build secret {name}, which the build does not have"),
        format!(
            "give the secret {} with the build: build_secrets in the stack file, or among the sealed secrets of the request",
            text::name_if_safe_or(&name, "that the cause names")
        ),
    )
}
