//! The deployer is killed between any two of its steps. The same hand-over, delivered again to another one, ends as if nothing
//! had been.

use anyhow::Result;
use slipway_e2e::turnstile::{Moment, Which};

use super::{Site, assert_not_taken, in_both_manners};

/// Enough for a version that works on a busy machine, and not for one that does not.
const SOON: &[(&str, &str)] = &[("ready_timeout", "8s")];

/// More steps than any rollout has.
const STEPS_MAX: usize = 60;

in_both_manners!(
    killed_at_each_step_of_an_update_it_finishes_when_called_again,
    killed_at_each_change_of_a_bad_update_it_restores_when_called_again,
);

/// What came of a deployment that was to be killed.
enum Killed {
    /// It was, at this request.
    At(String),
    /// It ended before it came so far.
    Never,
}

impl Site {
    /// Deploys, and kills the deployer at one request; then there is another deployer.
    async fn deploy_and_kill(
        self,
        image: &str,
        number: usize,
        which: Which,
        moment: Moment,
    ) -> Result<(Self, Killed)> {
        let hand_over = self.hand_over(image, number);
        let hand_overs = self.deployer.hand_overs()?;
        self.door.hold(which, moment);
        let mut deployment = tokio::spawn(async move { hand_overs.deploy(&hand_over).await });
        let ended = tokio::select! {
            held = self.door.held() => held.map(|()| false)?,
            ended = &mut deployment => ended?.map(|_| true)?,
        };
        if ended {
            self.door.open();
            return Ok((self, Killed::Never));
        }
        let at = self.door.seen().pop().unwrap_or_default();
        let site = self.restart_deployer().await?;
        anyhow::ensure!(deployment.await?.is_err(), "a killed deployer has answered");
        site.door.open();
        Ok((site, Killed::At(at)))
    }
}

async fn killed_at_each_step_of_an_update_it_finishes_when_called_again(manners: &'static str) -> Result<()> {
    let mut site = Site::open("killed", manners, &[]).await?;
    let images = site.images;
    site.ready(&images.first, 1).await?;
    let mut number = 1;
    let mut seen = Vec::new();
    'steps: for step in 0..STEPS_MAX {
        // What is only read is the same afterwards as before.
        for moment in [Moment::Before, Moment::After] {
            number += 1;
            let image = [&images.first, &images.second][number % 2];
            let killed;
            (site, killed) = site
                .deploy_and_kill(image, number, Which::Number(step), moment)
                .await?;
            let Killed::At(request) = killed else { break 'steps };
            let what = format!("{step}, {moment:?} {request}");
            let report = site.ready(image, number).await;
            let report = report.map_err(|error| error.context(what.clone()))?;
            assert_eq!(report["image"], *image, "{what}: {report:#}");
            let only_read = request.starts_with("GET");
            seen.push(request);
            if only_read {
                break;
            }
        }
    }
    let changes = seen.iter().filter(|line| line.starts_with("PUT"));
    assert_eq!(changes.count(), 2, "before and after the update: {seen:?}");
    assert!(seen.len() >= 5, "{seen:?}");
    site.close().await
}

async fn killed_at_each_change_of_a_bad_update_it_restores_when_called_again(
    manners: &'static str,
) -> Result<()> {
    let mut site = Site::open("killed-bad", manners, SOON).await?;
    let images = site.images;
    site.ready(&images.first, 1).await?;
    for (number, moment) in [(2, Moment::Before), (3, Moment::After)] {
        let killed;
        (site, killed) = site
            .deploy_and_kill(&images.crash, number, Which::Next("PUT"), moment)
            .await?;
        assert!(matches!(killed, Killed::At(_)));
        let again = site.deploy(&images.crash, number).await?;
        assert_not_taken(&again, &images.first);
        site.runs(&images.first, 1).await?;
    }
    site.close().await
}
