//! What builders have accepted, after they were killed: it is known, and it is finished once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use slipway_e2e::build_context::BuildContext;

use super::{TwoBuildersAndOneDeployer, unused_call_id};

/// The longest time for a build to be resumed and to end: a builder counts as gone after 20 s.
const RESUMPTION_TIMEOUT: Duration = Duration::from_secs(180);

impl TwoBuildersAndOneDeployer {
    /// Asks one of the builders about a build until it has this state, and returns the answer.
    async fn wait_for_state(&self, index: usize, id: &str, state: &str) -> Result<Value> {
        let end = Instant::now() + RESUMPTION_TIMEOUT;
        loop {
            let (status, answer) = self.builders[index].ask(&format!("/builds/{id}")).await?;
            if status == 200 && answer["state"] == state {
                return Ok(answer);
            }
            ensure!(Instant::now() < end, "{id} is not {state}: {status} {answer:#}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test]
async fn what_a_killed_builder_had_accepted_is_finished_once_and_known_after_every_builder_was_killed()
-> Result<()> {
    let settings = [("max_inflight", "1"), ("queue_wait", "9m")];
    let mut two =
        TwoBuildersAndOneDeployer::remove_function_and_start_with_records("accepted", &settings).await?;
    let gate = "gate-of-accepted";
    let ids = ["running", "waiting", "rejected"].map(unused_call_id);
    let [running, waiting, rejected] = ids;
    let (running, waiting, rejected) = (running?, waiting?, rejected?);
    // A call that came from the queue has two times.
    let now = Timestamp::now().as_nanosecond();
    let times = format!("{now}, {}", now + 1);

    let broken = BuildContext::dockerfile("FROM scratch\n").tar_without_config()?;
    let reply = two.build_at(0, &broken, &rejected).await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    let error = reply.json_or_error_text()["error"].take();

    let tar = two
        .gated_page_tar("accepted", gate, &two.config_with_deployment("1"))
        .await?;
    let headers = [("X-Call-Id", running.as_str()), ("X-Start-Time", times.as_str())];
    let first = two
        .start_gated_build_and_wait_for_its_step(0, &tar, gate, &headers)
        .await?;
    let tar = two.page_tar("other", &two.config_without_deployment("2")).await?;
    let headers = [("X-Call-Id", waiting.as_str()), ("X-Start-Time", times.as_str())];
    let second = two.start_build(0, &tar, &headers)?;
    let answer = two.wait_for_state(1, &waiting, "waiting").await?;
    assert_eq!(
        answer["image"],
        two.config_without_deployment("2")["image"],
        "{answer:#}"
    );
    let answer = two.wait_for_state(1, &rejected, "failed").await?;
    assert_eq!(answer["error"], error, "{answer:#}");

    // The builder that accepted them, in the middle of one build and of the wait for the other.
    two.start_new_builder_then_kill_old(0).await?;
    assert!(first.await?.is_err() && second.await?.is_err(), "it is gone");
    two.testbed.wait_for_step(gate, false).await?;
    two.testbed.wait_for_step(gate, true).await?;
    two.testbed.open_gate_of_step(gate)?;
    let deployed = two.wait_for_state(1, &running, "success").await?;
    assert_eq!(deployed["deployment"]["status"], "ready", "{deployed:#}");
    let built = two.wait_for_state(1, &waiting, "success").await?;
    assert_eq!(built["attempts"], 1, "{built:#}");
    assert_eq!(two.get_function_page().await?, (200, "accepted".to_owned()));

    two.replace_builders_one_after_the_other().await?;
    for index in [0, 1] {
        let answer = two.wait_for_state(index, &running, "success").await?;
        assert_eq!(answer["deployment"], deployed["deployment"], "{answer:#}");
        let answer = two.wait_for_state(index, &waiting, "success").await?;
        assert_eq!(answer["digest"], built["digest"], "{answer:#}");
        let answer = two.wait_for_state(index, &rejected, "failed").await?;
        assert_eq!(answer["error"], error, "{answer:#}");
        let (status, list) = two.builders[index].ask("/builds?state=failed&limit=1000").await?;
        let is_listed = list["builds"]
            .as_array()
            .is_some_and(|builds| builds.iter().any(|build| build["id"] == *rejected));
        assert!(status == 200 && is_listed, "{status} {list:#}");
    }
    two.remove_function().await
}
