//! All forms of registry credentials, with a registry that needs bearer tokens and has a private authority.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    certificates::CertificateAuthority,
    registry::RegistryClient,
    testbed::Testbed,
    token_registry::{IDENTITY_TOKEN, TOKEN_USER, TOKEN_USER_PASSWORD, TokenRegistry},
};

#[tokio::test]
async fn every_form_of_the_credentials_file_gets_a_token_and_wrong_credentials_fail_with_502() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let authority = CertificateAuthority::new("private")?;
    let registry = TokenRegistry::start(&testbed, &authority).await?;
    let host = &registry.host;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("ca.pem"), authority.certificate_pem())?;
    // BuildKit uses plain HTTP for registries on the loopback address unless the configuration says otherwise.
    let trust = format!(
        "\n[registry.\"{host}\"]\n  http = false\n  ca = [\"{}/ca.pem\"]\n",
        folder.path().display()
    );
    let daemon = BuildkitDaemon::start(&testbed, &trust).await?;
    let helper = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {host}\" ] || exit 1\n\
         echo '{{\"ServerURL\": \"{host}\", \"Username\": \"{TOKEN_USER}\", \"Secret\": \"{TOKEN_USER_PASSWORD}\"}}'\n"
    );
    let program = folder.path().join("docker-credential-e2e");
    fs::write(&program, helper)?;
    anyhow::ensure!(
        std::process::Command::new("chmod")
            .arg("755")
            .arg(&program)
            .status()?
            .success(),
        "chmod"
    );
    let helpers = folder.path().to_str().context("the path is not UTF-8")?;

    let builder = BuilderProcess::start_with_secrets_replacing_registry_config(
        &testbed,
        &[
            ("buildkit_url", &daemon.socket_url()),
            ("insecure", "false"),
            ("credential_helpers", helpers),
        ],
        &[(
            "registry-config",
            &json!({ "credHelpers": { host: "e2e" } }).to_string(),
        )],
    )
    .await?;
    let build = async |tag: &str, from: &str| {
        let source = BuildContext::dockerfile(format!("FROM {from}\nCOPY a /a\n")).with_file("a", tag);
        let config = json!({ "image": format!("{host}/team/app:{tag}") });
        builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&config)?)
            .await
    };

    let reply = build("helper", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has_tag("team/app", "helper"));
    let given = registry.take_issued_token_descriptions();
    assert!(
        given.contains(&format!(
            "{TOKEN_USER} by password for repository:team/app:pull,push"
        )),
        "{given:?}"
    );

    // The same helper as credentials store, for every registry without a rule of its own.
    builder.replace_secret("registry-config", &json!({ "credsStore": "e2e" }).to_string())?;
    let reply = build("store", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has_tag("team/app", "store"));

    // Pulls from a private image, with the password in the credentials file.
    builder.replace_secret(
        "registry-config",
        &RegistryClient::docker_config(host, TOKEN_USER, TOKEN_USER_PASSWORD),
    )?;
    let reply = build("password", &format!("{host}/team/app:helper")).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has_tag("team/app", "password"));

    let with = |auth: Value| json!({ "auths": { host: auth } }).to_string();
    builder.replace_secret(
        "registry-config",
        &with(json!({ "identitytoken": IDENTITY_TOKEN })),
    )?;
    registry.take_issued_token_descriptions();
    let reply = build("identity", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has_tag("team/app", "identity"));
    let given = registry.take_issued_token_descriptions();
    assert!(
        given
            .iter()
            .any(|token| token.starts_with("anonymous by identity token")),
        "{given:?}"
    );

    for wrong in [
        RegistryClient::docker_config(host, TOKEN_USER, "the wrong one"),
        json!({ "credsStore": "nowhere" }).to_string(),
        with(json!({})),
    ] {
        builder.replace_secret("registry-config", &wrong)?;
        let reply = build("wrong", "scratch").await?;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(!reply.text.contains("the wrong one"), "{}", reply.text);
        assert!(!registry.has_tag("team/app", "wrong"));
    }
    Ok(())
}

/// The daemon does not trust the registry's authority, so nothing is sent to the registry.
#[tokio::test]
async fn credentials_are_not_sent_to_a_registry_with_an_untrusted_certificate() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let registry = TokenRegistry::start(&testbed, &CertificateAuthority::new("unknown")?).await?;
    let host = &registry.host;
    let daemon =
        BuildkitDaemon::start(&testbed, &format!("\n[registry.\"{host}\"]\n  http = false\n")).await?;
    let builder = BuilderProcess::start_with_secrets_replacing_registry_config(
        &testbed,
        &[("buildkit_url", &daemon.socket_url()), ("insecure", "false")],
        &[(
            "registry-config",
            &RegistryClient::docker_config(host, TOKEN_USER, TOKEN_USER_PASSWORD),
        )],
    )
    .await?;
    let source = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a");
    let config = json!({ "image": format!("{host}/team/app:1") });

    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;

    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(
        reply
            .text_field("error")
            .contains("certificate signed by unknown authority"),
        "{}",
        reply.text
    );
    assert_eq!(registry.take_issued_token_descriptions(), Vec::<String>::new());
    assert!(!registry.has_tag("team/app", "1"));
    Ok(())
}
