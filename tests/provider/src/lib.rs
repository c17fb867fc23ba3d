//! A development provider: the faas-provider REST API over containerd and CNI, and over Kubernetes.
//!
//! On Kubernetes it replaces faas-netes where that is not available, and behaves as it does: see the module
//! `kubernetes`. What follows is about the other backend, on one machine.
//!
//! It replaces faasd where faasd is not available. It implements only what the OpenFaaS gateway, `faas-cli`
//! and Slipway's deployer need, and identifies itself: `GET /system/info` reports `slipway-dev`. Functions
//! are containers in the containerd namespace `openfaas-fn`, one replica each, on a bridge; secrets are
//! files. Its responses are those of faasd 0.19; its updates differ unless configured otherwise, see
//! `settings::UpdateStrategy`. Configured to update as faas-netes does, it reports that name.
//!
//! It is not hardened: containers have one capability, no new privileges and masked paths, but no seccomp
//! profile.

mod api;
mod backend;
mod containerd;
mod docker_config;
mod error;
mod functions;
mod hosts;
mod image;
mod key;
mod kubernetes;
mod logs;
mod model;
mod network;
mod proxy;
mod quantity;
mod rootfs;
mod scratch;
mod secrets;
mod server;
mod settings;
mod spec;
mod unique;

pub use self::{
    error::ProviderError,
    kubernetes::KubernetesSettings,
    logs::collect_output,
    server::{
        kill_and_remove_all_functions_and_logs, restore_functions_and_serve_api_until_stopped,
        serve_kubernetes_until_stopped,
    },
    settings::ProviderSettings,
};
