//! Answers questions about builds with pages, for browsers.

use std::time::SystemTime;

use function_host::http::StatusCode;
use function_host::{ErrorChain, Response};

use super::BuildRecord;
use super::filter::BuildFilter;
use super::log_excerpt::LogExcerpt;
use super::lookup::{BuildLookup, FoundBuild};
use super::page::{
    BuildPage, LIST_PAGE_DEFAULT_LIMIT, ListPage, PageReaderRights, error_page_response, page_response,
};
use super::page_link::{PageSettings, RejectedLink};
use super::page_query::PageQuery;
use super::routes::{admit_reader, status_404_or_502_of_not_found, text_of_not_found};
use crate::buildkit::ImageLayerSize;

/// The number of builds in the chart of a function's last builds.
const BUILDS_IN_CHART: usize = 10;

/// The advice for a link that does not work, or is missing.
const NEW_LINK_ADVICE: &str = "Get a new link with the command: slipway open ID";

/// Answers with the page of a build.
pub(super) async fn answer_build_page(
    lookup: &BuildLookup,
    id: &str,
    query: Option<&str>,
    access: &PageReaderRights,
    settings: &PageSettings,
) -> Response {
    let query = match PageQuery::parse(query) {
        Ok(query) => query,
        Err(problem) => {
            return error_page_response(StatusCode::BAD_REQUEST, &problem, "Open the page without it.");
        }
    };
    // A page reads the log as its other readers do.
    let Some(_reader) = admit_reader(lookup, access) else {
        let problem = "As many logs are being read as this builder allows.";
        return error_page_response(StatusCode::TOO_MANY_REQUESTS, problem, "Try again.");
    };
    let build = match lookup.find(id).await {
        Ok(build) => build,
        Err(not_found) => {
            let (status, text) = (
                status_404_or_502_of_not_found(&not_found),
                text_of_not_found(&not_found),
            );
            return match status {
                StatusCode::NOT_FOUND => {
                    error_page_response(status, text, "The command slipway builds lists the builds.")
                }
                status => answer_error_with_advice_to_reload(status, text),
            };
        }
    };
    let reading = LogExcerpt::read_waiting_tenfold_for_named_part(&build, query.part, settings.log_wait);
    let (excerpt, others, layers) = tokio::join!(
        reading,
        newest_builds_for_chart_or_empty(lookup, &build.record, settings),
        image_layers_or_empty(lookup, &build.record, settings)
    );
    let FoundBuild { record, unread, .. } = &build;
    let page = BuildPage {
        record,
        incomplete: unread.to_text(),
        excerpt: &excerpt,
        others: &others,
        layers: &layers,
        access,
        query,
        now: SystemTime::now(),
    };
    page_response(page.render_requested_parts())
}

/// Answers with the list of builds that the query selects. `folder` is what precedes an ID in a link from the list's
/// address.
pub(super) async fn answer_list_page(
    lookup: &BuildLookup,
    query: Option<&str>,
    access: &PageReaderRights,
    folder: &str,
) -> Response {
    let filter = match BuildFilter::parse(query) {
        Ok(filter) => filter.with_default_limit(LIST_PAGE_DEFAULT_LIMIT),
        Err(problems) => {
            return error_page_response(StatusCode::BAD_REQUEST, &problems, "Choose another filter.");
        }
    };
    let (builds, unread) = lookup.list_newest_builds().await;
    let builds = filter.select(builds);
    let page = ListPage {
        builds: &builds,
        incomplete: unread.to_text(),
        filter: &filter,
        folder,
        access,
        now: SystemTime::now(),
    };
    page_response(page.render())
}

/// Answers a browser whose link is rejected.
pub(super) fn answer_rejected_link(rejected: RejectedLink) -> Response {
    error_page_response(StatusCode::UNAUTHORIZED, &format!("{rejected}."), NEW_LINK_ADVICE)
}

/// Answers a browser without a link.
pub(super) fn answer_missing_link() -> Response {
    let text = "A page about builds is opened with a link, which is valid for some time.";
    error_page_response(StatusCode::UNAUTHORIZED, text, NEW_LINK_ADVICE)
}

/// Answers a browser with an error, and the advice to load the page again.
pub(super) fn answer_error_with_advice_to_reload(status: StatusCode, error: &str) -> Response {
    error_page_response(status, error, "Load the page again in a moment.")
}

/// Returns the last builds of the build's function, or of its image if it deploys none, the newest first; none if they
/// are not known in time.
async fn newest_builds_for_chart_or_empty(
    lookup: &BuildLookup,
    record: &BuildRecord,
    settings: &PageSettings,
) -> Vec<BuildRecord> {
    let Some(filter) = BuildFilter::of_same_function_or_image(record, BUILDS_IN_CHART) else {
        return Vec::new();
    };
    match tokio::time::timeout(settings.log_wait, lookup.list_newest_builds()).await {
        Ok((builds, _)) => filter.select(builds),
        Err(_) => Vec::new(),
    }
}

/// Returns the layers of a build's image; none if there is no image, or its registry gives no answer in time.
async fn image_layers_or_empty(
    lookup: &BuildLookup,
    record: &BuildRecord,
    settings: &PageSettings,
) -> Vec<ImageLayerSize> {
    let digest = record.outcome.get("digest").and_then(|digest| digest.as_str());
    let Some((image, digest)) = record.image.as_deref().zip(digest) else {
        return Vec::new();
    };
    let asking = lookup.manifests.image_layers_or_empty_if_gone(image, digest);
    match tokio::time::timeout(settings.log_wait, asking).await {
        Ok(Ok(layers)) => layers,
        Ok(Err(error)) => {
            tracing::debug!(error = %ErrorChain(&*error), "could not read the layers of an image for a page");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}
