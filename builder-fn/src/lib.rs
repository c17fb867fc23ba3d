//! Source to image: an OpenFaaS function that builds a signed tar through BuildKit.

pub mod accept;
pub mod answer;
pub mod build;
pub mod buildkit;
pub mod chain;
pub mod compression;
pub mod context;
pub mod docker_config;
pub mod error;
pub mod handler;
pub mod metrics;
pub mod places;
pub mod ready;
pub mod report;
pub mod request;
pub mod sealed;
pub mod settings;
pub mod trace;
