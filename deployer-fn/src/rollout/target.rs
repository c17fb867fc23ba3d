//! The function that a rollout is about, and one question to the gateway about it.

use std::time::Duration;

use super::pace::Pace;
use crate::gateway::{self, FunctionStatus, ReadError, Transport};
use crate::request::FunctionSpec;
use crate::turns::Function;

/// The function that a rollout is about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
}

impl Target {
    pub(super) fn of(spec: &FunctionSpec) -> Self {
        Self {
            name: spec.service.clone(),
            namespace: spec.namespace.clone(),
        }
    }

    /// As it is known to [`Turns`](crate::turns::Turns) and [`Memory`](super::Memory).
    pub(super) fn key(&self) -> Function {
        (self.namespace.clone(), self.name.clone())
    }

    /// What there is now.
    pub(super) async fn look(
        &self,
        transport: &impl Transport,
        limit: Duration,
    ) -> Result<Option<FunctionStatus>, ReadError> {
        gateway::read(transport, &self.name, self.namespace.as_deref(), limit).await
    }

    /// What there is now, asked for until it is told or `patience` is over. To look changes nothing, so it may be done again.
    pub(super) async fn look_patiently(
        &self,
        transport: &impl Transport,
        limit: Duration,
        patience: Duration,
    ) -> Result<Option<FunctionStatus>, ReadError> {
        let begun = tokio::time::Instant::now();
        let mut pace = Pace::new();
        loop {
            match self.look(transport, limit).await {
                Err(error) if error.may_pass() && begun.elapsed() < patience => pace.pause().await,
                answer => return answer,
            }
        }
    }
}
