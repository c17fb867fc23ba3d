//! One build and its deployment as one trace, and collectors that are of no use.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, http::HeaderMap, response::IntoResponse, routing::post};
use serde_json::json;
use slipway_e2e::{
    collector::{Collector, Span},
    deployer::PlainDeployer,
    plain::PlainBuilder,
    shared::Bench,
    source::Source,
};
use tokio::{net::TcpListener, task::JoinHandle};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// What must not be told of a build.
const TOKEN: &str = "collectors-own-token";
const ARGUMENT: &str = "value-of-an-argument";
const CONTENT: &str = "content-of-a-file";

/// A gateway with one function, the plain deployer.
struct Gateway {
    url: String,
    serving: JoinHandle<()>,
}

impl Gateway {
    async fn before(deployer: &PlainDeployer) -> Result<Self> {
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

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The spans of one trace.
struct Trace(Vec<Span>);

impl Trace {
    /// The span of this name within another.
    fn within(&self, parent: &Span, name: &str) -> Result<&Span> {
        let found = self
            .0
            .iter()
            .find(|span| span.parent == parent.id && span.name == name);
        found.with_context(|| format!("no {name:?} within {:?} in {:#?}", parent.name, self.0))
    }

    /// The names of spans within another, and so on, all the way.
    fn path<'s>(&'s self, from: &'s Span, names: &[&str]) -> Result<&'s Span> {
        names.iter().try_fold(from, |span, name| self.within(span, name))
    }
}

#[tokio::test]
async fn a_build_and_its_deployment_are_one_trace_across_both_functions() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let name = "e2e-traces";
    bench.functions.remove(name).await?;
    let collector = Collector::start().await?;
    let endpoint = collector.url();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let headers = format!("authorization=Bearer%20{TOKEN}");
    let deployer = PlainDeployer::with_secrets(
        &bench,
        &bench.stack.gateway.url,
        &settings,
        &[("otel-headers", headers.clone())],
    )
    .await?;
    let gateway = Gateway::before(&deployer).await?;
    let registry = &bench.stack.registry;
    let docker_config =
        slipway_e2e::registry::Registry::docker_config(&registry.host, &registry.user, &registry.password);
    let mut builder_settings = settings.to_vec();
    builder_settings.push(("gateway_url", &gateway.url));
    let builder = PlainBuilder::with_secrets(
        &bench,
        &builder_settings,
        &[("otel-headers", &headers), ("registry-config", &docker_config)],
    )
    .await?;

    let at = format!("{:?}", SystemTime::now());
    let config = json!({
        "image": bench.image(&format!("e2e/{name}"), "1"),
        "buildArgs": { "AT": at, "SHOWN": ARGUMENT, "JOBS": "4" },
        "deploy": { "service": name },
        "probe": { "path": "/index.html" },
    });
    let dockerfile = format!(
        "FROM {base}\nARG AT\nARG SHOWN\nARG JOBS\nRUN echo $AT $SHOWN -j $JOBS > /at\nCOPY www /www\nUSER 1000\nEXPOSE 8080\n\
         CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
    );
    let source = Source::pages(base, CONTENT);
    let tar = source.with_dockerfile(&dockerfile).tar(&config)?;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let reply = builder
        .client()?
        .post_with_headers(tar, &[("traceparent", &parent), ("X-Call-Id", "traced-1")])
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let trace = Trace(
        collector
            .trace_with("builder-fn", "POST /build", |span| span.trace == TRACE)
            .await?,
    );
    collector
        .trace_with("deployer-fn", "POST /", |span| span.trace == TRACE)
        .await?;
    drop(trace);
    let all = collector.spans();
    let trace = Trace(all.iter().filter(|span| span.trace == TRACE).cloned().collect());
    assert_eq!(trace.0.len(), all.len(), "one trace: {all:#?}");
    let known = |id: &str| id == CALLER || trace.0.iter().any(|span| span.id == id);
    for span in &trace.0 {
        assert!(
            known(&span.parent),
            "{span:?} has a parent that nobody told: {all:#?}"
        );
        // A function that is coming up may be asked too early.
        let is_asking = matches!(&*span.name, "probe" | "GET /function" | "GET /system/function");
        assert!(is_asking || span.error.is_none(), "{span:?}");
    }

    // What the builder did.
    let root = trace
        .0
        .iter()
        .find(|span| span.parent == CALLER)
        .context("the request's span")?;
    assert_eq!((&*root.service, &*root.name), ("builder-fn", "POST /build"));
    assert_eq!(root.attribute("faas.invocation_id").as_deref(), Some("traced-1"));
    assert_eq!(
        root.attribute("http.response.status_code").as_deref(),
        Some("200")
    );
    trace.within(root, "receive")?;
    trace.path(root, &["build", "queue"])?;
    let solve = trace.path(root, &["build", "solve"])?;
    let run = trace.within(solve, "[2/3] RUN echo *** *** -j *** > /at")?;
    assert_eq!(run.attribute("buildkit.cached").as_deref(), Some("false"));
    assert!(run.took > 0 && run.took < solve.took, "{run:?} in {solve:?}");
    trace.within(solve, "[3/3] COPY www /www")?;
    trace.within(solve, "exporting to image")?;
    trace.within(solve, "pushing layers")?;

    // And the deployer, which the builder called.
    let deployment = trace.path(
        root,
        &["build", "deploy", "POST /function", "POST /", "deployment"],
    )?;
    assert_eq!(deployment.service, "deployer-fn");
    assert_eq!(deployment.attribute("slipway.function").as_deref(), Some(name));
    assert_eq!(deployment.attribute("slipway.status").as_deref(), Some("ready"));
    for step in ["queue", "check image", "check", "apply", "watch"] {
        assert_eq!(trace.within(deployment, step)?.service, "deployer-fn");
    }
    trace.path(deployment, &["apply", "PUT /system/functions"])?;
    trace.path(deployment, &["watch", "GET /system/function"])?;
    trace.path(deployment, &["watch", "probe", "GET /function"])?;

    // A build that fails says so, and why.
    let failing = Source::dockerfile(format!("FROM {base}\nARG SHOWN\nRUN echo $SHOWN $AT; exit 3\n")).tar(&json!({
        "image": bench.image(&format!("e2e/{name}"), "1"), "buildArgs": { "SHOWN": ARGUMENT }, "skipPush": true,
    }))?;
    assert_eq!(builder.client()?.post(failing).await?.status, 422);
    let failed = collector
        .trace_with("builder-fn", "POST /build", |span| span.trace != TRACE)
        .await?;
    let failed = Trace(failed);
    let root = failed
        .0
        .iter()
        .find(|span| span.name == "POST /build")
        .context("the request")?;
    assert_eq!(
        (&*root.parent, &root.error),
        ("", &None),
        "the caller's doing is no error of the server"
    );
    let solve = failed.path(root, &["build", "solve"])?;
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
        .context("the step")?;
    assert!(step.error.is_some(), "{step:?}");

    // A token is used, and nothing that is secret is told.
    let headers = collector.headers();
    assert!(
        headers
            .iter()
            .all(|headers| headers["authorization"] == format!("Bearer {TOKEN}"))
    );
    let told = format!("{:?}", collector.spans());
    let key = |path: &std::path::Path| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let secrets = [
        TOKEN,
        ARGUMENT,
        CONTENT,
        &registry.password,
        &bench.stack.gateway.password,
        &key(&bench.stack.payload_secret)?,
        &key(&bench.stack.deploy_secret)?,
    ];
    // The registry has no password where faasd is the provider.
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!told.contains(secret), "{secret:?} is told in {told}");
    }
    bench.functions.remove(name).await
}

#[tokio::test]
async fn a_collector_that_refuses_or_hangs_does_not_touch_a_build() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await?;
    let nobody = TcpListener::bind(("127.0.0.1", 0)).await?;
    let (hangs, refuses) = (silent.local_addr()?, nobody.local_addr()?);
    drop(nobody);
    for address in [hangs, refuses] {
        let endpoint = format!("http://{address}");
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "300000"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            ("healthcheck_interval", "0s"),
        ];
        let mut builder = PlainBuilder::with_settings(&bench, &settings).await?;
        let config = json!({ "image": bench.image("e2e/traces-nowhere", "1"), "skipPush": true });
        for number in 0..3 {
            let source =
                Source::dockerfile("FROM scratch\nCOPY a /a\n").file("a", format!("{number} {address}"));
            let reply = builder.client()?.post(source.tar(&config)?).await?;
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
        // Not as long as a delivery may take, which is five minutes here.
        let begun = Instant::now();
        builder.terminate()?;
        assert!(builder.wait_until_ended()?.success());
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{:?}",
            begun.elapsed()
        );
    }
    Ok(())
}
