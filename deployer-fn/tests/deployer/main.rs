//! The deployer with fake gateways: one that expects a script of calls, and one that keeps state as providers do.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails here")]

mod fake;
mod faults;
mod fixtures;
mod flood;
mod handler;
mod kubernetes;
mod logs;
mod model;
mod policy;
mod providers;
mod replicas;
mod scenarios;
mod script;
