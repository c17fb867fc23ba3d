//! SIGTERM, and what comes after it.

use function_host::http::StatusCode;
use tokio::net::TcpStream;

use crate::function::{Function, get, try_get};

const ASKED: &str = "asked to end, not ready any more";

#[tokio::test]
async fn a_function_without_requests_ends_with_0() {
    for signal in ["TERM", "INT"] {
        let function = Function::start(&[]).await;
        // A connection that is kept does not hold it up.
        let _idle = TcpStream::connect(function.address).await.unwrap();
        assert_eq!(function.get("/_/ready").await.status, StatusCode::OK);
        function.signal(signal);
        assert_eq!(function.end().await, 0, "{signal}");
    }
}

#[tokio::test]
async fn it_is_not_ready_and_serves_on_until_balancers_have_noticed() {
    let mut function = Function::start(&[("healthcheck_interval", "1h")]).await;
    function.signal("TERM");
    function.line(ASKED).await;
    let ready = function.get("/_/ready").await;
    assert_eq!(
        (ready.status, ready.text.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "ending\n")
    );
    assert_eq!(function.get("/_/health").await.status, StatusCode::OK);
    assert_eq!(function.get("/echo").await.status, StatusCode::OK);
    // Once more, and it does not wait.
    function.signal("TERM");
    assert_eq!(function.end().await, 128 + 15);
}

#[tokio::test]
async fn what_runs_is_finished_after_the_port_is_closed() {
    let mut function = Function::start(&[("write_timeout", "1h")]).await;
    let address = function.address;
    let working = tokio::spawn(async move { get(address, "/until-asked").await });
    function.line("working").await;
    function.signal("TERM");
    assert_eq!(working.await.unwrap().text, "interrupted");
    function.line("ended").await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(function.end().await, 0);
}

#[tokio::test]
async fn what_takes_too_long_is_dropped_and_it_ends_with_0() {
    let mut function = Function::start(&[("write_timeout", "50ms")]).await;
    let address = function.address;
    let hanging = tokio::spawn(async move { try_get(address, "/for-ever").await });
    function.line("begun").await;
    function.signal("TERM");
    assert_eq!(
        function.line("out of time, what still runs is dropped").await["running"],
        1
    );
    function.line("dropped").await;
    assert!(hanging.await.unwrap().is_err());
    assert_eq!(function.end().await, 0);
}

#[tokio::test]
async fn a_handler_that_blocks_does_not_keep_it_from_ending() {
    let mut function = Function::start(&[("write_timeout", "50ms")]).await;
    let address = function.address;
    let blocked = tokio::spawn(async move { try_get(address, "/block").await });
    function.line("blocking").await;
    function.signal("TERM");
    function.line("handlers block, and are left behind").await;
    assert_eq!(function.end().await, 0);
    blocked.abort();
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut function = Function::start(&[("write_timeout", "1h")]).await;
    let address = function.address;
    let hanging = tokio::spawn(async move { try_get(address, "/for-ever").await });
    function.line("begun").await;
    function.signal("TERM");
    function.line("not listening any more").await;
    function.signal("TERM");
    assert_eq!(function.end().await, 128 + 15);
    assert!(hanging.await.unwrap().is_err());
}
