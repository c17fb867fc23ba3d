//! The command `slipway diff`.

use clap::Args;
use function_host::http::Method;
use serde_json::Value;

use super::{Questions, failure_of_question, warn_of_gaps};
use crate::builder::{RequestError, build_path, escape};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result, printable};
use crate::settings::ConnectionArguments;

/// The most paths and names of each kind that are shown.
const SHOWN_MAX: usize = 20;

/// The arguments of `slipway diff`.
#[derive(Args)]
pub(crate) struct DiffArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The ID of the older build.
    older: String,
    /// The ID of the newer build.
    newer: String,
    /// Print the builder's answer.
    #[arg(long)]
    json: bool,
}

/// Shows what changed between two builds of a function.
///
/// # Errors
/// Fails if the builds cannot be compared.
pub(crate) async fn diff(arguments: &DiffArguments) -> Result<ExitStatus, Failure> {
    let questions = Questions::find(&arguments.connection).await?;
    let path = format!(
        "{}/diff/{}",
        build_path(&arguments.older),
        escape(&arguments.newer)
    );
    let answer = questions.client.ask(questions.route, Method::GET, &path).await;
    let answer = answer.map_err(|error| failure_of_diff(&questions, &error))?;
    if arguments.json {
        print_result(&answer.to_string());
        return Ok(ExitStatus::Success);
    }
    lines_of_difference(&answer)
        .iter()
        .for_each(|line| print_result(line));
    warn_of_gaps(&answer);
    Ok(ExitStatus::Success)
}

/// Creates the error for builds that cannot be compared.
fn failure_of_diff(questions: &Questions, error: &RequestError) -> Failure {
    let next = match error {
        RequestError::Refused(refusal) => match refusal.status {
            400 | 404 => "slipway builds --function NAME lists the builds of a function",
            409 => "wait for the end of the build: slipway logs ID -f",
            501 => "ask the operator to set records_repository; builds from then on can be compared",
            _ => return failure_of_question(error, &questions.client.settings().key.place),
        },
        _ => return failure_of_question(error, &questions.client.settings().key.place),
    };
    Failure::usage(printable(&error.to_string()), next)
}

/// Returns the lines of a comparison.
fn lines_of_difference(answer: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for build in ["a", "b"] {
        let build = &answer[build];
        lines.push(format!(
            "{}  {}  {}  {}",
            text(&build["id"]),
            text(&build["state"]),
            seconds(&build["seconds"]),
            text(&build["submittedAt"]),
        ));
    }
    lines.push(match answer["firstMiss"].is_object() {
        false => "every step of the newer build came from the cache".to_owned(),
        true => {
            let miss = &answer["firstMiss"];
            format!(
                "first step without its cache: {} ({})",
                text(&miss["step"]),
                seconds(&miss["seconds"])
            )
        }
    });
    let causes = answer["firstMiss"]["causes"].as_array().into_iter().flatten();
    lines.extend(causes.map(|cause| format!("  because {}", describe_cause(cause))));
    for (title, part) in [
        ("files", &answer["files"]),
        ("build arguments", &answer["arguments"]),
    ] {
        let kinds = [("changed", '~'), ("added", '+'), ("removed", '-')];
        let lists: Vec<_> = kinds
            .into_iter()
            .filter_map(|(kind, sign)| Some((sign, part[kind].as_array().filter(|list| !list.is_empty())?)))
            .collect();
        if lists.is_empty() {
            continue;
        }
        lines.push(format!("{title}:"));
        for (sign, list) in lines_within_limit(&lists) {
            lines.push(format!("  {sign} {}", text(list)));
        }
        let total: usize = lists.iter().map(|(_, list)| list.len()).sum();
        let shown: usize = lists.iter().map(|(_, list)| list.len().min(SHOWN_MAX)).sum();
        if total > shown {
            lines.push(format!(
                "  and {} more (--json shows up to 100 of each kind)",
                total - shown
            ));
        }
    }
    let options = answer["options"].as_object().into_iter().flatten();
    lines.extend(options.map(|(key, values)| {
        format!(
            "{}: {} -> {}",
            printable(key),
            text(&values["a"]),
            text(&values["b"])
        )
    }));
    let bases = answer["bases"].as_array().into_iter().flatten();
    lines.extend(bases.filter(|base| base["a"] != base["b"]).map(|base| {
        format!(
            "base image {}: {} -> {}",
            text(&base["image"]),
            short(&base["a"]),
            short(&base["b"])
        )
    }));
    lines.extend(lines_of_steps(&answer["steps"]));
    let bytes = |build: &str| match answer[build]["imageBytes"].as_u64() {
        Some(bytes) => format!("{bytes} bytes"),
        None => "unknown".to_owned(),
    };
    lines.push(format!("image, compressed: {} -> {}", bytes("a"), bytes("b")));
    let notes = answer["notes"].as_array().into_iter().flatten();
    lines.extend(notes.map(|note| format!("note: {}", text(note))));
    lines
}

/// Returns the first entries of each list, with its sign.
fn lines_within_limit<'a>(lists: &[(char, &'a Vec<Value>)]) -> Vec<(char, &'a Value)> {
    let lists = lists.iter();
    lists
        .flat_map(|(sign, list)| list.iter().take(SHOWN_MAX).map(|entry| (*sign, entry)))
        .collect()
}

/// Returns the lines of the steps that ran in one of the builds.
fn lines_of_steps(steps: &Value) -> Vec<String> {
    let show = |step: &Value| match (
        step.is_object(),
        step["cached"].as_bool(),
        step["failed"].as_bool(),
    ) {
        (false, _, _) => "-".to_owned(),
        (_, Some(true), _) => "cached".to_owned(),
        (_, _, Some(true)) => format!("failed after {}", seconds(&step["seconds"])),
        _ => seconds(&step["seconds"]),
    };
    let rows: Vec<_> = steps
        .as_array()
        .into_iter()
        .flatten()
        // BuildKit's own steps say nothing to people unless they take time.
        .filter(|step| {
            let is_long = |step: &Value| step["seconds"].as_f64() >= Some(0.1);
            step["name"]
                .as_str()
                .is_some_and(|name| !name.starts_with("[internal]"))
                || is_long(&step["a"])
                || is_long(&step["b"])
        })
        .map(|step| (show(&step["a"]), show(&step["b"]), text(&step["name"])))
        .collect();
    let width = |of: fn(&(String, String, String)) -> &String| {
        rows.iter()
            .map(|row| of(row).chars().count())
            .max()
            .unwrap_or_default()
    };
    let (older, newer) = (width(|row| &row.0), width(|row| &row.1));
    let title = (!rows.is_empty()).then(|| "time per step, older and newer:".to_owned());
    let lines = rows
        .iter()
        .map(|(a, b, name)| format!("  {a:>older$}  {b:>newer$}  {name}"));
    title.into_iter().chain(lines).collect()
}

/// Describes why a step lost its cache, as part of a sentence.
fn describe_cause(cause: &Value) -> String {
    let change = text(&cause["change"]);
    match cause["kind"].as_str() {
        Some("file") => match cause["more"].as_u64() {
            Some(more) if more > 0 => format!("{} was {change}, and {more} more", text(&cause["path"])),
            _ => format!("{} was {change}", text(&cause["path"])),
        },
        Some("argument") => format!("the build argument {} was {change}", text(&cause["name"])),
        Some("base") => format!("the base image {} is another one", text(&cause["image"])),
        Some("instruction") => match cause["before"].as_str() {
            Some(before) => format!("the instruction is new; in its place was {}", printable(before)),
            None => "the instruction is new".to_owned(),
        },
        Some("no-cache") => "the newer build was to use no cache".to_owned(),
        Some("options") => "target, platforms or Dockerfile are others".to_owned(),
        Some("failed-before") => "the step failed in the older build".to_owned(),
        _ => {
            "of nothing that is recorded: the cache was pruned, is on another daemon, or an earlier build was never cached"
                .to_owned()
        }
    }
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"))
}

/// Returns the beginning of a digest.
fn short(digest: &Value) -> String {
    text(digest).chars().take("sha256:".len() + 12).collect()
}

fn seconds(value: &Value) -> String {
    match value.as_f64() {
        Some(seconds) => format!("{seconds:.2} s"),
        None => "-".to_owned(),
    }
}
