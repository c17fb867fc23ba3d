//! Functions created from the template by the packaged faas-cli, and compiled in BuildKit.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, client::HttpReply, testbed::Testbed};

/// A folder for `faas-cli new` and `faas-cli build --shrinkwrap`.
struct TemplateProject<'a> {
    testbed: &'a Testbed,
    folder: tempfile::TempDir,
}

impl<'a> TemplateProject<'a> {
    fn new(testbed: &'a Testbed) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../template");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(templates)
            .arg(folder.path())
            .status()?;
        anyhow::ensure!(copied.success(), "copying the template");
        // faas-cli would copy this folder too: gigabytes, if the template was compiled in place.
        let _ = fs::remove_dir_all(folder.path().join("template/rust-hyper/target"));
        Ok(Self { testbed, folder })
    }

    fn run_faas_cli(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.testbed.stack.tools.faas_cli)
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .context("running faas-cli")?;
        let output_text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "faas-cli {arguments:?}: {output_text}");
        Ok(output_text)
    }

    /// Runs `faas-cli build --shrinkwrap` for a function, and returns the context that it wrote.
    fn shrinkwrap_function(&self, name: &str) -> Result<BuildContext> {
        self.run_faas_cli(&["build", "--shrinkwrap", "-f", &format!("{name}.yml")])?;
        let root = self.folder.path().join("build").join(name);
        add_folder(BuildContext::new(), &root, &root)
    }

    /// Builds and deploys a function; fails unless that succeeds.
    async fn build_and_deploy_or_fail(&self, name: &str) -> Result<HttpReply> {
        let config = json!({
            "image": self.testbed.image_name(&format!("e2e/{name}"), "1"),
            "buildArgs": { "RUST_IMAGE": self.testbed.stack.rust_image() },
            "deploy": { "service": name },
        });
        let reply = self
            .testbed
            .builder
            .post_signed(self.shrinkwrap_function(name)?.tar_with_config(&config)?)
            .await?;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
        Ok(reply)
    }

    /// Builds and deploys a function, and posts this body to it; returns status and text.
    async fn build_and_call(&self, name: &str, body: &str) -> Result<(u16, String)> {
        self.build_and_deploy_or_fail(name).await?;
        self.testbed.functions.post_to_function(name, "", body).await
    }
}

/// Returns the names of the crates that a build compiled, from cargo's output. Cached steps have no output.
fn compiled_crates(reply: &HttpReply) -> Result<Vec<String>> {
    let record = reply.json();
    let log = record["log"].as_array().context("the answer has no log")?;
    let words = log.iter().map(|line| {
        let mut words = line.as_str().unwrap_or_default().split_whitespace();
        words.find(|word| *word == "Compiling")?;
        words.next().map(str::to_owned)
    });
    Ok(words.flatten().collect())
}

/// Adds all files below `folder` to a context, with paths relative to `root`.
fn add_folder(mut source: BuildContext, root: &Path, folder: &Path) -> Result<BuildContext> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            source = add_folder(source, root, &path)?;
        } else {
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("the path is not UTF-8")?
                .to_owned();
            source = source.with_file(&name, fs::read(&path)?);
        }
    }
    Ok(source)
}

/// The template compiles the dependencies with stub sources first, in a layer of their own. The stub must not end
/// up in the image (docs/pitfalls.md#stub-sources).
#[tokio::test]
async fn a_changed_handler_changes_the_answer_of_a_function_from_the_template() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let project = TemplateProject::new(&testbed)?;
    let name = "from-template";
    project.run_faas_cli(&["new", "--lang", "rust-hyper", name])?;

    let plain_tar = project.shrinkwrap_function(name)?.tar_with_config(&json!({}))?;
    assert!(
        plain_tar.len() < 200_000,
        "a plain tar has {} bytes",
        plain_tar.len()
    );
    let (status, first) = project.build_and_call(name, "there").await?;
    assert_eq!(status, 200, "{first}");
    assert!(
        first.contains("there"),
        "the starter handler does not return its input: {first}"
    );

    let handler = project.folder.path().join(name).join("src/main.rs");
    let code = fs::read_to_string(&handler)?;
    assert!(
        code.contains("Hello"),
        "the starter handler contains no greeting: {code}"
    );
    fs::write(&handler, code.replace("Hello", "Good day"))?;
    let (status, second) = project.build_and_call(name, "there").await?;
    assert_eq!((status, second), (200, first.replace("Hello", "Good day")));

    let size = compressed_layer_bytes_of_tag_1(&testbed, &format!("e2e/{name}")).await?;
    assert!(size < 1_500_000, "the hello image is {size} bytes compressed");
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn functions_of_the_template_share_what_is_compiled_but_their_handlers() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let project = TemplateProject::new(&testbed)?;
    for name in ["shared-first", "shared-second"] {
        project.run_faas_cli(&["new", "--lang", "rust-hyper", name])?;
    }
    project.build_and_deploy_or_fail("shared-first").await?;

    let folder = project.folder.path().join("shared-second");
    let code = fs::read_to_string(folder.join("src/main.rs"))?;
    // Another text in each run: BuildKit may have the images of an earlier one.
    let greeting = format!(
        "Welcome {}",
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos()
    );
    fs::write(folder.join("src/main.rs"), code.replace("Hello", &greeting))?;
    let second = project.build_and_deploy_or_fail("shared-second").await?;
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
    let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
    fs::write(folder.join("Cargo.toml"), manifest + "hex = \"0.4.3\"\n")?;
    let third = compiled_crates(&project.build_and_deploy_or_fail("shared-second").await?)?;
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
