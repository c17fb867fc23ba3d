//! The queue-workers of a soak test: processes in the stack's network with different hostnames.
//!
//! A queue-worker's name at NATS is derived from its hostname, and NATS lets in one client of a name. The first worker
//! has the machine's hostname, as the stack's own queue-worker had, and so takes its place at NATS. Otherwise NATS
//! would go on sending calls to the stack's queue-worker, which has gone.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};
use slipway_stack::Stack;

use crate::{logged_process::LoggedProcess, network_namespace::NetworkNamespace};

/// The line of a queue-worker's log that shows that it receives calls.
const READY_LOG_TEXT: &str = "Listening on [";

/// The queue-workers, some of which may have been killed.
#[derive(Debug)]
pub(super) struct QueueWorkers {
    stack: Stack,
    ack_wait: Duration,
    workers: Vec<Option<LoggedProcess>>,
}

impl QueueWorkers {
    /// Starts `count` queue-workers whose calls are delivered again after `ack_wait`.
    pub(super) async fn start(stack: &Stack, count: usize, ack_wait: Duration) -> Result<Self> {
        let mut workers = Self {
            stack: stack.clone(),
            ack_wait,
            workers: (0..count).map(|_| None).collect(),
        };
        workers.start_missing_and_wait_until_all_listen().await?;
        Ok(workers)
    }

    /// Kills all queue-workers, as a crash does.
    pub(super) fn kill_all(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            if let Some(mut worker) = worker.take() {
                worker.kill()?;
            }
        }
        Ok(())
    }

    /// Kills the queue-worker with this number, modulo their count, as a crash does. Fails if it does not run.
    pub(super) fn kill_running_worker_modulo_count(&mut self, number: usize) -> Result<()> {
        let count = self.workers.len().max(1);
        let worker = self.workers.get_mut(number % count).and_then(Option::take);
        worker.context("the queue-worker does not run")?.kill()
    }

    /// Starts the queue-workers that do not run, and waits until they receive calls.
    pub(super) async fn start_missing_and_wait_until_all_listen(&mut self) -> Result<()> {
        let Self {
            stack,
            ack_wait,
            workers,
        } = self;
        for (number, worker) in workers.iter_mut().enumerate() {
            if worker.is_none() {
                *worker = Some(spawn_worker(stack, number, *ack_wait)?);
            }
        }
        for worker in workers.iter_mut().flatten() {
            worker
                .wait_for_line_in_whole_output(|line| line.contains(READY_LOG_TEXT).then_some(()))
                .await?;
        }
        Ok(())
    }
}

/// Starts a queue-worker in the stack's network: the first with the machine's hostname, others with their own.
fn spawn_worker(stack: &Stack, number: usize, ack_wait: Duration) -> Result<LoggedProcess> {
    let worker = stack.queue_worker_command(ack_wait)?;
    if number == 0 {
        return spawn_in_network_of(stack, worker);
    }
    let mut command = Command::new("unshare");
    command.args(["--uts", "--", "sh", "-c"]);
    // The namespace is that of the shell, and then of the queue-worker in its place.
    command.arg("echo \"$0\" > /proc/sys/kernel/hostname && exec \"$1\"");
    command
        .arg(format!("soak-worker-{number}"))
        .arg(worker.get_program());
    command.env_clear();
    for (name, value) in worker.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    spawn_in_network_of(stack, command)
}

/// Starts a process in the stack's network.
pub(super) fn spawn_in_network_of(stack: &Stack, command: Command) -> Result<LoggedProcess> {
    NetworkNamespace::of_process(stack.supervisor_pid()?)?.run_inside(|| LoggedProcess::spawn(command))
}
