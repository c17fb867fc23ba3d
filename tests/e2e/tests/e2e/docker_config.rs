//! Odd `config.json` files that Docker's own reader accepts: push, pull and the deployer's check of the image work.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, buildctl::Buildctl, builder_process::BuilderProcess,
    buildkit::BuildkitDaemon, deployer_process::DeployerProcess, testbed::Testbed,
};

/// An odd Docker config with the credentials of one registry.
struct OddDockerConfig {
    name: &'static str,
    text: String,
    /// Whether `buildctl` accepts the config. It rejects a file for one bad entry of another registry; Slipway
    /// does not.
    is_accepted_by_buildctl: bool,
}

/// Returns configs with these credentials, each odd in one way.
fn odd_configs(host: &str, user: &str, password: &str) -> Vec<OddDockerConfig> {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    let (first, second) = auth.split_at(auth.len() / 2);
    let wrong = STANDARD.encode("nobody:wrong");
    let odd = |name, is_accepted_by_buildctl, text: String| OddDockerConfig {
        name,
        text,
        is_accepted_by_buildctl,
    };
    vec![
        odd(
            "line-breaks-in-auth",
            true,
            format!(r#"{{"auths": {{"{host}": {{"auth": "{first}\r\n{second}\n"}}}}}}"#),
        ),
        odd(
            "the-last-of-two-entries",
            true,
            format!(r#"{{"auths": {{"{host}": {{"auth": "{wrong}"}}, "{host}": {{"auth": "{auth}"}}}}}}"#),
        ),
        odd(
            "two-maps",
            true,
            format!(
                r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}, "auths": {{"other.example": {{"auth": "{wrong}"}}}}}}"#
            ),
        ),
        odd(
            "nulls",
            true,
            format!(
                r#"{{"auths": {{"{host}": {{"auth": "{auth}", "identitytoken": null}}}}, "credHelpers": {{"x": null}}, "credsStore": null}}"#
            ),
        ),
        odd(
            "keys-in-another-case",
            true,
            format!(r#"{{"AUTHS": {{"{host}": {{"Auth": "{auth}"}}}}}}"#),
        ),
        odd(
            "user-and-password",
            true,
            json!({ "auths": { host: { "username": user, "password": password } } }).to_string(),
        ),
        odd(
            "an-unusable-entry-of-another-registry",
            false,
            format!(r#"{{"auths": {{"other.example": {{"auth": "!!!"}}, "{host}": {{"auth": "{auth}"}}}}}}"#),
        ),
        odd(
            "an-entry-of-another-type",
            false,
            format!(r#"{{"auths": {{"other.example": 7, "{host}": {{"auth": "{auth}"}}}}}}"#),
        ),
    ]
}

#[tokio::test]
async fn an_odd_config_of_docker_serves_pushes_pulls_and_the_deployers_check() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let registry = &testbed.stack.registry;
    if !testbed.stack.registry_requires_password() {
        // A stack with faasd has a registry without a password, so nothing can be seen there.
        ensure!(registry.user.is_empty());
        return Ok(());
    }
    let base = testbed.build_busybox_once_and_get_name().await?;
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let repository = "e2e/docker-config";
    let source = BuildContext::static_page_function(base, "odd credentials");
    let folder = tempfile::tempdir()?;
    let folder = source.write_to_folder(folder.path())?;
    for odd in odd_configs(&registry.host, &registry.user, &registry.password) {
        let OddDockerConfig { name, text, .. } = &odd;
        let buildctl = Buildctl::with_docker_config(&testbed, &daemon, text)?;
        let pushed = buildctl.build_uncached_and_push(
            &folder,
            &testbed.image_name(repository, &format!("{name}-buildctl")),
            &[],
        );
        match odd.is_accepted_by_buildctl {
            true => pushed.with_context(|| format!("buildctl with {name}"))?,
            false => drop(pushed),
        }

        // The base image is private, so the build pulls with the same credentials.
        let builder = BuilderProcess::start_with_docker_config(
            &testbed,
            text,
            &[("buildkit_url", &daemon.socket_url())],
        )
        .await
        .with_context(|| format!("builder-fn with {name}"))?;
        let image = testbed.image_name(repository, name);
        let reply = builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&json!({ "image": image, "noCache": true }))?)
            .await?;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        let digest = reply.text_field("digest");
        assert!(
            testbed
                .registry
                .get_manifest(repository, &digest)
                .await?
                .is_some(),
            "{name}"
        );

        // The deployer reads the same dialect: it rejects an image that it cannot find in the registry.
        let function = format!("docker-config-{name}");
        let secret = [("registry-pull-config", text.clone())];
        let deployer =
            DeployerProcess::start_with_more_secrets(&testbed, &testbed.stack.gateway.url, &[], &secret)
                .await
                .with_context(|| format!("deployer-fn with {name}"))?;
        let hand_over = json!({
            "image": format!("{}@{digest}", testbed.image_name(repository, "").trim_end_matches(':')),
            "callId": name,
            "builtAt": "2026-01-01T00:00:00Z",
            "deploy": { "service": function },
        });
        let reply = deployer
            .send_hand_over_and_get_status_and_text(&hand_over)
            .await?;
        testbed.functions.remove_function(&function).await?;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        let absent = format!(
            "{}@sha256:{}",
            testbed.image_name(repository, "").trim_end_matches(':'),
            "0".repeat(64)
        );
        let mut hand_over = hand_over;
        hand_over["image"] = json!(absent);
        let reply = deployer
            .send_hand_over_and_get_status_and_text(&hand_over)
            .await?;
        assert_eq!(reply.status, 422, "{name}: {}", reply.text);
        assert!(reply.text.contains("has no image"), "{name}: {}", reply.text);
    }
    Ok(())
}
