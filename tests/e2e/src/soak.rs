//! The soak test: many queued builds, each delivered more than once, while parts of the platform fail.
//!
//! It runs on a stack of its own, so that it disturbs nobody else. The stack has one builder-fn, one queue-worker and a
//! provider without replicas; here, a [router](router) in front of the provider stands for the Service of two builders,
//! and records every delivery and every change of a function.
//!
//! What was built and deployed is counted from evidence of others: BuildKit's history, the registry, and the requests
//! that reached the provider. builder-fn is asked about a build only to find out whether it has accepted it.

mod evidence;
mod fault;
mod journal;
mod platform;
mod queue;
mod report;
mod router;
mod run;
mod submission;
mod workers;

use std::time::Duration;

pub use self::{fault::Fault, report::SoakReport, run::run_soak};

/// The size of a soak test, and the faults during it.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// The name of the stack that the test starts, and removes at its end. A stack of this name is removed first.
    pub stack: String,
    /// The number of submissions during each fault.
    pub submissions: usize,
    /// The number of functions among which the submissions are distributed.
    pub functions: usize,
    /// The number of queue-workers. Each runs one call at a time.
    pub workers: usize,
    /// The number of queue-workers that are killed in the middle of a call, besides the fault.
    pub killed_workers: usize,
    /// The least time that a build takes: its step waits for so long.
    pub build_time: Duration,
    /// The time, in whole seconds, after which the queue delivers a call again. Shorter than a build.
    pub ack_wait: Duration,
    /// Whether a builder is killed only at a moment at which it has accepted every call that it has received. Otherwise
    /// the queue may spend a call that the builder is receiving, and the outcome depends on time.
    pub kill_between_acceptances: bool,
    /// The faults, one after the other.
    pub faults: Vec<Fault>,
}

impl Default for SoakOptions {
    fn default() -> Self {
        Self {
            stack: "soak".to_owned(),
            submissions: 200,
            functions: 100,
            workers: 8,
            killed_workers: 3,
            build_time: Duration::from_secs(4),
            ack_wait: Duration::from_secs(3),
            kill_between_acceptances: false,
            faults: Fault::ALL.to_vec(),
        }
    }
}
