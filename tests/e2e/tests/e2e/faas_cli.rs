//! faas-cli, as its users have it: the packaged one, which signs, queues and deploys, and a current one, which builds
//! with a builder by itself.

mod stack;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    client::signature,
    plain::PlainBuilder,
    programs::Desk,
    recorded::{Recorded, Stamp, verdict},
    registry::Manifest,
    shared::Bench,
};

/// What the function of these tests says, at this path.
const PAGE: (&str, &str) = ("/handler.txt", "hello\n");

/// What faas-cli has deployed listens a moment later: on a busy machine, some moments.
const LISTENS: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    said: String,
}

/// A function to be built: its name, its image without a tag, and the steps of its Dockerfile.
struct Function<'a> {
    name: &'a str,
    repository: String,
    dockerfile: String,
}

impl<'a> Function<'a> {
    /// One that serves what is in its handler's folder, after these steps.
    fn new(bench: &Bench, base: &str, name: &'a str, steps: &str) -> Self {
        Self {
            name,
            repository: format!("{}/e2e/{name}", bench.stack.registry.host),
            dockerfile: format!(
                "FROM {base}\nARG ADDITIONAL_PACKAGE\nARG NOTE=none\n\
                 LABEL note=\"$NOTE\" packages=\"$ADDITIONAL_PACKAGE\"\nCOPY function /www\n{steps}\n\
                 RUN mkdir -p /www/_ && echo OK > /www/_/health && cp /www/_/health /www/_/ready\nUSER 1000\n\
                 CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
            ),
        }
    }
}

/// A faas-cli with `--remote-builder`.
enum Current<'a> {
    /// The stack's own, where `SLIPWAY_FAAS_CLI` named one.
    Program(&'a Bench),
    /// What was recorded of one.
    Recorded(&'a Bench, Recorded),
}

impl<'a> Current<'a> {
    /// The recorded one, always, and the stack's where it can do this.
    async fn all(bench: &'a Bench) -> Result<Vec<Self>> {
        let mut all = vec![Self::Recorded(bench, Recorded::read()?)];
        if is_current(bench, &Desk::new("scratch")?).await? {
            all.push(Self::Program(bench));
        }
        Ok(all)
    }

    /// Runs one of the recorded commands.
    async fn run(&self, command: &str, builder: &str, function: &Function<'_>) -> Result<Ended> {
        match self {
            Self::Program(bench) => {
                let recorded = Recorded::read()?;
                let desk = desk(bench, function, has_secrets(command), &recorded)?;
                let key = bench.stack.payload_secret.to_str().context("a path")?;
                let mut arguments: Vec<&str> = recorded.command(command)?["arguments"]
                    .as_array()
                    .context("arguments")?
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                // The path is dropped, as the recorded requests show.
                let builder = format!("{builder}/any/path?any=query");
                arguments.extend([
                    "--remote-builder",
                    &builder,
                    "--payload-secret",
                    key,
                    "-f",
                    "stack.yaml",
                ]);
                let ran = desk.faas_cli(bench, &arguments, b"").await?;
                Ok(Ended {
                    code: ran.code,
                    said: ran.said(),
                })
            }
            Self::Recorded(bench, recorded) => replay(bench, recorded, command, builder, function).await,
        }
    }
}

fn has_secrets(command: &str) -> bool {
    command.contains("secrets")
}

/// A project like the recorded one.
fn desk(bench: &Bench, function: &Function<'_>, secrets: bool, recorded: &Recorded) -> Result<Desk> {
    let desk = Desk::new("scratch")?;
    desk.write("template/small/Dockerfile", &function.dockerfile)?;
    desk.write(
        "template/small/template.yml",
        "language: small\nfprocess: /server\nbuild_options:\n  - name: dev\n    packages:\n      - make\n      - gcc\n",
    )?;
    desk.write("fn/handler.txt", PAGE.1)?;
    let mut stack = format!(
        "version: 1.0\nprovider:\n  name: openfaas\n  gateway: {}\nfunctions:\n  {}:\n    lang: small\n    handler: ./fn\n    image: {}:0.1.0\n",
        bench.stack.gateway.url, function.name, function.repository,
    );
    if secrets {
        stack.push_str("    build_secrets:\n");
        for (name, value) in recorded.secrets["values"].as_object().context("values")? {
            desk.write(&format!(".secrets/{name}"), value.as_str().context("a value")?)?;
            stack.push_str(&format!("      {name}: .secrets/{name}\n"));
        }
        desk.write(
            "key.pub",
            recorded.secrets["public_key"].as_str().context("a key")?,
        )?;
    }
    desk.write("stack.yaml", stack)?;
    Ok(desk)
}

/// Sends what faas-cli sends, in its order and with its headers, and goes on as far as it would.
async fn replay(
    bench: &Bench,
    recorded: &Recorded,
    command: &str,
    builder: &str,
    function: &Function<'_>,
) -> Result<Ended> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let key = std::fs::read(&bench.stack.payload_secret)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let stamp = Stamp {
        repository: function.repository.clone(),
        // Rounded: up to half a second in the future.
        mtime: now.as_secs() + 1,
        dockerfile: Some(function.dockerfile.clone()),
    };
    for send in recorded.command(command)?["sends"]
        .as_array()
        .context("requests")?
    {
        let path = send["path"].as_str().context("a path")?;
        let to = if path == "/system/functions" {
            &bench.stack.gateway.url
        } else {
            builder
        };
        let method: reqwest::Method = send["method"].as_str().context("a method")?.parse()?;
        let mut request = http.request(method, format!("{to}{path}"));
        for (name, value) in recorded.headers(path)? {
            request = request.header(name, value);
        }
        let ended = match path {
            "/publickey" => {
                let answer: Value = request.send().await?.error_for_status()?.json().await?;
                ensure!(answer == recorded.secrets["publickey_answer"], "{answer}");
                continue;
            }
            "/build" => {
                let tar = recorded.tar(send, &stamp)?;
                let request = request.header("X-Build-Signature", signature(key.trim_ascii(), &tar)?);
                let answer = request.body(tar).send().await?;
                let status = answer.status().as_u16();
                let packed = answer.headers().get("content-encoding");
                ensure!(packed.is_none(), "nobody here unpacks {packed:?}");
                let body = answer.text().await?;
                if status == 200 {
                    check_stream(&body)?;
                }
                let config: Value = serde_json::from_str(send["config"].as_str().context("a config")?)?;
                let image = config["image"].as_str().context("an image")?;
                let image = image.replace("{repository}", &function.repository);
                let verdict = verdict(function.name, &image, status, &body);
                Ended {
                    code: verdict.exit,
                    said: verdict.message.unwrap_or(body),
                }
            }
            _ => {
                let gateway = &bench.stack.gateway;
                let body = send["body"].as_str().context("a body")?;
                let body = body
                    .replace("\"hello\"", &format!("{:?}", function.name))
                    .replace("{repository}", &function.repository);
                let request = request
                    .basic_auth(&gateway.user, Some(&gateway.password))
                    .body(body)
                    .build()?;
                let mut again = request.try_clone().context("a body")?;
                let mut answer = http.execute(request).await?;
                // What cannot be updated because it is not there is created.
                if answer.status() == reqwest::StatusCode::NOT_FOUND {
                    *again.method_mut() = reqwest::Method::POST;
                    answer = http.execute(again).await?;
                }
                Ended {
                    code: i32::from(!answer.status().is_success()),
                    said: answer.text().await?,
                }
            }
        };
        if ended.code != 0 {
            return Ok(ended);
        }
    }
    Ok(Ended {
        code: 0,
        said: String::new(),
    })
}

/// What these clients do not check, and need: records of one object each, no line between them, and the end at the end.
fn check_stream(body: &str) -> Result<()> {
    ensure!(body.ends_with('\n'), "{body}");
    let records: Vec<Value> = body
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a record: {line:?}")))
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

async fn manifest(bench: &Bench, name: &str, tag: &str) -> Result<Manifest> {
    let found = bench.registry.manifest(&format!("e2e/{name}"), tag).await?;
    found.with_context(|| format!("no {name}:{tag} in the registry"))
}

async fn labels(bench: &Bench, name: &str, tag: &str) -> Result<Value> {
    let manifest = manifest(bench, name, tag).await?;
    let manifest = match manifest.body["manifests"][0]["digest"].as_str() {
        Some(digest) => self::manifest(bench, name, digest).await?,
        None => manifest,
    };
    let config = manifest.body["config"]["digest"].as_str().context("no config")?;
    let config = bench.registry.document(&format!("e2e/{name}"), config).await?;
    Ok(config["config"]["Labels"].clone())
}

#[tokio::test]
async fn a_current_faas_cli_publishes() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let builder = PlainBuilder::with_settings(&bench, &[]).await?;
    for (at, client) in Current::all(&bench).await?.iter().enumerate() {
        let name = format!("cli-publish-{at}");
        let function = Function::new(&bench, base, &name, "");
        let run = async |command: &str| -> Result<()> {
            let ended = client.run(command, builder.url(), &function).await?;
            ensure!(ended.code == 0, "{command}: {ended:?}");
            Ok(())
        };
        run("publish").await?;
        let plain = manifest(&bench, &name, "0.1.0").await?;
        assert!(plain.body["layers"].is_array(), "{plain:?}");
        for command in [
            "publish for two platforms",
            "publish for platforms written with a space",
        ] {
            run(command).await?;
            let index = manifest(&bench, &name, "0.1.0").await?;
            let platforms: Vec<_> = index.body["manifests"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|entry| entry["platform"]["architecture"].as_str().unwrap_or_default())
                .collect();
            assert_eq!(platforms, ["amd64", "arm64"], "{command}: {index:?}");
        }
        run("publish with build arguments").await?;
        let labels = labels(&bench, &name, "0.1.0").await?;
        assert_eq!(labels["note"], "a<b>&c=\"d\" é", "{labels}");
        assert_eq!(labels["packages"], "curl gcc make zlib", "{labels}");
        run("publish for the daemon's own platform").await?;
        run("publish with flags that are not sent").await?;
        run("publish tagged by digest").await?;
        if let Current::Recorded(..) = client {
            manifest(&bench, &name, "b1a8526a1686343525b0fe0e83d322a8").await?;
        }
    }
    Ok(())
}

/// The key is the builder's, asked for or from a file; the values arrive as the files have them.
#[tokio::test]
async fn a_current_faas_cli_seals_secrets() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let (base, recorded) = (bench.busybox().await?, Recorded::read()?);
    let keys = tempfile::tempdir()?;
    let key = recorded.private_key(keys.path())?;
    let settings = [("build_secrets_private_key_path", key.as_str())];
    let builder = PlainBuilder::with_settings(&bench, &settings).await?;
    let mut steps = String::new();
    for (name, value) in recorded.secrets["values"].as_object().context("values")? {
        let value = value.as_str().context("a value")?;
        let sum = hex::encode(Sha256::digest(value));
        steps += &format!(
            "RUN --mount=type=secret,id={name},required=true sha256sum /run/secrets/{name} | grep {sum}\n"
        );
    }
    for (at, client) in Current::all(&bench).await?.iter().enumerate() {
        let name = format!("cli-sealed-{at}");
        for command in [
            "publish with secrets",
            "publish with secrets, public key in a file",
        ] {
            // No step is cached: it would need no secret.
            let fresh = format!("ENV AT=\"{:?}\"\n{steps}", std::time::SystemTime::now());
            let function = Function::new(&bench, base, &name, &fresh);
            let ended = client.run(command, builder.url(), &function).await?;
            assert_eq!(ended.code, 0, "{command}: {ended:?}");
        }
        manifest(&bench, &name, "0.1.0").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_current_faas_cli_brings_a_function_up_and_never_one_that_failed() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let builder = PlainBuilder::with_settings(&bench, &[]).await?;
    for (at, client) in Current::all(&bench).await?.iter().enumerate() {
        let bad = format!("cli-bad-{at}");
        let failing = Function::new(&bench, base, &bad, "RUN echo before; exit 3");
        for command in ["publish", "up", "up --publish"] {
            let ended = client.run(command, builder.url(), &failing).await?;
            assert_eq!(ended.code, 1, "{command}: {ended:?}");
            let message = format!(
                "{bad} failure while building or pushing image {}:0.1.0: ",
                failing.repository
            );
            assert!(ended.said.contains(&message), "{command}: {ended:?}");
            assert!(ended.said.contains("exit code: 3"), "{command}: {ended:?}");
        }
        assert!(
            bench
                .registry
                .manifest(&format!("e2e/{bad}"), "0.1.0")
                .await?
                .is_none()
        );
        assert_eq!(bench.functions.status(&bad).await?, None);

        let name = format!("cli-up-{at}");
        let function = Function::new(&bench, base, &name, "");
        bench.functions.remove(&name).await?;
        for command in ["up", "up --publish", "up --skip-push"] {
            let ended = client.run(command, builder.url(), &function).await?;
            assert_eq!(ended.code, 0, "{command}: {ended:?}");
            assert_eq!(
                bench.functions.get_from_new(&name, PAGE.0, LISTENS).await?,
                (200, PAGE.1.to_owned()),
                "{command}"
            );
        }
        bench.functions.remove(&name).await?;
    }
    Ok(())
}

/// Whether the stack's faas-cli is a current one.
async fn is_current(bench: &Bench, desk: &Desk) -> Result<bool> {
    let help = desk.faas_cli(bench, &["publish", "--help"], b"").await?;
    Ok(help.said().contains("--remote-builder"))
}
