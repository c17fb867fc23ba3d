//! Tests of a function's health probe, readiness probe and metrics.

use function_host::http::StatusCode;

use crate::function::{FunctionProcess, get_page};

#[tokio::test]
async fn the_host_answers_probes_at_its_own_and_the_functions_paths() {
    let function = FunctionProcess::start_and_wait(&[]).await;
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
async fn every_response_has_the_version_header_only_if_slipway_version_is_set() {
    let function = FunctionProcess::start_and_wait(&[("slipway_version", "sha256:12")]).await;
    for path in ["/_/health", "/_/ready", "/echo", "/nowhere", "/panic"] {
        let answer = function.get(path).await;
        assert_eq!(answer.headers["x-slipway-version"], "sha256:12", "{path}");
    }
    let unversioned = FunctionProcess::start_and_wait(&[]).await;
    let answer = unversioned.get("/_/health").await;
    assert!(!answer.headers.contains_key("x-slipway-version"));
}

#[tokio::test]
async fn the_readiness_probe_follows_the_ready_checks_of_the_function_and_has_its_details() {
    let function = FunctionProcess::start_and_wait(&[("setup", "not ready")]).await;
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    let before = function.get("/_/ready").await;
    assert_eq!(
        (before.status, before.text.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\ndisk: false\n")
    );

    function.get("/ready-now").await;

    let after = function.get("/_/ready").await;
    assert_eq!(
        (after.status, after.text.as_str()),
        (StatusCode::OK, "OK\ndisk: true\n")
    );
    assert_eq!(function.get("/_/health").await.text, "OK\n");
}

#[tokio::test]
async fn metrics_include_those_of_of_watchdog_and_of_the_function() {
    let mut function = FunctionProcess::start_and_wait(&[]).await;
    function.get("/echo").await;
    function.get("/echo").await;
    function.get("/nowhere").await;
    function.get("/_/ready").await;
    let address = function.address;
    let waiting = tokio::spawn(async move { get_page(address, "/wait").await });
    function.next_log_line_with_message("waiting").await;

    let metrics = function.get_metrics_page().await;

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
    assert!(
        function
            .get_metrics_page()
            .await
            .contains("http_requests_in_flight 0\n")
    );
    assert_eq!(
        get_page(function.metrics_address, "/").await.status,
        StatusCode::NOT_FOUND
    );
}
