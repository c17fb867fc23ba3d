//! Requests of the gateway's REST API as pure functions: each returns a request and sends nothing.
//!
//! Addresses have no host, which the transport adds. Paths and bodies are those of openfaas/faas-provider
//! (`serve.go`, `types/requests.go`). A deletion carries the namespace twice: faas-netes reads it from the query,
//! faasd from the body.

use function_host::Bytes;
use function_host::gateway::GatewayError;
use function_host::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use function_host::http::{Method, Request};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::function::FunctionAddress;
use crate::request::ReadinessProbe;
use crate::time;

/// The value of the headers `Content-Type` and `Accept` of requests to the REST API.
const JSON_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/json");
/// The path of the REST API at which functions are created, updated and deleted.
const FUNCTIONS_PATH: &str = "/system/functions";

/// The most lines that are read from a function's log. Empty ones are not quoted.
const LOG_LINES_MAX: usize = 10;

/// Returns the request that creates a function. Answers are 200, 201 or 202; if the function exists, faas-netes
/// answers 500 and faasd 400, never 409.
pub(crate) fn create_request(deployment: &impl Serialize) -> Result<Request<Bytes>, GatewayError> {
    json_or_empty_body_request(Method::POST, FUNCTIONS_PATH, deployment)
}

/// Returns the request that replaces the whole specification of a function. Answers are 200 or 202, or 404 if
/// the function does not exist.
pub(crate) fn update_request(deployment: &impl Serialize) -> Result<Request<Bytes>, GatewayError> {
    json_or_empty_body_request(Method::PUT, FUNCTIONS_PATH, deployment)
}

/// Returns the request that deletes a function. Answers are 200 or 202, or 404 if the function does not exist.
pub(crate) fn delete_request(function: &FunctionAddress) -> Result<Request<Bytes>, GatewayError> {
    let FunctionAddress { name, namespace } = function;
    let body = match namespace {
        Some(namespace) => json!({"functionName": name, "namespace": namespace}),
        None => json!({"functionName": name}),
    };
    json_or_empty_body_request(
        Method::DELETE,
        &path_with_unencoded_namespace_query(FUNCTIONS_PATH, namespace.as_deref()),
        &body,
    )
}

/// Returns the request that reads the state of a function. Answers are 200, or 404 if the function does not
/// exist.
pub(crate) fn status_request(function: &FunctionAddress) -> Result<Request<Bytes>, GatewayError> {
    let path = format!("/system/function/{}", function.name);
    get_json_request(&path_with_unencoded_namespace_query(
        &path,
        function.namespace.as_deref(),
    ))
}

/// Returns the request that lists the secrets of a namespace.
pub(crate) fn secrets_request(namespace: Option<&str>) -> Result<Request<Bytes>, GatewayError> {
    get_json_request(&path_with_unencoded_namespace_query("/system/secrets", namespace))
}

/// Returns the request that lists the namespaces that may have functions.
pub(crate) fn namespaces_request() -> Result<Request<Bytes>, GatewayError> {
    get_json_request("/system/namespaces")
}

/// Returns the request that reads the information about the gateway and its provider.
pub(crate) fn info_request() -> Result<Request<Bytes>, GatewayError> {
    get_json_request("/system/info")
}

/// Returns the request that reads the last lines that a function has written since `since`. Answers are 200, or 501 if
/// the provider keeps no logs.
pub(crate) fn last_log_lines_request(
    function: &FunctionAddress,
    since: Timestamp,
) -> Result<Request<Bytes>, GatewayError> {
    let FunctionAddress { name, namespace } = function;
    let namespace = namespace
        .as_deref()
        .map(|namespace| format!("&namespace={namespace}"));
    get_json_request(&format!(
        "/system/logs?name={name}{}&since={}&tail={LOG_LINES_MAX}&follow=false",
        namespace.unwrap_or_default(),
        time::format_with_nanos(since)
    ))
}

/// Returns the request that sends a function's probe through the gateway.
pub(crate) fn probe_request(
    function: &FunctionAddress,
    probe: &ReadinessProbe,
) -> Result<Request<Bytes>, GatewayError> {
    let body = Bytes::from(probe.body.clone());
    build_request(probe.method.clone(), &probe.gateway_path(function), body)
}

/// Returns a GET request of the REST API.
fn get_json_request(path: &str) -> Result<Request<Bytes>, GatewayError> {
    let mut request = build_request(Method::GET, path, Bytes::new())?;
    request.headers_mut().insert(ACCEPT, JSON_CONTENT_TYPE);
    Ok(request)
}

/// Returns a request of the REST API with a JSON body, or with an empty one if `body` cannot be serialized.
fn json_or_empty_body_request(
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<Request<Bytes>, GatewayError> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut request = build_request(method, path, body.into())?;
    request.headers_mut().insert(CONTENT_TYPE, JSON_CONTENT_TYPE);
    Ok(request)
}

/// Returns a request to the gateway. Names, namespaces and probes were checked when the hand-over was parsed, so
/// that it fails only for those that earlier releases stored.
fn build_request(method: Method, path: &str, body: Bytes) -> Result<Request<Bytes>, GatewayError> {
    let uri = path.parse().map_err(|_| GatewayError::Path {
        path: path.to_owned(),
    })?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    Ok(request)
}

/// Returns `path` with the namespace in its query.
fn path_with_unencoded_namespace_query(path: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{path}?namespace={namespace}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method_uri_and_body(request: &Request<Bytes>) -> String {
        let body = std::str::from_utf8(request.body()).unwrap();
        format!("{} {} {body}", request.method(), request.uri())
            .trim_end()
            .to_owned()
    }

    fn hello_function(namespace: Option<&str>) -> FunctionAddress {
        FunctionAddress {
            name: "hello".to_owned(),
            namespace: namespace.map(str::to_owned),
        }
    }

    #[test]
    fn requests_have_the_paths_and_bodies_of_the_gateways_api() {
        let spec = json!({"service": "hello"});
        for (request, expected) in [
            (
                create_request(&spec),
                r#"POST /system/functions {"service":"hello"}"#,
            ),
            (
                update_request(&spec),
                r#"PUT /system/functions {"service":"hello"}"#,
            ),
            (
                delete_request(&hello_function(None)),
                r#"DELETE /system/functions {"functionName":"hello"}"#,
            ),
            (
                delete_request(&hello_function(Some("team"))),
                r#"DELETE /system/functions?namespace=team {"functionName":"hello","namespace":"team"}"#,
            ),
            (
                status_request(&hello_function(None)),
                "GET /system/function/hello",
            ),
            (
                status_request(&hello_function(Some("team"))),
                "GET /system/function/hello?namespace=team",
            ),
            (secrets_request(None), "GET /system/secrets"),
            (
                secrets_request(Some("team")),
                "GET /system/secrets?namespace=team",
            ),
            (namespaces_request(), "GET /system/namespaces"),
            (info_request(), "GET /system/info"),
            (
                last_log_lines_request(&hello_function(None), Timestamp::UNIX_EPOCH),
                "GET /system/logs?name=hello&since=1970-01-01T00:00:00.000000000Z&tail=10&follow=false",
            ),
            (
                last_log_lines_request(&hello_function(Some("team")), Timestamp::UNIX_EPOCH),
                "GET /system/logs?name=hello&namespace=team&since=1970-01-01T00:00:00.000000000Z&tail=10&follow=false",
            ),
            (
                probe_request(&hello_function(None), &ReadinessProbe::default()),
                "GET /function/hello/_/health",
            ),
            (
                probe_request(
                    &hello_function(Some("team")),
                    &ReadinessProbe {
                        path: "/orders?dry=1".parse().unwrap(),
                        method: Method::POST,
                        body: "{}".to_owned(),
                        ..ReadinessProbe::default()
                    },
                ),
                "POST /function/hello.team/orders?dry=1 {}",
            ),
        ] {
            assert_eq!(method_uri_and_body(&request.unwrap()), expected);
        }
    }

    #[test]
    fn an_update_has_a_json_content_type_and_a_probe_no_accept_header() {
        let request = update_request(&json!({})).unwrap();
        assert_eq!(request.headers()[CONTENT_TYPE], "application/json");
        assert!(
            !probe_request(&hello_function(None), &ReadinessProbe::default())
                .unwrap()
                .headers()
                .contains_key(ACCEPT)
        );
    }
}
