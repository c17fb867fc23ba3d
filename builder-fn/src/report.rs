//! What a caller is told about a build: events become lines, lines go to a sink. That is a log, which goes into the
//! result, or a feed, which is told as records while the build runs.

mod feed;
mod lines;
mod live;
mod log;
mod mask;
mod record;
mod ring;

use serde::Serialize;

pub use feed::Feed;
pub use lines::{Lines, MAX_LINE};
pub use live::live;
pub use log::Log;
pub use mask::{Mask, SHORTEST};
pub use record::{Format, MAX_RECORD};

/// Where the lines of a build go, one after the other.
pub trait Sink: Send {
    /// Takes the next line. Never waits.
    fn push(&mut self, line: String);
}

/// The answer to a build request, success or not.
///
/// The fields are those of OpenFaaS's builder; `digest` and `deployment` are Slipway's own.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What happened, line by line; none where no build was begun, and where it was told already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Vec<String>>,
    /// The image, as the caller wrote it, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `sha256:…` of what was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How it ended.
    pub status: Ending,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the deployer said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<serde_json::Value>,
    /// Seconds.
    #[serde(serialize_with = "milliseconds")]
    pub duration: f64,
}

/// How a build ended, in the words that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// All that was asked for is done.
    Success,
    /// Something is not: `error` says what. OpenFaaS's documentation has `failure`, its SDK `failed`.
    Failed,
}

fn milliseconds<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_the_fields_that_clients_read() {
        let report = Report {
            log: Some(vec!["l: 2026-01-01T00:00:00Z hi".into()]),
            image: Some("registry/hello:1".into()),
            digest: None,
            status: Ending::Success,
            error: None,
            deployment: None,
            duration: 0.843_21,
        };

        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            r#"{"log":["l: 2026-01-01T00:00:00Z hi"],"image":"registry/hello:1","status":"success","duration":0.843}"#
        );
    }

    #[test]
    fn a_failure_before_the_build_has_neither_log_nor_image() {
        let report = Report {
            log: None,
            image: None,
            digest: None,
            status: Ending::Failed,
            error: Some("no signature".into()),
            deployment: None,
            duration: 0.0,
        };

        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            r#"{"status":"failed","error":"no signature","duration":0.0}"#
        );
    }
}
