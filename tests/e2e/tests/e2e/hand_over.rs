//! Tests of the requests from builder-fn to deployer-fn: the dry run before a build, and the hand-over after it.
//!
//! Both are processes beside the stack, with its gateway, its provider and its registry.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    client::HttpReply,
    deployer_process::DeployerProcess,
    deployer_route::DeployerRoute,
    pausing_proxy::PausingProxy,
    testbed::Testbed,
};

/// The time limit of builds that must not begin.
const TIME_LIMIT_OF_REFUSED_BUILD: Duration = Duration::from_secs(60);

/// A builder, its route to a deployer, and the deployer with a recording proxy to the gateway.
struct BuilderWithDeployer {
    testbed: Testbed,
    builder: BuilderProcess,
    route: DeployerRoute,
    gateway: PausingProxy,
    _deployer: DeployerProcess,
}

impl BuilderWithDeployer {
    async fn start() -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let gateway = PausingProxy::start_to_gateway(&testbed.stack.gateway.url).await?;
        let deployer = DeployerProcess::start(&testbed, gateway.url(), &[]).await?;
        let route = DeployerRoute::start_forwarding_to(deployer.url()).await?;
        let builder =
            BuilderProcess::start_with_settings(&testbed, &[("gateway_url", route.gateway_url())]).await?;
        Ok(Self {
            testbed,
            builder,
            route,
            gateway,
            _deployer: deployer,
        })
    }

    /// Builds and deploys a function with a page of this text; the image is `e2e/hand-over:TAG`.
    async fn build_and_deploy_page(&self, tag: &str, text: &str, deploy: Value) -> Result<HttpReply> {
        let config = json!({ "image": self.testbed.image_name("e2e/hand-over", tag), "deploy": deploy });
        let source =
            BuildContext::static_page_function(self.testbed.build_busybox_once_and_get_name().await?, text);
        self.builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&config)?)
            .await
    }

    /// Returns whether the registry has `e2e/hand-over:TAG`.
    async fn registry_has_tag(&self, tag: &str) -> Result<bool> {
        Ok(self
            .testbed
            .registry
            .get_manifest("e2e/hand-over", tag)
            .await?
            .is_some())
    }
}

/// A Dockerfile whose step would run for minutes, so an early answer can only come from before the build.
#[tokio::test]
async fn a_deployment_that_would_be_refused_costs_no_build() -> Result<()> {
    let fixture = BuilderWithDeployer::start().await?;
    let _parts = fixture.testbed.share_parts().await;
    let base = fixture.testbed.build_busybox_once_and_get_name().await?;
    let tag = format!("refused-{}", std::process::id());
    let valid = "never-built";
    for (what, deploy, part) in [
        (
            "an upper-case name",
            json!({ "service": "Not_A_Service" }),
            "service",
        ),
        (
            "an overlong name",
            json!({ "service": "n".repeat(64) }),
            "service",
        ),
        (
            "an unknown secret",
            json!({ "service": valid, "secrets": ["no-such-secret"] }),
            "no-such-secret",
        ),
        (
            "an unknown namespace",
            json!({ "service": valid, "namespace": "nowhere" }),
            "nowhere",
        ),
        (
            "a quantity that is none",
            json!({ "service": valid, "limits": { "memory": "a lot" } }),
            "memory",
        ),
    ] {
        fixture.gateway.clear_requests();
        let image = fixture.testbed.image_name("e2e/hand-over", &tag);
        let source = BuildContext::dockerfile(format!("FROM {base}\nRUN sleep 317\n"));
        let tar = source.tar_with_config_last(
            &json!({ "image": image, "deploy": deploy, "noCache": true, "timeout": format!("{TIME_LIMIT_OF_REFUSED_BUILD:?}") }),
        )?;
        let started = Instant::now();
        let reply = fixture
            .builder
            .build_client_with_own_key()?
            .post_signed(tar)
            .await?;

        assert_eq!(reply.status, 422, "{what}: {}", reply.text);
        assert!(reply.text_field("error").contains(part), "{what}: {}", reply.text);
        assert_eq!(reply.text_field("status"), "failed", "{what}: {}", reply.text);
        // A build would take its whole time limit, because its step takes minutes.
        assert!(started.elapsed() < TIME_LIMIT_OF_REFUSED_BUILD, "{what}");
        assert!(!reply.text.contains("sleep 317"), "{what}: built: {}", reply.text);
        assert!(!fixture.registry_has_tag(&tag).await?, "{what}: pushed");
        assert_eq!(
            fixture.gateway.changing_system_requests(),
            Vec::<String>::new(),
            "{what}"
        );
        let last = fixture.route.recorded_hand_overs().pop().context("no dry run")?;
        assert_eq!(last["dryRun"], true, "{what}: {last}");
        assert_eq!(last.get("image"), None, "{what}: {last}");
    }
    assert!(fixture.testbed.functions.function_status(valid).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_build_sends_a_dry_run_that_changes_nothing_before_it_hands_its_image_over() -> Result<()> {
    let fixture = BuilderWithDeployer::start().await?;
    let _parts = fixture.testbed.share_parts().await;
    let name = "after-a-dry-run";
    fixture.testbed.functions.remove_function(name).await?;

    let reply = fixture
        .build_and_deploy_page("dry", "after a dry run", json!({ "service": name }))
        .await?;

    assert_eq!(reply.status, 200, "{}", reply.text);
    let [dry, real] = fixture
        .route
        .recorded_hand_overs()
        .try_into()
        .map_err(|all| anyhow::anyhow!("not a dry run and a hand-over: {all:?}"))?;
    assert_eq!(dry["dryRun"], true, "{dry}");
    assert_eq!(dry["deploy"], real["deploy"]);
    assert_eq!(dry["callId"], real["callId"]);
    assert_ne!(real["dryRun"], true, "{real}");
    assert!(
        real["image"]
            .as_str()
            .is_some_and(|image| image.contains("@sha256:")),
        "{real}"
    );
    let page = fixture.testbed.functions.get_function_page(name).await?;
    assert_eq!(page, (200, "after a dry run".to_owned()));
    // One creation, by the hand-over: the dry run wrote nothing.
    let creations = fixture.gateway.changing_system_requests();
    let creations = creations
        .iter()
        .filter(|write| write.starts_with("POST "))
        .count();
    assert_eq!(creations, 1, "{:?}", fixture.gateway.changing_system_requests());
    fixture.testbed.functions.remove_function(name).await
}

/// Gateways answer with these statuses while their provider or the deployer starts or is busy. A repeated hand-over
/// changes nothing.
#[tokio::test]
async fn a_hand_over_is_retried_until_the_deployer_answers() -> Result<()> {
    let fixture = BuilderWithDeployer::start().await?;
    let _parts = fixture.testbed.share_parts().await;
    let name = "retried-hand-over";
    fixture.testbed.functions.remove_function(name).await?;
    let faults = [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    fixture.route.fail_next_hand_overs_except_dry_runs(&faults);

    let reply = fixture
        .build_and_deploy_page("retried", "retried", json!({ "service": name }))
        .await?;

    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        reply.json_or_error_text()["deployment"]["status"],
        "ready",
        "{}",
        reply.text
    );
    assert_eq!(
        fixture.testbed.functions.get_function_page(name).await?,
        (200, "retried".to_owned())
    );
    let all = fixture.route.recorded_hand_overs();
    let real: Vec<&Value> = all.iter().filter(|one| one["dryRun"] != true).collect();
    assert_eq!(real.len(), faults.len() + 1, "{all:#?}");
    assert!(real.iter().all(|one| *one == real[0]), "{real:#?}");
    let log = reply.json_or_error_text()["log"].to_string();
    assert!(log.contains("503"), "the log does not show the retries: {log}");
    fixture.testbed.functions.remove_function(name).await
}

/// The secret that the function needs is removed between the dry run and the hand-over, so the deployer itself refuses.
#[tokio::test]
async fn a_deployers_own_refusal_is_not_retried() -> Result<()> {
    let fixture = BuilderWithDeployer::start().await?;
    let _parts = fixture.testbed.share_parts().await;
    let functions = &fixture.testbed.functions;
    let (name, gate) = ("refused-after-its-build", "gate-of-the-refused");
    functions.remove_function(name).await?;
    functions.put_secret(name, "a secret of the test").await?;
    let base = fixture.testbed.build_busybox_once_and_get_name().await?;
    let source = BuildContext::static_page_function(base, "refused").with_dockerfile(&format!(
        "FROM {base}\nRUN {}\nCOPY www /www\n",
        gated_command(gate)
    ));
    let tar = source.tar_with_config_last(&json!({
        "image": fixture.testbed.image_name("e2e/hand-over", "refused"),
        "deploy": { "service": name, "secrets": [name] },
    }))?;
    let client = fixture.builder.build_client_with_own_key()?;
    let building = tokio::spawn(async move { client.post_signed(tar).await });
    fixture.testbed.wait_for_step(gate, true).await?;
    functions.remove_existing_secret(name).await?;
    fixture.testbed.open_gate_of_step(gate)?;
    let reply = building.await??;

    assert_eq!(reply.status, 422, "{}", reply.text);
    let deployment = &reply.json_or_error_text()["deployment"];
    assert_eq!(deployment["status"], "refused", "{}", reply.text);
    assert!(deployment["reasons"].to_string().contains(name), "{}", reply.text);
    let all = fixture.route.recorded_hand_overs();
    let real = all.iter().filter(|one| one["dryRun"] != true).count();
    assert_eq!((all.len(), real), (2, 1), "{all:#?}");
    assert!(functions.function_status(name).await?.is_none());
    Ok(())
}

/// An answer of 4xx is final, also if it is not a deployer's.
#[tokio::test]
async fn a_hand_over_that_is_answered_with_400_is_not_retried() -> Result<()> {
    let fixture = BuilderWithDeployer::start().await?;
    let _parts = fixture.testbed.share_parts().await;
    fixture
        .route
        .fail_next_hand_overs_except_dry_runs(&[StatusCode::BAD_REQUEST]);

    let reply = fixture
        .build_and_deploy_page("not-retried", "x", json!({ "service": "not-retried" }))
        .await?;

    assert_ne!(reply.status, 200, "{}", reply.text);
    let all = fixture.route.recorded_hand_overs();
    assert_eq!(
        all.iter().filter(|one| one["dryRun"] != true).count(),
        1,
        "{all:#?}"
    );
    assert!(
        fixture
            .testbed
            .functions
            .function_status("not-retried")
            .await?
            .is_none()
    );
    Ok(())
}
