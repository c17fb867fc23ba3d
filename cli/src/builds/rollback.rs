//! The command `slipway rollback`.

use std::time::Duration;

use clap::Args;
use function_host::http::Method;
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use super::{ClientWithChosenRoute, table};
use crate::builder::{
    BuildFacts, CallerContext, RequestError, Verdict, build_path, percent_encode_component,
};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result_or_exit_if_unread, printable};
use crate::progress::{Event, Progress, ProgressForm, show_failure_if_json};
use crate::settings::{ConnectionArguments, quote_for_shell};
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
    let caller = CallerContext {
        unverified_is_not_deployed: arguments.strict,
        function: Some(&arguments.function),
        options,
    };
    let verdict = Verdict::of_outcome(&outcome, &caller);
    if arguments.json {
        let question = connected.question("status", &[&id], Some(&id));
        let record = connected.ask(&build_path(&id), &question).await?;
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
            return Err(failure_of_rollback(connected, arguments, Some(id), &error));
        }
        requests += 1;
        sleep(REQUEST_COUNT_AND_PAUSE.1).await;
    }
}

/// Creates the error for the rollback `id` that was not begun, or for the question about versions.
fn failure_of_rollback(
    connected: &ClientWithChosenRoute,
    arguments: &RollbackArguments,
    id: Option<&str>,
    error: &RequestError,
) -> Failure {
    let function = quote_for_shell(&arguments.function);
    let options = connected.options();
    let mut again = vec![arguments.function.as_str()];
    match id {
        // Under the same ID, a rollback that has begun all the same is not repeated.
        Some(id) => again.extend(arguments.version.as_deref().into_iter().chain(["--id", id])),
        None => again.push("--list"),
    }
    let question = connected.question("rollback", &again, None);
    let RequestError::Refused(refusal) = error else {
        return connected.failure(&question, error);
    };
    let list = format!("slipway rollback {function} --list{options} shows the versions that can be chosen");
    let (status, next) = match refusal.status {
        // Without versions to list, there is nothing to go back to.
        404 if arguments.list && refusal.is_builders => (
            ExitStatus::Usage,
            format!("see what was built: slipway builds{options}; slipway up deploys a function"),
        ),
        404 if refusal.is_builders => (ExitStatus::Usage, list),
        410 => (ExitStatus::NotDeployed, list),
        403 => (
            ExitStatus::Usage,
            "choose another version, or ask the operator to allow what the error names".to_owned(),
        ),
        409 => (
            ExitStatus::PlatformFailed,
            format!(
                "wait for the other rollback (slipway builds --state deploying{options}), or see what was handed in meanwhile: \
                 {list}"
            ),
        ),
        501 => (
            ExitStatus::Usage,
            "build the earlier source again with slipway up, or ask the operator".to_owned(),
        ),
        _ => return connected.failure(&question, error),
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
    let answer = answer.map_err(|error| failure_of_rollback(connected, arguments, None, &error))?;
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
