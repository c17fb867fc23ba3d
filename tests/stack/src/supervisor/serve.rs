//! The server of the supervisor's control socket: one task for each connection, one command after the other.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

use crate::{
    cgroup,
    control::{CommandAnswerEvent, SupervisorCommand},
    error::{IoResultExt as _, Result, error_with_causes},
    supervisor::parts::{PartSource, PartsHandle},
};

/// Serves connections to the control socket until a shutdown command was executed and answered.
pub(crate) async fn serve_control_socket<S: PartSource>(
    listener: &UnixListener,
    parts: &PartsHandle<S>,
) -> Result<()> {
    let (end, mut ended) = watch::channel(false);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.with_operation("accept on", "the control socket")?;
                tokio::spawn(serve_control_connection(stream, parts.clone(), end.clone()));
            }
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
        }
    }
}

/// Executes the commands of one connection, one after the other, and sends the events of each; sets `end` after a
/// shutdown command.
async fn serve_control_connection<S: PartSource>(
    stream: UnixStream,
    parts: PartsHandle<S>,
    end: watch::Sender<bool>,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let command = serde_json::from_str::<SupervisorCommand<S::Part>>(&line);
        let shutdown = matches!(command, Ok(SupervisorCommand::Shutdown));
        let (events, mut received) = mpsc::unbounded_channel();
        let parts = parts.clone();
        // A command runs to completion even if its client disconnects.
        let work = tokio::spawn(async move {
            let last = match command {
                Ok(command) => execute_command(command, &parts, &events).await,
                Err(error) => CommandAnswerEvent::Rejected {
                    reason: error.to_string(),
                },
            };
            let _ = events.send(last);
        });
        while let Some(event) = received.recv().await {
            let mut line = serde_json::to_string(&event).unwrap_or_default();
            line.push('\n');
            let _ = write.write_all(line.as_bytes()).await;
        }
        let _ = work.await;
        if shutdown {
            end.send_replace(true);
        }
    }
}

/// Executes a command, sends its progress to `events`, and returns the final event.
async fn execute_command<S: PartSource>(
    command: SupervisorCommand<S::Part>,
    parts: &PartsHandle<S>,
    events: &mpsc::UnboundedSender<CommandAnswerEvent<S::Part>>,
) -> CommandAnswerEvent<S::Part> {
    let on_event = |event| {
        let _ = events.send(event);
    };
    match command {
        SupervisorCommand::StartAll => {
            if let Err(error) = cgroup::enter_subgroup_and_delegate_controllers_if_version_2_only()
                .and_then(|()| parts.prepare_start_of_all())
            {
                return CommandAnswerEvent::Rejected {
                    reason: error_with_causes(error),
                };
            }
            match parts.start_all_and_wait_until_ready(&on_event).await {
                Ok(()) => CommandAnswerEvent::Done,
                Err((part, reason)) => CommandAnswerEvent::Failed { part, reason },
            }
        }
        SupervisorCommand::Status => CommandAnswerEvent::Status {
            parts: parts.statuses_of_parts_ever_started(),
        },
        SupervisorCommand::Start { part } => match parts.start_part(part, &on_event).await {
            Ok(()) => CommandAnswerEvent::Done,
            Err(reason) => CommandAnswerEvent::Failed { part, reason },
        },
        SupervisorCommand::Stop { part } => {
            parts.stop_part(part, &on_event).await;
            CommandAnswerEvent::Done
        }
        SupervisorCommand::Shutdown => {
            parts.stop_all(&on_event).await;
            CommandAnswerEvent::Done
        }
    }
}
