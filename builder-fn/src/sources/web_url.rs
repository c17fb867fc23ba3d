//! An `http` or `https` URL that a caller names: of a file to fetch, a git repository, a receiver of results, or the
//! API of a forge.

use std::fmt;

use function_host::http::Uri;
use function_host::policy::{Tenant, Violation};

use super::AllowedPrivateHosts;
use super::connection::ConnectionRule;
use super::locator::{LocatorError, Url};

/// An `http` or `https` URL without user information and fragment, in the normal form that rules are compared with.
///
/// It is displayed without its query, which may be a signature that gives access to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebUrl {
    url: Url,
    /// The same URL, for requests.
    uri: Uri,
}

/// The reason why a caller's text is not a usable `http` or `https` URL. The error's text follows the name of the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebUrlError {
    /// The URL has another scheme than `http` and `https`, or none.
    #[error("should be a URL that begins with https://")]
    Scheme,
    /// The URL has a user before its host.
    #[error("should have no user and no password before the host; the builder sends no credentials")]
    UserInformation,
    /// The URL has a fragment, which no server receives.
    #[error("should have no fragment (#)")]
    Fragment,
    /// The URL has characters that URLs have in encoded form only.
    #[error("should have percent-encoded characters in place of spaces, control and non-ASCII characters")]
    Characters,
    /// The host or the port of the URL is malformed.
    #[error("should be a URL like https://HOST:PORT/PATH; its host {0}")]
    Host(String),
    /// The path of the URL could be read by a server as another path.
    #[error("should have a path without '.' and '..' segments, backslashes, and encoded dots or slashes")]
    Path,
}

/// The reason why the builder sends no request to a URL for a caller. The texts follow the name of the member with the
/// URL.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UrlRejection {
    /// The builder does not connect to the host. The text names it.
    #[error("{0}")]
    Address(String),
    /// The rules of the tenant do not allow the URL.
    #[error("{0}")]
    Forbidden(Violation),
    /// The URL is one without TLS, which the builder's settings do not allow.
    #[error(
        "{url} should begin with https://; this builder sends a request without TLS only if its setting insecure is true"
    )]
    NotEncrypted {
        /// The URL, without its query.
        url: String,
    },
}

impl UrlRejection {
    /// Returns whether a rule, of the tenant or of the builder, forbids the URL, instead of it having a wrong form.
    pub(crate) fn is_forbidden_and_not_only_unencrypted(&self) -> bool {
        !matches!(self, Self::NotEncrypted { .. })
    }
}

impl WebUrl {
    /// Parses a URL that begins with `http://` or `https://`.
    ///
    /// # Errors
    /// Fails if it is no such URL, has user information or a fragment, or could be read as another one.
    pub fn parse(text: &str) -> Result<Self, WebUrlError> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(WebUrlError::Characters);
        }
        let (scheme, rest) = text.split_once("://").ok_or(WebUrlError::Scheme)?;
        if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err(WebUrlError::Scheme);
        }
        if rest.contains('#') {
            return Err(WebUrlError::Fragment);
        }
        let authority = rest.split(['/', '?', '\\']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(WebUrlError::UserInformation);
        }
        let url = Url::parse_without_user_and_fragment(text).map_err(|error| match error {
            LocatorError::Host(error) => WebUrlError::Host(error.to_string()),
            LocatorError::Path => WebUrlError::Path,
            _ => WebUrlError::Host("or its port is malformed".to_owned()),
        })?;
        let uri = url.to_string().parse().map_err(|_| WebUrlError::Characters)?;
        Ok(Self { url, uri })
    }

    /// Parses the `Location` of a response to a request of this URL: a URL, or a path at the same server. A fragment,
    /// which servers may add, is left out.
    ///
    /// # Errors
    /// Fails as [`parse`](Self::parse).
    pub(crate) fn parse_redirect(&self, location: &str) -> Result<Self, WebUrlError> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        if location.starts_with("//") {
            Self::parse(&format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{authority}{location}"))
        } else {
            Self::parse(location)
        }
    }

    /// Returns whether BuildKit takes the URL for that of a git repository, and git and BuildKit read the same one: it
    /// ends with `.git`, without a query and percent-encoded characters.
    pub(crate) fn ends_with_git_and_needs_no_decoding(&self) -> bool {
        let path = self.uri.path();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~+@-".contains(&byte);
        self.uri.query().is_none()
            && path.ends_with(".git")
            && path.bytes().all(allowed)
            && !path.contains("//")
    }

    /// Returns the URL for a request.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the host as a text: an IPv6 address is in brackets.
    pub(crate) fn host(&self) -> String {
        self.url.host.to_string()
    }

    /// Returns whether the scheme of the URL is `https`.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Returns the URL without its query, as policies list it.
    fn without_query(&self) -> String {
        self.url.clone().without_query().to_string()
    }

    /// Returns to which addresses the builder may connect for this URL, for a request of `tenant`. With
    /// `allows_plain_http`, requests without TLS are allowed.
    ///
    /// # Errors
    /// Fails if no request may be sent to the URL.
    pub(crate) fn check(
        &self,
        allowed: &AllowedPrivateHosts,
        allows_plain_http: bool,
        tenant: Option<&Tenant>,
    ) -> Result<ConnectionRule, UrlRejection> {
        let rule = allowed.connection_rule(&self.host(), self.url.port(), false);
        let rule = rule.map_err(UrlRejection::Address)?;
        if let Some(tenant) = tenant {
            tenant
                .may_read_http(&self.without_query())
                .map_err(UrlRejection::Forbidden)?;
        }
        match self.is_encrypted() || allows_plain_http {
            true => Ok(rule),
            false => Err(UrlRejection::NotEncrypted {
                url: self.to_string(),
            }),
        }
    }
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_query())?;
        match self.uri.query() {
            Some(_) => f.write_str("?…"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_normalised_and_displayed_without_its_query() {
        for (text, requested, displayed) in [
            (
                "https://Example.COM:443/Fn.tar",
                "https://example.com/Fn.tar",
                "https://example.com/Fn.tar",
            ),
            (
                "HTTPS://example.com?X-Amz-Signature=secret",
                "https://example.com/?X-Amz-Signature=secret",
                "https://example.com/?…",
            ),
            (
                "http://[2606:4700:0::1]:8080/a%20b",
                "http://[2606:4700::1]:8080/a%20b",
                "http://[2606:4700::1]:8080/a%20b",
            ),
            (
                "https://example.com/a?b=/../@c",
                "https://example.com/a?b=/../@c",
                "https://example.com/a?…",
            ),
        ] {
            let url = WebUrl::parse(text).expect(text);
            assert_eq!(url.uri().to_string(), requested);
            assert_eq!(url.to_string(), displayed);
        }
    }

    #[test]
    fn a_text_that_is_no_plain_web_url_is_rejected_with_its_problem() {
        for (text, expected) in [
            ("", "begins with https://"),
            ("example.com/a", "begins with https://"),
            ("//example.com/a", "begins with https://"),
            ("file:///etc/passwd", "begins with https://"),
            ("ftp://example.com/a", "begins with https://"),
            ("gopher://example.com/a", "begins with https://"),
            ("https:example.com/a", "begins with https://"),
            ("https:/example.com/a", "begins with https://"),
            ("https:///a", "its host"),
            ("https://user@example.com/a", "no user and no password"),
            ("https://user:pass@example.com/a", "no user and no password"),
            ("https://@example.com/a", "no user and no password"),
            ("https://example.com@127.0.0.1/a", "no user and no password"),
            ("https://example.com\\@127.0.0.1/a", "path without"),
            ("https://127.0.0.1#@example.com/a", "no fragment"),
            ("https://example.com/a#b", "no fragment"),
            ("https://example.com:x/a", "its host"),
            ("https://example.com:99999/a", "its host"),
            ("https://0x7f.1/a", "four decimal numbers"),
            ("https://2130706433/a", "four decimal numbers"),
            ("https://0177.0.0.1/a", "four decimal numbers"),
            ("https://127.1/a", "four decimal numbers"),
            ("https://[::1%25lo]/a", "its host"),
            ("https://%31%32%37.0.0.1/a", "its host"),
            ("https://１２７.0.0.1/a", "percent-encoded"),
            ("https://example.com/a b", "percent-encoded"),
            ("https://example.com/a\r\nHost: x", "percent-encoded"),
            ("https://example.com/a/../b", "path without"),
            ("https://example.com/a/%2e%2E/b", "path without"),
            ("https://example.com/a\\..\\b", "path without"),
        ] {
            let error = WebUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_redirect_leads_to_a_url_or_to_a_path_of_the_same_server() {
        let url = WebUrl::parse("https://example.com:8443/a/b?c").unwrap();
        for (location, expected) in [
            ("https://cdn.example/x?y#z", Some("https://cdn.example/x?y")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/x?y", Some("https://example.com:8443/x?y")),
            ("http://cdn.example/x", Some("http://cdn.example/x")),
            ("/../x", None),
            ("x", None),
            ("", None),
            ("https://user:pass@cdn.example/x", None),
            ("//user@cdn.example/x", None),
            ("/\\127.0.0.1/x", None),
            ("file:///etc/passwd", None),
        ] {
            let redirected = url.parse_redirect(location).ok().map(|url| url.uri().to_string());
            assert_eq!(redirected.as_deref(), expected, "{location}");
        }
    }

    proptest! {
        #[test]
        fn what_is_requested_is_what_was_checked(text in "https?://[a-zA-Z0-9.\\[\\]:@%/?#~_\\\\-]{1,40}") {
            if let Ok(url) = WebUrl::parse(&text) {
                let host = url.uri().host().unwrap_or_default();
                prop_assert_eq!(url.host(), host);
                prop_assert_eq!(url.uri().port_u16().unwrap_or(url.url.port()), url.url.port());
                prop_assert_eq!(WebUrl::parse(&url.uri().to_string()), Ok(url));
            }
        }
    }
}
