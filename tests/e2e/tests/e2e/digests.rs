//! The same image as BuildKit's own client makes, digest for digest, once timestamps are pinned.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{registry::Registry, shared::Bench, source::Source};

const EPOCH: &str = "1700000000";

fn corpus(base: &str) -> Source {
    let long = format!("long/{}/{}.txt", "d".repeat(90), "f".repeat(120));
    Source::dockerfile(format!(
        "FROM {base}\nCOPY . /src\nCOPY --chown=1000:1000 tool /bin/tool\nRUN /bin/tool > /said\nCOPY nested/ /nested/\n"
    ))
    .file_with_mode("tool", "#!/bin/sh\necho said\n", 0o755)
    .file("nested/deep/er/file", "deep")
    .file("nested/a-b", "sorts apart by byte and by component")
    .file("nested/a/b", "sorts apart by byte and by component")
    .file("nested/a.b", "sorts apart by byte and by component")
    .file("ünïcode ☂/näme", "unicode")
    .file(&long, "long")
    .file("empty", "")
    .file("ignored.log", "not in the image")
    .file("big", vec![0x5a; 3 << 20])
    .file(".dockerignore", "*.log\n")
}

#[tokio::test]
async fn an_image_by_builder_fn_and_one_by_buildctl_have_the_same_layers() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let source = corpus(bench.busybox().await?);

    let ours = bench.image("e2e/digests", "builder-fn");
    let config = json!({ "image": ours, "noCache": true, "buildArgs": { "SOURCE_DATE_EPOCH": EPOCH } });
    let reply = bench.builder.post(source.tar(&config)?).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let theirs = bench.image("e2e/digests", "buildctl");
    let folder = tempfile::tempdir()?;
    buildctl(&bench, &source.extract(folder.path())?, &theirs)?;

    let manifest = async |tag| {
        bench
            .registry
            .manifest("e2e/digests", tag)
            .await?
            .context("not in the registry")
    };
    let (ours, theirs) = (manifest("builder-fn").await?, manifest("buildctl").await?);
    assert_eq!(ours.layers().len(), 6, "two of busybox, and one a step: {ours:?}");
    assert_eq!(ours.layers(), theirs.layers());
    assert_eq!(
        ours.digest, theirs.digest,
        "and the same manifest: {ours:?} {theirs:?}"
    );
    Ok(())
}

/// Without the cache: it goes by content, and would hand out the layers of the first build.
fn buildctl(bench: &Bench, folder: &std::path::Path, image: &str) -> Result<()> {
    let registry = &bench.stack.registry;
    let docker = tempfile::tempdir()?;
    let credentials = Registry::docker_config(&registry.host, &registry.user, &registry.password);
    std::fs::write(docker.path().join("config.json"), credentials)?;
    let output = Command::new(&bench.stack.tools.buildctl)
        .env("DOCKER_CONFIG", docker.path())
        .args([
            "--addr",
            &bench.stack.buildkit_host,
            "build",
            "--progress=plain",
            "--no-cache",
            "--frontend",
            "dockerfile.v0",
        ])
        .arg("--local")
        .arg(format!("context={}", folder.display()))
        .arg("--local")
        .arg(format!("dockerfile={}", folder.display()))
        .args([
            "--opt",
            &format!("build-arg:SOURCE_DATE_EPOCH={EPOCH}"),
            "--output",
        ])
        .arg(format!(
            "type=image,name={image},push=true,registry.insecure=true,rewrite-timestamp=true"
        ))
        .output()
        .context("running buildctl")?;
    anyhow::ensure!(
        output.status.success(),
        "buildctl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
