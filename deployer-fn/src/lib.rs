//! An OpenFaaS function that deploys images as functions, and reports the outcome.
//!
//! `POST /` takes a hand-over that the builder signed ([`HandOver`]), checks that the registry has its image, rolls
//! it out ([`rollout()`]) through the gateway's REST API ([`Transport`]), and answers with an [`Outcome`].

mod answer;
mod build_times;
mod error;
mod function;
mod gateway;
mod handler;
mod metrics;
mod outcome;
mod percent;
mod policy;
mod queue;
mod registry;
mod request;
mod rollout;
mod settings;
mod succession;
mod time;
mod version;

pub use self::gateway::Transport;
pub use self::handler::Deployer;
pub use self::metrics::Metrics;
pub use self::outcome::{DeploymentStatus, Durations, Fault, Outcome, Running, Successor};
pub use self::request::{
    FunctionSpec, HandOver, MAX_BODY_BYTES, PinnedImage, Probe, Resources, SPEC_ANNOTATION,
};
pub use self::rollout::{Deadline, RolloutContext, RolloutHistory, Timeouts, rollout};
pub use self::settings::Settings;
pub use self::succession::{SuccessorReceiver, SuccessorSender};
