//! Links open what they name, for reading, for some time, and nothing else.

use function_host::http::Method;
use function_host::{Body, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{
    BROWSER_ACCEPT_HEADER, build_successfully, build_with_statuses, builder_with_build_and_page_addresses,
    open_in_browser, page_address_of, send_unsigned_request,
    statuses_with_step_output_cached_step_and_context,
};
use crate::builds::{answer_statuses_holding_back_the_last, ask, signed_bodyless_request};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::setting::{CALL_ID, PAYLOAD_KEY, TestBuilder, request_tar_with};

/// Starts a build that runs until its solve is answered. Returns the address of its log with a link.
async fn start_build_and_return_log_address(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
) -> (String, SolveCall) {
    answer_statuses_holding_back_the_last(
        calls,
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &["x"]),
    );
    let own = builder.clone();
    tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let asked = ask(builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    (page_address_of(&asked).replace('?', "/log?"), solve)
}

async fn open_log(builder: &TestBuilder, address: &str) -> Response {
    let mut request = Request::new(Body::from(Vec::new()));
    *request.uri_mut() = address.parse().expect("an address");
    builder.send_request(request).await
}

#[tokio::test]
async fn at_most_eight_readers_use_one_link_and_signed_readers_are_still_accepted() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let (address, _solve) = start_build_and_return_log_address(&builder, &mut calls).await;
    let mut readers = Vec::new();
    for _ in 0..8 {
        let reader = open_log(&builder, &address).await;
        assert_eq!(reader.status(), 200);
        readers.push(reader);
    }
    assert_eq!(open_log(&builder, &address).await.status(), 429);
    assert_eq!(
        open_in_browser(&builder, &address.replace("/log?", "?"))
            .await
            .status,
        429
    );
    let signed = signed_bodyless_request(PAYLOAD_KEY, Method::GET, &format!("/builds/{CALL_ID}/log"), "*/*");
    assert_eq!(builder.send_request(signed).await.status(), 200);
    drop(readers);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_followed_with_a_link_ends_when_the_link_expires() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_page_link_lifetime(std::time::Duration::from_secs(40));
    let (address, _solve) = start_build_and_return_log_address(&builder, &mut calls).await;
    let log = open_log(&builder, &address).await;
    assert_eq!(log.status(), 200);
    let body = complete_or_panic(log.into_body().collect())
        .await
        .expect("a body");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8");
    let lines: Vec<_> = text.lines().collect();
    let (last, lines) = lines.split_last().expect("lines");
    assert!(lines.iter().any(|line| line.contains("RUN make")), "{text}");
    let last: Value = serde_json::from_str(last).expect("a record");
    assert_eq!(last["status"], "in_progress", "{last}");
    assert_eq!(last["continueFrom"], lines.len() + 1, "{last}");
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|error| error.starts_with("the link has expired")),
        "{last}"
    );
}

#[tokio::test]
async fn answers_to_links_have_headers_against_caching_framing_and_leaked_referrers() {
    let (builder, _calls, address, list) =
        builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    let (path, link) = address.split_once('?').expect("a link");
    for (address, accept) in [
        (address.clone(), BROWSER_ACCEPT_HEADER),
        (list, BROWSER_ACCEPT_HEADER),
        (address.clone(), "application/json"),
        (format!("{path}/log?{link}"), "text/plain"),
        (format!("{path}/log?{link}"), "text/event-stream"),
    ] {
        let page = send_unsigned_request(&builder, Method::GET, &address, accept).await;
        assert_eq!(page.status, 200, "{address} {accept}");
        for (name, value) in [
            ("cache-control", "private, no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(page.headers[name], value, "{address} {accept}");
        }
        let policy = page.headers["content-security-policy"].to_str().expect("text");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(!page.headers.contains_key("set-cookie"));
        assert!(
            !page.body.contains("://") || accept != BROWSER_ACCEPT_HEADER,
            "no address of anything else: {}",
            page.body
        );
    }
}

#[tokio::test]
async fn a_link_opens_what_it_names_for_reading_and_nothing_else() {
    let (builder, mut calls, address, list) =
        builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    let other = builder.with_call_id("other");
    let answer = build_successfully(&other, &mut calls).await;
    assert_eq!(answer.status, 200);
    let (_, one) = address.split_once('?').expect("a link");
    let (_, all) = list.split_once('?').expect("a link");
    for (method, path, link, status) in [
        (Method::GET, format!("/builds/{CALL_ID}"), one, 200),
        (Method::GET, format!("/builds/{CALL_ID}/log"), one, 200),
        (Method::GET, "/builds/other".into(), one, 401),
        (Method::GET, "/builds/other/log".into(), one, 401),
        (Method::GET, "/builds".into(), one, 401),
        (Method::DELETE, format!("/builds/{CALL_ID}"), one, 401),
        (Method::GET, "/builds".into(), all, 200),
        (Method::GET, "/builds/other".into(), all, 200),
        (Method::GET, "/builds/other/log".into(), all, 200),
        (Method::GET, "/builds/nobody".into(), all, 404),
        (Method::DELETE, "/builds/other".into(), all, 401),
        (Method::POST, "/build".into(), all, 401),
        (Method::GET, "/builds/other".into(), "link=", 401),
        (Method::GET, "/builds/other".into(), "x=y", 401),
    ] {
        for accept in [BROWSER_ACCEPT_HEADER, "application/json"] {
            let page =
                send_unsigned_request(&builder, method.clone(), &format!("{path}?{link}"), accept).await;
            assert_eq!(
                page.status.as_u16(),
                status,
                "{method} {path} {link} {accept}: {}",
                page.body
            );
            let secret = link.rsplit('.').next().expect("a signature");
            assert!(
                status == 200 || secret.len() < 64 || !page.body.contains(secret),
                "the link is not repeated"
            );
        }
    }
    // The page of one build neither names the others nor links to them; a link to all does.
    let page = open_in_browser(&builder, &address).await.body;
    assert!(
        page.contains("Last builds") && !page.contains("other?") && !page.contains("builds?"),
        "{page}"
    );
    let page = open_in_browser(&builder, &format!("/builds/{CALL_ID}?{all}"))
        .await
        .body;
    assert!(
        page.contains("href=\"other?link=builds.") && page.contains("href=\"../builds?link=builds."),
        "{page}"
    );
    // A link renews no link.
    let json = send_unsigned_request(
        &builder,
        Method::GET,
        &format!("/builds/{CALL_ID}?{all}"),
        "application/json",
    )
    .await;
    assert!(!json.body.contains("\"page\""), "{}", json.body);
}

#[tokio::test]
async fn a_link_is_rejected_once_its_key_is_removed_or_its_time_has_expired() {
    let (builder, _calls, address, _) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    builder.write_secret("payload-secret", "the new key\npayload key\n");
    assert_eq!(
        open_in_browser(&builder, &address).await.status,
        200,
        "during the rotation"
    );
    builder.write_secret("payload-secret", "the new key\n");
    let page = open_in_browser(&builder, &address).await;
    assert_eq!(page.status, 401);
    assert!(page.body.contains("slipway open"), "{}", page.body);

    let (builder, _calls, address, _) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    let short = builder.with_page_link_lifetime(std::time::Duration::from_secs(1));
    let page = open_in_browser(&short, &address).await;
    assert_eq!(
        page.status, 401,
        "a link for a longer time than the setting allows"
    );
    assert!(page.body.contains("has expired"), "{}", page.body);
    assert_eq!(page.headers["cache-control"], "private, no-store");
}

#[tokio::test]
async fn a_tenants_link_shows_its_own_builds_only() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    builder.write_secret("acme-payload", "the payload key of acme");
    builder.write_secret("globex-payload", "the payload key of globex");
    let builder = builder.with_policy(&json!({"tenants": {
        "acme": {"keys": ["acme-payload"], "push": ["registry:5000/acme/"]},
        "globex": {"keys": ["globex-payload"], "push": ["registry:5000/globex/"]},
    }}));
    answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_with_step_output_cached_step_and_context("[1/1] RUN make", &["x"]),
    )
    .send_replace(true);
    let mut pages = Vec::new();
    for name in ["acme", "globex"] {
        let own = builder.clone();
        let tar = request_tar_with(json!({"image": format!("registry:5000/{name}/hello:1")}));
        let key = format!("the payload key of {name}");
        let build = tokio::spawn(async move { own.send_build_signed_with(&key, None, tar).await });
        let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
        solve.answer_with_digest("sha256:12");
        let answer = complete_or_panic(build).await.expect("no panic");
        assert_eq!(answer.status, 200, "{answer:?}");
        pages.push(page_address_of(&answer.body).to_owned());
    }
    for (address, own, other) in [(&pages[0], "acme", "globex"), (&pages[1], "globex", "acme")] {
        let page = open_in_browser(&builder, address).await;
        assert_eq!(page.status, 200);
        assert!(
            page.body.contains(&format!("registry:5000/{own}/hello:1")),
            "{}",
            page.body
        );
        assert!(!page.body.contains(&format!("{other}/hello")), "{}", page.body);
        let stolen = open_in_browser(&builder, &address.replace(own, other)).await;
        assert_eq!(stolen.status, 401);
    }
}

#[tokio::test]
async fn a_request_without_link_or_signature_is_rejected_without_reading_keys_or_sending_scripts() {
    let (builder, _calls, ..) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    // A key that was read would be found to be empty.
    builder.write_secret("payload-secret", "");
    for path in ["/builds".to_owned(), format!("/builds/{CALL_ID}")] {
        let page = open_in_browser(&builder, &path).await;
        assert_eq!(page.status, 401);
        assert!(
            !page.body.contains("<script") && page.body.len() < 8000,
            "{}",
            page.body
        );
        let json = send_unsigned_request(&builder, Method::GET, &path, "application/json").await;
        assert_eq!(json.status, 401, "{}", json.body);
    }
}

#[tokio::test]
async fn the_list_of_builds_is_open_without_a_link_where_signatures_are_disabled() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    let answer = build_with_statuses(
        &builder,
        &mut calls,
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &["x"]),
    )
    .await;
    assert_eq!(answer.status, 200);
    let open_builder = builder.with_signatures_disabled();
    let page = open_in_browser(&open_builder, "/builds").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("Builds"), "{}", page.body);
}
