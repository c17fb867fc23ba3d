//! A function that is ready to be served: its handler and its probes.

use std::sync::Arc;

use tokio::sync::watch;

use crate::handler::{ErasedHandler, Handler};

/// A function's handler, with its readiness checks and the paths of its probes.
pub struct App {
    pub(crate) handler: Arc<dyn ErasedHandler>,
    pub(crate) ready: Vec<ReadyCheck>,
    pub(crate) ready_detail: Option<ReadyDetail>,
    pub(crate) health_paths: Vec<String>,
    pub(crate) ready_paths: Vec<String>,
    /// Whether the handler, and not the host, applies `max_inflight`.
    pub(crate) leave_inflight_limit_to_handler: bool,
    /// The number of senders of unverified bodies at a time, if the handler verifies requests.
    pub(crate) unverified_senders: Option<usize>,
    pub(crate) name: Option<&'static str>,
}

/// A readiness check: a function that returns whether the function can serve requests now.
pub(crate) type ReadyCheck = Box<dyn Fn() -> bool + Send + Sync>;

/// A function that returns the lines with details in the answer to a readiness probe.
pub(crate) type ReadyDetail = Box<dyn Fn() -> String + Send + Sync>;

impl App {
    /// Creates a function from its handler; without readiness checks, it is ready until the shutdown.
    pub fn new(handler: impl Handler) -> Self {
        Self {
            handler: Arc::new(handler),
            ready: Vec::new(),
            ready_detail: None,
            health_paths: Vec::new(),
            ready_paths: Vec::new(),
            leave_inflight_limit_to_handler: false,
            unverified_senders: None,
            name: None,
        }
    }

    /// Sets the function's service name in traces. The environment takes precedence (`OTEL_SERVICE_NAME`).
    #[must_use]
    pub fn with_name_in_traces(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Leaves `max_inflight` to the handler, which the host then calls for every request.
    ///
    /// For handlers that queue requests instead of rejecting them, for example.
    #[must_use]
    pub fn leave_inflight_limit_to_handler(mut self) -> Self {
        self.leave_inflight_limit_to_handler = true;
        self
    }

    /// Declares that the handler verifies who sent a request, and calls [`Context::accept`](crate::Context::accept) then.
    ///
    /// The host then expects requests from anybody: a request counts against `max_inflight` only once it is accepted,
    /// the memory of connections without an accepted one is limited, and a connection is closed after a request that was
    /// not accepted. The handler must receive bodies within an
    /// [`UnverifiedBudget`](crate::unverified::UnverifiedBudget) of `max_unverified_senders`, which displaces those
    /// that hold others up.
    #[must_use]
    pub fn handler_verifies_requests(mut self, max_unverified_senders: usize) -> Self {
        self.unverified_senders = Some(max_unverified_senders);
        self
    }

    /// Adds a readiness check: the function is ready only while all of its checks return true. They run for readiness
    /// probes, and must not block.
    #[must_use]
    pub fn ready_if(mut self, check: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.ready.push(Box::new(check));
        self
    }

    /// Adds a readiness check that succeeds while the latest value in `ready` is true, for checks that run in the
    /// background.
    #[must_use]
    pub fn ready_while(self, ready: watch::Receiver<bool>) -> Self {
        self.ready_if(move || *ready.borrow())
    }

    /// Adds details to the answers to readiness probes: lines of text, which end with a line feed. They are made for each
    /// probe, which anybody may send, and must not block.
    #[must_use]
    pub fn ready_detail(mut self, detail: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.ready_detail = Some(Box::new(detail));
        self
    }

    /// Adds a path at which the host answers health probes, besides `/_/health`.
    #[must_use]
    pub fn also_healthy_at(mut self, path: impl Into<String>) -> Self {
        self.health_paths.push(path.into());
        self
    }

    /// Adds a path at which the host answers readiness probes, besides `/_/ready`.
    #[must_use]
    pub fn also_ready_at(mut self, path: impl Into<String>) -> Self {
        self.ready_paths.push(path.into());
        self
    }
}
