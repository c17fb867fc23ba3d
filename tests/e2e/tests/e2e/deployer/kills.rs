//! The deployer is killed at each of its requests to the gateway. Another deployer that gets the same hand-over
//! ends as if nothing had happened.

use anyhow::Result;
use slipway_e2e::pausing_proxy::{PausePoint, RequestSelector};

use super::{DeployerFixture, assert_rolled_back_or_refused, for_both_update_strategies};

/// Settings with a ready timeout that is long enough for a version that works, also on a busy machine, and shorter than
/// the default for versions that never become ready.
const SHORT_READY_TIMEOUT_SETTINGS: &[(&str, &str)] = &[("ready_timeout", "20s")];

/// A number of requests that no rollout reaches.
const MAX_ROLLOUT_REQUESTS: usize = 60;

for_both_update_strategies!(
    an_update_killed_at_any_step_completes_when_delivered_again,
    a_bad_update_killed_at_any_change_is_rolled_back_when_delivered_again,
);

/// The outcome of a deployment during which the deployer was to be killed.
enum KillOutcome {
    /// The deployer was killed at this request.
    At(String),
    /// The deployment completed before the selected request.
    Completed,
}

impl DeployerFixture {
    /// Deploys, and at the selected request starts another deployer and kills the first. Does neither if the deployment
    /// completes before the request.
    async fn deploy_kill_at_request_and_replace_deployer(
        self,
        image: &str,
        number: usize,
        request: RequestSelector,
        point: PausePoint,
    ) -> Result<(Self, KillOutcome)> {
        let hand_over = self.hand_over_of_build(image, number);
        let hand_over_client = self.deployer.hand_over_client()?;
        self.proxy.reset_and_release_and_pause_at(request, point);
        let mut deployment = tokio::spawn(async move {
            hand_over_client
                .send_hand_over_and_get_status_and_text(&hand_over)
                .await
        });
        let completed = tokio::select! {
            paused = self.proxy.wait_until_paused() => paused.map(|()| false)?,
            ended = &mut deployment => ended?.map(|_| true)?,
        };
        if completed {
            self.proxy.reset_and_forward_again();
            return Ok((self, KillOutcome::Completed));
        }
        let at = self.proxy.requests().pop().unwrap_or_default();
        let fixture = self.start_new_deployer_then_kill_old().await?;
        anyhow::ensure!(deployment.await?.is_err(), "the killed deployer answered");
        fixture.proxy.reset_and_forward_again();
        Ok((fixture, KillOutcome::At(at)))
    }
}

async fn an_update_killed_at_any_step_completes_when_delivered_again(strategy: &'static str) -> Result<()> {
    let mut fixture = DeployerFixture::open_sharing_parts("killed", strategy, &[]).await?;
    let images = fixture.images;
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;
    let mut number = 1;
    let mut seen = Vec::new();
    'steps: for step in 0..MAX_ROLLOUT_REQUESTS {
        // A request that only reads leaves the same state before and after.
        for point in [PausePoint::BeforeForwarding, PausePoint::AfterResponse] {
            number += 1;
            let image = [&images.first, &images.second][number % 2];
            let killed;
            (fixture, killed) = fixture
                .deploy_kill_at_request_and_replace_deployer(
                    image,
                    number,
                    RequestSelector::Number(step),
                    point,
                )
                .await?;
            let KillOutcome::At(request) = killed else {
                break 'steps;
            };
            let what = format!("{step}, {point:?} {request}");
            let report = fixture.deploy_build_and_assert_ready(image, number).await;
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
    fixture.remove_function().await
}

async fn a_bad_update_killed_at_any_change_is_rolled_back_when_delivered_again(
    strategy: &'static str,
) -> Result<()> {
    let mut fixture =
        DeployerFixture::open_sharing_parts("killed-bad", strategy, SHORT_READY_TIMEOUT_SETTINGS).await?;
    let images = fixture.images;
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;
    for (number, point) in [(2, PausePoint::BeforeForwarding), (3, PausePoint::AfterResponse)] {
        let killed;
        (fixture, killed) = fixture
            .deploy_kill_at_request_and_replace_deployer(
                &images.crash,
                number,
                RequestSelector::NextWithMethod("PUT"),
                point,
            )
            .await?;
        assert!(matches!(killed, KillOutcome::At(_)));
        let again = fixture.deploy_build(&images.crash, number).await?;
        assert_rolled_back_or_refused(&again, &images.first);
        fixture.assert_build_runs_and_answers(&images.first, 1).await?;
    }
    fixture.remove_function().await
}
