//! Serves the supervisor's control socket: one task for each connection, one command after the other.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

use crate::{
    cgroup,
    control::{Command, Event},
    error::{At as _, Result, chain},
    supervisor::parts::Parts,
};

/// Serves connections until a shutdown command was executed and answered.
pub(crate) async fn serve(listener: &UnixListener, parts: &Parts) -> Result<()> {
    let (end, mut ended) = watch::channel(false);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.at("accept on", "the control socket")?;
                tokio::spawn(converse(stream, parts.clone(), end.clone()));
            }
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
        }
    }
}

async fn converse(stream: UnixStream, parts: Parts, end: watch::Sender<bool>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let command = serde_json::from_str::<Command>(&line);
        let down = matches!(command, Ok(Command::Down));
        let (tell, mut told) = mpsc::unbounded_channel();
        let parts = parts.clone();
        // A command runs to completion even if its client disconnects.
        let work = tokio::spawn(async move {
            let last = match command {
                Ok(command) => answer(command, &parts, &tell).await,
                Err(error) => Event::Refused {
                    reason: error.to_string(),
                },
            };
            let _ = tell.send(last);
        });
        while let Some(event) = told.recv().await {
            let mut line = serde_json::to_string(&event).unwrap_or_default();
            line.push('\n');
            let _ = write.write_all(line.as_bytes()).await;
        }
        let _ = work.await;
        if down {
            end.send_replace(true);
        }
    }
}

async fn answer(command: Command, parts: &Parts, events: &mpsc::UnboundedSender<Event>) -> Event {
    let tell = |event| {
        let _ = events.send(event);
    };
    match command {
        Command::Begin => {
            if let Err(error) = cgroup::delegate() {
                return Event::Refused {
                    reason: chain(&error),
                };
            }
            match parts.start_all(&tell).await {
                Ok(()) => Event::Done,
                Err((part, reason)) => Event::Failed { part, reason },
            }
        }
        Command::Status => Event::Status {
            parts: parts.status(),
        },
        Command::Start { part } => match parts.start(part, &tell).await {
            Ok(()) => Event::Done,
            Err(reason) => Event::Failed { part, reason },
        },
        Command::Stop { part } => {
            parts.stop(part, &tell).await;
            Event::Done
        }
        Command::Down => {
            parts.stop_all(&tell).await;
            Event::Done
        }
    }
}
