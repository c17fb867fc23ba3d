//! How a function starts, or does not.

use crate::function::Function;

#[tokio::test]
async fn every_wrong_setting_is_named_at_once_and_ends_it_with_78() {
    let mut function = Function::spawn(&[
        ("exec_timeout", "soon"),
        ("max_inflight", "many"),
        ("read_timeout", "-1s"),
        ("gateway_url", "http://admin:hunter2@gateway"),
        ("log_level", "loud"),
        ("answer_is", "1000"),
    ]);
    let mut named = Vec::new();
    while let Some(line) = function.raw_line().await {
        assert!(!line.contains("hunter2"), "{line}");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        named.push(
            line["setting"]
                .as_str()
                .unwrap_or_else(|| panic!("{line}"))
                .to_owned(),
        );
    }
    named.sort();
    let wrong = [
        "answer_is",
        "exec_timeout",
        "gateway_url",
        "log_level",
        "max_inflight",
        "read_timeout",
    ];
    assert_eq!(named, wrong);
    assert_eq!(function.end().await, 78);
}

#[tokio::test]
async fn a_setup_that_fails_ends_it_with_1() {
    let mut function = Function::spawn(&[("setup", "fails")]);
    let line = function.line("could not set the function up").await;
    assert_eq!(line["error"], "the disk is full");
    assert_eq!(function.end().await, 1);
}

#[tokio::test]
async fn a_setup_that_panics_ends_it_with_101() {
    let mut function = Function::spawn(&[("setup", "panics")]);
    assert_eq!(function.line("panic").await["panic"], "setups may");
    assert_eq!(function.end().await, 101);
}

#[tokio::test]
async fn a_port_that_is_taken_ends_it_with_1() {
    let taken = Function::start(&[]).await;
    let port = taken.address.port().to_string();
    let mut function = Function::spawn(&[("port", &port)]);
    function.line("could not listen").await;
    assert_eq!(function.end().await, 1);
}

#[tokio::test]
async fn a_signal_during_the_setup_ends_it() {
    let mut function = Function::spawn(&[("setup", "hangs")]);
    function.line("setting up").await;
    function.signal("TERM");
    assert_eq!(function.end().await, 0);
}
