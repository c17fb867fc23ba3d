//! Contexts that a JSON request refers to, in the stack's own registry and on a web server.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    certificates::CertificateAuthority,
    file_server::FileServer,
    registry::RegistryClient,
    testbed::Testbed,
    tls_proxy::TlsProxy,
    work_dir::{ClientFolder, path_in_repository},
};

/// Starts a builder that stores contexts in `repository` of the stack's registry.
async fn start_builder_that_stores_contexts(testbed: &Testbed, repository: &str) -> Result<BuilderProcess> {
    let repository = format!("{}/{repository}", testbed.stack.registry.host);
    let settings = [("contexts_repository", repository.as_str())];
    BuilderProcess::start_with_settings(testbed, &settings).await
}

#[tokio::test]
async fn an_artifact_as_oras_pushes_it_is_built_and_pushed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let tar = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
        .with_file("a", "by reference")
        .tar_without_config()?;
    let repository = "e2e/contexts-by-oras";
    let digest = testbed
        .registry
        .push_artifact_and_get_digest(repository, tar)
        .await?;
    let name = format!("{}/{repository}", testbed.stack.registry.host);
    let request = |digest: &str| {
        json!({
            "image": testbed.image_name("e2e/referenced", "1"),
            "context": { "oci": format!("{name}@{digest}") },
        })
    };

    let reply = builder
        .build_client_with_own_key()?
        .post_json(&request(&digest))
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let pushed = testbed.registry.get_manifest("e2e/referenced", "1").await?;
    assert_eq!(pushed.context("the image")?.digest, reply.text_field("digest"));

    let none = format!("sha256:{}", "0".repeat(64));
    let reply = builder
        .build_client_with_own_key()?
        .post_json(&request(&none))
        .await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(
        reply.text_field("error").contains("is not there"),
        "{}",
        reply.text
    );
    assert!(builder.files_in_spool_and_unlinked_open_files()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_shell_client_stores_a_folder_and_builds_it() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = start_builder_that_stores_contexts(&testbed, "e2e/contexts-by-shell").await?;
    let work_dir = ClientFolder::new("scratch")?;
    let folder = tempfile::tempdir()?;
    let context = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "by the shell");
    let context = context.write_to_folder(folder.path())?;
    let client = path_in_repository("tests/clients/context.sh");
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let (context, key) = (text(&context)?, text(&testbed.stack.payload_secret)?);
    let image = testbed.image_name("e2e/referenced-by-shell", "1");
    let environment = [("BUILDER_URL", builder.url()), ("PAYLOAD_SECRET", key.as_str())];

    let output = work_dir.run_program(&client, &[image.as_str(), context.as_str()], &environment, b"")?;

    assert_eq!(output.code, 0, "{}", output.stdout_and_stderr());
    assert!(
        testbed
            .registry
            .get_manifest("e2e/referenced-by-shell", "1")
            .await?
            .is_some()
    );
    Ok(())
}

/// The server has a certificate of a private authority, and an address that only the operator opens.
#[tokio::test(flavor = "multi_thread")]
async fn the_shell_client_builds_a_compressed_context_from_a_web_server_over_tls() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let tar = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
        .with_file("a", "by a URL")
        .tar_without_config()?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar)?;
    let file = gzip.finish()?;
    let work_dir = ClientFolder::new("scratch")?;
    let path = tempfile::NamedTempFile::new()?;
    std::fs::write(path.path(), &file)?;
    let files = FileServer::start(file).await?;
    let authority = CertificateAuthority::new("contexts-ca")?;
    let server = TlsProxy::start_to(files.url(), &authority.issue_certificate("localhost")?).await?;
    let host = server
        .url()
        .strip_prefix("https://")
        .context("an https URL")?
        .to_owned();
    let docker_config = RegistryClient::docker_config(
        &testbed.stack.registry.host,
        &testbed.stack.registry.user,
        &testbed.stack.registry.password,
    );
    let ca = authority.certificate_pem();
    let secrets = [
        ("registry-config", docker_config.as_str()),
        ("gateway-ca", ca.as_str()),
    ];
    let client = path_in_repository("tests/clients/context-url.sh");
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let (tar, key) = (text(path.path())?, text(&testbed.stack.payload_secret)?);
    let image = testbed.image_name("e2e/referenced-by-url", "1");
    let url = format!("{}/fn.tar.gz", server.url());
    let build = async |settings: &[(&str, &str)], secrets: &[(&str, &str)]| -> Result<_> {
        let builder =
            BuilderProcess::start_with_secrets_replacing_registry_config(&testbed, settings, secrets).await?;
        let environment = [("BUILDER_URL", builder.url()), ("PAYLOAD_SECRET", key.as_str())];
        let arguments = [image.as_str(), url.as_str(), tar.as_str()];
        let output = work_dir.run_program(&client, &arguments, &environment, b"")?;
        anyhow::ensure!(builder.files_in_spool_and_unlinked_open_files()?.is_empty());
        Ok(output)
    };

    let closed = build(&[], &secrets).await?;
    let opened = [("allowed_sources", host.as_str())];
    let untrusted = build(&opened, &secrets[..1]).await?;
    assert_eq!(files.request_count(), 0, "neither reached the server");
    let trusted = build(&opened, &secrets).await?;

    assert_eq!(closed.code, 22, "{}", closed.stdout_and_stderr());
    let expected = "context.url: localhost is a name without a public address";
    assert!(
        closed.stdout_and_stderr().contains(expected),
        "{}",
        closed.stdout_and_stderr()
    );
    assert_eq!(untrusted.code, 22, "{}", untrusted.stdout_and_stderr());
    assert!(
        untrusted
            .stdout_and_stderr()
            .contains("could not reach localhost"),
        "{}",
        untrusted.stdout_and_stderr()
    );
    assert_eq!(trusted.code, 0, "{}", trusted.stdout_and_stderr());
    assert_eq!(files.request_count(), 1);
    let pushed = testbed
        .registry
        .get_manifest("e2e/referenced-by-url", "1")
        .await?;
    assert!(pushed.is_some());
    Ok(())
}
