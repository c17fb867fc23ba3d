//! From source to an answering function on the real stack: BuildKit, a registry, containerd, the OpenFaaS gateway, NATS
//! Streaming and the queue-worker. `SLIPWAY_STACK` names the stack; `make test` starts it where it does not run.

mod asynchronous;
mod chains;
mod clients;
mod compare;
mod config;
mod contexts;
mod credentials;
mod deployer;
mod digests;
mod faas_cli;
mod faults;
mod lean;
mod metrics;
mod openapi;
mod places;
mod provider;
mod refusals;
mod sealed;
mod secured;
mod streams;
mod synchronous;
mod template;
mod traces;
