//! Manifests and dependencies of cargo and pip, lock files of these and other managers, packages of distributions.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// Explains a malformed manifest, or a lock file that is missing or does not fit the manifest.
pub(super) fn explain_non_npm_manifest_or_lock_file(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    malformed_cargo_manifest(evidence, &lines)
        .or_else(|| outdated_cargo_lock_file(&lines))
        .or_else(|| malformed_pip_requirement(&lines))
        .or_else(|| missing_or_outdated_lock_file(&lines))
}

/// Explains a dependency that does not exist, or that excludes another.
pub(super) fn explain_missing_or_conflicting_dependency(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    missing_or_conflicting_crate(evidence, &lines)
        .or_else(|| missing_or_conflicting_pip_requirement(evidence, &lines))
        .or_else(|| package_unknown_to_distribution(&lines))
}

/// Finds cargo's error in a manifest: `error: MESSAGE`, and after it ` --> Cargo.toml:LINE:COLUMN`; older versions
/// write `error: failed to parse manifest at` and `TOML parse error at line LINE, column COLUMN`.
fn malformed_cargo_manifest(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let new = lines.windows(2).find_map(|pair| {
        let [error, place] = pair else { return None };
        let message = error.strip_prefix("error: ")?;
        let (place, _) = text::parse_place(place.trim_start().strip_prefix("--> ")?)?;
        place
            .file
            .ends_with(".toml")
            .then_some((place.file, Some(place.line), message))
    });
    let old = || {
        let at = lines
            .iter()
            .position(|line| line.starts_with("error: failed to parse manifest at "))?;
        let file = text::between(lines.get(at)?, "`", "`")?;
        let rest = lines.get(at..)?;
        let number = rest.iter().find_map(|line| {
            let (_, rest) = line.split_once("TOML parse error at line ")?;
            rest.split_once(',')?.0.parse().ok()
        });
        let pairs = rest.windows(2);
        let reasons = pairs.filter_map(|pair| match pair {
            ["Caused by:", reason] => Some(reason.trim()),
            _ => None,
        });
        let reasons: Vec<_> = reasons.take(3).collect();
        Some((file, number, reasons.join(": ")))
    };
    let new = new.map(|(file, line, message)| (file, line, message.to_owned()));
    let (file, line, message) = new.or_else(old)?;
    let file = evidence.without_working_directory_if_in_context(file);
    Some(
        Hint::new(
            HintKind::ManifestInvalid,
            format!("cargo cannot read {file}: {message}"),
            format!("correct {}", text::name_if_safe_or(file, "the manifest")),
        )
        .at(file, line),
    )
}

/// Finds cargo's error for a lock file that does not fit the manifest, and that `--locked` keeps cargo from changing.
fn outdated_cargo_lock_file(lines: &[&str]) -> Option<Hint> {
    let line = lines.iter().find(|line| {
        (line.contains("the lock file ") && line.contains("needs to be updated but"))
            || line.contains("cannot update the lock file ")
    })?;
    let (_, rest) = line.split_once("the lock file ")?;
    let path = rest.split(' ').next()?;
    let name = path
        .rsplit('/')
        .next()
        .filter(|name| name.ends_with(".lock"))
        .unwrap_or("Cargo.lock");
    Some(
        Hint::new(
            HintKind::LockFileOutdated,
            format!("{name} does not fit Cargo.toml, and --locked does not let cargo change it"),
            "run cargo update --workspace (or any cargo command without --locked) where the source is, and hand in the new Cargo.lock",
        )
        .at(name, None),
    )
}

/// Finds the errors for a lock file that is missing (cargo, pnpm) or does not fit (pnpm, yarn, poetry, uv).
fn missing_or_outdated_lock_file(lines: &[&str]) -> Option<Hint> {
    let has = |words: &str| lines.iter().any(|line| line.contains(words));
    let missing = if has("cannot create the lock file ") && has("because --locked was passed") {
        Some(("Cargo.lock", "cargo generate-lockfile"))
    } else if has("ERR_PNPM_NO_LOCKFILE") {
        Some(("pnpm-lock.yaml", "pnpm install"))
    } else {
        None
    };
    if let Some((file, program)) = missing {
        let cause = format!("the command needs a {file}, which the source does not have");
        let next = format!("run {program} where the source is, and hand in the {file}");
        return Some(Hint::new(HintKind::LockFileMissing, cause, next).at(file, None));
    }
    let (file, program) = if has("ERR_PNPM_OUTDATED_LOCKFILE") {
        ("pnpm-lock.yaml", "pnpm install")
    } else if has("Your lockfile needs to be updated, but yarn was run with `--frozen-lockfile`")
        || has("The lockfile would have been modified by this install, which is explicitly forbidden")
    {
        ("yarn.lock", "yarn install")
    } else if has("pyproject.toml changed significantly since poetry.lock was last generated")
        || has("poetry.lock is not up to date with pyproject.toml")
    {
        ("poetry.lock", "poetry lock")
    } else if has("The lockfile at `uv.lock` needs to be updated, but `--locked` was provided") {
        ("uv.lock", "uv lock")
    } else {
        return None;
    };
    Some(
        Hint::new(
            HintKind::LockFileOutdated,
            format!("{file} does not fit the file that lists the dependencies"),
            format!("run {program} where the source is, and hand in the new {file}"),
        )
        .at(file, None),
    )
}

/// Finds pip's error for a malformed line: `ERROR: Invalid requirement: 'x' (from line 2 of requirements.txt)`.
fn malformed_pip_requirement(lines: &[&str]) -> Option<Hint> {
    let line = lines
        .iter()
        .find(|line| line.starts_with("ERROR: Invalid requirement: "))?;
    let text = line.strip_prefix("ERROR: Invalid requirement: ")?;
    let (what, place) = text.split_once(" (from line ").unwrap_or((text, ""));
    let place = place.strip_suffix(')').and_then(|place| place.split_once(" of "));
    let (number, file) = place.unwrap_or(("", "requirements.txt"));
    let hint = Hint::new(
        HintKind::ManifestInvalid,
        format!("pip cannot read the requirement {what}"),
        "write the requirement as NAME==VERSION",
    );
    Some(hint.at(file, number.parse().ok()))
}

/// Finds cargo's error for a crate or a version that does not exist, or for versions that exclude each other.
fn missing_or_conflicting_crate(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let error = lines.iter().find_map(|line| line.strip_prefix("error: "))?;
    if error.starts_with("failed to select a version for ") && !error.contains("the requirement") {
        let name = text::between(error, "`", "`")?;
        let place = find_crate_in_cargo_toml(evidence, name);
        let hint = Hint::new(
            HintKind::DependencyConflict,
            format!("the versions of {name} that the dependencies want exclude each other"),
            match place.is_some() && text::is_safe_in_shell_advice(name) {
                true => format!(
                    "choose versions that accept the same {name} (cargo tree -i {name} shows who wants which)"
                ),
                false => "choose versions of the dependencies that accept the same one (cargo tree -i NAME shows who wants which)".to_owned(),
            },
        );
        return Some(at_place_if_found(hint, place));
    }
    let what = error
        .strip_prefix("no matching package named ")
        .or_else(|| error.strip_prefix("failed to select a version for the requirement "))
        .or_else(|| error.strip_prefix("no matching package for "));
    let requirement = text::between(what?, "`", "`")?;
    let name = requirement.split_whitespace().next()?;
    let place = find_crate_in_cargo_toml(evidence, name);
    let cause = match requirement == name {
        true => format!("the registry has no crate {name}"),
        false => format!("the registry has no version of {name} that fits {requirement}"),
    };
    let hint = Hint::new(
        HintKind::DependencyMissing,
        cause,
        format!(
            "correct the name or the version of {} in Cargo.toml",
            match place.is_some() {
                true => text::name_if_safe_or(name, "the crate"),
                false => "the crate",
            }
        ),
    );
    Some(at_place_if_found(hint, place))
}

fn find_crate_in_cargo_toml(evidence: &Evidence<'_>, name: &str) -> Option<(String, u32)> {
    evidence.find_line_in_file("Cargo.toml", |line| {
        let rest = line.trim_start().trim_start_matches('"').strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '=', '.', '"']))
    })
}

/// Returns the hint at a place that was found, or without one.
pub(super) fn at_place_if_found(hint: Hint, place: Option<(String, u32)>) -> Hint {
    match place {
        Some((file, line)) => hint.at(&file, Some(line)),
        None => hint,
    }
}

/// Finds pip's error for a requirement that the index does not have, or for requirements that exclude each other.
fn missing_or_conflicting_pip_requirement(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    if lines
        .iter()
        .any(|line| line.starts_with("ERROR: ResolutionImpossible"))
    {
        let who = lines.iter().find_map(|line| {
            let rest = line.strip_prefix("ERROR: Cannot install ")?;
            rest.split_once(" because these package versions have conflicting dependencies")
                .map(|(who, _)| who)
        })?;
        let at = lines
            .iter()
            .position(|line| line.starts_with("The conflict is caused by:"));
        let reasons = lines.iter().skip(at.map_or(lines.len(), |at| at + 1)).take(4);
        let reasons: Vec<_> = reasons
            .map(|line| line.trim())
            .take_while(|line| !line.is_empty())
            .collect();
        let hint = Hint::new(
            HintKind::DependencyConflict,
            format!("{who} exclude each other: {}", reasons.join("; ")),
            "choose versions that fit each other, or leave a version out so that pip chooses it",
        );
        let file = lines
            .iter()
            .find_map(|line| text::between(line, "-r ", " (line "));
        return Some(match file {
            Some(file) => hint.at(file, None),
            None => hint,
        });
    }
    let requirement = lines
        .iter()
        .find_map(|line| line.strip_prefix("ERROR: No matching distribution found for "))?;
    let name_end = requirement
        .find(|character: char| !(character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.')));
    let name = requirement.get(..name_end.unwrap_or(requirement.len()))?;
    let versions = lines
        .iter()
        .find_map(|line| text::between(line, "(from versions: ", ")"));
    let cause = match versions {
        Some("none") | None => {
            format!("the package index has no {requirement} for this Python and this platform")
        }
        Some(versions) => {
            let newest = versions.rsplit(", ").next().unwrap_or_default();
            format!("the package index has no {requirement}; the newest version of {name} there is {newest}")
        }
    };
    let place = evidence.find_line_in_file("requirements.txt", |line| {
        let line = line.trim_start();
        let given = line
            .get(..name.len())
            .is_some_and(|given| given.eq_ignore_ascii_case(name));
        given
            && !line.get(name.len()..).is_some_and(|rest| {
                rest.starts_with(|character: char| {
                    character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
                })
            })
    });
    let hint = Hint::new(
        HintKind::DependencyMissing,
        cause,
        format!(
            "correct the name or the version of {}",
            match place.is_some() {
                true => text::name_if_safe_or(name, "the requirement"),
                false => "the requirement",
            }
        ),
    );
    Some(at_place_if_found(hint, place))
}

/// Finds the errors of `apt-get` and `apk` for a package that they do not know.
fn package_unknown_to_distribution(lines: &[&str]) -> Option<Hint> {
    let apt = lines
        .iter()
        .find_map(|line| line.strip_prefix("E: Unable to locate package "));
    let apt = apt.or_else(|| {
        lines
            .iter()
            .find_map(|line| text::between(line, "E: Package '", "' has no installation candidate"))
    });
    let version = lines
        .iter()
        .find_map(|line| text::between(line, "E: Version '", "' was not found"));
    let (package, next) = if let Some(package) = apt.or(version) {
        (
            package,
            "correct the name or the version, and run apt-get update in the same RUN instruction before the installation",
        )
    } else if let Some(package) = lines
        .iter()
        .find_map(|line| line.trim_start().strip_suffix(" (no such package):"))
    {
        (
            package,
            "correct the name, or use a newer base image or another repository (apk add --repository)",
        )
    } else {
        return None;
    };
    Some(Hint::new(
        HintKind::DependencyMissing,
        format!("the distribution's package manager does not know {package}"),
        next,
    ))
}
