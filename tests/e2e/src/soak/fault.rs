//! The faults of a soak test.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use slipway_stack::{PartState, StackPart};

use super::platform::{BUILDER_COUNT, SoakPlatform};

/// The time after which a platform starts a killed process again.
const BUILDER_RESTART_DELAY: Duration = Duration::from_secs(5);

/// The time for which the gateway, or all queue-workers, are away.
const GATEWAY_OR_WORKERS_OUTAGE: Duration = Duration::from_secs(2);

/// The time for which the registry is away.
const REGISTRY_OUTAGE: Duration = Duration::from_secs(20);

/// A fault that happens while builds are queued and run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// No fault, except that a few queue-workers are killed.
    None,
    /// All queue-workers are killed, and start again after 2 s.
    QueueWorker,
    /// NATS is restarted, with its store of files.
    Nats,
    /// The gateway is killed, and starts again after 2 s.
    Gateway,
    /// BuildKit is killed and started again.
    Buildkit,
    /// One builder is killed, and starts again after 5 s; later the other one.
    Builder,
    /// The registry is away for 20 s.
    Registry,
}

impl Fault {
    /// All faults, in the order in which they are reported.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::QueueWorker,
        Self::Nats,
        Self::Gateway,
        Self::Buildkit,
        Self::Builder,
        Self::Registry,
    ];

    /// Returns the name of the fault, which is also the one on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::QueueWorker => "queue-worker",
            Self::Nats => "nats",
            Self::Gateway => "gateway",
            Self::Buildkit => "buildkit",
            Self::Builder => "builder",
            Self::Registry => "registry",
        }
    }

    /// Returns the number of times that the fault happens among the builds of one phase.
    pub(super) fn occurrences(self) -> usize {
        match self {
            Self::None => 0,
            Self::Builder => BUILDER_COUNT,
            _ => 1,
        }
    }

    /// Returns whether the queue may spend calls during this fault: there is nobody who could accept them.
    pub(super) fn leaves_nobody_to_accept_calls(self) -> bool {
        matches!(self, Self::Gateway)
    }

    /// Lets the fault happen for the time with this number, from 0, and returns when all parts run again.
    pub(super) async fn happen(self, platform: &mut SoakPlatform, occurrence: usize) -> Result<()> {
        match self {
            Self::None => {}
            Self::QueueWorker => {
                platform.workers.kill_all()?;
                tokio::time::sleep(GATEWAY_OR_WORKERS_OUTAGE).await;
                platform.workers.start_missing_and_wait_until_all_listen().await?;
            }
            Self::Nats => {
                platform.stack().stop_part(StackPart::Nats).await?;
                platform.stack().start_part(StackPart::Nats).await?;
            }
            Self::Gateway => {
                platform.kill_gateway()?;
                tokio::time::sleep(GATEWAY_OR_WORKERS_OUTAGE).await;
                platform.start_gateway().await?;
            }
            Self::Buildkit => kill_and_start_buildkit(platform).await?,
            Self::Builder => {
                let number = occurrence % BUILDER_COUNT;
                platform.kill_builder(number).await?;
                tokio::time::sleep(BUILDER_RESTART_DELAY).await;
                platform.start_builder(number).await?;
            }
            Self::Registry => {
                platform.stack().stop_part(StackPart::Registry).await?;
                tokio::time::sleep(REGISTRY_OUTAGE).await;
                platform.stack().start_part(StackPart::Registry).await?;
            }
        }
        Ok(())
    }
}

/// Kills BuildKit with SIGKILL, waits until the stack knows that it has ended, and starts it again.
async fn kill_and_start_buildkit(platform: &SoakPlatform) -> Result<()> {
    let id = platform.testbed.buildkit_process_id()?;
    let id = id
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        .context("BuildKit is not running")?;
    kill_process(id, Signal::KILL).context("killing BuildKit")?;
    let statuses = async {
        loop {
            let statuses = platform.stack().statuses_of_parts_ever_started().await?;
            let state = statuses
                .iter()
                .find(|status| status.part == StackPart::Buildkit)
                .map(|status| &status.state);
            if matches!(state, Some(PartState::Ended { .. })) {
                return Ok::<_, anyhow::Error>(());
            }
            // The supervisor sends no event to this process.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), statuses).await;
    ensure!(ended.is_ok(), "the stack did not notice the end of BuildKit");
    platform.stack().start_part(StackPart::Buildkit).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn a_fault_has_the_same_name_in_the_report_and_on_the_command_line() {
        for fault in Fault::ALL {
            let value = fault.to_possible_value().unwrap();
            assert_eq!(value.get_name(), fault.name());
        }
        assert_eq!(Fault::value_variants(), Fault::ALL);
    }
}
