//! Tests of handlers that panic or fail: what the caller gets, what the log has, and that the process continues.

use function_host::http::{self, StatusCode};

use crate::function::{FunctionProcess, send_request_or_error_after_connect};

#[tokio::test]
async fn a_panic_in_the_handler_is_answered_with_500_and_the_process_continues() {
    let mut function = FunctionProcess::start_and_wait(&[]).await;
    let request = http::Request::get("/panic")
        .header("host", "test")
        .header("x-call-id", "p-1");
    let answer = send_request_or_error_after_connect(function.address, request.body("".into()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.text, "internal error, call id p-1\n");

    let line = function.next_log_line_with_message("panic").await;

    assert_eq!(
        (&line["level"], &line["panic"], &line["call_id"]),
        (&"ERROR".into(), &"panic in the handler".into(), &"p-1".into())
    );
    assert!(
        line["location"].as_str().unwrap().contains("handlers.rs:"),
        "{line}"
    );
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
    assert!(
        function
            .get_metrics_page()
            .await
            .contains("http_requests_in_flight 0\n")
    );
}

#[tokio::test]
async fn a_panic_in_a_response_stream_aborts_the_response() {
    let mut function = FunctionProcess::start_and_wait(&[]).await;
    let request = http::Request::get("/panic-in-stream")
        .header("host", "test")
        .header("x-call-id", "p-2");
    let outcome =
        send_request_or_error_after_connect(function.address, request.body("".into()).unwrap()).await;
    assert!(outcome.unwrap_err().is_incomplete_message());
    assert_eq!(
        function.next_log_line_with_message("panic").await["call_id"],
        "p-2"
    );
    assert_eq!(
        function.next_log_line_with_message("response aborted").await["call_id"],
        "p-2"
    );
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_internal_error_is_logged_and_not_sent_to_the_caller() {
    let mut function = FunctionProcess::start_and_wait(&[]).await;
    let answer = function.get("/fail").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let call_id = answer.headers["x-call-id"].to_str().unwrap();
    assert_eq!(answer.text, format!("internal error, call id {call_id}\n"));
    let line = function.next_log_line_with_message("handler failed").await;
    assert_eq!(
        (&line["error"], &line["call_id"]),
        (&"invalid digit found in string".into(), &call_id.into())
    );
}

#[tokio::test]
async fn an_error_with_a_status_is_sent_to_the_caller() {
    let function = FunctionProcess::start_and_wait(&[]).await;
    let answer = function.get("/refuse").await;
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (StatusCode::CONFLICT, "already exists\n")
    );
}
