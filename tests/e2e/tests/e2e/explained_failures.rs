//! The cases of `tests/failures` that can be run here: the hint in the real answer is the one of the table; and
//! functions that do not run, whose last lines are in the answer.

use std::{path::Path, time::SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, deployer_process::DeployerProcess,
    deployer_route::DeployerRoute, testbed::Testbed,
};

/// The number of builds that run at the same time.
const CONCURRENT_BUILDS: usize = 4;

/// The name of the base image in the case files, in whose place that of the stack is built on.
const BASE_IMAGE_IN_CASE_FILES: &str = "127.0.0.1:5055/debian:1";

/// The least number of cases that are run.
const LIVE_CASES_MIN: usize = 20;

/// Reads the cases whose texts depend on nothing but BuildKit and a shell: those with `live`.
fn live_cases() -> Result<Vec<(String, Value)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../failures/cases/seeded");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let case: Value = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        if case["live"] == true {
            let name = path.file_stem().context("no name")?.to_string_lossy();
            cases.push((name.into_owned(), case));
        }
    }
    Ok(cases)
}

/// Builds a case; returns how its hint differs from the expected one, or `None` if it does not.
async fn build_case_and_describe_wrong_hint(
    builder: &BuilderProcess,
    image: &str,
    base: &str,
    case: &Value,
) -> Result<Option<String>> {
    let files = case["files"].as_object().context("a case without files")?;
    let mut source = BuildContext::new();
    for (path, content) in files {
        let content = content
            .as_str()
            .context("no text")?
            .replace(BASE_IMAGE_IN_CASE_FILES, base);
        source = source.with_file(path, content);
    }
    let mut config = json!({"image": image, "skipPush": true});
    for (key, value) in case["config"].as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;
    let hint = &reply.json_or_error_text()["hint"];
    let expected = &case["expected"];
    let step_line = &hint["step"]["line"];
    let is_expected = hint["kind"] == expected["kind"]
        && (expected["file"].is_null() || hint["file"] == expected["file"])
        && (expected["line"].is_null() || hint["line"] == expected["line"])
        && (expected["step_line"].is_null() || *step_line == expected["step_line"]);
    Ok((!is_expected).then(|| format!("expected {expected}, got {hint}: {}", reply.text)))
}

#[tokio::test]
async fn failures_of_the_real_buildkit_have_the_hints_of_the_table() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("max_inflight", "4")]).await?;
    let image = testbed.image_name("e2e/explained-failures", "1");
    let cases = live_cases()?;
    ensure!(
        cases.len() >= LIVE_CASES_MIN,
        "there are only {} cases",
        cases.len()
    );

    let (builder, image) = (&builder, &image);
    let compared = stream::iter(&cases).map(|(name, case)| async move {
        let difference = build_case_and_describe_wrong_hint(builder, image, base, case).await?;
        anyhow::Ok(difference.map(|difference| format!("{name}: {difference}")))
    });
    let compared: Vec<Result<Option<String>>> = compared.buffer_unordered(CONCURRENT_BUILDS).collect().await;
    let differences: Vec<String> = compared
        .into_iter()
        .filter_map(Result::transpose)
        .collect::<Result<_>>()?;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// A ready timeout that is long enough for a function to be started on a busy machine, and to write something.
const READY_TIMEOUT_SETTING: (&str, &str) = ("ready_timeout", "20s");

#[tokio::test]
async fn the_last_lines_of_a_function_that_does_not_run_are_in_the_answer_and_its_hint() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let deployer =
        DeployerProcess::start(&testbed, &testbed.stack.gateway.url, &[READY_TIMEOUT_SETTING]).await?;
    let route = DeployerRoute::start_forwarding_to(deployer.url()).await?;
    let builder =
        BuilderProcess::start_with_settings(&testbed, &[("gateway_url", route.gateway_url())]).await?;
    let run = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_nanos();
    // The stack's provider counts a replica as available once the function listens.
    for (name, command, kind, line) in [
        (
            "exits-with-a-message",
            "echo MAIL_FROM is not set >&2; exit 3",
            "function-not-running",
            "MAIL_FROM is not set",
        ),
        (
            "listens-on-another-port",
            "echo listens on 3000; trap 'exit 0' TERM; sleep 3600 & wait",
            "function-not-running",
            "listens on 3000",
        ),
        // The server answers with 404, because it has no such file.
        (
            "answers-its-probe-with-an-error",
            "echo serves no health; trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & wait",
            "probe-failed",
            "serves no health",
        ),
    ] {
        testbed.functions.remove_function(name).await?;
        let source = BuildContext::dockerfile(format!(
            "FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"{command}\"]\n"
        ));
        let image = testbed.image_name(&format!("e2e/{name}"), "1");
        let config = json!({"image": image, "deploy": {"service": name}});
        let id = format!("{name}-{run}");
        let client = builder.build_client_with_own_key()?;
        let reply = client
            .post_signed_with_headers(source.tar_with_config_last(&config)?, &[("X-Call-Id", &id)])
            .await?;
        let answer = reply.json_or_error_text();
        assert_eq!(answer["deployment"]["status"], "rolled_back", "{answer:#}");
        let reasons = answer["deployment"]["reasons"].to_string();
        assert!(
            reasons.contains("; its log ends with: ") && reasons.contains(line),
            "{reasons}"
        );
        let hint = &answer["hint"];
        assert_eq!(hint["kind"], kind, "{answer:#}");
        assert!(
            hint["next"].as_str().is_some_and(|next| !next.is_empty()),
            "{answer:#}"
        );
        let log = hint["log"].as_array().into_iter().flatten();
        assert_eq!(log.last(), Some(&json!(line)), "{answer:#}");
        // The same is known of the build afterwards.
        let (_, build) = builder.ask(&format!("/builds/{id}")).await?;
        assert_eq!(build["hint"], *hint, "{build:#}");
        assert_eq!(testbed.functions.function_status(name).await?, None);
    }
    Ok(())
}
