//! Client programs in other languages that build through the gateway's queue, as docs/clients.md shows them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    testbed::Testbed,
    work_dir::{ClientFolder, ProgramOutput, path_in_repository},
};

use crate::clients::build_go_sdk_client;

/// A program that builds through the queue.
#[derive(Clone, Debug)]
struct QueueClient {
    name: &'static str,
    program: PathBuf,
    /// The arguments before those of the call.
    script: Vec<String>,
}

/// The environment of the programs, and a folder in which they run.
struct QueueClientFolderAndRun<'t> {
    testbed: &'t Testbed,
    work_dir: ClientFolder,
    base: &'t str,
    /// A text that is in no other run: the tag of images, and part of what is built.
    run: String,
}

fn path_as_utf8(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

impl QueueClient {
    /// Returns the programs of all languages.
    async fn client_of_each_language() -> Result<Vec<Self>> {
        let script = |name, program: &str, path: &str| -> Result<Self> {
            let script = path_in_repository(path);
            Ok(Self {
                name,
                program: program.into(),
                script: vec![path_as_utf8(&script)?.to_owned()],
            })
        };
        Ok(vec![
            script("curl", "sh", "tests/clients/queued.sh")?,
            script("node", "node", "tests/clients/node/queued.js")?,
            script("python", "/usr/bin/python3", "tests/clients/python/queued.py")?,
            script("php", "php", "tests/clients/php/queued.php")?,
            Self {
                name: "go",
                program: build_go_sdk_client().await?.clone(),
                script: Vec::new(),
            },
        ])
    }

    /// Builds a folder as an image, and waits for the end.
    fn build_through_queue_and_wait(
        &self,
        fixture: &QueueClientFolderAndRun<'_>,
        image: &str,
        folder: &str,
        builder_url: &str,
    ) -> Result<ProgramOutput> {
        match self.name {
            "go" => self.run(fixture, &["queue", folder, image], builder_url),
            _ => self.run(fixture, &["build", image, folder], builder_url),
        }
    }

    /// Cancels a build.
    fn cancel(&self, fixture: &QueueClientFolderAndRun<'_>, id: &str) -> Result<ProgramOutput> {
        self.run(fixture, &["cancel", id], &fixture.testbed.stack.builder_url)
    }

    fn run(
        &self,
        fixture: &QueueClientFolderAndRun<'_>,
        arguments: &[&str],
        builder_url: &str,
    ) -> Result<ProgramOutput> {
        let environment = [
            ("OPENFAAS_URL", fixture.testbed.stack.gateway.url.as_str()),
            (
                "PAYLOAD_SECRET",
                path_as_utf8(&fixture.testbed.stack.payload_secret)?,
            ),
            ("BUILDER_URL", builder_url),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        let arguments: Vec<_> = self
            .script
            .iter()
            .map(String::as_str)
            .chain(arguments.iter().copied())
            .collect();
        fixture
            .work_dir
            .run_program(&self.program, &arguments, &environment, b"")
    }
}

impl<'t> QueueClientFolderAndRun<'t> {
    async fn new(testbed: &'t Testbed) -> Result<Self> {
        let base = testbed.build_busybox_once_and_get_name().await?;
        Ok(Self {
            testbed,
            work_dir: ClientFolder::new(base)?,
            base,
            run: Timestamp::now().as_nanosecond().to_string(),
        })
    }

    /// Writes a context, and returns its folder.
    fn write_context(&self, name: &str, context: &BuildContext) -> Result<String> {
        Ok(path_as_utf8(&self.work_dir.write_build_context(name, context)?)?.to_owned())
    }

    fn image_name_with_tag_of_run(&self, repository: &str) -> String {
        self.testbed.image_name(repository, &self.run)
    }

    async fn registry_has_tag_of_run(&self, repository: &str) -> Result<bool> {
        let manifest = self.testbed.registry.get_manifest(repository, &self.run).await?;
        Ok(manifest.is_some())
    }
}

#[tokio::test]
async fn clients_of_all_languages_build_through_the_queue_and_report_how_the_build_ended() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = QueueClientFolderAndRun::new(&testbed).await?;
    let run = &fixture.run;
    let from =
        |command: &str| BuildContext::dockerfile(format!("FROM {}\nRUN : {run}; {command}\n", fixture.base));
    for client in QueueClient::client_of_each_language().await? {
        let name = client.name;
        let command = format!("echo to {name} by $0");
        let good = fixture.write_context(&format!("good-{name}"), &from(&command).with_file("a", "a"))?;
        let bad = fixture.write_context(&format!("bad-{name}"), &from(&format!("echo to {name}; exit 3")))?;
        let repository = format!("e2e/queued-{name}");
        let image = fixture.image_name_with_tag_of_run(&repository);
        let builder = &testbed.stack.builder_url;

        let built = client.build_through_queue_and_wait(&fixture, &image, &good, builder)?;
        assert_eq!(built.code, 0, "{name}: {built:?}");
        let found = built.last_line_as_json_or_error_text();
        assert_eq!(found["image"], image.as_str(), "{name}: {built:?}");
        let line = format!("to {name} by /bin/sh");
        assert!(built.stderr.contains(&line), "{name} follows the log: {built:?}");
        assert!(fixture.registry_has_tag_of_run(&repository).await?, "{name}");

        let failed = fixture.image_name_with_tag_of_run(&format!("e2e/queued-{name}-bad"));
        let failed = client.build_through_queue_and_wait(&fixture, &failed, &bad, builder)?;
        assert_eq!(failed.code, 1, "{name}: {failed:?}");
        let error = failed.last_line_as_json_or_error_text()["error"]
            .as_str()
            .map(str::to_owned);
        assert!(
            error.is_some_and(|error| error.contains("exit code: 3")),
            "{name}: {failed:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn clients_of_all_languages_store_a_context_that_is_too_large_for_the_queue() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = QueueClientFolderAndRun::new(&testbed).await?;
    let repository = format!("{}/e2e/contexts-of-queued-clients", testbed.stack.registry.host);
    let settings = [("contexts_repository", repository.as_str())];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    for client in QueueClient::client_of_each_language().await? {
        let name = client.name;
        let context = BuildContext::dockerfile("FROM scratch\nCOPY large /\n");
        let context = context.with_file("large", format!("{name} {}\n", fixture.run).repeat(20_000));
        let folder = fixture.write_context(&format!("large-{name}"), &context)?;
        let repository = format!("e2e/queued-large-{name}");
        let built = client.build_through_queue_and_wait(
            &fixture,
            &fixture.image_name_with_tag_of_run(&repository),
            &folder,
            builder.url(),
        )?;
        assert_eq!(built.code, 0, "{name}: {built:?}");
        assert!(fixture.registry_has_tag_of_run(&repository).await?, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn clients_of_all_languages_cancel_a_queued_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = QueueClientFolderAndRun::new(&testbed).await?;
    let clients = QueueClient::client_of_each_language().await?;
    let shell = clients.first().context("a client")?.clone();
    for client in clients {
        let name = client.name;
        let gate = format!("gate-of-cancelled-{name}");
        let dockerfile = format!("FROM {}\nRUN {}\n", fixture.base, gated_command(&gate));
        let image = fixture.image_name_with_tag_of_run(&format!("e2e/queued-cancelled-{name}"));
        let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&json!({ "image": image }))?;
        let queued = testbed.queued.post_signed(tar).await?;
        let id = queued.call_id.context("the 202 has no call ID")?;
        testbed.wait_for_step(&gate, true).await?;

        let cancelled = client.cancel(&fixture, &id)?;
        assert_eq!(cancelled.code, 0, "{name}: {cancelled:?}");
        testbed.wait_for_step(&gate, false).await?;
        let log = shell.run(&fixture, &["log", &id], &testbed.stack.builder_url)?;
        assert_eq!(log.code, 0, "{name}: {log:?}");
        let found = shell.run(&fixture, &["status", &id], &testbed.stack.builder_url)?;
        assert_eq!(
            found.last_line_as_json_or_error_text()["state"],
            "cancelled",
            "{name}: {found:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn faas_cli_builds_through_the_queue_and_its_build_is_found_by_its_id() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = QueueClientFolderAndRun::new(&testbed).await?;
    let repository = "e2e/queued-faas-cli";
    let image = fixture.image_name_with_tag_of_run(repository);
    let stack = format!(
        "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n  shop:\n    lang: small\n    handler: ./shop\n    image: {image}\n"
    );
    fixture.work_dir.write_file("shop.yml", stack)?;
    fixture.work_dir.write_file(
        "shop/index.html",
        format!("{image}, by faas-cli, through the queue"),
    )?;
    let script = path_in_repository("tests/clients/queued-faas-cli.sh");
    let environment = [
        ("OPENFAAS_URL", testbed.stack.gateway.url.as_str()),
        ("PAYLOAD_SECRET", path_as_utf8(&testbed.stack.payload_secret)?),
        ("FAAS_CLI", path_as_utf8(&testbed.stack.tools.faas_cli)?),
    ];
    let built = fixture.work_dir.run_program(
        "sh",
        &[path_as_utf8(&script)?, "shop.yml", "shop", &image],
        &environment,
        b"",
    )?;
    ensure!(built.code == 0, "{built:?}");
    let found = built.last_line_as_json_or_error_text();
    assert_eq!(
        (&found["state"], &found["image"]),
        (&Value::from("success"), &Value::from(image.as_str())),
        "{built:?}"
    );
    assert!(built.stderr.contains("COPY function /www"), "{built:?}");
    assert!(fixture.registry_has_tag_of_run(repository).await?);
    Ok(())
}
