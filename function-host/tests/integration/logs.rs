//! Tests of the lines of a function's log.

use function_host::http;

use crate::function::{FunctionProcess, send_request_or_error_after_connect};

/// The length of a log line at which of-watchdog stops forwarding logs, in bytes.
const TOO_LONG_LINE_BYTES: usize = 64 * 1024;

#[tokio::test]
async fn a_long_json_line_is_truncated_and_still_valid() {
    let mut function = FunctionProcess::start_and_wait(&[]).await;
    let request = http::Request::get("/long-line")
        .header("host", "test")
        .header("x-call-id", "l-1");
    send_request_or_error_after_connect(function.address, request.body("".into()).unwrap())
        .await
        .unwrap();

    let line = function.next_raw_log_line().await.unwrap();

    assert!(line.len() < TOO_LONG_LINE_BYTES, "{} bytes", line.len());
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["message"], &line["call_id"], &line["cut"]),
        (&"yyyyyyyyy".into(), &"l-1".into(), &true.into())
    );
    assert!(line["context"].as_str().unwrap().starts_with("xxxxxxxx"));
}

#[tokio::test]
async fn a_long_text_line_is_truncated_and_has_the_call_id() {
    let mut function = FunctionProcess::spawn_without_known_addresses(&[("log_format", "text")]);
    let listening = function.next_raw_log_line().await.unwrap();
    let port = listening
        .split(" port=")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let request = http::Request::get("/long-line")
        .header("host", "test")
        .header("x-call-id", "l-2");
    send_request_or_error_after_connect(address, request.body("".into()).unwrap())
        .await
        .unwrap();

    let line = function.next_raw_log_line().await.unwrap();

    assert!(line.len() < TOO_LONG_LINE_BYTES, "{} bytes", line.len());
    assert!(
        line.contains(": yyyyyyyyy call_id=\"l-2\" context=\"xxxx") && line.ends_with(" (cut)"),
        "{line:.100}"
    );
}

#[tokio::test]
async fn with_log_level_debug_a_request_is_logged_with_its_status_and_call_id() {
    let mut function = FunctionProcess::start_and_wait(&[("log_level", "info,function_host=debug")]).await;
    let request = http::Request::post("/echo")
        .header("host", "test")
        .header("x-call-id", "l-3");
    send_request_or_error_after_connect(function.address, request.body("hello".into()).unwrap())
        .await
        .unwrap();

    let line = function.next_log_line_with_message("request").await;

    assert_eq!(
        (&line["method"], &line["path"], &line["status"]),
        (&"POST".into(), &"/echo".into(), &200.into())
    );
    assert_eq!(line["call_id"], "l-3");
    assert!(line["seconds"].as_f64().unwrap() > 0.0);
}
