use serde_json::{Value, json};

use super::*;

fn parse_tenants(tenants: Value) -> Result<Policy, Vec<String>> {
    let text = json!({ "tenants": tenants }).to_string();
    Policy::parse(&text).map_err(|invalid| invalid.problems)
}

/// Returns the only tenant of a policy with these members beside a key.
fn tenant_with_members_and_key(mut members: Value) -> Arc<Tenant> {
    members["keys"] = json!(["acme-payload"]);
    let policy = parse_tenants(json!({ "acme": members })).unwrap();
    Arc::clone(policy.tenant("acme").unwrap())
}

/// Asserts that a policy is rejected with exactly as many problems as `expected` has parts, and that each part is in
/// one.
#[track_caller]
fn assert_policy_rejected_with_exactly(text: &str, expected: &[&str]) {
    let problems = Policy::parse(text).unwrap_err().problems;
    for part in expected {
        assert!(
            problems.iter().any(|problem| problem.contains(part)),
            "{part:?}: {problems:#?}"
        );
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn an_absent_rule_except_frontends_allows_everything_and_an_empty_one_nothing() {
    let open = tenant_with_members_and_key(json!({}));
    let closed = tenant_with_members_and_key(json!({"push": [], "read": {}, "functions": [], "secrets": []}));
    for repository in ["registry.example/acme/x", "docker.io/library/x"] {
        assert_eq!(open.may_push(repository), Ok(()));
        assert_eq!(open.may_cache(repository), Ok(()));
        assert_eq!(open.may_read_image(repository), Ok(()));
        assert!(closed.may_push(repository).is_err());
        assert!(closed.may_cache(repository).is_err());
        assert!(closed.may_read_image(repository).is_err());
    }
    assert_eq!(open.may_read_http("https://example.com/x"), Ok(()));
    assert!(closed.may_read_http("https://example.com/x").is_err());
    assert!(closed.may_read_git("https://example.com/x").is_err());
    // A frontend is a program of the tenant's: none but the built-in one without a daemon of its own.
    assert!(open.may_use_frontend("docker.io/team/frontend").is_err());
    let function = RequestedFunction {
        name: "hello",
        secrets: vec!["api-key"],
        ..RequestedFunction::default()
    };
    assert_eq!(open.deployments().violations(&function), []);
    assert_eq!(closed.deployments().violations(&function).len(), 2);
}

#[test]
fn a_tenant_may_read_what_it_may_push_and_keep_caches_in() {
    let tenant = tenant_with_members_and_key(json!({
        "push": ["registry.example/acme/"], "cache": ["registry.example/acme-cache/"],
        "read": {"images": ["docker.io/library/*"]}
    }));
    for (repository, push, cache, read) in [
        ("registry.example/acme/x", true, false, true),
        ("registry.example/acme-cache/x", false, true, true),
        ("docker.io/library/alpine", false, false, true),
        ("registry.example/victim/x", false, false, false),
    ] {
        assert_eq!(tenant.may_push(repository).is_ok(), push, "{repository}");
        assert_eq!(tenant.may_cache(repository).is_ok(), cache, "{repository}");
        assert_eq!(tenant.may_read_image(repository).is_ok(), read, "{repository}");
    }
    let violation = tenant
        .may_push("registry.example/victim/x")
        .unwrap_err()
        .to_string();
    assert_eq!(
        violation,
        "policy rule push of tenant acme does not allow \"registry.example/victim/x\""
    );
}

#[test]
fn without_a_cache_rule_caches_are_kept_where_the_push_rule_allows_images() {
    let tenant = tenant_with_members_and_key(json!({"push": ["registry.example/acme/"]}));
    assert_eq!(tenant.may_cache("registry.example/acme/x"), Ok(()));
    let violation = tenant.may_cache("registry.example/x").unwrap_err().to_string();
    assert!(violation.contains("rule push of tenant acme"), "{violation}");
}

#[test]
fn every_violation_names_its_rule_and_tenant() {
    let tenant = tenant_with_members_and_key(json!({
        "functions": ["acme-*"], "namespaces": ["team-*"], "secrets": ["api-*"], "environment": ["A"],
        "labels": ["com.openfaas.*"], "annotations": [], "maxCpu": "1", "maxMemory": "512Mi", "maxReplicas": 5,
        "readOnlyRootFilesystem": true
    }));
    let deploy = json!({
        "service": "hello", "namespace": "openfaas-fn", "secrets": ["api-key", "other"],
        "envVars": {"A": "1", "B": "2"}, "labels": {"com.openfaas.scale.max": "6", "x": "y"},
        "annotations": {"topic": "t"}, "limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}
    });
    let function = RequestedFunction::from_json(deploy.as_object().unwrap());
    let violations = tenant.deployments().violations(&function);
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    let expected = [
        ("functions", "does not allow \"hello\""),
        ("namespaces", "does not allow \"openfaas-fn\""),
        ("secrets", "does not allow \"other\""),
        ("environment", "does not allow \"B\""),
        ("labels", "does not allow \"x\""),
        ("annotations", "does not allow \"topic\""),
        ("maxCpu", "allows 1, not 1500m"),
        ("maxMemory", "requires a limit of at most 512Mi"),
        ("maxMemory", "allows 512Mi, not 1Gi"),
        ("maxReplicas", "allows com.openfaas.scale.max from 1 up to 5"),
        (
            "readOnlyRootFilesystem",
            "requires deploy.readOnlyRootFilesystem to be true",
        ),
    ];
    let expected = expected.map(|(rule, problem)| format!("policy rule {rule} of tenant acme {problem}"));
    assert_eq!(texts, expected);
}

#[test]
fn zero_as_a_limit_or_as_the_highest_replica_count_violates_the_maximum() {
    let tenant = tenant_with_members_and_key(json!({"maxCpu": "1", "maxMemory": "512Mi", "maxReplicas": 5}));
    let violations = |amount: &str, memory: &str, replicas: &str| {
        let deploy = json!({
            "service": "hello", "limits": {"cpu": amount, "memory": memory}, "requests": {"cpu": "0"},
            "labels": {"com.openfaas.scale.max": replicas, "com.openfaas.scale.min": "0"}
        });
        let function = RequestedFunction::from_json(deploy.as_object().unwrap());
        tenant.deployments().violations(&function).len()
    };
    assert_eq!(violations("1", "512Mi", "5"), 0);
    for zero in ["0", "0m", "0.0", "0e3"] {
        assert_eq!(violations(zero, zero, "0"), 3, "{zero}");
    }
}

#[test]
fn a_default_stands_in_for_an_absent_limit() {
    let tenant = tenant_with_members_and_key(json!({"maxCpu": "1", "defaultCpu": "500m"}));
    let deploy = json!({"service": "hello"});
    let function = RequestedFunction::from_json(deploy.as_object().unwrap());
    assert_eq!(tenant.deployments().violations(&function), []);
    assert_eq!(tenant.deployments().default_cpu().unwrap().to_string(), "500m");
}

#[test]
fn all_problems_are_reported_at_once_with_their_paths() {
    assert_policy_rejected_with_exactly(
        r#"{"tenants": {
            "acme": {"keys": ["a"], "push": ["nginx", 7], "pull": [], "maxCpu": "0", "maxMemory": "lots", "maxReplicas": 0,
                "read": {"http": ["ftp://x/"], "ssh": []}, "functions": ["a*b"], "network": "host", "secrets": null},
            "Globex": {"keys": ["b"]},
            "initech": {"defaultCpu": "2", "maxCpu": "1", "frontends": ["docker.io/team/frontend"]}
        }, "tenant": {}}"#,
        &[
            "tenants.acme.push[0] should begin with a registry",
            "tenants.acme.push[1] should be text",
            "tenants.acme.pull is not a member",
            "tenants.acme.maxCpu should be more than 0",
            "tenants.acme.maxMemory should be an amount",
            "tenants.acme.maxReplicas should be a whole number above 0",
            "tenants.acme.read.http[0] should begin with https:// or http://",
            "tenants.acme.read.ssh is not a member",
            "tenants.acme.functions[0] should be a name",
            "tenants.acme.network should be \"default\" or \"none\"",
            "tenants.acme.secrets should be a list",
            "tenants.Globex should have a name",
            "tenants.initech.keys should name at least one secret",
            "tenants.initech.defaultCpu should be at most the maximum of 1",
            "tenants.initech.frontends needs a BuildKit daemon",
            "tenant is not a member",
        ],
    );
}

#[test]
fn a_policy_without_tenants_is_rejected_with_what_to_write_instead() {
    assert_policy_rejected_with_exactly(
        r#"{"rules": {"namespaces": []}, "keys": {"team-a": {}}}"#,
        &["tenants.NAME", "tenants.NAME.deployKeys", "at least one tenant"],
    );
    for text in ["[]", "null", "{}", "{\"tenants\": {}}", "{\"tenants\": []}", "7"] {
        assert!(Policy::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_member_that_is_given_twice_is_rejected() {
    for text in [
        r#"{"tenants": {"a": {"keys": ["k"]}}, "tenants": {"b": {"keys": ["k"]}}}"#,
        r#"{"tenants": {"a": {"keys": ["k"]}, "a": {"keys": ["l"]}}}"#,
        r#"{"tenants": {"a": {"keys": ["k"], "push": [], "push": ["registry.example/"]}}}"#,
        r#"{"tenants": {"a": {"keys": ["k"], "p\u0075sh": [], "push": ["registry.example/"]}}}"#,
    ] {
        let problems = Policy::parse(text).unwrap_err().problems;
        assert!(problems[0].contains("is given twice"), "{problems:?}");
    }
}

#[test]
fn key_secrets_have_one_tenant_and_use_are_not_the_platforms_and_are_at_most_64() {
    let text = r#"{"tenants": {
        "a": {"keys": ["k", "k"], "deployKeys": ["d"]},
        "b": {"keys": ["l", "d"], "registryConfig": "k"},
        "c": {"keys": ["deploy-secret", "payload-secret", "basic-auth-password"]}
    }}"#;
    assert_policy_rejected_with_exactly(
        text,
        &[
            "tenants.a.keys[1] should be another secret than tenants.a.keys[0]",
            "tenants.b.keys[1] should be another secret than tenants.a.deployKeys[0]",
            "tenants.b.registryConfig should be another secret than tenants.a.keys[0]",
            "tenants.c.keys[0] should be a secret that Slipway and the gateway do not use",
            "tenants.c.keys[2] should be a secret that Slipway and the gateway do not use",
        ],
    );
    let keys: Vec<String> = (0..=KEY_SECRETS_MAX).map(|number| format!("k{number}")).collect();
    let problems = parse_tenants(json!({"a": {"keys": keys}})).unwrap_err();
    assert_eq!(
        problems,
        ["tenants should name at most 64 secrets with keys, not 65"]
    );
}

#[test]
fn no_policy_allows_deploying_as_a_platform_function_or_with_a_platform_secret() {
    let variables = [
        ("protected_functions", "gateway-fn, Buildkitd"),
        ("protected_secrets", "my-deploy-secret"),
    ];
    let mut parser = crate::env::SettingsParser::new(&variables);
    let mut reserved = ReservedNames::built_in_and_from_settings(&mut parser);
    parser.fail_if_problems().unwrap();
    reserved.reserve_function_in_every_namespace("slipway-deployer.openfaas-fn");
    for name in [
        "builder-fn",
        "deployer-fn",
        "deployer-fn.openfaas-fn",
        "Deployer-FN",
        " deployer-fn",
        "gateway-fn",
        "buildkitd",
        "slipway-deployer",
    ] {
        let violation = reserved
            .check_function_name_not_reserved(name)
            .unwrap_err()
            .to_string();
        assert!(violation.starts_with("no policy allows"), "{violation}");
    }
    for name in ["hello", "deployer-fn2", "my-deployer-fn"] {
        assert_eq!(reserved.check_function_name_not_reserved(name), Ok(()), "{name}");
    }
    let policy = parse_tenants(json!({
        "a": {"keys": ["a-key"], "deployKeys": ["a-deploy"], "registryConfig": "a-registry", "pullConfig": "a-pull"},
        "b": {"keys": ["b-key"], "secrets": ["*"]}
    }))
    .unwrap();
    for tenant in policy.tenants() {
        for secret in ["a-key", "a-deploy", "a-registry", "a-pull", "b-key"] {
            assert!(
                reserved.check_secret_not_reserved(secret, Some(tenant)).is_err(),
                "{secret}"
            );
            assert_eq!(
                reserved.check_secret_not_reserved(secret, None),
                Ok(()),
                "{secret}"
            );
        }
        assert_eq!(
            reserved.check_secret_not_reserved("api-key", Some(tenant)),
            Ok(())
        );
    }
    for secret in [
        "basic-auth-password",
        "deploy-secret",
        "payload-secret",
        "registry-config",
        "my-deploy-secret",
        "sh.helm.release.v1.slipway.v3",
    ] {
        assert!(
            reserved.check_secret_not_reserved(secret, None).is_err(),
            "{secret}"
        );
    }
}

#[test]
fn each_use_of_a_reserved_name_label_or_service_account_is_one_violation() {
    let reserved = ReservedNames::default();
    for deploy in [
        json!({"service": "hello", "annotations": {"com.openfaas.serviceaccount": "deployer-fn"}}),
        json!({"service": "hello", "labels": {"faas_function": "deployer-fn"}}),
        json!({"service": "deployer-fn"}),
        json!({"service": "hello", "secrets": ["basic-auth-password"]}),
    ] {
        let function = RequestedFunction::from_json(deploy.as_object().unwrap());
        assert_eq!(reserved.violations(&function, None).len(), 1, "{deploy}");
    }
}

#[test]
fn an_annotation_with_rights_of_the_cluster_is_allowed_by_its_full_name_only() {
    let deploy = json!({"service": "hello", "annotations": {
        "topic": "t", "com.openfaas.serviceaccount": "x", "com.openfaas.profile": "y"
    }});
    let function = RequestedFunction::from_json(deploy.as_object().unwrap());
    for (annotations, rejected) in [
        (json!({}), 2),
        (json!({"annotations": ["*"]}), 2),
        (
            json!({"annotations": ["topic", "com.openfaas.*", "com.openfaas.profile"]}),
            1,
        ),
        (
            json!({"annotations": ["topic", "com.openfaas.serviceaccount", "com.openfaas.profile"]}),
            0,
        ),
    ] {
        let violations = tenant_with_members_and_key(annotations.clone())
            .deployments()
            .violations(&function);
        assert_eq!(violations.len(), rejected, "{annotations}: {violations:?}");
    }
}

#[test]
fn a_tenant_runs_images_that_it_may_push_or_that_are_listed_for_reading() {
    let tenant = tenant_with_members_and_key(
        json!({"push": ["registry.example/acme/"], "read": {"images": ["docker.io/library/"]}}),
    );
    assert_eq!(tenant.may_run_image("registry.example/acme/x"), Ok(()));
    assert_eq!(tenant.may_run_image("docker.io/library/nginx"), Ok(()));
    assert!(tenant.may_run_image("registry.example/victim/x").is_err());
    let open_reader = tenant_with_members_and_key(json!({"push": ["registry.example/acme/"]}));
    assert!(open_reader.may_run_image("registry.example/victim/x").is_err());
}

mod reload {
    use std::fs;
    use std::os::unix::fs::symlink;

    use prometheus::IntGauge;

    use super::*;

    const FIRST_POLICY: &str = r#"{"tenants": {"first": {"keys": ["k"]}}}"#;
    const SECOND_POLICY: &str = r#"{"tenants": {"second": {"keys": ["k"]}}}"#;

    fn tenant_names(file: &PolicyFile) -> Vec<String> {
        file.reload_if_changed()
            .tenants()
            .map(|tenant| tenant.name().to_string())
            .collect()
    }

    #[test]
    fn a_changed_policy_is_read_again_and_a_broken_one_keeps_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        assert!(PolicyFile::open(&path).is_err());
        fs::write(&path, FIRST_POLICY).unwrap();
        let gauge = IntGauge::new("policy_valid", "valid").unwrap();
        let file = PolicyFile::open(&path).unwrap();
        file.show_validity_in(gauge.clone());
        assert_eq!((tenant_names(&file), gauge.get()), (vec!["first".to_owned()], 1));

        let replace = |text: &str| {
            let next = folder.path().join("next");
            fs::write(&next, text).unwrap();
            fs::rename(&next, &path).unwrap();
        };
        replace("{\"tenants\": ");
        assert_eq!((tenant_names(&file), gauge.get()), (vec!["first".to_owned()], 0));
        replace(SECOND_POLICY);
        assert_eq!((tenant_names(&file), gauge.get()), (vec!["second".to_owned()], 1));
        fs::remove_file(&path).unwrap();
        assert_eq!((tenant_names(&file), gauge.get()), (vec!["second".to_owned()], 0));
        replace(FIRST_POLICY);
        assert_eq!((tenant_names(&file), gauge.get()), (vec!["first".to_owned()], 1));
    }

    /// Kubernetes mounts a ConfigMap as links through a link `..data`, which it replaces.
    #[test]
    fn a_config_map_that_kubernetes_replaces_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (version, text) in [("..1", FIRST_POLICY), ("..2", SECOND_POLICY)] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("policy.json"), text).unwrap();
        }
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/policy.json", root.join("policy.json")).unwrap();
        let file = PolicyFile::open(root.join("policy.json")).unwrap();
        assert_eq!(tenant_names(&file), ["first"]);
        symlink("..2", root.join("..next")).unwrap();
        fs::rename(root.join("..next"), root.join("..data")).unwrap();
        assert_eq!(tenant_names(&file), ["second"]);
    }
}
