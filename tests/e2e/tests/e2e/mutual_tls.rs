//! builder-fn and a BuildKit daemon with mutual TLS.

use std::fs;

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, buildkit::BuildkitDaemon,
    certificates::CertificateAuthority, registry::RegistryClient, testbed::Testbed,
};

#[tokio::test]
async fn builds_run_over_mutual_tls_and_the_builder_uses_rotated_certificates_without_a_restart() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (ours, other) = (
        CertificateAuthority::new("ours")?,
        CertificateAuthority::new("another")?,
    );
    let certificates = tempfile::tempdir()?;
    let daemon = ours.issue_certificate("buildkit.example")?;
    for (name, content) in [
        ("ca.pem", &ours.certificate_pem()),
        ("cert.pem", &daemon.certificate),
        ("key.pem", &daemon.key),
    ] {
        fs::write(certificates.path().join(name), content)?;
    }
    let at = certificates.path().display();
    let tls = format!(
        "  [grpc.tls]\n    ca = \"{at}/ca.pem\"\n    cert = \"{at}/cert.pem\"\n    key = \"{at}/key.pem\"\n"
    );
    let daemon = BuildkitDaemon::start_with_grpc_settings(&testbed, &tls, "").await?;

    let good = ours.issue_certificate("builder")?;
    let registry = &testbed.stack.registry;
    let builder = BuilderProcess::start_with_secrets_replacing_registry_config(
        &testbed,
        &[
            ("buildkit_url", &format!("tcp://127.0.0.1:{}", daemon.port)),
            ("buildkit_server_name", "buildkit.example"),
            ("buildkit_cert", "client.crt"),
        ],
        &[
            ("buildkit-ca", &ours.certificate_pem()),
            ("client.crt", &good.certificate),
            ("buildkit-key", &good.key),
            (
                "registry-config",
                &RegistryClient::docker_config(&registry.host, &registry.user, &registry.password),
            ),
        ],
    )
    .await?;
    let tar = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
        .with_file("a", "a")
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/secured", "1") }))?;
    let post = async || {
        builder
            .build_client_with_own_key()?
            .post_signed(tar.clone())
            .await
    };
    let assert_fails = async |reason: &str| -> Result<()> {
        let reply = post().await?;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(
            reply.text_field("error").contains(reason),
            "{reason}: {}",
            reply.text
        );
        Ok(())
    };

    let reply = post().await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(testbed.registry.get_manifest("e2e/secured", "1").await?.is_some());

    let strange = other.issue_certificate("builder")?;
    builder.replace_secret("buildkit-key", &strange.key)?;
    assert_fails("the key in secret buildkit-key does not belong to the certificate in secret client.crt")
        .await?;
    builder.replace_secret("client.crt", &strange.certificate)?;
    assert_fails("does not trust the authority that this builder's certificate is signed by").await?;
    builder.remove_secret("client.crt")?;
    builder.remove_secret("buildkit-key")?;
    assert_fails("asks for a client certificate, and this builder was given none").await?;
    builder.replace_secret("client.crt", &good.certificate)?;
    builder.replace_secret("buildkit-key", &good.key)?;
    builder.replace_secret("buildkit-ca", &other.certificate_pem())?;
    assert_fails("the daemon's certificate is not signed by the authority that this builder trusts").await?;
    builder.replace_secret("buildkit-ca", &ours.certificate_pem())?;
    let reply = post().await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}
