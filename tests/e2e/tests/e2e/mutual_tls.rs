//! builder-fn and a BuildKit daemon that know each other by certificates.

use std::fs;

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    buildkit::Buildkit, certificates::Authority, plain::PlainBuilder, registry::Registry, shared::Bench,
    source::Source,
};

#[tokio::test]
async fn builds_run_over_mutual_tls_and_certificates_are_rotated_without_a_restart() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let (ours, other) = (Authority::new("ours")?, Authority::new("another")?);
    let certificates = tempfile::tempdir()?;
    let daemon = ours.issue("buildkit.example")?;
    for (name, content) in [
        ("ca.pem", &ours.pem()),
        ("cert.pem", &daemon.certificate),
        ("key.pem", &daemon.key),
    ] {
        fs::write(certificates.path().join(name), content)?;
    }
    let at = certificates.path().display();
    let tls = format!(
        "  [grpc.tls]\n    ca = \"{at}/ca.pem\"\n    cert = \"{at}/cert.pem\"\n    key = \"{at}/key.pem\"\n"
    );
    let daemon = Buildkit::with_grpc(&bench, &tls, "").await?;

    let good = ours.issue("builder")?;
    let registry = &bench.stack.registry;
    let builder = PlainBuilder::with_secrets(
        &bench,
        &[
            ("buildkit_url", &format!("tcp://127.0.0.1:{}", daemon.port)),
            ("buildkit_server_name", "buildkit.example"),
            ("buildkit_cert", "client.crt"),
        ],
        &[
            ("buildkit-ca", &ours.pem()),
            ("client.crt", &good.certificate),
            ("buildkit-key", &good.key),
            (
                "registry-config",
                &Registry::docker_config(&registry.host, &registry.user, &registry.password),
            ),
        ],
    )
    .await?;
    let tar = Source::dockerfile("FROM scratch\nCOPY a /a\n")
        .file("a", "a")
        .tar(&json!({ "image": bench.image("e2e/secured", "1") }))?;
    let post = async || builder.client()?.post(tar.clone()).await;
    let refused = async |reason: &str| -> Result<()> {
        let reply = post().await?;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(reply.field("error").contains(reason), "{reason}: {}", reply.text);
        Ok(())
    };

    let reply = post().await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(bench.registry.manifest("e2e/secured", "1").await?.is_some());

    let strange = other.issue("builder")?;
    builder.rotate("buildkit-key", &strange.key)?;
    refused("the key in secret buildkit-key does not belong to the certificate in secret client.crt").await?;
    builder.rotate("client.crt", &strange.certificate)?;
    refused("does not trust the authority that this builder's certificate is signed by").await?;
    builder.take_away("client.crt")?;
    builder.take_away("buildkit-key")?;
    refused("asks for a client certificate, and this builder was given none").await?;
    builder.rotate("client.crt", &good.certificate)?;
    builder.rotate("buildkit-key", &good.key)?;
    builder.rotate("buildkit-ca", &other.pem())?;
    refused("the daemon's certificate is not signed by the authority that this builder trusts").await?;
    builder.rotate("buildkit-ca", &ours.pem())?;
    let reply = post().await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}
