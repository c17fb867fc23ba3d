//! Tests of the propagation of the trace context to BuildKit and to the deployer.

use builder_fn::hand_over::DeployVia;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use serde_json::json;

use crate::daemon;
use crate::setting::{TestBuilder, request_tar_with};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Returns the OpenTelemetry context of a request with the trace header [`TRACEPARENT`].
fn traced_context() -> Context {
    Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from_hex(&TRACEPARENT[3..35]).expect("an id"),
        SpanId::from_hex(&TRACEPARENT[36..52]).expect("an id"),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    ))
}

#[tokio::test]
async fn the_trace_context_is_sent_to_buildkit_and_with_the_hand_over() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_deploy_via(DeployVia::Callback);
    setting.write_secret("deploy-secret", "deploy key");
    let _context = traced_context().attach();

    let daemon = async {
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        let parent = solve.headers.get("traceparent").cloned();
        drop(status);
        solve.answer_with_digest("sha256:12");
        parent
    };
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let (answer, solve) = tokio::join!(setting.send_signed_build_unread(tar), daemon);

    assert_eq!(solve.expect("a parent"), TRACEPARENT);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["traceparent"], TRACEPARENT);
}

#[tokio::test]
async fn without_a_trace_no_trace_context_is_sent() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let setting = TestBuilder::new(daemon).with_deploy_via(DeployVia::Callback);
    setting.write_secret("deploy-secret", "deploy key");

    let daemon = async {
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        assert!(solve.headers.get("traceparent").is_none());
        drop(status);
        solve.answer_with_digest("sha256:12");
    };
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let (answer, ()) = tokio::join!(setting.send_signed_build_unread(tar), daemon);

    assert!(!answer.headers().contains_key("traceparent"));
}
