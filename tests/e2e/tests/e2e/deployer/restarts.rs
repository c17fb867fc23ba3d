//! The provider is stopped and started in the middle of a rollout.

use anyhow::Result;
use slipway_e2e::turnstile::{Moment, Which};

use super::{Site, in_both_manners};

in_both_manners!(a_provider_that_is_restarted_in_the_middle_is_waited_for);

async fn a_provider_that_is_restarted_in_the_middle_is_waited_for(manners: &'static str) -> Result<()> {
    let site = Site::open_alone("restarted", manners, &[("ready_timeout", "40s")]).await?;
    let images = site.images;
    site.ready(&images.first, 1).await?;
    for (number, image, moment) in [
        (2, &images.second, Moment::Before),
        (3, &images.first, Moment::After),
    ] {
        let (hand_over, hand_overs) = (site.hand_over(image, number), site.deployer.hand_overs()?);
        site.door.hold(Which::Next("PUT"), moment);
        let deployment = tokio::spawn(async move { hand_overs.deploy(&hand_over).await });
        site.door.held().await?;
        site.take_the_provider().await?;
        site.door.open();
        site.give_the_provider_back().await?;
        let reply = deployment.await??;
        assert_eq!(reply.status, 200, "{moment:?}: {}", reply.text);
        site.runs(image, number).await?;
    }
    site.close().await
}
