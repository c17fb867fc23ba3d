//! The server that the host is compared with: the same handler on hyper, with as little code as possible.

use std::convert::Infallible;
use std::io::Write;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::child::BODY_LIMIT_BYTES;
use crate::report;

/// Serves the handler on hyper alone, until SIGTERM.
pub(crate) fn serve_on_hyper() -> ExitCode {
    let served = create_runtime_like_host()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve_until_terminated()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Creates the same runtime as the host, so that the runtime does not affect the comparison.
fn create_runtime_like_host() -> std::io::Result<Runtime> {
    let processors = available_parallelism().map_or(1, NonZero::get);
    let mut builder = match processors {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// Serves on a free port, which is logged as the host logs it, until SIGTERM.
async fn serve_until_terminated() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
    let port = listener.local_addr()?.port();
    writeln!(
        std::io::stdout(),
        "{}",
        serde_json::json!({"message": "listening", "port": port})
    )?;
    tokio::select! {
        accepting = accept_and_serve_connections(&listener) => accepting,
        _ = terminate.recv() => Ok(()),
    }
}

async fn accept_and_serve_connections(listener: &TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(greet_by_name_in_body)),
        );
    }
}

/// The handler of the measured function on hyper alone; an unusable body counts as empty.
async fn greet_by_name_in_body(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = Limited::new(request.into_body(), BODY_LIMIT_BYTES)
        .collect()
        .await;
    let name = body
        .ok()
        .and_then(|body| String::from_utf8(body.to_bytes().into()).ok())
        .unwrap_or_default();
    let mut response = Response::new(Full::from(format!("Hello, {name}!\n")));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(response)
}
