//! Patterns for JSON.
//!
//! An object matches if each member of the pattern matches; `null` matches a member that is `null`, empty or missing. An
//! array matches one of the same length, item by item. `{any: true}` matches everything but `null`, and
//! `{any-order: […]}` an array whose items come in any order. Everything else matches what is equal.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Fails with the first difference between a value and a pattern; `path` is where they are.
pub(crate) fn compare(pattern: &Value, value: &Value, path: &str) -> Result<()> {
    match pattern {
        Value::Null => {
            let is_empty = match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(members) => members.is_empty(),
                _ => false,
            };
            ensure!(is_empty, "{path}: {value}, not absent");
        }
        Value::Object(members) if members.contains_key("any") => {
            ensure!(!value.is_null(), "{path}: absent");
        }
        Value::Object(members) if members.contains_key("any-order") => {
            let patterns = members["any-order"]
                .as_array()
                .context("any-order: not an array")?;
            let items = value
                .as_array()
                .with_context(|| format!("{path}: not an array"))?;
            ensure!(items.len() == patterns.len(), "{path}: {value}");
            for pattern in patterns {
                let found = items.iter().any(|item| compare(pattern, item, path).is_ok());
                ensure!(found, "{path}: {value} lacks {pattern}");
            }
        }
        Value::Object(members) => {
            ensure!(value.is_object(), "{path}: {value}, not an object");
            for (name, pattern) in members {
                compare(pattern, &value[name], &format!("{path}.{name}"))?;
            }
        }
        Value::Array(patterns) => {
            let items = value
                .as_array()
                .with_context(|| format!("{path}: {value}, not an array"))?;
            ensure!(
                items.len() == patterns.len(),
                "{path}: {value}, not {} items",
                patterns.len()
            );
            for (number, (pattern, item)) in patterns.iter().zip(items).enumerate() {
                compare(pattern, item, &format!("{path}[{number}]"))?;
            }
        }
        other => ensure!(other == value, "{path}: {value}, not {other}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_match_what_they_name_and_nothing_else() {
        for (pattern, value, matches) in [
            (json!({"a": 1}), json!({"a": 1, "b": 2}), true),
            (json!({"a": 1}), json!({"a": 2}), false),
            (json!({"a": null}), json!({"b": 1}), true),
            (json!({"a": null}), json!({"a": []}), true),
            (json!({"a": null}), json!({"a": 1}), false),
            (json!({"a": {"any": true}}), json!({"a": 1}), true),
            (json!({"a": {"any": true}}), json!({}), false),
            (json!([{"a": 1}]), json!([{"a": 1, "b": 2}]), true),
            (json!([1]), json!([1, 2]), false),
            (json!({"any-order": [1, 2]}), json!([2, 1]), true),
            (json!({"any-order": [1, 2]}), json!([2, 3]), false),
            (json!("1"), json!(1), false),
        ] {
            assert_eq!(
                compare(&pattern, &value, "").is_ok(),
                matches,
                "{pattern} {value}"
            );
        }
    }
}
