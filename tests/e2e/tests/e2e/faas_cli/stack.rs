//! The stack's own faas-cli: makes functions, builds, deploys, queues, signs, and gets the builder from our store.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    client::signature,
    programs::{Desk, in_repository},
    shared::Bench,
};

use super::is_current;

/// Packs what `build --shrinkwrap` laid out, with a config, and gives the tar and the header with its signature.
fn pack(bench: &Bench, desk: &Desk, name: &str, config: &Value) -> Result<(Vec<u8>, String)> {
    desk.write("tar/com.openfaas.docker.config", config.to_string())?;
    let script = format!(
        "rm -rf tar/context && cp -r build/{name} tar/context && tar -C tar -czf - com.openfaas.docker.config context > req.tar"
    );
    let packed = desk.run("sh", &["-c", &script], &[], b"")?;
    ensure!(packed.code == 0, "{packed:?}");
    let tar = std::fs::read(desk.path().join("req.tar"))?;
    let key = std::fs::read(&bench.stack.payload_secret)?;
    let header = format!("X-Build-Signature={}", signature(key.trim_ascii(), &tar)?);
    Ok((tar, header))
}

#[tokio::test]
async fn the_stacks_faas_cli_makes_builds_deploys_queues_and_signs() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let desk = Desk::new(base)?;
    let (name, secret) = ("cli-made", "cli-made-secret");
    let prefix = format!("{}/e2e", bench.stack.registry.host);
    let current = is_current(&bench, &desk).await?;
    let file = if current {
        "stack.yaml".to_owned()
    } else {
        format!("{name}.yml")
    };
    bench.functions.remove(name).await?;
    let cli = async |arguments: &[&str], input: &[u8]| -> Result<String> {
        let ran = desk.faas_cli(&bench, arguments, input).await?;
        ensure!(ran.code == 0, "faas-cli {arguments:?}: {ran:?}");
        Ok(ran.said())
    };

    cli(&["new", "--lang", "small", "--prefix", &prefix, name], b"").await?;
    desk.write(&format!("{name}/index.html"), "built by invoke")?;
    cli(&["build", "--shrinkwrap", "-f", &file], b"").await?;
    let config = json!({ "image": format!("{prefix}/{name}:latest") });
    let (tar, header) = pack(&bench, &desk, name, &config)?;
    let said = cli(&["invoke", "builder-fn", "-H", &header], &tar).await?;
    assert!(said.contains("\"status\":\"success\""), "{said}");

    // Releases before 2022 know no other hash than SHA-1 for --sign.
    let key = std::fs::read_to_string(&bench.stack.payload_secret)?;
    let sign = [
        "invoke",
        "builder-fn",
        "--sign",
        "X-Build-Signature",
        "--key",
        key.trim(),
    ];
    let said = cli(&sign, &tar).await?;
    assert!(said.contains("\"status\":\"success\""), "{said}");

    // Both are left over where an earlier run failed.
    desk.faas_cli(&bench, &["secret", "remove", secret], b"").await?;
    cli(&["secret", "create", secret, "--from-literal", "hush"], b"").await?;
    let listed = cli(&["secret", "list"], b"").await?;
    assert!(listed.contains(secret), "{listed}");
    cli(&["deploy", "-f", &file, "--secret", secret], b"").await?;
    let patience = std::time::Duration::from_secs(60);
    bench
        .functions
        .wait_for_page(name, "built by invoke", patience)
        .await?;

    desk.write(&format!("{name}/index.html"), "built by the queue")?;
    cli(&["build", "--shrinkwrap", "-f", &file], b"").await?;
    let config = json!({ "image": format!("{prefix}/{name}:2"), "deploy": { "service": name } });
    let (tar, header) = pack(&bench, &desk, name, &config)?;
    let said = cli(&["invoke", "builder-fn", "--async", "-H", &header], &tar).await?;
    assert!(said.contains("submitted asynchronously"), "{said}");
    bench
        .functions
        .wait_for_page(name, "built by the queue", patience)
        .await?;

    bench.functions.remove(name).await?;
    cli(&["secret", "remove", secret], b"").await?;
    Ok(())
}

/// Our `store.json`, with the image that the stack has.
#[tokio::test(flavor = "multi_thread")]
async fn faas_cli_deploys_the_builder_from_our_store() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let desk = Desk::new("scratch")?;
    let name = "cli-store";
    bench.functions.remove(name).await?;
    let deployed = bench
        .functions
        .status("builder-fn")
        .await?
        .context("no builder-fn")?;
    let image = deployed["image"].as_str().context("an image")?;
    let store = std::fs::read_to_string(in_repository("store.json"))?;
    let mut store: Value = serde_json::from_str(&store)?;
    let functions = store["functions"].as_array_mut().context("functions")?;
    let ours = functions
        .iter_mut()
        .find(|function| function["name"] == "builder-fn");
    for (_, offered) in ours.context("builder-fn")?["images"]
        .as_object_mut()
        .context("images")?
    {
        *offered = image.into();
    }
    let url = serve(store.to_string()).await?;
    let cli = async |arguments: &[&str]| -> Result<String> {
        let ran = desk.faas_cli(&bench, arguments, b"").await?;
        ensure!(ran.code == 0, "faas-cli {arguments:?}: {ran:?}");
        Ok(ran.said())
    };

    let listed = cli(&["store", "list", "--url", &url]).await?;
    assert!(listed.contains("builder"), "{listed}");
    let deploy = ["store", "deploy", "builder-fn", "--url", &url, "--name", name];
    let secrets = [
        "--secret",
        "payload-secret",
        "--secret",
        "deploy-secret",
        "--secret",
        "registry-config",
    ];
    let daemon = ["--env", "buildkit_url=tcp://127.0.0.1:1234"];
    cli(&[&deploy[..], &secrets, &daemon].concat()).await?;

    // It lives, and tells that this address has no BuildKit.
    let status = bench.functions.status(name).await?.context("not there")?;
    assert_eq!(status["image"], image, "{status}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !matches!(bench.functions.get(name, "/healthz").await, Ok((200, _))) {
        ensure!(std::time::Instant::now() < end, "{name} does not answer");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    bench.functions.remove(name).await
}

/// Serves one JSON document at every path of an address of this machine, for as long as the test runs.
async fn serve(json: String) -> Result<String> {
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
