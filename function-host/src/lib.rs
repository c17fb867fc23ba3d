//! Turns a handler into an OpenFaaS workload.
//!
//! A function is a binary whose `main` passes an async function to [`run`]:
//!
//! ```no_run
//! use function_host::{Context, Error, Request, Response, reply};
//!
//! async fn handle(request: Request, _context: Context) -> Result<Response, Error> {
//!     let name = request.into_body().text(1024).await?;
//!     Ok(reply::text(format!("Hello, {name}!\n")))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     function_host::run(handle)
//! }
//! ```
//!
//! The host serves HTTP/1.1 on port 8080, answers `/_/health` and `/_/ready` itself, exposes Prometheus metrics on
//! port 8081, and reads the environment variables of of-watchdog (listed at [`run_with`]). A function that needs
//! setup before it serves is started by [`run_with`].
//!
//! Four features are off by default, because they make a function larger: `tls`, for a gateway behind https, `traces`,
//! for OpenTelemetry (the module `trace`), `registry`, for lookups in registries (the module `registry`), and `policy`,
//! for tenants and their rules (the module `policy`). A handler enables them in its `Cargo.toml`.

mod acceptance;
mod address_check;
mod app;
mod client;
mod connection_state;
mod connector;
mod context;
pub mod duration;
pub mod env;
mod error;
mod error_chain;
pub mod gateway;
mod handler;
mod inflight;
mod lifecycle;
mod log;
#[cfg(feature = "policy")]
pub mod policy;
#[cfg(feature = "registry")]
pub mod registry;
pub mod reply;
mod request;
mod response;
mod run;
pub mod secret;
mod server;
mod settings;
mod setup;
mod shutdown;
pub mod signature;
#[cfg(feature = "traces")]
pub mod trace;
#[cfg(not(feature = "traces"))]
#[path = "trace/none.rs"]
mod trace;
pub mod unverified;

pub use address_check::{AddressCheck, AddressDenied};
pub use app::App;
pub use client::{ExchangeError, HttpClient, OutgoingRequestBody};
pub use context::Context;
pub use error::Error;
pub use error_chain::{BoxError, ErrorChain};
pub use gateway::Gateway;
pub use handler::Handler;
pub use inflight::ConcurrencyLimitExceeded;
pub use request::{Body, BodyError, Request};
pub use response::{Response, ResponseBody};
pub use run::{check_settings, run, run_with};
pub use secret::{Secret, Secrets};
pub use setup::{SetupContext, SetupError};
pub use shutdown::{BackgroundWorkGuard, Shutdown, ShutdownTrigger};

pub use bytes::Bytes;
pub use http;
pub use prometheus;
