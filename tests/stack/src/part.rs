//! The parts of a stack: what runs in it, and in which order it starts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One process of the stack.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Part {
    /// slirp4netns: the way out, for the package registries that builds need.
    Egress,
    /// The OCI registry.
    Registry,
    /// buildkitd.
    Buildkit,
    /// containerd.
    Containerd,
    /// NATS Streaming, the gateway's queue.
    Nats,
    /// The OpenFaaS provider: the embedded one, or faasd's.
    Provider,
    /// The OpenFaaS gateway.
    Gateway,
    /// The Community queue-worker.
    QueueWorker,
    /// builder-fn as a plain process: it builds the first builder-fn, and runs only while it does.
    Builder,
}

impl Part {
    /// The parts that make a running stack, in groups: those of one group do not need each other and start together,
    /// each group needs the ones before it. They stop in the opposite order.
    pub const GROUPS: &[&[Part]] = &[
        &[
            Part::Egress,
            Part::Registry,
            Part::Buildkit,
            Part::Containerd,
            Part::Nats,
        ],
        &[Part::Provider],
        &[Part::Gateway],
        &[Part::QueueWorker],
    ];

    /// Every part.
    pub fn all() -> impl Iterator<Item = Part> {
        Self::GROUPS
            .iter()
            .copied()
            .flatten()
            .copied()
            .chain([Part::Builder])
    }

    /// The name used on the command line and for the log.
    pub fn name(self) -> &'static str {
        match self {
            Part::Egress => "egress",
            Part::Registry => "registry",
            Part::Buildkit => "buildkit",
            Part::Containerd => "containerd",
            Part::Nats => "nats",
            Part::Provider => "provider",
            Part::Gateway => "gateway",
            Part::QueueWorker => "queue-worker",
            Part::Builder => "builder",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_part_has_one_name_everywhere() {
        for part in Part::all() {
            assert_eq!(serde_json::to_string(&part).unwrap(), format!("\"{part}\""));
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.name());
        }
        assert_eq!(Part::all().count(), Part::value_variants().len());
    }
}
