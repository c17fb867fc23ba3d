//! Cached steps, as they are reported while a build runs: by every route, in every form.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    slipway_command::SlipwayProgram,
    testbed::Testbed,
};
use tokio::time::timeout;

use super::slipway_command::create_project;

/// The longest time until the command shows a cached step.
const SHOW_TIMEOUT: Duration = Duration::from_secs(120);

/// A command that writes more than the Community Edition's gateway holds back of a stream: about 6 KB, until more
/// comes.
const WRITE_MORE_THAN_GATEWAY_HOLDS: &str =
    "seq 1 200 | sed 's/$/ of some lines that fill the buffers of the gateway/'";

/// The name of a step of the small template that is cached in each build but the first.
const CACHED_STEP: &str = "[3/4] RUN mkdir";

#[tokio::test]
async fn a_cached_step_is_marked_while_a_later_step_runs_by_every_route() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-cached";
    let folder = create_project(&testbed, name, &format!("{:?}", SystemTime::now())).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    let write_gated = |gate: &str| {
        let step = format!(
            "RUN {WRITE_MORE_THAN_GATEWAY_HOLDS}; {}\nUSER 1000",
            gated_command(gate)
        );
        let gated = dockerfile.replace("USER 1000", &step);
        folder.write_file("template/small/Dockerfile", gated)
    };
    // Its steps are in the cache after that.
    let output = slipway.run(folder.path(), &["up", "--via", "builder"]).await?;
    assert_eq!(output.code, 0, "{output:?}");

    for (via, form) in [
        ("builder", "plain"),
        ("gateway", "json"),
        ("queue", "plain"),
        ("queue", "json"),
    ] {
        let gate = format!("gate-cmd-cached-{via}-{form}");
        write_gated(&gate)?;
        let mut up = slipway.start(folder.path(), &["up", "--via", via, "--progress", form])?;
        let reading = async {
            let mut printed = String::new();
            loop {
                printed.push_str(&up.read_stderr_lines_until_one_contains(CACHED_STEP).await?);
                let last = printed.lines().last().unwrap_or_default();
                let is_marked = match form {
                    "json" => serde_json::from_str::<Value>(last)?["cached"] == true,
                    _ => last.contains(&format!("=> CACHED {CACHED_STEP}")),
                };
                if is_marked {
                    return Ok::<_, anyhow::Error>(printed);
                }
            }
        };
        let printed = timeout(SHOW_TIMEOUT, reading)
            .await
            .with_context(|| format!("{via}, {form}: the cached step is not marked"))??;
        // The build cannot have ended.
        testbed.wait_for_step(&gate, true).await?;
        testbed.open_gate_of_step(&gate)?;
        let output = up.wait_for_end_and_rest_of_stderr().await?;
        assert_eq!(output.code, 0, "{via}: {output:?}");
        let printed = printed + &output.stderr;
        let is_marked = |line: &&str| line.contains("CACHED") || line.contains("\"cached\":true");
        let marked: Vec<_> = printed.lines().filter(is_marked).collect();
        let marks_of = |step: &str| marked.iter().filter(|line| line.contains(step)).count();
        assert_eq!(
            (
                marks_of("[2/4] COPY"),
                marks_of(CACHED_STEP),
                marks_of("[4/4] RUN")
            ),
            (1, 1, 0),
            "{via}, {form}: {printed}"
        );
    }
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn the_log_of_an_ended_build_names_its_cached_steps_and_numbers_its_lines_without_them() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let run = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_nanos();
    let now = run.to_string();
    let context = |last: &str| {
        BuildContext::dockerfile(format!(
            "FROM {base}\nCOPY now /now\nRUN echo same\nRUN echo {last}\n"
        ))
        .with_file("now", now.clone())
    };
    let config = json!({"image": testbed.image_name("e2e/cached-log", "1"), "skipPush": true});
    let client = builder.build_client_with_own_key()?;
    let mut seen = Vec::new();
    for last in ["one", "two"] {
        let id = format!("cached-log-{last}-{run}");
        let tar = context(last).tar_with_config_last(&config)?;
        let reply = client
            .post_signed_with_headers(tar, &[("X-Call-Id", &id)])
            .await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let questions = builder.questions()?;
        let records = questions.open_log_unless_too_many_readers(&id, 1).await?;
        let mut records = records.context("too many readers")?;
        let mut cached = Vec::new();
        let mut numbers = Vec::new();
        while let Some(record) = records.next_record_below_64_kib().await? {
            let lines = record["log"].as_array().map_or(0, Vec::len);
            let names = record["cached"].as_array().into_iter().flatten();
            cached.extend(names.filter_map(Value::as_str).map(str::to_owned));
            if lines > 0 {
                numbers.push(record["seq"].as_u64().context("no number")?);
            }
        }
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        seen.push(cached);
    }
    let has = |cached: &[String], step: &str| cached.iter().any(|name| name == step);
    assert!(!has(&seen[0], "[3/4] RUN echo same"), "{seen:?}");
    assert!(has(&seen[1], "[3/4] RUN echo same"), "{seen:?}");
    assert!(!has(&seen[1], "[4/4] RUN echo two"), "{seen:?}");
    Ok(())
}
