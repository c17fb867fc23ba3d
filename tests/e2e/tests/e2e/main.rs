//! End-to-end tests from context to running function on the real stack: BuildKit, a registry, containerd, the
//! OpenFaaS gateway, NATS Streaming and the queue-worker. `SLIPWAY_STACK` names the stack; `make test` starts it if
//! it does not run.

mod asynchronous;
mod build_failures;
mod build_secrets;
mod clients;
mod config;
mod context_benchmark;
mod context_transfer;
mod credentials;
mod deferred_updates;
mod deployer;
mod digests;
mod docker_config;
mod dockerfile_names;
mod faas_cli;
mod git_contexts;
mod hand_over;
mod ignore_patterns;
mod metrics;
mod mutual_tls;
mod notifications;
mod odd_tars;
mod openapi;
mod platform_faults;
mod pool_of_daemons;
mod provider;
mod queued_clients;
mod queued_deployments;
mod queued_shutdown;
mod referenced_contexts;
mod rejected_requests;
mod resource_limits;
mod slipway_command;
mod slots;
mod soak;
mod sources;
mod streamed_answers;
mod synchronous;
mod template;
mod tenant_resources;
mod tenants;
mod traces;
mod two_builders;
mod updated_builder;
mod warnings;
