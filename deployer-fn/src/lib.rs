//! Image to running function: an OpenFaaS function that deploys and answers for the outcome.
//!
//! `POST /` takes a hand-over that the builder signed ([`request`]), asks the [`registry`] for its image, brings that to run
//! ([`rollout`]) through the gateway's REST API ([`gateway`]), and answers with an [`outcome`]; [`answer`] gives it an HTTP
//! status.

pub mod answer;
pub mod error;
pub mod gateway;
pub mod handler;
pub mod metrics;
pub mod outcome;
pub mod policy;
pub mod quantity;
pub mod registry;
pub mod request;
pub mod rollout;
pub mod settings;
pub mod time;
pub mod turns;
pub mod version;
