//! Tests of the settings: defaults, and which values are rejected.

use std::collections::HashMap;

use function_host::env::SettingProblems;

use super::*;
use crate::slots::SlotOwner;

const VALID_PAYLOAD_KEY: &str = "a key of 17 bytes\n";

fn read_builder_settings(
    variables: &[(&str, &str)],
    payload_secret: Option<&str>,
) -> Result<Settings, SettingProblems> {
    let folder = tempfile::tempdir().expect("folder");
    if let Some(payload_secret) = payload_secret {
        std::fs::write(folder.path().join(PAYLOAD_SECRET_NAME), payload_secret).expect("write");
    }
    let strings: HashMap<&str, &str> = variables.iter().copied().collect();
    let mut parser = SettingsParser::new(&strings);
    let settings = Settings::read(&mut parser, &Secrets::new(folder.path()), None);
    parser.fail_if_problems().map(|()| settings)
}

#[test]
fn the_buildkit_address_and_the_payload_secret_are_the_only_required_settings() {
    let settings = read_builder_settings(
        &[
            ("buildkit_url", "tcp://buildkit:1234"),
            ("buildkit_plaintext", "true"),
        ],
        Some(VALID_PAYLOAD_KEY),
    )
    .expect("settings");

    assert_eq!(settings.pool.address_for_messages(), "tcp://buildkit:1234");
    assert!(settings.is_exposed);
    assert_eq!(
        (settings.build.insecure, settings.signatures.disable_hmac),
        (false, false)
    );
    assert_eq!((settings.requests.max_body, settings.max_log), (1 << 30, 4 << 20));
    assert_eq!(settings.requests.spool_limit, 4 << 30);
    assert_eq!(settings.build.compression, LayerCompression::default());
    assert_eq!(settings.build.default_namespace, "openfaas-fn");
    assert_eq!(settings.deployer.function, "deployer-fn");
    assert!(
        settings.slots.admit(SlotOwner::default()).is_ok(),
        "there is no limit"
    );
}

#[test]
fn all_invalid_settings_are_reported_together_by_name() {
    let problems = read_builder_settings(
        &[
            ("buildkit_url", "http://buildkit"),
            ("insecure", "perhaps"),
            ("max_body", "-1"),
            ("max_log", "1024"),
            ("build_secrets_private_key_path", "/proc/version"),
            ("spool_dir", "/nowhere/at/all"),
            ("deployer", "../system/functions"),
            ("deploy_timeout", "soon"),
            ("hand_over_ttl", "0s"),
            ("max_entries", "many"),
            ("max_config", "1k"),
            ("queue_wait", "5m"),
            ("deploy_via", "carrier pigeon"),
            ("registry_config", "/proc/version"),
            ("credential_helpers", "/nowhere/at/all"),
            ("token_realms", "https://auth.example/token"),
            ("allowed_frontends", "team/Upper"),
            ("sbom_generator", "a b"),
            ("require_fresh", "true"),
            ("allowed_sources", "10.0.0.0/8"),
            ("step_memory", "1Gi"),
            ("step_cpus", "0.001"),
            ("default_namespace", "OpenFaaS.fn"),
            ("spool_limit", "7"),
            ("compression", "gzip"),
            ("compression_level", "12"),
        ],
        Some(" \n"),
    )
    .expect_err("all are invalid");

    let text = problems.to_string();
    for part in [
        "buildkit_url should be unix://PATH or tcp://HOST:PORT",
        "insecure should be",
        "max_body should be",
        "build_secrets_private_key_path cannot be used: ",
        "max_log should be a number of bytes, 16384 or more",
        "spool_dir should name a directory",
        "deployer should be the name",
        "credential_helpers should name a directory",
        "token_realms should be hosts",
        "allowed_frontends should be images",
        "sbom_generator should be an image",
        "require_fresh needs max_age",
        "allowed_sources should be hosts",
        "step_memory should be a number of bytes",
        "step_cpus should be a number of cores",
        "default_namespace should be a namespace",
        "deploy_timeout",
        "hand_over_ttl should be longer than 0s",
        "spool_limit should be at least max_body",
        "compression_level should be a whole number from 1 to 9 for gzip",
        "max_entries should be",
        "max_config should be",
        "queue_wait needs max_inflight",
        "deploy_via should be function, async-function or callback",
        "registry_config cannot be used: ",
        "disable_hmac is not set, and secret payload-secret is empty",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(problems.0.len(), 26);
}

#[test]
fn cores_are_counted_in_thousandths() {
    for (text, expected) in [
        ("2", Some(2000)),
        ("1.5", Some(1500)),
        ("0.01", Some(10)),
        ("0.125", Some(125)),
        ("0.009", None),
        ("0", None),
        ("-1", None),
        ("1.", None),
        (".5", None),
        ("1.0005", None),
        ("1e3", None),
        ("99999999999999999999", None),
    ] {
        let millicpus = parse_cores_to_some_thousandths(text)
            .ok()
            .flatten()
            .map(NonZeroU64::get);
        assert_eq!(millicpus, expected, "{text}");
    }
}

#[test]
fn max_inflight_limits_builds_and_requests_wait_only_with_queue_wait() {
    let read = |variables: &[(&str, &str)], max_inflight| {
        let strings: HashMap<&str, &str> = variables.iter().copied().collect();
        let mut parser = SettingsParser::new(&strings);
        let slots = read_build_slots(&mut parser, max_inflight);
        parser.fail_if_problems().map(|()| slots).expect("settings")
    };
    let admit = |slots: &BuildSlots| slots.admit(SlotOwner::default());
    let unlimited = read(&[], None);
    let _held = [admit(&unlimited), admit(&unlimited)];
    assert!(!unlimited.is_full_for_every_tenant());
    for (variables, places) in [
        (&[][..], 1),
        (&[("queue_length", "3")], 1),
        (&[("queue_wait", "1m"), ("queue_length", "0")], 1),
        (&[("queue_wait", "1m"), ("queue_length", "2")], 3),
    ] {
        let slots = read(variables, Some(1));
        let held: Vec<_> = (0..places).map(|_| admit(&slots).expect("a place")).collect();
        assert!(
            slots.is_full_for_every_tenant() && admit(&slots).is_err(),
            "{variables:?}"
        );
        drop(held);
    }
}

#[test]
fn limits_on_unverified_bodies_have_room_for_one_body() {
    let address = ("buildkit_url", "unix:///run/b.sock");
    let settings = read_builder_settings(&[address, ("max_body", "3000000000")], Some(VALID_PAYLOAD_KEY))
        .expect("settings");
    assert_eq!(settings.requests.unverified.disk, 3_000_000_000);
    let problems = read_builder_settings(
        &[
            address,
            ("unverified_senders", "0"),
            ("unverified_memory", "1000"),
            ("unverified_limit", "1000"),
            ("receive_rate", "fast"),
            ("receive_grace", "0s"),
        ],
        Some(VALID_PAYLOAD_KEY),
    );
    let text = problems.expect_err("all are invalid").to_string();
    for part in [
        "unverified_senders should be at least 1",
        "unverified_memory should be at least 1048576",
        "unverified_limit should be at least max_body",
        "receive_rate should be",
        "receive_grace should be longer than 0s",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn a_payload_secret_with_a_short_key_or_a_pem_text_is_rejected_by_name_and_line() {
    let address = [("buildkit_url", "unix:///run/b.sock")];
    for (secret, fault) in [
        (
            "a key of 17 bytes\nshort",
            "line 2 should be a key of at least 16 bytes",
        ),
        (
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n",
            "line 1 begins a PEM text",
        ),
    ] {
        let problems = read_builder_settings(&address, Some(secret)).expect_err("the secret is not fit");
        let expected = format!("secret payload-secret is not fit for signatures: {fault}");
        assert!(problems.to_string().starts_with(&expected), "{problems}");
        assert_eq!(problems.0.len(), 1);
    }
}

#[test]
fn the_payload_secret_is_needed_unless_hmac_is_disabled() {
    read_builder_settings(
        &[("buildkit_url", "unix:///run/b.sock"), ("disable_hmac", "true")],
        None,
    )
    .expect("settings");

    let problems = read_builder_settings(&[("buildkit_url", "unix:///run/b.sock")], None)
        .expect_err("the secret is missing");
    assert!(
        problems.to_string().contains("payload-secret is missing"),
        "{problems}"
    );
}
