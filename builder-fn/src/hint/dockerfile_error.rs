//! Errors in the Dockerfile itself.

use super::evidence::Evidence;
use super::{Hint, HintKind, dockerfile, text};

/// The beginnings of errors of BuildKit's Dockerfile frontend that name what is wrong with an instruction.
const INSTRUCTION_ERROR_PREFIXES: &[&str] = &[
    "base name (",
    "circular dependency detected on stage",
    "failed to parse stage name",
    "failed to parse platform",
    "failed to parse target platform",
    "invalid chmod parameter",
    "invalid containerPort",
    "invalid reference format",
    "invalid signal",
    "invalid stage index",
    "Syntax error - can't find = in",
    "unsupported mount type",
    "unexpected key",
    "unterminated heredoc",
    "the Dockerfile cannot be empty",
    "dockerfile contains no stages to build",
    "no build stage in current context",
    "failed to process \"",
];

/// Explains errors in the Dockerfile.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    // The text of a command may have the words of any error.
    if evidence.process_failure_reason().is_some() {
        return None;
    }
    let error = &*evidence.error;
    let dockerfile = evidence.failure.dockerfile;
    if let Some((line, what)) = error
        .strip_prefix("dockerfile parse error on line ")
        .and_then(|rest| rest.split_once(": "))
    {
        let line = line.parse().ok();
        return Some(invalid_instruction_hint(what).at(dockerfile, line));
    }
    if let Some(stage) = error
        .strip_prefix("target stage \"")
        .and_then(|rest| rest.strip_suffix("\" could not be found"))
    {
        return Some(missing_target_stage_hint(evidence, stage));
    }
    if let Some(stage) = misspelt_stage_and_meant_one(error) {
        let cause = format!(
            "{} is no stage of the Dockerfile, and was taken for an image; did you mean {}?",
            stage.0, stage.1
        );
        return Some(Hint::new(
            HintKind::StageMissing,
            cause,
            format!(
                "write {}, or name the image with its registry",
                text::name_if_safe_or(stage.1, "the name of the stage")
            ),
        ));
    }
    if let Some(rest) = error.strip_prefix("failed to read dockerfile: open ") {
        let path = rest.strip_suffix(": no such file or directory")?;
        return Some(missing_dockerfile_hint(evidence, path));
    }
    // The builder's own text for a context without the Dockerfile, and for control characters in it.
    if let Some(rest) = error.strip_prefix("context/") {
        if let Some((path, _)) = rest.split_once(": not in the tar; ") {
            return Some(missing_dockerfile_hint(evidence, path));
        }
        let (place, what) = text::parse_place(rest)?;
        let (what, _) = what
            .strip_prefix(": ")?
            .split_once(" contains a control character")?;
        return Some(
            Hint::new(
                HintKind::DockerfileInvalid,
                format!("{what} contains a control character such as a tab, which BuildKit cannot transfer"),
                "remove the control character from the line",
            )
            .at(place.file, Some(place.line)),
        );
    }
    if INSTRUCTION_ERROR_PREFIXES
        .iter()
        .any(|known| error.starts_with(known))
    {
        return Some(invalid_instruction_hint(error).at(dockerfile, evidence.dockerfile_line()));
    }
    None
}

/// Returns the hint for an instruction that is malformed.
fn invalid_instruction_hint(what: &str) -> Hint {
    let meant = text::between(what, "(did you mean ", "?)");
    let next = match meant {
        Some(meant) if text::is_safe_in_shell_advice(meant) => {
            format!("write {meant}, or correct the instruction otherwise")
        }
        _ if what.starts_with("base name (") => {
            "give the argument a value: a default in its ARG instruction before the first FROM, or one among the config's \
             \"buildArgs\""
                .to_owned()
        }
        _ => "correct the instruction".to_owned(),
    };
    Hint::new(
        HintKind::DockerfileInvalid,
        format!("the Dockerfile is malformed: {what}"),
        next,
    )
}

/// Returns the hint for a target that is no stage.
fn missing_target_stage_hint(evidence: &Evidence<'_>, stage: &str) -> Hint {
    let mut known = dockerfile::stage_names(evidence.instructions());
    known.retain(|name| text::is_safe_in_shell_advice(name));
    let (known, next) = match known.as_slice() {
        [] => (
            "none of its stages has a name".to_owned(),
            "name the stage in its FROM instruction (FROM IMAGE AS NAME), or leave the config's \"target\" out".to_owned(),
        ),
        names => (
            format!("it has {}", names.join(", ")),
            format!("set the config's \"target\" to one of {}, or leave it out", names.join(", ")),
        ),
    };
    Hint::new(
        HintKind::StageMissing,
        format!("the Dockerfile has no stage {stage}, which is the target of the build; {known}"),
        next,
    )
    .at(evidence.failure.dockerfile, None)
}

/// Returns the name that BuildKit took for an image of Docker Hub, and the stage that it is nearly the name of.
fn misspelt_stage_and_meant_one(error: &str) -> Option<(&str, &str)> {
    let (name, rest) = error.split_once(": failed to resolve source metadata for docker.io/library/")?;
    let (_, meant) = rest.rsplit_once("(did you mean ")?;
    Some((name, meant.strip_suffix("?)")?))
}

/// Returns the hint for a Dockerfile that the context does not have.
fn missing_dockerfile_hint(evidence: &Evidence<'_>, path: &str) -> Hint {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let hint = match evidence.failure.files.find_only_name_in_other_case(folder, name) {
        Some(other) => Hint::new(
            HintKind::DockerfileMissing,
            format!("the context has no {path}; it has {other}, in another case"),
            format!(
                "rename {} to {}, or set the config's \"dockerfile\"",
                text::name_if_safe_or(&other, "the file"),
                text::name_if_safe_or(name, "the name that the build uses")
            ),
        ),
        None => Hint::new(
            HintKind::DockerfileMissing,
            format!("the context has no {path}"),
            "add the file to the context, or set the config's \"dockerfile\" to the Dockerfile's path in the context",
        ),
    };
    hint.at(path, None)
}
