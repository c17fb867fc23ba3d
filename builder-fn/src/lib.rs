//! Source to image: an OpenFaaS function that builds a signed tar through BuildKit.

pub mod buildkit;
pub mod context;
pub mod docker_config;
pub mod request;
