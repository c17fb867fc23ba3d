//! Tests of the pages of builds, and of the links that open them.

mod links;
mod log_parts;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus};
use function_host::http::{HeaderMap, Method, StatusCode};
use function_host::{Body, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::builds::{answer_statuses_holding_back_the_last, ask, signed_bodyless_request};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls};
use crate::secrets::{recorded_secrets, tar_with_sealed_secrets};
use crate::setting::{AnswerStatusAndBody, CALL_ID, PAYLOAD_KEY, TestBuilder, request_tar_with};

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
fn statuses_with_step_output_cached_step_and_context(
    step_name: &str,
    output_lines: &[&str],
) -> Vec<StatusResponse> {
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
) -> AnswerStatusAndBody {
    answer_statuses_holding_back_the_last(calls, statuses).send_replace(true);
    build_successfully(builder, calls).await
}

/// Builds at `builder`, and returns the answer to the build.
async fn build_successfully(builder: &TestBuilder, calls: &mut DaemonCalls) -> AnswerStatusAndBody {
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

/// Returns a builder that has built once, with its daemon's calls and the addresses of the build's page and of the
/// list.
async fn builder_with_build_and_page_addresses(
    step_name: &str,
    output_lines: &[&str],
) -> (TestBuilder, DaemonCalls, String, String) {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon).with_one_minute_log_wait_for_pages();
    let answer = build_with_statuses(
        &builder,
        &mut calls,
        statuses_with_step_output_cached_step_and_context(step_name, output_lines),
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
        statuses_with_step_output_cached_step_and_context("[2/2] RUN make", &lines),
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
    let mut statuses = statuses_with_step_output_cached_step_and_context(
        &format!("[2/2] RUN login --token {secret} && make"),
        &[secret],
    );
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

#[tokio::test]
async fn a_signed_question_of_a_program_that_also_accepts_html_is_answered_with_json() {
    let (builder, _calls, ..) = builder_with_build_and_page_addresses("[2/2] RUN make", &["x"]).await;
    for path in [format!("/builds/{CALL_ID}"), "/builds".to_owned()] {
        let java = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2";
        let request = signed_bodyless_request(PAYLOAD_KEY, Method::GET, &path, java);
        let answer =
            AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(request).await).await;
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
        statuses_with_step_output_cached_step_and_context(HOSTILE_HTML, &output),
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
