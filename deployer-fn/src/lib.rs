//! An OpenFaaS function that deploys images as functions, and reports the outcome.
//!
//! `POST /` takes a hand-over that the builder signed ([`HandOver`]), checks that the registry has its image, rolls it
//! out ([`roll_out_hand_over`]) through the gateway's REST API ([`GatewayRequestSender`]), and answers with a
//! [`DeploymentOutcome`].

mod answer;
mod build_times;
mod error;
mod function;
mod gateway;
mod handler;
mod kubernetes;
mod metrics;
mod outcome;
mod percent;
mod queue;
mod registry;
mod request;
mod rollout;
mod settings;
mod succession;
mod tenancy;
mod text;
mod time;
mod version;

pub use self::gateway::GatewayRequestSender;
pub use self::handler::Deployer;
pub use self::kubernetes::{Kubernetes, KubernetesError, KubernetesReader};
pub use self::metrics::DeploymentMetrics;
pub use self::outcome::{
    DeploymentOutcome, DeploymentStatus, FaultyParty, RunningState, StepDurations, SuccessorCallId,
};
pub use self::request::{
    FunctionSpec, HandOver, MAX_BODY_BYTES, PinnedImage, ReadinessProbe, ResourceAmounts,
    SPEC_DIGEST_ANNOTATION,
};
pub use self::rollout::{
    RolloutContext, RolloutDeadline, RolloutHistory, RolloutPartTimeouts, roll_out_hand_over,
};
pub use self::settings::Settings;
pub use self::succession::{SuccessorReceiver, SuccessorSender};
pub use self::tenancy::{tenant_in_valid_hand_over, violations_in_hand_over};
