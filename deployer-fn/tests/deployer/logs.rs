//! Tests of failures whose reasons quote what the new version wrote, by the log API of OpenFaaS.

use std::time::Duration;

use deployer_fn::{DeploymentOutcome, DeploymentStatus as Status, FaultyParty};
use serde_json::json;
use tokio::time::Instant;

use crate::fake::{FakeGateway, FakeLogsAnswer, ProviderKind};
use crate::scenarios::{SimulatedDeployer, answering_build_number, hand_over_of_build};

/// A time before the fake provider created the function, in the same second; and two after that.
const BEFORE: &str = "2026-01-01T00:00:10.4Z";
const AFTER: &str = "2026-01-01T00:00:10.6Z";
const LATER: &str = "2026-01-01T01:00:11+01:00";

/// Returns the answer of the log API with these times and texts.
fn logs_with_times_and_texts(lines: &[(&str, &str)]) -> FakeLogsAnswer {
    let lines = lines.iter().map(|(at, text)| {
        let message = json!({"name": "hello", "namespace": "openfaas-fn", "instance": "7", "timestamp": at, "text": text});
        format!("{message}\n")
    });
    FakeLogsAnswer::Lines(lines.collect())
}

/// Deploys build 1 with this behaviour, after which there is no function, or build 2 after a good build 1. Returns the
/// reasons of its failure, joined.
async fn deploy_failing_and_join_reasons(fake: &FakeGateway, behaviour: &str, is_update: bool) -> String {
    let process = SimulatedDeployer::start();
    if is_update {
        let first = process.deploy(fake, &hand_over_of_build(1, "good")).await;
        assert_eq!(first.status, Status::Ready, "{first:#?}");
    }
    let outcome = process.deploy(fake, &hand_over_of_build(2, behaviour)).await;
    assert_rolled_back(fake, &outcome, is_update);
    outcome.reasons.join("; ")
}

#[track_caller]
fn assert_rolled_back(fake: &FakeGateway, outcome: &DeploymentOutcome, is_update: bool) {
    assert_eq!(
        (outcome.status, outcome.fault),
        (Status::RolledBack, Some(FaultyParty::Caller)),
        "{outcome:#?}"
    );
    assert_eq!(answering_build_number(fake), is_update.then_some(1));
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_a_version_that_fails_quotes_what_it_wrote_and_not_the_version_before() {
    for is_update in [false, true] {
        for (behaviour, reason) in [
            (
                "crash",
                "no replica is available any more (the function starts and does not stay up)",
            ),
            (
                "silent",
                "the function answered GET /_/health with 500: Can't reach service for: hello.",
            ),
            ("bad", "the function answered GET /_/health with 500 and no text"),
        ] {
            let fake = FakeGateway::new(ProviderKind::Faasd);
            fake.set_logs(logs_with_times_and_texts(&[
                (LATER, "no port"),
                (BEFORE, "the old version ends"),
                ("yesterday", "no time"),
                (AFTER, "\u{1b}[31mstarting\r\u{7}"),
            ]));
            let reasons = deploy_failing_and_join_reasons(&fake, behaviour, is_update).await;
            let expected = format!("{reason}; its log ends with: [31mstarting | no port; ");
            assert!(reasons.contains(&expected), "{behaviour}: {reasons}");
            assert_eq!(
                fake.log_requests(),
                ["GET /system/logs?name=hello&since=2026-01-01T00:00:10.500000000Z&tail=10&follow=false"]
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_the_version_before_may_have_written_is_not_quoted() {
    let lines = || logs_with_times_and_texts(&[(AFTER, "starting"), (LATER, "no port")]);
    let fake = FakeGateway::new(ProviderKind::Rolling);
    fake.set_logs(lines());
    let reasons = deploy_failing_and_join_reasons(&fake, "crash", true).await;
    assert!(!reasons.contains("no port"), "{reasons}");

    // Without a version before, all lines are the new one's. Whether it ends, or is not ready, is not known.
    let fake = FakeGateway::new(ProviderKind::Rolling);
    fake.set_logs(lines());
    let reasons = deploy_failing_and_join_reasons(&fake, "crash", false).await;
    let expected = "the function does not start or stay up); its log ends with: starting | no port";
    assert!(reasons.contains(expected), "{reasons}");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_missing_slow_too_large_or_malformed_costs_the_quote_and_less_than_3_seconds() {
    let fake = FakeGateway::new(ProviderKind::Faasd);
    let begun = Instant::now();
    let expected = deploy_failing_and_join_reasons(&fake, "crash", true).await;
    let without = begun.elapsed();
    assert!(!expected.contains("its log ends with"), "{expected}");
    for logs in [
        FakeLogsAnswer::Silent,
        FakeLogsAnswer::TooLarge,
        FakeLogsAnswer::Lines(String::new()),
        FakeLogsAnswer::Lines("<html>\n{}\n[1]\n{\"timestamp\": 7}\n".to_owned()),
        logs_with_times_and_texts(&[(BEFORE, "the old version ends"), (AFTER, " \u{7}\n")]),
    ] {
        let fake = FakeGateway::new(ProviderKind::Faasd);
        fake.set_logs(logs.clone());
        let begun = Instant::now();
        let reasons = deploy_failing_and_join_reasons(&fake, "crash", true).await;
        assert_eq!(reasons, expected, "{logs:?}");
        assert!(
            begun.elapsed() < without + Duration::from_secs(3),
            "{logs:?}: {:?}",
            begun.elapsed()
        );
        assert_eq!(fake.log_requests().len(), 1, "{logs:?}");
    }
}

/// There, operators decide with the permissions of the deployer whether logs are quoted.
#[tokio::test(start_paused = true)]
async fn the_log_api_is_not_asked_on_kubernetes() {
    let fake = FakeGateway::new(ProviderKind::Kubernetes);
    fake.set_logs(logs_with_times_and_texts(&[(AFTER, "no port")]));
    let reasons = deploy_failing_and_join_reasons(&fake, "crash", false).await;
    assert!(!reasons.contains("no port"), "{reasons}");
    assert!(fake.log_requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_the_end_of_a_long_log_is_quoted() {
    let fake = FakeGateway::new(ProviderKind::Faasd);
    let long = "x".repeat(100_000);
    let lines: Vec<_> = (0..50).map(|number| format!("{long} line {number}")).collect();
    let lines: Vec<_> = lines.iter().map(|line| (AFTER, line.as_str())).collect();
    fake.set_logs(logs_with_times_and_texts(&lines));
    let reasons = deploy_failing_and_join_reasons(&fake, "crash", false).await;
    let (_, quote) = reasons.split_once("its log ends with: ").unwrap();
    let (quote, _) = quote.split_once("; ").unwrap();
    assert_eq!(quote.chars().count(), 501, "{quote}");
    assert!(quote.starts_with('…') && quote.ends_with("x line 49"), "{quote}");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_delivery_does_not_repeat_the_quoted_log_which_is_stored_nowhere() {
    let fake = FakeGateway::new(ProviderKind::Faasd);
    fake.set_logs(logs_with_times_and_texts(&[(AFTER, "password=a")]));
    let process = SimulatedDeployer::start();
    process.deploy(&fake, &hand_over_of_build(1, "good")).await;
    let failed = process.deploy(&fake, &hand_over_of_build(2, "crash")).await;
    assert!(failed.reasons.join("; ").contains("password=a"), "{failed:#?}");
    let stored = fake.last_set_deployment("hello").unwrap();
    assert!(!stored.to_string().contains("password"), "{stored:#}");
    let again = SimulatedDeployer::start()
        .deploy(&fake, &hand_over_of_build(2, "crash"))
        .await;
    assert_eq!(again.status, Status::RolledBack, "{again:#?}");
    assert!(!again.reasons.join("; ").contains("password"), "{again:#?}");
}
