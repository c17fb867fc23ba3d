//! The provider restarts in the middle of a rollout.

use anyhow::Result;
use slipway_e2e::pausing_proxy::{PausePoint, RequestSelector};

use super::{DeployerFixture, for_both_update_strategies};

for_both_update_strategies!(a_rollout_waits_for_a_provider_that_restarts);

async fn a_rollout_waits_for_a_provider_that_restarts(strategy: &'static str) -> Result<()> {
    let fixture =
        DeployerFixture::open_exclusively("restarted", strategy, &[("ready_timeout", "40s")]).await?;
    let images = fixture.images;
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;
    for (number, image, point) in [
        (2, &images.second, PausePoint::BeforeForwarding),
        (3, &images.first, PausePoint::AfterResponse),
    ] {
        let (hand_over, hand_over_client) = (
            fixture.hand_over_of_build(image, number),
            fixture.deployer.hand_over_client()?,
        );
        fixture
            .proxy
            .reset_and_release_and_pause_at(RequestSelector::NextWithMethod("PUT"), point);
        let mut deployment = tokio::spawn(async move {
            hand_over_client
                .send_hand_over_and_get_status_and_text(&hand_over)
                .await
        });
        tokio::select! {
            paused = fixture.proxy.wait_until_paused() => paused?,
            ended = &mut deployment => anyhow::bail!("the deployment ended without a PUT request: {ended:?}"),
        }
        fixture.stop_provider_or_cut_off_gateway().await?;
        fixture.proxy.reset_and_forward_again();
        fixture.start_provider_or_reconnect_gateway().await?;
        let reply = deployment.await??;
        assert_eq!(reply.status, 200, "{point:?}: {}", reply.text);
        fixture.assert_build_runs_and_answers(image, number).await?;
    }
    fixture.remove_function().await
}
