//! Integration tests: builder-fn with a fake BuildKit daemon, which fails, stalls and disconnects on demand.
#![expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod api;
mod builds;
mod cache_exports;
mod captured_log;
mod commit_statuses;
mod daemon;
mod difference;
mod dry_run;
mod files;
mod gateway;
mod git_contexts;
mod hand_over;
mod harness;
mod hints;
mod hostile;
mod job;
mod killed_daemon;
mod known_elsewhere;
mod log_forms;
mod notifications;
mod pages;
mod persistence;
mod platforms;
mod policy;
mod pool;
mod record_store;
mod redelivery;
mod referenced_contexts;
mod registry;
mod resubmission;
mod resumption;
mod rollback;
mod secrets;
mod setting;
mod single_use;
mod sources;
mod stalls;
mod stored_contexts;
mod streams;
mod supersession;
mod tenants;
mod traces;
mod url_contexts;
mod warnings;
mod web_server;

use std::time::Duration;

use builder_fn::buildkit::SharedKeyPool;
use builder_fn::metrics::Metrics;
use function_host::prometheus::Registry;

/// Waits for `future`, and panics instead of hanging if it does not complete.
async fn complete_or_panic<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it completes")
}

fn new_pool_of_buildkit_shared_keys() -> SharedKeyPool {
    SharedKeyPool::new(
        Metrics::register(&Registry::new())
            .expect("metrics")
            .sent_bytes_counter(),
    )
}
