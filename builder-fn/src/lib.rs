//! The builder: an OpenFaaS function that verifies signed build requests and has BuildKit build their sources into
//! images.
//!
//! What is public is what the binary, the integration tests and the fuzz targets use.

mod accept;
mod answer;
pub mod build;
pub mod build_threads;
pub mod buildkit;
pub mod builds;
pub mod compression;
pub mod context;
pub mod docker_config;
mod error;
pub mod function_id;
pub mod hand_over;
pub mod handler;
pub mod hint;
mod host_port;
mod inputs;
pub mod metrics;
pub mod notify;
pub mod operator_tokens;
pub mod ready;
mod redact;
pub mod registry;
pub mod remote_context;
mod report;
pub mod request;
pub mod rollback;
pub mod sealed;
pub mod settings;
pub mod slots;
pub mod sources;
pub mod supersede;
pub mod tenants;
mod trace;
mod versions;
