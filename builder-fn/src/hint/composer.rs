//! Packages, extensions and lock files of PHP's Composer.

use super::dependency::at_place_if_found;
use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// Explains what Composer does not find: an extension, a package, or a package in the lock file.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let problems: Vec<&str> = evidence
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- "))
        .collect();
    let mut all = problems.iter();
    all.find_map(|problem| {
        package_not_in_lock_file(problem)
            .or_else(|| missing_extension(evidence, problem))
            .or_else(|| wrong_version_of_php(evidence, problem))
            .or_else(|| missing_package(evidence, problem))
    })
}

/// Parses the error for an extension: `Root composer.json requires PHP extension ext-NAME CONSTRAINT but it is missing
/// from your system.`, or `PACKAGE VERSION requires ext-NAME CONSTRAINT -> it is missing from your system.`.
fn missing_extension(evidence: &Evidence<'_>, problem: &str) -> Option<Hint> {
    let (before, _) = problem.split_once(" it is missing from your system")?;
    let (who, rest) = before.split_once(" requires ")?;
    let name = rest.split_once("ext-")?.1.split(' ').next()?;
    let place = find_requirement(evidence, &format!("ext-{name}"));
    let who = match who {
        "Root composer.json" => "composer.json",
        who => who,
    };
    let hint = Hint::new(
        HintKind::DependencyMissing,
        format!("PHP does not have the extension {name}, which {who} requires"),
        format!(
            "install {} in a step before (docker-php-ext-install, pecl); if only a later stage needs it, let composer ignore it \
             (--ignore-platform-req)",
            match place.is_some() {
                true => text::name_if_safe_or(name, "the extension"),
                false => "the extension",
            }
        ),
    );
    Some(at_place_if_found(hint, place))
}

/// Parses the error for the version of PHP itself: `Root composer.json requires php ^8.3 but your php version (8.2.36)
/// does not satisfy that requirement.`.
fn wrong_version_of_php(evidence: &Evidence<'_>, problem: &str) -> Option<Hint> {
    let version = text::between(problem, "your php version (", ")")?;
    let (who, rest) = problem.split_once(" requires php ")?;
    let wanted = rest.split_once(" but ").or_else(|| rest.split_once(" -> "))?.0;
    let hint = Hint::new(
        HintKind::DependencyConflict,
        format!("the image has PHP {version}, and {who} requires {wanted}"),
        "use a base image with a version of PHP that fits, or versions of the packages that accept this one",
    );
    Some(at_place_if_found(hint, find_requirement(evidence, "php")))
}

/// Parses the error for a package that no repository has, or not in a version that fits: `Root composer.json requires
/// NAME, it could not be found in any version`, or `Root composer.json requires NAME CONSTRAINT, found NAME[VERSIONS]
/// but it does not match the constraint.`.
fn missing_package(evidence: &Evidence<'_>, problem: &str) -> Option<Hint> {
    let (requirement, rest) = problem
        .strip_prefix("Root composer.json requires ")?
        .split_once(", ")?;
    let name = requirement.split(' ').next()?;
    let cause = if rest.contains("it could not be found in any version") {
        format!("no repository of the build has the package {name}")
    } else if rest.starts_with("found ") && rest.contains("not match ") {
        format!("no repository of the build has a version of {name} that fits {requirement}: {rest}")
    } else {
        return None;
    };
    let place = find_requirement(evidence, name);
    let hint = Hint::new(
        HintKind::DependencyMissing,
        cause,
        format!(
            "correct the name or the version of {} in composer.json; a private package needs its repository there, and \
             credentials (auth.json as a build secret)",
            match place.is_some() {
                true => text::name_if_safe_or(name, "the package"),
                false => "the package",
            }
        ),
    );
    Some(at_place_if_found(hint, place))
}

/// Parses the error for a package that was added to composer.json only: `Required package "NAME" is not present in the
/// lock file.`.
fn package_not_in_lock_file(problem: &str) -> Option<Hint> {
    let name = text::between(
        problem,
        "Required package \"",
        "\" is not present in the lock file",
    )?;
    let hint = Hint::new(
        HintKind::LockFileOutdated,
        format!("composer.lock does not have the package {name}, which composer.json requires"),
        "run composer update where the source is, and hand in the new composer.lock",
    );
    Some(hint.at("composer.lock", None))
}

fn find_requirement(evidence: &Evidence<'_>, name: &str) -> Option<(String, u32)> {
    let quoted = format!("\"{name}\"");
    evidence.find_line_in_file("composer.json", |line| {
        let rest = line.trim_start().strip_prefix(&quoted);
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    })
}
