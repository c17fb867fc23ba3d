//! Builds whose caller waits for the answer.

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{client::Client, shared::Bench, source::Source};

async fn builds_and_answers(bench: &Bench, client: &Client, name: &str) -> Result<()> {
    let base = bench.busybox().await?;
    let image = bench.image(&format!("e2e/{name}"), "1");
    let config = json!({ "image": image, "deploy": { "service": name } });
    let reply = client.post(Source::pages(base, "first").tar(&config)?).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let result = reply.json();
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["image"], image.as_str(), "{result}");
    assert!(
        result["duration"].as_f64().is_some_and(|seconds| seconds > 0.0),
        "{result}"
    );
    assert!(
        result["log"].as_array().is_some_and(|lines| !lines.is_empty()),
        "{result}"
    );
    assert_eq!(result["deployment"]["status"], "ready", "{result}");
    assert_eq!(result["deployment"]["function"], name, "{result}");

    let manifest = bench
        .registry
        .manifest(&format!("e2e/{name}"), "1")
        .await?
        .context("the image is not in the registry")?;
    let deployed = result["deployment"]["image"].as_str().unwrap_or_default();
    assert!(
        deployed.ends_with(&format!("@{}", manifest.digest)),
        "deployed by digest: {deployed}, {}",
        manifest.digest
    );
    assert_eq!(bench.functions.page(name).await?, (200, "first".to_owned()));
    bench.functions.remove(name).await
}

#[tokio::test]
async fn a_build_through_the_gateway_answers_with_the_result_and_the_function_runs() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    builds_and_answers(&bench, &bench.through_gateway, "through-gateway").await
}

#[tokio::test]
async fn a_build_straight_at_the_builder_answers_with_the_result_and_the_function_runs() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    builds_and_answers(&bench, &bench.builder, "straight-at-builder").await
}

#[tokio::test]
async fn the_root_path_builds_as_well_because_the_gateway_strips_the_functions_own() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let key = std::fs::read(&bench.stack.payload_secret)?;
    let root = Client::new(format!("{}/", bench.stack.builder_url), &key)?;
    let image = bench.image("e2e/root-path", "1");
    let reply = root.post(
        Source::dockerfile("FROM scratch\nCOPY a /a\n")
            .file("a", "a")
            .tar(&json!({ "image": image }))?,
    );
    assert_eq!(reply.await?.status, 200);
    assert!(bench.registry.manifest("e2e/root-path", "1").await?.is_some());
    Ok(())
}

/// BuildKit drops a session that does not answer its health checks after about ten seconds.
#[tokio::test]
async fn a_build_of_over_twenty_seconds_keeps_its_session() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let image = bench.image("e2e/long", "1");
    // The last COPY needs the session after the long step, and the argument keeps the step from being cached.
    let dockerfile = format!("FROM {base}\nARG AT\nRUN sleep 22; echo $AT > /at\nCOPY late /late\n");
    let at = format!("{:?}", std::time::SystemTime::now());
    let config = json!({ "image": image, "buildArgs": { "AT": at } });
    let reply = bench
        .builder
        .post(Source::dockerfile(dockerfile).file("late", "late").tar(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        reply.json()["duration"]
            .as_f64()
            .is_some_and(|seconds| seconds > 20.0),
        "{}",
        reply.text
    );
    assert!(bench.registry.manifest("e2e/long", "1").await?.is_some());
    Ok(())
}

/// The body waits on the disk of the function's container: neither in its memory nor in a folder that counts as such.
#[tokio::test]
async fn a_context_larger_than_the_builders_memory_limit_is_built() -> Result<()> {
    const MEMORY_LIMIT: usize = 256 << 20;
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let config = json!({ "image": bench.image("e2e/large", "1"), "skipPush": true });
    let tar = Source::dockerfile("FROM scratch\nCOPY Dockerfile /\n")
        .file("pad", vec![7; MEMORY_LIMIT + (8 << 20)])
        .tar(&config)?;
    let reply = bench.builder.post(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn what_dockerignore_names_does_not_reach_the_image() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let name = "dockerignored";
    let source = Source::pages(base, "kept")
        .file("www/secret.txt", "must not be seen")
        .file("www/logs/a.log", "must not be seen")
        .file("www/logs/keep.log", "seen")
        .file(
            ".dockerignore",
            "# a comment\n**/secret.txt\nwww/logs/*.log\n!www/logs/keep.log\n",
        );
    let config = json!({ "image": bench.image("e2e/dockerignored", "1"), "deploy": { "service": name } });
    let reply = bench.builder.post(source.tar(&config)?).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let call = |path: &'static str| bench.functions.get(name, path);
    assert_eq!(call("/").await?, (200, "kept".to_owned()));
    assert_eq!(call("/logs/keep.log").await?, (200, "seen".to_owned()));
    assert_eq!(call("/secret.txt").await?.0, 404);
    assert_eq!(call("/logs/a.log").await?.0, 404);
    bench.functions.remove(name).await
}

#[tokio::test]
async fn a_build_without_push_leaves_the_registry_as_it_was() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let image = bench.image("e2e/not-pushed", "1");
    let config = json!({ "image": image, "skipPush": true });
    let reply = bench
        .builder
        .post(
            Source::dockerfile("FROM scratch\nCOPY a /a\n")
                .file("a", "a")
                .tar(&config)?,
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(bench.registry.manifest("e2e/not-pushed", "1").await?.is_none());
    Ok(())
}
