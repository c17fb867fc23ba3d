//! The launcher's side of a start: it starts the holder, waits until the supervisor answers, and lets it start the
//! parts.

use std::{
    fs::File,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    cgroup::StackControlGroups,
    control::{CommandAnswerEvent, ControlClient, SupervisorCommand},
    directories::StackDir,
    error::{IoResultExt as _, LauncherError, Result},
    part::SupervisedPart,
    plan::{RunningStackState, process_start_ticks},
    progress::ProgressSink,
    stack::{current_log_file_tail_or_empty, part_failure_as_error},
};

/// The longest time until the stack's supervisor accepts connections.
const SUPERVISOR_START_TIMEOUT: Duration = Duration::from_secs(20);

/// The interval between attempts to connect to a supervisor that is starting.
const SUPERVISOR_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Starts the parts of a stack or cluster that do not run, emits their progress, and waits until they are ready.
pub(crate) async fn start_missing_parts_and_wait<P: SupervisedPart>(
    dir: &StackDir,
    progress: &ProgressSink,
) -> Result<()> {
    let mut supervisor = ControlClient::connect_to_supervisor(&dir.control_socket()).await?;
    let mut started = 0;
    let on_event = |event: CommandAnswerEvent<P>| match event {
        CommandAnswerEvent::Starting { part } => progress.emit_progress_line(part, "starting"),
        CommandAnswerEvent::Ready { part, seconds } => {
            started += 1;
            progress.emit_progress_line(part, format_args!("ready after {seconds:.1} s"));
        }
        _ => {}
    };
    let answer = supervisor
        .send_command_and_return_done_failed_or_status(SupervisorCommand::StartAll, on_event)
        .await?;
    part_failure_as_error(dir, answer)?;
    if started == 0 {
        progress.emit_progress_line(P::WHOLE, "all parts are running");
    }
    Ok(())
}

/// The holder of a stack that was just started. Dropping it kills the holder, and with it the stack, unless
/// [`HolderProcess::keep_running`] was called.
#[derive(Debug)]
pub(crate) struct HolderProcess {
    child: Option<std::process::Child>,
}

impl HolderProcess {
    /// Starts a launcher's command `hold_command` as the holder, with its output in the supervisor's log; waits for
    /// nothing.
    pub(crate) fn start_holder(dir: &StackDir, program: &Path, hold_command: &[&str]) -> Result<Self> {
        let log = dir.part_log_file("supervisor");
        let output = File::create(&log).with_operation("write", &log)?;
        let errors = output.try_clone().with_operation("write", &log)?;
        let mut command = std::process::Command::new(program);
        command
            .args(hold_command)
            .args(["--name", &dir.name])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = command.spawn();
        let child = child.map_err(|source| LauncherError::Spawn {
            program: program.display().to_string(),
            source,
        })?;
        Ok(Self { child: Some(child) })
    }

    /// Waits until the stack's supervisor accepts connections, and then moves the holder to a control subgroup; fails
    /// if the holder ends or [`SUPERVISOR_START_TIMEOUT`] passes.
    pub(crate) async fn wait_for_supervisor_and_move_holder(&self, dir: &StackDir) -> Result<()> {
        let holder = self
            .child
            .as_ref()
            .map(std::process::Child::id)
            .unwrap_or_default();
        let end = Instant::now() + SUPERVISOR_START_TIMEOUT;
        while ControlClient::connect_to_supervisor(&dir.control_socket())
            .await
            .is_err()
        {
            let failed = |reason: String| {
                let log = dir.part_log_file("supervisor");
                Err(LauncherError::Supervisor {
                    reason,
                    tail: current_log_file_tail_or_empty(&log, 30),
                    log,
                })
            };
            if process_start_ticks(holder).is_none() {
                return failed("ended".into());
            }
            if Instant::now() > end {
                return failed(format!(
                    "did not answer within {} s",
                    SUPERVISOR_START_TIMEOUT.as_secs()
                ));
            }
            tokio::time::sleep(SUPERVISOR_POLL_INTERVAL).await;
        }
        let running = RunningStackState::read_state_if_running_or_killed(dir)?;
        StackControlGroups::from_directories(running.map(|running| running.groups).unwrap_or_default())
            .move_holder_to_subgroup_in_version_2(holder)
    }

    /// Keeps the stack running after this process ends. As long as this process runs, a thread reaps the holder
    /// when it ends.
    pub(crate) fn keep_running(mut self) {
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for HolderProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
