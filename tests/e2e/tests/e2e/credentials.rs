//! Credentials in all their forms, at a registry with bearer tokens and a private authority.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    buildkit::Buildkit,
    certificates::Authority,
    plain::PlainBuilder,
    registry::Registry,
    shared::Bench,
    source::Source,
    token_registry::{IDENTITY_TOKEN, PASSWORD, TokenRegistry, USER},
};

#[tokio::test]
async fn tokens_are_fetched_with_what_the_credentials_file_says_in_any_of_its_forms() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let authority = Authority::new("private")?;
    let registry = TokenRegistry::start(&bench, &authority).await?;
    let host = &registry.host;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("ca.pem"), authority.pem())?;
    // BuildKit takes what is on the loopback address for plain HTTP, unless it is told otherwise.
    let trust = format!(
        "\n[registry.\"{host}\"]\n  http = false\n  ca = [\"{}/ca.pem\"]\n",
        folder.path().display()
    );
    let daemon = Buildkit::start(&bench, &trust).await?;
    let helper = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {host}\" ] || exit 1\n\
         echo '{{\"ServerURL\": \"{host}\", \"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}'\n"
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
    let helpers = folder.path().to_str().context("a path that is not UTF-8")?;

    let builder = PlainBuilder::with_secrets(
        &bench,
        &[
            ("buildkit_url", &daemon.url()),
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
        let source = Source::dockerfile(format!("FROM {from}\nCOPY a /a\n")).file("a", tag);
        let config = json!({ "image": format!("{host}/team/app:{tag}") });
        builder.client()?.post(source.tar(&config)?).await
    };

    let reply = build("helper", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has("team/app", "helper"));
    let given = registry.given();
    assert!(
        given.contains(&format!("{USER} by password for repository:team/app:pull,push")),
        "{given:?}"
    );

    // The same program, for every registry that no other rule is for.
    builder.rotate("registry-config", &json!({ "credsStore": "e2e" }).to_string())?;
    let reply = build("store", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has("team/app", "store"));

    // From a private image, with the password in the file.
    builder.rotate("registry-config", &Registry::docker_config(host, USER, PASSWORD))?;
    let reply = build("password", &format!("{host}/team/app:helper")).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has("team/app", "password"));

    let with = |auth: Value| json!({ "auths": { host: auth } }).to_string();
    builder.rotate(
        "registry-config",
        &with(json!({ "identitytoken": IDENTITY_TOKEN })),
    )?;
    registry.given();
    let reply = build("identity", "scratch").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has("team/app", "identity"));
    let given = registry.given();
    assert!(
        given
            .iter()
            .any(|token| token.starts_with("somebody by identity token")),
        "{given:?}"
    );

    for wrong in [
        Registry::docker_config(host, USER, "the wrong one"),
        json!({ "credsStore": "nowhere" }).to_string(),
        with(json!({})),
    ] {
        builder.rotate("registry-config", &wrong)?;
        let reply = build("wrong", "scratch").await?;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(!reply.text.contains("the wrong one"), "{}", reply.text);
        assert!(!registry.has("team/app", "wrong"));
    }
    Ok(())
}

/// The daemon does not know the authority: the registry cannot be trusted, and nothing is sent to it.
#[tokio::test]
async fn a_registry_of_an_unknown_authority_is_not_given_credentials() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let registry = TokenRegistry::start(&bench, &Authority::new("unknown")?).await?;
    let host = &registry.host;
    let daemon = Buildkit::start(&bench, &format!("\n[registry.\"{host}\"]\n  http = false\n")).await?;
    let builder = PlainBuilder::with_secrets(
        &bench,
        &[("buildkit_url", &daemon.url()), ("insecure", "false")],
        &[("registry-config", &Registry::docker_config(host, USER, PASSWORD))],
    )
    .await?;
    let source = Source::dockerfile("FROM scratch\nCOPY a /a\n").file("a", "a");
    let config = json!({ "image": format!("{host}/team/app:1") });

    let reply = builder.client()?.post(source.tar(&config)?).await?;

    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(
        reply
            .field("error")
            .contains("certificate signed by unknown authority"),
        "{}",
        reply.text
    );
    assert_eq!(registry.given(), Vec::<String>::new());
    assert!(!registry.has("team/app", "1"));
    Ok(())
}
