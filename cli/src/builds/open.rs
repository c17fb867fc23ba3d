//! `slipway open`: the address of a build's page.

use clap::Args;
use serde_json::json;

use super::ClientWithChosenRoute;
use crate::builder::build_path;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::{print_result_or_exit_if_unread, printable};
use crate::settings::{ConnectionArguments, quote_for_shell};

/// The arguments of `slipway open`.
#[derive(Args)]
pub(crate) struct OpenArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The ID of the build. Without one, the link is for the list of builds and all of them.
    id: Option<String>,
    /// Print an object with the address.
    #[arg(long)]
    json: bool,
}

/// Prints the address of the page of a build, or of the list of builds, with a link that expires.
///
/// # Errors
/// Fails if the builder does not know the build, or has no pages.
pub(crate) async fn print_page_address(arguments: &OpenArguments) -> Result<ExitStatus, Failure> {
    let connected =
        ClientWithChosenRoute::choose_builder_if_reachable_or_gateway(&arguments.connection).await?;
    let path = match &arguments.id {
        Some(id) => build_path(id),
        None => "/builds?limit=1".to_owned(),
    };
    let id = arguments.id.as_deref();
    let question = connected.question("open", id.as_slice(), id);
    let answer = connected.ask(&path, &question).await?;
    let page = answer["page"].as_str().ok_or_else(|| {
        let options = connected.options();
        let instead = match id {
            Some(id) => format!("see the log: slipway logs {}{options}", quote_for_shell(id)),
            None => format!("list the builds: slipway builds{options}"),
        };
        Failure::platform(
            "the builder's answer names no page: it is of an older release",
            format!("update builder-fn, or {instead}"),
        )
    })?;
    let url = connected.client.page_url(connected.route, page);
    match arguments.json {
        true => print_result_or_exit_if_unread(&json!({"page": url}).to_string()),
        false => print_result_or_exit_if_unread(&printable(&url)),
    }
    Ok(ExitStatus::Success)
}
