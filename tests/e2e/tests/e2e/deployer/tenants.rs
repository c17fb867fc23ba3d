//! A deployer with a policy: the rules of a hand-over's tenant, and whose a deployed function is.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::deployer_process::DeployerProcess;

use super::{DeployerFixture, joined_reasons};

/// Replaces the fixture's deployer by one with a policy of two tenants, of which neither lists names of functions.
async fn replace_deployer_by_one_with_policy(mut fixture: DeployerFixture) -> Result<DeployerFixture> {
    let push = [format!("{}/e2e/deployed/", fixture.testbed.stack.registry.host)];
    let policy = json!({ "tenants": {
        "acme": { "keys": ["acme-payload"], "push": push, "secrets": ["acme-*"] },
        "globex": { "keys": ["globex-payload"], "push": push },
    }});
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.json");
    std::fs::write(&file, policy.to_string())?;
    let path = file.to_string_lossy();
    let settings = [("policy_file", path.as_ref())];
    // The deployer keeps the last good policy when the folder is removed.
    fixture.deployer = DeployerProcess::start(&fixture.testbed, fixture.proxy.url(), &settings).await?;
    Ok(fixture)
}

impl DeployerFixture {
    fn hand_over_of_tenant(&self, tenant: &str, image: &str, build_number: usize) -> Value {
        let mut hand_over = self.hand_over_of_build(image, build_number);
        hand_over["tenant"] = json!(tenant);
        hand_over
    }
}

#[tokio::test]
async fn a_function_is_changed_by_the_tenant_that_deployed_it_only() -> Result<()> {
    let fixture = replace_deployer_by_one_with_policy(
        DeployerFixture::open_sharing_parts("owned", "rolling", &[]).await?,
    )
    .await?;
    let images = fixture.images;
    let first = fixture.hand_over_of_tenant("acme", &images.first, 1);
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&first)
        .await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    assert_eq!(
        fixture.function_status().await?["annotations"]["slipway/tenant"],
        "acme"
    );

    // Globex may push to the same repositories, and yet neither changes nor learns of the function.
    let taken = fixture.hand_over_of_tenant("globex", &images.second, 2);
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&taken)
        .await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    let reasons = joined_reasons(&reply.json_or_error_text());
    assert!(
        reasons.contains("belongs to another tenant than globex"),
        "{reasons}"
    );
    assert!(!reply.text.contains(&images.first), "{}", reply.text);
    fixture.assert_build_runs_and_answers(&images.first, 1).await?;

    let second = fixture.hand_over_of_tenant("acme", &images.second, 3);
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&second)
        .await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    fixture.assert_build_runs_and_answers(&images.second, 3).await?;
    fixture.remove_function().await
}

#[tokio::test]
async fn a_function_that_no_tenant_deployed_is_not_taken_over() -> Result<()> {
    let fixture = DeployerFixture::open_sharing_parts("foreign", "rolling", &[]).await?;
    fixture
        .deploy_build_and_assert_ready(&fixture.images.first, 1)
        .await?;
    let fixture = replace_deployer_by_one_with_policy(fixture).await?;
    let taken = fixture.hand_over_of_tenant("globex", &fixture.images.second, 2);
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&taken)
        .await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    let reasons = joined_reasons(&reply.json_or_error_text());
    assert!(
        reasons.contains("policy rule adopt of tenant globex"),
        "{reasons}"
    );
    fixture
        .assert_build_runs_and_answers(&fixture.images.first, 1)
        .await?;
    fixture.remove_function().await
}

/// Whoever can sign a hand-over must not become the gateway's administrator by it, with a policy or without one.
#[tokio::test]
async fn nobody_deploys_under_slipways_names_or_with_the_gateways_credentials() -> Result<()> {
    let fixture = DeployerFixture::open_sharing_parts("reserved", "rolling", &[]).await?;
    let deploys = [
        json!({ "service": "deployer-fn" }),
        json!({ "service": "builder-fn", "namespace": "openfaas-fn" }),
        json!({ "service": fixture.name, "secrets": ["basic-auth-password", "deploy-secret", "payload-secret"] }),
        json!({ "service": fixture.name, "secrets": ["registry-config"] }),
    ];
    let refuse_all = async |fixture: &DeployerFixture, tenant: Option<&str>| {
        for deploy in &deploys {
            let mut hand_over = fixture.hand_over_of_build(&fixture.images.first, 1);
            hand_over["deploy"] = deploy.clone();
            if let Some(tenant) = tenant {
                hand_over["tenant"] = json!(tenant);
            }
            let reply = fixture
                .deployer
                .send_hand_over_and_get_status_and_text(&hand_over)
                .await?;
            assert_eq!(reply.status, 422, "{deploy}: {}", reply.text);
            let reasons = joined_reasons(&reply.json_or_error_text());
            assert!(reasons.contains("no policy allows"), "{deploy}: {reasons}");
        }
        assert!(fixture.function_is_absent().await?);
        anyhow::Ok(())
    };
    refuse_all(&fixture, None).await?;
    let fixture = replace_deployer_by_one_with_policy(fixture).await?;
    refuse_all(&fixture, Some("globex")).await
}

#[tokio::test]
async fn a_hand_over_with_an_unknown_or_missing_tenant_is_rejected() -> Result<()> {
    let fixture = DeployerFixture::open_sharing_parts("tenant-field", "rolling", &[]).await?;
    let without_policy = fixture.hand_over_of_tenant("acme", &fixture.images.first, 1);
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&without_policy)
        .await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    let fixture = replace_deployer_by_one_with_policy(fixture).await?;
    for (hand_over, reason) in [
        (
            fixture.hand_over_of_build(&fixture.images.first, 1),
            "tenant is missing",
        ),
        (
            fixture.hand_over_of_tenant("umbrella", &fixture.images.first, 1),
            "tenant is \"umbrella\"",
        ),
    ] {
        let reply = fixture
            .deployer
            .send_hand_over_and_get_status_and_text(&hand_over)
            .await?;
        assert_eq!(reply.status, 400, "{}", reply.text);
        let reasons = joined_reasons(&reply.json_or_error_text());
        assert!(reasons.contains(reason), "{reasons}");
    }
    assert!(fixture.function_is_absent().await?);
    Ok(())
}
