//! Functions created from the template by the packaged faas-cli, and compiled in BuildKit.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{client::HttpReply, template_project::TemplateProject, testbed::Testbed};

/// Builds and deploys a function; fails unless that succeeds.
async fn build_and_deploy_or_fail(
    testbed: &Testbed,
    project: &TemplateProject,
    name: &str,
) -> Result<HttpReply> {
    let config = json!({
        "image": testbed.image_name(&format!("e2e/{name}"), "1"),
        "buildArgs": { "RUST_IMAGE": testbed.stack.rust_image() },
        "deploy": { "service": name },
    });
    let tar = project.shrinkwrap_function(name)?.tar_with_config_last(&config)?;
    let reply = testbed.builder.post_signed(tar).await?;
    anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    Ok(reply)
}

/// Builds and deploys a function, and posts this body to it; returns status and text.
async fn build_and_call(
    testbed: &Testbed,
    project: &TemplateProject,
    name: &str,
    body: &str,
) -> Result<(u16, String)> {
    build_and_deploy_or_fail(testbed, project, name).await?;
    testbed.functions.post_to_function(name, "", body).await
}

/// Returns the names of the crates that a build compiled, from cargo's output. Cached steps have no output.
fn compiled_crates(reply: &HttpReply) -> Result<Vec<String>> {
    let record = reply.json_or_error_text();
    let log = record["log"].as_array().context("the answer has no log")?;
    let words = log.iter().map(|line| {
        let mut words = line.as_str().unwrap_or_default().split_whitespace();
        words.find(|word| *word == "Compiling")?;
        words.next().map(str::to_owned)
    });
    Ok(words.flatten().collect())
}

/// The template compiles the dependencies with stub sources first, in a layer of their own. The stub must not end
/// up in the image (docs/pitfalls.md#stub-sources).
#[tokio::test]
async fn a_changed_handler_changes_the_answer_of_a_function_from_the_template() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let project = TemplateProject::new(&testbed.stack)?;
    let name = "from-template";
    project.create_function(name)?;

    let plain_tar = project
        .shrinkwrap_function(name)?
        .tar_with_config_last(&json!({}))?;
    assert!(
        plain_tar.len() < 200_000,
        "a plain tar has {} bytes",
        plain_tar.len()
    );
    let (status, first) = build_and_call(&testbed, &project, name, "there").await?;
    assert_eq!(status, 200, "{first}");
    assert!(
        first.contains("there"),
        "the starter handler does not return its input: {first}"
    );

    project.write_starter_handler_with_greeting(name, "Good day")?;
    let (status, second) = build_and_call(&testbed, &project, name, "there").await?;
    assert_eq!((status, second), (200, first.replace("Hello", "Good day")));

    let size = compressed_layer_bytes_of_tag_1(&testbed, &format!("e2e/{name}")).await?;
    assert!(size < 1_500_000, "the hello image is {size} bytes compressed");
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn functions_of_the_template_share_all_that_is_compiled_except_their_handlers() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let project = TemplateProject::new(&testbed.stack)?;
    for name in ["shared-first", "shared-second"] {
        project.create_function(name)?;
    }
    build_and_deploy_or_fail(&testbed, &project, "shared-first").await?;

    // Another text in each run: BuildKit may have the images of an earlier one.
    let greeting = format!(
        "Welcome {}",
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos()
    );
    project.write_starter_handler_with_greeting("shared-second", &greeting)?;
    let second = build_and_deploy_or_fail(&testbed, &project, "shared-second").await?;
    assert_eq!(
        compiled_crates(&second)?,
        ["function"],
        "the layer of dependencies was not shared: {}",
        second.text
    );
    let (status, answer) = testbed
        .functions
        .post_to_function("shared-second", "", "both")
        .await?;
    assert_eq!((status, answer), (200, format!("{greeting}, both!\n")));

    // With another dependency, what the host needs is still there.
    let manifest = project.function_folder("shared-second").join("Cargo.toml");
    let dependencies = fs::read_to_string(&manifest)?;
    fs::write(manifest, dependencies + "hex = \"0.4.3\"\n")?;
    let third = compiled_crates(&build_and_deploy_or_fail(&testbed, &project, "shared-second").await?)?;
    assert!(third.iter().all(|name| name == "function"), "{third:?}");
    for name in ["shared-first", "shared-second"] {
        testbed.functions.remove_function(name).await?;
    }
    Ok(())
}

/// Returns the size of the compressed layers of an image with the tag `1`.
async fn compressed_layer_bytes_of_tag_1(testbed: &Testbed, repository: &str) -> Result<u64> {
    let manifest = testbed
        .registry
        .get_manifest(repository, "1")
        .await?
        .context("the image is not in the registry")?;
    let layers = manifest.body["layers"]
        .as_array()
        .context("the manifest has no layers")?;
    Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).sum())
}
