//! The threads that builds run on, apart from those that serve connections.
//!
//! A build exchanges many messages with BuildKit, each of which would wait behind the connections of a flood: with
//! threads of its own, a verified request waits for no unverified one.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use function_host::trace;
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// The threads that builds run on. By default, a build runs where it is awaited. Clones share the threads.
#[derive(Clone, Debug, Default)]
pub struct OptionalBuildThreads(Option<Arc<OwnRuntime>>);

/// A runtime that may be dropped anywhere, because the drop does not wait for the runtime's tasks and threads.
#[derive(Debug)]
struct OwnRuntime(Option<Runtime>);

impl OptionalBuildThreads {
    /// Starts as many threads as there are processors.
    ///
    /// # Errors
    /// Fails if the threads cannot be started.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(available_parallelism().map_or(1, NonZero::get))
            .thread_name("builds")
            .enable_all()
            .build()?;
        Ok(Self(Some(Arc::new(OwnRuntime(Some(runtime))))))
    }

    /// Runs `work` on the threads and returns its result, or resumes its panic. Dropping the future cancels the work.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.0.as_ref().and_then(|own| own.0.as_ref());
        let Some(runtime) = runtime else {
            return work.await;
        };
        let task = runtime.spawn(trace::in_current_span(work.in_current_span()));
        match AbortOnDropHandle::new(task)
            .await
            .map_err(tokio::task::JoinError::try_into_panic)
        {
            Ok(result) => result,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The process is about to exit.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_build_goes_on_while_all_threads_that_serve_connections_are_busy() {
        let threads = OptionalBuildThreads::start().unwrap();
        let (ended, end) = mpsc::channel();
        let builds = threads.clone();
        let build = tokio::spawn(async move {
            let steps = async move {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                ended
                    .send(std::thread::current().name().map(str::to_owned))
                    .unwrap();
                7
            };
            builds.run(steps).await
        });
        tokio::task::yield_now().await;
        // Blocks the only thread of this test's runtime.
        assert_eq!(end.recv().unwrap().as_deref(), Some("builds"));
        assert_eq!(build.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn dropping_the_wait_for_a_build_drops_the_build() {
        let threads = OptionalBuildThreads::start().unwrap();
        let (held, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
        let (started, start) = tokio::sync::oneshot::channel();
        let work = async move {
            let _held = held;
            started.send(()).unwrap();
            std::future::pending::<()>().await;
        };
        let waiting = tokio::spawn(async move { threads.run(work).await });
        start.await.unwrap();
        waiting.abort();
        assert_eq!(dropped.recv().await, None);
    }

    #[tokio::test]
    async fn the_panic_of_a_build_is_resumed_where_it_is_awaited() {
        let threads = OptionalBuildThreads::start().unwrap();
        let waiting = tokio::spawn(async move { threads.run(async { panic!("a defect") }).await });
        assert!(waiting.await.unwrap_err().is_panic());
        let here = tokio::spawn(async { OptionalBuildThreads::default().run(async { 7 }).await });
        assert_eq!(here.await.unwrap(), 7);
    }
}
