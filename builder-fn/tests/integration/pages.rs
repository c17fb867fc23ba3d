//! Tests of the pages of builds, and of the links that open them.

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus};
use function_host::http::{HeaderMap, Method, StatusCode};
use function_host::{Body, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::builds::{answer_statuses_holding_back_the_last, ask, signed_question};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::secrets::{recorded_secrets, tar_with_sealed_secrets};
use crate::setting::{Answer, CALL_ID, PAYLOAD_KEY, TestBuilder, request_tar_with};

/// The media types that a browser accepts.
const BROWSER_ACCEPT_HEADER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// A page, or another answer to a request without a signature.
struct ResponseToUnsignedRequest {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

/// Requests what an address names, as a browser does.
async fn send_unsigned_request(
    builder: &TestBuilder,
    method: Method,
    address: &str,
    accept: &str,
) -> ResponseToUnsignedRequest {
    let mut request = Request::new(Body::from(Vec::new()));
    *request.method_mut() = method;
    *request.uri_mut() = address.parse().expect("an address");
    request
        .headers_mut()
        .insert("accept", accept.parse().expect("header"));
    let (head, body) = builder.send_request(request).await.into_parts();
    let body = complete_or_panic(body.collect())
        .await
        .expect("a body")
        .to_bytes();
    ResponseToUnsignedRequest {
        status: head.status,
        headers: head.headers,
        body: String::from_utf8(body.to_vec()).expect("UTF-8"),
    }
}

/// Requests an address with the media types that a browser accepts, and returns the answer.
async fn open_in_browser(builder: &TestBuilder, address: &str) -> ResponseToUnsignedRequest {
    send_unsigned_request(builder, Method::GET, address, BROWSER_ACCEPT_HEADER).await
}

fn some_timestamp_after_start(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: 1_790_000_000 + seconds,
        nanos: 0,
    })
}

/// Returns the status of a build with a step of this name and its output, a cached step and a transferred context.
fn statuses_with_step_and_output(step_name: &str, output_lines: &[&str]) -> Vec<StatusResponse> {
    let step = |completed| Vertex {
        digest: "sha256:1".into(),
        name: step_name.into(),
        started: some_timestamp_after_start(1),
        completed,
        ..Vertex::default()
    };
    let cached = Vertex {
        digest: "sha256:0".into(),
        name: "[1/2] FROM registry/base:1".into(),
        started: some_timestamp_after_start(0),
        completed: some_timestamp_after_start(0),
        cached: true,
        ..Vertex::default()
    };
    let context = Vertex {
        digest: "sha256:c".into(),
        name: "[internal] load build context".into(),
        started: some_timestamp_after_start(0),
        completed: some_timestamp_after_start(1),
        ..Vertex::default()
    };
    let sent = VertexStatus {
        id: "transferring context:".into(),
        vertex: "sha256:c".into(),
        current: 2500,
        timestamp: some_timestamp_after_start(1),
        ..VertexStatus::default()
    };
    let logs = output_lines.iter().map(|line| VertexLog {
        vertex: "sha256:1".into(),
        timestamp: some_timestamp_after_start(2),
        stream: 1,
        msg: format!("{line}\n").into(),
    });
    vec![
        StatusResponse {
            vertexes: vec![cached, context, step(None)],
            statuses: vec![sent],
            ..StatusResponse::default()
        },
        StatusResponse {
            logs: logs.collect(),
            ..StatusResponse::default()
        },
        StatusResponse {
            vertexes: vec![step(some_timestamp_after_start(9))],
            ..StatusResponse::default()
        },
    ]
}

/// Builds at `builder` with these statuses, and returns the answer to the build.
async fn build_with_statuses(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    statuses: Vec<StatusResponse>,
) -> Answer {
    answer_statuses_holding_back_the_last(calls, statuses).send_replace(true);
    build_successfully(builder, calls).await
}

/// Builds at `builder`, and returns the answer to the build.
async fn build_successfully(builder: &TestBuilder, calls: &mut DaemonCalls) -> Answer {
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic")
}

/// Returns the address of the page that an answer names.
fn page_address_of(body: &Value) -> &str {
    body["page"].as_str().expect("the address of a page")
}

/// Returns a builder that has built once, with its daemon's calls and the addresses of the build's page and of the list.
async fn builder_with_build_and_page_addresses(
    step_name: &str,
    output_lines: &[&str],
) -> (TestBuilder, DaemonCalls, String, String) {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    let answer = build_with_statuses(
        &builder,
        &mut calls,
        statuses_with_step_and_output(step_name, output_lines),
    )
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = ask(&builder, Method::GET, "/builds").await.body;
    (
        builder,
        calls,
        page_address_of(&answer.body).to_owned(),
        page_address_of(&list).to_owned(),
    )
}

#[tokio::test]
async fn the_page_of_a_finished_build_shows_its_result_steps_and_log_without_a_script() {
    let (builder, _calls, address, _) =
        builder_with_build_and_page_addresses("[2/2] RUN make", &["compiling", "done"]).await;
    assert!(
        address.starts_with(&format!("/builds/{CALL_ID}?link=build.")),
        "{address}"
    );
    let page = open_in_browser(&builder, &address).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    for text in [
        "registry:5000/hello:1",
        "sha256:12",
        ">success<",
        "[2/2] RUN make",
        "[1/2] FROM registry/base:1",
        ">cached<",
        ">8.00 s<",
        ">compiling<",
        "2.5 kB sent to BuildKit",
        "2 layers, 3.0 MB",
        &format!("{CALL_ID}/log?link=build."),
    ] {
        assert!(page.body.contains(text), "{text}: {}", page.body);
    }
    assert!(!page.body.contains("http-equiv"), "it does not load itself again");
    assert!(page.body.len() < 60_000, "{}", page.body.len());
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    assert!(page_address_of(&asked).starts_with(&format!("/builds/{CALL_ID}?link=build.")));
    assert!(
        asked["context"]["bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 1000),
        "{asked}"
    );
}

#[tokio::test]
async fn the_page_of_a_failed_build_shows_its_error_first_and_the_end_or_asked_part_of_its_log() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &lines),
    )
    .send_replace(true);
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_error(tonic::Status::unknown(
        "process \"make\" <did> not complete: exit code: 2",
    ));
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 422);

    let address = page_address_of(&answer.body);
    let page = open_in_browser(&builder, address).await.body;
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}: {page}"));
    assert!(place("What failed") < place("Steps"));
    assert!(place("&lt;did&gt; not complete") < place("Steps"));
    assert!(page.contains(">line 999<") && !page.contains(">line 0<"));
    let first = open_in_browser(&builder, &format!("{address}&from=1")).await.body;
    assert!(first.contains(">line 0<") && !first.contains(">line 999<"));
    assert!(first.contains("from=301#log"), "{first}");
    let middle = open_in_browser(&builder, &format!("{address}&from=500"))
        .await
        .body;
    assert!(middle.contains(r#"id="L500""#) && !middle.contains(r#"id="L499""#));
    let wrong = open_in_browser(&builder, &format!("{address}&from=x")).await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn secrets_in_the_names_of_steps_are_masked_on_the_page() {
    let recorded = recorded_secrets();
    let values = recorded["values"].as_object().expect("values").values();
    let mut values = values.filter_map(Value::as_str).map(str::trim_end);
    let secret = values.find(|value| !value.contains('\n')).expect("a secret");
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let key = recorded["private_key"].as_str().expect("a key");
    let builder = TestBuilder::new(daemon)
        .with_one_minute_log_wait_for_pages()
        .with_seal_key(key);
    let mut statuses =
        statuses_with_step_and_output(&format!("[2/2] RUN login --token {secret} && make"), &[secret]);
    statuses[0].statuses.push(VertexStatus {
        id: format!("pushing manifest for registry/{secret}"),
        vertex: "sha256:1".into(),
        started: some_timestamp_after_start(3),
        completed: some_timestamp_after_start(4),
        ..VertexStatus::default()
    });
    answer_statuses_holding_back_the_last(&mut calls, statuses).send_replace(true);
    let own = builder.clone();
    let tar = tar_with_sealed_secrets(recorded["sealed"].as_str().expect("an envelope"));
    let build = tokio::spawn(async move { own.send_signed_build(tar).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_digest("sha256:12");
    let answer = complete_or_panic(build).await.expect("no panic");
    let page = open_in_browser(&builder, page_address_of(&answer.body)).await;
    assert_eq!(page.status, 200);
    assert!(
        page.body.contains("RUN login --token *** &amp;&amp; make"),
        "{}",
        page.body
    );
    assert!(
        page.body.contains("pushing manifest for registry/***"),
        "{}",
        page.body
    );
    assert!(!page.body.contains(secret), "{}", page.body);
}

/// Fails a build with these statuses, of which later readers do not get the last one. Returns the address of its page.
async fn page_address_of_failed_build_without_log_end(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
    statuses: Vec<StatusResponse>,
) -> String {
    let ended = answer_statuses_holding_back_the_last(calls, statuses);
    ended.send_replace(true);
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_error(tonic::Status::unknown("it failed"));
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 422);
    ended.send_replace(false);
    page_address_of(&answer.body).to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_page_of_a_failed_build_says_that_its_log_was_not_read_to_its_end_in_time() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let address = page_address_of_failed_build_without_log_end(
        &builder,
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &lines),
    )
    .await;
    let page = open_in_browser(&builder, &address).await.body;
    assert!(
        page.contains(r#"id="load""#) && page.contains("from=end#log"),
        "{page}"
    );
    assert!(!page.contains(">This is the end of the log"), "{page}");
    // The part that the address names is waited for longer.
    let end = open_in_browser(&builder, &format!("{address}&from=end"))
        .await
        .body;
    assert!(end.contains(">line 999<") && !end.contains(">line 0<"), "{end}");
    assert!(end.contains("these are the last lines so far"), "{end}");
}

#[tokio::test(start_paused = true)]
async fn the_page_of_a_build_whose_log_was_not_read_does_not_say_that_it_has_no_lines() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let mut statuses = statuses_with_step_and_output("[2/2] RUN make", &["x"]);
    let last = statuses.pop().expect("a response");
    let address = page_address_of_failed_build_without_log_end(&builder, &mut calls, vec![last]).await;
    let page = open_in_browser(&builder, &address).await.body;
    assert!(
        page.contains("The log is not read yet") && page.contains(r#"id="load""#),
        "{page}"
    );
    assert!(
        !page.contains("There are no lines") && !page.contains(">This is the end"),
        "{page}"
    );
}

/// Starts a build that runs until its solve is answered. Returns the address of its log with a link.
async fn start_build_and_return_log_address(
    builder: &TestBuilder,
    calls: &mut DaemonCalls,
) -> (String, SolveCall) {
    answer_statuses_holding_back_the_last(calls, statuses_with_step_and_output("[2/2] RUN make", &["x"]));
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
    let signed = signed_question(PAYLOAD_KEY, Method::GET, &format!("/builds/{CALL_ID}/log"), "*/*");
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
async fn a_signed_question_of_a_program_that_also_accepts_html_is_answered_with_json() {
    let (builder, _calls, ..) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    for path in [format!("/builds/{CALL_ID}"), "/builds".to_owned()] {
        let java = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2";
        let request = signed_question(PAYLOAD_KEY, Method::GET, &path, java);
        let answer = Answer::from_response(builder.send_request(request).await).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.is_object(), "{answer:?}");
    }
}

#[tokio::test]
async fn hostile_text_from_callers_is_escaped_on_pages() {
    const HOSTILE_HTML: &str =
        "</title></pre></summary><script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>";
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let id = "a\"><script>alert(1)<";
    let builder = TestBuilder::new(daemon)
        .with_one_minute_log_wait_for_pages()
        .with_call_id(id);
    let output = [
        HOSTILE_HTML,
        "\u{1b}[31m<script>\u{1b}[0m",
        "\u{202e}\u{1b}]0;<script>\u{7}",
    ];
    let answer = build_with_statuses(
        &builder,
        &mut calls,
        statuses_with_step_and_output(HOSTILE_HTML, &output),
    )
    .await;
    let page = open_in_browser(&builder, page_address_of(&answer.body)).await;
    assert_eq!(page.status, 200);
    let list = ask(&builder, Method::GET, "/builds").await.body;
    let list = open_in_browser(
        &builder,
        &format!("{}&function={}", page_address_of(&list), "%22%3E%3Cscript%3E"),
    )
    .await;
    assert_eq!(list.status, 200);
    for (body, scripts) in [(&page.body, 1), (&list.body, 0)] {
        assert_eq!(body.matches("<script").count(), scripts, "{body}");
        assert!(
            !body.contains("<img") && !body.contains("<b>") && !body.contains('\u{202e}'),
            "{body}"
        );
    }
    assert!(page.body.contains("&lt;img src=x onerror=alert(1)&gt;"));
    assert!(page.body.contains("&lt;U+202E&gt;"));
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
        statuses_with_step_and_output("[1/1] RUN make", &["x"]),
    )
    .send_replace(true);
    let mut pages = Vec::new();
    for name in ["acme", "globex"] {
        let own = builder.clone();
        let tar = request_tar_with(json!({"image": format!("registry:5000/{name}/hello:1")}));
        let key = format!("the payload key of {name}");
        let build = tokio::spawn(async move { own.send_signed_build_as(&key, None, tar).await });
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
async fn the_list_shows_builds_with_their_states_and_is_filtered() {
    let (builder, _calls, _, list) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    let page = open_in_browser(&builder, &list).await;
    assert_eq!(page.status, 200);
    for text in [
        "registry:5000/hello:1",
        ">success<",
        &format!("href=\"builds/{CALL_ID}?link=builds."),
    ] {
        assert!(page.body.contains(text), "{text}: {}", page.body);
    }
    let page = open_in_browser(&builder, &format!("{list}&state=failed&function=&image=")).await;
    assert!(
        !page.body.contains(CALL_ID) && page.body.contains("<option selected>failed"),
        "{}",
        page.body
    );
    assert_eq!(
        open_in_browser(&builder, &format!("{list}&state=x")).await.status,
        400
    );
    let page = open_in_browser(&builder, &list.replace("/builds?", "/builds/?")).await;
    assert!(
        page.body.contains(&format!("href=\"{CALL_ID}?link=builds.")),
        "{}",
        page.body
    );
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
async fn the_page_of_a_running_build_reloads_itself_in_browsers_without_scripts() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon);
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &["x"]),
    );
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    let page = open_in_browser(&builder, page_address_of(&asked)).await.body;
    assert!(
        page.contains("<noscript><meta http-equiv=\"refresh\"") && page.contains("data-live"),
        "{page}"
    );
    ended.send_replace(true);
    solve.answer_with_digest("sha256:12");
    complete_or_panic(build).await.expect("no panic");
}

#[tokio::test]
async fn the_list_of_builds_is_open_without_a_link_where_signatures_are_disabled() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    let answer = build_with_statuses(
        &builder,
        &mut calls,
        statuses_with_step_and_output("[2/2] RUN make", &["x"]),
    )
    .await;
    assert_eq!(answer.status, 200);
    let open_builder = builder.with_signatures_disabled();
    let page = open_in_browser(&open_builder, "/builds").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("Builds"), "{}", page.body);
}
