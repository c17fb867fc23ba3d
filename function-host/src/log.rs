//! The function's log on standard output: one line of bounded length per event, in JSON or text, with the
//! call id.

mod fields;
mod line;
mod spans;
mod subscriber;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use subscriber::LogSubscriber;

use crate::env::SettingsParser;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Each log line is a JSON object.
    Json,
    /// Each log line is text for people.
    Text,
}

/// The settings `log_format` and `log_level`.
pub(crate) struct Settings {
    format: LogFormat,
    filter: Targets,
}

impl Settings {
    /// Reads the settings of the log; problems are added to `parser`.
    pub(crate) fn read(parser: &mut SettingsParser<'_>) -> Self {
        let format = parser.parse_or_default("log_format", LogFormat::Json, |value| match value {
            "json" => Ok(LogFormat::Json),
            "text" => Ok(LogFormat::Text),
            _ => Err("should be json or text"),
        });
        let info = Targets::new().with_default(tracing::Level::INFO);
        let filter = parser.parse_or_default("log_level", info, |value| {
            if !value.split(',').all(ends_with_level) {
                return Err(VALID_LEVEL_DESCRIPTION);
            }
            value.parse::<Targets>().map_err(|_| VALID_LEVEL_DESCRIPTION)
        });
        Self { format, filter }
    }
}

/// The description of a valid `log_level`, for error messages.
const VALID_LEVEL_DESCRIPTION: &str =
    "should be off, error, warn, info, debug or trace, or levels by target (info,hyper=debug)";

/// Returns whether a part of `log_level` ends with a level.
///
/// Without this check, a misspelt level would be parsed as a target, and all other targets would be silent.
fn ends_with_level(part: &str) -> bool {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
    level.trim().parse::<LevelFilter>().is_ok()
}

/// Logs panics and the events that `log_level` allows to standard output from now on.
///
/// Does nothing if the process already has a subscriber, as in a test.
pub(crate) fn start_logging_events_and_panics(settings: &Settings) {
    let subscriber = LogSubscriber::new(
        settings.format,
        settings.filter.clone(),
        subscriber::write_to_stdout,
    );
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no text)");
        tracing::error!(location, panic = text, "panic");
    }));
}
