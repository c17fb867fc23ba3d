//! A gateway behind TLS with a certificate from a private authority.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    certificates::Authority, deployer_process::DeployerProcess, testbed::Testbed, tls_proxy::TlsProxy,
};

use super::{IMAGES, Images};

#[tokio::test]
async fn only_the_configured_authority_is_trusted_for_the_gateway() -> Result<()> {
    let testbed = Testbed::find()?;
    let _parts = testbed.share_parts().await;
    let images = IMAGES.get_or_try_init(|| Images::build(&testbed)).await?;
    let name = "secured";
    testbed.functions.remove(name).await?;
    let (ours, other) = (Authority::new("ours")?, Authority::new("another")?);
    let front = TlsProxy::to(&testbed.stack.gateway.url, &ours.issue("localhost")?).await?;
    let hand_over = json!({
        "image": images.first,
        "callId": "secured-1",
        "builtAt": "2026-01-01T00:00:00Z",
        "deploy": { "service": name },
    });
    let deploy = async |authority: &Authority| {
        let secrets = [("gateway-ca", authority.pem())];
        // Waiting longer would not change the outcome.
        let settings = [("ready_timeout", "5s")];
        let deployer = DeployerProcess::with_secrets(&testbed, front.url(), &settings, &secrets).await?;
        deployer.deploy(&hand_over).await
    };

    let refused = deploy(&other).await?;
    assert_eq!(refused.status, 502, "{}", refused.text);
    assert!(refused.text.contains("certificate"), "{}", refused.text);
    assert_eq!(testbed.functions.status(name).await?, None);

    let ready = deploy(&ours).await?;
    assert_eq!(ready.status, 200, "{}", ready.text);
    assert_eq!(ready.field("status"), "ready", "{}", ready.text);
    assert_eq!(testbed.functions.page(name).await?, (200, "first".to_owned()));
    testbed.functions.remove(name).await
}
