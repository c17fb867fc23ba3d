//! The start and reaping of child processes, for a process that is PID 1.
//!
//! A process that loses its parent in a PID namespace becomes a child of PID 1, which has to reap it. Doing
//! so also reaps the children that the async runtime would wait for, so every child is started and reaped
//! here.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The reaper, which starts child processes and reaps every process that ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessReaper {
    children: Arc<Mutex<HashMap<i32, watch::Sender<Option<String>>>>>,
}

/// A handle of a child process that the reaper started.
#[derive(Debug, Clone)]
pub(crate) struct ChildProcess {
    pid: Pid,
    ended: watch::Receiver<Option<String>>,
}

impl ProcessReaper {
    /// Starts a program as a child process.
    pub(crate) fn spawn_and_register_child(&self, command: &mut Command) -> io::Result<ChildProcess> {
        // The lock is held until the child is registered, because it may end at once.
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, ended) = watch::channel(None);
        children.insert(pid.as_raw_nonzero().get(), sender);
        Ok(ChildProcess { pid, ended })
    }

    /// Runs a program until it exits; returns `None` for success, or else the exit status.
    pub(crate) async fn run_to_exit_and_describe_failure(
        &self,
        command: &mut Command,
    ) -> io::Result<Option<String>> {
        let how = self.spawn_and_register_child(command)?.wait_until_ended().await;
        Ok(Some(how).filter(|how| how != SUCCESS_EXIT_TEXT))
    }

    /// Reaps ended processes until the future is dropped.
    pub(crate) async fn reap_until_dropped(&self) -> io::Result<()> {
        let mut signals = signal(SignalKind::child())?;
        loop {
            self.reap_ended_processes();
            signals.recv().await;
        }
    }

    /// Reaps every process that has ended, and passes the exit status of those that the reaper started to their
    /// handles.
    fn reap_ended_processes(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(child) = children.remove(&pid.as_raw_nonzero().get()) {
                child.send_replace(Some(describe_exit_status(status)));
            }
        }
    }
}

impl ChildProcess {
    /// Waits until the child process has ended and returns its exit status as text, such as `exit status 1` or
    /// `signal 9`.
    pub(crate) async fn wait_until_ended(&mut self) -> String {
        let how = self.ended.wait_for(Option::is_some).await;
        how.ok()
            .and_then(|how| how.clone())
            .unwrap_or_else(|| "lost".to_owned())
    }

    /// Returns whether both handles are for the same child process.
    pub(crate) fn is_same_process(&self, other: &ChildProcess) -> bool {
        self.ended.same_channel(&other.ended)
    }

    /// Sends a signal to the child process and the processes of its group, unless the child was reaped.
    pub(crate) fn signal_group_unless_reaped(&self, signal: Signal) {
        // The process id of an ended child may already be another process's.
        if self.ended.borrow().is_none() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

/// The text of the exit status of a program that succeeded.
const SUCCESS_EXIT_TEXT: &str = "exit status 0";

fn describe_exit_status(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
