//! containerd's tasks: the processes of containers.

use containerd_client::{
    services::v1::{
        CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
        tasks_client::TasksClient,
    },
    types::v1::Status,
};

use super::{NamespaceClient, SnapshotMounts, await_short_call, containerd_error, default_if_not_found};
use crate::error::ProviderError;

/// The exit status of a container's task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TaskExitStatus {
    pub(crate) status: u32,
}

/// The state of a container's task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TaskLiveness {
    /// The container has no task.
    None,
    /// The container's task is created, running or paused.
    Alive,
    /// The container's task has ended, but is not deleted yet.
    Ended(TaskExitStatus),
}

impl NamespaceClient {
    /// Creates a container's task; its process waits to be started.
    ///
    /// `log_uri` is the destination of its output, as a URI that containerd's shim supports.
    pub(crate) async fn create_task(
        &self,
        id: &str,
        rootfs: SnapshotMounts,
        log_uri: &str,
    ) -> Result<(), ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: log_uri.to_owned(),
            stderr: log_uri.to_owned(),
            ..CreateTaskRequest::default()
        });
        await_short_call("create task", id, client.create(request))
            .await
            .map(drop)
    }

    /// Starts the process of a container's task that was created.
    pub(crate) async fn start_task(&self, id: &str) -> Result<(), ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        await_short_call("start task", id, client.start(request))
            .await
            .map(drop)
    }

    /// Returns the state of a container's task.
    pub(crate) async fn task_liveness(&self, id: &str) -> Result<TaskLiveness, ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let process = match await_short_call("get task", id, client.get(request)).await {
            Ok(answer) => answer.process.unwrap_or_default(),
            Err(error) if error.is_containerd_not_found() => return Ok(TaskLiveness::None),
            Err(error) => return Err(error),
        };
        Ok(match process.status() {
            Status::Stopped => TaskLiveness::Ended(TaskExitStatus {
                status: process.exit_status,
            }),
            _ => TaskLiveness::Alive,
        })
    }

    /// Waits without a timeout until a container's task ends.
    pub(crate) async fn wait_until_task_ends(&self, id: &str) -> Result<TaskExitStatus, ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        });
        let answer = client
            .wait(request)
            .await
            .map_err(containerd_error("wait for task", id))?
            .into_inner();
        Ok(TaskExitStatus {
            status: answer.exit_status,
        })
    }

    /// Sends a signal to the first process of a container's task, or to all. Succeeds if the task has ended.
    pub(crate) async fn signal_task(
        &self,
        id: &str,
        signal: u32,
        to_all_processes: bool,
    ) -> Result<(), ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let container_id = id.to_owned();
        let request = self.request_in_namespace_and_lease(KillRequest {
            container_id,
            exec_id: String::new(),
            signal,
            all: to_all_processes,
        });
        default_if_not_found(await_short_call("kill task", id, client.kill(request)).await)
    }

    /// Deletes a container's ended task. Succeeds if the task does not exist.
    pub(crate) async fn delete_task(&self, id: &str) -> Result<(), ProviderError> {
        let mut client = TasksClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(DeleteTaskRequest {
            container_id: id.to_owned(),
        });
        default_if_not_found(
            await_short_call("delete task", id, client.delete(request))
                .await
                .map(drop),
        )
    }
}
