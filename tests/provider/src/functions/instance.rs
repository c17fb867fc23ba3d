//! An instance of a function: a container, and the task that supervises it.
//!
//! Only the supervisor starts and stops the container's process; other code sends it commands and reads its
//! status. It ends, without stopping the process, when the last handle of the instance is dropped.

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
    backend::Backend,
    containerd::{Exit, NamespaceClient, TaskState},
    error::Error,
    key::FunctionKey,
    logs::Logs,
    model::{FunctionDeployment, Map},
    network::Network,
};

/// The port on which functions listen.
const PORT: u16 = 8080;

pub(super) const SIGTERM: u32 = 15;
pub(super) const SIGKILL: u32 = 9;

/// The longest time for a function's process to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval between connection attempts to an instance that does not listen yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// The backoff before a process that ended is restarted. It doubles each time up to the limit, and is reset
/// after a run that is longer than the limit.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// The data about a function that is stored with its container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct StoredFunction {
    pub(super) deployment: FunctionDeployment,
    /// The function's environment as its status reports it.
    pub(super) env: Map,
    pub(super) env_process: String,
}

/// The status of a function's instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    /// The instance was stopped on request.
    Stopped,
    /// The instance's process runs, but does not accept connections yet.
    Starting,
    /// The instance's process accepts connections.
    Listening,
    /// The instance's process ended by itself.
    Ended(Exit),
}

/// The identity and stored data of an instance.
#[derive(Clone, Debug)]
pub(super) struct InstanceInfo {
    pub(super) id: String,
    pub(super) key: FunctionKey,
    pub(super) image: String,
    pub(super) created_at: SystemTime,
    pub(super) record: StoredFunction,
}

/// The clients and settings that an instance uses.
#[derive(Clone, Debug)]
pub(super) struct InstanceContext {
    pub(super) containerd: NamespaceClient,
    pub(super) network: Arc<Network>,
    pub(super) logs: Logs,
    /// Whether to restart the instance's process if it ends by itself.
    pub(super) restart: bool,
}

/// A handle of a function's instance and its supervisor.
#[derive(Debug)]
pub(crate) struct Instance {
    info: InstanceInfo,
    backend: Arc<Backend>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
}

type Reply = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
enum Command {
    Start(Reply),
    Stop(Duration, Reply),
}

/// The initial state of an instance's supervisor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InitialState {
    /// The instance has no process, and none is started.
    Stopped,
    /// The instance's process is kept if it exists; otherwise a process is started.
    Running,
}

impl Instance {
    /// Spawns the supervisor of a container, and returns the handle of the instance.
    pub(super) fn supervise(info: InstanceInfo, context: InstanceContext, initial: InitialState) -> Self {
        let backend = Arc::new(Backend::default());
        let first_status = if initial == InitialState::Stopped {
            Status::Stopped
        } else {
            Status::Starting
        };
        let (status_sender, status) = watch::channel(first_status);
        let (commands, receiver) = mpsc::channel(4);
        let supervisor = Supervisor {
            id: info.id.clone(),
            key: info.key.clone(),
            context,
            backend: Arc::clone(&backend),
            status: status_sender,
            commands: receiver,
            backoff: FIRST_BACKOFF,
        };
        tokio::spawn(supervisor.run(initial));
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

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    pub(super) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Starts the instance's process, unless it runs.
    pub(super) async fn start(&self) -> Result<(), Error> {
        self.send_command(Command::Start).await
    }

    /// Stops the instance's process with SIGTERM and, after `grace`, SIGKILL.
    pub(super) async fn stop(&self, grace: Duration) -> Result<(), Error> {
        self.send_command(|reply| Command::Stop(grace, reply)).await
    }

    /// Waits up to `limit` until the instance's process accepts connections; fails if the process ends.
    pub(super) async fn wait_until_listening(&self, limit: Duration) -> Result<(), Error> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| !matches!(status, Status::Starting));
        let instance = self.info.id.clone();
        match timeout(limit, settled).await {
            Err(_) => Err(Error::NotListening { instance, limit }),
            Ok(Err(_)) => Err(Error::Stopping),
            Ok(Ok(status)) => match *status {
                Status::Ended(exit) => Err(Error::Exited {
                    instance,
                    status: exit.status,
                }),
                _ => Ok(()),
            },
        }
    }

    /// Waits until the process accepts connections, however often it ends and is restarted before that.
    pub(super) async fn eventually_listening(&self) -> Result<(), Error> {
        let mut status = self.status.clone();
        let listening = status.wait_for(|status| *status == Status::Listening).await;
        listening.map(drop).map_err(|_| Error::Stopping)
    }

    async fn send_command(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

struct Supervisor {
    id: String,
    key: FunctionKey,
    context: InstanceContext,
    backend: Arc<Backend>,
    status: watch::Sender<Status>,
    commands: mpsc::Receiver<Command>,
    backoff: Duration,
}

/// The state of an instance's supervisor.
enum SupervisorState {
    Stopped,
    Running { address: SocketAddr },
    BackingOff,
}

impl Supervisor {
    async fn run(mut self, initial: InitialState) {
        let mut next = match initial {
            InitialState::Stopped => Some(SupervisorState::Stopped),
            InitialState::Running => Some(self.keep_or_start().await),
        };
        while let Some(state) = next {
            next = match state {
                SupervisorState::Stopped => self.run_while_stopped().await,
                SupervisorState::Running { address } => self.run_while_running(address).await,
                SupervisorState::BackingOff => self.run_while_backing_off().await,
            };
        }
    }

    /// Keeps the instance's process from an earlier provider, or starts one.
    async fn keep_or_start(&mut self) -> SupervisorState {
        let state = self.context.containerd.task_state(&self.id).await;
        if let (Ok(TaskState::Alive), Some(ip)) = (&state, self.context.network.address_of(&self.id)) {
            return SupervisorState::Running {
                address: SocketAddr::new(ip, PORT),
            };
        }
        if let Ok(TaskState::Ended(exit)) = state {
            self.remove_task_and_network().await;
            return self.record_end(exit, Duration::ZERO);
        }
        match self.start().await {
            Ok(address) => SupervisorState::Running { address },
            Err(error) => {
                tracing::error!(
                    instance = self.id,
                    error = &error as &dyn std::error::Error,
                    "cannot start an instance"
                );
                self.record_end(Exit { status: 128 }, Duration::ZERO)
            }
        }
    }

    async fn run_while_stopped(&mut self) -> Option<SupervisorState> {
        self.backend.set_address(None);
        self.status.send_replace(Status::Stopped);
        loop {
            match self.commands.recv().await? {
                Command::Stop(_, reply) => drop(reply.send(Ok(()))),
                Command::Start(reply) => {
                    if let Some(address) = self.start_for(reply).await {
                        return Some(SupervisorState::Running { address });
                    }
                }
            }
        }
    }

    async fn run_while_running(&mut self, address: SocketAddr) -> Option<SupervisorState> {
        let began = Instant::now();
        self.backend.set_address(Some(address));
        self.status.send_replace(Status::Starting);
        let (context, id) = (self.context.clone(), self.id.clone());
        let mut exit = Box::pin(async move { wait_for_exit(&context.containerd, &id).await });
        let mut probe = Box::pin(wait_until_accepting(address));
        let mut listens = false;
        loop {
            tokio::select! {
                exit = &mut exit => {
                    self.backend.set_address(None);
                    tracing::warn!(instance = self.id, status = exit.status, "an instance ended by itself");
                    self.remove_task_and_network().await;
                    return Some(self.record_end(exit, began.elapsed()));
                }
                () = &mut probe, if !listens => {
                    listens = true;
                    self.status.send_replace(Status::Listening);
                }
                command = self.commands.recv() => match command? {
                    Command::Start(reply) => drop(reply.send(Ok(()))),
                    Command::Stop(grace, reply) => {
                        if let Err(error) = self.signal(SIGTERM).await {
                            // The process still runs, and another stop may succeed.
                            let _ = reply.send(Err(error));
                            continue;
                        }
                        self.backend.set_address(None);
                        let stopped = self.wait_or_kill(grace, &mut exit).await;
                        self.status.send_replace(Status::Stopped);
                        let _ = reply.send(stopped);
                        return Some(SupervisorState::Stopped);
                    }
                },
            }
        }
    }

    /// Waits, after the process ended by itself, for a command, or for the backoff before a restart.
    async fn run_while_backing_off(&mut self) -> Option<SupervisorState> {
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until), if self.context.restart => {
                    match self.start().await {
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
                    Command::Stop(_, reply) => {
                        self.status.send_replace(Status::Stopped);
                        let _ = reply.send(Ok(()));
                        return Some(SupervisorState::Stopped);
                    }
                    Command::Start(reply) => {
                        if let Some(address) = self.start_for(reply).await {
                            return Some(SupervisorState::Running { address });
                        }
                    }
                },
            }
        }
    }

    fn record_end(&mut self, exit: Exit, after: Duration) -> SupervisorState {
        self.status.send_replace(Status::Ended(exit));
        if after >= LONGEST_BACKOFF {
            self.backoff = FIRST_BACKOFF;
        }
        SupervisorState::BackingOff
    }

    async fn start_for(&self, reply: Reply) -> Option<SocketAddr> {
        let started = self.start().await;
        let address = started.as_ref().ok().copied();
        if address.is_some() {
            // Set before the reply, so that the caller never reads the status from before the start.
            self.status.send_replace(Status::Starting);
        }
        let _ = reply.send(started.map(drop));
        address
    }

    async fn start(&self) -> Result<SocketAddr, Error> {
        let containerd = &self.context.containerd;
        containerd.delete_task(&self.id).await?;
        self.context.logs.prune(&self.key);
        let ip = self.context.network.attach(&self.id).await?;
        let started = async {
            let rootfs = containerd.snapshot_mounts(&self.id).await?;
            containerd
                .create_task(&self.id, rootfs, &self.context.logs.sink_uri(&self.key))
                .await?;
            containerd.start_task(&self.id).await
        };
        match started.await {
            Ok(()) => Ok(SocketAddr::new(ip, PORT)),
            Err(error) => {
                self.remove_task_and_network().await;
                Err(error)
            }
        }
    }

    async fn signal(&self, signal: u32) -> Result<(), Error> {
        self.context
            .containerd
            .kill_task(&self.id, signal, signal == SIGKILL)
            .await
    }

    /// Waits until a signalled process ends; sends SIGKILL after the grace period.
    async fn wait_or_kill(
        &self,
        grace: Duration,
        exit: &mut (impl Future<Output = Exit> + Unpin),
    ) -> Result<(), Error> {
        if timeout(grace, &mut *exit).await.is_err() {
            tracing::warn!(
                instance = self.id,
                seconds = grace.as_secs(),
                "an instance still runs after SIGTERM and the grace period; sending SIGKILL"
            );
            self.signal(SIGKILL).await?;
            let _ = timeout(KILL_TIMEOUT, exit).await;
        }
        let deleted = self.context.containerd.delete_task(&self.id).await;
        self.context.network.detach(&self.id).await;
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
        self.context.network.detach(&self.id).await;
    }
}

/// Waits until a container's process ends, even if containerd is unreachable for a while.
async fn wait_for_exit(containerd: &NamespaceClient, id: &str) -> Exit {
    loop {
        if let Ok(exit) = containerd.wait_task(id).await {
            return exit;
        }
        sleep(FIRST_BACKOFF).await;
        match containerd.task_state(id).await {
            Ok(TaskState::Ended(exit)) => return exit,
            Ok(TaskState::None) => {
                return Exit {
                    status: 128 + SIGKILL,
                };
            }
            Ok(TaskState::Alive) | Err(_) => {}
        }
    }
}

/// Waits until connections to an address are accepted.
async fn wait_until_accepting(address: SocketAddr) {
    while !matches!(
        timeout(FIRST_BACKOFF, TcpStream::connect(address)).await,
        Ok(Ok(_))
    ) {
        sleep(PROBE_INTERVAL).await;
    }
}
