//! Guarantees of the embedded provider that faasd does not give. On a stack with another provider, these
//! tests end at once.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, functions::FunctionsClient, testbed::Testbed};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// A timeout longer than a small function takes to start on a busy machine.
const FUNCTION_START_TIMEOUT: Duration = Duration::from_secs(60);

/// Builds and pushes a function whose page is this text, and returns the image's name.
async fn build_and_push_page(testbed: &Testbed, text: &str) -> Result<String> {
    let base = testbed.build_busybox_once_and_get_name().await?;
    let image = testbed.image_name(&format!("e2e/provider-{text}"), "1");
    let reply = testbed
        .builder
        .post_signed(
            BuildContext::static_page_function(base, text)
                .tar_with_config_last(&json!({ "image": image }))?,
        )
        .await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    Ok(image)
}

/// Asks the gateway for a function's image; returns null if there is no such function.
async fn deployed_image_or_null(functions: &FunctionsClient, name: &str) -> Result<Value> {
    Ok(functions.function_status(name).await?.unwrap_or_default()["image"].take())
}

/// Calls a function up to 200 times a second until stopped, without waiting for the answers. Returns the number of
/// calls and the answers with another status than 200.
async fn call_until_stopped_and_collect_failures(
    functions: FunctionsClient,
    name: &'static str,
    stop: watch::Receiver<bool>,
) -> (usize, Vec<String>) {
    let functions = Arc::new(functions);
    let mut calls = JoinSet::new();
    let mut tick = interval(Duration::from_millis(5));
    // A stalled test must not make up for the calls that it missed: hundreds of them at once overload the function.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        tick.tick().await;
        let functions = Arc::clone(&functions);
        calls.spawn(async move { functions.get_function_page(name).await });
    }
    let all = calls.join_all().await;
    let failed = |called: &Result<(u16, String)>| match called {
        Ok((200, _)) => None,
        other => Some(format!("{other:?}")),
    };
    (all.len(), all.iter().filter_map(failed).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_during_an_update_and_a_failed_update_changes_nothing() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.is_known_to_have_rolling_updates() {
        return Ok(());
    }
    let functions = &testbed.functions;
    let images = [
        build_and_push_page(&testbed, "one").await?,
        build_and_push_page(&testbed, "two").await?,
    ];
    let name = "live-update";
    functions.remove_function(name).await?;
    let deployment = |image: &str| json!({ "service": name, "image": image });
    ensure!(functions.create_function(&deployment(&images[0])).await? < 300);
    functions
        .wait_until_page_equals(name, "one", FUNCTION_START_TIMEOUT)
        .await?;
    let (stop, stopped) = watch::channel(false);
    let calling = tokio::spawn(call_until_stopped_and_collect_failures(
        functions.clone(),
        name,
        stopped,
    ));

    for round in 1..=4 {
        let image = &images[round % 2];
        ensure!(functions.update_function(&deployment(image)).await? < 300);
        assert_eq!(deployed_image_or_null(functions, name).await?, **image);
    }
    let missing_image = deployment(&format!("{}-not-there", images[0]));
    assert_eq!(functions.update_function(&missing_image).await?, 500);
    let missing_secret = json!({ "service": name, "image": images[0], "secrets": ["not-there"] });
    assert_eq!(functions.update_function(&missing_secret).await?, 400);
    assert_eq!(deployed_image_or_null(functions, name).await?, *images[0]);

    stop.send(true)?;
    let (calls, failed) = calling.await?;
    ensure!(
        failed.is_empty(),
        "{} of {calls} calls failed: {failed:?}",
        failed.len()
    );
    functions.remove_function(name).await
}

#[tokio::test]
async fn a_function_cannot_be_created_twice_or_updated_after_its_removal() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.is_known_to_have_rolling_updates() {
        return Ok(());
    }
    let functions = &testbed.functions;
    let image = build_and_push_page(&testbed, "life").await?;
    let name = "live-life";
    functions.remove_function(name).await?;
    let deployment = json!({ "service": name, "image": image });
    ensure!(functions.create_function(&deployment).await? < 300);
    functions
        .wait_until_page_equals(name, "life", FUNCTION_START_TIMEOUT)
        .await?;
    assert_eq!(
        functions.create_function(&deployment).await?,
        400,
        "the function exists already"
    );

    functions.remove_function(name).await?;
    assert_eq!(functions.function_status(name).await?, None);
    assert_eq!(functions.update_function(&deployment).await?, 404);
    Ok(())
}
