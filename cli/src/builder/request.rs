//! Requests to builder-fn, before they are sent. Nothing here does input or output.

use std::time::SystemTime;

use function_host::http::request::Builder;
use function_host::http::{Method, Request};
use function_host::signature::sign_body;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::SignedBody;
use crate::settings::ConnectionSettings;

/// The characters that are percent-encoded in a path or query: all but letters, digits, `-`, `_`, `.` and `~`.
const ESCAPED_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The way to the builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The builder's own address.
    Builder,
    /// The gateway, which waits for the builder's answer.
    Gateway,
    /// The gateway's queue. Questions about a build take the gateway.
    Queue,
}

impl Route {
    /// Returns the route's name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Gateway => "gateway",
            Self::Queue => "queue",
        }
    }

    /// Returns the stream format of the route: the Community gateway passes only server-sent events on at once.
    fn stream_media_type(self) -> &'static str {
        match self {
            Self::Builder => "application/x-ndjson",
            Self::Gateway | Self::Queue => "text/event-stream",
        }
    }
}

/// A build request: a tar, or a JSON object that refers to a stored context.
#[derive(Clone, Debug)]
pub(crate) struct SignedBuildRequest {
    /// The body.
    pub(crate) body: SignedBody,
    /// Whether the body is JSON.
    pub(crate) is_json: bool,
    /// The ID of the call, which names the build.
    pub(crate) call_id: String,
}

/// Returns the base URL of the builder by a route, without a trailing slash. Without an address of the builder's own,
/// `Route::Builder` has the URL of `Route::Gateway`.
pub(super) fn base_url(settings: &ConnectionSettings, route: Route) -> String {
    let ConnectionSettings {
        gateway,
        builder,
        builder_function,
        ..
    } = settings;
    match (route, builder) {
        (Route::Builder, Some(builder)) => builder.clone(),
        (Route::Queue, _) => format!("{gateway}/async-function/{builder_function}"),
        (Route::Gateway | Route::Builder, _) => format!("{gateway}/function/{builder_function}"),
    }
}

/// Returns a build request by a route, without its body.
pub(super) fn build_request(
    settings: &ConnectionSettings,
    route: Route,
    submission: &SignedBuildRequest,
) -> Builder {
    let url = match route {
        Route::Builder => format!("{}/build", base_url(settings, route)),
        Route::Gateway | Route::Queue => base_url(settings, route),
    };
    let media_type = match submission.is_json {
        true => "application/json",
        false => "application/octet-stream",
    };
    let request = request_with_signature_and_tenant(settings, Method::POST, &url, &submission.body.signature)
        .header("Content-Type", media_type)
        .header("X-Call-Id", &submission.call_id);
    match route {
        Route::Queue => request,
        Route::Builder | Route::Gateway => request.header("Accept", route.stream_media_type()),
    }
}

/// Returns a request that stores a context, without its body.
pub(super) fn store_context_request(settings: &ConnectionSettings, route: Route, signature: &str) -> Builder {
    let url = format!(
        "{}/contexts",
        base_url(settings, route_of_bodyless_request(route))
    );
    request_with_signature_and_tenant(settings, Method::POST, &url, signature)
        .header("Content-Type", "application/octet-stream")
}

/// Returns a request for the public key that build secrets are sealed to.
pub(super) fn public_key_request(settings: &ConnectionSettings, route: Route) -> Builder {
    let url = format!(
        "{}/publickey",
        base_url(settings, route_of_bodyless_request(route))
    );
    with_tenant_header(settings, Request::builder().method(Method::GET).uri(url))
}

/// Returns a request whose answer shows whether there is a builder by a route.
pub(super) fn probe_request(settings: &ConnectionSettings, route: Route) -> Builder {
    let url = format!(
        "{}/_/health",
        base_url(settings, route_of_bodyless_request(route))
    );
    Request::builder().method(Method::GET).uri(url)
}

/// Returns a signed request without a body: a question about builds or versions, a cancellation or a rollback. `path`
/// is the path with its query as the builder sees it, such as `/builds/ID`.
pub(super) fn bodyless_request(
    settings: &ConnectionSettings,
    route: Route,
    method: Method,
    path: &str,
    now: SystemTime,
) -> Builder {
    let at = format_rfc3339_in_millis_or_empty(now);
    let text = format!("{method}\n{path}\n{at}");
    let url = format!("{}{path}", base_url(settings, route_of_bodyless_request(route)));
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header("X-Signed-At", at)
        .header(
            "X-Build-Signature",
            sign_body(&settings.key.keys, text.as_bytes()),
        );
    with_tenant_header(settings, request)
}

/// Returns a signed request for the log of a build, from the line with the number `from_line` on.
pub(super) fn log_request(
    settings: &ConnectionSettings,
    route: Route,
    id: &str,
    from_line: u64,
    now: SystemTime,
) -> Builder {
    let path = format!("{}/log?from={from_line}", build_path(id));
    bodyless_request(settings, route, Method::GET, &path, now)
        .header("Accept", route_of_bodyless_request(route).stream_media_type())
}

/// Returns the path of a build in the builder's API, `/builds/ID`.
pub(crate) fn build_path(id: &str) -> String {
    format!("/builds/{}", percent_encode_component(id))
}

/// Percent-encodes a text for a path or a query.
pub(crate) fn percent_encode_component(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED_IN_PATH).to_string()
}

/// Formats a time as RFC 3339 in milliseconds.
pub(crate) fn format_rfc3339_in_millis_or_empty(time: SystemTime) -> String {
    match Timestamp::try_from(time) {
        Ok(time) => format!("{time:.3}"),
        // A clock beyond the year 9999, which the builder rejects as too far off.
        Err(_) => String::new(),
    }
}

/// Returns the route of requests without a body about what was sent by `route`: the queue answers none.
fn route_of_bodyless_request(route: Route) -> Route {
    match route {
        Route::Queue => Route::Gateway,
        route => route,
    }
}

fn request_with_signature_and_tenant(
    settings: &ConnectionSettings,
    method: Method,
    url: &str,
    signature: &str,
) -> Builder {
    let request = Request::builder().method(method).uri(url);
    with_tenant_header(settings, request.header("X-Build-Signature", signature))
}

fn with_tenant_header(settings: &ConnectionSettings, request: Builder) -> Builder {
    match &settings.tenant {
        Some(tenant) => request.header("X-Slipway-Tenant", tenant),
        None => request,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use function_host::Secret;
    use function_host::signature::HmacKeys;

    use super::*;
    use crate::builder::RequestBody;
    use crate::settings::SigningKey;

    fn settings() -> ConnectionSettings {
        ConnectionSettings {
            gateway: "http://g.example".into(),
            builder: Some("http://b.example:8081".into()),
            builder_function: "builder-fn".into(),
            key: SigningKey {
                keys: HmacKeys::new(&Secret::new("payload key")).expect("a key"),
                place: "the test".into(),
                file: None,
            },
            tenant: Some("acme".into()),
            options: String::new(),
        }
    }

    #[test]
    fn each_route_has_its_url_and_the_stream_format_that_reaches_the_caller() {
        let body = RequestBody::in_memory(&b"tar"[..]);
        let submission = SignedBuildRequest {
            body: SignedBody::sign(body, &settings().key.keys).expect("a signature"),
            is_json: false,
            call_id: "id".into(),
        };
        for (route, url, accept) in [
            (
                Route::Builder,
                "http://b.example:8081/build",
                Some("application/x-ndjson"),
            ),
            (
                Route::Gateway,
                "http://g.example/function/builder-fn",
                Some("text/event-stream"),
            ),
            (Route::Queue, "http://g.example/async-function/builder-fn", None),
        ] {
            let request = build_request(&settings(), route, &submission)
                .body(())
                .expect("a request");
            assert_eq!(request.uri(), url);
            let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
            assert_eq!(header("Accept"), accept);
            assert_eq!(
                (header("X-Call-Id"), header("X-Slipway-Tenant")),
                (Some("id"), Some("acme"))
            );
            assert_eq!(
                header("X-Build-Signature"),
                Some(sign_body(&settings().key.keys, b"tar").as_str())
            );
        }
    }

    #[test]
    fn a_question_signs_the_path_as_the_builder_sees_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_119_200);
        let request = log_request(&settings(), Route::Queue, "a/b", 7, now)
            .body(())
            .expect("a request");
        assert_eq!(
            request.uri(),
            "http://g.example/function/builder-fn/builds/a%2Fb/log?from=7"
        );
        let text = "GET\n/builds/a%2Fb/log?from=7\n2026-12-01T10:00:00.000Z";
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("X-Signed-At"), Some("2026-12-01T10:00:00.000Z"));
        assert_eq!(
            header("X-Build-Signature"),
            Some(sign_body(&settings().key.keys, text.as_bytes()).as_str())
        );
    }
}
