//! Logs: one line an event on standard output, JSON or text, each with the call id and bounded in length.

mod fields;
mod line;
mod spans;
mod subscriber;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use subscriber::Log;

use crate::env::Parser;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object.
    Json,
    /// For eyes.
    Text,
}

pub(crate) struct Settings {
    format: Format,
    filter: Targets,
}

impl Settings {
    pub(crate) fn read(parser: &mut Parser<'_>) -> Self {
        let format = parser.parse("log_format", Format::Json, |value| match value {
            "json" => Ok(Format::Json),
            "text" => Ok(Format::Text),
            _ => Err("should be json or text"),
        });
        let info = Targets::new().with_default(tracing::Level::INFO);
        let filter = parser.parse("log_level", info, |value| {
            if !value.split(',').all(is_directive) {
                return Err(LEVELS);
            }
            value.parse::<Targets>().map_err(|_| LEVELS)
        });
        Self { format, filter }
    }
}

/// What `log_level` may be.
const LEVELS: &str =
    "should be off, error, warn, info, debug or trace, or levels by target (info,hyper=debug)";

/// Whether a part of `log_level` names a level. The parser takes a misspelt level for a target, and all other targets are
/// silent then.
fn is_directive(part: &str) -> bool {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
    level.trim().parse::<LevelFilter>().is_ok()
}

/// Sends all events to standard output from now on, and panics with them. Where the process has a subscriber already
/// (a test), that one stays.
pub(crate) fn start(settings: &Settings) {
    let log = Log::new(settings.format, settings.filter.clone(), subscriber::to_stdout);
    if tracing::subscriber::set_global_default(log).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no text)");
        tracing::error!(location, panic = text, "panic");
    }));
}
