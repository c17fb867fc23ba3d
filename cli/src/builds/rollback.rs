//! The command `slipway rollback`.

use std::time::Duration;

use clap::Args;
use function_host::http::Method;
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use super::{ClientWithChosenRoute, failure_of_bodyless_request, table};
use crate::builder::{BuildFacts, RequestError, Verdict, build_path, percent_encode_component};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result_or_exit_if_unread, printable};
use crate::progress::{Event, Progress, ProgressForm, show_failure_if_json};
use crate::settings::ConnectionArguments;
use crate::up::{FollowedBuild, LogForm, follow_log};

/// The number of times that a rollback is requested whose answer is lost, and the pause between two requests.
const REQUEST_COUNT_AND_PAUSE: (u32, Duration) = (4, Duration::from_secs(1));

/// The arguments of `slipway rollback`.
#[derive(Args)]
pub(crate) struct RollbackArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The function, with or without its namespace.
    function: String,
    /// The ID of the version to go back to; without it, the last one before the current version that worked.
    #[arg(conflicts_with = "list")]
    version: Option<String>,
    /// List the versions that can be chosen, the newest first, and change nothing.
    #[arg(long)]
    list: bool,
    /// The ID that the rollback gets, for `slipway status` and `logs`: a new UUID without this option. A rollback that
    /// is requested again under its ID changes nothing.
    #[arg(long, value_name = "ID", conflicts_with = "list")]
    id: Option<String>,
    /// The form of the progress on the standard error.
    #[arg(long, value_enum, default_value_t)]
    progress: ProgressForm,
    /// Count a version of which nothing proves that it is the one that answers as not deployed.
    #[arg(long)]
    strict: bool,
    /// Print the builder's answer.
    #[arg(long)]
    json: bool,
}

/// Deploys an earlier version of a function again, and follows that until the version answers; or lists the versions.
///
/// # Errors
/// Fails if the rollback is not begun, or its outcome is not known. With `--progress json`, the error is an event, and
/// only its exit status is returned.
pub(crate) async fn rollback(arguments: &RollbackArguments) -> Result<ExitStatus, Failure> {
    show_failure_if_json(arguments.progress, list_or_roll_back(arguments).await)
}

async fn list_or_roll_back(arguments: &RollbackArguments) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    if arguments.list {
        return print_versions(&connected, arguments).await;
    }
    let id = match &arguments.id {
        Some(id) => id.clone(),
        None => Uuid::new_v4().to_string(),
    };
    let begun = request_rollback(&connected, arguments, &id).await?;
    let options = &connected.client.settings().options;
    let progress = Progress::new(arguments.progress, &arguments.function);
    progress.show(&Event::RollbackStarted {
        id: &id,
        to: begun["rollback"]["to"].as_str().unwrap_or("an earlier version"),
        options,
    });
    let following = FollowedBuild {
        client: &connected.client,
        route: connected.route,
        id: &id,
        progress: &progress,
        form: LogForm::Progress,
        patience: None,
    };
    let outcome = follow_log(&following).await?;
    let verdict = Verdict::of_outcome(&outcome, arguments.strict);
    if arguments.json {
        let record = connected.ask(Method::GET, &build_path(&id)).await?;
        print_result_or_exit_if_unread(&record.to_string());
        if let Some(text) = record["incomplete"].as_str() {
            progress.show(&Event::Warning { text });
        }
        return Ok(verdict.status);
    }
    for text in &verdict.warnings {
        progress.show(&Event::Warning { text });
    }
    let facts = (!progress.is_quiet()).then(|| BuildFacts::of_answer(&outcome));
    match &verdict.next {
        Some(next) => progress.show(&Event::Failed {
            summary: &verdict.summary,
            explanation: &verdict.explanation,
            next,
            code: verdict.status.code(),
            facts: facts.as_ref(),
        }),
        None => {
            let gateway = &connected.client.settings().gateway;
            let url = format!(
                "{gateway}/function/{}",
                percent_encode_component(&arguments.function)
            );
            let image = outcome["image"].as_str().unwrap_or_default();
            let digest = outcome["digest"].as_str().unwrap_or_default();
            progress.show(&Event::Running {
                summary: &verdict.summary,
                url: &url,
                image: &format!("{image}@{digest}"),
                facts: &facts.unwrap_or_default(),
            });
            print_result_or_exit_if_unread(&url);
        }
    }
    Ok(verdict.status)
}

/// Requests the rollback, again if the answer is lost: under one ID it is begun once.
async fn request_rollback(
    connected: &ClientWithChosenRoute,
    arguments: &RollbackArguments,
    id: &str,
) -> Result<Value, Failure> {
    let to = arguments
        .version
        .as_deref()
        .map(|to| format!("&to={}", percent_encode_component(to)));
    let path = format!(
        "/functions/{}/rollback?id={}{}",
        percent_encode_component(&arguments.function),
        percent_encode_component(id),
        to.unwrap_or_default()
    );
    let mut requests = 1;
    loop {
        let error = match connected.client.ask(connected.route, Method::POST, &path).await {
            Ok(begun) => return Ok(begun),
            Err(error) => error,
        };
        let may_have_begun = match &error {
            RequestError::Lost { .. } => true,
            // A gateway that lost the builder.
            RequestError::Refused(refusal) => matches!(refusal.status, 503 | 504),
            RequestError::Connect { .. } => false,
        };
        if !may_have_begun || requests == REQUEST_COUNT_AND_PAUSE.0 {
            return Err(failure_of_rollback(connected, arguments, &error));
        }
        requests += 1;
        sleep(REQUEST_COUNT_AND_PAUSE.1).await;
    }
}

/// Creates the error for a rollback that was not begun.
fn failure_of_rollback(
    connected: &ClientWithChosenRoute,
    arguments: &RollbackArguments,
    error: &RequestError,
) -> Failure {
    let RequestError::Refused(refusal) = error else {
        return failure_of_bodyless_request(error, &connected.client.settings().key.place);
    };
    let list = format!(
        "slipway rollback {} --list shows the versions that can be chosen",
        arguments.function
    );
    let (status, next) = match refusal.status {
        404 => (ExitStatus::Usage, list),
        410 => (ExitStatus::NotDeployed, list),
        403 => (
            ExitStatus::Usage,
            "choose another version, or ask the operator to allow what the error names".to_owned(),
        ),
        409 => (
            ExitStatus::PlatformFailed,
            format!(
                "wait for the other rollback (slipway builds --state deploying), or see what was handed in meanwhile: {list}"
            ),
        ),
        429 => (
            ExitStatus::PlatformFailed,
            "run the command again in a moment".to_owned(),
        ),
        501 => (
            ExitStatus::Usage,
            "build the earlier source again with slipway up, or ask the operator".to_owned(),
        ),
        502 => (
            ExitStatus::PlatformFailed,
            "run the command again; if that fails, the operator finds the reason in the builder's log"
                .to_owned(),
        ),
        _ => return failure_of_bodyless_request(error, &connected.client.settings().key.place),
    };
    Failure::new(status, printable(&refusal.to_string()), next)
}

/// Lists the versions of the function.
async fn print_versions(
    connected: &ClientWithChosenRoute,
    arguments: &RollbackArguments,
) -> Result<ExitStatus, Failure> {
    let path = format!(
        "/functions/{}/versions",
        percent_encode_component(&arguments.function)
    );
    let answer = connected.client.ask(connected.route, Method::GET, &path).await;
    let answer = answer.map_err(|error| failure_of_rollback(connected, arguments, &error))?;
    if arguments.json {
        print_result_or_exit_if_unread(&answer.to_string());
        return Ok(ExitStatus::Success);
    }
    let versions = answer["versions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    table::lines_of_versions(versions)
        .iter()
        .for_each(|line| print_result_or_exit_if_unread(line));
    Ok(ExitStatus::Success)
}
