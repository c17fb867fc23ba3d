//! The command `slipway logs`.

use std::time::Duration;

use clap::Args;
use function_host::http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ClientWithChosenRoute, follow_to_end};
use crate::builder::{
    CallerContext, Record, RequestError, Verdict, build_path, percent_encode_component,
    printed_progress_record, printed_restart_record,
};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_message_as_is, print_result_or_exit_if_unread, printable};
use crate::progress::Event;
use crate::settings::{ConnectionArguments, quote_for_shell};
use crate::up::LogForm;

/// The arguments of `slipway logs`.
#[derive(Args)]
pub(crate) struct LogArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The ID of a build, or the name of a function for its newest build.
    #[arg(value_name = "ID|FUNCTION")]
    subject: String,
    /// Follow the build to its end. The exit status is then that of `slipway up`.
    #[arg(long, short)]
    follow: bool,
    /// Print the records of the builder.
    #[arg(long)]
    json: bool,
}

/// How long `slipway logs ID -f` waits until a builder accepts the build.
const ACCEPTANCE_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The reason why a build was not found.
enum LookupFailure {
    /// No builder knows it.
    NotFound(Failure),
    /// The request was refused or lost.
    Other(Failure),
}

/// Prints the log of a build to the standard output; with `--follow`, shows its progress until it ends.
///
/// # Errors
/// Fails if there is no such build, or its log is lost.
pub(crate) async fn print_log_or_follow_build(arguments: &LogArguments) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let found = find_build(&connected, &arguments.subject).await;
    let is_id = Uuid::try_parse(&arguments.subject).is_ok();
    let (build, patience) = match found {
        Ok(build) => (build, None),
        // A build that was queued just now, which no builder has accepted yet.
        Err(LookupFailure::NotFound(_)) if arguments.follow && is_id => {
            (json!({"id": arguments.subject}), Some(ACCEPTANCE_PATIENCE))
        }
        Err(LookupFailure::NotFound(mut failure)) => {
            if is_id {
                let options = connected.options();
                failure.next = format!(
                    "slipway logs {} -f{options} waits until a builder accepts the build; slipway builds{options} lists the builds",
                    arguments.subject
                );
            }
            return Err(failure);
        }
        Err(LookupFailure::Other(failure)) => return Err(failure),
    };
    let id = build["id"].as_str().unwrap_or(&arguments.subject).to_owned();
    if arguments.follow {
        let form = match arguments.json {
            true => LogForm::Records,
            false => LogForm::Progress,
        };
        let outcome = follow_to_end(&connected, &id, form, patience).await?;
        let caller = CallerContext {
            function: build["function"].as_str(),
            options: connected.options(),
            ..CallerContext::default()
        };
        let verdict = Verdict::of_outcome(&outcome, &caller);
        if arguments.json {
            print_result_or_exit_if_unread(&outcome.to_string());
            return Ok(verdict.status);
        }
        print_message_as_is(&format!("{id}: {}", printable(&verdict.summary)));
        for line in &verdict.explanation {
            print_message_as_is(&printable(line));
        }
        if let Some(next) = &verdict.next {
            print_message_as_is(&format!("next: {}", printable(next)));
        }
        return Ok(verdict.status);
    }
    let state = build["state"].as_str().unwrap_or_default();
    print_log_so_far(&connected, &id, arguments.json, state).await
}

/// Finds the build with this ID, or the newest one of the function with this name.
async fn find_build(connected: &ClientWithChosenRoute, id_or_function: &str) -> Result<Value, LookupFailure> {
    let by_id = connected
        .client
        .ask(connected.route, Method::GET, &build_path(id_or_function))
        .await;
    let question = connected.question("logs", &[id_or_function], Some(id_or_function));
    let not_found = match by_id {
        Ok(build) => return Ok(build),
        Err(RequestError::Refused(refusal)) if refusal.status == 404 => refusal,
        Err(error) => return Err(LookupFailure::Other(connected.failure(&question, &error))),
    };
    let path = format!(
        "/builds?function={}&limit=1",
        percent_encode_component(id_or_function)
    );
    let list = connected
        .ask(&path, &question)
        .await
        .map_err(LookupFailure::Other)?;
    match list["builds"].get(0) {
        Some(build) => Ok(build.clone()),
        None => Err(LookupFailure::NotFound(Failure::usage(
            format!(
                "there is no build {id_or_function:?}, and none of a function of that name: {}",
                not_found.text
            ),
            format!("list the builds: slipway builds{}", connected.options()),
        ))),
    }
}

/// Prints the log as far as it is there.
async fn print_log_so_far(
    connected: &ClientWithChosenRoute,
    id: &str,
    is_json: bool,
    build_state: &str,
) -> Result<ExitStatus, Failure> {
    let opened = connected.client.open_log(connected.route, id, 1).await;
    let question = connected.question("logs", &[id], Some(id));
    let mut records = opened.map_err(|error| connected.failure(&question, &error))?;
    let is_running = matches!(build_state, "waiting" | "running" | "deploying");
    loop {
        let record = match is_running {
            // A build that runs has no end yet: what there is comes at once.
            true => match tokio::time::timeout(Duration::from_secs(2), records.next_record()).await {
                Ok(record) => record,
                Err(_) => return Ok(ExitStatus::Success),
            },
            false => records.next_record().await,
        };
        let record = record.map_err(|cut| {
            let again = format!(
                "print it again: slipway logs {}{}",
                quote_for_shell(id),
                connected.options()
            );
            Failure::platform(cut.to_string(), again)
        })?;
        match record {
            Record::Progress { seq, lines, cached } if is_json => {
                if let Some(record) = printed_progress_record(seq, &lines, &cached) {
                    print_result_or_exit_if_unread(&record.to_string());
                }
            }
            Record::Progress { lines, cached, .. } => {
                let events = Event::of_record(&lines, &cached);
                events
                    .iter()
                    .filter_map(printable_event)
                    .for_each(|line| print_result_or_exit_if_unread(&line));
            }
            Record::NumbersRestart { seq, warning } if is_json => {
                print_result_or_exit_if_unread(&printed_restart_record(seq, &warning).to_string());
            }
            Record::NumbersRestart { warning, .. } => {
                print_message_as_is(&format!("warning: {}", printable(&warning)));
            }
            Record::Terminal(outcome) if is_json => {
                print_result_or_exit_if_unread(&outcome.to_string());
                return Ok(ExitStatus::Success);
            }
            Record::Terminal(outcome) => {
                let verdict = Verdict::of_outcome(&outcome, &CallerContext::default());
                print_message_as_is(&format!("{id}: {}", printable(&verdict.summary)));
                for line in &verdict.explanation {
                    print_message_as_is(&printable(line));
                }
                return Ok(ExitStatus::Success);
            }
        }
    }
}

/// Returns an event of a log as people read it; `None` for events that a log does not have.
fn printable_event(event: &Event<'_>) -> Option<String> {
    match event {
        Event::StepStarted { name } => Some(format!("=> {}", printable(name))),
        Event::StepEnded {
            name, cached: true, ..
        } => Some(format!("=> CACHED {}", printable(name))),
        Event::StepEnded { name, seconds, .. } => Some(format!("=> {} {seconds:.2} s", printable(name))),
        Event::StepProgress { id, current } => Some(format!("   {} {current}", printable(id))),
        Event::Output { text } => Some(format!("   {}", printable(text))),
        _ => None,
    }
}
