//! Support for the end-to-end tests: contexts and tars as clients make them, clients that sign and post them, and
//! views of the stack's registry and functions from outside.
//!
//! Nothing here uses Slipway's own code for signing, packing or parsing: an error in shared code would stay hidden.

pub mod bait_server;
pub mod blocking_client;
pub mod browser;
pub mod build_context;
pub mod buildctl;
pub mod builder_process;
pub mod buildkit;
pub mod certificates;
pub mod changing_dns;
pub mod client;
pub mod collector;
pub mod compare;
pub mod comparison;
pub mod context_tree;
pub mod control_api;
pub mod crafted_layer;
pub mod cut_log;
pub mod deployed_benchmark;
pub mod deployed_builder;
pub mod deployer_process;
pub mod deployer_route;
pub mod file_server;
pub mod flood;
pub mod flood_benchmark;
pub mod functions;
pub mod git_server;
pub mod incompressible;
mod logged_process;
pub mod nats_streaming;
pub mod network_namespace;
pub mod outage;
pub mod pausing_proxy;
pub mod prefix_proxy;
pub mod private_network;
pub mod process;
pub mod prometheus;
pub mod questions;
pub mod record_stream;
pub mod recorded;
pub mod registry;
pub mod registry_proxy;
pub mod sealed_secrets;
pub mod slipway_command;
pub mod smart_git_server;
pub mod soak;
pub mod tcp_proxy;
pub mod template_project;
pub mod testbed;
pub mod tls_proxy;
pub mod token_registry;
pub mod work_dir;
