//! JSON objects as Go's `encoding/json` reads them into a struct: with duplicate keys, in any case, `null` for no change.
//!
//! A value is parsed only when it is used, so that a wrong one is the fault of its own entry.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The keys and values of a JSON object, in their order.
pub(super) struct ObjectMembers<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for ObjectMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = ObjectMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(ObjectMembers(members))
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Parses a JSON object to its members; returns `None` for `null`, and an error for another value.
pub(super) fn parse_object_members_or_null(
    value: &RawValue,
) -> Result<Option<Vec<(String, &RawValue)>>, serde_json::Error> {
    let members: Option<ObjectMembers<'_>> = serde_json::from_str(value.get())?;
    Ok(members.map(|members| members.0))
}

/// Parses a JSON string; returns `None` for `null`, and an error for another value.
pub(super) fn parse_json_string_or_null(value: &RawValue) -> Result<Option<String>, serde_json::Error> {
    serde_json::from_str(value.get())
}

/// Returns whether a JSON key is the field `name`, in upper or lower case. Go folds two more letters to ASCII.
pub(super) fn key_matches_field(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}
