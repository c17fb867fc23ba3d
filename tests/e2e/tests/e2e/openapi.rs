//! The description of the API (`builder-fn/openapi.yaml`) against what a builder does, by schemathesis: it makes requests
//! from the description and compares every answer with it. `tests/openapi/hooks.py` packs and signs them.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    plain::PlainBuilder,
    programs::{Desk, in_repository},
    recorded::Recorded,
    shared::Bench,
};
use slipway_stack::Places;

/// Python with schemathesis, installed at its first use, in a folder named by what is installed.
fn python() -> Result<PathBuf> {
    let requirements = in_repository("tests/openapi/requirements.txt");
    let mut name = hex::encode(Sha256::digest(fs::read(&requirements)?));
    name.truncate(16);
    let folder = Places::from_env()?
        .cache
        .join("tools")
        .join(format!("schemathesis-{name}"));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.exists() {
        return Ok(python);
    }
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {said}");
        Ok(())
    };
    run(Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "-r",
        ])
        .arg(&requirements))?;
    fs::write(complete, "")?;
    Ok(python)
}

/// Three checks make no sense here. A probe is answered whatever its method is. Data that the description forbids is not
/// always refused with a status: a signed request that asks for records has 200, and the reason in them. And data that it
/// allows may still be refused: no description can say what a tar has to contain.
#[tokio::test]
async fn the_builder_does_what_its_description_says() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let keys = tempfile::tempdir()?;
    let key = Recorded::read()?.private_key(keys.path())?;
    let settings = [("build_secrets_private_key_path", key.as_str())];
    let builder = PlainBuilder::with_settings(&bench, &settings).await?;
    let text = |path: PathBuf| {
        path.into_os_string()
            .into_string()
            .ok()
            .context("a path that is no text")
    };
    let description = text(in_repository("builder-fn/openapi.yaml"))?;
    let desk = Desk::new("scratch")?;
    let environment = [
        ("SCHEMATHESIS_HOOKS", "hooks"),
        ("PYTHONPATH", &text(in_repository("tests/openapi"))?),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("DESCRIPTION", &description),
        ("PAYLOAD_SECRET", &text(bench.stack.payload_secret.clone())?),
        ("IMAGE", &bench.image("e2e/openapi", "1")),
    ];
    let arguments = format!(
        "-m schemathesis.cli run {description} --url {} --exclude-path /metrics --phases examples,coverage,fuzzing \
         --max-examples 40 --seed 1 --no-shrink --continue-on-failure \
         --exclude-checks unsupported_method,negative_data_rejection,positive_data_acceptance",
        builder.url()
    );
    let arguments: Vec<_> = arguments.split_whitespace().collect();

    let ran = desk.run(python()?, &arguments, &environment, b"")?;

    assert_eq!(ran.code, 0, "{}", ran.said());
    // Had all been refused at the door, nothing would have been compared.
    assert!(builder.metric("slipway_context_sent_bytes_total").await? > 0.0);
    Ok(())
}
