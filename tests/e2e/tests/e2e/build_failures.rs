//! Whose fault a failed build is: failures of the real BuildKit, each with its status and a part of its error.
//!
//! A queue retries a 502, and a retry does not change a Dockerfile. So what only the caller can fix is a 4xx.

use std::{net::Ipv4Addr, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, http::StatusCode, routing::get};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, buildkit::BuildkitDaemon, testbed::Testbed,
};

/// The number of failing builds that run at the same time.
const CONCURRENT_BUILDS: usize = 6;

/// The status if the caller is to blame and the fault is found before the build.
const STATUS_INVALID_REQUEST: u16 = 400;
/// The status if the caller is to blame and BuildKit reports the fault.
const STATUS_BUILD_FAILED: u16 = 422;
/// The status if the platform is to blame.
const STATUS_PLATFORM_FAULT: u16 = 502;

/// A build that fails, with the expected status and error.
struct FailingBuild {
    name: &'static str,
    source: BuildContext,
    /// The keys of the build's config in addition to the image.
    config: Value,
    status: u16,
    /// A text that the error has to contain.
    error: String,
}

impl FailingBuild {
    /// Returns the case of a Dockerfile in a context with a file `a`.
    fn new(name: &'static str, status: u16, error: &str, dockerfile: &str) -> Self {
        Self {
            name,
            source: BuildContext::dockerfile(dockerfile).with_file("a", "a"),
            config: json!({ "skipPush": true }),
            status,
            error: error.to_owned(),
        }
    }

    fn with_file(mut self, path: &str, text: &str) -> Self {
        self.source = self.source.with_file(path, text);
        self
    }

    fn with_config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }
}

/// A web server on the loopback address that serves the files of a folder below `/files`, and 404 for all others.
struct InProcessFileServer {
    url: String,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl InProcessFileServer {
    async fn start(folder: &Path) -> Result<Self> {
        let folder: Arc<Path> = folder.into();
        let file = move |axum::extract::Path(path): axum::extract::Path<String>| {
            let file = folder.join(path);
            async move { std::fs::read(file).map_err(|_| StatusCode::NOT_FOUND) }
        };
        let app = Router::new().route("/files/{*path}", get(file));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, serving })
    }
}

impl Drop for InProcessFileServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Creates a git repository with one commit that can be fetched as plain files.
fn create_repository_for_dumb_http(folder: &Path) -> Result<()> {
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["config", "user.email", "e2e@example.com"],
        &["config", "user.name", "e2e"],
        &["commit", "--quiet", "--allow-empty", "--message=first"],
        &["update-server-info"],
    ] {
        let mut git = Command::new("git");
        let status = git.current_dir(folder).args(arguments).status()?;
        ensure!(status.success(), "git {arguments:?}: {status}");
    }
    Ok(())
}

/// Returns failures that the Dockerfile or the config causes before any step runs.
fn failing_dockerfiles_and_configs(base: &str) -> Vec<FailingBuild> {
    let scratch = |instruction: &str| format!("FROM scratch\n{instruction}\nCOPY a /\n");
    let failed = |name, error: &str, instruction: &str| {
        FailingBuild::new(name, STATUS_BUILD_FAILED, error, &scratch(instruction))
    };
    vec![
        FailingBuild::new("empty Dockerfile", STATUS_BUILD_FAILED, "empty", ""),
        FailingBuild::new(
            "only comments",
            STATUS_BUILD_FAILED,
            "no instructions",
            "# nothing\n",
        ),
        FailingBuild::new("no FROM", STATUS_BUILD_FAILED, "no build stage", "COPY a /\n"),
        FailingBuild::new("only ARG", STATUS_BUILD_FAILED, "no stages", "ARG X\n"),
        failed("unknown instruction", "unknown instruction: WHAT", "WHAT x"),
        failed(
            "unknown flag",
            "unknown flag: --nonsense",
            "COPY --nonsense=1 a /",
        ),
        failed("COPY without a target", "at least two arguments", "COPY a"),
        failed(
            "unterminated heredoc",
            "unterminated heredoc",
            "COPY <<EOF /x\nno end",
        ),
        failed("LABEL without a value", "two arguments", "LABEL x"),
        failed("ENV without a value", "two arguments", "ENV x"),
        failed("ONBUILD of ONBUILD", "ONBUILD ONBUILD", "ONBUILD ONBUILD RUN x"),
        failed("ONBUILD of FROM", "FROM isn't allowed", "ONBUILD FROM x"),
        failed("invalid port", "99999999", "EXPOSE 99999999"),
        failed(
            "invalid duration",
            "invalid duration",
            "HEALTHCHECK --interval=x CMD true",
        ),
        failed("invalid signal", "invalid signal: NONE", "STOPSIGNAL NONE"),
        failed("SHELL that is not JSON", "JSON form", "SHELL bash"),
        failed("empty VOLUME", "VOLUME", "VOLUME [\"\"]"),
        failed("invalid chmod", "chmod", "COPY --chmod=99999 a /x"),
        failed("open quote", "double-quote", "COPY \"a /x"),
        failed("invalid substitution", "unsupported modifier", "COPY a /${y"),
        FailingBuild::new(
            "wrong escape",
            STATUS_BUILD_FAILED,
            "invalid escape token",
            "# escape=x\nFROM scratch\n",
        ),
        FailingBuild::new(
            "failing check",
            STATUS_BUILD_FAILED,
            "lint violation",
            "# check=error=true\nFROM scratch\nmaintainer x\n",
        ),
        FailingBuild::new(
            "invalid stage name",
            STATUS_BUILD_FAILED,
            "invalid name for build stage",
            "FROM scratch AS 1a\nCOPY a /\n",
        ),
        FailingBuild::new(
            "blank base image",
            STATUS_BUILD_FAILED,
            "should not be blank",
            "ARG X\nFROM $X\n",
        ),
        FailingBuild::new(
            "invalid base image",
            STATUS_BUILD_FAILED,
            "invalid reference format",
            "FROM a:b:c\n",
        ),
        FailingBuild::new(
            "wrong platform of FROM",
            STATUS_BUILD_FAILED,
            "failed to parse platform",
            "FROM --platform=a/b/c/d scratch\n",
        ),
        FailingBuild::new(
            "cyclic stages",
            STATUS_BUILD_FAILED,
            "circular dependency",
            "FROM scratch AS a\nCOPY --from=b x /\nFROM scratch AS b\nCOPY --from=a x /\n",
        ),
        FailingBuild::new(
            "unknown target",
            STATUS_BUILD_FAILED,
            "target stage \"nowhere\"",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("target", "nowhere"),
        FailingBuild::new(
            "invalid time of the source",
            STATUS_BUILD_FAILED,
            "SOURCE_DATE_EPOCH",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("buildArgs", json!({ "SOURCE_DATE_EPOCH": "yesterday" })),
        FailingBuild::new(
            "invalid platform",
            STATUS_INVALID_REQUEST,
            "platforms",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("platforms", json!(["a/b/c/d"])),
        FailingBuild::new(
            "missing Dockerfile",
            STATUS_INVALID_REQUEST,
            "context/missing",
            "FROM scratch\n",
        )
        .with_config("dockerfile", "missing"),
        FailingBuild::new(
            "not allowed frontend",
            STATUS_INVALID_REQUEST,
            "syntax=",
            "# syntax=registry.invalid/x:1\nFROM scratch\n",
        ),
        failed(
            "unknown type of mount",
            "mount type",
            &format!("FROM {base}\nRUN --mount=type=wrong,target=/x true"),
        ),
        failed(
            "unknown key of a mount",
            "nonsense",
            &format!("FROM {base}\nRUN --mount=type=cache,nonsense=1 true"),
        ),
        failed(
            "unknown network",
            "network",
            &format!("FROM {base}\nRUN --network=what true"),
        ),
        failed(
            "network of the host",
            "network.host",
            &format!("FROM {base}\nRUN --network=host true"),
        ),
        failed(
            "privileged step",
            "security.insecure",
            &format!("FROM {base}\nRUN --security=insecure true"),
        ),
    ]
}

/// Returns failures that are found while the build runs.
fn failing_steps(base: &str) -> Vec<FailingBuild> {
    let run = |name, error: &str, step: &str| {
        FailingBuild::new(
            name,
            STATUS_BUILD_FAILED,
            error,
            &format!("FROM {base}\n{step}\n"),
        )
    };
    let comments = "# a line of a comment, in a file of 64 KiB\n".repeat(1500);
    vec![
        run("failing step", "exit code: 3", "RUN exit 3"),
        run(
            "failing step of a large Dockerfile",
            "exit code: 3",
            &format!("{comments}RUN exit 3"),
        ),
        run("killed step", "exit code: 137", "RUN sh -c 'kill -9 $$'; exit $?"),
        run("unknown program", "exit code: 127", "RUN nosuchprogram"),
        run("program that is not in the image", "/nosuch", "RUN [\"/nosuch\"]"),
        run("unknown user", "nobodyatall", "USER nobodyatall\nRUN true"),
        run("forbidden mount", "exit code: 1", "RUN mount -t tmpfs none /mnt"),
        run(
            "missing secret",
            "secret s",
            "RUN --mount=type=secret,id=s,required=true true",
        ),
        run(
            "missing secret as a variable",
            "secret s",
            "RUN --mount=type=secret,id=s,env=X,required=true true",
        ),
        run(
            "missing SSH key",
            "SSH",
            "RUN --mount=type=ssh,required=true true",
        ),
        run(
            "missing source of a mount",
            "/nowhere",
            "RUN --mount=type=bind,source=nowhere,target=/x true",
        ),
        run("past its time limit", "time limit of 1s", "RUN sleep 30").with_config("timeout", "1s"),
        FailingBuild::new(
            "step without a shell",
            STATUS_BUILD_FAILED,
            "/bin/sh",
            "FROM scratch\nRUN true\n",
        ),
    ]
}

/// Returns failures that are found when files of the context are needed.
fn failing_contexts() -> Vec<FailingBuild> {
    let copy = |name, error: &str, instruction: &str| {
        FailingBuild::new(
            name,
            STATUS_BUILD_FAILED,
            error,
            &format!("FROM scratch\n{instruction}\n"),
        )
    };
    vec![
        copy("missing file", "/nowhere", "COPY nowhere /"),
        copy("file outside of the context", "/x", "COPY ../../x /"),
        copy("ignored file", "/a", "COPY a /").with_file(".dockerignore", "a\n"),
        copy("file as a folder", "not a directory", "COPY a /x\nCOPY a /x/y"),
        copy("unclosed class in a source", "a[", "COPY a[ /"),
        copy("tab in a source", "Dockerfile:2", "COPY [\"a\\tb\", \"/\"]"),
        copy(
            "control character in a source",
            "Dockerfile:2",
            "COPY [\"a\\u0001b\", \"/\"]",
        ),
        FailingBuild::new(
            "tab in an ignore pattern",
            STATUS_BUILD_FAILED,
            ".dockerignore:2",
            "FROM scratch\nCOPY a /\n",
        )
        .with_file(".dockerignore", "# first\nx\ty\n"),
        FailingBuild::new(
            "control character in an ignore pattern",
            STATUS_BUILD_FAILED,
            ".dockerignore:1",
            "FROM scratch\nCOPY a /\n",
        )
        .with_file(".dockerignore", "x\u{1}y\n"),
    ]
}

/// Returns failures of what a build downloads or uploads.
fn failing_transfers(registry: &str, web: &str) -> Vec<FailingBuild> {
    let image = |name, status, error: &str, image: &str| {
        FailingBuild::new(name, status, error, &format!("FROM {image}\n"))
    };
    let add = |name, error: &str, instruction: &str| {
        FailingBuild::new(
            name,
            STATUS_BUILD_FAILED,
            error,
            &format!("FROM scratch\nADD {instruction} /x\n"),
        )
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    vec![
        image(
            "unknown base image",
            STATUS_BUILD_FAILED,
            "not found",
            &format!("{registry}/e2e/nowhere:1"),
        ),
        image(
            "unknown tag of a base image",
            STATUS_BUILD_FAILED,
            "not found",
            &format!("{registry}/e2e/busybox:nowhere"),
        ),
        image(
            "unknown digest of a base image",
            STATUS_BUILD_FAILED,
            "not found",
            &format!("{registry}/e2e/busybox@{wrong}"),
        ),
        image(
            "registry that refuses connections",
            STATUS_PLATFORM_FAULT,
            "connection refused",
            "127.0.0.1:1/x:1",
        ),
        image(
            "registry whose name does not resolve",
            STATUS_PLATFORM_FAULT,
            "registry.invalid",
            "registry.invalid/x:1",
        ),
        FailingBuild::new(
            "COPY from an unknown image",
            STATUS_BUILD_FAILED,
            "not found",
            &format!("FROM scratch\nCOPY --from={registry}/e2e/nowhere:1 a /\n"),
        ),
        FailingBuild::new(
            "COPY from an unreachable registry",
            STATUS_PLATFORM_FAULT,
            "connection refused",
            "FROM scratch\nCOPY --from=127.0.0.1:1/x:1 a /\n",
        ),
        add("ADD of a missing page", "404", &format!("{web}/files/nowhere")),
        add(
            "ADD with a wrong checksum",
            "digest mismatch",
            &format!("--checksum={wrong} {web}/files/page"),
        ),
        add(
            "ADD with an invalid checksum",
            "checksum",
            &format!("--checksum=what {web}/files/page"),
        ),
        add(
            "ADD of a missing repository",
            "repository",
            &format!("{web}/files/nowhere.git"),
        ),
        add(
            "ADD of a missing branch",
            "nowhere",
            &format!("{web}/files/repository/.git#nowhere"),
        ),
        FailingBuild::new(
            "push to a registry that refuses",
            STATUS_PLATFORM_FAULT,
            "connection refused",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("skipPush", false)
        .with_config("image", "127.0.0.1:1/x:1"),
        FailingBuild::new(
            "push to a registry without a name",
            STATUS_PLATFORM_FAULT,
            "registry.invalid",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("skipPush", false)
        .with_config("image", "registry.invalid/x:1"),
        FailingBuild::new(
            "cache of an unreachable registry",
            STATUS_PLATFORM_FAULT,
            "connection refused",
            "FROM scratch\nCOPY a /\n",
        )
        .with_config("cacheTo", json!(["type=registry,ref=127.0.0.1:1/cache:1"])),
    ]
}

/// Builds all cases; returns a line for each one whose answer is another than expected.
async fn build_and_list_differences(
    testbed: &Testbed,
    builder: &BuilderProcess,
    cases: Vec<FailingBuild>,
) -> Result<Vec<String>> {
    let client = builder.build_client_with_own_key()?;
    let default_image = testbed.image_name("e2e/build-failures", "1");
    let (client, default_image) = (&client, &default_image);
    let answers = stream::iter(cases).map(|case| async move {
        let mut config = json!({ "image": default_image });
        for (key, value) in case.config.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let reply = client
            .post_signed(case.source.tar_with_config_last(&config)?)
            .await?;
        let is_expected = reply.status == case.status
            && reply.text_field("status") == "failed"
            && reply.text_field("error").contains(&case.error)
            && !reply.text_field("error").contains("rpc error");
        anyhow::Ok((!is_expected).then(|| {
            let expected = format!("{} with {:?}", case.status, case.error);
            format!(
                "{}: expected {expected}: {} {}",
                case.name,
                reply.status,
                reply.text_field("error")
            )
        }))
    });
    let answers: Vec<Result<Option<String>>> = answers.buffer_unordered(CONCURRENT_BUILDS).collect().await;
    answers.into_iter().filter_map(Result::transpose).collect()
}

#[tokio::test]
async fn every_failing_build_has_the_status_of_the_party_at_fault_and_names_the_cause() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    // A daemon of this machine, which reaches the web server.
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("page"), "a page")?;
    std::fs::create_dir(folder.path().join("repository"))?;
    create_repository_for_dumb_http(&folder.path().join("repository"))?;
    let web = InProcessFileServer::start(folder.path()).await?;
    let web_host = web.url.strip_prefix("http://").unwrap_or(&web.url).to_owned();
    let settings = [
        ("allowed_sources", web_host),
        ("buildkit_url", daemon.socket_url()),
        ("max_inflight", CONCURRENT_BUILDS.to_string()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;

    let cases: Vec<FailingBuild> = [
        failing_dockerfiles_and_configs(base),
        failing_steps(base),
        failing_contexts(),
        failing_transfers(&testbed.stack.registry.host, &web.url),
    ]
    .into_iter()
    .flatten()
    .collect();
    let differences = build_and_list_differences(&testbed, &builder, cases).await?;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// The operator sets the credentials, so missing ones are not the caller's fault.
#[tokio::test]
async fn a_private_base_image_without_credentials_is_the_platforms_fault() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.registry_requires_password() {
        // A stack with faasd has a registry without a password, so this fault cannot occur there.
        ensure!(testbed.stack.registry.user.is_empty());
        return Ok(());
    }
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_docker_config(&testbed, "{}", &[]).await?;
    let config = json!({ "image": testbed.image_name("e2e/build-failures", "1"), "skipPush": true });
    let source = BuildContext::dockerfile(format!("FROM {base}\n"));

    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;

    assert_eq!(reply.status, STATUS_PLATFORM_FAULT, "{}", reply.text);
    assert!(reply.text_field("error").contains("401"), "{}", reply.text);
    let repository = base.rsplit_once(':').context("no tag")?.0;
    assert!(reply.text_field("error").contains(repository), "{}", reply.text);
    Ok(())
}
