//! containerd's tasks: the processes of containers.

use containerd_client::{
    services::v1::{
        CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
        tasks_client::TasksClient,
    },
    types::v1::Status,
};

use super::{Mounts, NamespaceClient, call, containerd_error, ignore_not_found};
use crate::error::Error;

/// The exit status of a container's task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
}

/// The state of a container's task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TaskState {
    /// The container has no task.
    None,
    /// The container's task is created, running or paused.
    Alive,
    /// The container's task has ended, but is not deleted yet.
    Ended(Exit),
}

impl NamespaceClient {
    /// Creates a container's task; its process waits to be started.
    ///
    /// `log` is the destination of its output, as a URI that containerd's shim supports.
    pub(crate) async fn create_task(&self, id: &str, rootfs: Mounts, log: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: log.to_owned(),
            stderr: log.to_owned(),
            ..CreateTaskRequest::default()
        });
        call("create task", id, client.create(request)).await.map(drop)
    }

    /// Starts the process of a container's task that was created.
    pub(crate) async fn start_task(&self, id: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request(StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        call("start task", id, client.start(request)).await.map(drop)
    }

    /// Returns the state of a container's task.
    pub(crate) async fn task_state(&self, id: &str) -> Result<TaskState, Error> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let process = match call("get task", id, client.get(request)).await {
            Ok(answer) => answer.process.unwrap_or_default(),
            Err(error) if error.is_not_found() => return Ok(TaskState::None),
            Err(error) => return Err(error),
        };
        Ok(match process.status() {
            Status::Stopped => TaskState::Ended(Exit {
                status: process.exit_status,
            }),
            _ => TaskState::Alive,
        })
    }

    /// Waits without a timeout until a container's task ends.
    pub(crate) async fn wait_task(&self, id: &str) -> Result<Exit, Error> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request(WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let answer = client
            .wait(request)
            .await
            .map_err(containerd_error("wait for task", id))?
            .into_inner();
        Ok(Exit {
            status: answer.exit_status,
        })
    }

    /// Sends a signal to the first process of a container's task, or to all. Succeeds if the task has ended.
    pub(crate) async fn kill_task(&self, id: &str, signal: u32, all: bool) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel());
        let container_id = id.to_owned();
        let request = self.request(KillRequest {
            container_id,
            exec_id: String::new(),
            signal,
            all,
        });
        ignore_not_found(call("kill task", id, client.kill(request)).await)
    }

    /// Deletes a container's ended task. Succeeds if the task does not exist.
    pub(crate) async fn delete_task(&self, id: &str) -> Result<(), Error> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request(DeleteTaskRequest {
            container_id: id.to_owned(),
        });
        ignore_not_found(call("delete task", id, client.delete(request)).await.map(drop))
    }
}
