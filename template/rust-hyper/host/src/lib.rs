//! Turns a handler into an OpenFaaS workload.
//!
//! A function is a binary whose `main` hands an async function to [`run`]:
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
//! The host serves HTTP/1.1 on 8080, answers `/_/health` and `/_/ready` itself, shows Prometheus metrics on 8081, and
//! reads the environment variables that of-watchdog reads (listed at [`run_with`]). A function with state of its own is
//! started by [`run_with`].
//!
//! Two features are off unless a handler's `Cargo.toml` asks for them, because they make a function larger: `tls` is for a
//! gateway behind https, and `traces` for OpenTelemetry (`trace`).

mod body;
mod boot;
mod context;
pub mod duration;
pub mod env;
mod error;
pub mod gateway;
mod handler;
mod life;
mod log;
pub mod reply;
mod response;
mod run;
pub mod secret;
mod server;
mod settings;
mod shutdown;
pub mod signature;
#[cfg(feature = "traces")]
pub mod trace;
#[cfg(not(feature = "traces"))]
#[path = "trace/none.rs"]
mod trace;

pub use body::{Body, BodyError};
pub use boot::{App, SetupContext, SetupError};
pub use context::Context;
pub use error::{BoxError, Error, ErrorChain};
pub use gateway::Gateway;
pub use handler::Handler;
pub use response::ResponseBody;
pub use run::{check_settings, run, run_with};
pub use secret::{Secret, Secrets};
pub use shutdown::{Shutdown, ShutdownTrigger};

/// What a handler is called with.
pub type Request = http::Request<Body>;

/// What a handler answers.
pub type Response = http::Response<ResponseBody>;

pub use bytes::Bytes;
pub use http;
pub use prometheus;
