//! Checks of names in a hand-over: a name passes only if both faas-netes and faasd accept it.
//!
//! An error is the rest of a sentence that begins with the field's name.

/// The longest name of a function, a namespace or a Kubernetes Service, in characters.
const DNS_LABEL_MAX_CHARS: usize = 63;
/// The longest name of a Kubernetes Secret, in characters.
const DNS_SUBDOMAIN_MAX_CHARS: usize = 253;

/// Checks the name of a function: an RFC 1035 label, as Kubernetes wants for the name of a Service.
pub(super) fn check_function_name(text: &str) -> Result<(), String> {
    check_namespace_name(text)?;
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(format!(
            "must begin with a letter, because Kubernetes rejects a Service of the name {text:?}"
        ));
    }
    Ok(())
}

/// Checks the name of a namespace: an RFC 1123 label.
pub(crate) fn check_namespace_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > DNS_LABEL_MAX_CHARS {
        return Err(format!(
            "is longer than {DNS_LABEL_MAX_CHARS} characters: {text:?}"
        ));
    }
    if !is_dns_label_of_any_length(text) {
        return Err(format!(
            "must be lower-case letters, digits and hyphens, with a letter or a digit at both ends: {text:?}"
        ));
    }
    Ok(())
}

/// Checks the name of a secret: an RFC 1123 subdomain, which cannot be a path.
pub(super) fn check_secret_name(text: &str) -> Result<(), String> {
    if text.is_empty()
        || text.len() > DNS_SUBDOMAIN_MAX_CHARS
        || !text.split('.').all(is_dns_label_of_any_length)
    {
        return Err(format!(
            "must be lower-case letters, digits, hyphens and dots, with a letter or a digit at both ends, and at most \
             {DNS_SUBDOMAIN_MAX_CHARS} characters: {text:?}"
        ));
    }
    Ok(())
}

/// Checks the name of an environment variable, by Kubernetes' rule: letters, digits, `_`, `-` and `.`, no digit first.
pub(super) fn check_environment_variable_name(text: &str) -> Result<(), String> {
    let may_be_first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b'-' | b'.');
    let first_is_valid = text.bytes().next().is_some_and(may_be_first);
    if !first_is_valid || !text.bytes().all(|b| may_be_first(b) || b.is_ascii_digit()) {
        return Err(format!("is not the name of an environment variable: {text:?}"));
    }
    Ok(())
}

/// Checks the name of a label or an annotation, by Kubernetes' rule: `[prefix/]name`, with a domain as the prefix.
pub(super) fn check_label_or_annotation_name(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_is_valid = prefix.is_none_or(|prefix| check_secret_name(&prefix.to_ascii_lowercase()).is_ok());
    if !prefix_is_valid || name.is_empty() || !is_label_value(name) {
        return Err(format!(
            "is not a name such as \"topic\" or \"example.com/topic\", of at most {DNS_LABEL_MAX_CHARS} letters, digits, hyphens, dots and \
             underscores: {text:?}"
        ));
    }
    Ok(())
}

/// Checks the value of a label, by Kubernetes' rule; it may be empty.
pub(super) fn check_label_value(text: &str) -> Result<(), String> {
    if is_label_value(text) {
        return Ok(());
    }
    Err(format!(
        "must be at most {DNS_LABEL_MAX_CHARS} letters, digits, hyphens, dots and underscores, with a letter or a digit at both ends: {text:?}"
    ))
}

fn is_label_value(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= DNS_LABEL_MAX_CHARS
        && ends(text.bytes().next())
        && ends(text.bytes().next_back())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_dns_label_of_any_length(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_functions_name_follows_the_rule_for_kubernetes_services() {
        for right in ["a", "hello-world", "a1-b2", &"x".repeat(63)] {
            assert_eq!(check_function_name(right), Ok(()), "{right}");
        }
        for wrong in ["", "0", "2048-game", "-a", "a.b", &"x".repeat(64)] {
            assert!(check_function_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_namespace_is_a_dns_label() {
        for right in ["a", "hello-world", "0", "a1-b2", &"x".repeat(63)] {
            assert_eq!(check_namespace_name(right), Ok(()), "{right}");
        }
        for wrong in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "ä", &"x".repeat(64)] {
            assert!(check_namespace_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_secrets_name_is_a_dns_subdomain_and_so_no_path() {
        for right in ["api-key", "tls.crt", "a.b.c"] {
            assert_eq!(check_secret_name(right), Ok(()), "{right}");
        }
        for wrong in ["", "..", "../key", "a/b", "a..b", ".a", "A"] {
            assert!(check_secret_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_of_labels_and_annotations_and_values_of_labels_follow_kubernetes_rules() {
        for right in [
            "topic",
            "com.openfaas.scale.min",
            "Example.com/a_B-c.1",
            &"x".repeat(63),
        ] {
            assert_eq!(check_label_or_annotation_name(right), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "/x",
            "x/",
            "a/b/c",
            "-x",
            "x.",
            "a b",
            "ä",
            "under_score/x",
            &"x".repeat(64),
        ] {
            assert!(check_label_or_annotation_name(wrong).is_err(), "{wrong:?}");
        }
        for right in ["", "1", "a_B-c.1", &"x".repeat(63)] {
            assert_eq!(check_label_value(right), Ok(()), "{right}");
        }
        for wrong in ["-", "a b", "a/b", "a.", &"x".repeat(64)] {
            assert!(check_label_value(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_of_environment_variables_follow_the_rule_of_kubernetes() {
        for right in ["PATH", "write_timeout", "_x", "a.b-c1"] {
            assert_eq!(check_environment_variable_name(right), Ok(()), "{right}");
        }
        for wrong in ["", "1a", "A=B", "a b", "ä"] {
            assert!(check_environment_variable_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
