//! Tests a builder with several BuildKit daemons. Where builds ran is read from the daemons' own histories.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    build_context::BuildContext,
    buildctl::{BuildNamesAndCachedSteps, Buildctl},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    client::HttpReply,
    testbed::Testbed,
};
use tokio::sync::RwLockReadGuard;

/// The number of functions that are built and built again.
const FUNCTION_COUNT: usize = 60;

/// The number of builds at the same time.
const CONCURRENT_BUILDS: usize = 3;

/// Several BuildKit daemons, each with an empty cache.
struct DaemonPool {
    testbed: Testbed,
    daemons: Vec<BuildkitDaemon>,
    /// A name that no other run has used.
    run: String,
    _parts: RwLockReadGuard<'static, ()>,
}

impl DaemonPool {
    async fn start(count: usize) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = testbed.share_parts().await;
        let mut daemons = Vec::new();
        for _ in 0..count {
            daemons.push(BuildkitDaemon::start(&testbed, "").await?);
        }
        Ok(Self {
            testbed,
            daemons,
            run: Timestamp::now().as_nanosecond().to_string(),
            _parts: parts,
        })
    }

    /// Starts a builder with the first `daemon_count` daemons, and waits until it is ready.
    async fn start_ready_builder(
        &self,
        daemon_count: usize,
        settings: &[(&str, &str)],
    ) -> Result<BuilderProcess> {
        let urls: Vec<_> = self.daemons[..daemon_count]
            .iter()
            .map(BuildkitDaemon::socket_url)
            .collect();
        let urls = urls.join(",");
        let mut all = vec![("buildkit_url", urls.as_str())];
        all.extend_from_slice(settings);
        let builder = BuilderProcess::start_with_settings(&self.testbed, &all).await?;
        builder.wait_until_ready().await?;
        Ok(builder)
    }

    /// Returns the name of an image of this run.
    fn image_name_of_run(&self, name: &str) -> String {
        self.testbed
            .image_name(&format!("e2e/pool/{}/{name}", self.run), "1")
    }

    /// Returns the tar of a function whose build takes no time.
    fn small_tar_without_push(&self, name: &str) -> Result<Vec<u8>> {
        let config = json!({ "image": self.image_name_of_run(name), "skipPush": true });
        BuildContext::dockerfile("FROM scratch\nCOPY file /file\n")
            .with_file("file", name)
            .tar_with_config_last(&config)
    }

    /// Returns the tar of a function whose build runs until the gate is opened.
    async fn gated_tar_without_push(&self, name: &str, gate: &str) -> Result<Vec<u8>> {
        let config = json!({ "image": self.image_name_of_run(name), "skipPush": true });
        let base = self.testbed.build_busybox_once_and_get_name().await?;
        BuildContext::with_gated_step(base, gate).tar_with_config_last(&config)
    }

    /// Reads the history of every daemon.
    fn histories(&self) -> Result<Vec<Vec<BuildNamesAndCachedSteps>>> {
        let daemons = self.daemons.iter();
        daemons
            .map(|daemon| Buildctl::new(&self.testbed, daemon)?.running_and_ended_builds())
            .collect()
    }

    /// Returns the numbers of the daemons whose histories have a build of the image, in order, once for each build.
    fn daemon_number_of_each_build_of(&self, image: &str) -> Result<Vec<usize>> {
        let histories = self.histories()?;
        let builds = histories.iter().enumerate();
        let builds = builds.flat_map(|(number, history)| history.iter().map(move |build| (number, build)));
        Ok(builds
            .filter(|(_, build)| build.image == image)
            .map(|(number, _)| number)
            .collect())
    }
}

fn assert_built(reply: &HttpReply) -> Result<Value> {
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    Ok(reply.json_or_error_text())
}

/// Sends a build to the builder itself, with the headers of the gateway's queue.
async fn post_with_headers_of_queue(
    builder: &BuilderProcess,
    tar: Vec<u8>,
    call_id: &str,
) -> Result<HttpReply> {
    let time = Timestamp::now().as_nanosecond().to_string();
    let headers = [
        ("X-Call-Id", call_id),
        ("X-Start-Time", time.as_str()),
        ("X-Start-Time", time.as_str()),
    ];
    builder
        .build_client_with_own_key()?
        .post_signed_with_headers(tar, &headers)
        .await
}

#[tokio::test]
async fn at_least_95_percent_of_rebuilds_land_on_the_daemon_that_has_their_cache() -> Result<()> {
    let pool = DaemonPool::start(3).await?;
    let names: Vec<_> = (0..FUNCTION_COUNT)
        .map(|number| format!("function-{number}"))
        .collect();
    let build_all = async |names: &[String]| -> Result<()> {
        // Nothing about the first round is left in the second one's process.
        let builder = pool.start_ready_builder(3, &[]).await?;
        let client = builder.build_client_with_own_key()?;
        let builds = names.iter().map(|name| {
            let (client, tar) = (client.clone(), pool.small_tar_without_push(name));
            async move { assert_built(&client.post_signed(tar?).await?) }
        });
        futures_util::stream::iter(builds)
            .buffer_unordered(CONCURRENT_BUILDS)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(())
    };
    build_all(&names).await?;
    let cold = pool.histories()?;
    let mut shuffled = names.clone();
    shuffled.sort_by_key(|name| Sha256::digest(format!("{}{name}", pool.run)));
    build_all(&shuffled).await?;
    let warm = pool.histories()?;

    let mut hits = 0;
    for name in &names {
        let image = pool.image_name_of_run(name);
        let builds_of = |history: &[BuildNamesAndCachedSteps]| -> Vec<BuildNamesAndCachedSteps> {
            history
                .iter()
                .filter(|build| build.image == image)
                .cloned()
                .collect()
        };
        let first = cold.iter().position(|history| !builds_of(history).is_empty());
        let first = first.with_context(|| format!("no daemon has built {image}"))?;
        let after = builds_of(&warm[first]);
        let is_cached = after.iter().any(|build| build.cached_steps > 0);
        hits += usize::from(after.len() == 2 && is_cached);
    }
    let spread: Vec<_> = cold.iter().map(Vec::len).collect();
    println!("{hits} of {FUNCTION_COUNT} rebuilds were warm; first builds by daemon: {spread:?}");
    assert!(hits * 100 >= FUNCTION_COUNT * 95, "{hits} of {FUNCTION_COUNT}");
    assert!(spread.iter().all(|builds| *builds > 0), "{spread:?}");
    Ok(())
}

#[tokio::test]
async fn a_call_that_two_builders_get_is_built_once_also_with_a_daemon_added_in_between() -> Result<()> {
    const GATE_NAME: &str = "gate-of-pool-twice";
    let pool = DaemonPool::start(3).await?;
    let before = pool.start_ready_builder(2, &[]).await?;
    let after = pool.start_ready_builder(3, &[("max_inflight", "1")]).await?;
    // A function that the second builder would build on the new daemon.
    let mut chosen = None;
    for number in 0..64 {
        let name = format!("twice-{number}");
        assert_built(
            &after
                .build_client_with_own_key()?
                .post_signed(pool.small_tar_without_push(&name)?)
                .await?,
        )?;
        if pool.daemon_number_of_each_build_of(&pool.image_name_of_run(&name))? == [2] {
            chosen = Some(name);
            break;
        }
    }
    let name = chosen.context("no function prefers the new daemon")?;
    let call_id = format!("twice-{}", pool.run);
    let tar = pool.gated_tar_without_push(&name, GATE_NAME).await?;

    let first = post_with_headers_of_queue(&before, tar.clone(), &call_id);
    let second = async {
        pool.testbed.wait_for_step(GATE_NAME, true).await?;
        let delivered = async {
            after.wait_until_not_ready().await?;
            pool.testbed.open_gate_of_step(GATE_NAME)
        };
        let (reply, opened) = tokio::join!(
            post_with_headers_of_queue(&after, tar.clone(), &call_id),
            delivered
        );
        opened?;
        reply
    };
    let (first, second) = tokio::join!(first, second);
    let (first, second) = (assert_built(&first?)?, assert_built(&second?)?);
    assert_eq!(first["digest"], second["digest"]);
    let third = assert_built(&post_with_headers_of_queue(&after, tar, &call_id).await?)?;
    assert_eq!(first["digest"], third["digest"]);

    let histories = pool.histories()?;
    let builds = histories
        .iter()
        .flatten()
        .filter(|build| build.call_id == call_id);
    assert_eq!(builds.count(), 1, "{histories:?}");
    Ok(())
}

#[tokio::test]
async fn builds_go_on_after_the_loss_of_a_daemon_whose_running_build_is_retried_once() -> Result<()> {
    const GATE_NAME: &str = "gate-of-pool-lost";
    let mut pool = DaemonPool::start(3).await?;
    let builder = pool.start_ready_builder(3, &[]).await?;
    let (ready, text) = builder.get("/ready").await?;
    assert_eq!(
        (ready, text.as_str()),
        (200, "OK\n3 of 3 BuildKit daemons answer\n")
    );
    let tar = pool.gated_tar_without_push("lost", GATE_NAME).await?;
    let call_id = format!("lost-{}", pool.run);
    let running = post_with_headers_of_queue(&builder, tar, &call_id);
    let others = async {
        pool.testbed.wait_for_step(GATE_NAME, true).await?;
        let histories = pool.histories()?;
        let lost = histories
            .iter()
            .position(|history| history.iter().any(|build| build.call_id == call_id));
        let lost = lost.context("no daemon runs the build")?;
        pool.daemons[lost].kill_without_unmounting()?;
        let start = Instant::now();
        for number in 0..12 {
            let tar = pool.small_tar_without_push(&format!("after-loss-{number}"))?;
            assert_built(&builder.build_client_with_own_key()?.post_signed(tar).await?)?;
            if number == 0 {
                println!("the first build after the loss took {:?}", start.elapsed());
            }
        }
        Ok::<_, anyhow::Error>(lost)
    };
    tokio::pin!(running);
    let lost = tokio::select! {
        lost = others => lost?,
        reply = &mut running => {
            let reply = reply?;
            anyhow::bail!("the build ended with its gate closed: {} {}", reply.status, reply.text);
        }
    };
    // The step of the lost daemon may still run beside that of the retry.
    let opening = async {
        loop {
            pool.testbed.open_gate_of_step(GATE_NAME).ok();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reply = tokio::select! {
        reply = &mut running => reply?,
        () = opening => anyhow::bail!("the gate is opened until the build ends"),
    };
    assert_built(&reply)?;
    let (status, record) = builder.ask(&format!("/builds/{call_id}")).await?;
    assert_eq!((status, &record["attempts"]), (200, &json!(2)), "{record:#}");

    let text = builder.metrics_text().await?;
    let counted = format!(
        "slipway_buildkit_builds_total{{daemon=\"{}\"}} ",
        pool.daemons[lost].socket_url()
    );
    ensure!(text.contains(&counted), "no {counted} in {text}");
    let answering = "slipway_buildkit_daemons{state=\"answering\"} 2";
    let end = Instant::now() + Duration::from_secs(60);
    while !builder.metrics_text().await?.contains(answering) {
        ensure!(Instant::now() < end, "{answering} is not shown");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (ready, text) = builder.get("/ready").await?;
    assert_eq!(
        (ready, text.as_str()),
        (200, "OK\n2 of 3 BuildKit daemons answer\n")
    );
    Ok(())
}
