//! The report of a build to its caller: its log, its outcome, and the records of a streamed answer.
//!
//! [`LineFormatter`] turns BuildKit's events into log lines, which go to a [`LogSink`]. For an answer that is sent
//! after the build this is a [`BoundedLog`]; for a streamed one it is a [`LogFeed`], from which [`stream_records`]
//! makes records while the build runs.

mod bounded_log;
mod feed;
mod json;
mod line_formatter;
mod record;
mod ring;
mod stream;
mod warnings;

use serde::Serialize;

use crate::hint::Hint;

pub(crate) use bounded_log::BoundedLog;
pub(crate) use feed::LogFeed;
pub(crate) use json::to_json_with_escaped_line_ends;
pub(crate) use line_formatter::{LineFormatter, MAX_LINE_BYTES, name_of_ended_step};
pub(crate) use record::StreamFormat;
pub(crate) use stream::stream_records;
pub(crate) use warnings::Warnings;

/// Receives the log lines of one build, in order.
pub(crate) trait LogSink: Send {
    /// Appends a line to the build's log. Never blocks or waits.
    fn push(&mut self, line: String);

    /// Appends the line of the end of a step whose result came from the cache. Never blocks or waits.
    fn push_end_of_cached_step(&mut self, line: String) {
        self.push(line);
    }
}

/// The JSON body of an answer to a build request, successful or not.
///
/// The fields are those of OpenFaaS's builder, and `digest`, `commit`, `code`, `hint`, `supersededBy`, `deployment`,
/// `page` and `warnings` in addition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The lines of the build's log. `None` if no build was started, or if the lines were streamed already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<Vec<String>>,
    /// The image's name as the caller wrote it, if the config could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    /// The digest of the pushed manifest, or of the index of several platforms, `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// The commit of the context, if it is from a git repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    /// The status of the build request.
    pub(crate) status: SuccessOrFailedStatus,
    /// The reason why the request was rejected, or its build or deployment failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The HTTP status of the answer to a request that failed, which a streamed answer does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<u16>,
    /// The cause of the failure, its place and what to do next, masked; `None` if they are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<Box<Hint>>,
    /// The ID of the call with the newer build that supersedes this one.
    #[serde(rename = "supersededBy", skip_serializing_if = "Option::is_none")]
    pub(crate) superseded_by: Option<String>,
    /// The deployer's answer to the hand-over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deployment: Option<serde_json::Value>,
    /// The address of the build's page, with a link that expires: absolute, or relative to the builder's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) page: Option<String>,
    /// The builder's own warnings about the build, masked. They are in the log too; BuildKit's are only there.
    #[serde(skip_serializing_if = "Warnings::is_empty")]
    pub(crate) warnings: Warnings,
    /// The seconds since the request arrived.
    #[serde(serialize_with = "serialize_rounded_to_three_decimals")]
    pub(crate) duration: f64,
}

/// The status of a build request, in the words that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SuccessOrFailedStatus {
    /// The image was built, and pushed and deployed, or handed over, if the config asked for it.
    Success,
    /// The request was rejected, or its build or deployment failed, for the reason in `error`. OpenFaaS's documentation
    /// has `failure` here, its SDK `failed`.
    Failed,
}

/// Serializes a number of seconds with three decimals.
fn serialize_rounded_to_three_decimals<S: serde::Serializer>(
    seconds: &f64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_fields_that_clients_read() {
        let report = Report {
            log: Some(vec!["l: 2026-01-01T00:00:00Z hi".into()]),
            image: Some("registry/hello:1".into()),
            digest: None,
            commit: None,
            status: SuccessOrFailedStatus::Success,
            error: None,
            code: None,
            hint: None,
            superseded_by: None,
            deployment: None,
            page: None,
            warnings: Warnings::default(),
            duration: 0.843_21,
        };

        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            r#"{"log":["l: 2026-01-01T00:00:00Z hi"],"image":"registry/hello:1","status":"success","duration":0.843}"#
        );
    }

    #[test]
    fn a_report_of_a_request_without_a_build_has_neither_log_nor_image() {
        let report = Report {
            log: None,
            image: None,
            digest: None,
            commit: None,
            status: SuccessOrFailedStatus::Failed,
            error: Some("no signature".into()),
            code: None,
            hint: None,
            superseded_by: None,
            deployment: None,
            page: None,
            warnings: Warnings::default(),
            duration: 0.0,
        };

        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            r#"{"status":"failed","error":"no signature","duration":0.0}"#
        );
    }
}
