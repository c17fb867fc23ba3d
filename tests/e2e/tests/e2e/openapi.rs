//! Compares builder-fn's answers with `builder-fn/openapi.yaml`. schemathesis generates requests from the
//! description and checks every answer; `tests/openapi/hooks.py` packs and signs the requests.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    builder_process::BuilderProcess,
    recorded::FaasCliRecording,
    testbed::Testbed,
    work_dir::{ClientFolder, path_in_repository},
};
use slipway_stack::LauncherDirectories;

/// Installs schemathesis on first use, into a folder named by the hash of its requirements, and returns the Python
/// that has it.
fn install_schemathesis_once_and_get_python() -> Result<PathBuf> {
    let requirements = path_in_repository("tests/openapi/requirements.txt");
    let mut name = hex::encode(Sha256::digest(fs::read(&requirements)?));
    name.truncate(16);
    let folder = LauncherDirectories::from_env()?
        .cache
        .join("tools")
        .join(format!("schemathesis-{name}"));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.exists() {
        return Ok(python);
    }
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {stderr}");
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

/// Three checks do not apply. Probes answer every method. A request that the description forbids is not always
/// rejected with an error status: a signed request for records gets 200, and the error is in the records. A request
/// that it allows may be rejected: no description can say what a tar has to contain.
#[tokio::test]
async fn answers_to_generated_requests_match_the_openapi_description() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let keys = tempfile::tempdir()?;
    let key = FaasCliRecording::read_recording()?.write_build_secrets_private_key(keys.path())?;
    let contexts = format!("{}/e2e/openapi-contexts", testbed.stack.registry.host);
    let records = format!("{}/e2e/openapi-records", testbed.stack.registry.host);
    let settings = [
        ("build_secrets_private_key_path", key.as_str()),
        ("contexts_repository", contexts.as_str()),
        ("records_repository", records.as_str()),
    ];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let text = |path: PathBuf| {
        path.into_os_string()
            .into_string()
            .ok()
            .context("the path is not UTF-8")
    };
    let description = text(path_in_repository("builder-fn/openapi.yaml"))?;
    let work_dir = ClientFolder::new("scratch")?;
    let answers = work_dir.path().join("answers");
    let environment = [
        ("SCHEMATHESIS_HOOKS", "hooks"),
        ("PYTHONPATH", &text(path_in_repository("tests/openapi"))?),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("DESCRIPTION", &description),
        ("PAYLOAD_SECRET", &text(testbed.stack.payload_secret.clone())?),
        ("IMAGE", &testbed.image_name("e2e/openapi", "1")),
        ("BUILDER_URL", builder.url()),
        ("ANSWERS", &text(answers.clone())?),
    ];
    let arguments = format!(
        "-m schemathesis.cli run {description} --url {} --exclude-path /metrics \
         --exclude-path /async-function/builder-fn --phases examples,coverage,fuzzing \
         --max-examples 40 --seed 1 --no-shrink --continue-on-failure --request-timeout 60 \
         --exclude-checks unsupported_method,negative_data_rejection,positive_data_acceptance",
        builder.url()
    );
    let arguments: Vec<_> = arguments.split_whitespace().collect();

    let output = work_dir.run_program(
        install_schemathesis_once_and_get_python()?,
        &arguments,
        &environment,
        b"",
    )?;

    let log = builder.log_text();
    assert_eq!(output.code, 0, "{}\n{log}", output.stdout_and_stderr());
    assert!(!log.contains("panicked"), "{log}");
    // If all requests had been rejected early, no success would have been compared.
    assert!(builder.metric_value("slipway_context_sent_bytes_total").await? > 0.0);
    let answers = fs::read_to_string(answers)?;
    for expected in [
        "POST /build application/octet-stream 200 application/json",
        "POST /build application/octet-stream 200 application/x-ndjson",
        "POST /build application/json 200 application/json",
        "POST /contexts application/octet-stream 201 application/json",
        "GET /builds None 200 application/json",
        "GET /builds/{id} None 200 application/json",
        "GET /builds/{id} None 404 application/json",
        "GET /builds/{id}/log None 200 text/plain",
        "GET /builds/{id}/log None 200 application/x-ndjson",
        "GET /builds/{id}/log None 200 text/event-stream",
        "DELETE /builds/{id} None 409 application/json",
    ] {
        assert!(
            answers.lines().any(|answer| answer == expected),
            "no answer was {expected:?}:\n{answers}"
        );
    }
    Ok(())
}
