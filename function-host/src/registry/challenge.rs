//! Authentication challenges of a registry, from `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// The authentication that a registry requires of its clients.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthChallenge {
    /// The registry requires a user name and password.
    Basic,
    /// The registry requires a token from a token server. The challenge's scope is left out: the client asks for its
    /// own.
    Bearer {
        /// The URL of the token server.
        realm: String,
        /// The name of the service that the token is for.
        service: Option<String>,
    },
}

impl AuthChallenge {
    /// Parses a header `WWW-Authenticate`. Returns `None` for an unknown scheme, or if the realm is missing.
    pub(super) fn parse_www_authenticate(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Self::Basic),
            "bearer" => Some(Self::Bearer {
                realm: parameter_value(rest, "realm")?,
                service: parameter_value(rest, "service"),
            }),
            _ => None,
        }
    }
}

/// Returns the value of a challenge's parameter, quoted or not. Escaped quotes are not supported: registries
/// use none.
fn parameter_value(parameters: &str, name: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value.trim().to_owned());
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn www_authenticate_headers_are_parsed_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| AuthChallenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        for (text, challenge) in [
            ("Basic realm=\"slipway\"", Some(AuthChallenge::Basic)),
            ("basic", Some(AuthChallenge::Basic)),
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:a/b:pull\"",
                Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            ),
            (
                "Bearer scope=\"a,b\", realm=https://x/token",
                Some(bearer("https://x/token", None)),
            ),
            ("Bearer service=\"x\"", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(AuthChallenge::parse_www_authenticate(text), challenge, "{text}");
        }
    }
}
