//! Platforms that images are built for, in one spelling each.

use std::fmt;

/// The names of architectures without an operating system, as in `arm64` for `linux/arm64`.
const KNOWN_ARCHITECTURES: [&str; 9] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x",
];

/// A platform that images are built for, such as `linux/arm64`. Spellings that BuildKit takes for the same platform are
/// equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    /// The variant of the architecture, such as `v7`; `None` for its usual one.
    variant: Option<String>,
}

impl Platform {
    /// Parses `OS/ARCHITECTURE`, `OS/ARCHITECTURE/VARIANT` or a known `ARCHITECTURE` of Linux, with the synonyms of
    /// BuildKit (`github.com/containerd/platforms`, `normalizeArch`). Returns `None` for any other text, also for an
    /// operating system alone, whose architecture depends on the daemon.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let is_part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| is_part(part)) {
            return None;
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [architecture] => ("linux", *architecture, ""),
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => return None,
        };
        let os = if os == "macos" { "darwin" } else { os };
        let (architecture, variant) = normalize_architecture(architecture, variant);
        if parts.len() == 1 && !KNOWN_ARCHITECTURES.contains(&architecture) {
            return None;
        }
        Some(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        })
    }

    /// Returns whether a daemon for this platform builds for `wanted`, unless another daemon is for exactly that: it is
    /// the same platform, or a variant of this one.
    pub(super) fn includes(&self, wanted: &Self) -> bool {
        self == wanted
            || (self.variant.is_none()
                && (&self.os, &self.architecture) == (&wanted.os, &wanted.architecture))
    }
}

/// Returns the usual names of an architecture and its variant, which is empty for the usual one.
fn normalize_architecture<'a>(architecture: &'a str, variant: &'a str) -> (&'a str, &'a str) {
    match (architecture, variant) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_platform(text: &str) -> Platform {
        Platform::parse(text).expect(text)
    }

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/AArch64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            let platform = parse_platform(text);
            assert_eq!(platform.to_string(), expected, "{text}");
            assert_eq!(parse_platform(expected), platform);
        }
    }

    #[test]
    fn a_text_that_leaves_the_architecture_open_is_no_platform() {
        for text in [
            "",
            "linux",
            "windows",
            "a/b/c/d",
            "linux/",
            "/amd64",
            "linux/a b",
            "tcp://a:1",
        ] {
            assert_eq!(Platform::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_platform_without_a_variant_includes_those_with_one() {
        let includes = |one: &str, other: &str| parse_platform(one).includes(&parse_platform(other));
        assert!(includes("linux/amd64", "linux/amd64/v3"));
        assert!(includes("linux/arm64", "linux/arm64"));
        assert!(!includes("linux/amd64/v3", "linux/amd64"));
        assert!(!includes("linux/arm64", "linux/arm/v7"));
        assert!(!includes("linux/arm/v7", "linux/arm/v6"));
        assert!(!includes("windows/amd64", "linux/amd64"));
    }
}
