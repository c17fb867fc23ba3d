//! Whoever can sign a build must not become the gateway's administrator. These attacks use builder-fn and deployer-fn
//! without a policy, as they are installed by default.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    deployer_process::DeployerProcess,
    deployer_route::DeployerRoute,
    pausing_proxy::{ExtraRoute, PausingProxy},
    testbed::Testbed,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    world::AttackWorld,
};

/// The secrets that Slipway uses, and the gateway's.
const PLATFORM_SECRET_NAMES: [&str; 4] = [
    "basic-auth-password",
    "deploy-secret",
    "payload-secret",
    "registry-config",
];

/// The timeout of a request to a function that has just been deployed.
const NEW_FUNCTION_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "secrets-of-the-platform",
        attempts: "deploys a function with the gateway's password and Slipway's keys, and calls it",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "secrets-by-another-spelling",
        attempts: "names these secrets in the field `SECRETS`",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "function-named-deployer-fn",
        attempts: "deploys an image of the attacker's as deployer-fn",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "function-named-builder-fn",
        attempts: "deploys an image of the attacker's as builder-fn",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "function-named-by-another-spelling",
        attempts: "names deployer-fn in the field `SERVICE`, with its namespace",
        stopped_with: &[403],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn no_build_without_a_policy_gets_platform_secrets_or_replaces_slipways_functions() -> Result<()> {
    let world = AttackWorld::start().await?;
    let testbed = &world.testbed;
    let _parts = testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "administrator").await?;
    let mut outcomes = Outcomes::default();

    require_that_an_allowed_secret_is_printed(testbed).await?;
    for (name, field) in [
        ("secrets-of-the-platform", "secrets"),
        ("secrets-by-another-spelling", "SECRETS"),
    ] {
        outcomes.add_outcome(
            name,
            deploy_with_platform_secrets_and_look_for_gateway_password(testbed, name, field).await?,
        );
    }

    // Behind a gateway that records changes and makes none.
    let gateway = PausingProxy::start_to_gateway(&testbed.stack.gateway.url).await?;
    gateway.add_route_for_exact_path("/system/functions", ExtraRoute::Answer(json!({})));
    let settings = [("ready_timeout", "2s"), ("rollback_timeout", "2s")];
    let deployer = DeployerProcess::start(testbed, gateway.url(), &settings).await?;
    let route = DeployerRoute::start_forwarding_to(deployer.url()).await?;
    let builder =
        BuilderProcess::start_with_settings(testbed, &[("gateway_url", route.gateway_url())]).await?;
    // An ordinary function is written to the gateway in the same way.
    let tar = tar_of_secret_printer(testbed, "control", json!({ "service": "hostile-control" })).await?;
    let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;
    ensure!(
        !gateway.changing_system_requests().is_empty(),
        "an ordinary function was not deployed: {}",
        reply.text
    );
    for (name, deploy) in [
        ("function-named-deployer-fn", json!({ "service": "deployer-fn" })),
        ("function-named-builder-fn", json!({ "service": "builder-fn" })),
        (
            "function-named-by-another-spelling",
            json!({ "SERVICE": "deployer-fn", "namespace": "openfaas-fn" }),
        ),
    ] {
        gateway.clear_requests();
        let tar = tar_of_secret_printer(testbed, name, deploy).await?;
        let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;
        let writes = gateway.changing_system_requests();
        outcomes.add_outcome(
            name,
            Outcome::of_reply(false, &reply)
                .succeeded_too_if(!writes.is_empty(), format!("the gateway got {writes:?}")),
        );
    }
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Returns the tar of a function that prints its secrets.
async fn tar_of_secret_printer(
    testbed: &Testbed,
    page_and_image_tag: &str,
    deploy: Value,
) -> Result<Vec<u8>> {
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'; cat /var/openfaas/secrets/*\n";
    let source = BuildContext::static_page_function(
        testbed.build_busybox_once_and_get_name().await?,
        page_and_image_tag,
    );
    let source = source.with_file_of_mode("www/cgi-bin/secrets", script, 0o755);
    source.tar_with_config_last(
        &json!({ "image": testbed.image_name("hostile/administrator", page_and_image_tag), "deploy": deploy }),
    )
}

/// Deploys a function with a secret that it may have, and fails unless it shows the secret: the attacker's function
/// prints what it gets.
async fn require_that_an_allowed_secret_is_printed(testbed: &Testbed) -> Result<()> {
    const ORDINARY_SECRET_VALUE: &str = "the value of an ordinary secret";
    let service = "hostile-ordinary-secret";
    testbed
        .functions
        .put_secret(service, ORDINARY_SECRET_VALUE)
        .await?;
    let deploy = json!({ "service": service, "secrets": [service] });
    let tar = tar_of_secret_printer(testbed, "ordinary", deploy).await?;
    let reply = testbed.builder.post_signed(tar).await?;
    let answer = testbed
        .functions
        .get_path_retrying_5xx(service, "/cgi-bin/secrets", NEW_FUNCTION_ANSWER_TIMEOUT)
        .await?;
    testbed.functions.remove_function(service).await?;
    ensure!(
        answer.1.contains(ORDINARY_SECRET_VALUE),
        "the function does not print its secret: {answer:?}, {}",
        reply.text
    );
    Ok(())
}

/// Deploys a function with the platform's secrets on the stack, and asks it for them.
async fn deploy_with_platform_secrets_and_look_for_gateway_password(
    testbed: &Testbed,
    attack_name: &str,
    secrets_field: &str,
) -> Result<Outcome> {
    let service = format!("hostile-{attack_name}");
    let tar = tar_of_secret_printer(
        testbed,
        attack_name,
        json!({ "service": service, secrets_field: PLATFORM_SECRET_NAMES }),
    )
    .await?;
    let reply = testbed.builder.post_signed(tar).await?;
    let answer = testbed.functions.get_path(&service, "/cgi-bin/secrets").await?;
    testbed.functions.remove_function(&service).await?;
    let password = testbed.stack.gateway.password.trim();
    ensure!(!password.is_empty(), "the gateway has no password");
    // The password is not shown.
    Ok(Outcome::of_reply(answer.1.contains(password), &reply))
}
