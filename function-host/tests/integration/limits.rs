//! Tests of the limits on concurrent requests and on the time of a request.

use function_host::http::StatusCode;
use function_host::http::header::RETRY_AFTER;

use crate::function::{FunctionProcess, TEST_TIMEOUT, get_page};

#[tokio::test]
async fn a_request_over_max_inflight_is_rejected_with_429_and_the_text_of_openfaas() {
    let mut function = FunctionProcess::start_and_wait(&[("max_inflight", "2")]).await;
    let address = function.address;
    let waiting: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { get_page(address, "/wait").await }))
        .collect();
    function.next_log_line_with_message("waiting").await;
    function.next_log_line_with_message("waiting").await;

    let rejected = function.get("/echo").await;

    assert_eq!(rejected.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        rejected.text,
        "Concurrent request limit exceeded. Max concurrent requests: 2\n"
    );
    assert_eq!(rejected.headers["content-type"], "text/plain");
    assert!(rejected.headers.contains_key(RETRY_AFTER) && rejected.headers.contains_key("x-call-id"));
    let ready = function.get("/_/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    assert!(
        function
            .get_metrics_page()
            .await
            .contains("http_requests_total{code=\"429\",method=\"get\"} 1\n")
    );
    drop(waiting);
}

#[tokio::test]
async fn a_request_whose_client_disconnects_no_longer_counts_against_max_inflight() {
    let mut function = FunctionProcess::start_and_wait(&[("max_inflight", "1")]).await;
    let address = function.address;
    let hanging = tokio::spawn(async move { get_page(address, "/forever").await });
    function.next_log_line_with_message("started").await;
    hanging.abort();
    function.next_log_line_with_message("dropped").await;
    // The request leaves the count right after its handler is dropped.
    let admitted = async { while function.get("/_/ready").await.status != StatusCode::OK {} };
    tokio::time::timeout(TEST_TIMEOUT, admitted)
        .await
        .expect("the request of the disconnected client still counts");
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_handler_that_exceeds_exec_timeout_is_dropped() {
    let mut function = FunctionProcess::start_and_wait(&[("exec_timeout", "100ms")]).await;
    let answer = function.get("/forever").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    function
        .next_log_line_with_message("exec_timeout exceeded, handler dropped")
        .await;
    function.next_log_line_with_message("dropped").await;
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
}
