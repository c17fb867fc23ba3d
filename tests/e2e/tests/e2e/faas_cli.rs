//! faas-cli: the packaged release, which signs, queues and deploys, and a current one, which calls a builder
//! itself.

mod stack;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    builder_process::BuilderProcess,
    client::sign_body,
    recorded::{BuildBodyVariables, FaasCliRecording, faas_cli_outcome},
    registry::ManifestWithDigest,
    testbed::Testbed,
    work_dir::ClientFolder,
};

/// A path of the deployed function, and the page there.
const PAGE_PATH_AND_TEXT: (&str, &str) = ("/handler.txt", "hello\n");

/// The time that a deployed function may take until it listens, on a busy machine.
const FUNCTION_START_LIMIT: Duration = Duration::from_secs(60);

/// The result of a faas-cli command.
#[derive(Debug)]
struct CommandResult {
    code: i32,
    output: String,
}

/// A function to build: its name, its image without a tag, and its Dockerfile.
struct FunctionWithDockerfile<'a> {
    name: &'a str,
    repository: String,
    dockerfile: String,
}

impl<'a> FunctionWithDockerfile<'a> {
    /// Describes a function that serves its handler's folder as web pages; `more_steps` are additional steps of its
    /// Dockerfile.
    fn page_server(testbed: &Testbed, base: &str, name: &'a str, more_steps: &str) -> Self {
        Self {
            name,
            repository: format!("{}/e2e/{name}", testbed.stack.registry.host),
            dockerfile: format!(
                "FROM {base}\nARG ADDITIONAL_PACKAGE\nARG NOTE=none\n\
                 LABEL note=\"$NOTE\" packages=\"$ADDITIONAL_PACKAGE\"\nCOPY function /www\n{more_steps}\n\
                 RUN mkdir -p /www/_ && echo OK > /www/_/health && cp /www/_/health /www/_/ready\nUSER 1000\n\
                 CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
            ),
        }
    }
}

/// A faas-cli that supports `--remote-builder`.
enum FaasCliProgramOrRecording<'a> {
    /// The stack's faas-cli, if `SLIPWAY_FAAS_CLI` named a current one.
    Program(&'a Testbed),
    /// The recorded faas-cli.
    Recorded(&'a Testbed, FaasCliRecording),
}

impl<'a> FaasCliProgramOrRecording<'a> {
    /// Returns the recorded faas-cli, and the stack's if its help shows that it is a current one.
    async fn recorded_and_stacks_if_current(testbed: &'a Testbed) -> Result<Vec<Self>> {
        let mut all = vec![Self::Recorded(testbed, FaasCliRecording::read_recording()?)];
        if stacks_faas_cli_supports_remote_builder(testbed, &ClientFolder::new("scratch")?).await? {
            all.push(Self::Program(testbed));
        }
        Ok(all)
    }

    /// Runs one of the recorded commands.
    async fn run_recorded_command(
        &self,
        command_name: &str,
        builder_url: &str,
        function: &FunctionWithDockerfile<'_>,
    ) -> Result<CommandResult> {
        match self {
            Self::Program(testbed) => {
                let recorded = FaasCliRecording::read_recording()?;
                let work_dir = create_project_for_faas_cli(
                    testbed,
                    function,
                    command_has_secrets(command_name),
                    &recorded,
                )?;
                let key = testbed
                    .stack
                    .payload_secret
                    .to_str()
                    .context("the path is not UTF-8")?;
                let mut arguments: Vec<&str> = recorded.recorded_command(command_name)?["arguments"]
                    .as_array()
                    .context("requests.json: no arguments")?
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                // faas-cli drops path and query, as the recorded requests show.
                let builder = format!("{builder_url}/any/path?any=query");
                arguments.extend([
                    "--remote-builder",
                    &builder,
                    "--payload-secret",
                    key,
                    "-f",
                    "stack.yaml",
                ]);
                let output = work_dir.run_logged_in_faas_cli(testbed, &arguments, b"").await?;
                Ok(CommandResult {
                    code: output.code,
                    output: output.stdout_and_stderr(),
                })
            }
            Self::Recorded(testbed, recorded) => {
                replay_recorded_requests(testbed, recorded, command_name, builder_url, function).await
            }
        }
    }
}

fn command_has_secrets(command_name: &str) -> bool {
    command_name.contains("secrets")
}

/// Creates a project like the one that the requests were recorded with.
fn create_project_for_faas_cli(
    testbed: &Testbed,
    function: &FunctionWithDockerfile<'_>,
    with_secrets: bool,
    recorded: &FaasCliRecording,
) -> Result<ClientFolder> {
    let work_dir = ClientFolder::new("scratch")?;
    work_dir.write_file("template/small/Dockerfile", &function.dockerfile)?;
    work_dir.write_file(
        "template/small/template.yml",
        "language: small\nfprocess: /server\nbuild_options:\n  - name: dev\n    packages:\n      - make\n      - gcc\n",
    )?;
    work_dir.write_file("fn/handler.txt", PAGE_PATH_AND_TEXT.1)?;
    let mut stack = format!(
        "version: 1.0\nprovider:\n  name: openfaas\n  gateway: {}\nfunctions:\n  {}:\n    lang: small\n    handler: ./fn\n    image: {}:0.1.0\n",
        testbed.stack.gateway.url, function.name, function.repository,
    );
    if with_secrets {
        stack.push_str("    build_secrets:\n");
        for (name, value) in recorded.secrets["values"]
            .as_object()
            .context("secrets.json: no values")?
        {
            work_dir.write_file(
                &format!(".secrets/{name}"),
                value.as_str().context("secrets.json: a value is not a string")?,
            )?;
            stack.push_str(&format!("      {name}: .secrets/{name}\n"));
        }
        work_dir.write_file(
            "key.pub",
            recorded.secrets["public_key"]
                .as_str()
                .context("secrets.json: no public_key")?,
        )?;
    }
    work_dir.write_file("stack.yaml", stack)?;
    Ok(work_dir)
}

/// Sends the recorded requests of a command in order, and stops where faas-cli would.
async fn replay_recorded_requests(
    testbed: &Testbed,
    recorded: &FaasCliRecording,
    command_name: &str,
    builder: &str,
    function: &FunctionWithDockerfile<'_>,
) -> Result<CommandResult> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let key = std::fs::read(&testbed.stack.payload_secret)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let variables = BuildBodyVariables {
        repository: function.repository.clone(),
        // faas-cli rounds up, to at most half a second in the future.
        mtime: now.as_secs() + 1,
        dockerfile: Some(function.dockerfile.clone()),
    };
    for send in recorded.recorded_command(command_name)?["sends"]
        .as_array()
        .context("requests.json: no sends")?
    {
        let path = send["path"].as_str().context("requests.json: no path")?;
        let to = if path == "/system/functions" {
            &testbed.stack.gateway.url
        } else {
            builder
        };
        let method: reqwest::Method = send["method"]
            .as_str()
            .context("requests.json: no method")?
            .parse()?;
        let mut request = http.request(method, format!("{to}{path}"));
        for (name, value) in recorded.request_headers_without_body_host_or_user(path)? {
            request = request.header(name, value);
        }
        let result = match path {
            "/publickey" => {
                let answer: Value = request.send().await?.error_for_status()?.json().await?;
                ensure!(answer == recorded.secrets["publickey_answer"], "{answer}");
                continue;
            }
            "/build" => {
                let tar = recorded.build_request_body(send, &variables)?;
                let request = request.header("X-Build-Signature", sign_body(key.trim_ascii(), &tar)?);
                let answer = request.body(tar).send().await?;
                let status = answer.status().as_u16();
                let packed = answer.headers().get("content-encoding");
                ensure!(
                    packed.is_none(),
                    "the answer has content-encoding {packed:?}, which this test cannot decode"
                );
                let body = answer.text().await?;
                if status == 200 {
                    check_record_stream(&body)?;
                }
                let config: Value =
                    serde_json::from_str(send["config"].as_str().context("requests.json: no config")?)?;
                let image = config["image"]
                    .as_str()
                    .context("the recorded config has no image")?;
                let image = image.replace("{repository}", &function.repository);
                let faas_cli_outcome = faas_cli_outcome(function.name, &image, status, &body);
                CommandResult {
                    code: faas_cli_outcome.exit,
                    output: faas_cli_outcome.message.unwrap_or(body),
                }
            }
            _ => {
                let gateway = &testbed.stack.gateway;
                let body = send["body"].as_str().context("requests.json: no body")?;
                let body = body
                    .replace("\"hello\"", &format!("{:?}", function.name))
                    .replace("{repository}", &function.repository);
                let request = request
                    .basic_auth(&gateway.user, Some(&gateway.password))
                    .body(body)
                    .build()?;
                let mut again = request.try_clone().context("the body cannot be cloned")?;
                let mut answer = http.execute(request).await?;
                // Create the function if it does not exist and so cannot be updated.
                if answer.status() == reqwest::StatusCode::NOT_FOUND {
                    *again.method_mut() = reqwest::Method::POST;
                    answer = http.execute(again).await?;
                }
                CommandResult {
                    code: i32::from(!answer.status().is_success()),
                    output: answer.text().await?,
                }
            }
        };
        if result.code != 0 {
            return Ok(result);
        }
    }
    Ok(CommandResult {
        code: 0,
        output: String::new(),
    })
}

/// Checks what these clients need without checking it: one object a line, no empty lines, and a terminal record at
/// the end.
fn check_record_stream(body: &str) -> Result<()> {
    ensure!(body.ends_with('\n'), "{body}");
    let records: Vec<Value> = body
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line:?}")))
        .collect::<Result<_>>()?;
    let (last, before) = records.split_last().context("no records")?;
    ensure!(
        before.iter().all(|record| record["status"] == "in_progress"),
        "{body}"
    );
    ensure!(
        last["status"] == "success" || last["status"] == "failed",
        "{body}"
    );
    ensure!(
        last.get("log").is_none() && last["duration"].is_number(),
        "{body}"
    );
    Ok(())
}

/// Fetches the manifest of `e2e/NAME:TAG`; fails if the registry has none.
async fn manifest_of_image(testbed: &Testbed, name_below_e2e: &str, tag: &str) -> Result<ManifestWithDigest> {
    let found = testbed
        .registry
        .get_manifest(&format!("e2e/{name_below_e2e}"), tag)
        .await?;
    found.with_context(|| format!("no {name_below_e2e}:{tag} in the registry"))
}

/// Fetches the labels of an image, or of the first image of an index.
async fn labels_of_image_or_first_of_index(
    testbed: &Testbed,
    name_below_e2e: &str,
    tag: &str,
) -> Result<Value> {
    let manifest = manifest_of_image(testbed, name_below_e2e, tag).await?;
    let manifest = match manifest.body["manifests"][0]["digest"].as_str() {
        Some(digest) => manifest_of_image(testbed, name_below_e2e, digest).await?,
        None => manifest,
    };
    let config = manifest.body["config"]["digest"].as_str().context("no config")?;
    let config = testbed
        .registry
        .get_json_blob(&format!("e2e/{name_below_e2e}"), config)
        .await?;
    Ok(config["config"]["Labels"].clone())
}

#[tokio::test]
async fn a_current_faas_cli_publishes_with_all_its_flags() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    for (at, client) in FaasCliProgramOrRecording::recorded_and_stacks_if_current(&testbed)
        .await?
        .iter()
        .enumerate()
    {
        let name = format!("cli-publish-{at}");
        let function = FunctionWithDockerfile::page_server(&testbed, base, &name, "");
        let run = async |command: &str| -> Result<()> {
            let result = client
                .run_recorded_command(command, builder.url(), &function)
                .await?;
            ensure!(result.code == 0, "{command}: {result:?}");
            Ok(())
        };
        run("publish").await?;
        let plain = manifest_of_image(&testbed, &name, "0.1.0").await?;
        assert!(plain.body["layers"].is_array(), "{plain:?}");
        for command in [
            "publish for two platforms",
            "publish for platforms written with a space",
        ] {
            run(command).await?;
            let index = manifest_of_image(&testbed, &name, "0.1.0").await?;
            let platforms: Vec<_> = index.body["manifests"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|entry| entry["platform"]["architecture"].as_str().unwrap_or_default())
                .collect();
            assert_eq!(platforms, ["amd64", "arm64"], "{command}: {index:?}");
        }
        run("publish with build arguments").await?;
        let labels = labels_of_image_or_first_of_index(&testbed, &name, "0.1.0").await?;
        assert_eq!(labels["note"], "a<b>&c=\"d\" é", "{labels}");
        assert_eq!(labels["packages"], "curl gcc make zlib", "{labels}");
        run("publish for the daemon's own platform").await?;
        run("publish with flags that are not sent").await?;
        run("publish tagged by digest").await?;
        if let FaasCliProgramOrRecording::Recorded(..) = client {
            manifest_of_image(&testbed, &name, "b1a8526a1686343525b0fe0e83d322a8").await?;
        }
    }
    Ok(())
}

/// The public key comes from the builder or from a file. The steps read exactly the bytes of the secrets' files.
#[tokio::test]
async fn secrets_sealed_by_a_current_faas_cli_reach_the_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (base, recorded) = (
        testbed.build_busybox_once_and_get_name().await?,
        FaasCliRecording::read_recording()?,
    );
    let keys = tempfile::tempdir()?;
    let key = recorded.write_build_secrets_private_key(keys.path())?;
    let settings = [("build_secrets_private_key_path", key.as_str())];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let mut steps = String::new();
    for (name, value) in recorded.secrets["values"]
        .as_object()
        .context("secrets.json: no values")?
    {
        let value = value.as_str().context("secrets.json: a value is not a string")?;
        let sum = hex::encode(Sha256::digest(value));
        steps += &format!(
            "RUN --mount=type=secret,id={name},required=true sha256sum /run/secrets/{name} | grep {sum}\n"
        );
    }
    for (at, client) in FaasCliProgramOrRecording::recorded_and_stacks_if_current(&testbed)
        .await?
        .iter()
        .enumerate()
    {
        let name = format!("cli-sealed-{at}");
        for command in [
            "publish with secrets",
            "publish with secrets, public key in a file",
        ] {
            // A cached step would need no secret.
            let fresh = format!("ENV AT=\"{:?}\"\n{steps}", std::time::SystemTime::now());
            let function = FunctionWithDockerfile::page_server(&testbed, base, &name, &fresh);
            let result = client
                .run_recorded_command(command, builder.url(), &function)
                .await?;
            assert_eq!(result.code, 0, "{command}: {result:?}");
        }
        manifest_of_image(&testbed, &name, "0.1.0").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_current_faas_cli_deploys_only_after_a_successful_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    for (at, client) in FaasCliProgramOrRecording::recorded_and_stacks_if_current(&testbed)
        .await?
        .iter()
        .enumerate()
    {
        let bad = format!("cli-bad-{at}");
        let failing = FunctionWithDockerfile::page_server(&testbed, base, &bad, "RUN echo before; exit 3");
        for command in ["publish", "up", "up --publish"] {
            let result = client
                .run_recorded_command(command, builder.url(), &failing)
                .await?;
            assert_eq!(result.code, 1, "{command}: {result:?}");
            let message = format!(
                "{bad} failure while building or pushing image {}:0.1.0: ",
                failing.repository
            );
            assert!(result.output.contains(&message), "{command}: {result:?}");
            assert!(result.output.contains("exit code: 3"), "{command}: {result:?}");
        }
        assert!(
            testbed
                .registry
                .get_manifest(&format!("e2e/{bad}"), "0.1.0")
                .await?
                .is_none()
        );
        assert_eq!(testbed.functions.function_status(&bad).await?, None);

        let name = format!("cli-up-{at}");
        let function = FunctionWithDockerfile::page_server(&testbed, base, &name, "");
        testbed.functions.remove_function(&name).await?;
        for command in ["up", "up --publish", "up --skip-push"] {
            let result = client
                .run_recorded_command(command, builder.url(), &function)
                .await?;
            assert_eq!(result.code, 0, "{command}: {result:?}");
            assert_eq!(
                testbed
                    .functions
                    .get_path_retrying_5xx(&name, PAGE_PATH_AND_TEXT.0, FUNCTION_START_LIMIT)
                    .await?,
                (200, PAGE_PATH_AND_TEXT.1.to_owned()),
                "{command}"
            );
        }
        testbed.functions.remove_function(&name).await?;
    }
    Ok(())
}

/// Runs the stack's faas-cli for its help, and returns whether that names `--remote-builder`.
async fn stacks_faas_cli_supports_remote_builder(testbed: &Testbed, work_dir: &ClientFolder) -> Result<bool> {
    let help = work_dir
        .run_logged_in_faas_cli(testbed, &["publish", "--help"], b"")
        .await?;
    Ok(help.stdout_and_stderr().contains("--remote-builder"))
}
