//! Receives a hand-over or a dry run: checks the builder's signature, then parses and validates every field; returns
//! all problems at once.
//!
//! The signature is checked over the bytes as received, before any of them is parsed. After that all problems with the
//! content are reported at once.

mod dry_run;
mod fields;
mod image;
mod names;
mod probe;
mod spec;

use function_host::Body;
use function_host::signature::{HmacKeys, SignatureMismatch, SignatureVerifier};
use function_host::unverified::UnverifiedBudget;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) use self::dry_run::{DryRunRequest, ReceivedHandOver};
pub use self::image::PinnedImage;
pub(crate) use self::image::names_same_image;
pub(crate) use self::names::check_namespace_name as check_namespace;
pub use self::probe::ReadinessProbe;
pub use self::spec::{FunctionSpec, ResourceAmounts, SPEC_DIGEST_ANNOTATION};
pub(crate) use self::spec::{OWN_ANNOTATION_PREFIX, TENANT_ANNOTATION};
use crate::build_times::TimesOfBuild;
use crate::error::HandOverRejectionOrPanic;
use crate::time;
use fields::{JsonFieldReader, ProblemsAndWarnings};

/// The name of the header with a hand-over's signature.
pub(crate) const SIGNATURE_HEADER: &str = "x-deploy-signature";

/// The size limit of a hand-over, in bytes. Providers store far less of it, above all in annotations.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// An image to deploy, with its specification, as the builder hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The function's specification.
    pub spec: FunctionSpec,
    /// The tag that the image was pushed with. The tag is reported and never deployed.
    pub tag: Option<String>,
    /// The tenant that the hand-over names, and, once its rules were checked, belongs to.
    pub tenant: Option<String>,
    /// The ID of the call that built the image.
    pub call_id: Option<String>,
    /// The time at which the build's source was submitted. This time orders the builds of one function.
    pub submitted_at: Option<Timestamp>,
    /// The time at which the build ended. This time orders builds if one of them has no time of submission.
    pub built_at: Option<Timestamp>,
    /// The time from which the hand-over is rejected, so that a recorded one cannot be replayed later.
    pub expires_at: Option<Timestamp>,
    /// The probe: the request that checks that the function works.
    pub probe: ReadinessProbe,
    /// Warnings about fields of the hand-over that are ignored, or read in another way than they are written.
    pub warnings: Vec<String>,
}

impl HandOver {
    /// Returns the times of the hand-over's build.
    pub(crate) fn build_times(&self) -> TimesOfBuild {
        TimesOfBuild {
            submitted_at: self.submitted_at,
            built_at: self.built_at,
        }
    }

    /// Returns the problems with the times of a hand-over that was received at `now`: it has expired, or its build is
    /// too far ahead of the clock.
    pub(crate) fn time_problems(&self, now: Timestamp) -> Vec<String> {
        let expired = self.expires_at.filter(|at| *at <= now).map(|at| {
            format!(
                "the hand-over expired at {}; it was received at {}",
                time::format_with_millis(at),
                time::format_with_millis(now)
            )
        });
        expired
            .into_iter()
            .chain(
                self.build_times()
                    .problem_if_ordering_time_is_too_far_ahead_of(now),
            )
            .collect()
    }

    /// Returns a digest that all deliveries of the hand-over have in common: of its specification, its call, the time
    /// of its build and its probe. `None` without a call and a time.
    ///
    /// A build that is found finished may be handed over with another `builtAt` than the first time, which therefore
    /// counts only if there is no `submittedAt`. `expiresAt` differs with each delivery.
    pub(crate) fn digest_shared_by_redeliveries(&self) -> Option<String> {
        let time = match (self.submitted_at, self.built_at) {
            (Some(at), _) => json!({"submittedAt": time::format_with_nanos(at)}),
            // The form of earlier releases, whose digests are in the annotations of deployed functions.
            (None, Some(at)) => json!(time::format_with_nanos(at)),
            (None, None) if self.call_id.is_none() => return None,
            (None, None) => Value::Null,
        };
        let identity = json!([self.spec.spec_digest(), self.call_id, time, self.probe]);
        Some(hex::encode(Sha256::digest(identity.to_string())))
    }
}

/// Receives a request's hand-over within the budget of unverified bodies, checks that it is signed with one of `keys`,
/// and returns it with the value that belongs to the key. A signature that keys with different values verify is wrong.
///
/// # Errors
/// [`HandOverRejectionOrPanic::Unsigned`], [`HandOverRejectionOrPanic::MalformedSignature`] and
/// [`HandOverRejectionOrPanic::WrongSignature`] if the hand-over is not the builder's;
/// [`HandOverRejectionOrPanic::Receive`], [`HandOverRejectionOrPanic::NotJson`] and
/// [`HandOverRejectionOrPanic::Invalid`] if it cannot be read or is not valid.
pub(crate) async fn receive_hand_over<K: Copy + PartialEq>(
    body: Body,
    signature: Option<&str>,
    keys: &[(HmacKeys, K)],
    unverified: &UnverifiedBudget,
) -> Result<(ReceivedHandOver, K), HandOverRejectionOrPanic> {
    let signature = signature.ok_or(HandOverRejectionOrPanic::Unsigned)?;
    let mut verifiers = Vec::with_capacity(keys.len());
    for (key, value) in keys {
        let verifier =
            SignatureVerifier::new(key, signature).map_err(HandOverRejectionOrPanic::MalformedSignature)?;
        verifiers.push((verifier, *value));
    }
    // Released on return: when the signature is verified, or the hand-over is rejected.
    let mut sender = unverified.admit();
    let bytes = sender
        .collect(body, MAX_BODY_BYTES)
        .await
        .map_err(HandOverRejectionOrPanic::Receive)?;
    let mut signers = Vec::new();
    for (mut verifier, value) in verifiers {
        verifier.update(&bytes);
        if verifier.verify().is_ok() {
            signers.push(value);
        }
    }
    match signers.split_first() {
        Some((first, others)) if others.iter().all(|other| other == first) => {
            Ok((parse_hand_over(&bytes)?, *first))
        }
        Some(_) => {
            tracing::error!(
                "two secrets for signatures have the same key; what is signed with it is rejected"
            );
            Err(HandOverRejectionOrPanic::WrongSignature(SignatureMismatch))
        }
        None => Err(HandOverRejectionOrPanic::WrongSignature(SignatureMismatch)),
    }
}

/// Parses the JSON of a hand-over or a dry run, or of a builder's result that contains one.
pub(crate) fn parse_hand_over(bytes: &[u8]) -> Result<ReceivedHandOver, HandOverRejectionOrPanic> {
    let Value::Object(document) = serde_json::from_slice(bytes).map_err(HandOverRejectionOrPanic::NotJson)?
    else {
        return Err(HandOverRejectionOrPanic::Invalid {
            problems: vec!["the hand-over is JSON, but not an object".to_owned()],
            dry_run: false,
        });
    };
    let document = unwrap_hand_over_in_build_result(document);
    let mut remarks = ProblemsAndWarnings::default();
    let mut fields = JsonFieldReader::new("", document, &mut remarks);
    let dry_run = fields.read_boolean("dryRun").unwrap_or_default();
    let tag = fields.read_possibly_empty_string("tag");
    let given = match dry_run {
        true => fields
            .read_possibly_empty_string("image")
            .filter(|text| !text.is_empty()),
        false => fields.read_required_possibly_empty_string("image"),
    };
    let names_repository = !dry_run || given.is_some() || tag.is_some();
    let (key, image) = match &given {
        Some(text) => ("image", PinnedImage::parse_pinned(text).map(Some)),
        None if dry_run => ("tag", PinnedImage::stand_in_for_unbuilt(tag.as_deref()).map(Some)),
        None => ("image", Ok(None)),
    };
    let image = image.unwrap_or_else(|problem| {
        fields.add_problem(key, problem);
        None
    });
    let tenant = fields.read_possibly_empty_string("tenant");
    let call_id = fields.read_possibly_empty_string("callId");
    let submitted_at = read_time_field(&mut fields, "submittedAt");
    let built_at = read_time_field(&mut fields, "builtAt");
    let expires_at = read_time_field(&mut fields, "expiresAt");
    let probe = match fields.read_object("probe") {
        Some(probe) => fields.read_nested_fields("probe", probe, ReadinessProbe::read_probe),
        None => ReadinessProbe::default(),
    };
    let spec: Option<FunctionSpec> = fields.read_required_object("deploy").and_then(|deploy| {
        fields.read_nested_fields("deploy", deploy, |fields| {
            let spec = FunctionSpec::read_spec_if_image_is_given(fields, image);
            fields.report_unread_fields_as_problems();
            spec
        })
    });
    if let Some(Err(problem)) = spec
        .as_ref()
        .map(|spec| probe.check_gateway_path(&spec.function_address()))
    {
        fields.add_problem("probe.path", problem);
    }
    fields.ignore_unread_fields_with_warnings();
    let ProblemsAndWarnings { problems, warnings } = remarks;
    let hand_over = match spec {
        Some(spec) if problems.is_empty() => HandOver {
            spec,
            tag,
            tenant,
            call_id,
            submitted_at,
            built_at,
            expires_at,
            probe,
            warnings,
        },
        _ => return Err(HandOverRejectionOrPanic::Invalid { problems, dry_run }),
    };
    Ok(match dry_run {
        true => ReceivedHandOver::DryRun(DryRunRequest {
            hand_over,
            names_repository,
        }),
        false => ReceivedHandOver::HandOver(hand_over),
    })
}

/// Reads a field with a time in UTC in RFC 3339 form, and reports other text; `None` if the field is absent or empty.
fn read_time_field(fields: &mut JsonFieldReader<'_>, key: &str) -> Option<Timestamp> {
    let text = fields
        .read_possibly_empty_string(key)
        .filter(|text| !text.is_empty())?;
    let time = time::parse_utc_time(&text);
    if time.is_none() {
        fields.add_problem(
            key,
            format!("is not a time in UTC such as \"2026-03-01T12:00:00Z\" (RFC 3339): {text:?}"),
        );
    }
    time
}

/// Returns the hand-over in `deployment.handOver` of a builder's result, which a queue-worker posts to its callback;
/// returns any other document as it is.
fn unwrap_hand_over_in_build_result(mut document: Map<String, Value>) -> Map<String, Value> {
    let deployment = document.get_mut("deployment");
    match deployment.and_then(|deployment| deployment.get_mut("handOver")) {
        Some(Value::Object(hand_over)) => std::mem::take(hand_over),
        _ => document,
    }
}

#[cfg(test)]
mod tests;
