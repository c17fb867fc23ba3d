//! A client of BuildKit's Control API, for what `buildctl` cannot do: the events of the history as they happen, and
//! many records in a short time.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use bollard_buildkit_proto::{
    moby::buildkit::v1::{
        BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest, SolveRequest,
        control_client::ControlClient,
    },
    pb::Definition,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use crate::buildkit::BuildkitDaemon;

/// The number of records that are made at the same time.
const CONCURRENT_SOLVES: usize = 16;

/// The size of an attribute of each record, in bytes: about as much as a build of Slipway has in all.
const ATTRIBUTE_BYTES: usize = 4 << 10;

/// The longest wait for an event of the history.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to the Control API of a daemon.
#[derive(Debug, Clone)]
pub struct ControlApi(ControlClient<Channel>);

/// The events of a daemon's history from the subscription on.
#[derive(Debug)]
pub struct HistoryEvents(Streaming<BuildHistoryEvent>);

/// The end of a solve, as BuildKit recorded it.
#[derive(Debug, Clone)]
pub struct SolveEndTimeAndError {
    /// The time at which the solve ended.
    pub at: SystemTime,
    /// The error of the solve; `None` if it succeeded.
    pub error: Option<String>,
}

impl ControlApi {
    /// Connects to a daemon.
    pub async fn connect(daemon: &BuildkitDaemon) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", daemon.port))?;
        Ok(Self(ControlClient::new(endpoint.connect().await?)))
    }

    /// Adds this many records of empty solves to the daemon's history.
    pub async fn add_records(&self, count: usize) -> Result<()> {
        let solves = stream::iter(0..count).map(|number| {
            let mut client = self.0.clone();
            async move {
                let request = SolveRequest {
                    r#ref: format!("record{number}"),
                    // A solve with neither a definition nor a frontend waits for a client that sends one.
                    definition: Some(Definition::default()),
                    frontend_attrs: HashMap::from([("text".to_owned(), "x".repeat(ATTRIBUTE_BYTES))]),
                    ..SolveRequest::default()
                };
                match client.solve(request).await {
                    Err(status) if status.code() == Code::Unavailable => Err(status),
                    // What it results in does not matter.
                    _ => Ok(()),
                }
            }
        });
        Ok(solves.buffer_unordered(CONCURRENT_SOLVES).try_collect().await?)
    }

    /// Subscribes to the history.
    pub async fn follow_new_history_events(&self) -> Result<HistoryEvents> {
        let request = BuildHistoryRequest {
            // The daemon reads no records for this.
            active_only: true,
            ..BuildHistoryRequest::default()
        };
        let events = self.0.clone().listen_build_history(request).await?;
        Ok(HistoryEvents(events.into_inner()))
    }

    /// Returns all that the history has of running and ended solves, as Rust prints it. The daemon reads all records.
    pub async fn history_text(&self) -> Result<String> {
        let request = BuildHistoryRequest {
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        let events = self.0.clone().listen_build_history(request).await?.into_inner();
        Ok(events
            .try_fold(String::new(), async |text, event| {
                Ok(text + &format!("{event:?}\n"))
            })
            .await?)
    }

    /// Returns the number of records of ended solves in the history. The daemon reads all records.
    pub async fn ended_record_count(&self) -> Result<usize> {
        let request = BuildHistoryRequest {
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        let events = self.0.clone().listen_build_history(request).await?.into_inner();
        let ended =
            events.try_filter(|event| std::future::ready(event.r#type() == BuildHistoryEventType::Complete));
        Ok(ended.try_fold(0, async |count, _| Ok(count + 1)).await?)
    }
}

impl HistoryEvents {
    /// Waits for the end of the solve of a call's build.
    pub async fn wait_for_end(&mut self, call_id: &str) -> Result<SolveEndTimeAndError> {
        let reading = async {
            loop {
                let event = self.0.message().await?.context("the history ended")?;
                let is_end = event.r#type() == BuildHistoryEventType::Complete;
                let record = event.record.context("an event without a record")?;
                let is_of_call =
                    record.frontend_attrs.get("slipway.call-id").map(String::as_str) == Some(call_id);
                if is_end && is_of_call {
                    let at = record.completed_at.context("no time of the end")?;
                    ensure!(at.seconds > 0, "{at:?}");
                    let since = Duration::new(at.seconds.try_into()?, at.nanos.try_into()?);
                    return Ok(SolveEndTimeAndError {
                        at: SystemTime::UNIX_EPOCH + since,
                        error: record.error.map(|error| error.message),
                    });
                }
            }
        };
        tokio::time::timeout(EVENT_TIMEOUT, reading)
            .await
            .context("BuildKit reports no end of the solve")?
    }
}
