//! The stack's faas-cli: creates, builds, deploys, queues and signs, and deploys the builder from `store.json`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    client::sign_body,
    testbed::Testbed,
    work_dir::{ClientFolder, path_in_repository},
};

use super::stacks_faas_cli_supports_remote_builder;

/// Packs the output of `build --shrinkwrap` with a config. Returns the gzipped tar, and the argument for faas-cli's
/// `-H` with its signature, `X-Build-Signature=…`.
fn pack_shrinkwrap_with_faas_cli_signature_argument(
    testbed: &Testbed,
    work_dir: &ClientFolder,
    name: &str,
    config: &Value,
) -> Result<(Vec<u8>, String)> {
    work_dir.write_file("tar/com.openfaas.docker.config", config.to_string())?;
    let script = format!(
        "rm -rf tar/context && cp -r build/{name} tar/context && tar -C tar -czf - com.openfaas.docker.config context > req.tar"
    );
    let packed = work_dir.run_program("sh", &["-c", &script], &[], b"")?;
    ensure!(packed.code == 0, "{packed:?}");
    let tar = std::fs::read(work_dir.path().join("req.tar"))?;
    let key = std::fs::read(&testbed.stack.payload_secret)?;
    let argument = format!("X-Build-Signature={}", sign_body(key.trim_ascii(), &tar)?);
    Ok((tar, argument))
}

#[tokio::test]
async fn the_stacks_faas_cli_creates_builds_deploys_queues_and_signs() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let work_dir = ClientFolder::new(base)?;
    let (name, secret) = ("cli-made", "cli-made-secret");
    let prefix = format!("{}/e2e", testbed.stack.registry.host);
    let current = stacks_faas_cli_supports_remote_builder(&testbed, &work_dir).await?;
    let file = if current {
        "stack.yaml".to_owned()
    } else {
        format!("{name}.yml")
    };
    testbed.functions.remove_function(name).await?;
    let cli = async |arguments: &[&str], input: &[u8]| -> Result<String> {
        let output = work_dir
            .run_logged_in_faas_cli(&testbed, arguments, input)
            .await?;
        ensure!(output.code == 0, "faas-cli {arguments:?}: {output:?}");
        Ok(output.stdout_and_stderr())
    };

    cli(&["new", "--lang", "small", "--prefix", &prefix, name], b"").await?;
    work_dir.write_file(&format!("{name}/index.html"), "built by invoke")?;
    cli(&["build", "--shrinkwrap", "-f", &file], b"").await?;
    let config = json!({ "image": format!("{prefix}/{name}:latest") });
    let (tar, signature) =
        pack_shrinkwrap_with_faas_cli_signature_argument(&testbed, &work_dir, name, &config)?;
    let output = cli(&["invoke", "builder-fn", "-H", &signature], &tar).await?;
    assert!(output.contains("\"status\":\"success\""), "{output}");

    // Releases before 2022 support only SHA-1 for --sign.
    let key = std::fs::read_to_string(&testbed.stack.payload_secret)?;
    let sign = [
        "invoke",
        "builder-fn",
        "--sign",
        "X-Build-Signature",
        "--key",
        key.trim(),
    ];
    let output = cli(&sign, &tar).await?;
    assert!(output.contains("\"status\":\"success\""), "{output}");

    // An earlier run that failed leaves the secret behind.
    work_dir
        .run_logged_in_faas_cli(&testbed, &["secret", "remove", secret], b"")
        .await?;
    cli(&["secret", "create", secret, "--from-literal", "hush"], b"").await?;
    let listed = cli(&["secret", "list"], b"").await?;
    assert!(listed.contains(secret), "{listed}");
    cli(&["deploy", "-f", &file, "--secret", secret], b"").await?;
    // The queue-worker sends one request after the other, also those of other tests.
    let limit = std::time::Duration::from_secs(180);
    testbed
        .functions
        .wait_until_page_equals(name, "built by invoke", limit)
        .await?;

    work_dir.write_file(&format!("{name}/index.html"), "built by the queue")?;
    cli(&["build", "--shrinkwrap", "-f", &file], b"").await?;
    let config = json!({ "image": format!("{prefix}/{name}:2"), "deploy": { "service": name } });
    let (tar, signature) =
        pack_shrinkwrap_with_faas_cli_signature_argument(&testbed, &work_dir, name, &config)?;
    let output = cli(&["invoke", "builder-fn", "--async", "-H", &signature], &tar).await?;
    assert!(output.contains("submitted asynchronously"), "{output}");
    testbed
        .functions
        .wait_until_page_equals(name, "built by the queue", limit)
        .await?;

    testbed.functions.remove_function(name).await?;
    cli(&["secret", "remove", secret], b"").await?;
    Ok(())
}

/// Uses this repository's `store.json` with the image that the stack has.
#[tokio::test(flavor = "multi_thread")]
async fn faas_cli_deploys_the_builder_from_store_json() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let work_dir = ClientFolder::new("scratch")?;
    let name = "cli-store";
    testbed.functions.remove_function(name).await?;
    let deployed = testbed
        .functions
        .function_status("builder-fn")
        .await?
        .context("the stack has no builder-fn")?;
    let image = deployed["image"].as_str().context("builder-fn has no image")?;
    let store = std::fs::read_to_string(path_in_repository("store.json"))?;
    let mut store: Value = serde_json::from_str(&store)?;
    let functions = store["functions"]
        .as_array_mut()
        .context("store.json: no functions")?;
    let ours = functions
        .iter_mut()
        .find(|function| function["name"] == "builder-fn");
    for (_, offered) in ours.context("store.json: no builder-fn")?["images"]
        .as_object_mut()
        .context("store.json: no images")?
    {
        *offered = image.into();
    }
    let url = serve_json_document(store.to_string()).await?;
    let cli = async |arguments: &[&str]| -> Result<String> {
        let output = work_dir.run_logged_in_faas_cli(&testbed, arguments, b"").await?;
        ensure!(output.code == 0, "faas-cli {arguments:?}: {output:?}");
        Ok(output.stdout_and_stderr())
    };

    let listed = cli(&["store", "list", "--url", &url]).await?;
    assert!(listed.contains("builder"), "{listed}");
    let deploy = ["store", "deploy", "builder-fn", "--url", &url, "--name", name];
    let secrets = [
        "payload-secret",
        "deploy-secret",
        "registry-config",
        "buildkit-ca",
        "buildkit-cert",
        "buildkit-key",
    ]
    .map(|secret| ["--secret", secret])
    .concat();
    let daemon = ["--env", "buildkit_url=tcp://127.0.0.1:1234"];
    cli(&[&deploy[..], &secrets, &daemon].concat()).await?;

    // The builder is alive, and not ready: there is no BuildKit at this address.
    let status = testbed
        .functions
        .function_status(name)
        .await?
        .context("the function was not created")?;
    assert_eq!(status["image"], image, "{status}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !matches!(testbed.functions.get_path(name, "/healthz").await, Ok((200, _))) {
        ensure!(std::time::Instant::now() < end, "{name} does not answer");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    testbed.functions.remove_function(name).await
}

/// Serves a JSON document at all paths, until the test's runtime ends; returns a URL of it.
async fn serve_json_document(json: String) -> Result<String> {
    use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}/store.json", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let json = json.clone();
            let answer = service_fn(move |_: Request<Incoming>| {
                let body = http_body_util::Full::new(hyper::body::Bytes::from(json.clone()));
                async { Ok::<_, std::convert::Infallible>(Response::new(body)) }
            });
            let io = hyper_util::rt::TokioIo::new(connection);
            tokio::spawn(http1::Builder::new().serve_connection(io, answer));
        }
    });
    Ok(url)
}
