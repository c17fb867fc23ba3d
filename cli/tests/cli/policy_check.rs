//! Tests of `slipway policy check`, as a process.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails here")]

use std::fs;
use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};

const POLICY_JSON: &str = r#"{"tenants": {
    "acme": {"keys": ["acme-payload"], "push": ["registry.example/acme/"], "functions": ["acme-*"]},
    "globex": {"keys": ["globex-payload"]}
}}"#;

/// Runs `slipway policy check` in a folder with these files, and returns its exit code, standard output and standard
/// error.
fn run_policy_check(files: &[(&str, &[u8])], arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_slipway"))
        .args(["policy", "check"])
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs `slipway policy check` with [`POLICY_JSON`] and a request in the file `option_file_name`, which also
/// names the option for it.
fn check_file_against_policy(
    option_file_name: &str,
    content: &[u8],
    arguments: &[&str],
) -> (i32, String, String) {
    let option = format!("--{}", option_file_name.split('.').next().unwrap());
    let arguments = [&["policy", &option, option_file_name], arguments].concat();
    run_policy_check(
        &[("policy", POLICY_JSON.as_bytes()), (option_file_name, content)],
        &arguments,
    )
}

fn tar_with_config_and_dockerfile(config: &Value, dockerfile: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [
        ("com.openfaas.docker.config", config.to_string()),
        ("context/Dockerfile", dockerfile.to_owned()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_valid_policy_ends_with_0_and_an_invalid_one_with_2_and_every_problem() {
    let (code, out, _) = run_policy_check(&[("policy", POLICY_JSON.as_bytes())], &["policy"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "valid, with the tenants acme, globex\n")
    );
    let wrong = br#"{"tenants": {"acme": {"keys": ["a"], "push": ["nginx"], "pull": []}}}"#;
    let (code, out, error) = run_policy_check(&[("policy", wrong)], &["policy"]);
    assert_eq!((code, out.as_str()), (2, ""));
    for problem in ["tenants.acme.push[0] should", "tenants.acme.pull is not"] {
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_rejected_request_ends_with_1_and_every_violated_rule_on_a_line() {
    let config = json!({"image": "registry.example/globex/x:1", "deploy": {"service": "hello", "secrets": ["deploy-secret"]}});
    let config = config.to_string();
    let (code, out, _) = check_file_against_policy("config.json", config.as_bytes(), &["--tenant", "acme"]);
    assert_eq!(code, 1);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    for rule in [
        "rule push of tenant acme",
        "rule functions of tenant acme",
        "no policy allows",
    ] {
        assert!(lines.iter().any(|line| line.contains(rule)), "{rule}: {out}");
    }
    let (code, out, _) = check_file_against_policy(
        "config.json",
        br#"{"image": "registry.example/globex/x:1"}"#,
        &["--tenant", "globex"],
    );
    assert_eq!((code, out.as_str()), (0, "allowed for tenant globex\n"));
}

#[test]
fn a_tar_is_evaluated_with_its_dockerfile_whatever_its_compression() {
    let tar = tar_with_config_and_dockerfile(
        &json!({"image": "registry.example/acme/x:1"}),
        "# syntax=r.example/evil:1\nFROM scratch\n",
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let zstd = zstd::stream::encode_all(tar.as_slice(), 1).unwrap();
    // A frame that readers skip, as pzstd writes it.
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd].concat();
    for content in [tar, gzip.finish().unwrap(), zstd, skipped] {
        let (code, out, error) = check_file_against_policy("tar", &content, &["--tenant", "acme"]);
        assert_eq!(code, 1, "{error}");
        assert!(out.contains("rule frontends of tenant acme"), "{out}");
    }
}

#[test]
fn a_configuration_that_is_too_large_to_be_read_whole_is_an_error() {
    let config = json!({"image": "registry.example/acme/x:1", "buildArgs": {"A": "x".repeat(1 << 20)}});
    let tar = tar_with_config_and_dockerfile(&config, "FROM scratch\n");
    let (code, out, error) = check_file_against_policy("tar", &tar, &["--tenant", "acme"]);
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    assert!(error.contains("larger than 1048576 bytes"), "{error}");
}

#[test]
fn a_hand_over_is_evaluated_for_the_tenant_that_it_names() {
    let image = format!("registry.example/acme/x@sha256:{}", "1".repeat(64));
    let hand_over = json!({"image": image, "tenant": "acme", "deploy": {"service": "hello"}}).to_string();
    let (code, out, _) = check_file_against_policy("hand-over", hand_over.as_bytes(), &[]);
    assert_eq!(code, 1);
    assert!(
        out.contains("rule functions of tenant acme does not allow \"hello\""),
        "{out}"
    );
    let (code, _, error) =
        check_file_against_policy("hand-over", hand_over.as_bytes(), &["--tenant", "globex"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("tenant should be \"globex\""), "{error}");
}

#[test]
fn a_request_without_a_tenant_and_an_unknown_tenant_end_with_2() {
    for arguments in [&[][..], &["--tenant", "umbrella"]] {
        let (code, _, error) =
            check_file_against_policy("config", br#"{"image": "registry.example/x"}"#, arguments);
        assert_eq!(code, 2, "{error}");
        assert!(
            error.ends_with("next: give one of the policy's tenants with --tenant NAME: acme, globex\n"),
            "{error}"
        );
    }
    assert_eq!(run_policy_check(&[], &["policy"]).0, 2);
    assert_eq!(run_policy_check(&[], &[]).0, 2);
}

#[test]
fn every_error_ends_with_what_to_do_next() {
    let policy = ("policy", POLICY_JSON.as_bytes());
    for (files, arguments, next) in [
        (&[][..], &["policy"][..], "name the policy's JSON file"),
        (
            &[("policy", &b"{}"[..])],
            &["policy"],
            "correct policy as the lines above say",
        ),
        (
            &[policy],
            &["policy", "--config", "c", "--tenant", "acme"],
            "correct c, or name another file",
        ),
        (
            &[policy, ("c", b"[]")],
            &["policy", "--config", "c", "--tenant", "acme"],
            "correct c, or name another file",
        ),
        (
            &[policy, ("t", b"no tar")],
            &["policy", "--tar", "t", "--tenant", "acme"],
            "correct t, or name another file",
        ),
        (
            &[policy, ("h", b"[]")],
            &["policy", "--hand-over", "h"],
            "give one of the policy's tenants",
        ),
        (
            &[policy, ("h", b"[]")],
            &["policy", "--hand-over", "h", "--tenant", "acme"],
            "correct h, or name another file",
        ),
    ] {
        let (code, out, error) = run_policy_check(files, arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {error}");
        let last = error.lines().last().unwrap();
        assert!(
            last.starts_with(&format!("next: {next}")),
            "{arguments:?}: {error}"
        );
    }
}

#[test]
fn a_rejected_request_ends_with_what_can_be_changed_and_an_allowed_one_with_nothing() {
    let (code, out, error) = check_file_against_policy(
        "config",
        br#"{"image": "registry.example/other/x"}"#,
        &["--tenant", "acme"],
    );
    assert_eq!(code, 1, "{out}{error}");
    assert!(!out.is_empty() && !out.contains("next:"), "{out}");
    let next = "next: change what the lines name in config, or the rules of the tenant acme in policy\n";
    assert!(error.ends_with(next), "{error}");
    let (code, _, error) = run_policy_check(&[("policy", POLICY_JSON.as_bytes())], &["policy"]);
    assert_eq!((code, error.as_str()), (0, ""));
}
