//! Tests of the exports of caches to the operator's registry, and of their imports.

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptionsEntry, StatusResponse};
use builder_fn::buildkit::Daemon;
use function_host::http::Method;
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::builds::{answer_statuses_holding_back_the_last, ask};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::registry::FakeRegistry;
use crate::setting::{AnswerStatusAndBody, TestBuilder, request_tar_with};

/// A fake daemon, and a fake registry for images and caches.
struct Setup {
    daemon: Daemon,
    calls: DaemonCalls,
    registry: FakeRegistry,
}

impl Setup {
    async fn start() -> Self {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]).send_replace(true);
        Self {
            daemon,
            calls,
            registry: FakeRegistry::start().await,
        }
    }

    fn new_builder(&self) -> TestBuilder {
        TestBuilder::new(self.daemon.clone())
            .with_manifests_in_registries()
            .with_cache_registry(&format!("{}/caches", self.registry.host))
    }

    fn image(&self) -> String {
        format!("{}/hello:1", self.registry.host)
    }

    /// Returns the repository of the image's cache, and the full name of the cache.
    fn cache(&self) -> (String, String) {
        let repository = format!("caches/{}/hello", self.registry.host.replace(':', "-"));
        let name = format!("{}/{repository}:cache", self.registry.host);
        (repository, name)
    }

    async fn next_solve(&mut self) -> SolveCall {
        complete_or_panic(self.calls.solves.recv())
            .await
            .expect("a solve")
    }

    /// Builds the image as the call `call_id`, and returns the caches that the build imports.
    async fn build(&mut self, builder: &TestBuilder, call_id: &str) -> Vec<String> {
        let build = spawn_build(builder, call_id, request_tar_with(json!({"image": self.image()})));
        let solve = self.next_solve().await;
        assert_eq!(solve.request.exporters.len(), 1, "it makes an image");
        let imports = solve.request.cache.as_ref().map(|caches| refs(&caches.imports));
        solve.answer_with_digest("sha256:12");
        assert_success(complete_or_panic(build).await.expect("no panic"));
        imports.unwrap_or_default()
    }
}

fn spawn_build(
    builder: &TestBuilder,
    call_id: &str,
    tar: Vec<u8>,
) -> tokio::task::JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(call_id);
    tokio::spawn(async move { builder.send_signed_build(tar).await })
}

fn assert_success(answer: AnswerStatusAndBody) {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}

fn refs(entries: &[CacheOptionsEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.attrs["ref"].clone()).collect()
}

#[tokio::test]
async fn after_the_answer_the_same_request_is_solved_once_more_to_export_its_cache_only() {
    let mut setup = Setup::start().await;
    let builder = setup.new_builder();
    let imports = setup.build(&builder, "first").await;
    assert_eq!(imports, Vec::<String>::new(), "the registry has no cache");

    // The build has been answered.
    let export = setup.next_solve().await;
    let caches = export.request.cache.clone().expect("caches");
    assert_eq!(refs(&caches.exports), [setup.cache().1]);
    assert_eq!(caches.exports[0].attrs["mode"], "max");
    assert!(export.request.exporters.is_empty(), "no image is pushed");
    assert_eq!(export.request.frontend_attrs["filename"], "Dockerfile");
    assert!(
        !export
            .request
            .frontend_attrs
            .keys()
            .any(|name| name.starts_with("slipway.")),
        "it is no build to other builders"
    );
    export.answer_with_digest("");
    builder.wait_for_cache_exports("exported", 1).await;
    let asked = ask(&builder, Method::GET, "/builds").await.body;
    assert_eq!(asked["builds"].as_array().map(Vec::len), Some(1), "{asked}");
}

#[tokio::test]
async fn a_build_imports_the_cache_if_the_registry_has_it_and_the_daemon_is_not_known_to() {
    let mut setup = Setup::start().await;
    let (repository, cache) = setup.cache();
    let builder = setup.new_builder();
    assert_eq!(setup.build(&builder, "first").await, Vec::<String>::new());
    setup.next_solve().await.answer_with_digest("");
    setup.registry.tag_manifest(&repository, "cache", "{}");
    assert_eq!(setup.build(&builder, "second").await, Vec::<String>::new());
    setup.next_solve().await.answer_with_digest("");
    // The daemon may have what it found in the cache by reference only, so it goes on to import it.
    let other = setup.new_builder();
    for id in ["third", "fourth"] {
        assert_eq!(setup.build(&other, id).await, std::slice::from_ref(&cache));
        setup.next_solve().await.answer_with_digest("");
    }
}

#[tokio::test]
async fn an_export_that_fails_is_counted_and_changes_no_result() {
    let mut setup = Setup::start().await;
    let builder = setup.new_builder();
    setup.build(&builder, "first").await;
    let export = setup.next_solve().await;
    export.answer_with_error(tonic::Status::unknown("failed to push: 503"));
    builder.wait_for_cache_exports("failed", 1).await;
    let asked = ask(&builder, Method::GET, "/builds/first").await.body;
    assert_eq!(asked["state"], "success", "{asked}");
}

#[tokio::test]
async fn one_cache_of_an_image_is_exported_at_a_time_and_then_that_of_the_newest_build() {
    let mut setup = Setup::start().await;
    let builder = setup.new_builder();
    setup.build(&builder, "first").await;
    let running = setup.next_solve().await;
    setup.build(&builder, "second").await;
    setup.build(&builder, "third").await;
    builder.wait_for_cache_exports("skipped", 1).await;
    assert!(setup.calls.solves.try_recv().is_err(), "one at a time");
    running.answer_with_digest("");
    setup.next_solve().await.answer_with_digest("");
    builder.wait_for_cache_exports("exported", 2).await;
    assert!(setup.calls.solves.try_recv().is_err());
}

#[tokio::test]
async fn a_shutdown_ends_an_export() {
    let mut setup = Setup::start().await;
    let builder = setup.new_builder();
    setup.build(&builder, "first").await;
    let mut export = setup.next_solve().await;
    builder.begin_shutdown(Instant::now() + Duration::from_secs(3600));
    complete_or_panic(export.reply.closed()).await;
    builder.wait_for_cache_exports("skipped", 1).await;
}

#[tokio::test]
async fn a_build_that_pushes_nothing_or_fails_exports_no_cache() {
    let mut setup = Setup::start().await;
    let builder = setup.new_builder();
    let tar = request_tar_with(json!({"image": setup.image(), "skipPush": true}));
    let build = spawn_build(&builder, "unpushed", tar);
    setup.next_solve().await.answer_with_digest("sha256:12");
    assert_success(complete_or_panic(build).await.expect("no panic"));
    let build = spawn_build(
        &builder,
        "failed",
        request_tar_with(json!({"image": setup.image()})),
    );
    let solve = setup.next_solve().await;
    solve.answer_with_error(tonic::Status::unknown(
        "process \"make\" did not complete successfully: exit code: 1",
    ));
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 422);
    // The next solve is that of the next build.
    setup.build(&builder, "next").await;
}

#[tokio::test]
async fn no_build_names_the_repository_for_caches() {
    let setup = Setup::start().await;
    let builder = setup.new_builder();
    let cache = setup.cache().1;
    for config in [
        json!({"image": cache}),
        json!({"image": setup.image(), "cacheFrom": [cache]}),
        json!({"image": setup.image(), "cacheTo": [cache]}),
    ] {
        let answer = builder.send_signed_build(request_tar_with(config)).await;
        assert_eq!(answer.status, 403, "{:?}", answer.body);
        let error = answer.body["error"].as_str().expect("an error");
        assert!(error.contains("repository for caches"), "{error}");
    }
}
