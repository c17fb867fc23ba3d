//! The attributes by which a solve describes its build request to other builders of the same daemon.
//!
//! The Dockerfile frontend ignores attributes that it does not know, and BuildKit keeps them in the build's record: in
//! the events of running builds, and in the history afterwards, also over restarts of builder and daemon.

use std::collections::HashMap;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::function_id::FunctionId;

/// The attribute with the ID of the build's call.
const CALL_ID_ATTRIBUTE: &str = "slipway.call-id";
/// The attribute with the fingerprint of the request's signature.
const SIGNATURE_ATTRIBUTE: &str = "slipway.signature";
/// The attribute with the time of submission, in RFC 3339.
const SUBMITTED_AT_ATTRIBUTE: &str = "slipway.submitted-at";
/// The attribute with the function that the build deploys.
const FUNCTION_ATTRIBUTE: &str = "slipway.function";
/// The attribute that is `false` for a build that deploys and opts out of supersession, and absent for any other.
const SUPERSEDE_ATTRIBUTE: &str = "slipway.supersede";
/// The attribute with the commit of a context in a git repository.
const COMMIT_ATTRIBUTE: &str = "slipway.commit";
/// The attribute with the name of the build's tenant.
const TENANT_ATTRIBUTE: &str = "slipway.tenant";
/// The attribute with the number of the attempt, from 1.
const ATTEMPT_ATTRIBUTE: &str = "slipway.attempt";

/// The frontend attributes by which a solve describes its build request to other builders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolveAttributes {
    /// The id of the OpenFaaS call that the build belongs to (`X-Call-Id`).
    pub call_id: String,
    /// The fingerprint of the request's verified signature; `None` if signatures are disabled.
    pub signature: Option<String>,
    /// The name of the tenant that the build belongs to; `None` without a policy.
    pub tenant: Option<String>,
    /// The time at which the source of the build was submitted.
    pub submitted_at: SystemTime,
    /// The function that the build deploys; `None` for a build without deployment.
    pub function: Option<FunctionId>,
    /// Whether the build supersedes older builds of its function, and newer ones supersede it.
    pub supersede: bool,
    /// The commit of the context; `None` for a context that is not from a git repository.
    pub commit: Option<String>,
    /// The number of the attempt, from 1, which is greater than those of the build's earlier attempts, also of those
    /// that the daemon did not record because it was killed; `None` in records of older builders.
    pub attempt: Option<u32>,
}

impl SolveAttributes {
    /// Returns the names and values of the attributes, for a `SolveRequest`.
    pub(super) fn to_name_value_pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            (CALL_ID_ATTRIBUTE, self.call_id.clone()),
            (SUBMITTED_AT_ATTRIBUTE, format_rfc3339_nanos(self.submitted_at)),
        ];
        if let Some(fingerprint) = &self.signature {
            pairs.push((SIGNATURE_ATTRIBUTE, fingerprint.clone()));
        }
        if let Some(commit) = &self.commit {
            pairs.push((COMMIT_ATTRIBUTE, commit.clone()));
        }
        if let Some(attempt) = self.attempt {
            pairs.push((ATTEMPT_ATTRIBUTE, attempt.to_string()));
        }
        if let Some(tenant) = &self.tenant {
            pairs.push((TENANT_ATTRIBUTE, tenant.clone()));
        }
        if let Some(function) = &self.function {
            pairs.push((FUNCTION_ATTRIBUTE, function.to_string()));
            if !self.supersede {
                pairs.push((SUPERSEDE_ATTRIBUTE, "false".into()));
            }
        }
        pairs
    }

    /// Parses the attributes in a record of the daemon's history. Returns `None` if another client made the record.
    pub(super) fn from_history_record(attrs: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            call_id: attrs.get(CALL_ID_ATTRIBUTE)?.clone(),
            signature: attrs.get(SIGNATURE_ATTRIBUTE).cloned(),
            tenant: attrs.get(TENANT_ATTRIBUTE).cloned(),
            submitted_at: attrs
                .get(SUBMITTED_AT_ATTRIBUTE)?
                .parse::<Timestamp>()
                .ok()?
                .into(),
            function: attrs
                .get(FUNCTION_ATTRIBUTE)
                .and_then(|function| function.parse().ok()),
            supersede: attrs
                .get(SUPERSEDE_ATTRIBUTE)
                .is_none_or(|value| value != "false"),
            commit: attrs.get(COMMIT_ATTRIBUTE).cloned(),
            attempt: attrs
                .get(ATTEMPT_ATTRIBUTE)
                .and_then(|attempt| attempt.parse().ok())
                .filter(|attempt| *attempt > 0),
        })
    }

    /// Returns the function among whose builds this one takes part in supersession; `None` for a build that supersedes
    /// no other and that none supersedes.
    pub fn supersession_group(&self) -> Option<&FunctionId> {
        self.function.as_ref().filter(|_| self.supersede)
    }
}

/// Formats a time as RFC 3339 in UTC, with nanoseconds.
fn format_rfc3339_nanos(time: SystemTime) -> String {
    format!("{:.9}", to_nearest_jiff_timestamp(time))
}

/// Converts a time to a `Timestamp`; a time outside of jiff's range becomes the nearest in range.
pub(super) fn to_nearest_jiff_timestamp(time: SystemTime) -> Timestamp {
    let nearest = match time < SystemTime::UNIX_EPOCH {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    };
    Timestamp::try_from(time).unwrap_or(nearest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn example_attributes() -> SolveAttributes {
        SolveAttributes {
            call_id: "call-1".into(),
            signature: Some("0a1b".into()),
            tenant: Some("acme".into()),
            submitted_at: SystemTime::UNIX_EPOCH + Duration::new(1_795_951_610, 1),
            function: Some(FunctionId::new("hello", "openfaas-fn")),
            supersede: true,
            commit: Some("c0ffee".into()),
            attempt: Some(2),
        }
    }

    fn history_record_attributes(attributes: &SolveAttributes) -> HashMap<String, String> {
        let pairs = attributes.to_name_value_pairs().into_iter();
        pairs.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn attributes_of_a_solve_are_parsed_unchanged_from_its_history_record() {
        let no_deployment = SolveAttributes {
            signature: None,
            tenant: None,
            function: None,
            attempt: None,
            ..example_attributes()
        };
        let opted_out = SolveAttributes {
            supersede: false,
            ..example_attributes()
        };
        for attributes in [example_attributes(), no_deployment, opted_out] {
            assert_eq!(
                SolveAttributes::from_history_record(&history_record_attributes(&attributes)),
                Some(attributes)
            );
        }
    }

    #[test]
    fn solve_attributes_keep_the_names_by_which_builder_fns_read_each_others_builds() {
        let record = history_record_attributes(&SolveAttributes {
            supersede: false,
            ..example_attributes()
        });
        for (name, value) in [
            ("slipway.call-id", "call-1"),
            ("slipway.signature", "0a1b"),
            ("slipway.tenant", "acme"),
            ("slipway.commit", "c0ffee"),
            ("slipway.attempt", "2"),
            ("slipway.submitted-at", "2026-11-29T11:26:50.000000001Z"),
            ("slipway.function", "hello.openfaas-fn"),
            ("slipway.supersede", "false"),
        ] {
            assert_eq!(record[name], value);
        }
    }

    #[test]
    fn a_history_record_without_a_call_id_and_valid_submission_time_has_no_solve_attributes() {
        let mut record = history_record_attributes(&example_attributes());
        record.insert("slipway.submitted-at".into(), "yesterday".into());
        assert_eq!(SolveAttributes::from_history_record(&record), None);
        assert_eq!(SolveAttributes::from_history_record(&HashMap::new()), None);
    }
}
