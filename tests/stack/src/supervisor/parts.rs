//! The running parts of a stack or cluster, which the supervisor starts, stops and watches.

use std::{
    collections::BTreeMap,
    fmt, fs,
    future::Future,
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rustix::process::Signal;

use crate::{
    control::{CommandAnswerEvent, PartState, PartStateAndDuration},
    error::{IoResultExt as _, Result, error_with_causes},
    part::SupervisedPart,
    supervisor::{
        logs,
        part_spec::PartStartSpec,
        ready::{HttpCommandLogOrRouteCheck, PartLogSinceStart},
        reaper::{ChildProcess, ProcessReaper},
    },
};

/// The longest time for a part to end after SIGTERM, before SIGKILL.
const PART_END_TIMEOUT: Duration = Duration::from_secs(10);

/// The time from the end of a part, which nobody requested, to its start. It doubles with each further end up to
/// [`LONGEST_RESTART_DELAY`], and is this again after a run of [`RUN_TIME_THAT_RESETS_RESTART_DELAY`].
const FIRST_RESTART_DELAY: Duration = Duration::from_secs(1);

/// The longest time from the end of a part, which nobody requested, to its start.
const LONGEST_RESTART_DELAY: Duration = Duration::from_secs(30);

/// The duration of a run after which the next restart is not delayed by the ends before it.
const RUN_TIME_THAT_RESETS_RESTART_DELAY: Duration = Duration::from_secs(60);

/// A function that receives events about parts.
pub(crate) type PartEventListener<'a, P> = &'a (dyn Fn(CommandAnswerEvent<P>) + Send + Sync);

/// The source of what a supervisor needs to know about its parts.
pub(crate) trait PartSource: fmt::Debug + Clone + Send + Sync + 'static {
    /// The parts that this source describes.
    type Part: SupervisedPart;

    /// Returns the specification of a part.
    fn spec_of(&self, part: Self::Part) -> PartStartSpec;

    /// Returns the path of a part's log.
    fn log_file_of(&self, part: Self::Part) -> PathBuf;

    /// Prepares what all parts need, before the first of them starts.
    fn prepare_start_of_all(&self) -> Result<()>;

    /// Prepares what one part needs, each time before it starts.
    fn prepare_start_of(
        &self,
        part: Self::Part,
        reaper: &ProcessReaper,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// The outcome of starting a part.
enum ReadyEndedOrTimeout {
    Ready,
    Ended(String),
    Timeout,
}

/// The supervisor's handle of its parts; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PartsHandle<S: PartSource> {
    config: Arc<S>,
    reaper: ProcessReaper,
    entries: Arc<Mutex<BTreeMap<S::Part, PartStateSinceAndProcess>>>,
    /// A lock that is held while parts are started or stopped: one command at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

/// The state of a part, the time of its last change, and the part's process, if one runs.
#[derive(Debug)]
struct PartStateSinceAndProcess {
    state: PartState,
    since: Instant,
    child: Option<ChildProcess>,
}

impl<S: PartSource> PartsHandle<S> {
    /// Creates the handle of parts, none of which runs yet.
    pub(crate) fn new(config: S, reaper: ProcessReaper) -> Self {
        Self {
            config: Arc::new(config),
            reaper,
            entries: Arc::default(),
            changing: Arc::default(),
        }
    }

    /// Returns the state of every part that was started at least once.
    pub(crate) fn statuses_of_parts_ever_started(&self) -> Vec<PartStateAndDuration<S::Part>> {
        let entries = self.lock_entries();
        let status = |(part, entry): (&S::Part, &PartStateSinceAndProcess)| PartStateAndDuration {
            part: *part,
            state: entry.state.clone(),
            seconds: entry.since.elapsed().as_secs(),
        };
        entries.iter().map(status).collect()
    }

    /// Prepares what all parts need, before the first of them starts.
    pub(crate) fn prepare_start_of_all(&self) -> Result<()> {
        self.config.prepare_start_of_all()
    }

    /// Starts all parts that do not run, group by group, and waits until they are ready; fails with the
    /// first failure and its part.
    pub(crate) async fn start_all_and_wait_until_ready(
        &self,
        on_event: PartEventListener<'_, S::Part>,
    ) -> Result<(), (S::Part, String)> {
        let _one = self.changing.lock().await;
        for group in S::Part::START_GROUPS {
            let starts = group.iter().map(|part| async {
                self.start_part_while_locked(*part, FIRST_RESTART_DELAY, on_event)
                    .await
                    .map_err(|reason| (*part, reason))
            });
            join_all(starts)
                .await
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?;
        }
        Ok(())
    }

    /// Starts one part, unless it runs, and waits until it is ready; fails with the reason if it does not
    /// become ready.
    pub(crate) async fn start_part(
        &self,
        part: S::Part,
        on_event: PartEventListener<'_, S::Part>,
    ) -> Result<(), String> {
        let _one = self.changing.lock().await;
        self.start_part_while_locked(part, FIRST_RESTART_DELAY, on_event)
            .await
    }

    /// Stops one part, if it runs, with SIGTERM or, after [`PART_END_TIMEOUT`], with SIGKILL.
    pub(crate) async fn stop_part(&self, part: S::Part, on_event: PartEventListener<'_, S::Part>) {
        let _one = self.changing.lock().await;
        self.stop_part_while_locked(part, on_event).await;
    }

    /// Stops all parts, in the opposite order of their start.
    pub(crate) async fn stop_all(&self, on_event: PartEventListener<'_, S::Part>) {
        let _one = self.changing.lock().await;
        let in_groups = |part: &S::Part| S::Part::START_GROUPS.iter().any(|group| group.contains(part));
        let others = self
            .lock_entries()
            .keys()
            .copied()
            .filter(|part| !in_groups(part))
            .collect::<Vec<_>>();
        for part in others {
            self.stop_part_while_locked(part, on_event).await;
        }
        for group in S::Part::START_GROUPS.iter().rev() {
            join_all(
                group
                    .iter()
                    .map(|part| self.stop_part_while_locked(*part, on_event)),
            )
            .await;
        }
    }

    /// Starts a part unless it runs, and waits until it is ready; the caller holds the lock `changing`. If the part
    /// ends by itself afterwards, it is started again after `restart_delay`.
    async fn start_part_while_locked(
        &self,
        part: S::Part,
        restart_delay: Duration,
        on_event: PartEventListener<'_, S::Part>,
    ) -> Result<(), String> {
        if self
            .lock_entries()
            .get(&part)
            .is_some_and(|entry| entry.state == PartState::Running)
        {
            return Ok(());
        }
        on_event(CommandAnswerEvent::Starting { part });
        let began = Instant::now();
        self.config
            .prepare_start_of(part, &self.reaper)
            .await
            .map_err(error_with_causes)?;
        let spec = self.config.spec_of(part);
        let (mut child, log, ready) = self.write_config_and_start_process_of_part(part, spec)?;
        self.set_part_state(part, PartState::Starting, Some(child.clone()));
        let mut last_failure = "the check was not done".to_owned();
        let outcome = tokio::select! {
            () = ready.wait_until_ready(&self.reaper, &log, &mut last_failure) => ReadyEndedOrTimeout::Ready,
            status = child.wait_until_ended() => ReadyEndedOrTimeout::Ended(status),
            () = tokio::time::sleep(S::Part::READY_TIMEOUT) => ReadyEndedOrTimeout::Timeout,
        };
        let result = match outcome {
            ReadyEndedOrTimeout::Ready => Ok(()),
            ReadyEndedOrTimeout::Ended(status) => Err(format!("it ended: {status}")),
            ReadyEndedOrTimeout::Timeout => Err(format!(
                "not within {} s: {last_failure}",
                S::Part::READY_TIMEOUT.as_secs()
            )),
        };
        if let Err(reason) = &result {
            child.signal_group_unless_reaped(Signal::KILL);
            self.set_part_state(
                part,
                PartState::Ended {
                    reason: reason.clone(),
                },
                None,
            );
            return result;
        }
        self.set_part_state(part, PartState::Running, Some(child.clone()));
        tokio::spawn(
            self.clone()
                .restart_after_unrequested_end(part, child, restart_delay),
        );
        on_event(CommandAnswerEvent::Ready {
            part,
            seconds: began.elapsed().as_secs_f64(),
        });
        result
    }

    /// Writes a part's configuration, starts its process, and copies its output to the part's log.
    fn write_config_and_start_process_of_part(
        &self,
        part: S::Part,
        spec: PartStartSpec,
    ) -> Result<(ChildProcess, PartLogSinceStart, HttpCommandLogOrRouteCheck), String> {
        let PartStartSpec {
            mut command,
            ready,
            files,
        } = spec;
        for (path, text) in files {
            let dir = path.parent().unwrap_or(&path);
            fs::create_dir_all(dir)
                .with_operation("create", dir)
                .map_err(error_with_causes)?;
            fs::write(&path, text)
                .with_operation("write", &path)
                .map_err(error_with_causes)?;
        }
        let log = self.config.log_file_of(part);
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let name = command.get_program().to_string_lossy().into_owned();
        let start = || {
            let (reader, writer) = io::pipe()?;
            command
                .stdin(Stdio::null())
                .stdout(writer.try_clone()?)
                .stderr(writer)
                .process_group(0);
            Ok((self.reaper.spawn_and_register_child(&mut command)?, reader))
        };
        let (child, output) =
            { start }().map_err(|error: io::Error| format!("cannot run {name}: {error}"))?;
        // The command keeps the write end of the pipe open; without this, the log's reader would never end.
        drop(command);
        tokio::spawn(logs::copy_output_to_log(output, log.clone()));
        Ok((child, PartLogSinceStart { path: log, from }, ready))
    }

    /// Waits until a part's process ends. If nobody requested the end, records it, and starts the part again after
    /// `delay`, as often as it takes, unless somebody starts or stops it before.
    fn restart_after_unrequested_end(
        self,
        part: S::Part,
        mut child: ChildProcess,
        delay: Duration,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // Boxed, because each start of the part ends with a call of this function.
        Box::pin(async move {
            let began = Instant::now();
            let reason = child.wait_until_ended().await;
            if !self.record_end_if_unrequested(part, &child, reason) {
                return;
            }
            let mut delay = match began.elapsed() < RUN_TIME_THAT_RESETS_RESTART_DELAY {
                true => delay,
                false => FIRST_RESTART_DELAY,
            };
            loop {
                tokio::time::sleep(delay).await;
                delay = LONGEST_RESTART_DELAY.min(delay * 2);
                let _one = self.changing.lock().await;
                let has_ended = matches!(
                    self.lock_entries().get(&part).map(|entry| &entry.state),
                    Some(PartState::Ended { .. })
                );
                if !has_ended || self.start_part_while_locked(part, delay, &|_| ()).await.is_ok() {
                    return;
                }
            }
        })
    }

    /// Records that a part's process has ended, if it is the part's present one and nobody requested its end; returns
    /// whether it is.
    fn record_end_if_unrequested(&self, part: S::Part, child: &ChildProcess, reason: String) -> bool {
        let mut entries = self.lock_entries();
        let Some(entry) = entries.get_mut(&part) else {
            return false;
        };
        let is_unrequested = entry.state == PartState::Running
            && entry
                .child
                .as_ref()
                .is_some_and(|current| current.is_same_process(child));
        if is_unrequested {
            *entry = PartStateSinceAndProcess {
                state: PartState::Ended { reason },
                since: Instant::now(),
                child: None,
            };
        }
        is_unrequested
    }

    /// Stops a part if it runs, and waits until it has ended; the caller holds the lock `changing`.
    async fn stop_part_while_locked(&self, part: S::Part, on_event: PartEventListener<'_, S::Part>) {
        let child = self
            .lock_entries()
            .get_mut(&part)
            .and_then(|entry| entry.child.take());
        let was_started = self.lock_entries().contains_key(&part);
        if was_started {
            // Also if it has ended by itself: it is not started again then.
            self.set_part_state(part, PartState::Stopped, None);
        }
        let Some(mut child) = child else { return };
        child.signal_group_unless_reaped(Signal::TERM);
        if tokio::time::timeout(PART_END_TIMEOUT, child.wait_until_ended())
            .await
            .is_err()
        {
            child.signal_group_unless_reaped(Signal::KILL);
            child.wait_until_ended().await;
        }
        on_event(CommandAnswerEvent::Stopped { part });
    }

    /// Records a part's state as of now, with its process.
    fn set_part_state(&self, part: S::Part, state: PartState, child: Option<ChildProcess>) {
        self.lock_entries().insert(
            part,
            PartStateSinceAndProcess {
                state,
                since: Instant::now(),
                child,
            },
        );
    }

    fn lock_entries(&self) -> MutexGuard<'_, BTreeMap<S::Part, PartStateSinceAndProcess>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
