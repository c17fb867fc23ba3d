//! The memory of `slipway up` with a large context.

use std::fs;

use serde_json::json;
use tokio::io::BufReader;

use crate::fake_builder::{BodyEnd, FakeBuilder, ScriptedAnswer, record_with_line};
use crate::project::{Project, interrupt, read_until};
use crate::up::incompressible;

/// The size of the context, in bytes.
const CONTEXT_BYTES: usize = 160 << 20;

/// The most memory that the command may have used, in bytes. Most of it is the program itself.
const MEMORY_BYTES_MAX: u64 = 80 << 20;

#[tokio::test]
async fn a_context_is_packed_signed_and_sent_without_being_in_memory() {
    let stored = json!({"status": "success", "context": {"oci": "r.example/contexts@sha256:1"}});
    let mut server = FakeBuilder::start(vec![
        (
            "POST /function/builder-fn/contexts",
            ScriptedAnswer::json(201, &stored),
        ),
        ("POST /async-function/builder-fn", ScriptedAnswer::queued()),
    ])
    .await;
    let project = Project::shop();
    project.write("shop/large", incompressible(CONTEXT_BYTES));
    let mut child = project.spawn(&["up", "--gateway", &server.url]);
    let context = server.next_request_except_probes().await;
    assert!(context.body.len() >= CONTEXT_BYTES);
    let id = server.next_call_id().await;
    let log = format!("GET /function/builder-fn/builds/{id}/log?from=1");
    server.add_answer(
        &log,
        ScriptedAnswer::events(&[record_with_line(1, "l: T begun")], BodyEnd::Open),
    );
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    read_until(&mut stderr, "begun").await;

    let status =
        fs::read_to_string(format!("/proc/{}/status", child.id().expect("it runs"))).expect("a status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("the peak");
    let peak = peak.parse::<u64>().expect("a number") << 10;
    assert!(peak < MEMORY_BYTES_MAX, "the command used {peak} bytes");

    interrupt(&child);
    assert_eq!(child.wait().await.expect("it ends").code(), Some(130));
}
