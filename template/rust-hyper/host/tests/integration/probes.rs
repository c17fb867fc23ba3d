//! Health, readiness and metrics.

use function_host::http::StatusCode;

use crate::function::{Function, get};

#[tokio::test]
async fn health_and_readiness_are_the_hosts_and_have_second_names() {
    let function = Function::start(&[]).await;
    for path in ["/_/health", "/_/ready", "/healthz", "/ready"] {
        let answer = function.get(path).await;
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (StatusCode::OK, "OK\n"),
            "{path}"
        );
    }
    assert_eq!(function.get("/_/other").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_answer_tells_the_version_that_the_function_was_given() {
    let function = Function::start(&[("slipway_version", "sha256:12")]).await;
    for path in ["/_/health", "/_/ready", "/echo", "/nowhere", "/panic"] {
        let answer = function.get(path).await;
        assert_eq!(answer.headers["x-slipway-version"], "sha256:12", "{path}");
    }
    let untold = Function::start(&[]).await;
    let answer = untold.get("/_/health").await;
    assert!(!answer.headers.contains_key("x-slipway-version"));
}

#[tokio::test]
async fn it_is_ready_when_the_function_says_so() {
    let function = Function::start(&[("setup", "is slow")]).await;
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    let before = function.get("/_/ready").await;
    assert_eq!(
        (before.status, before.text.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    );

    function.get("/ready-now").await;

    assert_eq!(function.get("/_/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_metrics_are_those_of_of_watchdog_and_the_functions_own() {
    let mut function = Function::start(&[]).await;
    function.get("/echo").await;
    function.get("/echo").await;
    function.get("/nowhere").await;
    function.get("/_/ready").await;
    let address = function.address;
    let waiting = tokio::spawn(async move { get(address, "/wait").await });
    function.line("waiting").await;

    let metrics = function.metrics().await;

    for line in [
        "http_requests_total{code=\"200\",method=\"get\"} 2",
        "http_requests_total{code=\"404\",method=\"get\"} 1",
        "http_request_duration_seconds_count{code=\"200\",method=\"get\"} 2",
        "http_request_duration_seconds_bucket{code=\"200\",method=\"get\",le=\"+Inf\"} 2",
        "http_requests_in_flight 1",
        "builds_total 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is missing from\n{metrics}"
        );
    }
    function.get("/release").await;
    waiting.await.unwrap();
    assert!(function.metrics().await.contains("http_requests_in_flight 0\n"));
    assert_eq!(
        get(function.metrics_address, "/").await.status,
        StatusCode::NOT_FOUND
    );
}
