//! The gateway's REST API as pure functions: each returns a request and sends nothing.
//!
//! Addresses have no host: the sender knows the gateway. Paths and bodies are those of openfaas/faas-provider
//! (`serve.go`, `types/requests.go`). A namespace goes where every provider looks for it: faas-netes takes that of a
//! deletion from the query, faasd from the body.

use function_host::Bytes;
use function_host::http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use function_host::http::{Method, Request};
use serde::Serialize;
use serde_json::json;

use crate::request::Probe;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FUNCTIONS: &str = "/system/functions";

/// Creates a function: 200, 201 or 202. There is no 409: of an existing one, faas-netes makes 500 and faasd 400.
pub fn create(deployment: &impl Serialize) -> Request<Bytes> {
    with_body(Method::POST, FUNCTIONS, deployment)
}

/// Replaces a function's whole specification: 200 or 202, 404 where there is none.
pub fn update(deployment: &impl Serialize) -> Request<Bytes> {
    with_body(Method::PUT, FUNCTIONS, deployment)
}

/// Deletes a function: 200 or 202, 404 where there is none.
pub fn delete(name: &str, namespace: Option<&str>) -> Request<Bytes> {
    let body = match namespace {
        Some(namespace) => json!({"functionName": name, "namespace": namespace}),
        None => json!({"functionName": name}),
    };
    with_body(Method::DELETE, &within(FUNCTIONS, namespace), &body)
}

/// One function's state: 200, 404 where there is none.
pub fn read(name: &str, namespace: Option<&str>) -> Request<Bytes> {
    get(&within(&format!("/system/function/{name}"), namespace))
}

/// All functions of a namespace.
pub fn list(namespace: Option<&str>) -> Request<Bytes> {
    get(&within(FUNCTIONS, namespace))
}

/// The names of a namespace's secrets.
pub fn secrets(namespace: Option<&str>) -> Request<Bytes> {
    get(&within("/system/secrets", namespace))
}

/// The namespaces that may have functions.
pub fn namespaces() -> Request<Bytes> {
    get("/system/namespaces")
}

/// Asks a function itself, through the gateway.
pub fn ask(name: &str, namespace: Option<&str>, probe: &Probe) -> Request<Bytes> {
    let function = match namespace {
        Some(namespace) => format!("/function/{name}.{namespace}"),
        None => format!("/function/{name}"),
    };
    let path = format!("{function}{}", probe.path);
    built(probe.method.clone(), &path, Bytes::from(probe.body.clone()))
}

fn get(path: &str) -> Request<Bytes> {
    let mut request = built(Method::GET, path, Bytes::new());
    request.headers_mut().insert(ACCEPT, JSON);
    request
}

fn with_body(method: Method, path: &str, body: &impl Serialize) -> Request<Bytes> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut request = built(method, path, body.into());
    request.headers_mut().insert(CONTENT_TYPE, JSON);
    request
}

#[expect(
    clippy::expect_used,
    reason = "names and namespaces were checked to be DNS labels, and the rest is ours"
)]
fn built(method: Method, path: &str, body: Bytes) -> Request<Bytes> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .expect("a path is an address")
}

fn within(path: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{path}?namespace={namespace}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(request: &Request<Bytes>) -> String {
        let body = std::str::from_utf8(request.body()).unwrap();
        format!("{} {} {body}", request.method(), request.uri())
            .trim_end()
            .to_owned()
    }

    #[test]
    fn requests_are_those_of_the_gateways_api() {
        let spec = json!({"service": "hello"});
        for (request, expected) in [
            (create(&spec), r#"POST /system/functions {"service":"hello"}"#),
            (update(&spec), r#"PUT /system/functions {"service":"hello"}"#),
            (
                delete("hello", None),
                r#"DELETE /system/functions {"functionName":"hello"}"#,
            ),
            (
                delete("hello", Some("team")),
                r#"DELETE /system/functions?namespace=team {"functionName":"hello","namespace":"team"}"#,
            ),
            (read("hello", None), "GET /system/function/hello"),
            (
                read("hello", Some("team")),
                "GET /system/function/hello?namespace=team",
            ),
            (list(Some("team")), "GET /system/functions?namespace=team"),
            (secrets(None), "GET /system/secrets"),
            (namespaces(), "GET /system/namespaces"),
            (
                ask("hello", None, &Probe::default()),
                "GET /function/hello/_/health",
            ),
            (
                ask(
                    "hello",
                    Some("team"),
                    &Probe {
                        path: "/orders?dry=1".parse().unwrap(),
                        method: Method::POST,
                        body: "{}".to_owned(),
                        ..Probe::default()
                    },
                ),
                "POST /function/hello.team/orders?dry=1 {}",
            ),
        ] {
            assert_eq!(shown(&request), expected);
        }
    }

    #[test]
    fn bodies_are_json_and_say_so() {
        let request = update(&json!({}));
        assert_eq!(request.headers()[CONTENT_TYPE], "application/json");
        assert!(
            !ask("hello", None, &Probe::default())
                .headers()
                .contains_key(ACCEPT)
        );
    }
}
