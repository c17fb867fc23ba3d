//! Lists of allowed addresses, of files (`http`) and of Git repositories (`git`).

/// A pattern of addresses: a URL whose path is a prefix that ends at a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlPattern {
    scheme: String,
    authority: String,
    path: String,
}

impl UrlPattern {
    /// Parses an entry of a list of addresses, whose scheme is one of `schemes`.
    ///
    /// # Errors
    /// What the entry should be.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<Self, String> {
        let scheme = schemes.first().copied().unwrap_or("https");
        let example = format!("should be a URL such as \"{scheme}://example.com/files/\"");
        let (scheme, authority, path) =
            split_scheme_authority_and_path(text).ok_or_else(|| example.clone())?;
        if !schemes.contains(&scheme.as_str()) {
            return Err(format!("should begin with {}://", schemes.join(":// or ")));
        }
        if path.contains(['?', '#', '*', '%']) || may_leave_prefix(path) {
            return Err(format!("{example}, without a query, \"*\", \"%\" and \"..\""));
        }
        Ok(Self {
            scheme,
            authority,
            path: path.to_owned(),
        })
    }

    /// Returns the scheme in lower case, such as `https`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the pattern's host in lower case, with the port unless it is the default port of the scheme.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the path of the pattern: a prefix that begins with a slash and ends at a segment.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns whether this address matches the pattern. An address with a user, or with a path that may lead out of
    /// the pattern's prefix, matches none.
    #[must_use]
    pub fn matches(&self, url: &str) -> bool {
        let Some((scheme, authority, path)) = split_scheme_authority_and_path(url) else {
            return false;
        };
        let path = path.split(['?', '#']).next().unwrap_or(path);
        let Some(rest) = path.strip_prefix(&self.path) else {
            return false;
        };
        scheme == self.scheme
            && authority == self.authority
            && !may_leave_prefix(path)
            && (self.path.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
    }
}

/// Splits a URL into its scheme, its host with its port, and everything from the path on; `None` if it is not a URL
/// with a host, or has a user. The scheme and host are in lower case, and the scheme's own port is left out.
fn split_scheme_authority_and_path(url: &str) -> Option<(String, String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let scheme = scheme.to_ascii_lowercase();
    let authority = authority.to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
    if authority.is_empty() || !authority.bytes().all(allowed) {
        return None;
    }
    let port = match scheme.as_str() {
        "https" => ":443",
        "http" => ":80",
        "ssh" => ":22",
        "git" => ":9418",
        _ => "",
    };
    let authority = match authority.strip_suffix(port) {
        Some(host) if !port.is_empty() => host.to_owned(),
        _ => authority,
    };
    Some((scheme, authority, if path.is_empty() { "/" } else { path }))
}

/// Returns whether a path may lead out of a prefix that it begins with: it has a segment `.` or `..`, also
/// percent-encoded, an encoded `%`, or a backslash, which some servers take for a slash.
fn may_leave_prefix(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let decoded = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    decoded.contains('\\')
        || lower.contains("%25")
        || decoded.split('/').any(|part| matches!(part, "." | ".."))
}

/// A list of patterns of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlPatterns(Vec<UrlPattern>);

impl UrlPatterns {
    pub(super) fn new(patterns: Vec<UrlPattern>) -> Self {
        Self(patterns)
    }

    /// Returns whether any pattern of the list allows this address.
    #[must_use]
    pub fn allows(&self, url: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(url))
    }

    /// Returns the patterns of addresses, in the order of the policy.
    pub fn iter(&self) -> impl Iterator<Item = &UrlPattern> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_allowed_below_its_prefix_only() {
        let pattern = |text| UrlPattern::parse(text, &["https", "http"]).unwrap();
        for (entry, url, has) in [
            ("https://example.com/files/", "https://example.com/files/a", true),
            (
                "https://example.com/files/",
                "https://EXAMPLE.com:443/files/a?x=1",
                true,
            ),
            ("https://example.com/files", "https://example.com/files", true),
            ("https://example.com/files", "https://example.com/files/a", true),
            ("https://example.com/files", "https://example.com/files-b", false),
            ("https://example.com", "https://example.com/any", true),
            ("https://example.com", "https://example.com.evil.org/any", false),
            ("https://example.com/", "http://example.com/any", false),
            ("https://example.com/", "https://example.com:8443/any", false),
            ("https://example.com/", "https://user@example.com/any", false),
            ("https://example.com/", "https://example.com@evil.org/any", false),
            (
                "https://example.com/files/",
                "https://example.com/files/../x",
                false,
            ),
            (
                "https://example.com/files/",
                "https://example.com/files/%2E%2e/x",
                false,
            ),
            (
                "https://example.com/files/",
                "https://example.com/files/..%2fx",
                false,
            ),
            (
                "https://example.com/files/",
                "https://example.com/files/%252e%252e/x",
                false,
            ),
            (
                "https://example.com/files/",
                "https://example.com/files/..\\x",
                false,
            ),
            (
                "https://example.com/files/",
                "https://example.com/?/files/",
                false,
            ),
        ] {
            assert_eq!(pattern(entry).matches(url), has, "{entry} {url}");
        }
    }

    #[test]
    fn an_entry_that_is_not_a_prefix_of_addresses_is_rejected() {
        for entry in [
            "",
            "example.com/",
            "ftp://example.com/",
            "https:///x",
            "https://u@example.com/",
            "https://example.com/*",
            "https://example.com/a/../b",
            "https://example.com/?q",
        ] {
            assert!(UrlPattern::parse(entry, &["https", "http"]).is_err(), "{entry}");
        }
    }
}
