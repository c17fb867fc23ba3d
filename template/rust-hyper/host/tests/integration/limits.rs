//! How many, and for how long.

use function_host::http::StatusCode;
use function_host::http::header::RETRY_AFTER;

use crate::function::{Function, get};

#[tokio::test]
async fn one_request_too_many_is_refused_in_openfaas_words() {
    let mut function = Function::start(&[("max_inflight", "2")]).await;
    let address = function.address;
    let waiting: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { get(address, "/wait").await }))
        .collect();
    function.line("waiting").await;
    function.line("waiting").await;

    let refused = function.get("/echo").await;

    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        refused.text,
        "Concurrent request limit exceeded. Max concurrent requests: 2\n"
    );
    assert_eq!(refused.headers["content-type"], "text/plain");
    assert!(refused.headers.contains_key(RETRY_AFTER) && refused.headers.contains_key("x-call-id"));
    let ready = function.get("/_/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    assert!(
        function
            .metrics()
            .await
            .contains("http_requests_total{code=\"429\",method=\"get\"} 1\n")
    );
    drop(waiting);
}

#[tokio::test]
async fn a_place_that_is_free_again_can_be_taken() {
    let mut function = Function::start(&[("max_inflight", "1")]).await;
    let address = function.address;
    // The client goes away: its place is free when the handler has been dropped.
    let hanging = tokio::spawn(async move { get(address, "/for-ever").await });
    function.line("begun").await;
    hanging.abort();
    function.line("dropped").await;
    // The handler is dropped right before its place is given back.
    while function.get("/_/ready").await.status != StatusCode::OK {}
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_ended() {
    let mut function = Function::start(&[("exec_timeout", "100ms")]).await;
    let answer = function.get("/for-ever").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    function.line("exec_timeout is over, the handler is ended").await;
    function.line("dropped").await;
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
}
