//! The launcher of the real stack: BuildKit, a registry, containerd, the OpenFaaS gateway with its queue, and
//! a provider, as child processes in namespaces of their own.
//!
//! [`Stack::start_stack`] starts a stack or its missing parts; [`Stack::load_running`] finds a running one. All
//! processes of a stack are in one PID namespace, whose first process is the supervisor. The supervisor is killed with
//! the holder, so a stack ends as a whole. `ARCHITECTURE.md` describes this, and `docs/local-stack.md` has a picture of
//! the network.

mod address;
mod buildkit_disk;
mod certificates;
mod cgroup;
mod cluster;
mod command;
mod control;
mod credentials;
mod deploy;
mod directories;
mod down;
mod egress;
mod error;
mod hold;
mod holder_process;
mod http;
mod image;
mod limits;
mod packages;
mod part;
mod plan;
mod programs;
mod progress;
mod stack;
mod step_address;
mod step_link;
mod step_runtime;
mod supervisor;
mod tools;
mod up;

pub use self::{
    cluster::{
        Cluster, ClusterPart, cluster_part_log_tail_or_empty, exec_as_cluster_holder, stop_cluster,
        supervise_cluster,
    },
    control::{PartState, PartStateAndDuration},
    directories::{LauncherDirectories, StackDir},
    down::stop_named_stack,
    egress::{BuildkitAndStepsPublicAccess, TenantStepNetworkRule},
    error::{LauncherError, Result},
    hold::exec_as_holder,
    limits::{StepResourceLimits, parse_size},
    packages::{
        install_missing_packages, install_missing_packages_for_stack_and_tests, unpack_prometheus_if_missing,
        unpack_promtool_if_missing,
    },
    part::StackPart,
    plan::StackOptions,
    progress::ProgressSink,
    stack::{GatewayAccess, RegistryAccess, Stack, part_log_tail_with_rotated_or_empty},
    step_address::{run_address_plugin, was_started_as_address_plugin},
    step_link::{release_address_or_become_ptp, was_started_as_link_plugin},
    step_runtime::{limit_step_and_become_runc, was_started_as_step_runtime},
    supervisor::run_supervisor as supervise,
    tools::{ToolPaths, build_go_module},
};
