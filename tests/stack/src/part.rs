//! The parts of a stack, which are its processes, and the order in which they start.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A process that a supervisor starts and stops: a part of a stack, or of a cluster. It displays as the name that the
/// command line and the log files use.
pub(crate) trait SupervisedPart:
    Copy + Ord + fmt::Debug + fmt::Display + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The parts that a start of everything starts, in groups. The parts of one group do not depend on each other and
    /// start together; each group depends on the groups before it. Groups stop in the opposite order.
    const START_GROUPS: &'static [&'static [Self]];

    /// The longest time for a part to become ready.
    const READY_TIMEOUT: Duration;

    /// What the parts are parts of, in progress messages.
    const WHOLE: &'static str;
}

/// A part of the stack: one of its processes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum StackPart {
    /// slirp4netns, through which the stack's connections to other machines leave it.
    Egress,
    /// The OCI image registry.
    Registry,
    /// buildkitd, the BuildKit daemon.
    Buildkit,
    /// containerd, which runs the functions' containers.
    Containerd,
    /// NATS Streaming, the gateway's queue.
    Nats,
    /// The OpenFaaS provider: the embedded one, or faasd's.
    Provider,
    /// The OpenFaaS gateway.
    Gateway,
    /// The Community queue-worker.
    QueueWorker,
    /// builder-fn as a plain process, which runs only to build the first builder-fn and deployer-fn images.
    Builder,
}

impl StackPart {
    /// Returns the part's name, which the command line and the log files use.
    pub fn name(self) -> &'static str {
        match self {
            StackPart::Egress => "egress",
            StackPart::Registry => "registry",
            StackPart::Buildkit => "buildkit",
            StackPart::Containerd => "containerd",
            StackPart::Nats => "nats",
            StackPart::Provider => "provider",
            StackPart::Gateway => "gateway",
            StackPart::QueueWorker => "queue-worker",
            StackPart::Builder => "builder",
        }
    }

    /// Returns every part in the order of their start, and `Builder` last, which a running stack does not have.
    pub fn parts_in_start_order_then_builder() -> impl Iterator<Item = StackPart> {
        Self::START_GROUPS
            .iter()
            .copied()
            .flatten()
            .copied()
            .chain([StackPart::Builder])
    }
}

impl SupervisedPart for StackPart {
    /// The parts of a running stack, which are all except `Builder`.
    const START_GROUPS: &[&[Self]] = &[
        &[
            StackPart::Egress,
            StackPart::Registry,
            StackPart::Buildkit,
            StackPart::Containerd,
            StackPart::Nats,
        ],
        &[StackPart::Provider],
        &[StackPart::Gateway],
        &[StackPart::QueueWorker],
    ];

    const READY_TIMEOUT: Duration = Duration::from_secs(60);

    const WHOLE: &str = "stack";
}

impl fmt::Display for StackPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_part_has_the_same_name_in_commands_and_log_files() {
        for part in StackPart::parts_in_start_order_then_builder() {
            assert_eq!(serde_json::to_string(&part).unwrap(), format!("\"{part}\""));
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.name());
        }
        assert_eq!(
            StackPart::parts_in_start_order_then_builder().count(),
            StackPart::value_variants().len()
        );
    }
}
