//! The checks of requests before anything is sent to the cluster, with the limits of the Community Edition.

use super::MAX_REPLICAS;
use crate::{
    error::ProviderError,
    model::{FunctionDeployment, NameValueMap},
};

/// The annotation that Prometheus' discovery of pods reads.
const SCRAPE_ANNOTATION: &str = "prometheus.io.scrape";

/// The annotation that names Profiles, which are custom resources.
const PROFILE_ANNOTATION: &str = "com.openfaas.profile";

/// The prefix of the labels with which a function is scaled.
const SCALE_LABEL_PREFIX: &str = "com.openfaas.scale.";

/// Parts of the keys of annotations that the Community Edition does not accept.
const REJECTED_ANNOTATION_PARTS: [&str; 2] = ["amazonaws.com", "gke.io"];

/// Fails if a field is missing that a new function or version must have, or exceeds the Community Edition.
pub(crate) fn check_deployment_request(request: &FunctionDeployment) -> Result<(), ProviderError> {
    let invalid = |text: String| Err(ProviderError::Invalid(text));
    if request.service.is_empty() {
        return invalid("service: missing; use the name of the function".to_owned());
    }
    if !has_dns_label_characters(&request.service) {
        return invalid(format!(
            "service: {:?} is not a DNS label; use lower-case letters, digits, and - between them",
            request.service
        ));
    }
    if request.image.is_empty() {
        return invalid("image: missing; use the reference of an image".to_owned());
    }
    check_scale_labels(&request.labels)
}

/// Returns the annotations of a request's Deployment, pods and Service.
pub(super) fn annotations_of_request(requested: &NameValueMap) -> Result<NameValueMap, ProviderError> {
    if requested.get("topic").is_some_and(|topics| topics.contains(',')) {
        let text = "annotation topic: several topics; the Community Edition allows one";
        return Err(ProviderError::Invalid(text.to_owned()));
    }
    let rejected = |key: &&String| REJECTED_ANNOTATION_PARTS.iter().any(|part| key.contains(part));
    if let Some(key) = requested.keys().find(rejected) {
        return Err(ProviderError::Invalid(format!(
            "annotation {key}: not in the Community Edition"
        )));
    }
    let mut annotations = requested.clone();
    annotations
        .entry(SCRAPE_ANNOTATION.to_owned())
        .or_insert_with(|| "false".to_owned());
    Ok(annotations)
}

/// Fails if the annotations name a Profile: there are none in the clusters of the tests.
pub(super) fn check_profiles(annotations: &NameValueMap) -> Result<(), ProviderError> {
    match annotations.get(PROFILE_ANNOTATION) {
        Some(profiles) if !profiles.is_empty() => Err(ProviderError::ProfileMissing(profiles.clone())),
        _ => Ok(()),
    }
}

/// Fails if the labels ask for scaling that the Community Edition does not have.
fn check_scale_labels(labels: &NameValueMap) -> Result<(), ProviderError> {
    for (key, value) in labels {
        let Some(setting) = key.strip_prefix(SCALE_LABEL_PREFIX) else {
            continue;
        };
        let rejected = match setting {
            "zero" => value == "true",
            "zero-duration" | "target" | "type" => true,
            "min" | "max" => value
                .parse::<i64>()
                .is_ok_and(|replicas| replicas > MAX_REPLICAS.into()),
            _ => false,
        };
        if rejected {
            return Err(ProviderError::Invalid(format!(
                "label {key}: {value:?} is not in the Community Edition; it has at most {MAX_REPLICAS} replicas"
            )));
        }
    }
    Ok(())
}

/// Returns whether a name consists of lower-case letters, digits, and hyphens between them.
fn has_dns_label_characters(name: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.iter().all(|c| alphanumeric(*c) || *c == b'-')
        && bytes.first().is_some_and(|c| alphanumeric(*c))
        && bytes.last().is_some_and(|c| alphanumeric(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_with_label(key: &str, value: &str) -> FunctionDeployment {
        FunctionDeployment {
            service: "hello".into(),
            image: "hello:1".into(),
            labels: NameValueMap::from([(key.to_owned(), value.to_owned())]),
            ..Default::default()
        }
    }

    #[test]
    fn only_the_scaling_of_the_community_edition_is_accepted() {
        for (label, value, accepted) in [
            ("com.openfaas.scale.min", "5", true),
            ("com.openfaas.scale.min", "6", false),
            ("com.openfaas.scale.min", "many", true),
            ("com.openfaas.scale.max", "5", true),
            ("com.openfaas.scale.max", "6", false),
            ("com.openfaas.scale.zero", "true", false),
            ("com.openfaas.scale.zero", "false", true),
            ("com.openfaas.scale.zero-duration", "15m", false),
            ("com.openfaas.scale.target", "10", false),
            ("com.openfaas.scale.type", "cpu", false),
            ("com.openfaas.scale.factor", "20", true),
        ] {
            let checked = check_deployment_request(&request_with_label(label, value));
            assert_eq!(checked.is_ok(), accepted, "{label}={value}");
        }
    }

    #[test]
    fn a_function_needs_a_dns_label_and_an_image() {
        let request = |service: &str, image: &str| FunctionDeployment {
            service: service.into(),
            image: image.into(),
            ..Default::default()
        };
        assert!(check_deployment_request(&request("a-1", "i")).is_ok());
        for (service, image) in [
            ("", "i"),
            ("A", "i"),
            ("-a", "i"),
            ("a-", "i"),
            ("a.b", "i"),
            ("a", ""),
        ] {
            assert!(
                check_deployment_request(&request(service, image)).is_err(),
                "{service:?} {image:?}"
            );
        }
    }

    #[test]
    fn annotations_of_aws_and_google_cloud_and_several_topics_are_rejected() {
        let annotations = |key: &str, value: &str| {
            annotations_of_request(&NameValueMap::from([(key.to_owned(), value.to_owned())]))
        };
        assert!(annotations("topic", "a,b").is_err());
        assert!(annotations("eks.amazonaws.com/role-arn", "x").is_err());
        assert!(annotations("iam.gke.io/gcp-service-account", "x").is_err());
        let accepted = annotations("topic", "a").unwrap();
        assert_eq!(accepted["topic"], "a");
        assert_eq!(accepted["prometheus.io.scrape"], "false");
        assert_eq!(
            annotations("prometheus.io.scrape", "true").unwrap()["prometheus.io.scrape"],
            "true"
        );
    }
}
