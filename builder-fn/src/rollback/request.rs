//! Parses requests below `/functions`.

use percent_encoding::percent_decode_str;

use super::error::RollbackError;
use crate::function_id::FunctionId;

/// The most characters of an ID.
const ID_CHARS_MAX: usize = 128;

/// A route of one function, `/functions/NAME/versions` or `/functions/NAME/rollback`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FunctionRoute {
    /// The route of a function's versions.
    Versions(String),
    /// The route of a function's rollbacks.
    Rollback(String),
}

impl FunctionRoute {
    /// Parses the path of a URL; `None` if it is not one of these routes. A name is percent-encoded.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let (name, action) = path.strip_prefix("/functions/")?.split_once('/')?;
        let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
        match action {
            "versions" if !name.is_empty() => Some(Self::Versions(name)),
            "rollback" if !name.is_empty() => Some(Self::Rollback(name)),
            _ => None,
        }
    }

    /// Returns the route's name in traces, which contains no function.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Versions(_) => "/functions/{name}/versions",
            Self::Rollback(_) => "/functions/{name}/rollback",
        }
    }
}

/// The query of a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RollbackQuery {
    /// The ID that the rollback gets.
    pub(super) id: String,
    /// The ID of the version to go back to; `None` for the last one that worked.
    pub(super) to: Option<String>,
}

impl RollbackQuery {
    /// Parses a query, `id=ID` and maybe `to=ID`.
    ///
    /// # Errors
    /// Fails with everything that is missing, unknown or malformed.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, RollbackError> {
        let (mut id, mut to) = (None, None);
        let mut problems = Vec::new();
        let pairs = query.unwrap_or_default().split('&');
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            let place = match key {
                "id" => &mut id,
                "to" => &mut to,
                _ => {
                    problems.push(format!("{:?} is unknown", key.escape_default().to_string()));
                    continue;
                }
            };
            if place.replace(value).is_some() {
                problems.push(format!("{key} is given twice"));
            }
        }
        match &id {
            None => problems
                .push("id is missing; it should be a new ID of the caller's choice, such as a UUID".into()),
            Some(id) if !is_valid_id(id) => problems.push(format!(
                "id should have 1 to {ID_CHARS_MAX} letters, digits, dots, underscores and hyphens, such as a UUID"
            )),
            Some(_) => {}
        }
        if to.as_ref().is_some_and(String::is_empty) {
            problems.push("to should be the ID of a version, or left out".to_owned());
        }
        match (id, problems.is_empty()) {
            (Some(id), true) => Ok(Self { id, to }),
            _ => Err(RollbackError::Query(problems.join("; "))),
        }
    }
}

fn is_valid_id(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(is_allowed)
}

/// Parses the name of a function, `NAME` or `NAME.NAMESPACE`.
///
/// # Errors
/// Fails if it is neither.
pub(super) fn parse_function(name: &str, default_namespace: &str) -> Result<FunctionId, RollbackError> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '\0']);
    let (name, namespace) = name.rsplit_once('.').unwrap_or((name, default_namespace));
    match is_name(name) && is_name(namespace) {
        true => Ok(FunctionId::new(name, namespace)),
        false => Err(RollbackError::Query(
            "the path should name a function: /functions/NAME/rollback or /functions/NAME.NAMESPACE/rollback"
                .into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_below_functions_have_a_percent_encoded_name() {
        for (path, route) in [
            (
                "/functions/shop/versions",
                Some(FunctionRoute::Versions("shop".into())),
            ),
            (
                "/functions/shop%2Efn/rollback",
                Some(FunctionRoute::Rollback("shop.fn".into())),
            ),
            ("/functions//rollback", None),
            ("/functions/shop", None),
            ("/functions/shop/rollback/x", None),
            ("/functions/%ff/rollback", None),
        ] {
            assert_eq!(FunctionRoute::parse(path), route, "{path}");
        }
    }

    #[test]
    fn rollback_queries_need_a_valid_id_and_every_mistake_is_named() {
        let query = |id: &str, to: Option<&str>| {
            Some(RollbackQuery {
                id: id.into(),
                to: to.map(str::to_owned),
            })
        };
        for (text, expected) in [
            (Some("id=a-1"), query("a-1", None)),
            (Some("to=b%2F1&id=a"), query("a", Some("b/1"))),
            (Some("id="), None),
            (Some("id=a/b"), None),
            (Some("id=a&id=b"), None),
            (Some("id=a&to="), None),
            (Some("id=a&from=b"), None),
            (Some("to=b"), None),
            (None, None),
        ] {
            assert_eq!(RollbackQuery::parse(text).ok(), expected, "{text:?}");
        }
        let error = RollbackQuery::parse(Some("to=&x=1"))
            .expect_err("three mistakes")
            .to_string();
        for problem in ["id is missing", "to should be", "\"x\" is unknown"] {
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_function_without_a_namespace_is_in_the_default_one() {
        for (name, expected) in [
            ("shop", Some("shop.openfaas-fn")),
            ("shop.other", Some("shop.other")),
            ("shop.", None),
            (".fn", None),
            ("a/shop", None),
        ] {
            let parsed = parse_function(name, "openfaas-fn").ok();
            assert_eq!(
                parsed.map(|function| function.without_tenant()).as_deref(),
                expected,
                "{name}"
            );
        }
    }
}
