//! The line of the Dockerfile in the details of a gRPC error.
//!
//! BuildKit adds details to errors as JSON (`util/grpcerrors/grpcerrors.go`). One is the instruction at which the build
//! failed: `Source` in `solver/errdefs/errdefs.proto`, with the whole Dockerfile.

use bollard_buildkit_proto::google::rpc;
use prost::Message;
use serde::Deserialize;
use tonic::Status;

/// The end of the type's URL of such a detail: BuildKit `solver/errdefs/vertex.go`.
const SOURCE_TYPE_URL_SUFFIX: &str = "/errdefs.Source+json";

/// The length above which a detail is ignored, in bytes.
const PARSED_DETAIL_BYTES_MAX: usize = 1 << 20;

/// The part of a detail that is read.
#[derive(Deserialize)]
struct SourceDetail {
    #[serde(default)]
    ranges: Vec<SourceRangeStart>,
}

#[derive(Deserialize)]
struct SourceRangeStart {
    start: Option<SourceLineNumber>,
}

#[derive(Deserialize)]
struct SourceLineNumber {
    #[serde(default)]
    line: u32,
}

/// Returns the line of the Dockerfile that an error names; the innermost one of several.
pub(super) fn find_innermost_dockerfile_line(status: &Status) -> Option<u32> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let sources = details
        .iter()
        .rev()
        .filter(|detail| detail.type_url.ends_with(SOURCE_TYPE_URL_SUFFIX));
    let mut lines = sources.filter_map(|detail| {
        let json = Some(&detail.value).filter(|json| json.len() <= PARSED_DETAIL_BYTES_MAX)?;
        let source: SourceDetail = serde_json::from_slice(json).ok()?;
        let starts = source
            .ranges
            .iter()
            .filter_map(|range| Some(range.start.as_ref()?.line));
        starts.filter(|line| *line > 0).min()
    });
    lines.next()
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::protobuf::Any;
    use tonic::Code;

    use super::*;

    fn status_with_detail(type_url: &str, json: &str) -> Status {
        let details = rpc::Status {
            code: 2,
            message: "failed".into(),
            details: vec![Any {
                type_url: type_url.into(),
                value: json.as_bytes().to_vec(),
            }],
        };
        Status::with_details(Code::Unknown, "failed", details.encode_to_vec().into())
    }

    #[test]
    fn the_first_line_of_a_source_detail_is_found_and_none_in_other_or_malformed_details() {
        let url = "github.com/moby/buildkit/errdefs.Source+json";
        let json = r#"{"info":{"filename":"Dockerfile","data":"RlJPTQ=="},"ranges":[{"start":{"line":3},"end":{"line":5}}]}"#;
        assert_eq!(
            find_innermost_dockerfile_line(&status_with_detail(url, json)),
            Some(3)
        );
        for (url, json) in [
            ("github.com/moby/buildkit/stack.Stack+json", json),
            (url, "{}"),
            (url, r#"{"ranges":[{}]}"#),
            (url, "no JSON"),
            (url, r#"{"ranges":[{"start":{"line":-1}}]}"#),
        ] {
            assert_eq!(
                find_innermost_dockerfile_line(&status_with_detail(url, json)),
                None,
                "{json}"
            );
        }
        assert_eq!(
            find_innermost_dockerfile_line(&Status::unknown("no details")),
            None
        );
    }
}
