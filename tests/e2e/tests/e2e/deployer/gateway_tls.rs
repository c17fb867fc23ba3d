//! A gateway behind TLS with a certificate from a private authority.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    certificates::CertificateAuthority, deployer_process::DeployerProcess, testbed::Testbed,
    tls_proxy::TlsProxy,
};

use super::{DEPLOYED_IMAGES, DeployerTestImages};

#[tokio::test]
async fn only_the_configured_authority_is_trusted_for_the_gateway() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let images = DEPLOYED_IMAGES
        .get_or_try_init(|| DeployerTestImages::build_and_push_all_but_absent(&testbed))
        .await?;
    let name = "secured";
    testbed.functions.remove_function(name).await?;
    let (ours, other) = (
        CertificateAuthority::new("ours")?,
        CertificateAuthority::new("another")?,
    );
    let front = TlsProxy::start_to(&testbed.stack.gateway.url, &ours.issue_certificate("localhost")?).await?;
    let hand_over = json!({
        "image": images.first,
        "callId": "secured-1",
        "builtAt": "2026-01-01T00:00:00Z",
        "deploy": { "service": name },
    });
    let deploy = async |authority: &CertificateAuthority, settings: &[(&str, &str)]| {
        let secrets = [("gateway-ca", authority.certificate_pem())];
        let deployer =
            DeployerProcess::start_with_more_secrets(&testbed, front.url(), settings, &secrets).await?;
        deployer.send_hand_over_and_get_status_and_text(&hand_over).await
    };

    // Waiting longer would not change the outcome.
    let refused = deploy(&other, &[("ready_timeout", "5s")]).await?;
    assert_eq!(refused.status, 502, "{}", refused.text);
    assert!(refused.text.contains("certificate"), "{}", refused.text);
    assert_eq!(testbed.functions.function_status(name).await?, None);

    let ready = deploy(&ours, &[]).await?;
    assert_eq!(ready.status, 200, "{}", ready.text);
    assert_eq!(ready.text_field("status"), "ready", "{}", ready.text);
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "first".to_owned())
    );
    testbed.functions.remove_function(name).await
}
