//! JSON whose objects have each member once: the parsers of two readers must not differ on which duplicate counts.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value. The members of its objects are in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JsonWithUniqueMembers {
    Null,
    Flag(bool),
    /// A whole number from 0.
    Number(u64),
    /// A number that is negative or has a fraction, which no member of a policy may be.
    OtherNumber,
    Text(String),
    List(Vec<JsonWithUniqueMembers>),
    Object(Vec<(String, JsonWithUniqueMembers)>),
}

impl<'de> Deserialize<'de> for JsonWithUniqueMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueMembersVisitor)
    }
}

struct UniqueMembersVisitor;

impl<'de> Visitor<'de> for UniqueMembersVisitor {
    type Value = JsonWithUniqueMembers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::Flag(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::Number(number))
    }

    fn visit_i64<E: Error>(self, _number: i64) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::OtherNumber)
    }

    fn visit_f64<E: Error>(self, _number: f64) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::OtherNumber)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<JsonWithUniqueMembers, E> {
        Ok(JsonWithUniqueMembers::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonWithUniqueMembers, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(JsonWithUniqueMembers::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonWithUniqueMembers, A::Error> {
        let mut members: Vec<(String, JsonWithUniqueMembers)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom(format!("the member {name:?} is given twice")));
            }
            members.push((name, map.next_value()?));
        }
        Ok(JsonWithUniqueMembers::Object(members))
    }
}
