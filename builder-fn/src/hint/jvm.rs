//! Artifacts that Maven or Gradle do not find.

use super::dependency::at_place_if_found;
use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The files in which Gradle's dependencies may be.
const GRADLE_BUILD_FILES: &[&str] = &["build.gradle", "build.gradle.kts", "gradle/libs.versions.toml"];

/// Explains an artifact that none of the repositories has.
pub(super) fn explain_missing_artifact(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    missing_maven_artifact(evidence, &lines).or_else(|| missing_gradle_artifact(evidence, &lines))
}

/// Finds Maven's error: `Could not find artifact GROUP:ARTIFACT:PACKAGING:VERSION in REPOSITORY (URL)`, or for one that
/// it looked for before, `GROUP:ARTIFACT:PACKAGING:VERSION was not found in URL during a previous attempt`.
fn missing_maven_artifact(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let errors = lines.iter().filter_map(|line| line.strip_prefix("[ERROR] "));
    let coordinates = errors.clone().find_map(|line| {
        let (before, _) = line.split_once(" was not found in ")?;
        Some(before.rsplit(' ').next()?.trim_end_matches(':'))
    });
    let mut errors = errors;
    let coordinates = errors
        .find_map(|line| text::between(line, "Could not find artifact ", " in "))
        .or(coordinates)?;
    let (group, artifact) = parse_group_and_artifact(coordinates)?;
    let place = evidence.find_line_in_file("pom.xml", |line| {
        line.contains(&format!("<artifactId>{artifact}</artifactId>"))
    });
    let known = match place.is_some() {
        true => text::name_if_safe_or(artifact, "the artifact"),
        false => "the artifact",
    };
    let hint = Hint::new(
        HintKind::DependencyMissing,
        format!("no repository of the build has {group}:{artifact} as {coordinates}"),
        format!(
            "correct the name or the version of {known} in pom.xml, or name the repository that has it; a private one needs \
             credentials (settings.xml as a build secret)"
        ),
    );
    Some(at_place_if_found(hint, place))
}

/// Finds Gradle's error: `> Could not find GROUP:ARTIFACT:VERSION.`.
fn missing_gradle_artifact(evidence: &Evidence<'_>, lines: &[&str]) -> Option<Hint> {
    let coordinates = lines
        .iter()
        .find_map(|line| line.trim_start().strip_prefix("> Could not find "))?
        .trim_end_matches('.');
    let (group, artifact) = parse_group_and_artifact(coordinates)?;
    let name = format!("{group}:{artifact}");
    let place = GRADLE_BUILD_FILES
        .iter()
        .find_map(|file| evidence.find_line_in_file(file, |line| line.contains(&name)));
    let known = match place.is_some() {
        true => text::name_if_safe_or(artifact, "the artifact"),
        false => "the artifact",
    };
    let hint = Hint::new(
        HintKind::DependencyMissing,
        format!("no repository of the build has {coordinates}"),
        format!(
            "correct the name or the version of {known}, or name the repository that has it; a private one needs credentials"
        ),
    );
    Some(at_place_if_found(hint, place))
}

/// Parses the group and the artifact of coordinates with a version, such as `com.example:client:jar:1.0`.
fn parse_group_and_artifact(coordinates: &str) -> Option<(&str, &str)> {
    let may_be_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+'))
    };
    let parts: Vec<_> = coordinates.split(':').collect();
    match parts.as_slice() {
        [group, artifact, .., _] if parts.iter().all(|part| may_be_part(part)) => Some((group, artifact)),
        _ => None,
    }
}
