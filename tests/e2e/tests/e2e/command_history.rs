//! `slipway rollback` and `slipway diff` on the real stack, with a builder that keeps records in the stack's registry.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use slipway_e2e::{
    builder_process::BuilderProcess, slipway_command::SlipwayProgram, testbed::Testbed,
    work_dir::ClientFolder,
};

/// The longest time until what is written in the background is there.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(180);

/// The pause before a command is run again.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The exit status of the command if the platform failed.
const PLATFORM_FAILED_STATUS: i32 = 4;

/// A project with one function, and the command that builds it with a builder that keeps records.
struct ProjectWithBuilder {
    folder: ClientFolder,
    slipway: SlipwayProgram,
    /// Ends with the setting.
    builder: BuilderProcess,
}

impl ProjectWithBuilder {
    /// Starts a builder whose records no earlier run has written, and creates a project with the function `name`.
    async fn start_builder_and_create_project(testbed: &Testbed, name: &str) -> Result<Self> {
        testbed.functions.remove_function(name).await?;
        let run = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_nanos();
        let records = format!("{}/e2e/records/{name}-{run}", testbed.stack.registry.host);
        let builder =
            BuilderProcess::start_with_settings(testbed, &[("records_repository", &records)]).await?;
        let folder = ClientFolder::new(testbed.build_busybox_once_and_get_name().await?)?;
        folder.write_file(
            "stack.yaml",
            format!(
                "version: 1.0\nprovider:\n  name: openfaas\n  gateway: http://127.0.0.1:8080\nfunctions:\n  {name}:\n    lang: small\n    handler: ./{name}\n    image: {name}:1\n"
            ),
        )?;
        let slipway = SlipwayProgram::for_testbed(testbed)
            .await?
            .with_variable("SLIPWAY_BUILDER_URL", builder.url());
        Ok(Self {
            folder,
            slipway,
            builder,
        })
    }

    /// Runs the command, which must end with 0, and returns its standard output. It is run again while it says that the
    /// platform fails: the builder waits a few seconds for the registry, which a busy machine may not keep.
    async fn run_retrying_platform_failures(&self, arguments: &[&str]) -> Result<String> {
        let end = Instant::now() + BACKGROUND_TIMEOUT;
        loop {
            let output = self.slipway.run(self.folder.path(), arguments).await?;
            match output.code {
                0 => return Ok(output.stdout),
                PLATFORM_FAILED_STATUS if Instant::now() < end => tokio::time::sleep(POLL_INTERVAL).await,
                _ => bail!("{arguments:?} at {}: {output:?}", self.builder.url()),
            }
        }
    }

    /// Builds and deploys the function with this page, and returns the ID of the build.
    async fn deploy_page_and_get_build_id(&self, name: &str, page: &str) -> Result<String> {
        self.folder.write_file(&format!("{name}/index.html"), page)?;
        let arguments = ["up", "--via", "builder", "--progress", "json"];
        let output = self.slipway.run(self.folder.path(), &arguments).await?;
        ensure!(output.code == 0, "{output:?}");
        let events = output
            .stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut submitted = events.filter(|event| event["event"] == "submitted");
        let id = submitted.next().context("no event of the submission")?;
        Ok(id["id"].as_str().context("no ID")?.to_owned())
    }

    /// Runs a command with `--json` until its answer is as expected: it depends on what is written in the background.
    async fn run_until_json_is(
        &self,
        arguments: &[&str],
        is_expected: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + BACKGROUND_TIMEOUT;
        loop {
            // Read the clock first: the last answer counts, however late it is.
            let is_last = Instant::now() > end;
            let output = self.slipway.run(self.folder.path(), arguments).await?;
            let answer = serde_json::from_str(&output.stdout).unwrap_or_default();
            if is_expected(&answer) {
                return Ok(answer);
            }
            ensure!(!is_last, "{arguments:?}: {output:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

#[tokio::test]
async fn a_rollback_brings_the_version_before_back_and_is_known_as_a_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-rollback";
    let setting = ProjectWithBuilder::start_builder_and_create_project(&testbed, name).await?;
    let first = setting.deploy_page_and_get_build_id(name, "one").await?;
    let second = setting.deploy_page_and_get_build_id(name, "two").await?;
    let list = ["rollback", name, "--list", "--json"];
    let are_ready = |answer: &Value| {
        let versions = answer["versions"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        versions.len() == 2 && versions.iter().all(|version| version["state"] == "ready")
    };
    let versions = setting.run_until_json_is(&list, are_ready).await?;
    assert_eq!(versions["versions"][0]["id"], second.as_str(), "{versions}");
    assert_eq!(versions["versions"][1]["target"], true, "{versions}");
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "two".to_owned())
    );

    let url = format!(
        "{}/function/{name}\n",
        testbed.stack.gateway.url.trim_end_matches('/')
    );
    let arguments = ["rollback", name, "--id"];
    let id = format!("{name}-{first}");
    let printed = setting
        .run_retrying_platform_failures(&[&arguments[..], &[&id]].concat())
        .await?;
    assert_eq!(printed, url);
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "one".to_owned())
    );

    let status: Value = serde_json::from_str(
        &setting
            .run_retrying_platform_failures(&["status", &id, "--json"])
            .await?,
    )?;
    assert_eq!(status["state"], "success", "{status}");
    assert_eq!(status["deployment"]["status"], "ready", "{status}");
    assert_eq!(
        (&status["rollback"]["to"], &status["rollback"]["from"]),
        (&Value::from(first.as_str()), &Value::from(second.as_str()))
    );
    let log = setting.run_retrying_platform_failures(&["logs", &id]).await?;
    assert!(log.contains("[rollback]") && log.contains("[deploy]"), "{log}");
    let builds: Value = serde_json::from_str(
        &setting
            .run_retrying_platform_failures(&["builds", "--function", name, "--json"])
            .await?,
    )?;
    assert_eq!(builds["builds"][0]["id"], id.as_str(), "{builds}");

    // Requested again, it changes nothing; by its ID, the newer version comes back.
    setting
        .run_retrying_platform_failures(&[&arguments[..], &[&id]].concat())
        .await?;
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "one".to_owned())
    );
    setting
        .run_retrying_platform_failures(&["rollback", name, &second])
        .await?;
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "two".to_owned())
    );
    let unknown = setting
        .slipway
        .run(setting.folder.path(), &["rollback", name, "no-such-version"])
        .await?;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""), "{unknown:?}");
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_difference_names_the_first_step_without_its_cache_and_the_file_that_changed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-diff";
    let setting = ProjectWithBuilder::start_builder_and_create_project(&testbed, name).await?;
    setting.folder.write_file(&format!("{name}/kept.txt"), "stays")?;
    // The pages of each run are new, so that no step is cached from another one.
    let run = format!("of {:?}", SystemTime::now());
    let first = setting
        .deploy_page_and_get_build_id(name, &format!("one {run}"))
        .await?;
    let second = setting
        .deploy_page_and_get_build_id(name, &format!("two {run}"))
        .await?;
    let recorded = |answer: &Value| answer["firstMiss"].is_object();
    let difference = setting
        .run_until_json_is(&["diff", &first, &second, "--json"], recorded)
        .await?;

    let miss = &difference["firstMiss"];
    assert!(
        miss["step"]
            .as_str()
            .is_some_and(|step| step.contains("COPY function")),
        "{difference}"
    );
    let cause = &miss["causes"][0];
    assert_eq!(
        (&cause["kind"], &cause["path"]),
        (&Value::from("file"), &Value::from("function/index.html")),
        "{difference}"
    );
    assert_eq!(
        difference["files"]["changed"],
        serde_json::json!(["function/index.html"])
    );
    for build in ["a", "b"] {
        assert!(
            difference[build]["imageBytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{difference}"
        );
    }
    let text = setting
        .run_retrying_platform_failures(&["diff", &first, &second])
        .await?;
    assert!(
        text.contains("function/index.html") && text.contains("COPY function"),
        "{text}"
    );
    assert!(!difference.to_string().contains(&run), "no content: {difference}");
    testbed.functions.remove_function(name).await
}
