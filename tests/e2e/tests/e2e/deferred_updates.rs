//! The embedded provider's update strategy `deferred`, which behaves as faas-netes does. A stack with another provider
//! does not have it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, testbed::Testbed};

/// A timeout longer than a small function takes to start on a busy machine.
const FUNCTION_START_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_provider_accepts_and_reports_a_deferred_update_before_it_replaces_the_old_version() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.is_known_to_have_rolling_updates() {
        return Ok(());
    }
    let functions = &testbed.functions;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let build = async |name: &str, context: BuildContext| -> Result<String> {
        let image = testbed.image_name(&format!("e2e/deferred-{name}"), "1");
        let reply = testbed
            .builder
            .post_signed(context.tar_with_config_last(&json!({ "image": image }))?)
            .await?;
        ensure!(reply.status == 200, "{name}: {} {}", reply.status, reply.text);
        Ok(image)
    };
    let first = build("first", BuildContext::static_page_function(base, "first")).await?;
    let second = build("second", BuildContext::static_page_function(base, "second")).await?;
    let crash = format!("FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"exit 3\"]\n");
    let crash = build("crash", BuildContext::dockerfile(crash)).await?;
    let absent = format!("{first}-not-there");

    let name = "deferred";
    functions.remove_function(name).await?;
    let deployment = |image: &str| {
        json!({
            "service": name, "image": image, "envVars": { "IMAGE": image },
            "annotations": { "dev.slipway.update-strategy": "deferred" },
        })
    };
    ensure!(functions.create_function(&deployment(&first)).await? < 300);
    // The provider may serve the page just before it notes that the function listens.
    functions
        .wait_until_available_unless_gateway_fails(name, FUNCTION_START_TIMEOUT)
        .await?;
    functions
        .wait_until_page_equals(name, "first", FUNCTION_START_TIMEOUT)
        .await?;

    for image in [&crash, &absent] {
        assert_eq!(
            functions.update_function(&deployment(image)).await?,
            202,
            "{image}"
        );
        let status = functions.function_status(name).await?.unwrap_or_default();
        assert_eq!(status["image"], **image, "{status:#}");
        assert_eq!(status["envVars"]["IMAGE"], **image, "{status:#}");
        assert_eq!(status["availableReplicas"], 1, "{status:#}");
        assert_eq!(
            functions.get_function_page(name).await?,
            (200, "first".to_owned()),
            "{image}"
        );
    }
    let missing_secret = json!({ "service": name, "image": second, "secrets": ["not-there"],
        "annotations": deployment(&second)["annotations"] });
    assert_eq!(functions.update_function(&missing_secret).await?, 400);

    // A later update replaces one that cannot complete.
    assert_eq!(functions.update_function(&deployment(&second)).await?, 202);
    functions
        .wait_until_page_equals(name, "second", FUNCTION_START_TIMEOUT)
        .await?;
    let status: Value = functions.function_status(name).await?.unwrap_or_default();
    assert_eq!(status["image"], second, "{status:#}");

    assert_eq!(functions.update_function(&deployment(&crash)).await?, 202);
    functions.remove_function(name).await?;
    assert_eq!(functions.function_status(name).await?, None);
    Ok(())
}
