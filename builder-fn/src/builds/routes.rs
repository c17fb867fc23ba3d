//! The routes below `/builds`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use function_host::http::request::Parts;
use function_host::http::{Method, StatusCode};
use function_host::policy::Tenant;
use function_host::{Context, ErrorChain, Response, ResponseBody, Shutdown, trace};
use futures_util::TryStreamExt;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::authentication::{RejectedBodylessRequest, verify_bodyless_request};
use super::difference::answer_difference;
use super::filter::BuildFilter;
use super::log::LogSender;
use super::log_interruption::{LogLimits, send_with_interruption_record};
use super::log_readers::LogReaderPlace;
use super::log_sink::{LogFormat, LogRecordSink};
use super::lookup::{BuildLookup, FoundBuild, NotFound, UnreadPlaces};
use super::page::{self, PageReaderRights};
use super::page_link::{LinkSigner, ReceivedBuildsLink, RejectedLink, query_without_link};
use super::pages;
use super::{BuildPhase, RecordKey};
use crate::accept;
use crate::answer;
use crate::buildkit::ManifestLookup;
use crate::handler::BuilderApi;
use crate::request::{RequestHead, SignatureCheck, VerifiedSignature};

/// How long `DELETE` waits for the build to end.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// A route below `/builds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BuildsRoute {
    /// The route of recent builds.
    List,
    /// The route of one build.
    Build(String),
    /// The route of a build's log.
    Log(String),
    /// The route of what changed between two builds.
    Difference(String, String),
}

impl BuildsRoute {
    /// Parses the path of a URL; `None` if it is not one of these routes. An ID is percent-encoded.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/builds")?;
        if matches!(rest, "" | "/") {
            return Some(Self::List);
        }
        let rest = rest.strip_prefix('/')?;
        let decode = |id: &str| {
            let id = percent_decode_str(id).decode_utf8().ok()?;
            (!id.is_empty()).then(|| id.into_owned())
        };
        match rest.split_once('/') {
            None => decode(rest).map(Self::Build),
            Some((id, "log")) => decode(id).map(Self::Log),
            Some((older, rest)) => {
                let newer = rest.strip_prefix("diff/").filter(|newer| !newer.contains('/'))?;
                Some(Self::Difference(decode(older)?, decode(newer)?))
            }
        }
    }

    /// Returns the ID of the build that the route is for; `None` for the list and for two builds, which a link to one
    /// build does not show.
    fn id_of_single_build(&self) -> Option<&str> {
        match self {
            Self::List | Self::Difference(..) => None,
            Self::Build(id) | Self::Log(id) => Some(id),
        }
    }

    /// Returns the route's name in traces, which contains no ID.
    fn name_in_traces(&self) -> &'static str {
        match self {
            Self::List => "/builds",
            Self::Build(_) => "/builds/{id}",
            Self::Log(_) => "/builds/{id}/log",
            Self::Difference(..) => "/builds/{id}/diff/{other}",
        }
    }
}

impl BuilderApi {
    /// Answers a request to a route below `/builds`, if its signature or its link is authentic: with a page for a
    /// browser, with a stream for a log, and with JSON otherwise. A DELETE, which no link allows, cancels the build.
    pub(crate) async fn authenticate_and_answer_builds_request(
        &self,
        route: BuildsRoute,
        request: &Parts,
        context: &Context,
    ) -> Response {
        trace::set_route_of_current_request(route.name_in_traces());
        let method = &request.method;
        let allowed: &[Method] = match route {
            BuildsRoute::Build(_) => &[Method::GET, Method::DELETE],
            BuildsRoute::List | BuildsRoute::Log(_) | BuildsRoute::Difference(..) => &[Method::GET],
        };
        if !allowed.contains(method) {
            let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
            return answer::method_not_allowed_response(&names.join(", "));
        }
        let is_page = *method == Method::GET
            && matches!(route, BuildsRoute::List | BuildsRoute::Build(_))
            && accept::should_answer_with_html(&request.headers);
        let authenticated = match self.authenticate_builds_request(&route, request, context) {
            Ok(authenticated) => authenticated,
            Err(rejected) => return rejected.into_response(is_page),
        };
        let AuthenticatedBuildsRequest {
            lookup,
            access,
            query,
        } = authenticated;
        let query = query.as_deref();
        let mut response = match route {
            BuildsRoute::List if is_page => {
                // Links are relative, because nobody here knows the address that the gateway has.
                let folder = match request.uri.path().ends_with('/') {
                    true => "",
                    false => "builds/",
                };
                pages::answer_list_page(&lookup, query, &access, folder).await
            }
            BuildsRoute::List => answer_list(&lookup, query).await,
            BuildsRoute::Build(id) if *method == Method::DELETE => {
                cancel_wait_up_to_2_seconds_and_answer(&lookup, &id).await
            }
            BuildsRoute::Build(id) if is_page => {
                pages::answer_build_page(&lookup, &id, query, &access, &self.pages).await
            }
            BuildsRoute::Build(id) => match lookup.find(&id).await {
                Ok(build) => answer_build(StatusCode::OK, &build, &lookup),
                Err(not_found) => answer_not_found(&not_found),
            },
            BuildsRoute::Difference(older, newer) => answer_difference(&lookup, &older, &newer).await,
            BuildsRoute::Log(id) => {
                let log = LogRequest {
                    id,
                    query,
                    request,
                    access: &access,
                };
                answer_log(lookup, log, context.shutdown()).await
            }
        };
        // Also for a signed question: its answer has a link.
        page::add_protective_headers(response.headers_mut());
        response
    }

    /// Verifies the signature or the link of a request to a route below `/builds`, and returns what its sender may look
    /// up. A link is for reading only, and counts only without a signature.
    ///
    /// # Errors
    /// Fails if the request is not authentic, or that cannot be checked.
    fn authenticate_builds_request(
        &self,
        route: &BuildsRoute,
        request: &Parts,
        context: &Context,
    ) -> Result<AuthenticatedBuildsRequest, RejectedSender> {
        let now = SystemTime::now();
        let mut head = RequestHead::new(&request.headers, now);
        let query = request.uri.query();
        let link = match request.method == Method::GET && head.signature.is_none() {
            true => ReceivedBuildsLink::from_query(query)
                .transpose()
                .map_err(RejectedSender::Link)?,
            false => None,
        };
        let is_open = self.signatures.policy.is_none() && self.signatures.disable_hmac;
        if !is_open && link.is_none() && head.signature.is_none() {
            // No key is read for those who have shown nothing that it could verify.
            return Err(RejectedSender::Signature(RejectedBodylessRequest::Missing(
                "X-Build-Signature",
            )));
        }
        if let Some(link) = &link {
            head.tenant = link.tenant().map(ToString::to_string);
        }
        let check = self
            .signature_check_from_secrets(&head, context)
            .map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), "could not check a question about builds");
                RejectedSender::Unchecked(error.to_string())
            })?;
        let (tenant, links, access) = match (&check, link) {
            (SignatureCheck::Disabled, _) => {
                let links = LinkSigner::new(None, &self.pages);
                (None, Some(links), PageReaderRights::Open)
            }
            (SignatureCheck::Required(_), Some(link)) => {
                let tenant = link
                    .verify_unless_signatures_disabled(
                        &check,
                        route.id_of_single_build(),
                        self.pages.lifetime,
                        now,
                    )
                    .map_err(RejectedSender::Link)?;
                (tenant, None, PageReaderRights::Link(link))
            }
            (SignatureCheck::Required(_), None) => {
                let signature =
                    verify_bodyless_request(&check, &request.method, &request.uri, &request.headers, now);
                let signature = signature.map_err(RejectedSender::Signature)?;
                let tenant = signature.as_ref().and_then(VerifiedSignature::tenant).cloned();
                let links = LinkSigner::new(signature.as_ref(), &self.pages);
                (tenant, Some(links), PageReaderRights::Signed)
            }
        };
        let own = match &tenant {
            Some(tenant) => self.builder.tenants.daemon(tenant),
            None => Ok(None),
        };
        let own = own.map_err(|error| RejectedSender::Unchecked(format!("the policy is wrong: {error}")))?;
        let manifests: Arc<dyn ManifestLookup> = match &tenant {
            Some(tenant) => self.builder.tenants.registries_with_own_credentials(tenant),
            None => self.builder.manifests.clone(),
        };
        let query = match &access {
            PageReaderRights::Link(_) | PageReaderRights::Open => query.and_then(query_without_link),
            PageReaderRights::Signed => query.map(str::to_owned),
        };
        Ok(AuthenticatedBuildsRequest {
            lookup: BuildLookup {
                records: self.builder.records.clone(),
                tenant: tenant.map(|tenant| tenant.name().to_string()),
                pool: own.map_or_else(|| self.builder.pool.clone(), |own| own.pool),
                seal_key: self.seal_key.clone(),
                manifests,
                links,
            },
            access,
            query,
        })
    }
}

impl BuilderApi {
    /// Verifies the signature of a request without a body, and returns the tenant that signed it; `None` without a
    /// policy. No link takes its place.
    ///
    /// # Errors
    /// Fails with the status and the text of the answer if the request is not authentic, or that cannot be checked.
    pub(crate) fn authenticate_bodyless_request(
        &self,
        request: &Parts,
        context: &Context,
    ) -> Result<Option<Arc<Tenant>>, (StatusCode, String)> {
        let now = SystemTime::now();
        let head = RequestHead::new(&request.headers, now);
        let check = self
            .signature_check_from_secrets(&head, context)
            .map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), "could not check a request about a function");
                (StatusCode::BAD_GATEWAY, error.to_string())
            })?;
        let signature = verify_bodyless_request(&check, &request.method, &request.uri, &request.headers, now);
        let signature = signature.map_err(|rejected| (StatusCode::UNAUTHORIZED, rejected.to_string()))?;
        Ok(signature.as_ref().and_then(VerifiedSignature::tenant).cloned())
    }
}

/// What the authenticated sender of a request to a route below `/builds` may look up.
struct AuthenticatedBuildsRequest {
    lookup: BuildLookup,
    access: PageReaderRights,
    /// The query without the link.
    query: Option<String>,
}

/// The reason why a request to a route below `/builds` is rejected.
enum RejectedSender {
    /// The link does not work.
    Link(RejectedLink),
    /// The signature does not work.
    Signature(RejectedBodylessRequest),
    /// The keys could not be read.
    Unchecked(String),
}

impl RejectedSender {
    /// Returns the answer: a page for a browser, and otherwise JSON.
    fn into_response(self, is_page: bool) -> Response {
        let (status, error) = match (self, is_page) {
            (Self::Link(rejected), true) => return pages::answer_rejected_link(rejected),
            (Self::Signature(RejectedBodylessRequest::Missing(_)), true) => {
                return pages::answer_missing_link();
            }
            (Self::Link(rejected), false) => (StatusCode::UNAUTHORIZED, rejected.to_string()),
            (Self::Signature(rejected), _) => (StatusCode::UNAUTHORIZED, rejected.to_string()),
            (Self::Unchecked(error), _) => (StatusCode::BAD_GATEWAY, error),
        };
        match is_page {
            true => pages::answer_error_with_advice_to_reload(status, &error),
            false => answer::error_response(status, &error),
        }
    }
}

/// Answers with the builds that the query selects.
async fn answer_list(lookup: &BuildLookup, query: Option<&str>) -> Response {
    let filter = match BuildFilter::parse(query) {
        Ok(filter) => filter,
        Err(problems) => return answer::error_response(StatusCode::BAD_REQUEST, &problems),
    };
    let (builds, unread) = lookup.list_newest_builds().await;
    let builds: Vec<_> = filter
        .select(builds)
        .iter()
        .map(|build| build.to_json())
        .collect();
    let mut body = json!({"builds": builds});
    if let Some(links) = &lookup.links {
        body["page"] = json!(links.address_of_list_page(SystemTime::now()));
    }
    if let Some(text) = unread.to_text() {
        body["incomplete"] = json!(text);
    }
    answer::json_value_response(StatusCode::OK, &body)
}

/// Answers with the record of a build.
fn answer_build(status: StatusCode, build: &FoundBuild, lookup: &BuildLookup) -> Response {
    let mut body = build.record.to_json();
    if let Some(links) = &lookup.links {
        body["page"] = json!(links.address_of_build_page(&build.record.id, SystemTime::now()));
    }
    if let Some(text) = build.unread.to_text() {
        body["incomplete"] = json!(text);
    }
    answer::json_value_response(status, &body)
}

/// Answers for a build that was not found: the same for one that does not exist and for one of another tenant.
pub(super) fn answer_not_found(not_found: &NotFound) -> Response {
    answer::error_response(
        status_404_or_502_of_not_found(not_found),
        text_of_not_found(not_found),
    )
}

/// Returns 404 if no builder knows the build, and 502 if a place that may have it could not be read.
pub(super) fn status_404_or_502_of_not_found(not_found: &NotFound) -> StatusCode {
    match not_found.unread.to_text() {
        Some(_) => StatusCode::BAD_GATEWAY,
        None => StatusCode::NOT_FOUND,
    }
}

/// Returns what it can mean that a build was not found.
pub(super) fn text_of_not_found(not_found: &NotFound) -> &'static str {
    let UnreadPlaces { history, store } = &not_found.unread;
    match (history, store, not_found.has_store) {
        (Some(_), None, _) => {
            "this builder has not heard of this build, and BuildKit's history, which has those of other builders, could not \
             be read; ask again"
        }
        (_, Some(_), _) => {
            "this builder has not heard of this build, and the record store, which has those that other builders have \
             accepted, could not be read; ask again"
        }
        (None, None, true) => {
            "no builder has accepted this build: the queue has not delivered it yet or has lost it, or it was rejected before \
             its signature was verified, or it waits elsewhere for a caller that is connected, or its record was too old or \
             one too many, or the ID is wrong; if it stays unknown, submit it again"
        }
        (None, None, false) => {
            "no builder has heard of this build: the queue has not delivered it yet, or another builder has accepted it and \
             it waits there for a slot, or it was rejected before it began, or it is too old, or the ID is wrong; if it \
             stays unknown, submit it again"
        }
    }
}

/// Cancels a build, here or at another builder, and waits up to [`CANCEL_WAIT`] for its end.
async fn cancel_wait_up_to_2_seconds_and_answer(lookup: &BuildLookup, id: &str) -> Response {
    let mut build = match lookup.find(id).await {
        Ok(build) => build,
        Err(not_found) => return answer_not_found(&not_found),
    };
    match build.record.phase {
        BuildPhase::Cancelled => return answer_build(StatusCode::OK, &build, lookup),
        BuildPhase::Waiting | BuildPhase::Running => {}
        phase => {
            let error = match phase {
                BuildPhase::Deploying => "the image was handed over to the deployer, which cannot be stopped",
                _ => "the build has ended",
            };
            let mut body = build.record.to_json();
            body["error"] = json!(error);
            return answer::json_value_response(StatusCode::CONFLICT, &body);
        }
    }
    let key = RecordKey {
        tenant: lookup.tenant.clone(),
        id: id.to_owned(),
    };
    let is_own = lookup.records.cancel_if_recorded(&key);
    let cancellation = key.to_cancellation();
    let requested = lookup.request_cancellation(&cancellation).await;
    if let (Err(error), false) = (&requested, is_own) {
        let error = format!(
            "could not pass the cancellation to the builder that runs the build: {error}; send the request again"
        );
        return answer::error_response(StatusCode::BAD_GATEWAY, &error);
    }
    let deadline = tokio::time::Instant::now() + CANCEL_WAIT;
    while !build.record.phase.is_terminal() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        match lookup.find(id).await {
            Ok(found) => build = found,
            Err(_) => break,
        }
    }
    let status = match build.record.phase.is_terminal() {
        true => StatusCode::OK,
        false => StatusCode::ACCEPTED,
    };
    answer_build(status, &build, lookup)
}

/// A question for the log of a build.
struct LogRequest<'a> {
    /// The ID of the build.
    id: String,
    /// The query without the link.
    query: Option<&'a str>,
    /// The head of the request.
    request: &'a Parts,
    access: &'a PageReaderRights,
}

/// Answers with a stream of a build's log, in the format that the request accepts.
async fn answer_log(lookup: BuildLookup, log: LogRequest<'_>, shutdown: &Shutdown) -> Response {
    let LogRequest {
        id,
        query,
        request,
        access,
    } = log;
    let from = match parse_first_line_number_or_1(query) {
        Ok(from) => from,
        Err(problem) => return answer::error_response(StatusCode::BAD_REQUEST, &problem),
    };
    let Some(reader) = admit_reader(&lookup, access) else {
        return answer::too_many_log_readers_response();
    };
    let build = match lookup.find(&id).await {
        Ok(build) => build,
        Err(not_found) => return answer_not_found(&not_found),
    };
    let format = match accept::negotiate_stream_format(&request.headers) {
        Some(format) => LogFormat::Records(format),
        None => LogFormat::Plain,
    };
    let (sink, body) = LogRecordSink::new(reader, format, from);
    let channel = sink.channel().clone();
    let limits = LogLimits {
        // A reader with a link reads no longer than it is valid.
        link: access.page_link().map(|link| link.time_left(SystemTime::now())),
        shutdown: shutdown.clone(),
        is_own: build.own.is_some(),
    };
    let log = LogSender {
        lookup,
        id,
        sink,
        shutdown: shutdown.clone(),
        last_line: 0,
    };
    tokio::spawn(send_with_interruption_record(
        channel,
        limits,
        log.send_until_end_or_reader_gone(build),
    ));
    let body = ResponseBody::stream(body.map_err(Into::into));
    match format {
        LogFormat::Records(format) => answer::unbuffered_response(format, body),
        LogFormat::Plain => answer::streamed_text_response(body),
    }
}

/// Admits a reader of a log, and returns its place; `None` if there are as many readers as there may be.
pub(super) fn admit_reader(lookup: &BuildLookup, access: &PageReaderRights) -> Option<LogReaderPlace> {
    let link = access.page_link().map(ReceivedBuildsLink::as_str);
    lookup.records.log_readers().admit(lookup.tenant.as_deref(), link)
}

/// Parses `from=N` in a query. Without it, a log begins with its first line, which has the number 1.
fn parse_first_line_number_or_1(query: Option<&str>) -> Result<u64, String> {
    let mut from = 1;
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        match pair.split_once('=') {
            Some(("from", number)) => match number.parse::<u64>() {
                Ok(number) if number < 1 << 53 => from = number.max(1),
                _ => return Err("from should be the number of a line".to_owned()),
            },
            _ => return Err("a log has the query from=N only".to_owned()),
        }
    }
    Ok(from)
}

/// Returns the fields of an answer to a build request that its record keeps: all but log, status, image, duration
/// and page.
pub(crate) fn outcome_fields_kept_in_record(
    report: &impl serde::Serialize,
) -> serde_json::Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(report) else {
        return serde_json::Map::new();
    };
    // A link is made for each answer anew, and stored nowhere.
    for own in ["log", "status", "image", "duration", "page"] {
        fields.remove(own);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_below_builds_have_a_percent_encoded_id() {
        for (path, route) in [
            ("/builds", Some(BuildsRoute::List)),
            ("/builds/", Some(BuildsRoute::List)),
            ("/builds/a-1", Some(BuildsRoute::Build("a-1".into()))),
            (
                "/builds/build%2F7%20of%20a/log",
                Some(BuildsRoute::Log("build/7 of a".into())),
            ),
            (
                "/builds/a/diff/b%2F1",
                Some(BuildsRoute::Difference("a".into(), "b/1".into())),
            ),
            ("/builds/a/diff/", None),
            ("/builds/a/diff/b/c", None),
            ("/builds/a/logs", None),
            ("/builds//log", None),
            ("/builds/%ff", None),
            ("/buildsx", None),
        ] {
            assert_eq!(BuildsRoute::parse(path), route, "{path}");
        }
    }

    #[test]
    fn a_log_begins_at_its_first_line_or_at_the_number_in_the_query() {
        for (query, from) in [
            (None, Some(1)),
            (Some(""), Some(1)),
            (Some("from=0"), Some(1)),
            (Some("from=1000000007"), Some(1_000_000_007)),
            (Some("from=9007199254740992"), None),
            (Some("from=-1"), None),
            (Some("from"), None),
            (Some("to=1"), None),
        ] {
            assert_eq!(parse_first_line_number_or_1(query).ok(), from, "{query:?}");
        }
    }
}
