//! The answer to what changed between two builds.

use function_host::http::StatusCode;
use function_host::{ErrorChain, Response};
use serde_json::{Value, json};

use super::lookup::{BuildLookup, FoundBuild};
use super::routes::answer_not_found;
use super::{BuildRecord, RecordKey, RecordStore};
use crate::answer;
use crate::inputs::{BuildInputs, compare_inputs};
use crate::request::time::format_rfc3339_nanos;

/// The reason why two builds are not compared: the status of the answer, and the text for the caller.
type Refusal = (StatusCode, String);

/// Answers with what changed between the builds `older` and `newer`.
pub(super) async fn answer_difference(lookup: &BuildLookup, older: &str, newer: &str) -> Response {
    let Some(store) = lookup.records.store() else {
        let error = "this builder does not keep what builds were made from, because its setting records_repository is not set; \
                     have the operator set it, which makes builds comparable from then on";
        return answer::error_response(StatusCode::NOT_IMPLEMENTED, error);
    };
    let (a, b) = tokio::join!(lookup.find(older), lookup.find(newer));
    let (a, b) = match (a, b) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(not_found), _) | (_, Err(not_found)) => return answer_not_found(&not_found),
    };
    match Box::pin(compare(lookup, store, &a, &b)).await {
        Ok(answer) => answer::json_value_response(StatusCode::OK, &answer),
        Err((status, error)) => answer::error_response(status, &error),
    }
}

async fn compare(
    lookup: &BuildLookup,
    store: &RecordStore,
    a: &FoundBuild,
    b: &FoundBuild,
) -> Result<Value, Refusal> {
    check_comparable(&a.record, &b.record)?;
    let (inputs_a, inputs_b, bytes_a, bytes_b) = tokio::join!(
        read_inputs(lookup, store, &a.record),
        read_inputs(lookup, store, &b.record),
        compressed_image_bytes(lookup, &a.record),
        compressed_image_bytes(lookup, &b.record),
    );
    let mut answer = compare_inputs(&inputs_a?, &inputs_b?);
    answer.insert("a".into(), summary(&a.record, bytes_a));
    answer.insert("b".into(), summary(&b.record, bytes_b));
    let incomplete = a.unread.to_text().or_else(|| b.unread.to_text());
    if let Some(text) = incomplete {
        answer.insert("incomplete".into(), json!(text));
    }
    Ok(Value::Object(answer))
}

/// Fails unless both builds have ended, neither is a rollback, and both are of one function or of one image.
fn check_comparable(a: &BuildRecord, b: &BuildRecord) -> Result<(), Refusal> {
    for record in [a, b] {
        if let Some(rollback) = &record.rollback {
            let text = format!(
                "{} is a rollback, which builds nothing; compare with the build that it deployed again: {}",
                record.id, rollback.to
            );
            return Err((StatusCode::BAD_REQUEST, text));
        }
        if !record.phase.is_terminal() && record.ended_at.is_none() {
            let text = format!("the build {} has not ended; compare it when it has", record.id);
            return Err((StatusCode::CONFLICT, text));
        }
    }
    let is_same_function = a.function.is_some() && a.function == b.function;
    if is_same_function
        || (a.image.is_some() && image_without_tag_or_empty(a) == image_without_tag_or_empty(b))
    {
        return Ok(());
    }
    let name = |record: &BuildRecord| {
        let name = record.function.as_ref().or(record.image.as_ref());
        name.cloned()
            .unwrap_or_else(|| "nothing that is known".to_owned())
    };
    let text = format!(
        "the builds are of {} and of {}; both should be of one function or image",
        name(a),
        name(b)
    );
    Err((StatusCode::BAD_REQUEST, text))
}

/// Returns the name of a build's image without its tag; empty if the image is not known.
fn image_without_tag_or_empty(record: &BuildRecord) -> &str {
    let image = record.image.as_deref().unwrap_or_default();
    let path = image.rfind('/').map_or(0, |at| at + 1);
    match image.get(path..).and_then(|name| name.find(':')) {
        Some(at) => image.get(..path + at).unwrap_or(image),
        None => image,
    }
}

async fn read_inputs(
    lookup: &BuildLookup,
    store: &RecordStore,
    record: &BuildRecord,
) -> Result<BuildInputs, Refusal> {
    let key = RecordKey {
        tenant: lookup.tenant.clone(),
        id: record.id.clone(),
    };
    match store.read_inputs_unless_missing_or_unreadable(&key).await {
        Ok(Some(inputs)) => Ok(inputs),
        Ok(None) => Err((
            StatusCode::NOT_FOUND,
            format!(
                "what the build {} was made from is not recorded: it ended before its first step, or a moment ago, or before \
                 this builder kept that, or its record was too old",
                record.id
            ),
        )),
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "could not read what a build was made from");
            Err((StatusCode::BAD_GATEWAY, error.to_string()))
        }
    }
}

/// Returns the size of the layers of a build's image, compressed and of the first platform, in bytes; `None` if it is
/// not known.
async fn compressed_image_bytes(lookup: &BuildLookup, record: &BuildRecord) -> Option<u64> {
    let digest = record.outcome.get("digest").and_then(Value::as_str)?;
    let image = record.image.as_deref()?;
    match lookup
        .manifests
        .image_layers_or_empty_if_gone(image, digest)
        .await
    {
        // The registry does not have the image any more.
        Ok(layers) if layers.is_empty() => None,
        Ok(layers) => Some(
            layers
                .iter()
                .map(|layer| layer.bytes)
                .fold(0, u64::saturating_add),
        ),
        Err(error) => {
            tracing::info!(image, error = %ErrorChain(&*error), "could not look up the size of an image");
            None
        }
    }
}

/// Returns the part of the answer that describes one of the builds.
fn summary(record: &BuildRecord, compressed_image_bytes: Option<u64>) -> Value {
    let took = record.started_at.zip(record.ended_at);
    let took = took.and_then(|(started, ended)| ended.duration_since(started).ok());
    let seconds = took.map(|took| (took.as_secs_f64() * 1000.0).round() / 1000.0);
    json!({
        "id": record.id,
        "state": record.phase,
        "image": record.image,
        "digest": record.outcome.get("digest"),
        "submittedAt": record.submitted_at.map(format_rfc3339_nanos),
        "seconds": seconds,
        "imageBytes": compressed_image_bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::builds::BuildPhase;
    use crate::versions::Rollback;

    fn record(image: &str, function: Option<&str>) -> BuildRecord {
        BuildRecord {
            phase: BuildPhase::Success,
            image: Some(image.to_owned()),
            function: function.map(str::to_owned),
            ..BuildRecord::accepted("a", SystemTime::UNIX_EPOCH)
        }
    }

    #[test]
    fn only_ended_builds_of_one_function_or_image_are_comparable_and_no_rollback() {
        for (a, b, is_comparable) in [
            (
                record("r:5000/a:1", Some("f.fn")),
                record("r:5000/b:1", Some("f.fn")),
                true,
            ),
            (
                record("r:5000/a:1", None),
                record("r:5000/a:2", Some("f.fn")),
                true,
            ),
            (
                record("r:5000/a:1", Some("g.fn")),
                record("r:5000/b:1", Some("f.fn")),
                false,
            ),
            (record("r:5000/a", None), record("r:5000/b", None), false),
        ] {
            assert_eq!(check_comparable(&a, &b).is_ok(), is_comparable, "{a:?} {b:?}");
        }
        let mut rollback = record("r/a:1", None);
        rollback.rollback = Some(Rollback {
            to: "v1".into(),
            from: None,
        });
        let (_, text) = check_comparable(&record("r/a:1", None), &rollback).expect_err("it builds nothing");
        assert!(text.contains("v1"), "{text}");
        let mut running = record("r/a:1", None);
        running.phase = BuildPhase::Running;
        assert!(check_comparable(&running, &record("r/a:1", None)).is_err());
    }
}
