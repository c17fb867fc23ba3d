//! Basic authentication of requests to the API.

use std::{fmt, fs, path::Path, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq;

use crate::error::ProviderError;

/// The credentials for the API.
#[derive(Clone)]
pub(crate) struct ApiCredentials(Arc<(String, String)>);

impl ApiCredentials {
    /// Reads the API's credentials from the files `basic-auth-user` and `basic-auth-password`; fails if one is missing
    /// or empty.
    pub(crate) fn read_from_files(directory: &Path) -> Result<Self, ProviderError> {
        let read = |name: &str| {
            let path = directory.join(name);
            let text = fs::read_to_string(&path).map_err(ProviderError::io_error("read", &path))?;
            match text.trim() {
                "" => Err(ProviderError::Invalid(format!(
                    "{}: the file is empty",
                    path.display()
                ))),
                text => Ok(text.to_owned()),
            }
        };
        Ok(Self(Arc::new((
            read("basic-auth-user")?,
            read("basic-auth-password")?,
        ))))
    }

    /// Returns whether the headers have these credentials, compared in constant time.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some((user, password)) = parse_basic_auth(headers) else {
            return false;
        };
        let (expected_user, expected_password) = &*self.0;
        let same_user = user.as_bytes().ct_eq(expected_user.as_bytes());
        (same_user & password.as_bytes().ct_eq(expected_password.as_bytes())).into()
    }
}

impl fmt::Debug for ApiCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Returns the user name and password of the header `Authorization`; `None` if it is missing or not basic.
fn parse_basic_auth(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Answers requests to the API without the right credentials with 401, and passes on all others.
pub(super) async fn require_credentials(
    State(credentials): State<ApiCredentials>,
    request: Request,
    next: Next,
) -> Response {
    if credentials.is_authorized(request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, r#"Basic realm="Restricted""#)];
    (StatusCode::UNAUTHORIZED, challenge, "invalid credentials").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_credentials() -> ApiCredentials {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("basic-auth-user"), "admin\n").unwrap();
        fs::write(directory.path().join("basic-auth-password"), "pass:word\n").unwrap();
        ApiCredentials::read_from_files(directory.path()).unwrap()
    }

    fn headers_with_authorization(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn only_the_right_user_and_password_are_accepted() {
        let credentials = test_credentials();
        let basic = |text: &str| headers_with_authorization(&format!("Basic {}", STANDARD.encode(text)));
        assert!(credentials.is_authorized(&basic("admin:pass:word")));
        for wrong in ["admin:pass", "other:pass:word", "admin", ""] {
            assert!(!credentials.is_authorized(&basic(wrong)), "{wrong}");
        }
        assert!(!credentials.is_authorized(&headers_with_authorization("Bearer x")));
        assert!(!credentials.is_authorized(&HeaderMap::new()));
    }

    #[test]
    fn debug_output_has_no_password_and_an_empty_password_is_rejected() {
        assert_eq!(format!("{:?}", test_credentials()), "Credentials(…)");
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("basic-auth-user"), "admin").unwrap();
        fs::write(directory.path().join("basic-auth-password"), "\n").unwrap();
        assert!(ApiCredentials::read_from_files(directory.path()).is_err());
    }
}
