//! The setup of a function: its context and its error.

use std::fmt;
use std::sync::Arc;

use crate::env::{Environment, SettingProblem, SettingProblems, SettingsParser};
use crate::error_chain::{BoxError, ErrorChain};
use crate::gateway::Gateway;
use crate::secret::Secrets;
use crate::shutdown::Shutdown;

/// The environment, secrets, gateway and metrics that a function's setup is given.
pub struct SetupContext {
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) problems: Vec<SettingProblem>,
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Gateway,
    pub(crate) registry: prometheus::Registry,
    pub(crate) shutdown: Shutdown,
    pub(crate) max_inflight: Option<usize>,
}

impl SetupContext {
    /// Returns the environment variables of the function.
    pub fn env(&self) -> &dyn Environment {
        &*self.environment
    }

    /// Returns a parser for the function's own settings.
    ///
    /// It already holds the problems of the host's settings, so that [`SettingsParser::fail_if_problems`] reports all
    /// problems at once: read all settings, and call it, before doing anything else.
    pub fn settings_parser_with_host_problems(&self) -> SettingsParser<'_> {
        SettingsParser::with_problems(&*self.environment, self.problems.clone())
    }

    /// Returns the secrets of the function.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Returns the function's client for the OpenFaaS gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Returns the Prometheus registry for the function's own metrics.
    pub fn metrics_registry(&self) -> &prometheus::Registry {
        &self.registry
    }

    /// Returns the shutdown state of the function.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Returns the setting `max_inflight`, for a function that [limits itself](crate::App::leave_inflight_limit_to_handler).
    pub fn max_inflight(&self) -> Option<usize> {
        self.max_inflight
    }
}

/// The reason why a function could not start.
///
/// Every error type converts to it through `?`. The host logs each of several [`SettingProblems`] on a line of its own.
pub struct SetupError(pub(crate) SetupFailureCause);

/// The cause of a failed setup: wrong settings, or another error.
pub(crate) enum SetupFailureCause {
    Settings(SettingProblems),
    Other(BoxError),
}

impl SetupError {
    /// Creates the error of a failed setup from its cause.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        let cause = cause.into();
        match cause.downcast::<SettingProblems>() {
            Ok(problems) => Self(SetupFailureCause::Settings(*problems)),
            Err(cause) => Self(SetupFailureCause::Other(cause)),
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
            SetupFailureCause::Settings(problems) => problems.fmt(f),
            SetupFailureCause::Other(cause) => ErrorChain(cause.as_ref()).fmt(f),
        }
    }
}

impl fmt::Debug for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetupError({self})")
    }
}
