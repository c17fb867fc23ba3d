//! What a handler has besides the request.

use std::sync::Arc;

use tokio::time::Instant;

use crate::gateway::Gateway;
use crate::secret::Secrets;
use crate::shutdown::Shutdown;

/// The surroundings of one request. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) call_id: Arc<str>,
    deadline: Option<Instant>,
    platform: Arc<Platform>,
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Gateway,
    pub(crate) shutdown: Shutdown,
}

impl Context {
    /// A context without a deadline, for a handler that is called by other than the host.
    pub fn new(call_id: &str, secrets: Secrets, gateway: Gateway, shutdown: Shutdown) -> Self {
        Self {
            call_id: call_id.into(),
            deadline: None,
            platform: Arc::new(Platform {
                secrets,
                gateway,
                shutdown,
            }),
        }
    }

    pub(crate) fn of_request(call_id: Arc<str>, deadline: Option<Instant>, platform: Arc<Platform>) -> Self {
        Self {
            call_id,
            deadline,
            platform,
        }
    }

    /// The caller's `X-Call-Id`, or one made for this request. It is in the response and on every line of the log.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// When `exec_timeout` ends the handler, if there is such a limit.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The secrets the function was deployed with.
    pub fn secrets(&self) -> &Secrets {
        &self.platform.secrets
    }

    /// The gateway the function stands behind.
    pub fn gateway(&self) -> &Gateway {
        &self.platform.gateway
    }

    /// Whether the function is being ended, and by when.
    pub fn shutdown(&self) -> &Shutdown {
        &self.platform.shutdown
    }
}
