//! Kubernetes quantities (`128Mi`, `1.5G`, `1e3`).

/// Parses a Kubernetes quantity as a whole number of bytes, rounded up as `resource.Quantity` does; rejects more than
/// 1 PiB.
pub(crate) fn parse_quantity_up_to_1_pib_as_bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => 10f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let bytes = (number * factor).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
    (bytes.is_finite() && bytes <= 1024f64.powi(5)).then_some(bytes as i64)
}

/// Returns whether a text is a quantity for `resource.ParseQuantity` of Kubernetes.
pub(crate) fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number_end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let is_number = number.contains(|c: char| c.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_suffix = match suffix {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" => true,
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => true,
        exponent => exponent
            .strip_prefix(['e', 'E'])
            .is_some_and(|exponent| exponent.parse::<i32>().is_ok()),
    };
    is_number && is_suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubernetes_quantity_is_converted_to_bytes() {
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("128Mi"), Some(134_217_728));
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("1G"), Some(1_000_000_000));
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("1.5Ki"), Some(1536));
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("1e3"), Some(1000));
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("4096"), Some(4096));
        assert_eq!(parse_quantity_up_to_1_pib_as_bytes("1500m"), Some(2));
    }

    #[test]
    fn invalid_quantities_are_rejected() {
        for text in ["", "lots", "-1", "1Q", "Mi", "1e999", "1 Mi"] {
            assert_eq!(parse_quantity_up_to_1_pib_as_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn quantities_have_one_number_and_a_known_suffix() {
        for text in [
            "0", "0.5", "-1", "+1.", ".5", "100m", "128Mi", "1e3", "1E-3", "1E", "5n",
        ] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "lots", "1Q", "Mi", "1.2.3", "1 Mi", "--1", "1mi", "1e", "."] {
            assert!(!is_quantity(text), "{text}");
        }
    }
}
