//! Kubernetes quantities: amounts of memory and CPU such as `128Mi` and `500m`.
//!
//! Grammar, rounding and units: Kubernetes, `apimachinery/pkg/api/resource/quantity.go`. Unlike there, a quantity has
//! no sign and at least one digit, and an exponent that does not fit 32 bits is rejected rather than truncated.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The number of significant digits of a quantity that are kept. With the largest binary unit, they fit 128
/// bits.
const MAX_SIGNIFICANT_DIGITS: usize = 20;
/// The number of decimal places of an amount: quantities are counted in 10⁻⁹, as in Kubernetes.
const NANO_DECIMAL_PLACES: i64 = 9;

/// An amount of memory or CPU, with the text that it was parsed from.
///
/// Two quantities are equal if their texts are: a specification with another text is another specification. Amounts are
/// compared by [`exceeds`](Self::exceeds).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    /// The quantity's amount in 10⁻⁹, rounded up; [`u128::MAX`] if it is larger.
    nanos: u128,
}

impl Quantity {
    /// Parses a quantity: a decimal number, followed by a unit, an exponent or nothing. `None` for other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (power_of_ten, power_of_two) = powers_of_ten_and_two_of_unit(unit)?;
        Some(Self {
            text: text.to_owned(),
            nanos: to_nanos_rounded_up_saturating(whole, fraction, power_of_ten, power_of_two),
        })
    }

    /// Returns whether the quantity is zero, which Kubernetes takes for no limit.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Returns whether this quantity is larger than `other`, whatever their units.
    #[must_use]
    pub fn exceeds(&self, other: &Self) -> bool {
        self.nanos > other.nanos
    }
}

/// Returns the factor of a quantity's unit or exponent, as powers of ten and of two; `None` for an unknown unit.
fn powers_of_ten_and_two_of_unit(unit: &str) -> Option<(i32, u32)> {
    Some(match unit {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (exponent.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    })
}

/// Computes `WHOLE.FRACTION × 10^power_of_ten × 2^power_of_two` in 10⁻⁹, rounded up.
fn to_nanos_rounded_up_saturating(whole: &str, fraction: &str, power_of_ten: i32, power_of_two: u32) -> u128 {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let mut power = NANO_DECIMAL_PLACES + i64::from(power_of_ten) - fraction.len() as i64;
    let (kept, dropped) = digits.split_at(digits.len().min(MAX_SIGNIFICANT_DIGITS));
    power += dropped.len() as i64;
    let mut nanos = kept.parse().unwrap_or(0_u128);
    if dropped.bytes().any(|digit| digit != b'0') {
        nanos += 1;
    }
    nanos = nanos.saturating_mul(1 << power_of_two);
    while power > 0 && nanos > 0 && nanos < u128::MAX {
        nanos = nanos.saturating_mul(10);
        power -= 1;
    }
    while power < 0 && nanos > 1 {
        nanos = nanos.div_ceil(10);
        power += 1;
    }
    nanos
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is not a quantity such as \"128Mi\"")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|| panic!("{text:?} is not parsed"))
    }

    #[test]
    fn quantities_are_parsed_as_in_kubernetes_except_that_signs_are_rejected() {
        for right in [
            "0", "1", "0.5", ".5", "1.", "128Mi", "1Gi", "500m", "1e3", "1E-3", "12E+6", "2E", "0e400",
        ] {
            assert_eq!(parse_quantity(right).to_string(), right);
        }
        for wrong in [
            "",
            "Mi",
            ".",
            "1.2.3",
            "128MB",
            "128 Mi",
            "12X",
            "-1",
            "1e",
            "1e+",
            "ten",
            // Kubernetes' limit for an exponent is 64 bits, of which it uses 32.
            "1e99999999999999999999",
        ] {
            assert!(Quantity::parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn zero_has_many_spellings() {
        for (text, zero) in [
            ("0", true),
            ("0Mi", true),
            ("0.000m", true),
            ("0e9", true),
            (".0", true),
            ("1n", false),
            ("1e-400", false),
        ] {
            assert_eq!(parse_quantity(text).is_zero(), zero, "{text}");
        }
    }

    #[test]
    fn amounts_are_compared_whatever_their_units() {
        for (larger, smaller) in [
            ("1500m", "1"),
            ("1Gi", "1G"),
            ("1Ei", "1E"),
            ("1n", "0"),
            ("1e400", "8Ei"),
            ("1", "1e-400"),
            ("1.00000000000000000001", "1"),
        ] {
            assert!(
                parse_quantity(larger).exceeds(&parse_quantity(smaller)),
                "{larger} {smaller}"
            );
            assert!(
                !parse_quantity(smaller).exceeds(&parse_quantity(larger)),
                "{larger} {smaller}"
            );
        }
        for (one, other) in [
            ("0.5", "500m"),
            ("700m", "0.7"),
            ("1e3", "1k"),
            ("1.5Ki", "1536"),
            ("0e400", "0"),
            // Less than the smallest amount is the smallest amount.
            ("0.1n", "1n"),
        ] {
            let (one, other) = (parse_quantity(one), parse_quantity(other));
            assert!(!one.exceeds(&other) && !other.exceeds(&one), "{one} {other}");
        }
    }
}
