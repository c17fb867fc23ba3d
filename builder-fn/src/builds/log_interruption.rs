//! The last record of a log that stops before its terminal record: it says why, and from which line on the reader
//! continues.

use std::future::pending;
use std::time::Duration;

use function_host::Shutdown;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::log_sink::LogChannel;

/// The time before the end of a shutdown at which a log is interrupted, to leave time for its last record.
const TIME_RESERVED_FOR_RECORD: Duration = Duration::from_secs(2);

/// The reason why a log stops before its terminal record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogInterruption {
    /// The link of the reader expired.
    LinkExpired,
    /// The builder shuts down.
    Shutdown,
    /// The sender of the log panicked.
    Defect,
}

/// The limits on the time for which a log is sent.
pub(super) struct LogLimits {
    /// The time for which the link of the reader is valid; `None` for a reader without one.
    pub(super) link: Option<Duration>,
    /// The shutdown of the builder.
    pub(super) shutdown: Shutdown,
    /// Whether the log is that of a build of this process, which may end during the shutdown.
    pub(super) is_own: bool,
}

impl LogInterruption {
    /// Returns the text for the reader.
    fn text(self) -> &'static str {
        match self {
            Self::LinkExpired => "the link has expired; continue with a new one",
            Self::Shutdown => "this builder shuts down; continue at another one",
            Self::Defect => "this builder could not go on with the log because of a defect in it; continue",
        }
    }
}

impl LogLimits {
    /// Waits until the first limit is reached.
    async fn wait_for_interruption(&self) -> LogInterruption {
        let link = async {
            match self.link {
                Some(time_left) => tokio::time::sleep(time_left).await,
                None => pending().await,
            }
        };
        let shutdown = async {
            let end = self.shutdown.wait_until_begun().await;
            if self.is_own {
                let end = end.checked_sub(TIME_RESERVED_FOR_RECORD).unwrap_or(end);
                tokio::time::sleep_until(end).await;
            }
        };
        tokio::select! {
            () = link => LogInterruption::LinkExpired,
            () = shutdown => LogInterruption::Shutdown,
        }
    }
}

/// Runs `sending`, which sends a log through `channel`. Only if it is interrupted, reaches a limit or panics, sends a
/// last record that says from which line on the reader continues.
pub(super) async fn send_with_interruption_record(
    channel: LogChannel,
    limits: LogLimits,
    sending: impl Future<Output = Result<(), LogInterruption>> + Send + 'static,
) {
    let mut sending = AbortOnDropHandle::new(tokio::spawn(sending));
    let interruption = tokio::select! {
        biased;
        ended = &mut sending => match ended {
            Ok(Ok(())) => return,
            Ok(Err(interruption)) => interruption,
            Err(error) => {
                tracing::error!(%error, "the sender of a log panicked");
                LogInterruption::Defect
            }
        },
        interruption = limits.wait_for_interruption() => {
            sending.abort();
            // After it, no more lines are sent. It may have ended in the same moment.
            if let Ok(Ok(())) = sending.await {
                return;
            }
            interruption
        }
    };
    let next = channel.next_unsent();
    let mut record = channel.progress_record(next - 1, &[]);
    record["error"] = json!(format!("{} with from={next}", interruption.text()));
    record["continueFrom"] = json!(next);
    // A reader that has gone needs no record.
    let _ = channel.end(&record).await;
}

#[cfg(test)]
mod tests {
    use function_host::ShutdownTrigger;
    use futures_util::{Stream, StreamExt};
    use serde_json::Value;
    use tokio::time::Instant;

    use super::super::log_readers::LogReaders;
    use super::super::log_sink::{LogBody, LogFormat, LogRecordSink};
    use super::super::numbered_log::{LineKind, LogLine};
    use super::*;
    use crate::report::StreamFormat;

    /// Creates a sink for a reader from the line 1 on.
    fn new_sink(format: LogFormat) -> (LogRecordSink, LogBody) {
        let reader = LogReaders::default().admit(None, None).expect("the first reader");
        LogRecordSink::new(reader, format, 1)
    }

    /// Sends and flushes two lines, and buffers a third.
    async fn send_two_lines_and_buffer_a_third(sink: &mut LogRecordSink) {
        for seq in 1..=3 {
            let line = LogLine {
                seq,
                step: None,
                kind: LineKind::Ordinary,
                text: format!("line {seq}"),
            };
            sink.buffer_line_if_new(&line).await.expect("a reader");
            if seq == 2 {
                sink.flush().await.expect("a reader");
            }
        }
    }

    /// Returns the lines of a body, which ends without a failure.
    async fn read_lines(
        body: impl Stream<Item = Result<bytes::Bytes, super::super::log_sink::LogCutOff>>,
    ) -> Vec<String> {
        let chunks: Vec<_> = body.collect().await;
        let bytes: Vec<u8> = chunks
            .into_iter()
            .flat_map(|chunk| chunk.expect("no failure"))
            .collect();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    fn limits(shutdown: &Shutdown) -> LogLimits {
        LogLimits {
            link: None,
            shutdown: shutdown.clone(),
            is_own: false,
        }
    }

    /// Asserts that a log ends with a record that makes its reader continue after the line 2.
    fn assert_continues_after_two_lines(lines: &[String], reason: &str) {
        let last: Value = serde_json::from_str(lines.last().expect("a record")).expect("JSON");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(
            (&last["status"], &last["seq"], &last["continueFrom"]),
            (&json!("in_progress"), &json!(2), &json!(3)),
            "{last}"
        );
        let error = last["error"].as_str().expect("a text");
        assert!(error.contains(reason) && error.ends_with("from=3"), "{error}");
    }

    #[tokio::test]
    async fn a_log_whose_sender_panics_ends_with_the_line_to_continue_from() {
        for format in [LogFormat::Plain, LogFormat::Records(StreamFormat::Ndjson)] {
            let (_trigger, shutdown) = Shutdown::new();
            let (mut sink, body) = new_sink(format);
            let channel = sink.channel().clone();
            let sending = async move {
                send_two_lines_and_buffer_a_third(&mut sink).await;
                panic!("a defect");
            };
            send_with_interruption_record(channel, limits(&shutdown), sending).await;
            assert_continues_after_two_lines(&read_lines(body).await, "defect");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_read_with_a_link_that_expires_ends_with_the_line_to_continue_from() {
        let (_trigger, shutdown) = Shutdown::new();
        let (mut sink, body) = new_sink(LogFormat::Records(StreamFormat::Ndjson));
        let channel = sink.channel().clone();
        let limits = LogLimits {
            link: Some(Duration::from_secs(60)),
            ..limits(&shutdown)
        };
        let sending = async move {
            send_two_lines_and_buffer_a_third(&mut sink).await;
            pending().await
        };
        send_with_interruption_record(channel, limits, sending).await;
        assert_continues_after_two_lines(&read_lines(body).await, "link has expired");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_interrupts_logs_of_other_builders_builds_at_once_and_of_own_ones_2_seconds_before_its_end()
     {
        for is_own in [false, true] {
            let (trigger, shutdown): (ShutdownTrigger, _) = Shutdown::new();
            let (mut sink, body) = new_sink(LogFormat::Records(StreamFormat::Ndjson));
            let channel = sink.channel().clone();
            let limits = LogLimits {
                is_own,
                ..limits(&shutdown)
            };
            let began = Instant::now();
            let sending = async move {
                send_two_lines_and_buffer_a_third(&mut sink).await;
                trigger.begin(began + Duration::from_secs(10));
                pending().await
            };
            send_with_interruption_record(channel, limits, sending).await;
            let expected = if is_own { 8 } else { 0 };
            assert_eq!(began.elapsed().as_secs(), expected);
            assert_continues_after_two_lines(&read_lines(body).await, "shuts down");
        }
    }

    #[tokio::test]
    async fn the_body_of_a_log_without_its_last_record_fails() {
        let (mut sink, body) = new_sink(LogFormat::Plain);
        send_two_lines_and_buffer_a_third(&mut sink).await;
        drop(sink);
        let chunks: Vec<_> = body.collect().await;
        assert!(matches!(chunks[..], [Ok(_), Err(_)]), "{chunks:?}");
    }

    #[tokio::test]
    async fn a_log_with_its_terminal_record_gets_no_other_one() {
        let (_trigger, shutdown) = Shutdown::new();
        let (mut sink, body) = new_sink(LogFormat::Plain);
        let channel = sink.channel().clone();
        let sending = async move {
            send_two_lines_and_buffer_a_third(&mut sink).await;
            sink.end(&json!({"status": "success"})).await.expect("a reader");
            Ok(())
        };
        send_with_interruption_record(channel, limits(&shutdown), sending).await;
        let lines = read_lines(body).await;
        assert_eq!(lines, ["line 1", "line 2", "line 3", r#"{"status":"success"}"#]);
    }
}
