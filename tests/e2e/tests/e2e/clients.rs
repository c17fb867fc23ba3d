//! Client programs in other languages (`tests/clients`), run as their users run them.

use std::{path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    recorded::FaasCliRecording,
    testbed::Testbed,
    work_dir::{ClientFolder, ProgramOutput, path_in_repository},
};
use tokio::sync::OnceCell;

/// The path of the program, once this process has built it.
static GO_SDK_CLIENT_PATH: OnceCell<PathBuf> = OnceCell::const_new();

/// Builds the program that uses the OpenFaaS Go SDK, with the versions pinned in its `go.sum`, and returns
/// its path.
pub(crate) async fn build_go_sdk_client() -> Result<&'static PathBuf> {
    GO_SDK_CLIENT_PATH
        .get_or_try_init(|| async {
            let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-sdk");
            let built = std::process::Command::new("go")
                .args(["build", "-mod=readonly", "-o"])
                .arg(&program)
                .arg(".")
                .current_dir(path_in_repository("tests/clients/go-sdk"))
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

/// A builder, and a folder in which clients run.
struct ClientFixture<'a> {
    testbed: &'a Testbed,
    builder: BuilderProcess,
    work_dir: ClientFolder,
    _keys: tempfile::TempDir,
    base: &'a str,
}

impl<'a> ClientFixture<'a> {
    /// Starts a builder with the recorded private key.
    async fn new(testbed: &'a Testbed) -> Result<Self> {
        let keys = tempfile::tempdir()?;
        let key = FaasCliRecording::read_recording()?.write_build_secrets_private_key(keys.path())?;
        let settings = [("build_secrets_private_key_path", key.as_str())];
        let base = testbed.build_busybox_once_and_get_name().await?;
        Ok(Self {
            testbed,
            builder: BuilderProcess::start_with_settings(testbed, &settings).await?,
            _keys: keys,
            work_dir: ClientFolder::new(base)?,
            base,
        })
    }

    /// Runs a client with the builder's URL and the file with the stack's key.
    fn run_client(
        &self,
        program: &str,
        arguments: &[&str],
        more_environment: &[(&str, &str)],
    ) -> Result<ProgramOutput> {
        let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("the path is not UTF-8");
        let (key, faas_cli) = (
            text(&self.testbed.stack.payload_secret)?,
            text(&self.testbed.stack.tools.faas_cli)?,
        );
        let environment: Vec<_> = [
            ("BUILDER_URL", self.builder.url()),
            ("PAYLOAD_SECRET", &key),
            ("FAAS_CLI", &faas_cli),
        ]
        .into_iter()
        .chain(more_environment.iter().copied())
        .collect();
        self.work_dir.run_program(program, arguments, &environment, b"")
    }

    /// Writes a context whose steps are never cached; returns its path.
    fn write_uncached_context(&self, name: &str, steps: &str) -> Result<String> {
        let at = format!("{:?}", SystemTime::now());
        let source = BuildContext::dockerfile(format!("FROM {}\nENV AT=\"{at}\"\n{steps}\n", self.base))
            .with_file("a/b", "ab");
        let path = self.work_dir.write_build_context(name, &source)?;
        Ok(path.to_str().context("the path is not UTF-8")?.to_owned())
    }

    /// Returns whether the stack's registry has the tag `1` of this repository.
    async fn is_tag_1_pushed(&self, repository: &str) -> Result<bool> {
        Ok(self
            .testbed
            .registry
            .get_manifest(repository, "1")
            .await?
            .is_some())
    }
}

#[tokio::test]
async fn the_go_sdk_builds_and_reports_failures() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = ClientFixture::new(&testbed).await?;
    let sdk = build_go_sdk_client()
        .await?
        .to_str()
        .context("the path is not UTF-8")?;
    let good = fixture.write_uncached_context("good", "COPY a /a\nRUN echo one; sleep 1; echo two")?;
    let bad = fixture.write_uncached_context("bad", "RUN echo before; exit 3")?;
    let handler = fixture.work_dir.write_file("fn/index.html", "by the SDK")?;
    let handler = handler
        .parent()
        .and_then(|path| path.to_str())
        .context("the handler has no folder")?;
    let image = |name: &str| testbed.image_name(&format!("e2e/go-sdk-{name}"), "1");

    let output = fixture.run_client(sdk, &["build", &good, &image("build")], &[])?;
    let result = output.last_line_as_json_or_error_text();
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["image"], image("build").as_str(), "{result}");
    assert!(result["log_lines"].as_u64() > Some(3), "{result}");
    assert!(fixture.is_tag_1_pushed("e2e/go-sdk-build").await?);

    let stream = [
        "stream",
        "-log",
        "-lang",
        "small",
        "-build-arg",
        "NOTE=a=b",
        handler,
    ];
    let output = fixture.run_client(sdk, &[&stream[..], &[&image("stream")]].concat(), &[])?;
    let result = output.last_line_as_json_or_error_text();
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(result["image"], image("stream").as_str(), "{result}");
    assert_eq!(result["terminal"], true, "{result}");
    assert!(result["records"].as_u64() > Some(2), "{result}");
    assert!(output.stderr.contains("COPY function /www"), "{output:?}");
    assert!(fixture.is_tag_1_pushed("e2e/go-sdk-stream").await?);

    let output = fixture.run_client(sdk, &["stream", "-log", &bad, &image("bad")], &[])?;
    let result = output.last_line_as_json_or_error_text();
    assert_eq!(
        (output.code, &result["status"]),
        (1, &json!("failed")),
        "{output:?}"
    );
    assert_eq!(result["terminal"], true, "{result}");
    assert!(output.stderr.contains("Z before"), "{output:?}");
    assert!(
        result["error"]
            .as_str()
            .is_some_and(|text| text.contains("exit code: 3")),
        "{result}"
    );

    // For an answer that is not streamed, the SDK reports only the status.
    let output = fixture.run_client(sdk, &["build", &bad, &image("bad")], &[])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.last_line_as_json_or_error_text()["error"]
            .as_str()
            .is_some_and(|text| text.ends_with("status code 422")),
        "{output:?}"
    );
    assert!(!fixture.is_tag_1_pushed("e2e/go-sdk-bad").await?);

    let wrong = fixture.work_dir.write_file("wrong", "another key")?;
    let wrong = [("PAYLOAD_SECRET", wrong.to_str().context("the path is not UTF-8")?)];
    for call in ["build", "stream"] {
        let output = fixture.run_client(sdk, &[call, &good, &image("bad")], &wrong)?;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(
            output.last_line_as_json_or_error_text()["error"]
                .as_str()
                .is_some_and(|text| text.ends_with("status code 401")),
            "{output:?}"
        );
    }
    Ok(())
}

/// The program fetches the public key from the builder or reads it from a file, and gives it to the SDK.
#[tokio::test]
async fn secrets_sealed_by_the_go_sdk_reach_the_build_masked_and_those_for_another_key_fail() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = ClientFixture::new(&testbed).await?;
    let sdk = build_go_sdk_client()
        .await?
        .to_str()
        .context("the path is not UTF-8")?;
    let step = "RUN --mount=type=secret,id=token,required=true cat /run/secrets/token; grep -qx hush-hush /run/secrets/token";
    let key = FaasCliRecording::read_recording()?.secrets["public_key"].clone();
    let key = fixture
        .work_dir
        .write_file("key.pub", key.as_str().context("secrets.json: no public_key")?)?;
    let key = format!("-public-key={}", key.display());
    let image = testbed.image_name("e2e/go-sdk-secrets", "1");
    for (call, more) in [
        ("secrets", &[][..]),
        ("secrets-stream", &[]),
        ("secrets-stream", &[key.as_str()]),
    ] {
        let context = fixture.write_uncached_context("sealed", step)?;
        let given = [
            &[call, "-log", "-secret", "token=hush-hush"],
            more,
            &[&context, &image],
        ]
        .concat();
        let output = fixture.run_client(sdk, &given, &[])?;
        assert_eq!(
            (output.code, &output.last_line_as_json_or_error_text()["status"]),
            (0, &json!("success")),
            "{given:?}: {output:?}"
        );
        assert!(
            output.stderr.contains("***") && !output.stdout_and_stderr().contains("hush-hush"),
            "{output:?}"
        );
    }
    assert!(fixture.is_tag_1_pushed("e2e/go-sdk-secrets").await?);

    let other = fixture
        .work_dir
        .write_file("other.pub", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")?;
    let other = format!("-public-key={}", other.display());
    let context = fixture.write_uncached_context("sealed", step)?;
    let given = [
        "secrets-stream",
        "-secret",
        "token=hush-hush",
        &other,
        &context,
        &image,
    ];
    let output = fixture.run_client(sdk, &given, &[])?;
    assert_eq!(
        (output.code, &output.last_line_as_json_or_error_text()["status"]),
        (1, &json!("failed")),
        "{output:?}"
    );
    assert!(
        output.stdout.contains("AQEBAQEB") && output.stdout.contains("UWnDv86x"),
        "{output:?}"
    );
    Ok(())
}

/// Each client builds a function of a template, which faas-cli lays out, and a folder that is the context.
#[tokio::test]
async fn clients_in_other_languages_build_and_report_failures() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = ClientFixture::new(&testbed).await?;
    let bad = fixture.write_uncached_context("bad", "RUN exit 3")?;
    fixture.work_dir.write_file("fn/index.html", "a page")?;
    let wrong = fixture.work_dir.write_file("wrong", "another key")?;
    let wrong = [("PAYLOAD_SECRET", wrong.to_str().context("the path is not UTF-8")?)];
    let path = |path: &str| path_in_repository(path).to_string_lossy().into_owned();
    let (node, python, php) = (
        path("tests/clients/node/index.js"),
        path("tests/clients/python/build.py"),
        path("tests/clients/php/build.php"),
    );
    /// Returns a client's arguments from the image, the folder, and the language of a template if there is one.
    type ArgumentsForImageFolderAndLanguage<'a> = &'a dyn Fn(&str, &str, Option<&str>) -> Vec<String>;
    let clients: [(&str, ArgumentsForImageFolderAndLanguage<'_>); 3] = [
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
        let image = testbed.image_name(&repository, "1");
        let refused = testbed.image_name(&format!("{repository}-bad"), "1");
        let run = |image: &str, folder: &str, lang, more: &[(&str, &str)]| -> Result<(i32, Value)> {
            let arguments = arguments(image, folder, lang);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let output = fixture.run_client(program, &arguments, more)?;
            let result = output.last_line_as_json_or_error_text();
            anyhow::ensure!(result.is_object(), "{program}: {output:?}");
            Ok((output.code, result))
        };

        let (code, result) = run(&refused, &bad, None, &[])?;
        assert_eq!((code, &result["http"]), (1, &json!(422)), "{program}: {result}");
        assert!(
            result["error"]
                .as_str()
                .is_some_and(|text| text.contains("exit code: 3")),
            "{result}"
        );
        let (code, result) = run(&refused, &bad, None, &wrong)?;
        assert_eq!((code, &result["http"]), (1, &json!(401)), "{program}: {result}");
        assert!(!fixture.is_tag_1_pushed(&format!("{repository}-bad")).await?);

        let (code, result) = run(&image, "./fn", Some("small"), &[])?;
        assert_eq!(
            (code, &result["status"]),
            (0, &json!("success")),
            "{program}: {result}"
        );
        assert_eq!(result["image"], image.as_str(), "{program}: {result}");
        assert!(result["log_lines"].as_u64() > Some(3), "{program}: {result}");
        assert!(fixture.is_tag_1_pushed(&repository).await?);
    }
    Ok(())
}

#[tokio::test]
async fn curl_with_openssl_builds_directly_and_through_the_gateway_and_exits_with_an_error_if_rejected()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let fixture = ClientFixture::new(&testbed).await?;
    let curl = path_in_repository("tests/clients/curl.sh");
    let curl = curl.to_str().context("the path is not UTF-8")?;
    let good = fixture.write_uncached_context("good", "RUN echo one")?;
    let bad = fixture.write_uncached_context("bad", "RUN exit 3")?;
    let (image, refused) = (
        testbed.image_name("e2e/client-curl", "1"),
        testbed.image_name("e2e/client-curl-bad", "1"),
    );

    let output = fixture.run_client(curl, &[&refused, &bad], &[])?;
    assert_eq!(output.code, 22, "{output:?}");
    assert_eq!(
        output.last_line_as_json_or_error_text()["status"],
        "failed",
        "{output:?}"
    );
    let output = fixture.run_client(curl, &[&refused, &bad], &[("ACCEPT", "application/x-ndjson")])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(
        output.last_line_as_json_or_error_text()["status"],
        "failed",
        "{output:?}"
    );
    let wrong = fixture.work_dir.write_file("wrong", "another key")?;
    let wrong = wrong.to_str().context("the path is not UTF-8")?;
    let output = fixture.run_client(curl, &[&refused, &good], &[("PAYLOAD_SECRET", wrong)])?;
    assert_eq!(output.code, 22, "{output:?}");
    assert!(output.stderr.contains("401"), "{output:?}");
    assert!(!fixture.is_tag_1_pushed("e2e/client-curl-bad").await?);

    let output = fixture.run_client(curl, &[&image, &good], &[("ACCEPT", "application/x-ndjson")])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.lines().count() > 2, "{output:?}");
    assert!(fixture.is_tag_1_pushed("e2e/client-curl").await?);

    // The gateway strips the function's name from the path; /build remains.
    let through = format!("{}/function/builder-fn", testbed.stack.gateway.url);
    let image = testbed.image_name("e2e/client-curl-gateway", "1");
    let config = json!({ "image": image, "labels": { "by": "curl" } }).to_string();
    let arguments = [
        image.as_str(),
        &good,
        &config,
        "-H",
        "X-Call-Id: curl-through-the-gateway",
    ];
    let output = fixture.run_client(curl, &arguments, &[("BUILDER_URL", &through)])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.last_line_as_json_or_error_text()["image"],
        image.as_str(),
        "{output:?}"
    );
    assert!(fixture.is_tag_1_pushed("e2e/client-curl-gateway").await?);
    Ok(())
}
