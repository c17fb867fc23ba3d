//! An instance of a function: a container, and the task that supervises it.
//!
//! Only the supervisor starts and stops the container's process; other code sends it commands and reads its
//! status. The supervisor ends, without stopping the process, when the last handle of the instance is dropped.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    backend::DrainableBackend,
    containerd::{NamespaceClient, TaskExitStatus, TaskLiveness},
    error::ProviderError,
    key::FunctionKey,
    logs::LogStore,
    model::{FunctionDeployment, NameValueMap},
    network::FunctionNetwork,
};

/// The port on which functions listen.
const FUNCTION_PORT: u16 = 8080;

pub(super) const SIGTERM: u32 = 15;
pub(super) const SIGKILL: u32 = 9;

/// The longest time for a function's process to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval between connection attempts to an instance that does not listen yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// The timeout of a connection attempt to an instance that does not listen yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before containerd is asked again about a process after it could not be reached.
const CONTAINERD_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The backoff before a process that ended is restarted for the first time. It doubles each time up to
/// [`LONGEST_RESTART_BACKOFF`], and is reset after a run that is longer than that.
const FIRST_RESTART_BACKOFF: Duration = Duration::from_secs(1);
/// The longest backoff before a process that ended is restarted.
const LONGEST_RESTART_BACKOFF: Duration = Duration::from_secs(60);

/// The data about a function that is stored with its container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct StoredDeploymentAndEnv {
    pub(super) deployment: FunctionDeployment,
    /// The function's environment as its status reports it.
    pub(super) env: NameValueMap,
    pub(super) env_process: String,
}

/// The status of a function's instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InstanceReadiness {
    /// The instance was not started yet, or was stopped on request.
    Stopped,
    /// The instance's process runs, but does not accept connections yet.
    Starting,
    /// The instance's process accepts connections.
    Listening,
    /// The instance's process ended by itself, or could not be started after a restart of the provider.
    Ended(TaskExitStatus),
}

/// The identity and stored data of an instance.
#[derive(Clone, Debug)]
pub(super) struct InstanceInfo {
    pub(super) id: String,
    pub(super) key: FunctionKey,
    pub(super) image: String,
    pub(super) created_at: SystemTime,
    pub(super) record: StoredDeploymentAndEnv,
}

/// The clients and settings that an instance uses.
#[derive(Clone, Debug)]
pub(super) struct InstanceContext {
    pub(super) containerd: NamespaceClient,
    pub(super) network: Arc<FunctionNetwork>,
    pub(super) logs: LogStore,
    /// Whether to restart the instance's process if it ends by itself.
    pub(super) restart: bool,
}

/// A handle of a function's instance and its supervisor.
#[derive(Debug)]
pub(crate) struct Instance {
    info: InstanceInfo,
    backend: Arc<DrainableBackend>,
    status: watch::Receiver<InstanceReadiness>,
    commands: mpsc::Sender<InstanceCommand>,
}

/// The sender of the result of a command to the caller that waits for it.
type CommandReply = oneshot::Sender<Result<(), ProviderError>>;

/// A command for the supervisor of an instance.
#[derive(Debug)]
enum InstanceCommand {
    /// Start the process, unless it runs.
    Start(CommandReply),
    /// Stop the process with SIGTERM and, after this grace period, SIGKILL.
    Stop(Duration, CommandReply),
}

/// The action of a new supervisor on its instance's process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InitialProcessAction {
    /// The instance has no process, and none is started.
    StayStopped,
    /// The instance's process is kept if it runs; one that has ended counts as ended by itself. Without either, a
    /// process is started.
    KeepOrStart,
}

impl Instance {
    /// Spawns the supervisor of a container, and returns the handle of the instance.
    pub(super) fn spawn_supervisor(
        info: InstanceInfo,
        context: InstanceContext,
        initial: InitialProcessAction,
    ) -> Self {
        let backend = Arc::new(DrainableBackend::default());
        let first_status = if initial == InitialProcessAction::StayStopped {
            InstanceReadiness::Stopped
        } else {
            InstanceReadiness::Starting
        };
        let (status_sender, status) = watch::channel(first_status);
        let (commands, receiver) = mpsc::channel(4);
        let supervisor = InstanceSupervisor {
            id: info.id.clone(),
            key: info.key.clone(),
            context,
            backend: Arc::clone(&backend),
            status: status_sender,
            commands: receiver,
            backoff: FIRST_RESTART_BACKOFF,
        };
        tokio::spawn(supervisor.run_state_machine(initial));
        Self {
            info,
            backend,
            status,
            commands,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.info.id
    }

    pub(super) fn info(&self) -> &InstanceInfo {
        &self.info
    }

    pub(crate) fn backend(&self) -> &Arc<DrainableBackend> {
        &self.backend
    }

    /// Returns the current status of the instance.
    pub(super) fn status(&self) -> InstanceReadiness {
        *self.status.borrow()
    }

    /// Starts the instance's process, unless it runs.
    pub(super) async fn start_process(&self) -> Result<(), ProviderError> {
        self.send_command(InstanceCommand::Start).await
    }

    /// Stops the instance's process with SIGTERM and, after `grace`, SIGKILL.
    pub(super) async fn stop_process(&self, grace: Duration) -> Result<(), ProviderError> {
        self.send_command(|reply| InstanceCommand::Stop(grace, reply))
            .await
    }

    /// Waits up to `limit` until the instance's process accepts connections or is stopped on request; fails if the
    /// process ends by itself.
    pub(super) async fn wait_until_listening_or_stopped(&self, limit: Duration) -> Result<(), ProviderError> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| !matches!(status, InstanceReadiness::Starting));
        let instance = self.info.id.clone();
        match timeout(limit, settled).await {
            Err(_) => Err(ProviderError::NotListening { instance, limit }),
            Ok(Err(_)) => Err(ProviderError::Stopping),
            Ok(Ok(status)) => match *status {
                InstanceReadiness::Ended(exit) => Err(ProviderError::Exited {
                    instance,
                    status: exit.status,
                }),
                _ => Ok(()),
            },
        }
    }

    /// Waits until the process accepts connections, however often it ends and is restarted before that.
    pub(super) async fn wait_until_listening_despite_restarts_and_stops(&self) -> Result<(), ProviderError> {
        let mut status = self.status.clone();
        let listening = status
            .wait_for(|status| *status == InstanceReadiness::Listening)
            .await;
        listening.map(drop).map_err(|_| ProviderError::Stopping)
    }

    /// Sends a command to the supervisor and waits for its result.
    async fn send_command(
        &self,
        command: impl FnOnce(CommandReply) -> InstanceCommand,
    ) -> Result<(), ProviderError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| ProviderError::Stopping)?;
        answer.await.unwrap_or(Err(ProviderError::Stopping))
    }
}

/// The task that starts, watches and stops the process of one instance.
struct InstanceSupervisor {
    id: String,
    key: FunctionKey,
    context: InstanceContext,
    backend: Arc<DrainableBackend>,
    status: watch::Sender<InstanceReadiness>,
    commands: mpsc::Receiver<InstanceCommand>,
    backoff: Duration,
}

/// The state of an instance's supervisor.
enum SupervisorState {
    /// No process runs, and none is started before a command.
    Stopped,
    /// The process runs; it may not listen at its address yet.
    Running { address: SocketAddr },
    /// The process ended by itself, or did not start; it is restarted after the backoff, if the instance restarts.
    BackingOff,
}

impl InstanceSupervisor {
    /// Runs until the last handle of the instance is dropped; the process then continues to run.
    async fn run_state_machine(mut self, initial: InitialProcessAction) {
        let mut next = match initial {
            InitialProcessAction::StayStopped => Some(SupervisorState::Stopped),
            InitialProcessAction::KeepOrStart => Some(self.keep_running_process_or_start_or_back_off().await),
        };
        while let Some(state) = next {
            next = match state {
                SupervisorState::Stopped => self.run_while_stopped().await,
                SupervisorState::Running { address } => self.run_while_running(address).await,
                SupervisorState::BackingOff => self.run_until_command_or_restart_if_enabled().await,
            };
        }
    }

    /// Keeps the instance's process from an earlier provider, or starts one. If the earlier process has ended, or the
    /// start fails, the next state is the backoff before a restart.
    async fn keep_running_process_or_start_or_back_off(&mut self) -> SupervisorState {
        let state = self.context.containerd.task_liveness(&self.id).await;
        if let (Ok(TaskLiveness::Alive), Some(ip)) = (
            &state,
            self.context.network.address_in_stored_cni_result(&self.id),
        ) {
            return SupervisorState::Running {
                address: SocketAddr::new(ip, FUNCTION_PORT),
            };
        }
        if let Ok(TaskLiveness::Ended(exit)) = state {
            self.remove_task_and_network().await;
            return self.publish_process_end_and_back_off(exit, Duration::ZERO);
        }
        match self.start_task_and_network().await {
            Ok(address) => SupervisorState::Running { address },
            Err(error) => {
                tracing::error!(
                    instance = self.id,
                    error = &error as &dyn std::error::Error,
                    "cannot start an instance"
                );
                self.publish_process_end_and_back_off(TaskExitStatus { status: 128 }, Duration::ZERO)
            }
        }
    }

    /// Waits until a command starts the process; returns `None` once no handle is left.
    async fn run_while_stopped(&mut self) -> Option<SupervisorState> {
        self.backend.set_address(None);
        self.status.send_replace(InstanceReadiness::Stopped);
        loop {
            match self.commands.recv().await? {
                InstanceCommand::Stop(_, reply) => drop(reply.send(Ok(()))),
                InstanceCommand::Start(reply) => {
                    if let Some(address) = self.start_and_reply(reply).await {
                        return Some(SupervisorState::Running { address });
                    }
                }
            }
        }
    }

    /// Watches the process until it ends or a command stops it; returns `None` once no handle is left.
    async fn run_while_running(&mut self, address: SocketAddr) -> Option<SupervisorState> {
        let began = Instant::now();
        self.backend.set_address(Some(address));
        self.status.send_replace(InstanceReadiness::Starting);
        let (context, id) = (self.context.clone(), self.id.clone());
        let mut exit =
            Box::pin(async move { wait_for_exit_or_137_if_task_is_gone(&context.containerd, &id).await });
        let mut probe = Box::pin(wait_until_accepting(address));
        let mut listens = false;
        loop {
            tokio::select! {
                exit = &mut exit => {
                    self.backend.set_address(None);
                    tracing::warn!(instance = self.id, status = exit.status, "an instance ended by itself");
                    self.remove_task_and_network().await;
                    return Some(self.publish_process_end_and_back_off(exit, began.elapsed()));
                }
                () = &mut probe, if !listens => {
                    listens = true;
                    self.status.send_replace(InstanceReadiness::Listening);
                }
                command = self.commands.recv() => match command? {
                    InstanceCommand::Start(reply) => drop(reply.send(Ok(()))),
                    InstanceCommand::Stop(grace, reply) => {
                        if let Err(error) = self.signal_process_or_kill_all(SIGTERM).await {
                            // The process still runs, and another stop may succeed.
                            let _ = reply.send(Err(error));
                            continue;
                        }
                        self.backend.set_address(None);
                        let stopped = self.wait_for_exit_or_kill_and_clean_up(grace, &mut exit).await;
                        self.status.send_replace(InstanceReadiness::Stopped);
                        let _ = reply.send(stopped);
                        return Some(SupervisorState::Stopped);
                    }
                },
            }
        }
    }

    /// Waits, after the process ended by itself, for a command, or for the backoff before a restart.
    async fn run_until_command_or_restart_if_enabled(&mut self) -> Option<SupervisorState> {
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_RESTART_BACKOFF);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until), if self.context.restart => {
                    match self.start_task_and_network().await {
                        Ok(address) => return Some(SupervisorState::Running { address }),
                        Err(error) => {
                            tracing::error!(
                                instance = self.id,
                                error = &error as &dyn std::error::Error,
                                "cannot restart an instance; retrying"
                            );
                            return Some(SupervisorState::BackingOff);
                        }
                    }
                }
                command = self.commands.recv() => match command? {
                    InstanceCommand::Stop(_, reply) => {
                        self.status.send_replace(InstanceReadiness::Stopped);
                        let _ = reply.send(Ok(()));
                        return Some(SupervisorState::Stopped);
                    }
                    InstanceCommand::Start(reply) => {
                        if let Some(address) = self.start_and_reply(reply).await {
                            return Some(SupervisorState::Running { address });
                        }
                    }
                },
            }
        }
    }

    /// Reports that the process ended by itself after this run, and returns the backoff as the next state.
    fn publish_process_end_and_back_off(
        &mut self,
        exit: TaskExitStatus,
        run_duration: Duration,
    ) -> SupervisorState {
        self.status.send_replace(InstanceReadiness::Ended(exit));
        if run_duration >= LONGEST_RESTART_BACKOFF {
            self.backoff = FIRST_RESTART_BACKOFF;
        }
        SupervisorState::BackingOff
    }

    /// Starts the process and sends the result to the caller; returns the process's address, or `None` if the start
    /// failed.
    async fn start_and_reply(&self, reply: CommandReply) -> Option<SocketAddr> {
        let started = self.start_task_and_network().await;
        let address = started.as_ref().ok().copied();
        if address.is_some() {
            // Set before the reply, so that the caller never reads the status from before the start.
            self.status.send_replace(InstanceReadiness::Starting);
        }
        let _ = reply.send(started.map(drop));
        address
    }

    /// Connects the container to the network and starts its process; returns its address, at which nothing may listen
    /// yet.
    async fn start_task_and_network(&self) -> Result<SocketAddr, ProviderError> {
        let containerd = &self.context.containerd;
        containerd.delete_task(&self.id).await?;
        self.context
            .logs
            .make_room_for_log_of_instance(&self.key, &self.id);
        let ip = self.context.network.connect_container(&self.id).await?;
        let started = async {
            let rootfs = containerd.snapshot_mounts(&self.id).await?;
            containerd
                .create_task(&self.id, rootfs, &self.context.logs.sink_uri(&self.key))
                .await?;
            containerd.start_task(&self.id).await
        };
        match started.await {
            Ok(()) => Ok(SocketAddr::new(ip, FUNCTION_PORT)),
            Err(error) => {
                self.remove_task_and_network().await;
                Err(error)
            }
        }
    }

    async fn signal_process_or_kill_all(&self, signal: u32) -> Result<(), ProviderError> {
        self.context
            .containerd
            .signal_task(&self.id, signal, signal == SIGKILL)
            .await
    }

    /// Waits until a signalled process ends, with SIGKILL after the grace period, and removes the task and the network.
    async fn wait_for_exit_or_kill_and_clean_up(
        &self,
        grace: Duration,
        exit: &mut (impl Future<Output = TaskExitStatus> + Unpin),
    ) -> Result<(), ProviderError> {
        if timeout(grace, &mut *exit).await.is_err() {
            tracing::warn!(
                instance = self.id,
                seconds = grace.as_secs(),
                "an instance still runs after SIGTERM and the grace period; sending SIGKILL"
            );
            self.signal_process_or_kill_all(SIGKILL).await?;
            let _ = timeout(KILL_TIMEOUT, exit).await;
        }
        let deleted = self.context.containerd.delete_task(&self.id).await;
        self.context.network.disconnect_container(&self.id).await;
        deleted
    }

    /// Removes the task and the network of an instance whose process has ended.
    async fn remove_task_and_network(&self) {
        if let Err(error) = self.context.containerd.delete_task(&self.id).await {
            tracing::warn!(
                instance = self.id,
                error = &error as &dyn std::error::Error,
                "cannot delete a task"
            );
        }
        self.context.network.disconnect_container(&self.id).await;
    }
}

/// Waits until a container's process ends, even if containerd is unreachable for a while.
async fn wait_for_exit_or_137_if_task_is_gone(containerd: &NamespaceClient, id: &str) -> TaskExitStatus {
    loop {
        if let Ok(exit) = containerd.wait_until_task_ends(id).await {
            return exit;
        }
        sleep(CONTAINERD_RETRY_PAUSE).await;
        match containerd.task_liveness(id).await {
            Ok(TaskLiveness::Ended(exit)) => return exit,
            Ok(TaskLiveness::None) => {
                return TaskExitStatus {
                    status: 128 + SIGKILL,
                };
            }
            Ok(TaskLiveness::Alive) | Err(_) => {}
        }
    }
}

/// Waits until connections to an address are accepted.
async fn wait_until_accepting(address: SocketAddr) {
    while !matches!(
        timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await,
        Ok(Ok(_))
    ) {
        sleep(PROBE_INTERVAL).await;
    }
}
