//! The start of a function with state of its own.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::env::{Environment, Parser, Problem, Problems};
use crate::error::{BoxError, ErrorChain};
use crate::gateway::Gateway;
use crate::handler::Handler;
use crate::secret::Secrets;
use crate::shutdown::Shutdown;

/// What a function has at its start.
pub struct SetupContext {
    pub(crate) strings: Arc<dyn Environment>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Gateway,
    pub(crate) registry: prometheus::Registry,
    pub(crate) shutdown: Shutdown,
    pub(crate) max_inflight: Option<usize>,
}

impl SetupContext {
    /// The environment.
    pub fn env(&self) -> &dyn Environment {
        &*self.strings
    }

    /// A parser for the function's own settings. It knows already what is wrong with the host's, so that its `finish`
    /// names all of it: read the settings, and finish, before anything else is begun.
    pub fn settings(&self) -> Parser<'_> {
        Parser::with_problems(&*self.strings, self.problems.clone())
    }

    /// The secrets the function was deployed with.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The gateway the function stands behind.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where the function's own metrics are registered.
    pub fn registry(&self) -> &prometheus::Registry {
        &self.registry
    }

    /// The end of the process.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The setting `max_inflight`, for a function that [limits itself](App::limits_itself).
    pub fn max_inflight(&self) -> Option<usize> {
        self.max_inflight
    }
}

/// A function that is ready to be served.
pub struct App<H> {
    pub(crate) handler: H,
    pub(crate) ready: Vec<ReadyCheck>,
    pub(crate) health_paths: Vec<String>,
    pub(crate) ready_paths: Vec<String>,
    pub(crate) limits_itself: bool,
    pub(crate) name: Option<&'static str>,
}

/// Says whether the function can do its work now.
pub(crate) type ReadyCheck = Box<dyn Fn() -> bool + Send + Sync>;

impl<H: Handler> App<H> {
    /// A function that is ready whenever the host is.
    pub fn new(handler: H) -> Self {
        Self {
            handler,
            ready: Vec::new(),
            health_paths: Vec::new(),
            ready_paths: Vec::new(),
            limits_itself: false,
            name: None,
        }
    }

    /// What the function is called in traces, where the environment does not say it.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Leaves `max_inflight` to the handler, which is then called for every request: one that lets requests wait, say.
    #[must_use]
    pub fn limits_itself(mut self) -> Self {
        self.limits_itself = true;
        self
    }

    /// Ready only while `check` says so. It is asked for each probe and must not block.
    #[must_use]
    pub fn ready_if(mut self, check: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.ready.push(Box::new(check));
        self
    }

    /// Ready only while `ready` holds true, for a check that goes on in the background.
    #[must_use]
    pub fn ready_while(self, ready: watch::Receiver<bool>) -> Self {
        self.ready_if(move || *ready.borrow())
    }

    /// Answers `path` as `/_/health`.
    #[must_use]
    pub fn health_at(mut self, path: impl Into<String>) -> Self {
        self.health_paths.push(path.into());
        self
    }

    /// Answers `path` as `/_/ready`.
    #[must_use]
    pub fn ready_at(mut self, path: impl Into<String>) -> Self {
        self.ready_paths.push(path.into());
        self
    }
}

/// Why a function did not start. Every error becomes one through `?`; [`Problems`] are told one by one.
pub struct SetupError(pub(crate) Failure);

pub(crate) enum Failure {
    Settings(Problems),
    Other(BoxError),
}

impl SetupError {
    /// A failure that is no setting.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        let cause = cause.into();
        match cause.downcast::<Problems>() {
            Ok(problems) => Self(Failure::Settings(*problems)),
            Err(cause) => Self(Failure::Other(cause)),
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for SetupError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::Settings(problems) => problems.fmt(f),
            Failure::Other(cause) => ErrorChain(cause.as_ref()).fmt(f),
        }
    }
}

impl fmt::Debug for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetupError({self})")
    }
}
