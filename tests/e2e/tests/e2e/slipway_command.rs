//! The command `slipway` on the real stack, as a person uses it.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, body::Bytes, extract::State, routing::any};
use serde_json::Value;
use slipway_e2e::{
    build_context::gated_command, builder_process::BuilderProcess, sealed_secrets::BuilderPrivateKey,
    slipway_command::SlipwayProgram, testbed::Testbed, work_dir::ClientFolder,
};

/// The longest time until the function serves a saved file.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Creates a project with one function that serves `page`, with the small template.
pub(super) async fn create_project(testbed: &Testbed, name: &str, page: &str) -> Result<ClientFolder> {
    let folder = ClientFolder::new(testbed.build_busybox_once_and_get_name().await?)?;
    folder.write_file(&format!("{name}/index.html"), page)?;
    let stack = format!(
        "version: 1.0\nprovider:\n  name: openfaas\n  gateway: http://127.0.0.1:8080\nfunctions:\n  {name}:\n    lang: small\n    handler: ./{name}\n    image: {name}:1\n"
    );
    folder.write_file("stack.yaml", stack)?;
    Ok(folder)
}

pub(super) fn function_url_line(testbed: &Testbed, name: &str) -> String {
    format!(
        "{}/function/{name}\n",
        testbed.stack.gateway.url.trim_end_matches('/')
    )
}

#[tokio::test]
async fn up_brings_a_folder_to_a_function_that_answers_and_prints_its_url_and_nothing_else() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-up";
    testbed.functions.remove_function(name).await?;
    // Another page in each run, so that its step is not cached.
    let page = format!("from the queue at {:?}", std::time::SystemTime::now());
    let folder = create_project(&testbed, name, &page).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;

    let output = slipway.run(folder.path(), &["up", "--progress", "json"]).await?;

    assert_eq!(
        (output.code, output.stdout),
        (0, function_url_line(&testbed, name)),
        "{}",
        output.stderr
    );
    let events: Vec<Value> = output
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    let submitted = events.iter().find(|event| event["event"] == "submitted");
    let submitted = submitted.context("no event of the submission")?;
    assert_eq!(submitted["route"], "queue");
    assert!(
        events.iter().any(|event| event["event"] == "running"),
        "{events:?}"
    );
    assert_eq!(testbed.functions.get_function_page(name).await?, (200, page));

    // The build can be asked about afterwards, by its ID and by the function's name.
    let id = submitted["id"].as_str().context("no ID")?;
    let status = slipway.run(folder.path(), &["status", id, "--json"]).await?;
    assert_eq!(
        status.last_line_as_json_or_error_text()["state"],
        "success",
        "{status:?}"
    );
    let log = slipway.run(folder.path(), &["logs", id]).await?;
    assert!(
        log.code == 0 && log.stdout.contains("COPY function /www"),
        "{log:?}"
    );
    let list = slipway
        .run(folder.path(), &["builds", "--function", name, "--json"])
        .await?;
    assert_eq!(
        list.last_line_as_json_or_error_text()["builds"][0]["id"],
        id,
        "{list:?}"
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_failing_build_exits_with_1_shows_why_and_leaves_the_running_version() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-broken";
    let folder = create_project(&testbed, name, "works").await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let arguments = ["up", "--via", "builder"];
    let output = slipway.run(folder.path(), &arguments).await?;
    assert_eq!(
        (output.code, output.stdout),
        (0, function_url_line(&testbed, name)),
        "{}",
        output.stderr
    );

    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    folder.write_file(
        "template/small/Dockerfile",
        format!("{dockerfile}RUN echo the compiler says no; exit 3\n"),
    )?;
    for via in ["builder", "gateway"] {
        let output = slipway.run(folder.path(), &["up", "--via", via]).await?;
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (1, ""),
            "{via}: {output:?}"
        );
        for part in ["the compiler says no", "exit code: 3", "next: "] {
            assert!(output.stderr.contains(part), "{via}: {part}: {}", output.stderr);
        }
    }
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "works".to_owned())
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_refused_deployment_exits_with_3_and_a_wrong_key_with_2() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-refused";
    let folder = create_project(&testbed, name, "page").await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let stack = fs::read_to_string(folder.path().join("stack.yaml"))?;
    folder.write_file(
        "stack.yaml",
        format!("{stack}    secrets: [no-such-secret-for-{name}]\n"),
    )?;
    let output = slipway.run(folder.path(), &["up", "--via", "builder"]).await?;
    assert_eq!((output.code, output.stdout.as_str()), (3, ""), "{output:?}");
    assert!(output.stderr.contains("no-such-secret"), "{output:?}");

    let key = folder.write_file("other-key", "another key than the builder's\n")?;
    let stranger = slipway.with_variable("SLIPWAY_PAYLOAD_SECRET_FILE", &key.display().to_string());
    let output = stranger.run(folder.path(), &["up", "--via", "builder"]).await?;
    assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:?}");
    assert!(output.stderr.contains("other-key"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_build_is_cancelled_by_its_id_and_up_exits_with_5() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-cancelled";
    let folder = create_project(&testbed, name, "never").await?;
    let gate = "gate-cmd-cancelled";
    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    let waiting = dockerfile.replace("USER 1000", &format!("RUN {}\nUSER 1000", gated_command(gate)));
    folder.write_file("template/small/Dockerfile", waiting)?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let mut up = slipway.start(folder.path(), &["up", "--via", "builder", "--progress", "json"])?;
    let printed = up.read_stderr_lines_until_one_contains("\"submitted\"").await?;
    let submitted: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    testbed.wait_for_step(gate, true).await?;

    let id = submitted["id"].as_str().context("no ID")?;
    let cancelled = slipway.run(folder.path(), &["cancel", id, "--json"]).await?;

    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let output = up.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!((output.code, output.stdout.as_str()), (5, ""), "{output:?}");
    testbed.wait_for_step(gate, false).await
}

#[tokio::test]
async fn dev_brings_saved_changes_live_and_a_failing_build_leaves_the_running_version() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-dev";
    let folder = create_project(&testbed, name, "one").await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let mut dev = slipway.start(folder.path(), &["dev", "--via", "builder"])?;
    dev.read_stderr_lines_until_one_contains("watching for changes")
        .await?;
    testbed
        .functions
        .wait_until_page_equals(name, "one", CHANGE_TIMEOUT)
        .await?;

    folder.write_file(&format!("{name}/index.html"), "two")?;
    dev.read_stderr_lines_until_one_contains("watching for changes")
        .await?;
    testbed
        .functions
        .wait_until_page_equals(name, "two", CHANGE_TIMEOUT)
        .await?;

    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    folder.write_file("template/small/Dockerfile", format!("{dockerfile}RUN exit 4\n"))?;
    dev.read_stderr_lines_until_one_contains("exit code: 4").await?;
    dev.read_stderr_lines_until_one_contains("watching for changes")
        .await?;
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "two".to_owned())
    );

    folder.write_file(
        "template/small/Dockerfile",
        format!("{dockerfile}LABEL changed=1\n"),
    )?;
    dev.read_stderr_lines_until_one_contains(&format!("/function/{name}"))
        .await?;
    dev.interrupt()?;
    let output = dev.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.stdout,
        function_url_line(&testbed, name).repeat(3),
        "{output:?}"
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn build_secrets_are_sealed_to_the_builders_key_reach_the_step_and_are_not_printed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-sealed";
    let folder = create_project(&testbed, name, "sealed").await?;
    let key = folder.write_file("key", BuilderPrivateKey::generate()?.private_key_file_content())?;
    let key = key.display().to_string();
    let builder =
        BuilderProcess::start_with_settings(&testbed, &[("build_secrets_private_key_path", &key)]).await?;
    folder.write_file("token", "hush-hush-token")?;
    let stack = fs::read_to_string(folder.path().join("stack.yaml"))?;
    folder.write_file(
        "stack.yaml",
        format!("{stack}    build_secrets:\n      token: ./token\n"),
    )?;
    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    let step = format!(
        "RUN --mount=type=secret,id=token,required=true : {:?}; wc -c < /run/secrets/token; cat /run/secrets/token\nUSER 1000",
        std::time::SystemTime::now()
    );
    folder.write_file(
        "template/small/Dockerfile",
        dockerfile.replace("USER 1000", &step),
    )?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;

    let output = slipway
        .run(
            folder.path(),
            &["up", "--via", "builder", "--builder", builder.url()],
        )
        .await?;

    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("   15\n"), "{output:?}");
    assert!(!output.stderr.contains("hush-hush-token"), "{output:?}");
    testbed.functions.remove_function(name).await
}

/// The files of a context, by path: their content, and whether they are executable.
type ContentsAndExecutableBitsByPath = BTreeMap<String, (Vec<u8>, bool)>;

/// Adds the files below `folder` to `files`, by their paths relative to `root`.
fn read_files_below(root: &Path, folder: &Path, files: &mut ContentsAndExecutableBitsByPath) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::metadata(&path)?;
        match metadata.is_dir() {
            true => read_files_below(root, &path, files)?,
            false => {
                let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
                let is_executable = metadata.permissions().mode() & 0o100 != 0;
                files.insert(relative, (fs::read(&path)?, is_executable));
            }
        }
    }
    Ok(())
}

/// Returns the contents and executable bits of the files of a request's context, by their paths in it.
fn context_files_of_request(zstd_tar: &[u8]) -> Result<ContentsAndExecutableBitsByPath> {
    let plain = zstd::stream::decode_all(zstd_tar)?;
    let mut tree = ContentsAndExecutableBitsByPath::new();
    for entry in tar::Archive::new(&plain[..]).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        if let Some(path) = path.strip_prefix("context/")
            && entry.header().entry_type().is_file()
        {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            tree.insert(path.to_owned(), (content, entry.header().mode()? & 0o100 != 0));
        }
    }
    Ok(tree)
}

/// faas-cli makes the folder `build/NAME`; the command sends the same files, without what the ignore file excludes.
#[tokio::test]
async fn a_context_has_the_files_that_faas_cli_lays_out_without_the_ignored_ones() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-layout";
    let folder = create_project(&testbed, name, "page").await?;
    for (path, content) in [
        ("template/small/run.sh", "#!/bin/sh\n"),
        ("template/small/function/kept.txt", "of the template"),
        ("template/small/.dockerignore", "function/ignored\n"),
        ("cmd-layout/sub/build/inner", "stays"),
        ("cmd-layout/build/out", "left out"),
        ("cmd-layout/template/x", "left out"),
        ("cmd-layout/ignored/file", "excluded"),
        ("common/lib/shared.txt", "copied"),
    ] {
        folder.write_file(path, content)?;
    }
    let executable = folder.path().join("template/small/run.sh");
    fs::set_permissions(&executable, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::os::unix::fs::symlink("../common", folder.path().join("cmd-layout/linked"))?;
    let stack = fs::read_to_string(folder.path().join("stack.yaml"))?;
    folder.write_file(
        "stack.yaml",
        format!("{stack}configuration:\n  copy:\n    - ./common/lib\n"),
    )?;

    let shrinkwrapped = folder
        .run_logged_in_faas_cli(&testbed, &["build", "--shrinkwrap", "-f", "stack.yaml"], b"")
        .await?;
    ensure!(shrinkwrapped.code == 0, "{shrinkwrapped:?}");
    let mut expected = ContentsAndExecutableBitsByPath::new();
    let root = folder.path().join("build").join(name);
    read_files_below(&root, &root, &mut expected)?;
    expected.retain(|path, _| !path.starts_with("function/ignored/"));

    let received = Arc::new(Mutex::new(Bytes::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let keep = async |State(received): State<Arc<Mutex<Bytes>>>, body: Bytes| {
        if let Ok(mut received) = received.lock()
            && !body.is_empty()
        {
            *received = body;
        }
        "{\"image\":\"x\",\"status\":\"success\",\"duration\":0,\"deployment\":{\"status\":\"ready\"}}\n"
    };
    let app = Router::new().fallback(any(keep)).with_state(received.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let output = slipway
        .run(folder.path(), &["up", "--via", "builder", "--builder", &address])
        .await?;
    assert_eq!(output.code, 0, "{output:?}");

    let body = received.lock().map_err(|_| anyhow::anyhow!("the lock"))?.clone();
    let sent = context_files_of_request(&body)?;
    assert_eq!(
        sent.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    assert_eq!(sent, expected);
    Ok(())
}
