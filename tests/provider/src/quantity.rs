//! The parser of Kubernetes quantities (`128Mi`, `1.5G`, `1e3`) of memory.

/// Parses a Kubernetes quantity as a whole number of bytes, rounded up as `resource.Quantity` does; rejects more than
/// 1 PiB.
pub(crate) fn parse_quantity_as_bytes(text: &str) -> Option<i64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubernetes_quantity_is_converted_to_bytes() {
        assert_eq!(parse_quantity_as_bytes("128Mi"), Some(134_217_728));
        assert_eq!(parse_quantity_as_bytes("1G"), Some(1_000_000_000));
        assert_eq!(parse_quantity_as_bytes("1.5Ki"), Some(1536));
        assert_eq!(parse_quantity_as_bytes("1e3"), Some(1000));
        assert_eq!(parse_quantity_as_bytes("4096"), Some(4096));
        assert_eq!(parse_quantity_as_bytes("1500m"), Some(2));
    }

    #[test]
    fn invalid_quantities_are_rejected() {
        for text in ["", "lots", "-1", "1Q", "Mi", "1e999", "1 Mi"] {
            assert_eq!(parse_quantity_as_bytes(text), None, "{text}");
        }
    }
}
