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
    containerd::{Exit, Scope, TaskState},
    error::{Error, chain},
    key::Key,
    logs::Logs,
    model::{FunctionDeployment, Map},
    network::Network,
};

/// The port on which functions listen.
const PORT: u16 = 8080;

pub(super) const SIGTERM: u32 = 15;
pub(super) const SIGKILL: u32 = 9;

/// The longest time for a process to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The interval between connection attempts to an instance that does not listen yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// The backoff before a process that ended is restarted. It doubles each time up to the limit, and is reset
/// after a run that is longer than the limit.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The data that is stored with a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Record {
    pub(super) deployment: FunctionDeployment,
    /// The environment as a status reports it.
    pub(super) env: Map,
    pub(super) env_process: String,
}

/// The status of an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    /// Stopped on request.
    Stopped,
    /// The process runs, but does not accept connections yet.
    Starting,
    /// The process accepts connections.
    Listening,
    /// The process ended by itself.
    Ended(Exit),
}

/// The identity and stored data of an instance.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) id: String,
    pub(super) key: Key,
    pub(super) image: String,
    pub(super) created_at: SystemTime,
    pub(super) record: Record,
}

/// The services that an instance uses.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) containerd: Scope,
    pub(super) network: Arc<Network>,
    pub(super) logs: Logs,
    /// Whether to restart a process that ended by itself.
    pub(super) restart: bool,
}

/// A handle of an instance.
#[derive(Debug)]
pub(crate) struct Instance {
    parts: Parts,
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

/// The initial state of a supervisor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Begin {
    /// There is no process, and none is to be started.
    Stopped,
    /// There may be a process, which is kept; otherwise one is started.
    Running,
}

impl Instance {
    /// Starts a supervisor for a container.
    pub(super) fn supervise(parts: Parts, ground: Ground, begin: Begin) -> Self {
        let backend = Arc::new(Backend::default());
        let at_first = if begin == Begin::Stopped {
            Status::Stopped
        } else {
            Status::Starting
        };
        let (status_sender, status) = watch::channel(at_first);
        let (commands, receiver) = mpsc::channel(4);
        let supervisor = Supervisor {
            id: parts.id.clone(),
            key: parts.key.clone(),
            ground,
            backend: Arc::clone(&backend),
            status: status_sender,
            commands: receiver,
            pause: FIRST_PAUSE,
        };
        tokio::spawn(supervisor.run(begin));
        Self {
            parts,
            backend,
            status,
            commands,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.parts.id
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    pub(super) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Starts the process unless it runs.
    pub(super) async fn start(&self) -> Result<(), Error> {
        self.ask(Command::Start).await
    }

    /// Stops the process with SIGTERM and, after `grace`, SIGKILL.
    pub(super) async fn stop(&self, grace: Duration) -> Result<(), Error> {
        self.ask(|reply| Command::Stop(grace, reply)).await
    }

    /// Waits up to `limit` until the process accepts connections; fails if it ends.
    pub(super) async fn listening(&self, limit: Duration) -> Result<(), Error> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| !matches!(status, Status::Starting));
        let instance = self.parts.id.clone();
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

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), Error> {
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
    key: Key,
    ground: Ground,
    backend: Arc<Backend>,
    status: watch::Sender<Status>,
    commands: mpsc::Receiver<Command>,
    pause: Duration,
}

/// The state of a supervisor.
enum Next {
    Stopped,
    Running { address: SocketAddr },
    Pausing,
}

impl Supervisor {
    async fn run(mut self, begin: Begin) {
        let mut next = match begin {
            Begin::Stopped => Some(Next::Stopped),
            Begin::Running => Some(self.keep_or_start().await),
        };
        while let Some(state) = next {
            next = match state {
                Next::Stopped => self.stopped().await,
                Next::Running { address } => self.running(address).await,
                Next::Pausing => self.pausing().await,
            };
        }
    }

    /// Keeps the process of an earlier provider, or starts one.
    async fn keep_or_start(&mut self) -> Next {
        let state = self.ground.containerd.task_state(&self.id).await;
        if let (Ok(TaskState::Alive), Some(ip)) = (&state, self.ground.network.address_of(&self.id)) {
            return Next::Running {
                address: SocketAddr::new(ip, PORT),
            };
        }
        if let Ok(TaskState::Ended(exit)) = state {
            self.clear().await;
            return self.ended(exit, Duration::ZERO);
        }
        match self.start().await {
            Ok(address) => Next::Running { address },
            Err(error) => {
                tracing::error!(instance = self.id, error = chain(&error), "cannot be started");
                self.ended(Exit { status: 128 }, Duration::ZERO)
            }
        }
    }

    async fn stopped(&mut self) -> Option<Next> {
        self.backend.set_address(None);
        self.status.send_replace(Status::Stopped);
        loop {
            match self.commands.recv().await? {
                Command::Stop(_, reply) => drop(reply.send(Ok(()))),
                Command::Start(reply) => {
                    if let Some(address) = self.start_for(reply).await {
                        return Some(Next::Running { address });
                    }
                }
            }
        }
    }

    async fn running(&mut self, address: SocketAddr) -> Option<Next> {
        let began = Instant::now();
        self.backend.set_address(Some(address));
        self.status.send_replace(Status::Starting);
        let (ground, id) = (self.ground.clone(), self.id.clone());
        let mut exit = Box::pin(async move { wait(&ground.containerd, &id).await });
        let mut probe = Box::pin(accepts(address));
        let mut listens = false;
        loop {
            tokio::select! {
                exit = &mut exit => {
                    self.backend.set_address(None);
                    tracing::warn!(instance = self.id, status = exit.status, "ended by itself");
                    self.clear().await;
                    return Some(self.ended(exit, began.elapsed()));
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
                        let stopped = self.see_out(grace, &mut exit).await;
                        self.status.send_replace(Status::Stopped);
                        let _ = reply.send(stopped);
                        return Some(Next::Stopped);
                    }
                },
            }
        }
    }

    /// Waits after the process ended by itself: for the backoff if it is to be restarted, or for a command.
    async fn pausing(&mut self) -> Option<Next> {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until), if self.ground.restart => {
                    match self.start().await {
                        Ok(address) => return Some(Next::Running { address }),
                        Err(error) => {
                            tracing::error!(instance = self.id, error = chain(&error), "cannot be started again");
                            return Some(Next::Pausing);
                        }
                    }
                }
                command = self.commands.recv() => match command? {
                    Command::Stop(_, reply) => {
                        self.status.send_replace(Status::Stopped);
                        let _ = reply.send(Ok(()));
                        return Some(Next::Stopped);
                    }
                    Command::Start(reply) => {
                        if let Some(address) = self.start_for(reply).await {
                            return Some(Next::Running { address });
                        }
                    }
                },
            }
        }
    }

    fn ended(&mut self, exit: Exit, after: Duration) -> Next {
        self.status.send_replace(Status::Ended(exit));
        if after >= LONGEST_PAUSE {
            self.pause = FIRST_PAUSE;
        }
        Next::Pausing
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
        let containerd = &self.ground.containerd;
        containerd.delete_task(&self.id).await?;
        self.ground.logs.prune(&self.key);
        let ip = self.ground.network.attach(&self.id).await?;
        let started = async {
            let rootfs = containerd.snapshot_mounts(&self.id).await?;
            containerd
                .create_task(&self.id, rootfs, &self.ground.logs.sink(&self.key))
                .await?;
            containerd.start_task(&self.id).await
        };
        match started.await {
            Ok(()) => Ok(SocketAddr::new(ip, PORT)),
            Err(error) => {
                self.clear().await;
                Err(error)
            }
        }
    }

    async fn signal(&self, signal: u32) -> Result<(), Error> {
        self.ground
            .containerd
            .kill_task(&self.id, signal, signal == SIGKILL)
            .await
    }

    /// Waits until a process ends after SIGTERM; sends SIGKILL after the grace period.
    async fn see_out(
        &self,
        grace: Duration,
        exit: &mut (impl Future<Output = Exit> + Unpin),
    ) -> Result<(), Error> {
        if timeout(grace, &mut *exit).await.is_err() {
            tracing::warn!(
                instance = self.id,
                "still runs {} s after SIGTERM",
                grace.as_secs()
            );
            self.signal(SIGKILL).await?;
            let _ = timeout(KILL_LIMIT, exit).await;
        }
        let deleted = self.ground.containerd.delete_task(&self.id).await;
        self.ground.network.detach(&self.id).await;
        deleted
    }

    /// Removes the task and the network of a process that has ended.
    async fn clear(&self) {
        if let Err(error) = self.ground.containerd.delete_task(&self.id).await {
            tracing::warn!(instance = self.id, error = chain(&error), "a task is left");
        }
        self.ground.network.detach(&self.id).await;
    }
}

/// Waits until a process ends, even if containerd is unreachable for a while.
async fn wait(containerd: &Scope, id: &str) -> Exit {
    loop {
        if let Ok(exit) = containerd.wait_task(id).await {
            return exit;
        }
        sleep(FIRST_PAUSE).await;
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

/// Waits until the address accepts connections.
async fn accepts(address: SocketAddr) {
    while !matches!(timeout(FIRST_PAUSE, TcpStream::connect(address)).await, Ok(Ok(_))) {
        sleep(PROBE_INTERVAL).await;
    }
}
