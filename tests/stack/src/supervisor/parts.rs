//! Starts, stops and watches the parts of a stack, inside the supervisor.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::process::CommandExt as _,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rustix::process::Signal;

use crate::{
    control::{Event, PartStatus, State},
    error::{At as _, chain},
    part::Part,
    supervisor::{
        logs,
        ready::Written,
        reaper::{Child, Reaper},
        spec::{Context, Spec},
    },
};

/// The longest time for a part to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The longest time for a part to end after SIGTERM, before SIGKILL.
const END_WITHIN: Duration = Duration::from_secs(10);

/// A function that receives events about parts.
pub(crate) type Tell<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// The parts of a stack; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    context: Arc<Context>,
    reaper: Reaper,
    slots: Arc<Mutex<BTreeMap<Part, Slot>>>,
    /// Held while parts are started or stopped: one command at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Slot {
    state: State,
    since: Instant,
    child: Option<Child>,
}

impl Parts {
    /// Returns the parts of a stack, none of which runs yet.
    pub(crate) fn new(context: Context, reaper: Reaper) -> Self {
        Self {
            context: Arc::new(context),
            reaper,
            slots: Arc::default(),
            changing: Arc::default(),
        }
    }

    /// Returns the state of every part that was started at least once.
    pub(crate) fn status(&self) -> Vec<PartStatus> {
        let slots = self.slots();
        let status = |(part, slot): (&Part, &Slot)| PartStatus {
            part: *part,
            state: slot.state.clone(),
            seconds: slot.since.elapsed().as_secs(),
        };
        slots.iter().map(status).collect()
    }

    /// Starts all parts that do not run, group by group; returns the first failure with its part.
    pub(crate) async fn start_all(&self, tell: Tell<'_>) -> Result<(), (Part, String)> {
        let _one = self.changing.lock().await;
        for group in Part::GROUPS {
            let starts = group
                .iter()
                .map(|part| async { self.start_one(*part, tell).await.map_err(|why| (*part, why)) });
            join_all(starts)
                .await
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?;
        }
        Ok(())
    }

    /// Starts one part, unless it runs.
    pub(crate) async fn start(&self, part: Part, tell: Tell<'_>) -> Result<(), String> {
        let _one = self.changing.lock().await;
        self.start_one(part, tell).await
    }

    /// Stops one part.
    pub(crate) async fn stop(&self, part: Part, tell: Tell<'_>) {
        let _one = self.changing.lock().await;
        self.stop_one(part, tell).await;
    }

    /// Stops all parts, in the opposite order of their start.
    pub(crate) async fn stop_all(&self, tell: Tell<'_>) {
        let _one = self.changing.lock().await;
        self.stop_one(Part::Builder, tell).await;
        for group in Part::GROUPS.iter().rev() {
            join_all(group.iter().map(|part| self.stop_one(*part, tell))).await;
        }
    }

    async fn start_one(&self, part: Part, tell: Tell<'_>) -> Result<(), String> {
        if self
            .slots()
            .get(&part)
            .is_some_and(|slot| slot.state == State::Running)
        {
            return Ok(());
        }
        let spec = self.context.spec(part);
        tell(Event::Starting { part });
        let began = Instant::now();
        let (mut child, written, ready) = self.launch(part, spec)?;
        self.set(part, State::Starting, Some(child.clone()));
        let mut reason = "it was not seen working".to_owned();
        let result = tokio::select! {
            () = ready.wait(&self.reaper, &written, &mut reason) => Ok(()),
            how = child.ended() => Err(format!("it ended: {how}")),
            () = tokio::time::sleep(READY_WITHIN) => Err(String::new()),
        };
        let result = result.map_err(|why| match why.is_empty() {
            true => format!("not within {} s: {reason}", READY_WITHIN.as_secs()),
            false => why,
        });
        if let Err(why) = &result {
            child.signal(Signal::KILL);
            self.set(part, State::Ended { how: why.clone() }, None);
            return result;
        }
        self.set(part, State::Running, Some(child.clone()));
        tokio::spawn(self.clone().watch(part, child));
        tell(Event::Ready {
            part,
            seconds: began.elapsed().as_secs_f64(),
        });
        result
    }

    /// Writes the part's configuration, starts its process, and copies its output to the log.
    fn launch(&self, part: Part, spec: Spec) -> Result<(Child, Written, super::ready::Ready), String> {
        let Spec {
            mut command,
            ready,
            files,
        } = spec;
        for (path, text) in files {
            let dir = path.parent().unwrap_or(&path);
            fs::create_dir_all(dir)
                .at("create", dir)
                .map_err(|error| chain(&error))?;
            fs::write(&path, text)
                .at("write", &path)
                .map_err(|error| chain(&error))?;
        }
        let log = self.context.dir.log(part.name());
        let from = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let name = command.get_program().to_string_lossy().into_owned();
        let start = || {
            let (reader, writer) = io::pipe()?;
            command
                .stdin(Stdio::null())
                .stdout(writer.try_clone()?)
                .stderr(writer)
                .process_group(0);
            Ok((self.reaper.spawn(&mut command)?, reader))
        };
        let (child, output) =
            { start }().map_err(|error: io::Error| format!("cannot run {name}: {error}"))?;
        // The command keeps the write end of the pipe open; without this, the log's reader would never end.
        drop(command);
        tokio::spawn(logs::copy(output, log.clone()));
        Ok((child, Written { path: log, from }, ready))
    }

    /// Records the end of a part that ended by itself.
    async fn watch(self, part: Part, mut child: Child) {
        let how = child.ended().await;
        let mut slots = self.slots();
        if let Some(slot) = slots.get_mut(&part)
            && slot.state == State::Running
            && slot.child.as_ref().is_some_and(|current| current.is(&child))
        {
            *slot = Slot {
                state: State::Ended { how },
                since: Instant::now(),
                child: None,
            };
        }
    }

    async fn stop_one(&self, part: Part, tell: Tell<'_>) {
        let child = self.slots().get_mut(&part).and_then(|slot| slot.child.take());
        let Some(mut child) = child else { return };
        self.set(part, State::Stopped, None);
        child.signal(Signal::TERM);
        if tokio::time::timeout(END_WITHIN, child.ended()).await.is_err() {
            child.signal(Signal::KILL);
            child.ended().await;
        }
        tell(Event::Stopped { part });
    }

    fn set(&self, part: Part, state: State, child: Option<Child>) {
        self.slots().insert(
            part,
            Slot {
                state,
                since: Instant::now(),
                child,
            },
        );
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<Part, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
