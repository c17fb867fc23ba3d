//! A gateway behind TLS with a private authority.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{certificates::Authority, deployer::PlainDeployer, shared::Bench, tls::TlsFront};

use super::{IMAGES, Images};

#[tokio::test]
async fn a_gateway_is_trusted_by_its_private_authority_and_by_no_other() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let images = IMAGES.get_or_try_init(|| Images::build(&bench)).await?;
    let name = "secured";
    bench.functions.remove(name).await?;
    let (ours, other) = (Authority::new("ours")?, Authority::new("another")?);
    let front = TlsFront::before(&bench.stack.gateway.url, &ours.issue("localhost")?).await?;
    let hand_over = json!({
        "image": images.first,
        "callId": "secured-1",
        "builtAt": "2026-01-01T00:00:00Z",
        "deploy": { "service": name },
    });
    let deploy = async |authority: &Authority| {
        let secrets = [("gateway-ca", authority.pem())];
        // Soon: nothing gets better while it waits.
        let settings = [("ready_timeout", "5s")];
        let deployer = PlainDeployer::with_secrets(&bench, front.url(), &settings, &secrets).await?;
        deployer.deploy(&hand_over).await
    };

    let refused = deploy(&other).await?;
    assert_eq!(refused.status, 502, "{}", refused.text);
    assert!(refused.text.contains("certificate"), "{}", refused.text);
    assert_eq!(bench.functions.status(name).await?, None);

    let ready = deploy(&ours).await?;
    assert_eq!(ready.status, 200, "{}", ready.text);
    assert_eq!(ready.field("status"), "ready", "{}", ready.text);
    assert_eq!(bench.functions.page(name).await?, (200, "first".to_owned()));
    bench.functions.remove(name).await
}
