//! Tests of a function's shutdown after SIGTERM.

use function_host::http::StatusCode;
use tokio::net::TcpStream;

use crate::function::{FunctionProcess, get_page, get_page_or_error_after_connect};

/// The log message at the beginning of a shutdown.
const SHUTTING_DOWN_MESSAGE: &str = "shutting down: not ready, still accepting requests";

#[tokio::test]
async fn after_sigterm_or_sigint_a_function_without_requests_exits_with_0() {
    for signal in ["TERM", "INT"] {
        let function = FunctionProcess::start_and_wait(&[]).await;
        // An idle connection does not delay the exit.
        let _idle = TcpStream::connect(function.address).await.unwrap();
        assert_eq!(function.get("/_/ready").await.status, StatusCode::OK);
        function.send_signal(signal);
        assert_eq!(function.wait_for_exit_code().await, 0, "{signal}");
    }
}

#[tokio::test]
async fn requests_are_still_accepted_while_load_balancers_notice_the_shutdown() {
    let mut function = FunctionProcess::start_and_wait(&[("healthcheck_interval", "1h")]).await;
    function.send_signal("TERM");
    function.next_log_line_with_message(SHUTTING_DOWN_MESSAGE).await;
    let ready = function.get("/_/ready").await;
    assert_eq!(
        (ready.status, ready.text.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    );
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
    // A second signal ends the wait.
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 128 + 15);
}

#[tokio::test]
async fn a_running_request_is_answered_after_sigterm_and_the_function_exits_with_0() {
    let mut function = FunctionProcess::start_and_wait(&[("write_timeout", "1h")]).await;
    let address = function.address;
    let working = tokio::spawn(async move { get_page(address, "/until-shutdown").await });
    function.next_log_line_with_message("working").await;
    function.send_signal("TERM");
    assert_eq!(working.await.unwrap().text, "interrupted");
    function.next_log_line_with_message("stopped").await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn a_function_exits_only_after_its_background_work_has_ended() {
    let mut function = FunctionProcess::start_and_wait(&[("write_timeout", "1h")]).await;
    assert_eq!(function.get("/background").await.text, "begun");
    function.send_signal("TERM");
    function.next_log_line_with_message("background work ended").await;
    function.next_log_line_with_message("stopped").await;
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn background_work_does_not_delay_the_exit_beyond_the_drain_deadline() {
    let function = FunctionProcess::start_and_wait(&[("write_timeout", "50ms")]).await;
    assert_eq!(function.get("/forever-in-background").await.text, "begun");
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn requests_that_exceed_the_drain_deadline_are_dropped() {
    let mut function = FunctionProcess::start_and_wait(&[("write_timeout", "50ms")]).await;
    let address = function.address;
    let hanging = tokio::spawn(async move { get_page_or_error_after_connect(address, "/forever").await });
    function.next_log_line_with_message("started").await;
    function.send_signal("TERM");
    let line = function
        .next_log_line_with_message("drain deadline reached, dropping the remaining requests")
        .await;
    assert_eq!(line["running"], 1);
    function.next_log_line_with_message("dropped").await;
    assert!(hanging.await.unwrap().is_err());
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn a_handler_that_blocks_its_thread_does_not_prevent_the_exit() {
    let mut function = FunctionProcess::start_and_wait(&[("write_timeout", "50ms")]).await;
    let address = function.address;
    let blocked = tokio::spawn(async move { get_page_or_error_after_connect(address, "/block").await });
    function.next_log_line_with_message("blocking").await;
    function.send_signal("TERM");
    function
        .next_log_line_with_message("a handler blocks its thread, exiting without waiting for it")
        .await;
    assert_eq!(function.wait_for_exit_code().await, 0);
    blocked.abort();
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let mut function = FunctionProcess::start_and_wait(&[("write_timeout", "1h")]).await;
    let address = function.address;
    let hanging = tokio::spawn(async move { get_page_or_error_after_connect(address, "/forever").await });
    function.next_log_line_with_message("started").await;
    function.send_signal("TERM");
    function
        .next_log_line_with_message("port closed, draining requests")
        .await;
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 128 + 15);
    assert!(hanging.await.unwrap().is_err());
}
