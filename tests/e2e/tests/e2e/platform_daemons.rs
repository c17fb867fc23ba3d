//! Tests builds on daemons that are bound to platforms. Both run on this machine, whatever platforms they are declared
//! to be, so a step runs only for a platform that the machine has.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    buildctl::{BuildNamesAndCachedSteps, Buildctl},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    testbed::Testbed,
};
use tokio::sync::RwLockReadGuard;

/// The number of the first line of a split build's second part.
const FIRST_LINE_OF_SECOND_PART: u64 = 1_000_000_000_001;

/// A daemon that is bound to nothing, one that is bound to a platform, and two builders with both of them.
struct PlatformDaemons {
    testbed: Testbed,
    daemons: [BuildkitDaemon; 2],
    builders: [BuilderProcess; 2],
    /// The repository of the images of this run.
    repository: String,
    _parts: RwLockReadGuard<'static, ()>,
}

impl PlatformDaemons {
    async fn start(bound_platform: &str) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = testbed.share_parts().await;
        let daemons = [
            BuildkitDaemon::start(&testbed, "").await?,
            BuildkitDaemon::start(&testbed, "").await?,
        ];
        let url = format!(
            "{},{bound_platform}={}",
            daemons[0].socket_url(),
            daemons[1].socket_url()
        );
        let settings = [("buildkit_url", url.as_str())];
        let builders = [
            BuilderProcess::start_with_settings(&testbed, &settings).await?,
            BuilderProcess::start_with_settings(&testbed, &settings).await?,
        ];
        for builder in &builders {
            builder.wait_until_ready().await?;
        }
        let run = Timestamp::now().as_nanosecond();
        Ok(Self {
            testbed,
            daemons,
            builders,
            repository: format!("e2e/platforms/{run}"),
            _parts: parts,
        })
    }

    /// Builds a context for `platforms`, and returns the answer.
    async fn build(
        &self,
        context: &BuildContext,
        tag: &str,
        platforms: &[&str],
        more: Value,
    ) -> Result<Value> {
        let mut config =
            json!({"image": self.testbed.image_name(&self.repository, tag), "platforms": platforms});
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        let tar = context.tar_with_config_last(&config)?;
        let headers = [("X-Call-Id", self.call_id(tag))];
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let reply = self.builders[0]
            .build_client_with_own_key()?
            .post_signed_with_headers(tar, &headers)
            .await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
        Ok(reply.json_or_error_text())
    }

    fn call_id(&self, tag: &str) -> String {
        format!("{}-{tag}", self.repository.replace('/', "-"))
    }

    /// Returns the builds of a call that each daemon's history has.
    fn builds_of_call(&self, tag: &str) -> Result<Vec<Vec<BuildNamesAndCachedSteps>>> {
        let call_id = self.call_id(tag);
        let histories = self.daemons.iter().map(|daemon| {
            let builds = Buildctl::new(&self.testbed, daemon)?.running_and_ended_builds()?;
            Ok(builds
                .into_iter()
                .filter(|build| build.call_id == call_id)
                .collect())
        });
        histories.collect()
    }

    async fn manifest(&self, reference: &str) -> Result<(String, Value)> {
        let found = self
            .testbed
            .registry
            .get_manifest(&self.repository, reference)
            .await?;
        let found = found.with_context(|| format!("the registry has no {reference}"))?;
        Ok((found.digest, found.body))
    }
}

#[tokio::test]
async fn a_build_for_two_platforms_is_built_on_two_daemons_and_pushed_as_one_index_with_attestations()
-> Result<()> {
    let setup = PlatformDaemons::start("linux/arm64").await?;
    let context = BuildContext::dockerfile(
        "FROM scratch\nARG TARGETPLATFORM\nLABEL built.for=$TARGETPLATFORM\nCOPY file /file\n",
    )
    .with_file("file", "the same on all platforms");
    let platforms = ["linux/amd64", "linux/arm64"];
    let answer = setup
        .build(&context, "both", &platforms, json!({"provenance": "min"}))
        .await?;

    let builds = setup.builds_of_call("both")?;
    assert_eq!(
        builds.iter().map(Vec::len).collect::<Vec<_>>(),
        [1, 1],
        "{builds:?}"
    );
    let (digest, index) = setup.manifest("both").await?;
    assert_eq!(answer["digest"], digest, "{answer:#}");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    let manifests = index["manifests"].as_array().context("no manifests")?;
    let (images, attestations): (Vec<_>, Vec<_>) = manifests
        .iter()
        .partition(|manifest| manifest["platform"]["os"] == "linux");
    let architectures: Vec<_> = images
        .iter()
        .map(|image| &image["platform"]["architecture"])
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"], "{index:#}");
    for (image, platform) in images.iter().zip(platforms) {
        let own = image["digest"].as_str().context("no digest")?;
        let attested = attestations
            .iter()
            .filter(|attestation| attestation["annotations"]["vnd.docker.reference.digest"] == own);
        assert_eq!(attested.count(), 1, "{index:#}");
        let (_, manifest) = setup.manifest(own).await?;
        let config = manifest["config"]["digest"].as_str().context("no config")?;
        let config = setup
            .testbed
            .registry
            .get_json_blob(&setup.repository, config)
            .await?;
        assert_eq!(config["config"]["Labels"]["built.for"], platform, "{config:#}");
        assert_eq!(
            format!("linux/{}", config["architecture"].as_str().unwrap_or_default()),
            platform
        );
    }
    assert_eq!(attestations.len(), 2);

    // One platform alone goes to its daemon as a whole.
    let alone = setup
        .build(&context, "alone", &["linux/arm64"], json!({}))
        .await?;
    let builds = setup.builds_of_call("alone")?;
    assert_eq!(
        builds.iter().map(Vec::len).collect::<Vec<_>>(),
        [0, 1],
        "{builds:?}"
    );
    let (digest, manifest) = setup.manifest("alone").await?;
    assert_eq!(alone["digest"], digest);
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    Ok(())
}

#[tokio::test]
async fn steps_run_on_the_daemon_of_their_platform_and_every_builder_has_the_same_log() -> Result<()> {
    let setup = PlatformDaemons::start("linux/amd64/v2").await?;
    let base = setup.testbed.build_busybox_once_and_get_name().await?;
    let context = BuildContext::dockerfile(format!(
        "FROM {base}\nARG TARGETPLATFORM\nRUN for n in 1 2 3; do echo \"$TARGETPLATFORM line $n\"; done\n"
    ));
    let platforms = ["linux/amd64", "linux/amd64/v2"];
    let answer = setup.build(&context, "steps", &platforms, json!({})).await?;
    let (digest, index) = setup.manifest("steps").await?;
    assert_eq!(answer["digest"], digest);
    let variants: Vec<_> = index["manifests"]
        .as_array()
        .context("no manifests")?
        .iter()
        .map(|image| image["platform"]["variant"].as_str())
        .collect();
    assert_eq!(variants, [None, Some("v2")], "{index:#}");

    let mut logs = Vec::new();
    for builder in &setup.builders {
        let questions = builder.questions()?;
        logs.push(
            questions
                .read_numbered_lines_and_terminal_record(&setup.call_id("steps"))
                .await?,
        );
    }
    let (lines, terminal) = &logs[0];
    assert_eq!(*lines, logs[1].0);
    assert_eq!(terminal["digest"], digest, "{terminal:#}");
    let numbers: BTreeSet<_> = lines.iter().map(|(number, _)| number).collect();
    assert_eq!(numbers.len(), lines.len(), "each number once");
    for (platform, is_second) in [("linux/amd64", false), ("linux/amd64/v2", true)] {
        let found: Vec<_> = lines
            .iter()
            .filter(|(_, line)| line.contains(&format!(" {platform} line ")))
            .collect();
        assert_eq!(found.len(), 3, "{lines:#?}");
        assert!(
            found
                .iter()
                .all(|(number, _)| (*number >= FIRST_LINE_OF_SECOND_PART) == is_second)
        );
        let step = format!("[{platform} 2/2] RUN");
        assert!(
            lines.iter().any(|(_, line)| line.contains(&step)),
            "no {step}: {lines:#?}"
        );
    }
    let in_answer = answer["log"].as_array().context("no log")?;
    let output = in_answer
        .iter()
        .filter(|line| line.as_str().is_some_and(|line| line.contains(" line ")));
    assert_eq!(
        output.count(),
        6 + 4,
        "the output, and the beginnings and ends of the two steps: {in_answer:#?}"
    );
    Ok(())
}
