//! Tests of wrong settings and failed setups, and of the exit codes for them.

use crate::function::FunctionProcess;

#[tokio::test]
async fn all_wrong_settings_are_logged_and_the_exit_code_is_78() {
    let mut function = FunctionProcess::spawn_without_known_addresses(&[
        ("exec_timeout", "soon"),
        ("max_inflight", "many"),
        ("read_timeout", "-1s"),
        ("gateway_url", "http://admin:hunter2@gateway"),
        ("log_level", "loud"),
        ("answer_is", "1000"),
    ]);
    let mut named = Vec::new();
    while let Some(line) = function.next_raw_log_line().await {
        assert!(!line.contains("hunter2"), "{line}");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "wrong setting", "{line}");
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
    assert_eq!(function.wait_for_exit_code().await, 78);
}

#[tokio::test]
async fn a_failed_setup_exits_with_1() {
    let mut function = FunctionProcess::spawn_without_known_addresses(&[("setup", "fails")]);
    let line = function
        .next_log_line_with_message("could not set up the function")
        .await;
    assert_eq!(line["error"], "the disk is full");
    assert_eq!(function.wait_for_exit_code().await, 1);
}

#[tokio::test]
async fn a_panic_in_the_setup_exits_with_101() {
    let mut function = FunctionProcess::spawn_without_known_addresses(&[("setup", "panics")]);
    assert_eq!(
        function.next_log_line_with_message("panic").await["panic"],
        "panic in the setup"
    );
    assert_eq!(function.wait_for_exit_code().await, 101);
}

#[tokio::test]
async fn a_function_whose_port_is_in_use_exits_with_1() {
    let taken = FunctionProcess::start_and_wait(&[]).await;
    let port = taken.address.port().to_string();
    let mut function = FunctionProcess::spawn_without_known_addresses(&[("port", &port)]);
    function
        .next_log_line_with_message("could not listen for requests and metrics")
        .await;
    assert_eq!(function.wait_for_exit_code().await, 1);
}

#[tokio::test]
async fn a_signal_during_the_setup_exits_with_0() {
    let mut function = FunctionProcess::spawn_without_known_addresses(&[("setup", "hangs")]);
    function.next_log_line_with_message("setting up").await;
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 0);
}
