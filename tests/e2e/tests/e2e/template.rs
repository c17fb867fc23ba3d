//! Functions made from the template by the packaged faas-cli, compiled inside BuildKit.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{shared::Bench, source::Source};

/// `faas-cli new` and `build --shrinkwrap`, as a user does it, in a folder of their own.
struct Workshop<'a> {
    bench: &'a Bench,
    folder: tempfile::TempDir,
}

impl<'a> Workshop<'a> {
    fn open(bench: &'a Bench) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../template");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(templates)
            .arg(folder.path())
            .status()?;
        anyhow::ensure!(copied.success(), "copying the template");
        // faas-cli takes all of the folder along: gigabytes, where somebody has compiled in it.
        let _ = fs::remove_dir_all(folder.path().join("template/rust-hyper/target"));
        Ok(Self { bench, folder })
    }

    fn faas_cli(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.bench.stack.tools.faas_cli)
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .context("running faas-cli")?;
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "faas-cli {arguments:?}: {said}");
        Ok(said)
    }

    /// The shrinkwrapped context of a function, as the tar's content.
    fn shrinkwrap(&self, name: &str) -> Result<Source> {
        self.faas_cli(&["build", "--shrinkwrap", "-f", &format!("{name}.yml")])?;
        let root = self.folder.path().join("build").join(name);
        add(Source::new(), &root, &root)
    }

    async fn build_and_call(&self, name: &str, body: &str) -> Result<(u16, String)> {
        let config = json!({
            "image": self.bench.image(&format!("e2e/{name}"), "1"),
            "buildArgs": { "RUST_IMAGE": self.bench.stack.rust_image() },
            "deploy": { "service": name },
        });
        let reply = self
            .bench
            .builder
            .post(self.shrinkwrap(name)?.tar(&config)?)
            .await?;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
        self.bench.functions.call(name, "", body).await
    }
}

fn add(mut source: Source, root: &Path, folder: &Path) -> Result<Source> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            source = add(source, root, &path)?;
        } else {
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("a path that is not UTF-8")?
                .to_owned();
            source = source.file(&name, fs::read(&path)?);
        }
    }
    Ok(source)
}

/// Pitfall 19: a layer of dependencies that was built with stub sources must not end up in the image, and a changed
/// handler must change the answer.
#[tokio::test]
async fn a_function_from_the_template_answers_and_a_changed_handler_changes_the_answer() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let workshop = Workshop::open(&bench)?;
    let name = "from-template";
    workshop.faas_cli(&["new", "--lang", "rust-hyper", name])?;

    let (status, first) = workshop.build_and_call(name, "there").await?;
    assert_eq!(status, 200, "{first}");
    assert!(
        first.contains("there"),
        "the starter handler answers with what it was sent: {first}"
    );

    let handler = workshop.folder.path().join(name).join("src/main.rs");
    let code = fs::read_to_string(&handler)?;
    assert!(code.contains("Hello"), "the starter handler greets: {code}");
    fs::write(&handler, code.replace("Hello", "Good day"))?;
    let (status, second) = workshop.build_and_call(name, "there").await?;
    assert_eq!((status, second), (200, first.replace("Hello", "Good day")));

    let size = image_size(&bench, &format!("e2e/{name}")).await?;
    assert!(size < 2_000_000, "the hello image is {size} bytes compressed");
    bench.functions.remove(name).await
}

async fn image_size(bench: &Bench, repository: &str) -> Result<u64> {
    let manifest = bench
        .registry
        .manifest(repository, "1")
        .await?
        .context("not in the registry")?;
    let layers = manifest.body["layers"]
        .as_array()
        .context("a manifest without layers")?;
    Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).sum())
}
