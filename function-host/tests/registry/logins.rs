//! Tests that the credentials read from a Docker `config.json` are those that Docker's own reader finds in it.

use std::io;
use std::sync::{Arc, Mutex};

use function_host::registry::{LoginsCache, RegistryCredentials, RegistryLogins};
use serde::Deserialize;
use tracing_subscriber::fmt::MakeWriter;

/// A `config.json` and a host, with the credentials or the failure that `docker-config/main.go` recorded of Docker's
/// own reader.
#[derive(Deserialize)]
struct RecordedDockerCase {
    name: String,
    host: String,
    config: String,
    username: String,
    secret: String,
    fails: bool,
}

fn parse_logins(content: &str) -> RegistryLogins {
    RegistryLogins::parse_config(content.as_bytes()).unwrap_or_else(|error| panic!("{content}: {error}"))
}

/// Returns the user name and the secret for `host`, both empty if the configuration has no login for it.
fn find_credentials_or_anonymous(config_json: &str, host: &str) -> (String, String) {
    let RegistryCredentials { username, secret } = parse_logins(config_json)
        .credentials_or_anonymous_for(host)
        .unwrap();
    (username, secret)
}

fn username_and_secret(username: &str, secret: &str) -> (String, String) {
    (username.to_owned(), secret.to_owned())
}

#[test]
fn every_recorded_file_gives_the_same_credentials_as_with_docker_or_fails_as_there() {
    let cases: Vec<RecordedDockerCase> =
        serde_json::from_str(include_str!("../docker-config/cases.json")).unwrap();
    assert!(cases.iter().any(|case| case.fails) && cases.iter().any(|case| !case.fails));
    for case in cases {
        let found = RegistryLogins::parse_config(case.config.as_bytes())
            .map_err(|error| error.to_string())
            .and_then(|logins| {
                logins
                    .credentials_or_anonymous_for(&case.host)
                    .map_err(|error| error.to_string())
            });
        match found {
            Ok(found) => {
                assert!(!case.fails, "{}: Docker rejects this", case.name);
                assert_eq!(
                    (found.username, found.secret),
                    (case.username, case.secret),
                    "{}",
                    case.name
                );
            }
            Err(error) => assert!(case.fails, "{}: {error}", case.name),
        }
    }
}

#[test]
fn the_base64_of_auth_may_lack_its_padding() {
    let content = r#"{"auths": {"r.example": {"auth": " dXNlcjpwYTpzcw "}}}"#;
    assert_eq!(
        find_credentials_or_anonymous(content, "r.example"),
        username_and_secret("user", "pa:ss")
    );
}

#[test]
fn a_registry_is_found_by_every_form_of_its_key() {
    for (key, host) in [
        ("example.com", "example.com"),
        ("https://example.com", "example.com"),
        ("https://example.com/v1/", "example.com"),
        ("http://example.com/v2/", "example.com"),
        ("example.com/some/path", "example.com"),
        ("example.com:5000", "example.com:5000"),
        ("https://10.63.1.2:5000/v2/", "10.63.1.2:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "registry-1.docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ] {
        let content = format!(r#"{{"auths": {{"{key}": {{"auth": "dXNlcjpwYXNz"}}}}}}"#);
        assert_eq!(
            find_credentials_or_anonymous(&content, host),
            username_and_secret("user", "pass"),
            "{key} for {host}"
        );
    }
}

#[test]
fn a_registry_without_an_entry_gets_no_credentials() {
    let content = r#"{"auths": {"example.com": {"auth": "dXNlcjpwYXNz"}}}"#;
    for host in [
        "example.com:5000",
        "example.org",
        "sub.example.com",
        "com",
        "",
        "docker.io",
    ] {
        assert_eq!(
            find_credentials_or_anonymous(content, host),
            username_and_secret("", ""),
            "{host}"
        );
    }
}

#[test]
fn the_exact_key_of_a_registry_precedes_its_other_forms() {
    let content = r#"{"auths": {
        "https://index.docker.io/v1/access-token": {"username": "x", "password": "refresh"},
        "https://index.docker.io/v1/": {"username": "user", "password": "pass"},
        "a.example.com/v1": {"username": "x", "password": "x"},
        "http://a.example.com": {"username": "y", "password": "y"},
        "a.example.com": {"username": "user", "password": "pass"},
        "b.example.com/v1": {},
        "b.example.com/v2": {"username": "user", "password": "pass"}
    }}"#;
    for host in ["registry-1.docker.io", "a.example.com", "b.example.com"] {
        assert_eq!(
            find_credentials_or_anonymous(content, host),
            username_and_secret("user", "pass"),
            "{host}"
        );
    }
}

#[test]
fn the_helper_of_a_registry_precedes_the_one_for_all() {
    let logins = parse_logins(
        r#"{"credsStore": "pass",
        "credHelpers": {"gcr.io": "gcloud", "docker.io": "hub", "none.example": "", "null.example": null, "wrong.example": 1}}"#,
    );
    for (host, expected) in [
        ("gcr.io", Some(("gcloud", "gcr.io"))),
        ("eu.gcr.io", Some(("pass", "eu.gcr.io"))),
        ("gcr.io:443", Some(("pass", "gcr.io:443"))),
        (
            "registry-1.docker.io",
            Some(("hub", "https://index.docker.io/v1/")),
        ),
        ("none.example", None),
        ("null.example", None),
    ] {
        assert_eq!(
            logins.helper_and_server_name_for(host).unwrap(),
            expected,
            "{host}"
        );
    }
    let error = logins.helper_and_server_name_for("wrong.example").unwrap_err();
    assert_eq!(
        error.to_string(),
        "credHelpers.wrong.example should be the name of a credential helper"
    );
    assert_eq!(
        parse_logins(r#"{"credsStore": ""}"#)
            .helper_and_server_name_for("gcr.io")
            .unwrap(),
        None
    );
}

#[test]
fn an_unusable_entry_disables_its_own_registry_only() {
    for (entry, fault) in [
        (r#""hunter2""#, "auths.bad.example should be an object"),
        (r#"[]"#, "auths.bad.example should be an object"),
        (r#"{"username": 1}"#, "auths.bad.example.username should be text"),
        (
            r#"{"identitytoken": {}}"#,
            "auths.bad.example.identitytoken should be text",
        ),
        (
            r#"{"auth": "hunter2!"}"#,
            "auths.bad.example.auth should be the base64 of",
        ),
        (
            r#"{"auth": "aHVudGVyMg=="}"#,
            "auths.bad.example.auth should be the base64 of",
        ),
        (
            r#"{"auth": "/////w=="}"#,
            "auths.bad.example.auth should be the base64 of",
        ),
        (
            r#"{"auth": "Omh1bnRlcjI="}"#,
            "auths.bad.example.auth should be the base64 of",
        ),
    ] {
        let content = format!(
            r#"{{"auths": {{"a.example": {{"auth": "dXNlcjpwYXNz"}}, "bad.example": {entry}, "z.example": {{"auth": "dXNlcjpwYXNz"}}}}}}"#
        );
        let logins = parse_logins(&content);
        for host in ["a.example", "z.example"] {
            assert_eq!(
                logins.credentials_or_anonymous_for(host).unwrap().secret,
                "pass",
                "{entry}"
            );
        }
        let error = logins
            .credentials_or_anonymous_for("bad.example")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(fault) && !error.contains("hunter2"),
            "{entry}: {error}"
        );
        assert_eq!(Vec::from_iter(logins.describe_faults()), [error]);
    }
}

#[test]
fn a_fault_does_not_show_the_password_in_a_key() {
    let logins = parse_logins(r#"{"auths": {"https://me:hunter2@bad.example/": {"auth": 1}}}"#);
    assert_eq!(
        Vec::from_iter(logins.describe_faults()),
        ["auths.bad.example.auth should be text"]
    );
}

#[test]
fn a_registrytoken_is_reported_as_not_supported_unless_empty() {
    let logins = parse_logins(
        r#"{"auths": {"example.com": {"registrytoken": "t"}, "gcr.io": {"registrytoken": ""}}}"#,
    );
    assert_eq!(
        Vec::from_iter(logins.describe_faults()),
        ["auths.example.com.registrytoken is not supported"]
    );
}

#[test]
fn the_error_of_a_malformed_file_names_the_place_and_quotes_nothing() {
    for (content, hint) in [
        ("[]", "the content should be an object"),
        ("\"hunter2\"", "the content should be an object"),
        (r#"{"auths": ["hunter2"]}"#, "auths should be an object"),
        (r#"{"credHelpers": "hunter2"}"#, "credHelpers should be an object"),
        (r#"{"credsStore": ["hunter2"]}"#, "credsStore should be text"),
        ("{\n\"auths\": hunter2}", "invalid at line 2, column 10"),
        ("{", "invalid at line 1, column 1"),
        ("\u{feff}{}", "it begins with a byte order mark"),
    ] {
        let error = RegistryLogins::parse_config(content.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(hint) && !error.contains("hunter2"),
            "{content}: {error}"
        );
    }
}

/// A writer for logs that keeps what was written.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogBuffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn an_unusable_entry_is_logged_once_for_each_content() {
    let log = LogBuffer::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let cache = LoginsCache::new("registry-config");
    tracing::subscriber::with_default(subscriber, || {
        for content in ["1", "1", "2", "2"] {
            let content = format!(r#"{{"auths": {{"bad.example": {content}}}}}"#);
            assert!(
                cache
                    .parse_if_changed(content.as_bytes())
                    .unwrap()
                    .credentials_or_anonymous_for("bad.example")
                    .is_err()
            );
        }
    });
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(
        log.matches("auths.bad.example should be an object").count(),
        2,
        "{log}"
    );
    assert_eq!(log.matches("registry-config").count(), 2, "{log}");
}

#[test]
fn debug_output_contains_no_secret() {
    let content = r#"{"auths": {"example.com": {"username": "a", "password": "hunter2"}}}"#;
    let cache = LoginsCache::new("registry-config");
    let logins = cache.parse_if_changed(content.as_bytes()).unwrap();
    let credentials = logins.credentials_or_anonymous_for("example.com").unwrap();
    assert_eq!(credentials.secret, "hunter2");
    assert!(!format!("{cache:?} {logins:?} {credentials:?}").contains("hunter2"));
}
