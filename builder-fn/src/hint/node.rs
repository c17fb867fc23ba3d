//! Errors of npm and of Node.js.

use super::dependency::at_place_if_found;
use super::evidence::Evidence;
use super::network::unresolved_host_hint;
use super::text::{self, Place};
use super::{Hint, HintKind};

/// Explains an error of npm: a missing script, or one to which npm gives a code.
pub(super) fn explain_npm(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().filter_map(npm_error_text).collect();
    if let Some(script) = lines
        .iter()
        .find_map(|line| text::between(line, "Missing script: \"", "\""))
    {
        return Some(
            Hint::new(
                HintKind::ScriptMissing,
                format!("package.json has no script {script}"),
                format!(
                    "add {} to the scripts of package.json, or run one that it has",
                    text::name_if_safe_or(script, "it")
                ),
            )
            .at("package.json", None),
        );
    }
    let code = lines.iter().find_map(|line| line.strip_prefix("code "))?.trim();
    match code {
        "EUSAGE" => npm_lock_file_hint(evidence, &lines),
        "E404" | "ETARGET" => {
            let named = lines.iter().find_map(|line| {
                text::between(line, "The requested resource '", "'")
                    .or_else(|| text::between(line, "404  '", "' is not in"))
                    .or_else(|| {
                        Some(
                            line.split_once("No matching version found for ")?
                                .1
                                .trim_end_matches('.'),
                        )
                    })
            })?;
            let name = match named.rfind('@') {
                Some(at) if at > 0 => named.get(..at)?,
                _ => named,
            };
            let place = find_package_in_package_json(evidence, name);
            // What no file of the context asks for may be a name that a program made up.
            let known = match place.is_some() {
                true => text::name_if_safe_or(name, "the package"),
                false => "the package",
            };
            let hint = Hint::new(
                HintKind::DependencyMissing,
                match code {
                    "E404" => {
                        format!("the registry has no package {named}, or does not give it to this build")
                    }
                    _ => format!("the registry has no version {named}"),
                },
                format!(
                    "correct the name or the version of {known} in package.json; a private package needs credentials (.npmrc as a build secret)"
                ),
            );
            Some(at_place_if_found(hint, place))
        }
        "ERESOLVE" => {
            let wanted = lines
                .iter()
                .find(|line| line.starts_with("peer ") || line.starts_with("peerOptional "));
            let found = lines.iter().find_map(|line| line.strip_prefix("Found: "));
            let cause = match (found, wanted) {
                (Some(found), Some(wanted)) => {
                    format!("the dependencies exclude each other: {found} is there, and there is {wanted}")
                }
                _ => "the versions that the dependencies want exclude each other".to_owned(),
            };
            let hint = Hint::new(
                HintKind::DependencyConflict,
                cause,
                "choose versions in package.json that fit each other, or accept the conflict (npm install --legacy-peer-deps)",
            );
            Some(hint.at("package.json", None))
        }
        "EJSONPARSE" => Some(malformed_package_json(evidence, &lines)),
        "EAI_AGAIN" | "ENOTFOUND" => {
            let host = lines.iter().find_map(|line| {
                line.split_once(&format!("getaddrinfo {code} "))?
                    .1
                    .split_whitespace()
                    .next()
            });
            let host = host.filter(|host| text::may_be_host(host))?;
            match evidence.failure.no_network {
                // The rule for the network of steps names the policy.
                Some(_) => None,
                None => Some(unresolved_host_hint(
                    host,
                    &format!("the step cannot resolve the name of the host {host}"),
                )),
            }
        }
        _ => None,
    }
}

/// Explains an error at which Node.js stops.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    lines.iter().rfind(|line| line.starts_with("Node.js v"))?;
    let message = lines.iter().find(|line| is_js_error_message(line))?;
    if let Some(module) = text::between(message, "Cannot find module '", "'")
        .or_else(|| text::between(message, "Cannot find package '", "'"))
    {
        let place = lines
            .iter()
            .filter(|line| line.trim_start().starts_with("at "))
            .find_map(|line| stack_place(line));
        let hint = Hint::new(
            HintKind::DependencyMissing,
            format!("Node.js does not find the module {module}"),
            match module.starts_with(['.', '/']) {
                true => format!(
                    "copy {} into the image, or correct its path",
                    text::name_if_safe_or(module, "the module")
                ),
                false => format!(
                    "add {} to the dependencies in package.json, and install them in a step before",
                    match place.is_some_and(|place| evidence.context_file_contains(place.file, module)) {
                        true => text::name_if_safe_or(module, "the package"),
                        false => "the package",
                    }
                ),
            },
        );
        return Some(match place {
            Some(place) => hint.at(place.file, Some(place.line)),
            None => hint,
        });
    }
    // The place is on the first line: "/app/build.js:3".
    let place = lines.iter().find_map(|line| {
        let (place, rest) = text::parse_place(line)?;
        (rest.is_empty() && place.file.contains('.') && !place.file.starts_with("node")).then_some(place)
    });
    let place = place.or_else(|| lines.iter().find_map(|line| stack_place(line)))?;
    Some(Hint::to_correct_line(
        HintKind::ScriptError,
        format!("Node.js stops in {}: {message}", place.file),
        &place,
    ))
}

/// Returns what npm says in a line: `npm error TEXT`, or `npm ERR! TEXT` in older versions.
fn npm_error_text(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("npm error")
        .or_else(|| line.strip_prefix("npm ERR!"))?;
    Some(rest.trim())
}

/// Explains an error of `npm ci` about the lock file.
fn npm_lock_file_hint(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let has = |words: &str| lines.iter().any(|line| line.contains(words));
    let (kind, cause) = if has("can only install with an existing package-lock.json") {
        (
            HintKind::LockFileMissing,
            "npm ci needs a package-lock.json, and the folder has none",
        )
    } else if has("can only install packages when your package.json and package-lock.json") {
        (
            HintKind::LockFileOutdated,
            "package-lock.json does not fit package.json",
        )
    } else {
        return None;
    };
    let missing = lines
        .iter()
        .find(|line| line.starts_with("Missing: ") || line.starts_with("Invalid: "));
    let cause = match missing {
        Some(missing) => format!("{cause}: {missing}"),
        None => cause.to_owned(),
    };
    let next = "run npm install where the source is, and hand in the new package-lock.json";
    let file = evidence.path_in_function_folder_if_only_there("package-lock.json");
    Some(Hint::new(kind, cause, next).at(&file, None))
}

/// Explains a malformed `package.json`. npm names the position in it, in characters.
fn malformed_package_json(evidence: &Evidence<'_>, lines: &[&str]) -> Hint {
    let message = lines
        .iter()
        .find_map(|line| line.strip_prefix("JSON.parse "))
        .unwrap_or("it is no JSON");
    let position = message.split_once("at position ").and_then(|(_, rest)| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest.get(..digits)?.parse::<usize>().ok()
    });
    let read = evidence.failure.files.read_beginning("package.json", 64 << 10);
    let line = position.zip(read).and_then(|(position, read)| {
        let content = String::from_utf8_lossy(&read).into_owned();
        let before = content.char_indices().nth(position)?.0;
        u32::try_from(content.get(..before)?.matches('\n').count() + 1).ok()
    });
    Hint::new(
        HintKind::ManifestInvalid,
        format!("npm cannot read package.json: {message}"),
        "correct package.json: JSON has no comments and no comma before a closing bracket",
    )
    .at("package.json", line)
}

fn find_package_in_package_json(evidence: &Evidence<'_>, name: &str) -> Option<(String, u32)> {
    let quoted = format!("\"{name}\"");
    evidence.find_line_in_file("package.json", |line| {
        line.split_once(&quoted)
            .is_some_and(|(_, rest)| rest.trim_start().starts_with(':'))
    })
}

/// Returns whether a line is the message of an error: `SyntaxError: Unexpected token`.
fn is_js_error_message(line: &str) -> bool {
    let name = line.split([':', ' ']).next().unwrap_or_default();
    name.ends_with("Error")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && line.contains(": ")
        || line.starts_with("Error [")
}

/// Parses the place in a line of a stack: `at Object.<anonymous> (/app/build.js:2:11)`; `None` for Node's own files.
fn stack_place(line: &str) -> Option<Place<'_>> {
    let rest = line.trim_start().strip_prefix("at ")?;
    let inside = rest.rsplit_once('(').map_or(rest, |(_, inside)| inside);
    let inside = inside.trim_end_matches(')').trim_start_matches("file://");
    let (place, _) = text::parse_place(inside)?;
    (!inside.starts_with("node:") && place.file.contains('.')).then_some(place)
}
