//! Fetches a context from a web server.
//!
//! The caller chooses the server, and the server where it redirects to. Therefore each hop is checked like the first:
//! its URL, the rules of the tenant, and the addresses when a connection is made. No hop gets credentials, cookies or
//! the URL before.

use function_host::http::header::{ACCEPT, ACCEPT_ENCODING, HeaderValue, LOCATION, USER_AGENT};
use function_host::http::{Method, Request, Response, StatusCode};
use function_host::{ExchangeError, OutgoingRequestBody};
use hyper::body::Incoming;

use super::download::receive_verified;
use super::error::URL_MEMBER;
use super::oci::MAX_REDIRECTS;
use super::{ContextError, RemoteContexts};
use crate::context::Spool;
use crate::registry::{RESPONSE_TIMEOUT, empty_body};
use crate::request::{ContextRules, UrlContext};
use crate::sources::WebUrl;

/// The value of `User-Agent` in requests for contexts. Some servers require the header.
const OWN_USER_AGENT: HeaderValue = HeaderValue::from_static("slipway-builder");

/// The value of `Accept` in a request without a preference for a type of content.
const ACCEPT_ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");

/// The value of `Accept-Encoding` with which the bytes that arrive are those of the file.
const ACCEPT_NO_ENCODING: HeaderValue = HeaderValue::from_static("identity");

impl RemoteContexts {
    pub(super) async fn fetch_url(
        &self,
        context: &UrlContext,
        rules: &ContextRules,
    ) -> Result<Spool, ContextError> {
        let response = self.request_file_following_redirects(&context.url, rules).await?;
        let what = format!("the file at {}", context.url);
        receive_verified(
            response.into_body(),
            &what,
            context.digest,
            rules.fetched_tar_max_bytes(),
            rules.spool_settings(),
        )
        .await
    }

    /// Requests a file, and follows redirects. The body has not been read.
    async fn request_file_following_redirects(
        &self,
        first: &WebUrl,
        rules: &ContextRules,
    ) -> Result<Response<Incoming>, ContextError> {
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let tenant = rules.tenant().map(AsRef::as_ref);
            let rule = url.check(&self.allowed, self.insecure, tenant)?;
            let sent = self
                .http_client(rule)?
                .send(file_request(&url), RESPONSE_TIMEOUT)
                .await;
            let response = sent.map_err(|error| exchange_error(error, &url))?;
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => url = redirected_url(&url, &response)?,
                status => return Err(file_status_error(status, &url)),
            }
        }
        Err(redirect_error(&url, "redirects too often"))
    }
}

fn file_request(url: &WebUrl) -> Request<OutgoingRequestBody> {
    let mut request = Request::new(empty_body());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(ACCEPT, ACCEPT_ANY_TYPE);
    headers.insert(ACCEPT_ENCODING, ACCEPT_NO_ENCODING);
    headers.insert(USER_AGENT, OWN_USER_AGENT);
    request
}

fn redirected_url(url: &WebUrl, response: &Response<Incoming>) -> Result<WebUrl, ContextError> {
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| redirect_error(url, "redirects without saying where to"))?;
    url.parse_redirect(location)
        .map_err(|problem| redirect_error(url, &format!("redirects to an address that {problem}")))
}

fn redirect_error(url: &WebUrl, problem: &str) -> ContextError {
    ContextError::Redirect {
        member: URL_MEMBER,
        host: url.host(),
        problem: problem.to_owned(),
    }
}

fn exchange_error(error: ExchangeError, url: &WebUrl) -> ContextError {
    ContextError::from_exchange(error, URL_MEMBER, &url.host())
}

/// Converts the status of a response that has no file. The same request may succeed later after the errors of a server
/// that is overloaded or failing, and after no other.
fn file_status_error(status: StatusCode, url: &WebUrl) -> ContextError {
    let is_transient = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    match is_transient {
        true => ContextError::Status {
            host: url.host(),
            status: status.as_u16(),
        },
        false => ContextError::NoFile {
            url: url.to_string(),
            status: status.as_u16(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_a_failing_or_overloaded_server_are_worth_a_retry() {
        let url = WebUrl::parse("https://example.com/a?secret").unwrap();
        for (status, is_worth_a_retry) in [
            (500, true),
            (503, true),
            (429, true),
            (408, true),
            (204, false),
            (304, false),
            (401, false),
            (403, false),
            (404, false),
            (410, false),
        ] {
            let error = file_status_error(StatusCode::from_u16(status).unwrap(), &url);
            assert_eq!(error.is_failed_exchange(), is_worth_a_retry, "{status}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_error_names_the_host_and_the_kind_of_its_address_and_not_the_address() {
        let denied = function_host::AddressDenied {
            host: "files.example".into(),
            address: [10, 0, 0, 1].into(),
            kind: "a private address",
        };
        let url = WebUrl::parse("https://files.example/a").unwrap();
        let error = exchange_error(ExchangeError::Denied(denied), &url);
        assert_eq!(
            error.to_string(),
            "context.url: files.example is resolved to a private address, to which the builder does not connect, unless its \
             setting allowed_sources names the host"
        );
        assert_eq!(error.kind(), super::super::ContextErrorKind::Forbidden);
    }
}
