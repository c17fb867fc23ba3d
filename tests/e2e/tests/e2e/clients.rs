//! Clients of the builder API that are not ours (`tests/clients`), as they are run by their users.

use std::{path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    plain::PlainBuilder,
    programs::{Desk, Ran, in_repository},
    recorded::Recorded,
    shared::Bench,
    source::Source,
};
use tokio::sync::OnceCell;

static GO_SDK: OnceCell<PathBuf> = OnceCell::const_new();

/// The program around the OpenFaaS Go SDK, built with the versions that its `go.sum` pins.
async fn go_sdk() -> Result<&'static PathBuf> {
    GO_SDK
        .get_or_try_init(|| async {
            let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-sdk");
            let built = std::process::Command::new("go")
                .args(["build", "-mod=readonly", "-o"])
                .arg(&program)
                .arg(".")
                .current_dir(in_repository("tests/clients/go-sdk"))
                .env("CGO_ENABLED", "0")
                .output()
                .context("running go")?;
            anyhow::ensure!(
                built.status.success(),
                "{}",
                String::from_utf8_lossy(&built.stderr)
            );
            Ok(program)
        })
        .await
}

/// A builder, and a folder to call it from.
struct Place<'a> {
    bench: &'a Bench,
    builder: PlainBuilder,
    desk: Desk,
    _keys: tempfile::TempDir,
    base: &'a str,
}

impl<'a> Place<'a> {
    /// The builder opens what is sealed to the recorded key.
    async fn new(bench: &'a Bench) -> Result<Self> {
        let keys = tempfile::tempdir()?;
        let key = Recorded::read()?.private_key(keys.path())?;
        let settings = [("build_secrets_private_key_path", key.as_str())];
        let base = bench.busybox().await?;
        Ok(Self {
            bench,
            builder: PlainBuilder::with_settings(bench, &settings).await?,
            _keys: keys,
            desk: Desk::new(base)?,
            base,
        })
    }

    /// Runs a client with the builder's address and the file of the stack's key.
    fn run(&self, program: &str, arguments: &[&str], more: &[(&str, &str)]) -> Result<Ran> {
        let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path that is no text");
        let (key, faas_cli) = (
            text(&self.bench.stack.payload_secret)?,
            text(&self.bench.stack.tools.faas_cli)?,
        );
        let environment: Vec<_> = [
            ("BUILDER_URL", self.builder.url()),
            ("PAYLOAD_SECRET", &key),
            ("FAAS_CLI", &faas_cli),
        ]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
        self.desk.run(program, arguments, &environment, b"")
    }

    /// Writes a context whose steps no other run has cached, and gives its path.
    fn context(&self, name: &str, steps: &str) -> Result<String> {
        let at = format!("{:?}", SystemTime::now());
        let source =
            Source::dockerfile(format!("FROM {}\nENV AT=\"{at}\"\n{steps}\n", self.base)).file("a/b", "ab");
        let path = self.desk.context(name, &source)?;
        Ok(path.to_str().context("a path that is no text")?.to_owned())
    }

    async fn pushed(&self, repository: &str) -> Result<bool> {
        Ok(self.bench.registry.manifest(repository, "1").await?.is_some())
    }
}

#[tokio::test]
async fn the_go_sdk_builds_and_is_told_of_failures() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let place = Place::new(&bench).await?;
    let sdk = go_sdk().await?.to_str().context("a path")?;
    let good = place.context("good", "COPY a /a\nRUN echo one; sleep 1; echo two")?;
    let bad = place.context("bad", "RUN echo before; exit 3")?;
    let handler = place.desk.write("fn/index.html", "by the SDK")?;
    let handler = handler
        .parent()
        .and_then(|path| path.to_str())
        .context("a folder")?;
    let image = |name: &str| bench.image(&format!("e2e/go-sdk-{name}"), "1");

    let ran = place.run(sdk, &["build", &good, &image("build")], &[])?;
    let told = ran.json();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(told["status"], "success", "{told}");
    assert_eq!(told["image"], image("build").as_str(), "{told}");
    assert!(told["log_lines"].as_u64() > Some(3), "{told}");
    assert!(place.pushed("e2e/go-sdk-build").await?);

    let stream = [
        "stream",
        "-log",
        "-lang",
        "small",
        "-build-arg",
        "NOTE=a=b",
        handler,
    ];
    let ran = place.run(sdk, &[&stream[..], &[&image("stream")]].concat(), &[])?;
    let told = ran.json();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(told["image"], image("stream").as_str(), "{told}");
    assert_eq!(told["terminal"], true, "{told}");
    assert!(told["records"].as_u64() > Some(2), "{told}");
    assert!(ran.err.contains("COPY function /www"), "{ran:?}");
    assert!(place.pushed("e2e/go-sdk-stream").await?);

    let ran = place.run(sdk, &["stream", "-log", &bad, &image("bad")], &[])?;
    let told = ran.json();
    assert_eq!((ran.code, &told["status"]), (1, &json!("failed")), "{ran:?}");
    assert_eq!(told["terminal"], true, "{told}");
    assert!(ran.err.contains("Z before"), "{ran:?}");
    assert!(
        told["error"]
            .as_str()
            .is_some_and(|text| text.contains("exit code: 3")),
        "{told}"
    );

    // Of an answer that is not streamed the SDK tells the status alone.
    let ran = place.run(sdk, &["build", &bad, &image("bad")], &[])?;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.json()["error"]
            .as_str()
            .is_some_and(|text| text.ends_with("status code 422")),
        "{ran:?}"
    );
    assert!(!place.pushed("e2e/go-sdk-bad").await?);

    let wrong = place.desk.write("wrong", "another key")?;
    let wrong = [("PAYLOAD_SECRET", wrong.to_str().context("a path")?)];
    for call in ["build", "stream"] {
        let ran = place.run(sdk, &[call, &good, &image("bad")], &wrong)?;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.json()["error"]
                .as_str()
                .is_some_and(|text| text.ends_with("status code 401")),
            "{ran:?}"
        );
    }
    Ok(())
}

/// The SDK asks the program for the key, which asks the builder or has it from a file.
#[tokio::test]
async fn the_go_sdk_seals_secrets() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let place = Place::new(&bench).await?;
    let sdk = go_sdk().await?.to_str().context("a path")?;
    let step = "RUN --mount=type=secret,id=token,required=true cat /run/secrets/token; grep -qx hush-hush /run/secrets/token";
    let key = Recorded::read()?.secrets["public_key"].clone();
    let key = place.desk.write("key.pub", key.as_str().context("a key")?)?;
    let key = format!("-public-key={}", key.display());
    let image = bench.image("e2e/go-sdk-secrets", "1");
    for (call, more) in [
        ("secrets", &[][..]),
        ("secrets-stream", &[]),
        ("secrets-stream", &[key.as_str()]),
    ] {
        let context = place.context("sealed", step)?;
        let given = [
            &[call, "-log", "-secret", "token=hush-hush"],
            more,
            &[&context, &image],
        ]
        .concat();
        let ran = place.run(sdk, &given, &[])?;
        assert_eq!(
            (ran.code, &ran.json()["status"]),
            (0, &json!("success")),
            "{given:?}: {ran:?}"
        );
        assert!(
            ran.err.contains("***") && !ran.said().contains("hush-hush"),
            "{ran:?}"
        );
    }
    assert!(place.pushed("e2e/go-sdk-secrets").await?);

    let other = place
        .desk
        .write("other.pub", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")?;
    let other = format!("-public-key={}", other.display());
    let context = place.context("sealed", step)?;
    let given = [
        "secrets-stream",
        "-secret",
        "token=hush-hush",
        &other,
        &context,
        &image,
    ];
    let ran = place.run(sdk, &given, &[])?;
    assert_eq!(
        (ran.code, &ran.json()["status"]),
        (1, &json!("failed")),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("AQEBAQEB") && ran.out.contains("UWnDv86x"),
        "{ran:?}"
    );
    Ok(())
}

/// Each as its heading has it: a function of a template, laid out by faas-cli, and a folder that is the context.
#[tokio::test]
async fn clients_in_other_languages_build_and_are_told_of_failures() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let place = Place::new(&bench).await?;
    let bad = place.context("bad", "RUN exit 3")?;
    place.desk.write("fn/index.html", "a page")?;
    let wrong = place.desk.write("wrong", "another key")?;
    let wrong = [("PAYLOAD_SECRET", wrong.to_str().context("a path")?)];
    let path = |path: &str| in_repository(path).to_string_lossy().into_owned();
    let (node, python, php) = (
        path("tests/clients/node/index.js"),
        path("tests/clients/python/build.py"),
        path("tests/clients/php/build.php"),
    );
    type Arguments<'a> = &'a dyn Fn(&str, &str, Option<&str>) -> Vec<String>;
    let clients: [(&str, Arguments<'_>); 3] = [
        ("node", &|image, folder, lang| {
            let given = [&node, image, folder].map(str::to_owned).into_iter();
            given.chain(lang.map(str::to_owned)).collect()
        }),
        ("python3", &|image, folder, lang| {
            let given = [&python, "--image", image, "--handler", folder].map(str::to_owned);
            let lang = lang.map(|lang| format!("--lang={lang}"));
            given.into_iter().chain(lang).collect()
        }),
        ("php", &|image, folder, lang| {
            let given = [
                php.clone(),
                format!("--image={image}"),
                format!("--handler={folder}"),
            ];
            let lang = lang.map(|lang| format!("--lang={lang}"));
            given.into_iter().chain(lang).collect()
        }),
    ];
    for (program, arguments) in clients {
        let repository = format!("e2e/client-{program}");
        let image = bench.image(&repository, "1");
        let refused = bench.image(&format!("{repository}-bad"), "1");
        let run = |image: &str, folder: &str, lang, more: &[(&str, &str)]| -> Result<(i32, Value)> {
            let arguments = arguments(image, folder, lang);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let ran = place.run(program, &arguments, more)?;
            let told = ran.json();
            anyhow::ensure!(told.is_object(), "{program}: {ran:?}");
            Ok((ran.code, told))
        };

        let (code, told) = run(&refused, &bad, None, &[])?;
        assert_eq!((code, &told["http"]), (1, &json!(422)), "{program}: {told}");
        assert!(
            told["error"]
                .as_str()
                .is_some_and(|text| text.contains("exit code: 3")),
            "{told}"
        );
        let (code, told) = run(&refused, &bad, None, &wrong)?;
        assert_eq!((code, &told["http"]), (1, &json!(401)), "{program}: {told}");
        assert!(!place.pushed(&format!("{repository}-bad")).await?);

        let (code, told) = run(&image, "./fn", Some("small"), &[])?;
        assert_eq!(
            (code, &told["status"]),
            (0, &json!("success")),
            "{program}: {told}"
        );
        assert_eq!(told["image"], image.as_str(), "{program}: {told}");
        assert!(told["log_lines"].as_u64() > Some(3), "{program}: {told}");
        assert!(place.pushed(&repository).await?);
    }
    Ok(())
}

#[tokio::test]
async fn curl_with_openssl_builds_directly_and_through_the_gateway() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let place = Place::new(&bench).await?;
    let curl = in_repository("tests/clients/curl.sh");
    let curl = curl.to_str().context("a path")?;
    let good = place.context("good", "RUN echo one")?;
    let bad = place.context("bad", "RUN exit 3")?;
    let (image, refused) = (
        bench.image("e2e/client-curl", "1"),
        bench.image("e2e/client-curl-bad", "1"),
    );

    let ran = place.run(curl, &[&refused, &bad], &[])?;
    assert_eq!(ran.code, 22, "{ran:?}");
    assert_eq!(ran.json()["status"], "failed", "{ran:?}");
    let ran = place.run(curl, &[&refused, &bad], &[("ACCEPT", "application/x-ndjson")])?;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.json()["status"], "failed", "{ran:?}");
    let wrong = place.desk.write("wrong", "another key")?;
    let wrong = wrong.to_str().context("a path")?;
    let ran = place.run(curl, &[&refused, &good], &[("PAYLOAD_SECRET", wrong)])?;
    assert_eq!(ran.code, 22, "{ran:?}");
    assert!(ran.err.contains("401"), "{ran:?}");
    assert!(!place.pushed("e2e/client-curl-bad").await?);

    let ran = place.run(curl, &[&image, &good], &[("ACCEPT", "application/x-ndjson")])?;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.lines().count() > 2, "{ran:?}");
    assert!(place.pushed("e2e/client-curl").await?);

    // The gateway strips the function's name, and what is left is /build.
    let through = format!("{}/function/builder-fn", bench.stack.gateway.url);
    let image = bench.image("e2e/client-curl-gateway", "1");
    let config = json!({ "image": image, "labels": { "by": "curl" } }).to_string();
    let arguments = [
        image.as_str(),
        &good,
        &config,
        "-H",
        "X-Call-Id: curl-through-the-gateway",
    ];
    let ran = place.run(curl, &arguments, &[("BUILDER_URL", &through)])?;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["image"], image.as_str(), "{ran:?}");
    assert!(place.pushed("e2e/client-curl-gateway").await?);
    Ok(())
}

#[test]
fn the_readme_shows_lines_of_the_clients_that_are_tested() -> Result<()> {
    let readme = std::fs::read_to_string(in_repository("docs/clients.md"))?;
    let mut shown = 0;
    for block in readme.split("<!-- tests/clients/").skip(1) {
        let (path, rest) = block
            .split_once(" -->\n```")
            .context("a block of code behind its file")?;
        let code = rest.split("```").next().unwrap_or_default();
        let client = std::fs::read_to_string(in_repository("tests/clients").join(path))?;
        for line in code.lines().skip(1) {
            assert!(
                client.lines().any(|other| other.trim() == line.trim()),
                "{path}: {line}"
            );
            shown += 1;
        }
    }
    assert!(shown > 10, "{shown}");
    Ok(())
}
