//! The context that a handler is called with.

use std::sync::Arc;

use tokio::time::Instant;

use crate::acceptance::Acceptance;
use crate::gateway::Gateway;
use crate::inflight::ConcurrencyLimitExceeded;
use crate::secret::Secrets;
use crate::shutdown::Shutdown;

/// The call id and the deadline of one request, with the secrets, the gateway and the shutdown that all requests share.
/// Clones are cheap.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) call_id: Arc<str>,
    deadline: Option<Instant>,
    /// The acceptance of the request, if the function verifies requests.
    acceptance: Option<Arc<Acceptance>>,
    shared: Arc<SharedContextParts>,
}

/// The parts of a [`Context`] that are the same for all requests.
#[derive(Debug)]
pub(crate) struct SharedContextParts {
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Gateway,
    pub(crate) shutdown: Shutdown,
}

impl Context {
    /// Creates a request context without a deadline, for calling a handler without the host (in a test).
    pub fn new(call_id: &str, secrets: Secrets, gateway: Gateway, shutdown: Shutdown) -> Self {
        Self {
            call_id: call_id.into(),
            deadline: None,
            acceptance: None,
            shared: Arc::new(SharedContextParts {
                secrets,
                gateway,
                shutdown,
            }),
        }
    }

    /// Sets the time that [`deadline`](Self::deadline) returns, for calling a handler without the host (in a test).
    /// Nothing drops the handler at that time.
    #[must_use]
    pub fn with_reported_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Creates the context with which the host calls the handler for one request.
    pub(crate) fn for_request(
        call_id: Arc<str>,
        deadline: Option<Instant>,
        acceptance: Option<Arc<Acceptance>>,
        shared: Arc<SharedContextParts>,
    ) -> Self {
        Self {
            call_id,
            deadline,
            acceptance,
            shared,
        }
    }

    /// Returns the request's call id: the caller's `X-Call-Id`, or an id that the host generated.
    ///
    /// It is in the response and in every log line of the request.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// Returns the time at which the host drops the request's handler, if the setting `exec_timeout` is set.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Records that the request is authentic: from now on it counts against `max_inflight`, and its connection may be
    /// kept.
    ///
    /// For functions that [verify their requests](crate::App::handler_verifies_requests); without effect for others, and the
    /// second time.
    ///
    /// # Errors
    /// Fails if as many authentic requests are in flight as `max_inflight` allows.
    pub fn accept(&self) -> Result<(), ConcurrencyLimitExceeded> {
        match &self.acceptance {
            Some(acceptance) => acceptance.accept(),
            None => Ok(()),
        }
    }

    /// Returns the secrets of the function.
    pub fn secrets(&self) -> &Secrets {
        &self.shared.secrets
    }

    /// Returns the function's client for the OpenFaaS gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.shared.gateway
    }

    /// Returns the shutdown state of the function.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shared.shutdown
    }
}
