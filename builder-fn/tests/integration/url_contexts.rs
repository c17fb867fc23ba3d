//! Tests of JSON requests that refer to their context by a URL.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::complete_or_panic;
use crate::daemon;
use crate::referenced_contexts::{
    context_tar, gzipped, request_context_files_and_return_paths, send_json, send_json_signed_with,
};
use crate::registry::digest_of;
use crate::setting::{TestBuilder, tar_with_files};
use crate::web_server::{FakeWebServer, PageResponse};

/// Returns a JSON request with a context of this URL and digest, which may begin with `sha256:`.
fn json_request_for_url(url: &str, digest: &str) -> Value {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    json!({"image": "registry:5000/hello:1", "context": {"url": url, "sha256": digits}})
}

#[tokio::test]
async fn a_context_on_a_web_server_is_built_like_one_in_a_body_and_no_server_gets_credentials() {
    let tar = context_tar();
    for packed in [
        tar.clone(),
        gzipped(&tar),
        zstd::stream::encode_all(&tar[..], 1).expect("zstd"),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let (server, storage) = (FakeWebServer::start().await, FakeWebServer::start().await);
        server.set_page("/fn.tar", PageResponse::Redirect(302, "/moved#fragment".into()));
        server.set_page(
            "/moved",
            PageResponse::Redirect(307, storage.url("/stored?signature=of-storage")),
        );
        storage.set_page("/stored", PageResponse::Chunked(packed.clone().into()));
        let builder = TestBuilder::new(daemon)
            .with_private_hosts_for_contexts_and_notifications(&format!("{},{}", server.host, storage.host));
        let request = json_request_for_url(&server.url("/fn.tar?signature=of-caller"), &digest_of(&packed));
        let answer = tokio::spawn(async move { send_json(&builder, &request).await });
        let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;
        assert_eq!(
            request_context_files_and_return_paths(&session).await,
            ["Dockerfile", "a"]
        );
        solve.answer_with_digest("sha256:12");
        drop(status);

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let log = answer.body["log"].to_string();
        assert!(
            log.contains(&format!("[context] fetch {}?…", server.url("/fn.tar"))),
            "{log}"
        );
        assert!(!log.contains("signature"), "{log}");
        let targets = |server: &FakeWebServer| {
            let requests = server.requests().into_iter();
            requests
                .map(|request| request.head.uri.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(targets(&server), ["/fn.tar?signature=of-caller", "/moved"]);
        assert_eq!(targets(&storage), ["/stored?signature=of-storage"]);
        for request in server.requests().iter().chain(&storage.requests()) {
            let mut names: Vec<_> = request.head.headers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["accept", "accept-encoding", "host", "user-agent"]);
        }
    }
}

/// The hosts that no caller makes the builder connect to, with the text of the rejection.
pub(crate) const FORBIDDEN_HOSTS: [(&str, &str); 24] = [
    ("127.0.0.1", "a loopback address"),
    ("127.255.255.254", "a loopback address"),
    ("localhost", "a name without a public address"),
    ("LOCALHOST.", "a name without a public address"),
    ("[::1]", "a loopback address"),
    ("[::ffff:127.0.0.1]", "a loopback address"),
    ("[64:ff9b::7f00:1]", "a loopback address"),
    ("0.0.0.0", "an address of this machine"),
    ("[::]", "an address for special purposes"),
    ("10.0.0.1", "a private address"),
    ("172.16.0.1", "a private address"),
    ("192.168.0.1", "a private address"),
    ("[fd00::1]", "a private address"),
    ("100.64.0.1", "a shared address"),
    ("169.254.169.254", "a link-local address or a metadata service"),
    ("169.254.170.2", "a link-local address or a metadata service"),
    ("168.63.129.16", "a link-local address or a metadata service"),
    ("100.100.100.200", "a link-local address or a metadata service"),
    ("[fe80::1]", "a link-local address or a metadata service"),
    ("[fd00:ec2::254]", "a private address"),
    ("metadata.google.internal", "a name without a public address"),
    ("metadata.goog", "a metadata service"),
    (
        "gateway.openfaas.svc.cluster.local",
        "a name without a public address",
    ),
    ("224.0.0.1", "a multicast or reserved address"),
];

/// Texts that are rejected as URLs, each with a part of the error.
pub(crate) const MALFORMED_URLS: [(&str, &str); 14] = [
    ("https://2130706433/a", "four decimal numbers"),
    ("https://0x7f000001/a", "four decimal numbers"),
    ("https://0177.0.0.1/a", "four decimal numbers"),
    ("https://127.1/a", "four decimal numbers"),
    ("https://%31%32%37.0.0.1/a", "should be a URL like https://HOST"),
    ("https://user:pass@example.com/a", "no user and no password"),
    ("https://example.com@127.0.0.1/a", "no user and no password"),
    ("https://example.com\\@127.0.0.1/a", "path without"),
    ("https://example.com/a\r\nHost: 127.0.0.1", "percent-encoded"),
    ("file:///etc/passwd", "begins with https://"),
    ("ftp://example.com/a", "begins with https://"),
    ("gopher://127.0.0.1:6379/_INFO", "begins with https://"),
    ("https:///a", "should be a URL like https://HOST"),
    ("https://example.com/files/%2e%2e/a", "path without"),
];

#[tokio::test]
async fn a_forbidden_or_malformed_context_url_is_rejected_directly_and_as_redirect_without_connecting() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (server, other) = (FakeWebServer::start().await, FakeWebServer::start().await);
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let port = other.host.rsplit_once(':').expect("a port").1;
    let digest = "0".repeat(64);
    let forbidden = FORBIDDEN_HOSTS.map(|(host, text)| (format!("http://{host}:{port}/a"), 403, text));
    let malformed = MALFORMED_URLS.map(|(url, text)| (url.to_owned(), 400, text));
    for (url, status, text) in forbidden.into_iter().chain(malformed) {
        let answer = complete_or_panic(send_json(&builder, &json_request_for_url(&url, &digest))).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, status, "{url}: {error}");
        assert!(
            error.contains("context.url") && error.contains(text),
            "{url}: {error}"
        );

        // A server that the caller may name leads no further than the caller.
        if url.bytes().all(|byte| byte.is_ascii_graphic()) {
            server.set_page("/a", PageResponse::Redirect(302, url.clone()));
            let request = json_request_for_url(&server.url("/a"), &digest);
            let answer = complete_or_panic(send_json(&builder, &request)).await;
            let error = answer.body["error"].as_str().unwrap_or_default();
            assert_eq!(answer.status, status, "a redirect to {url}: {error}");
            assert!(
                error.contains("context.url") && error.contains(text),
                "a redirect to {url}: {error}"
            );
        }
    }
    assert_eq!(other.requests().len(), 0, "no connection to a private address");
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
}

#[tokio::test]
async fn a_context_url_that_gives_no_usable_tar_is_the_callers_or_platforms_fault_and_builds_nothing() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    let builder = TestBuilder::new(daemon).with_private_hosts_for_contexts_and_notifications(&server.host);
    let tar = Bytes::from(context_tar());
    let digest = digest_of(&tar);
    let large = Bytes::from(vec![0; (1 << 20) + 1]);
    let no_dockerfile = Bytes::from(tar_with_files(&[("context/a", b"a")]));
    for (page, digest, status, text) in [
        (
            PageResponse::Status(404),
            &digest,
            400,
            "answered 404; it should answer 200",
        ),
        (PageResponse::Status(401), &digest, 403, "answered 401"),
        (PageResponse::Status(204), &digest, 400, "answered 204"),
        (PageResponse::Status(500), &digest, 502, "answered 500"),
        (PageResponse::Status(429), &digest, 502, "answered 429"),
        (
            PageResponse::Status(302),
            &digest,
            400,
            "redirects without saying where to",
        ),
        (
            PageResponse::Redirect(302, "/a".into()),
            &digest,
            400,
            "redirects too often",
        ),
        (
            PageResponse::Redirect(302, "http://user:pass@example.com/a".into()),
            &digest,
            400,
            "no user and no password",
        ),
        (
            PageResponse::Content(large.clone()),
            &digest_of(&large),
            413,
            "larger than 1048576 bytes",
        ),
        (
            PageResponse::Chunked(large.clone()),
            &digest_of(&large),
            413,
            "larger than 1048576 bytes",
        ),
        (
            PageResponse::BreakingOff(tar.clone()),
            &digest,
            502,
            "not received to its end",
        ),
        (
            PageResponse::Content("other".into()),
            &digest,
            400,
            "has the digest sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa and should have",
        ),
        (
            PageResponse::Content("hello".into()),
            &digest_of(b"hello"),
            400,
            "the fetched context: ",
        ),
        (
            PageResponse::Content(no_dockerfile.clone()),
            &digest_of(&no_dockerfile),
            400,
            "context/Dockerfile: not in the tar",
        ),
    ] {
        server.set_page("/a", page.clone());
        let request = json_request_for_url(&server.url("/a?secret"), digest);
        let answer = complete_or_panic(send_json(&builder, &request)).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, status, "{page:?}: {error}");
        assert!(
            error.contains(text) && !error.contains("secret"),
            "{page:?}: {error}"
        );
        assert_eq!(builder.spooled_bytes(), 0, "{page:?}");
    }
    assert!(calls.solves.try_recv().is_err(), "nothing reaches BuildKit");
}

#[tokio::test]
async fn an_http_context_url_is_rejected_by_a_builder_that_uses_tls_only() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let server = FakeWebServer::start().await;
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&server.host)
        .with_tls_only();
    let answer = send_json(
        &builder,
        &json_request_for_url(&server.url("/a"), &"0".repeat(64)),
    )
    .await;
    let error = answer.body["error"].as_str().unwrap_or_default();
    assert_eq!(answer.status, 400, "{error}");
    assert!(error.contains("should begin with https://"), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_tenant_with_listed_sources_fetches_contexts_from_those_only_also_by_redirects() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let (server, other) = (FakeWebServer::start().await, FakeWebServer::start().await);
    let policy = json!({"tenants": {"acme": {
        "keys": ["acme-payload"],
        "read": {"http": [server.url("/files/")]},
    }}});
    let builder = TestBuilder::new(daemon)
        .with_private_hosts_for_contexts_and_notifications(&format!("{},{}", server.host, other.host))
        .with_policy(&policy);
    builder.write_secret("acme-payload", "the payload key of acme");
    let tar = context_tar();
    server.set_page("/files/out", PageResponse::Redirect(302, other.url("/a?secret")));
    server.set_page("/files/up", PageResponse::Redirect(302, "/a".into()));
    server.set_page("/files/a", PageResponse::Content(tar.clone().into()));
    for url in [
        server.url("/a"),
        server.url("/files-b/a"),
        other.url("/files/a"),
        server.url("/files/out"),
        server.url("/files/up"),
    ] {
        let request = json_request_for_url(&url, &digest_of(&tar));
        let answer = send_json_signed_with(&builder, "the payload key of acme", &request).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, 403, "{url}: {error}");
        assert!(
            error.contains("context.url: ") && error.contains("read.http of tenant acme"),
            "{url}: {error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
    assert_eq!(other.requests().len(), 0);

    let request = json_request_for_url(&server.url("/files/a"), &digest_of(&tar));
    let answer =
        tokio::spawn(
            async move { send_json_signed_with(&builder, "the payload key of acme", &request).await },
        );
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    solve.answer_with_digest("sha256:12");
    drop(status);
    assert_eq!(answer.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn every_wrong_member_of_a_url_context_is_named_at_once() {
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let digest = "0".repeat(64);
    let oci = format!("r.example/a@sha256:{digest}");
    for (context, expected) in [
        (
            json!({"url": "ftp://example.com/a", "sha256": 1}),
            &[
                "context.url should be a URL that begins with https://",
                "context.sha256 should be the SHA-256",
            ][..],
        ),
        (
            json!({"url": "https://example.com/a"}),
            &["context.sha256 should be the SHA-256"],
        ),
        (
            json!({"sha256": digest}),
            &["context should have exactly one of oci, url, git"],
        ),
        (
            json!({"url": 1, "sha256": digest}),
            &["context.url should be a URL"],
        ),
        (
            json!({"url": "https://example.com/a", "oci": oci}),
            &["exactly one of oci, url, git"],
        ),
        (
            json!({"oci": oci, "sha256": digest}),
            &["context.sha256 belongs to context.url"],
        ),
        (
            json!({"url": "https://example.com/a", "sha256": format!("sha256:{digest}")}),
            &["64 lower-case hexadecimal digits"],
        ),
    ] {
        let request = json!({"image": "r.example/a", "context": context});
        let answer = send_json(&builder, &request).await;
        let error = answer.body["error"].as_str().unwrap_or_default();
        assert_eq!(answer.status, 400, "{request}: {error}");
        for text in expected {
            assert!(error.contains(text), "{request}: {error}");
        }
    }
}
