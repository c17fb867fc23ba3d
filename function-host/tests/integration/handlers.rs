//! The handler of the function under test, with a different behaviour for each path.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll};

use function_host::http::{self, StatusCode};
use function_host::prometheus;
use function_host::{
    App, BoxError, Bytes, Context, Error, Handler, Request, Response, ResponseBody, SetupContext, SetupError,
    reply,
};
use futures_core::Stream;
use tokio::sync::Semaphore;

/// The handler of the function under test, with its state.
struct TestHandler {
    /// A semaphore with a permit for each request to `/wait` that may continue.
    released: Semaphore,
    ready: Arc<AtomicBool>,
}

/// Sets up the function under test. Its own settings are `answer_is` and `setup`.
pub(crate) async fn set_up_test_handler(context: SetupContext) -> Result<App, SetupError> {
    let mut settings = context.settings_parser_with_host_problems();
    settings.number("answer_is", 42_u8);
    let setup = settings.optional_text("setup");
    settings.fail_if_problems()?;
    match setup.as_deref() {
        Some("fails") => return Err(SetupError::new("the disk is full")),
        Some("panics") => panic!("panic in the setup"),
        Some("hangs") => {
            tracing::info!("setting up");
            std::future::pending::<()>().await;
        }
        _ => {}
    }
    let ready = Arc::new(AtomicBool::new(setup.as_deref() != Some("not ready")));
    let builds = prometheus::IntCounter::new("builds_total", "Builds.")?;
    context.metrics_registry().register(Box::new(builds.clone()))?;
    builds.inc();
    let handler = TestHandler {
        released: Semaphore::new(0),
        ready: ready.clone(),
    };
    let app = App::new(handler)
        .with_name_in_traces("tested")
        .ready_if({
            let ready = ready.clone();
            move || ready.load(Ordering::Relaxed)
        })
        .also_healthy_at("/healthz")
        .also_ready_at("/ready");
    Ok(match setup.as_deref() {
        Some("not ready") => app.ready_detail(move || format!("disk: {}\n", ready.load(Ordering::Relaxed))),
        _ => app,
    })
}

impl Handler for TestHandler {
    async fn call(&self, request: Request, context: Context) -> Result<Response, Error> {
        match request.uri().path() {
            "/echo" => {
                let text = request.into_body().text(1024).await?;
                Ok(reply::text(text))
            }
            "/ready-now" => {
                self.ready.store(true, Ordering::Relaxed);
                Ok(reply::status(StatusCode::NO_CONTENT))
            }
            "/wait" => {
                tracing::info!("waiting");
                self.released.acquire().await?.forget();
                Ok(reply::text("waited"))
            }
            "/release" => {
                self.released.add_permits(1);
                Ok(reply::text("released"))
            }
            "/until-shutdown" => {
                tracing::info!("working");
                let deadline = context.shutdown().wait_until_begun().await;
                assert!(deadline > tokio::time::Instant::now());
                Ok(reply::text("interrupted"))
            }
            "/background" => {
                let (work, shutdown) = (
                    context.shutdown().begin_background_work(),
                    context.shutdown().clone(),
                );
                tokio::spawn(async move {
                    shutdown.wait_until_begun().await;
                    // The port is closed, and no connection is left, long before this.
                    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                    tracing::info!("background work ended");
                    drop(work);
                });
                Ok(reply::text("begun"))
            }
            "/forever-in-background" => {
                let work = context.shutdown().begin_background_work();
                tokio::spawn(async move {
                    let _work = work;
                    std::future::pending::<()>().await
                });
                Ok(reply::text("begun"))
            }
            "/forever" => {
                let _guard = DropLogger;
                tracing::info!("started");
                std::future::pending().await
            }
            "/block" => {
                tracing::info!("blocking");
                std::thread::park();
                Ok(reply::text(""))
            }
            "/panic" => panic!("panic in the handler"),
            "/panic-in-stream" => Ok(http::Response::new(ResponseBody::stream(
                StreamPanickingAfterFirstChunk { sent: false },
            ))),
            "/fail" => Err("12x".parse::<u8>().map(drop).unwrap_err().into()),
            "/refuse" => Err(Error::status(StatusCode::CONFLICT, "already exists")),
            "/logged" => {
                tracing::info!("logged");
                Ok(reply::text("logged"))
            }
            "/long-line" => {
                tracing::info!(
                    context = "x".repeat(100_000),
                    again = "\u{1}".repeat(100_000),
                    "{}",
                    "y".repeat(9)
                );
                Ok(reply::text("logged"))
            }
            path => Err(Error::status(StatusCode::NOT_FOUND, format!("{path} not found"))),
        }
    }
}

/// A guard that logs its drop.
struct DropLogger;

impl Drop for DropLogger {
    fn drop(&mut self) {
        tracing::info!("dropped");
    }
}

/// A response stream that panics after its first chunk.
struct StreamPanickingAfterFirstChunk {
    sent: bool,
}

impl Stream for StreamPanickingAfterFirstChunk {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, _cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        assert!(!self.sent, "panic in the stream");
        self.sent = true;
        Poll::Ready(Some(Ok("first".into())))
    }
}
