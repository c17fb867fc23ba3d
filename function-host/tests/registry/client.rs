//! Lookups in registries on loopback that answer as docker-registry does, with passwords or with a token server.

use std::fs;
use std::sync::{Arc, Mutex};

use function_host::Secrets;
use function_host::registry::{AdditionalTokenHosts, RegistryClient, RegistryCredentials, RegistryError};
use serde_json::json;

use crate::server::{ReceivedRequest, ScriptedAnswer, TestServer};

const MANIFEST_DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// Returns the answer 200 with a short manifest.
fn manifest_answer() -> ScriptedAnswer {
    (200, r#"{"schemaVersion": 2}"#.to_owned(), None)
}

/// Returns the answer 401 with a challenge.
fn unauthorized_answer(challenge: String) -> ScriptedAnswer {
    (401, r#"{"errors": []}"#.to_owned(), Some(challenge))
}

/// Returns the answer of a token server with this token.
fn token_answer(token: &str) -> ScriptedAnswer {
    (200, json!({"token": token}).to_string(), None)
}

#[tokio::test]
async fn a_manifest_is_looked_up_by_its_digest() {
    let registry = TestServer::start("127.0.0.1", |_| manifest_answer()).await;
    assert!(
        registry
            .team_hello_repository("", "", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap()
    );
    let manifest = registry
        .team_hello_repository("", "", "")
        .fetch_unverified_manifest(MANIFEST_DIGEST)
        .await
        .unwrap();
    assert_eq!(manifest.unwrap(), r#"{"schemaVersion": 2}"#);
    assert!(
        registry
            .team_hello_repository("", "", "")
            .fetch_unverified_blob(MANIFEST_DIGEST)
            .await
            .unwrap()
            .is_some()
    );
    let lines: Vec<_> = registry
        .received_requests()
        .into_iter()
        .map(|request| request.line)
        .collect();
    assert_eq!(
        lines,
        [
            format!("HEAD /v2/team/hello/manifests/{MANIFEST_DIGEST}"),
            format!("GET /v2/team/hello/manifests/{MANIFEST_DIGEST}"),
            format!("GET /v2/team/hello/blobs/{MANIFEST_DIGEST}"),
        ]
    );
}

#[tokio::test]
async fn only_not_found_means_that_there_is_no_manifest() {
    for status in [404, 302, 400, 403, 429, 500, 503] {
        let registry = TestServer::start("127.0.0.1", move |_| (status, "hunter2".to_owned(), None)).await;
        match registry
            .team_hello_repository("", "", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
        {
            Ok(found) => assert_eq!((status, found), (404, false)),
            Err(error) => {
                assert!(
                    matches!(&error, RegistryError::Status { status: is, .. } if *is == status),
                    "{error}"
                );
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
    }
    let client =
        RegistryClient::new(&Secrets::new("/nowhere"), true, AdditionalTokenHosts::default()).unwrap();
    let mut nowhere = client.repository("127.0.0.1:9", "hello", RegistryCredentials::default());
    let error = nowhere.has_manifest(MANIFEST_DIGEST).await.unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_digest_cannot_name_another_path() {
    let registry = TestServer::start("127.0.0.1", |_| manifest_answer()).await;
    for digest in ["../../../admin", "sha256:1/2", "x?y", "a#b", "a%2fb"] {
        let error = registry
            .team_hello_repository("", "", "")
            .fetch_unverified_blob(digest)
            .await
            .unwrap_err();
        assert!(matches!(error, RegistryError::Name { .. }), "{digest}");
    }
    assert!(registry.received_requests().is_empty());
}

#[tokio::test]
async fn a_password_is_sent_to_a_registry_that_asks_for_it() {
    let registry = TestServer::start("127.0.0.1", |request| match &*request.authorization {
        "Basic dTpw" => manifest_answer(),
        _ => unauthorized_answer("Basic realm=\"slipway\"".to_owned()),
    })
    .await;
    let error = registry
        .team_hello_repository("", "", "")
        .has_manifest(MANIFEST_DIGEST)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::NoCredentials { .. }), "{error}");
    assert!(
        registry
            .team_hello_repository("u", "p", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap()
    );
    let error = registry
        .team_hello_repository("u", "wrong", "")
        .has_manifest(MANIFEST_DIGEST)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RegistryError::Status { status, .. } if *status == 401),
        "{error}"
    );
}

/// Starts a registry that requires the token `let-me-in`; its token server is at `realm_path` on the registry itself,
/// and answers with `token_server_answer`.
async fn registry_requiring_token_let_me_in(
    realm_path: &'static str,
    token_server_answer: ScriptedAnswer,
) -> TestServer {
    let host = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&host);
    let registry = TestServer::start("127.0.0.1", move |request| match &*request.authorization {
        "Bearer let-me-in" => manifest_answer(),
        _ if request.line.contains(" /token") => token_server_answer.clone(),
        _ => unauthorized_answer(format!(
            "Bearer realm=\"http://{}{realm_path}\",service=\"a b\"",
            own.lock().unwrap()
        )),
    })
    .await;
    *host.lock().unwrap() = registry.host.clone();
    registry
}

#[tokio::test]
async fn a_token_is_fetched_once_for_a_registry_that_asks_for_it() {
    let registry = registry_requiring_token_let_me_in("/token", token_answer("let-me-in")).await;
    let mut repository = registry.team_hello_repository("u", "p", "");
    assert!(repository.has_manifest(MANIFEST_DIGEST).await.unwrap());
    assert!(
        repository
            .fetch_unverified_manifest(MANIFEST_DIGEST)
            .await
            .unwrap()
            .is_some()
    );
    let seen: Vec<_> = registry
        .received_requests()
        .into_iter()
        .map(
            |ReceivedRequest {
                 line, authorization, ..
             }| (line, authorization),
        )
        .collect();
    let head = format!("HEAD /v2/team/hello/manifests/{MANIFEST_DIGEST}");
    assert_eq!(
        seen,
        [
            (head.clone(), String::new()),
            (
                "GET /token?scope=repository:team/hello:pull&service=a%20b".to_owned(),
                "Basic dTpw".to_owned()
            ),
            (head.clone(), "Bearer let-me-in".to_owned()),
            (head.replace("HEAD", "GET"), "Bearer let-me-in".to_owned()),
        ]
    );
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_without_credentials() {
    let registry = registry_requiring_token_let_me_in("/token?account=x", token_answer("let-me-in")).await;
    assert!(
        registry
            .team_hello_repository("", "", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap()
    );
    let request = registry.received_requests().remove(1);
    assert_eq!(
        request.line,
        "GET /token?account=x&scope=repository:team/hello:pull&service=a%20b"
    );
    assert_eq!(request.authorization, "");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_for_a_token() {
    let registry = registry_requiring_token_let_me_in("/token", token_answer("let-me-in")).await;
    assert!(
        registry
            .team_hello_repository("", "id&1", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap()
    );
    let request = registry.received_requests().remove(1);
    assert_eq!((&*request.line, &*request.authorization), ("POST /token", ""));
    assert_eq!(
        request.body,
        "grant_type=refresh_token&client_id=slipway&refresh_token=id%261&scope=repository%3Ateam%2Fhello%3Apull&service=a%20b"
    );
}

#[tokio::test]
async fn a_token_server_without_a_token_is_an_error_that_quotes_nothing() {
    for body in [r#"{"token": 1, "hunter2": 2}"#, "hunter2", ""] {
        let registry = registry_requiring_token_let_me_in("/token", (403, body.to_owned(), None)).await;
        let error = registry
            .team_hello_repository("u", "p", "")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, RegistryError::Token { status, .. } if *status == 403),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_realm_on_another_host_is_followed_only_if_the_operator_names_it() {
    let inside = TestServer::start("127.0.0.2", |_| token_answer("of somebody else")).await;
    let realm = format!("Bearer realm=\"http://{}/token\"", inside.host);
    let registry = TestServer::start("127.0.0.1", move |request| match &*request.authorization {
        "Bearer of somebody else" => manifest_answer(),
        _ => unauthorized_answer(realm.clone()),
    })
    .await;
    let port = inside.host.rsplit(':').next().unwrap();
    for (realms, is_allowed) in [
        ("", false),
        ("127.0.0.3, 127.0.0.2:9", false),
        ("127.0.0.3, 127.0.0.2", true),
        (&*format!("127.0.0.2:{port}"), true),
    ] {
        let before = inside.received_requests().len();
        let found = registry
            .team_hello_repository("u", "p", realms)
            .has_manifest(MANIFEST_DIGEST)
            .await;
        match is_allowed {
            true => assert!(found.unwrap(), "{realms}"),
            false => {
                let error = found.unwrap_err();
                assert!(
                    matches!(error, RegistryError::ForeignRealm { .. }),
                    "{realms}: {error}"
                );
                assert_eq!(inside.received_requests().len(), before, "{realms}");
            }
        }
    }
    let sent = registry.received_requests();
    assert_eq!(
        sent.iter()
            .filter(|request| request.authorization.contains("somebody"))
            .count(),
        2
    );
}

#[tokio::test]
async fn a_realm_that_is_no_address_or_hides_another_host_is_rejected() {
    for realm in [
        "/token",
        "127.0.0.1",
        "ftp://127.0.0.1/",
        "http://127.0.0.1@127.0.0.2/",
        "http:///token",
        "http://a b/",
    ] {
        let registry = TestServer::start("127.0.0.1", move |_| {
            unauthorized_answer(format!("Bearer realm=\"{realm}\""))
        })
        .await;
        let error = registry
            .team_hello_repository("", "", "127.0.0.2")
            .has_manifest(MANIFEST_DIGEST)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                RegistryError::Realm { .. } | RegistryError::PlainRealm { .. }
            ),
            "{realm}: {error}"
        );
    }
}

#[tokio::test]
async fn the_gateways_credentials_are_sent_to_no_registry_and_no_token_server() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["basic-auth-user", "basic-auth-password"] {
        fs::write(folder.path().join(name), "hunter2").unwrap();
    }
    let registry = TestServer::start("127.0.0.1", |_| {
        unauthorized_answer("Bearer realm=\"http://127.0.0.1:1/\"".to_owned())
    })
    .await;
    let inside = TestServer::start("127.0.0.1", |_| token_answer("x")).await;
    let realm = format!("Bearer realm=\"http://{}/system/functions\"", inside.host);
    let outside = TestServer::start("127.0.0.1", move |_| unauthorized_answer(realm.clone())).await;
    let client = RegistryClient::new(
        &Secrets::new(folder.path()),
        true,
        AdditionalTokenHosts::default(),
    )
    .unwrap();
    for server in [&registry, &outside] {
        let mut repository = client.repository(&server.host, "hello", RegistryCredentials::default());
        repository.has_manifest(MANIFEST_DIGEST).await.unwrap_err();
    }
    assert_eq!(inside.received_requests().len(), 1);
    for request in [
        registry.received_requests(),
        outside.received_requests(),
        inside.received_requests(),
    ]
    .concat()
    {
        assert!(matches!(&*request.authorization, "" | "Bearer x"), "{request:?}");
    }
}

#[test]
fn allowed_realms_are_hosts_with_an_optional_port() {
    for text in ["", " auth.example , auth.example:8443, [::1]:5001,"] {
        assert!(text.parse::<AdditionalTokenHosts>().is_ok(), "{text}");
    }
    for text in [
        "https://auth.example",
        "auth.example/token",
        "a b",
        "me@auth.example",
        ":443",
    ] {
        let error = text.parse::<AdditionalTokenHosts>().unwrap_err();
        assert_eq!(
            error, "should be hosts, HOST or HOST:PORT, separated by commas",
            "{text}"
        );
    }
}
