//! Compares a provider on Kubernetes with the table of what faas-netes answers (`table/`).
//!
//! The provider runs against an etcd and a kube-apiserver of its own, without controllers, so that nothing but the
//! provider and the test changes an object. `SLIPWAY_KUBERNETES_BIN` names the directories of the two programs. The
//! provider is the one of `tests/provider`, or the program that `SLIPWAY_FAAS_NETES` names.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod api_server;
mod case;
mod matching;
mod objects;
mod provider;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use self::{api_server::ApiServer, case::Case, objects::ClusterObjects, provider::Provider};

/// The longest time for an effect of a request to be seen, or for a provider to see an object.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause between two looks at something that changes soon.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[tokio::test]
async fn the_provider_answers_as_the_table_of_faas_netes_says() {
    let cases = case::read_table(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let server = ApiServer::start().await.unwrap();
    let objects = ClusterObjects::create_namespace(server.admin_client())
        .await
        .unwrap();
    let provider = Provider::start(&server).await.unwrap();

    let mut failures = Vec::new();
    for case in &cases {
        if let Err(error) = run_case_in_emptied_namespace(case, &objects, &provider).await {
            failures.push(format!("{}: {}: {error:#}", case.file, case.case));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases differ:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// Prepares a case, sends its request, and compares the answer and its effects.
async fn run_case_in_emptied_namespace(
    case: &Case,
    objects: &ClusterObjects,
    provider: &Provider,
) -> Result<()> {
    objects.delete_all().await.context("clean up")?;
    for object in &case.given {
        objects.create_with_status(object).await.context("given")?;
    }
    for number in 0..case.given_functions {
        objects
            .create_with_status(&case::numbered_function(number))
            .await?;
    }
    wait_for_functions(objects, provider).await?;
    for request in &case.before {
        let answer = provider.send(request).await?;
        let expected = request.status.context("before: a request needs a status")?;
        ensure!(answer.status == expected, "before: {answer:?}");
    }
    // A provider answers questions from copies that are some milliseconds old.
    let deadline = Instant::now() + EFFECT_TIMEOUT;
    loop {
        let answer = provider.send(&case.request).await?;
        match case.answer.compare(&answer) {
            Ok(()) => break,
            Err(_) if case.request.method == "GET" && Instant::now() < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(difference) => return Err(difference.context(format!("answer {answer:?}"))),
        }
    }
    for effect in &case.then {
        objects
            .wait_for(effect, EFFECT_TIMEOUT)
            .await
            .with_context(|| format!("{} {}", effect.kind, effect.name))?;
    }
    Ok(())
}

/// Waits until the provider has seen the functions of the cluster.
async fn wait_for_functions(objects: &ClusterObjects, provider: &Provider) -> Result<()> {
    let deadline = Instant::now() + EFFECT_TIMEOUT;
    loop {
        let (in_cluster, seen) = (objects.function_names().await?, provider.function_names().await?);
        if in_cluster == seen {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the provider sees {seen:?}, and not {in_cluster:?}"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
