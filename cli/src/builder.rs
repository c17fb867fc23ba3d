//! The client of builder-fn, which it reaches directly, through the gateway, or through the queue.

mod body;
mod client;
mod facts;
mod log_line;
mod question;
mod record;
mod request;
mod streamed;
mod verdict;

pub(crate) use body::{RequestBody, SignedBody};
pub(crate) use client::{BuilderClient, Refusal, RequestError, SubmittedBuild};
pub(crate) use facts::BuildFacts;
pub(crate) use log_line::LogLine;
pub(crate) use question::AskedCommand;
pub(crate) use record::{Record, printed_progress_record, printed_restart_record};
pub(crate) use request::{
    Route, SignedBuildRequest, build_path, format_rfc3339_in_millis_or_empty, percent_encode_component,
};
pub(crate) use streamed::{RecordStream, StreamCut};
pub(crate) use verdict::{CallerContext, Verdict};
