//! Attacks by senders without a valid signature: they must not delay signed builds, and must cost the functions little
//! memory.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext,
    client::HttpReply,
    deployer_process::DeployerProcess,
    flood::{Flood, FloodTargetAndRequestForm, UnsignedSender},
    flood_benchmark::peak_memory_bytes,
    testbed::Testbed,
};

use crate::{
    attack::{AttackDescription, Outcome, Outcomes, describe_reply_status_and_error_or_text},
    world::AttackWorld,
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "unsigned-attributes",
        attempts: "raises builder-fn's memory by ten unsigned bodies of extended attributes",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "unsigned-ratio",
        attempts: "fills the spool by unsigned gzip bodies of less than 1 MiB that become 28 MiB",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "unsigned-idle",
        attempts: "holds every slot by requests whose bodies do not come",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "unsigned-hand-overs",
        attempts: "raises deployer-fn's memory by eighty senders of half an unsigned body of 1,000 KiB",
        stopped_with: &[],
    },
    AttackDescription {
        name: "unsigned-flood",
        attempts: "delays or fails signed builds by 300 senders of every kind at both functions",
        stopped_with: &[],
    },
];

const BYTES_PER_MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_senders_cost_signed_builds_nothing() -> Result<()> {
    // Times and memory are measured, and the daemon's memory in another test, so no other attack may run beside these.
    let testbed = Testbed::find_running_stack()?;
    let _alone = testbed.lock_parts().await;
    let mut outcomes = Outcomes::default();
    outcomes.add_outcome(
        "unsigned-attributes",
        send_extended_attributes_and_measure_memory().await?,
    );
    outcomes.add_outcome(
        "unsigned-ratio",
        fill_spool_with_high_compression_ratios_and_build_signed().await?,
    );
    outcomes.add_outcome("unsigned-idle", hold_idle_bodies().await?);
    outcomes.add_outcome(
        "unsigned-hand-overs",
        send_half_hand_overs_and_measure_memory().await?,
    );
    outcomes.add_outcome(
        "unsigned-flood",
        flood_both_functions_and_measure_builds_and_memory().await?,
    );
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

fn flood_target_of_builder(world: &AttackWorld) -> Result<FloodTargetAndRequestForm> {
    Ok(FloodTargetAndRequestForm {
        address: socket_address_of_http_ip_url(world.builder.url())?,
        path: "/build",
        signature: "X-Build-Signature",
        body: 512 << 10,
    })
}

fn flood_target_of_deployer(deployer: &DeployerProcess) -> Result<FloodTargetAndRequestForm> {
    Ok(FloodTargetAndRequestForm {
        address: socket_address_of_http_ip_url(deployer.url())?,
        path: "/",
        signature: "X-Deploy-Signature",
        body: 500 << 10,
    })
}

fn socket_address_of_http_ip_url(url: &str) -> Result<SocketAddr> {
    Ok(url.trim_start_matches("http://").parse()?)
}

/// Builds as the victim, with a file of `file_bytes` bytes in the context.
async fn build_signed_as_victim(world: &AttackWorld, file_bytes: usize) -> Result<HttpReply> {
    let page = format!("{:?}", Instant::now());
    let source = BuildContext::dockerfile("FROM scratch\nCOPY page more /\n");
    let source = source
        .with_file("page", page)
        .with_file("more", vec![7; file_bytes]);
    let config = json!({ "image": world.victim.image("beside-a-flood", "1"), "skipPush": true });
    world.victim.build(&source, &config).await
}

/// Waits three seconds: the senders connect within the first one, and what a function has read gives no event.
async fn sleep_while_senders_send() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// Sends bodies of extended attributes from ten senders. The attack succeeded if builder-fn's peak memory is over 64
/// MiB, or a signed build fails.
async fn send_extended_attributes_and_measure_memory() -> Result<Outcome> {
    let world = AttackWorld::start().await?;
    build_signed_as_victim(&world, 1000).await?;
    let flood = Flood::start(
        flood_target_of_builder(&world)?,
        &[UnsignedSender::ExtendedAttributes],
        10,
        None,
    )?;
    sleep_while_senders_send().await;
    let reply = build_signed_as_victim(&world, 1000).await?;
    ensure!(
        flood.sent_bytes_without_trickle() > BYTES_PER_MIB,
        "the senders have sent {} bytes",
        flood.sent_bytes_without_trickle()
    );
    let peak = world.builder.peak_memory_bytes()? as u64;
    let evidence = format!(
        "a peak of {} MiB; a signed build: {}; {:?}",
        peak / BYTES_PER_MIB,
        describe_reply_status_and_error_or_text(&reply),
        flood.outcome_counts()
    );
    Ok(Outcome::of_status(
        peak > 64 * BYTES_PER_MIB || reply.status != 200,
        reply.status,
        evidence,
    ))
}

/// Fills the spool with unsigned bodies that decompress to more than it holds. The attack succeeded if a signed build
/// fails.
async fn fill_spool_with_high_compression_ratios_and_build_signed() -> Result<Outcome> {
    let (body_limit, spool_limit) = ((32 * BYTES_PER_MIB).to_string(), (64 * BYTES_PER_MIB).to_string());
    let settings = [("spool_limit", &*spool_limit), ("max_body", &*body_limit)];
    let world = AttackWorld::start_with_settings(&settings, &[]).await?;
    let flood = Flood::start(
        flood_target_of_builder(&world)?,
        &[UnsignedSender::Ratio],
        8,
        None,
    )?;
    // Until the spool is full, or would have been.
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end
        && world.builder.metric_value("slipway_spool_bytes").await? < 52.0 * BYTES_PER_MIB as f64
    {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(flood.complete_head_count() > 0, "the senders have sent nothing");
    let reply = build_signed_as_victim(&world, 8 << 20).await?;
    let evidence = format!(
        "a signed build: {}; {:?}",
        describe_reply_status_and_error_or_text(&reply),
        flood.outcome_counts()
    );
    Ok(Outcome::of_status(reply.status != 200, reply.status, evidence))
}

/// Sends heads without bodies from four senders, to a builder with two slots. The attack succeeded if a signed build
/// fails.
async fn hold_idle_bodies() -> Result<Outcome> {
    let world = AttackWorld::start_with_settings(&[("max_inflight", "2")], &[]).await?;
    let flood = Flood::start(
        flood_target_of_builder(&world)?,
        &[UnsignedSender::IdleBody],
        4,
        None,
    )?;
    sleep_while_senders_send().await;
    ensure!(
        flood.complete_head_count() >= 4,
        "only {} requests were sent",
        flood.complete_head_count()
    );
    let reply = build_signed_as_victim(&world, 1000).await?;
    Ok(Outcome::of_reply(reply.status != 200, &reply))
}

/// Sends half of a hand-over from 80 senders. The attack succeeded if deployer-fn's peak memory is over 32 MiB.
async fn send_half_hand_overs_and_measure_memory() -> Result<Outcome> {
    let world = AttackWorld::start().await?;
    let target = flood_target_of_deployer(&world.deployer)?;
    let before = peak_memory_bytes(world.deployer.process_id())?;
    let flood = Flood::start(target, &[UnsignedSender::HalfBody], 80, None)?;
    sleep_while_senders_send().await;
    ensure!(
        flood.complete_head_count() >= 80,
        "only {} requests were sent",
        flood.complete_head_count()
    );
    let peak = peak_memory_bytes(world.deployer.process_id())?;
    let evidence = format!("from {} to {} MiB", before / BYTES_PER_MIB, peak / BYTES_PER_MIB);
    // Half of what the chart lets the function use.
    Ok(Outcome::without_answer(peak > 32 * BYTES_PER_MIB, evidence))
}

/// Builds once a second beside 300 senders. The attack succeeded if a build fails or is slow, or a function's peak
/// memory is over its limit.
async fn flood_both_functions_and_measure_builds_and_memory() -> Result<Outcome> {
    const FLOOD_DURATION: Duration = Duration::from_secs(12);
    /// The least limit on the time of a build beside the flood.
    const MIN_BUILD_TIME_LIMIT: Duration = Duration::from_secs(10);
    let world = AttackWorld::start().await?;
    build_signed_as_victim(&world, 1000).await?;
    let begun = Instant::now();
    build_signed_as_victim(&world, 30 << 10).await?;
    // On a slow or busy machine, a build takes long without a flood too.
    let time_limit = MIN_BUILD_TIME_LIMIT.max(5 * begun.elapsed());
    let to_builder = Flood::start(flood_target_of_builder(&world)?, &UnsignedSender::ALL, 240, None)?;
    let to_deployer = Flood::start(
        flood_target_of_deployer(&world.deployer)?,
        &UnsignedSender::ALL,
        60,
        None,
    )?;
    let (started, mut durations, mut failed) = (Instant::now(), Vec::new(), Vec::new());
    while started.elapsed() < FLOOD_DURATION {
        let begun = Instant::now();
        match build_signed_as_victim(&world, 30 << 10).await {
            Ok(reply) if reply.status == 200 => durations.push(begun.elapsed()),
            Ok(reply) => failed.push(describe_reply_status_and_error_or_text(&reply)),
            Err(error) => failed.push(format!("{error:#}")),
        }
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed())).await;
    }
    ensure!(!durations.is_empty() || !failed.is_empty(), "nothing was built");
    for (flood, at) in [(&to_builder, "builder-fn"), (&to_deployer, "deployer-fn")] {
        ensure!(flood.complete_head_count() > 0, "nothing was sent to {at}");
    }
    let longest = durations.iter().max().copied().unwrap_or_default();
    let builder = world.builder.peak_memory_bytes()? as u64;
    let deployer = peak_memory_bytes(world.deployer.process_id())?;
    let evidence = format!(
        "{} signed builds, the longest {longest:.1?}, failed: {failed:?}; peaks of {} and {} MiB",
        durations.len(),
        builder / BYTES_PER_MIB,
        deployer / BYTES_PER_MIB
    );
    // Unoptimised code has larger futures and deeper stacks than the limits of 64 and 32 MiB are for.
    let is_harmless = failed.is_empty()
        && longest < time_limit
        && builder < 80 * BYTES_PER_MIB
        && deployer < 40 * BYTES_PER_MIB;
    Ok(Outcome::without_answer(!is_harmless, evidence))
}
