//! One trace for a build and its deployment, and builds with unusable collectors.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, http::HeaderMap, response::IntoResponse, routing::post};
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    collector::{ReceivedSpan, TraceCollector},
    deployer_process::DeployerProcess,
    testbed::Testbed,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};

const CALLER_TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER_SPAN_ID: &str = "00f067aa0ba902b7";

/// Secrets that must not appear in traces.
const SECRET_COLLECTOR_TOKEN: &str = "collectors-own-token";
const SECRET_BUILD_ARGUMENT: &str = "value-of-an-argument";
const SECRET_FILE_CONTENT: &str = "content-of-a-file";

/// A stand-in for the gateway that forwards calls of deployer-fn to a deployer process.
struct GatewayStub {
    url: String,
    serving: JoinHandle<()>,
}

impl GatewayStub {
    /// Starts a server that forwards hand-overs to this deployer.
    async fn start_forwarding_to(deployer: &DeployerProcess) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let to = format!("{}/", deployer.url());
        let pass = async move |headers: HeaderMap, body: Bytes| {
            let answer = http.post(to).headers(headers).body(body).send().await;
            let answer = answer.map_err(|error| (axum::http::StatusCode::BAD_GATEWAY, error.to_string()))?;
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            Ok::<_, (axum::http::StatusCode, String)>((status, text).into_response())
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = Router::new().route("/function/deployer-fn", post(pass));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self { url, serving })
    }
}

impl Drop for GatewayStub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The spans of one trace.
struct SpansOfTrace(Vec<ReceivedSpan>);

impl SpansOfTrace {
    /// Returns the child of `parent` with this name.
    fn child_of(&self, parent: &ReceivedSpan, name: &str) -> Result<&ReceivedSpan> {
        let found = self
            .0
            .iter()
            .find(|span| span.parent == parent.id && span.name == name);
        found.with_context(|| format!("no {name:?} within {:?} in {:#?}", parent.name, self.0))
    }

    /// Returns the descendant of `from` at the end of this path of names.
    fn descendant_of<'s>(
        &'s self,
        from: &'s ReceivedSpan,
        names_on_path: &[&str],
    ) -> Result<&'s ReceivedSpan> {
        names_on_path
            .iter()
            .try_fold(from, |span, name| self.child_of(span, name))
    }
}

#[tokio::test]
async fn a_build_and_its_deployment_are_one_trace_across_both_functions() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let name = "e2e-traces";
    testbed.functions.remove_function(name).await?;
    let collector = TraceCollector::start().await?;
    let endpoint = collector.url();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let headers = format!("authorization=Bearer%20{SECRET_COLLECTOR_TOKEN}");
    let deployer = DeployerProcess::start_with_more_secrets(
        &testbed,
        &testbed.stack.gateway.url,
        &settings,
        &[("otel-headers", headers.clone())],
    )
    .await?;
    let gateway = GatewayStub::start_forwarding_to(&deployer).await?;
    let registry = &testbed.stack.registry;
    let docker_config = slipway_e2e::registry::RegistryClient::docker_config(
        &registry.host,
        &registry.user,
        &registry.password,
    );
    let mut builder_settings = settings.to_vec();
    builder_settings.push(("gateway_url", &gateway.url));
    let builder = BuilderProcess::start_with_secrets_replacing_registry_config(
        &testbed,
        &builder_settings,
        &[("otel-headers", &headers), ("registry-config", &docker_config)],
    )
    .await?;

    let at = format!("{:?}", SystemTime::now());
    let config = json!({
        "image": testbed.image_name(&format!("e2e/{name}"), "1"),
        "buildArgs": { "AT": at, "SHOWN": SECRET_BUILD_ARGUMENT, "JOBS": "4" },
        "deploy": { "service": name },
        "probe": { "path": "/index.html" },
    });
    let dockerfile = format!(
        "FROM {base}\nARG AT\nARG SHOWN\nARG JOBS\nRUN echo $AT $SHOWN -j $JOBS > /at\nCOPY www /www\nUSER 1000\nEXPOSE 8080\n\
         CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
    );
    let source = BuildContext::static_page_function(base, SECRET_FILE_CONTENT);
    let tar = source
        .with_dockerfile(&dockerfile)
        .tar_with_config_last(&config)?;
    let parent = format!("00-{CALLER_TRACE_ID}-{CALLER_SPAN_ID}-01");
    let reply = builder
        .build_client_with_own_key()?
        .post_signed_with_headers(tar, &[("traceparent", &parent), ("X-Call-Id", "traced-1")])
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    collector
        .wait_for_span_and_get_trace_received_so_far("builder-fn", "POST /build", |span| {
            span.trace == CALLER_TRACE_ID
        })
        .await?;
    // The deployer has two requests: the dry run, and the hand-over, which has the deployment.
    let spans = collector
        .wait_for_span_and_get_trace_received_so_far("deployer-fn", "deployment", |span| {
            span.trace == CALLER_TRACE_ID
        })
        .await?;
    let hand_over = spans
        .into_iter()
        .find(|span| span.name == "deployment")
        .context("no span of the deployment")?
        .parent;
    collector
        .wait_for_span_and_get_trace_received_so_far("deployer-fn", "POST /", |span| span.id == hand_over)
        .await?;
    let all = collector.received_spans();
    let trace = SpansOfTrace(
        all.iter()
            .filter(|span| span.trace == CALLER_TRACE_ID)
            .cloned()
            .collect(),
    );
    assert_eq!(trace.0.len(), all.len(), "more than one trace: {all:#?}");
    let known = |id: &str| id == CALLER_SPAN_ID || trace.0.iter().any(|span| span.id == id);
    for span in &trace.0 {
        assert!(known(&span.parent), "the parent of {span:?} is missing: {all:#?}");
        // A function that is starting may be asked too early.
        let is_asking = matches!(&*span.name, "probe" | "GET /function" | "GET /system/function");
        assert!(is_asking || span.error.is_none(), "{span:?}");
    }

    // The builder's spans.
    let root = trace
        .0
        .iter()
        .find(|span| span.parent == CALLER_SPAN_ID)
        .context("no span of the request")?;
    assert_eq!((&*root.service, &*root.name), ("builder-fn", "POST /build"));
    assert_eq!(root.attribute("faas.invocation_id").as_deref(), Some("traced-1"));
    assert_eq!(
        root.attribute("http.response.status_code").as_deref(),
        Some("200")
    );
    trace.child_of(root, "receive")?;
    trace.descendant_of(root, &["build", "queue"])?;
    let solve = trace.descendant_of(root, &["build", "solve"])?;
    let run = trace.child_of(solve, "[2/3] RUN echo *** *** -j *** > /at")?;
    assert_eq!(run.attribute("buildkit.cached").as_deref(), Some("false"));
    assert!(
        run.duration_ns > 0 && run.duration_ns < solve.duration_ns,
        "{run:?} in {solve:?}"
    );
    trace.child_of(solve, "[3/3] COPY www /www")?;
    trace.child_of(solve, "exporting to image")?;
    trace.child_of(solve, "pushing layers")?;

    // The deployer's spans, below the builder's call.
    let deployment = trace.descendant_of(
        root,
        &["build", "deploy", "POST /function", "POST /", "deployment"],
    )?;
    assert_eq!(deployment.service, "deployer-fn");
    assert_eq!(
        deployment.attribute("slipway.function"),
        Some(format!("{name}.openfaas-fn"))
    );
    assert_eq!(deployment.attribute("slipway.status").as_deref(), Some("ready"));
    for step in ["queue", "check image", "check", "apply", "watch"] {
        assert_eq!(trace.child_of(deployment, step)?.service, "deployer-fn");
    }
    trace.descendant_of(deployment, &["apply", "PUT /system/functions"])?;
    trace.descendant_of(deployment, &["watch", "GET /system/function"])?;
    trace.descendant_of(deployment, &["watch", "probe", "GET /function"])?;

    // A failed build has the error in its spans.
    let failing = BuildContext::dockerfile(format!("FROM {base}\nARG SHOWN\nRUN echo $SHOWN $AT; exit 3\n")).tar_with_config_last(&json!({
        "image": testbed.image_name(&format!("e2e/{name}"), "1"), "buildArgs": { "SHOWN": SECRET_BUILD_ARGUMENT }, "skipPush": true,
    }))?;
    assert_eq!(
        builder
            .build_client_with_own_key()?
            .post_signed(failing)
            .await?
            .status,
        422
    );
    let failed = collector
        .wait_for_span_and_get_trace_received_so_far("builder-fn", "POST /build", |span| {
            span.trace != CALLER_TRACE_ID
        })
        .await?;
    let failed = SpansOfTrace(failed);
    let root = failed
        .0
        .iter()
        .find(|span| span.name == "POST /build")
        .context("no span of the failed request")?;
    assert_eq!(
        (&*root.parent, &root.error),
        ("", &None),
        "an error of the caller is not an error of the server"
    );
    let solve = failed.descendant_of(root, &["build", "solve"])?;
    assert!(
        solve
            .error
            .as_ref()
            .is_some_and(|error| error.contains("exit code: 3")),
        "{solve:?}"
    );
    let step = failed
        .0
        .iter()
        .find(|span| span.name.contains("RUN"))
        .context("no span of the failed step")?;
    assert!(step.error.is_some(), "{step:?}");

    // The collector's token is sent, and no secret is in the spans.
    let headers = collector.export_headers();
    assert!(
        headers
            .iter()
            .all(|headers| headers["authorization"] == format!("Bearer {SECRET_COLLECTOR_TOKEN}"))
    );
    let spans = format!("{:?}", collector.received_spans());
    let key = |path: &std::path::Path| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let secrets = [
        SECRET_COLLECTOR_TOKEN,
        SECRET_BUILD_ARGUMENT,
        SECRET_FILE_CONTENT,
        &registry.password,
        &testbed.stack.gateway.password,
        &key(&testbed.stack.payload_secret)?,
        &key(&testbed.stack.deploy_secret)?,
    ];
    // With faasd, the registry has no password.
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!spans.contains(secret), "{secret:?} is in {spans}");
    }
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_collector_that_refuses_connections_or_hangs_affects_neither_builds_nor_the_shutdown() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await?;
    // A bound socket that does not listen refuses connections, and nobody else gets its port.
    let bound = TcpSocket::new_v4()?;
    bound.bind("127.0.0.1:0".parse()?)?;
    let (hanging, refusing) = (silent.local_addr()?, bound.local_addr()?);
    for address in [hanging, refusing] {
        let endpoint = format!("http://{address}");
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300000"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            ("healthcheck_interval", "0s"),
        ];
        let mut builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
        let config = json!({ "image": testbed.image_name("e2e/traces-nowhere", "1"), "skipPush": true });
        for number in 0..3 {
            let source = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
                .with_file("a", format!("{number} {address}"));
            let reply = builder
                .build_client_with_own_key()?
                .post_signed(source.tar_with_config_last(&config)?)
                .await?;
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
        // Much less than the timeout of an export, which is five minutes here.
        builder.send_sigterm()?;
        let status = builder.wait_until_exited(Duration::from_secs(120)).await?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}
