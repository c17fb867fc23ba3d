//! The command `slipway diff`.

use clap::Args;
use function_host::http::Method;
use serde_json::Value;

use super::{ClientWithChosenRoute, warn_if_incomplete};
use crate::builder::{RequestError, build_path, percent_encode_component};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result_or_exit_if_unread, printable};
use crate::settings::{ConnectionArguments, quote_for_shell};

/// The most paths and names of each kind that are shown.
const SHOWN_PER_LIST_MAX: usize = 20;

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
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let path = format!(
        "{}/diff/{}",
        build_path(&arguments.older),
        percent_encode_component(&arguments.newer)
    );
    let answer = connected.client.ask(connected.route, Method::GET, &path).await;
    let answer = answer.map_err(|error| failure_of_diff(&connected, arguments, &error))?;
    if arguments.json {
        print_result_or_exit_if_unread(&answer.to_string());
        return Ok(ExitStatus::Success);
    }
    lines_of_difference(&answer)
        .iter()
        .for_each(|line| print_result_or_exit_if_unread(line));
    warn_if_incomplete(&answer);
    Ok(ExitStatus::Success)
}

/// Creates the error for builds that cannot be compared.
fn failure_of_diff(
    connected: &ClientWithChosenRoute,
    arguments: &DiffArguments,
    error: &RequestError,
) -> Failure {
    let DiffArguments { older, newer, .. } = arguments;
    let options = connected.options();
    let next = match error {
        RequestError::Refused(refusal) => match refusal.status {
            400 => format!("choose two builds of one function: slipway builds{options}"),
            404 if refusal.is_builders => format!("find the IDs: slipway builds{options}"),
            409 => {
                // The builder names the one that has not ended.
                let is_older = refusal.text.split_whitespace().any(|word| word == older);
                let running = if is_older { older } else { newer };
                format!(
                    "wait for the end of the build: slipway logs {} -f{options}",
                    quote_for_shell(running)
                )
            }
            501 => {
                "ask the operator to set records_repository; builds from then on can be compared".to_owned()
            }
            _ => return connected.failure(&connected.question("diff", &[older, newer], None), error),
        },
        _ => return connected.failure(&connected.question("diff", &[older, newer], None), error),
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
            text_or_hyphen(&build["id"]),
            text_or_hyphen(&build["state"]),
            seconds_or_hyphen(&build["seconds"]),
            text_or_hyphen(&build["submittedAt"]),
        ));
    }
    lines.push(match answer["firstMiss"].is_object() {
        false => "every step of the newer build came from the cache".to_owned(),
        true => {
            let miss = &answer["firstMiss"];
            format!(
                "first step without its cache: {} ({})",
                text_or_hyphen(&miss["step"]),
                seconds_or_hyphen(&miss["seconds"])
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
        for (sign, list) in first_entries_with_signs(&lists) {
            lines.push(format!("  {sign} {}", text_or_hyphen(list)));
        }
        let total: usize = lists.iter().map(|(_, list)| list.len()).sum();
        let shown: usize = lists
            .iter()
            .map(|(_, list)| list.len().min(SHOWN_PER_LIST_MAX))
            .sum();
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
            text_or_hyphen(&values["a"]),
            text_or_hyphen(&values["b"])
        )
    }));
    let bases = answer["bases"].as_array().into_iter().flatten();
    lines.extend(bases.filter(|base| base["a"] != base["b"]).map(|base| {
        format!(
            "base image {}: {} -> {}",
            text_or_hyphen(&base["image"]),
            short_digest_or_hyphen(&base["a"]),
            short_digest_or_hyphen(&base["b"])
        )
    }));
    lines.extend(lines_of_step_times(&answer["steps"]));
    let bytes = |build: &str| match answer[build]["imageBytes"].as_u64() {
        Some(bytes) => format!("{bytes} bytes"),
        None => "unknown".to_owned(),
    };
    lines.push(format!("image, compressed: {} -> {}", bytes("a"), bytes("b")));
    let notes = answer["notes"].as_array().into_iter().flatten();
    lines.extend(notes.map(|note| format!("note: {}", text_or_hyphen(note))));
    lines
}

/// Returns the first entries of each list, each with the sign of its list.
fn first_entries_with_signs<'a>(lists: &[(char, &'a Vec<Value>)]) -> Vec<(char, &'a Value)> {
    let lists = lists.iter();
    lists
        .flat_map(|(sign, list)| list.iter().take(SHOWN_PER_LIST_MAX).map(|entry| (*sign, entry)))
        .collect()
}

/// Returns a title, and a line for each step with its times in both builds; no lines if there are no steps.
fn lines_of_step_times(steps: &Value) -> Vec<String> {
    let show = |step: &Value| match (
        step.is_object(),
        step["cached"].as_bool(),
        step["failed"].as_bool(),
    ) {
        (false, _, _) => "-".to_owned(),
        (_, Some(true), _) => "cached".to_owned(),
        (_, _, Some(true)) => format!("failed after {}", seconds_or_hyphen(&step["seconds"])),
        _ => seconds_or_hyphen(&step["seconds"]),
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
        .map(|step| (show(&step["a"]), show(&step["b"]), text_or_hyphen(&step["name"])))
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
    let change = text_or_hyphen(&cause["change"]);
    match cause["kind"].as_str() {
        Some("file") => match cause["more"].as_u64() {
            Some(more) if more > 0 => format!("{} was {change}, and {more} more", text_or_hyphen(&cause["path"])),
            _ => format!("{} was {change}", text_or_hyphen(&cause["path"])),
        },
        Some("argument") => format!("the build argument {} was {change}", text_or_hyphen(&cause["name"])),
        Some("base") => format!("the base image {} is another one", text_or_hyphen(&cause["image"])),
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

fn text_or_hyphen(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"))
}

/// Returns the beginning of a digest.
fn short_digest_or_hyphen(digest: &Value) -> String {
    text_or_hyphen(digest)
        .chars()
        .take("sha256:".len() + 12)
        .collect()
}

fn seconds_or_hyphen(value: &Value) -> String {
    match value.as_f64() {
        Some(seconds) => format!("{seconds:.2} s"),
        None => "-".to_owned(),
    }
}
