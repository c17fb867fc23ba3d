//! Cancellation of builds at another builder than the one that runs them.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, buildkit::BuildkitDaemon,
    control_api::ControlApi, testbed::Testbed,
};

/// The limit on the time from the request to cancel a build until the end of its solve, by BuildKit's clock, which is
/// this machine's.
const SOLVE_END_LIMIT: Duration = Duration::from_secs(2);

/// The number of builds of which one has to end within the limit. A busy machine adds to the time of each.
const MEASUREMENTS_MAX: usize = 3;

/// The number of records in the history of the daemon. Each costs BuildKit about 10 ms of processor time; a test of
/// builder-fn shows that none of them is decoded.
const RECORDS: usize = 300;

/// The parts of a test: two builders on a daemon of their own.
struct TwoBuilders<'t> {
    testbed: &'t Testbed,
    control: ControlApi,
    owner: BuilderProcess,
    other: BuilderProcess,
    run: i128,
}

impl TwoBuilders<'_> {
    /// Starts a build at one builder, and cancels it at the other while its step runs. Returns the time from the
    /// request until the end of the solve. Asserts that nothing is pushed or deployed, also if the call is delivered
    /// once more.
    async fn build_at_owner_cancel_at_other_and_time_solve_end(&self, number: usize) -> Result<Duration> {
        let Self {
            testbed,
            owner,
            other,
            run,
            ..
        } = self;
        let (function, repository) = ("cancelled", "e2e/cancelled");
        let (id, tag) = (format!("cancelled-{run}-{number}"), format!("{run}-{number}"));
        let gate = format!("gate-of-a-cancelled-build-{run}-{number}");
        let config = json!({
            "image": testbed.image_name(repository, &tag), "deploy": { "service": function },
        });
        let base = testbed.build_busybox_once_and_get_name().await?;
        let tar = BuildContext::with_gated_step(base, &gate).tar_with_config_last(&config)?;
        let mut events = self.control.follow_new_history_events().await?;
        let (client, call_id, times) = (
            owner.build_client_with_own_key()?,
            id.clone(),
            format!("{run}, {}", run + 1),
        );
        let delivered = tar.clone();
        let build = tokio::spawn(async move {
            let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
            client.post_signed_with_headers(delivered, &headers).await
        });
        testbed.wait_for_step(&gate, true).await?;

        let (status, answer) = other.ask(&format!("/builds/{id}")).await?;
        assert_eq!((status, &answer["state"]), (200, &json!("running")), "{answer:#}");
        let began = SystemTime::now();
        let (status, answer) = other.questions()?.delete(&format!("/builds/{id}")).await?;
        assert!(
            matches!(
                (status, answer["state"].as_str()),
                (200, Some("cancelled")) | (202, _)
            ),
            "{status} {answer:#}"
        );
        let end = events.wait_for_end(&id).await?;
        assert!(end.error.is_some(), "the solve succeeded");
        testbed.wait_for_step(&gate, false).await?;
        let reply = build.await??;
        assert_eq!(
            (reply.status, reply.text_field("error").as_str()),
            (409, "cancelled"),
            "{}",
            reply.text
        );
        for builder in [owner, other] {
            let (status, answer) = builder.ask(&format!("/builds/{id}")).await?;
            assert_eq!(
                (status, &answer["state"]),
                (200, &json!("cancelled")),
                "{answer:#}"
            );
            let again = builder.build_client_with_own_key()?;
            let again = again
                .post_signed_with_headers(tar.clone(), &[("X-Call-Id", &id)])
                .await?;
            assert_eq!(again.status, 409, "{}", again.text);
        }
        assert!(testbed.registry.get_manifest(repository, &tag).await?.is_none());
        assert!(testbed.functions.function_status(function).await?.is_none());
        Ok(end.at.duration_since(began).unwrap_or_default())
    }
}

#[tokio::test]
async fn one_of_3_builds_cancelled_at_another_builder_ends_within_2_seconds_whatever_buildkit_has_recorded()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    // It measures.
    let _alone = testbed.lock_parts().await;
    testbed.functions.remove_function("cancelled").await?;
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let control = ControlApi::connect(&daemon).await?;
    let filling = Instant::now();
    control.add_records(RECORDS).await?;
    eprintln!("{RECORDS} records made in {:?}", filling.elapsed());
    assert_eq!(control.ended_record_count().await?, RECORDS);
    let run = Timestamp::now().as_nanosecond();
    let records = format!("{}/e2e/records/cancelled-{run}", testbed.stack.registry.host);
    let url = daemon.socket_url();
    for has_store in [false, true] {
        let mut settings = vec![("buildkit_url", url.as_str())];
        if has_store {
            settings.push(("records_repository", &records));
        }
        let builders = TwoBuilders {
            testbed: &testbed,
            control: control.clone(),
            owner: BuilderProcess::start_with_settings(&testbed, &settings).await?,
            other: BuilderProcess::start_with_settings(&testbed, &settings).await?,
            run: run + i128::from(has_store),
        };
        let mut took = Vec::new();
        while took.last().is_none_or(|took| *took > SOLVE_END_LIMIT) {
            if took.len() == MEASUREMENTS_MAX {
                bail!("each solve went on for more than {SOLVE_END_LIMIT:?}: {took:?}");
            }
            took.push(
                builders
                    .build_at_owner_cancel_at_other_and_time_solve_end(took.len())
                    .await?,
            );
            eprintln!("records: {has_store}; the solve ended after {took:?}");
        }
    }
    Ok(())
}

/// The builder has one slot, which another build has. The call is cancelled at the builder that holds it, and at
/// another one, which knows it from the records.
#[tokio::test]
async fn a_build_that_waits_for_a_slot_is_cancelled_at_every_builder_and_never_begins() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let run = Timestamp::now().as_nanosecond();
    let repository = "e2e/cancelled-while-waiting";
    let records = format!("{}/e2e/records/waiting-{run}", testbed.stack.registry.host);
    let with_one_slot = [
        ("max_inflight", "1"),
        ("queue_wait", "5m"),
        ("records_repository", records.as_str()),
    ];
    let owner = BuilderProcess::start_with_settings(&testbed, &with_one_slot).await?;
    let other = BuilderProcess::start_with_settings(&testbed, &with_one_slot[2..]).await?;
    let gate = format!("gate-of-the-only-slot-{run}");
    let config = json!({ "image": testbed.image_name(repository, "first"), "skipPush": true });
    let (client, tar) = (
        owner.build_client_with_own_key()?,
        BuildContext::with_gated_step(base, &gate).tar_with_config_last(&config)?,
    );
    let first = tokio::spawn(async move { client.post_signed(tar).await });
    testbed.wait_for_step(&gate, true).await?;

    for (number, asked) in [&owner, &other].into_iter().enumerate() {
        let (id, tag) = (format!("waiting-{run}-{number}"), format!("{run}-{number}"));
        let config = json!({ "image": testbed.image_name(repository, &tag) });
        let context = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", tag.clone());
        let (client, call_id, tar) = (
            owner.build_client_with_own_key()?,
            id.clone(),
            context.tar_with_config_last(&config)?,
        );
        let waiting = tokio::spawn(async move {
            let times = format!("{run}, {run}");
            let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
            client.post_signed_with_headers(tar, &headers).await
        });
        let path = format!("/builds/{id}");
        testbed
            .wait_until_async_condition(&format!("{id} waits"), async || {
                let (status, answer) = asked.ask(&path).await?;
                Ok(status == 200 && answer["state"] == "waiting")
            })
            .await?;

        let (status, answer) = asked.questions()?.delete(&path).await?;

        assert!(matches!(status, 200 | 202), "{status} {answer:#}");
        let reply = waiting.await??;
        assert_eq!(
            (reply.status, reply.text_field("error").as_str()),
            (409, "cancelled"),
            "{}",
            reply.text
        );
        let (_, answer) = asked.ask(&path).await?;
        assert_eq!(answer["state"], "cancelled", "{answer:#}");
        assert!(testbed.registry.get_manifest(repository, &tag).await?.is_none());
    }
    testbed.open_gate_of_step(&gate)?;
    let reply = first.await??;
    assert_eq!(reply.status, 200, "{}", reply.text);
    for number in 0..2 {
        let (_, answer) = owner.ask(&format!("/builds/waiting-{run}-{number}")).await?;
        assert_eq!(answer["state"], "cancelled", "{answer:#}");
        let image = testbed
            .registry
            .get_manifest(repository, &format!("{run}-{number}"))
            .await?;
        assert!(image.is_none());
    }
    Ok(())
}
