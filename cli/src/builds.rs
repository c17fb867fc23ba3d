//! The commands about builds and versions: `slipway builds`, `status`, `logs`, `open`, `cancel`, `rollback` and `diff`.

use std::time::Duration;

use clap::Args;
use function_host::http::Method;
use serde_json::Value;

use crate::builder::{
    AskedCommand, BuilderClient, RequestError, Route, build_path, percent_encode_component,
};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result_or_exit_if_unread, printable};
use crate::progress::{Progress, ProgressForm};
use crate::settings::{ConnectionArguments, quote_for_shell};
use crate::stack_file::StackFile;
use crate::up::{FollowedBuild, LogForm, cancel_build_and_wait_up_to_a_minute, follow_log};

mod difference;
mod log;
mod open;
mod rollback;
mod table;

pub(crate) use difference::{DiffArguments, diff};
pub(crate) use log::{LogArguments, print_log_or_follow_build};
pub(crate) use open::{OpenArguments, print_page_address};
pub(crate) use rollback::{RollbackArguments, rollback};

/// The arguments of `slipway builds`.
#[derive(Args)]
pub(crate) struct BuildsArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Builds of this function only, with or without its namespace.
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Builds of this image only, with or without its tag.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Builds in this state only: waiting, running, deploying, success, failed, cancelled or unknown.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// The most builds, up to 1000.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: u32,
    /// Print the builder's answer.
    #[arg(long)]
    json: bool,
}

/// The arguments of `slipway status` and `slipway cancel`.
#[derive(Args)]
pub(crate) struct BuildArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The ID of the build.
    id: String,
    /// Print the builder's answer.
    #[arg(long)]
    json: bool,
}

/// A client, and the route by which the builder answers it.
struct ClientWithChosenRoute {
    client: BuilderClient,
    route: Route,
}

impl ClientWithChosenRoute {
    /// Finds the builder: at its own address if there is one and it answers there, and through the gateway otherwise.
    async fn choose_builder_if_reachable_or_gateway(
        connection: &ConnectionArguments,
    ) -> Result<Self, Failure> {
        let stack_gateway = StackFile::gateway_of_working_folder();
        let settings = connection.resolve(stack_gateway.as_deref())?;
        let has_builder = settings.builder.is_some();
        let client = BuilderClient::new(settings)?;
        let route = match has_builder && client.probe(Route::Builder).await.is_ok() {
            true => Route::Builder,
            false => Route::Gateway,
        };
        Ok(Self { client, route })
    }

    /// Sends a signed question, and returns the builder's answer.
    async fn ask(&self, path: &str, question: &AskedCommand) -> Result<Value, Failure> {
        let answer = self.client.ask(self.route, Method::GET, path).await;
        answer.map_err(|error| self.failure(question, &error))
    }

    /// Creates the error for a question that was refused or lost.
    fn failure(&self, question: &AskedCommand, error: &RequestError) -> Failure {
        question.failure(self.client.settings(), error)
    }

    /// Returns the question `slipway NAME ARGUMENTS…`, which is about the build `id`, if it is about one.
    fn question(&self, name: &str, arguments: &[&str], id: Option<&str>) -> AskedCommand {
        AskedCommand::new(self.client.settings(), name, arguments, id)
    }

    /// Returns the options that lead another command to the same builder, each with a space before it.
    fn options(&self) -> &str {
        &self.client.settings().options
    }
}

/// Lists builds.
///
/// # Errors
/// Fails if the builder gives no list.
pub(crate) async fn list_builds(arguments: &BuildsArguments) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let filters = [
        ("function", arguments.function.as_deref()),
        ("image", arguments.image.as_deref()),
        ("state", arguments.state.as_deref()),
    ];
    let filters = filters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let query = filters
        .clone()
        .map(|(name, value)| format!("&{name}={}", percent_encode_component(value)));
    let path = format!("/builds?limit={}{}", arguments.limit, query.collect::<String>());
    let options: Vec<_> = filters
        .map(|(name, value)| (format!("--{name}"), value))
        .collect();
    let options: Vec<_> = options.iter().flat_map(|(name, value)| [name, *value]).collect();
    let answer = connected
        .ask(&path, &connected.question("builds", &options, None))
        .await?;
    if arguments.json {
        print_result_or_exit_if_unread(&answer.to_string());
        return Ok(ExitStatus::Success);
    }
    let builds = answer["builds"].as_array().map(Vec::as_slice).unwrap_or_default();
    table::lines_of_build_list(builds)
        .iter()
        .for_each(|line| print_result_or_exit_if_unread(line));
    warn_if_incomplete(&answer);
    Ok(ExitStatus::Success)
}

/// Shows what is known of a build.
///
/// # Errors
/// Fails if the builder does not know the build.
pub(crate) async fn print_build_status(arguments: &BuildArguments) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let id = arguments.id.as_str();
    let question = connected.question("status", &[id], Some(id));
    let build = connected.ask(&build_path(id), &question).await?;
    print_build(&build, arguments.json);
    Ok(ExitStatus::Success)
}

/// Cancels a build, and waits up to a minute for its end.
///
/// # Errors
/// Fails if the build cannot be cancelled any more, ends otherwise, or does not end in time.
pub(crate) async fn cancel_and_wait_up_to_a_minute(
    arguments: &BuildArguments,
) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let id = arguments.id.as_str();
    let cancelled = cancel_build_and_wait_up_to_a_minute(&connected.client, connected.route, id).await;
    let build = cancelled
        .map_err(|error| connected.failure(&connected.question("cancel", &[id], Some(id)), &error))?;
    let (id, options) = (quote_for_shell(id), connected.options());
    print_build(&build, arguments.json);
    match build["state"].as_str() {
        Some("cancelled") => Ok(ExitStatus::Success),
        Some("success" | "failed") => Err(Failure::new(
            ExitStatus::Failed,
            "the build ended before it could be cancelled",
            format!("see its log: slipway logs {id}{options}"),
        )),
        _ => Err(Failure::platform(
            "the builder was asked to cancel the build, which has not ended within a minute",
            format!("see what becomes of it: slipway status {id}{options}"),
        )),
    }
}

/// Prints what is known of a build.
fn print_build(build: &Value, is_json: bool) {
    match is_json {
        true => print_result_or_exit_if_unread(&build.to_string()),
        false => {
            table::lines_of_build(build)
                .iter()
                .for_each(|line| print_result_or_exit_if_unread(line));
            warn_if_incomplete(build);
        }
    }
}

/// Prints what the builder could not read.
fn warn_if_incomplete(answer: &Value) {
    if let Some(text) = answer["incomplete"].as_str() {
        crate::output::print_message_as_is(&format!("warning: {}", printable(text)));
    }
}

/// Follows the log of a build to its end. That no builder knows the build is no error for `unknown_build_patience`.
async fn follow_to_end(
    connected: &ClientWithChosenRoute,
    id: &str,
    form: LogForm,
    unknown_build_patience: Option<Duration>,
) -> Result<Value, Failure> {
    let progress = match form {
        LogForm::Progress => ProgressForm::Auto,
        LogForm::Records => ProgressForm::Plain,
    };
    let progress = Progress::new(progress, id);
    let following = FollowedBuild {
        client: &connected.client,
        route: connected.route,
        id,
        progress: &progress,
        form,
        patience: unknown_build_patience,
    };
    follow_log(&following).await
}
