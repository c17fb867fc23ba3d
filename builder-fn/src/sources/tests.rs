//! Tests of the rules for sources.

use function_host::policy::Policy;

use super::*;
use crate::sealed::BuildSecrets;

/// A member of a policy that gives the tenant a daemon of its own.
const OWN_DAEMON_JSON: &str = r#""buildkit": "tcp://buildkit-of-acme:1234""#;

/// Returns the rules for a build of the tenant `acme` that has these members in the policy, or, if they are empty, of a
/// builder without a policy.
fn rules_of_policy(acme_members_or_empty_for_no_policy: &str) -> SourceRules {
    let tenant = match acme_members_or_empty_for_no_policy {
        "" => None,
        rules => {
            let text = format!(r#"{{"tenants": {{"acme": {{"keys": ["acme-payload"], {rules}}}}}}}"#);
            let policy = Policy::parse(&text).expect("policy");
            Some(policy.tenant("acme").expect("tenant").clone())
        }
    };
    SourceRules {
        tenant,
        allowed: "files.internal:8080, 10.1.2.3".parse().expect("hosts"),
        sbom_generator: Some("docker.io/operator/scanner:1".into()),
        stored_contexts: OperatorRepository::parse("r.example/slipway/contexts"),
        records: OperatorRepository::parse("r.example/slipway/records"),
        caches: None,
        access: RepositoryAccess::default(),
        secrets: Arc::new(BuildSecrets::default()),
        skips_submodules: false,
    }
}

fn decide_source_without_attributes(rules: &SourceRules, identifier: &str) -> SourceDecision {
    rules.check(identifier, &BTreeMap::new())
}

fn denial_of_source(rules: &SourceRules, identifier: &str) -> String {
    match decide_source_without_attributes(rules, identifier) {
        SourceDecision::Deny(reason) => reason,
        other => panic!("{identifier}: {other:?}"),
    }
}

#[test]
fn no_build_of_a_tenant_reads_stored_contexts_as_images() {
    for rules in [r#""read": {"images": ["r.example/"]}"#, r#""maxBuilds": 1"#] {
        for name in ["contexts", "contexts/acme", "contexts/victim"] {
            let source = format!("docker-image://r.example/slipway/{name}@sha256:00");
            let denial = denial_of_source(&rules_of_policy(rules), &source);
            assert!(
                denial.contains("is a repository for stored contexts"),
                "{rules} {source}: {denial}"
            );
        }
    }
    let source = "docker-image://r.example/slipway/contexts@sha256:00";
    assert_eq!(
        decide_source_without_attributes(&rules_of_policy(""), source),
        SourceDecision::Allow
    );
}

const TENANT_MEMBERS_JSON: &str = r#""push": ["r.example/acme/"], "cache": ["r.example/caches/acme/"], "read": {
    "images": ["docker.io/library/", "10.63.1.2:5000/acme/"],
    "http": ["https://example.com/files/", "http://10.1.2.3/"],
    "git": ["https://github.com/acme/"]}"#;

#[test]
fn without_a_policy_images_and_public_or_allowed_addresses_are_read() {
    let rules = rules_of_policy("");
    for identifier in [
        "local://context",
        "docker-image://docker.io/library/alpine:3",
        "docker-image://10.63.1.2:5000/team/base:1",
        "docker-image://localhost:5000/team/base:1",
        "https://example.com/a",
        "http://files.internal:8080/a",
        "https://10.1.2.3/a",
        "git://github.com/acme/app#main",
    ] {
        assert_eq!(
            decide_source_without_attributes(&rules, identifier),
            SourceDecision::Allow,
            "{identifier}"
        );
    }
    for identifier in [
        "http://127.0.0.1:8222/",
        "https://localhost/",
        "http://files.internal/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://169.254.169.254/latest/meta-data/",
        "https://[::ffff:169.254.169.254]/",
        "http://gateway.openfaas.svc:8080/",
        "http://buildkit-session/x",
        "git://10.0.0.1/x.git",
        "git://gitea/x.git",
        "docker-image://169.254.169.254/x:1",
        "docker-image://metadata.google.internal/x:1",
    ] {
        let reason = denial_of_source(&rules, identifier);
        assert!(reason.contains("allowed_sources"), "{identifier}: {reason}");
    }
    for identifier in [
        "oci-layout://x/y@sha256:00",
        "http://2130706433/",
        "docker-image://alpine",
    ] {
        denial_of_source(&rules, identifier);
    }
}

#[test]
fn a_tenant_reads_what_its_policy_lists_and_what_it_may_push() {
    let rules = rules_of_policy(TENANT_MEMBERS_JSON);
    for identifier in [
        "local://dockerfile",
        "docker-image://docker.io/library/alpine:3@sha256:00",
        "docker-image://10.63.1.2:5000/acme/base:1",
        "docker-image://r.example/acme/app:1",
        "docker-image://r.example/caches/acme/app@sha256:00",
        "docker-image://docker.io/operator/scanner:1",
        "https://example.com/files/a",
        "http://10.1.2.3/a",
    ] {
        assert_eq!(
            decide_source_without_attributes(&rules, identifier),
            SourceDecision::Allow,
            "{identifier}"
        );
    }
    for (identifier, rule) in [
        ("docker-image://r.example/victim/private:1", "read.images"),
        ("docker-image://r.example/acme-b/private:1", "read.images"),
        ("docker-image://docker.io/operator/other:1", "read.images"),
        ("docker-image://r.example/victim/private@sha256:00", "read.images"),
        ("https://example.com/other", "read.http"),
        ("http://example.com/files/a", "read.http"),
        ("https://example.com:8443/files/a", "read.http"),
        ("git://github.com/victim/app", "read.git"),
        ("git://github.com/acme-b/app", "read.git"),
    ] {
        let reason = denial_of_source(&rules, identifier);
        assert!(
            reason.contains(&format!("rule {rule} of tenant acme")),
            "{identifier}: {reason}"
        );
    }
    // The host is checked before the tenant's rules.
    assert!(denial_of_source(&rules, "http://127.0.0.1/").contains("loopback"));
}

#[test]
fn an_address_is_allowed_only_if_the_address_that_git_fetches_is() {
    let rules = rules_of_policy(TENANT_MEMBERS_JSON);
    let attributes = |full: &str| BTreeMap::from([("git.fullurl".to_owned(), full.to_owned())]);
    for full in [
        "http://github.com/acme/app",
        "git@github.com:acme/app",
        "https://10.0.0.1/acme/app",
    ] {
        let decision = rules.check("git://github.com/acme/app", &attributes(full));
        assert!(
            matches!(decision, SourceDecision::Deny(_)),
            "{full}: {decision:?}"
        );
    }
}

#[test]
fn submodules_are_left_out_where_a_tenant_lists_its_sources() {
    let rules = rules_of_policy(TENANT_MEMBERS_JSON);
    let full = BTreeMap::from([(
        "git.fullurl".to_owned(),
        "https://github.com/acme/app.git".to_owned(),
    )]);
    let SourceDecision::AllowWith(converted) = rules.check("git://github.com/acme/app.git", &full) else {
        panic!("submodules are read");
    };
    assert_eq!(converted["git.skipsubmodules"], "true");
    assert_eq!(converted["git.fullurl"], full["git.fullurl"]);
    // The daemon asks again about the converted source.
    assert_eq!(
        rules.check("git://github.com/acme/app.git", &converted),
        SourceDecision::Allow
    );
}

#[test]
fn a_bundle_of_a_git_repository_is_an_image_that_has_to_be_allowed_too() {
    let rules = rules_of_policy(&format!("{TENANT_MEMBERS_JSON}, {OWN_DAEMON_JSON}"));
    let bundle = |image: &str| {
        let attributes = [
            ("git.bundle", format!("docker-image+blob://{image}@sha256:00")),
            ("git.mtime", "commit".to_owned()),
            ("git.skipsubmodules", "true".to_owned()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        rules.check("git://github.com/acme/app", &BTreeMap::from(attributes))
    };
    assert_eq!(bundle("r.example/acme/bundles"), SourceDecision::Allow);
    assert!(matches!(
        bundle("r.example/victim/private"),
        SourceDecision::Deny(_)
    ));
}

#[test]
fn a_blob_is_read_only_from_a_daemon_of_the_tenants_own() {
    let blob = "docker-image+blob://r.example/acme/app@sha256:00";
    let denial = denial_of_source(&rules_of_policy(TENANT_MEMBERS_JSON), blob);
    assert!(
        denial.contains("a BuildKit daemon of the tenant's own"),
        "{denial}"
    );
    let rules = rules_of_policy(&format!("{TENANT_MEMBERS_JSON}, {OWN_DAEMON_JSON}"));
    assert_eq!(
        decide_source_without_attributes(&rules, blob),
        SourceDecision::Allow
    );
    assert_eq!(
        decide_source_without_attributes(&rules_of_policy(""), blob),
        SourceDecision::Allow
    );
    let victims = "docker-image+blob://r.example/victim/private@sha256:00";
    assert!(denial_of_source(&rules, victims).contains("read.images"));
}

#[test]
fn no_tenant_gets_a_source_under_the_key_of_another_or_of_nobody() {
    let checksum = BTreeMap::from([("http.checksum".to_owned(), "sha256:00".to_owned())]);
    let none = BTreeMap::new();
    for (identifier, attributes) in [
        (
            "git://github.com/acme/app#0123456789012345678901234567890123456789",
            &none,
        ),
        ("https://example.com/files/a", &checksum),
    ] {
        assert_eq!(
            rules_of_policy("").check(identifier, attributes),
            SourceDecision::Allow
        );
        for members in [r#""maxBuilds": 1"#, OWN_DAEMON_JSON] {
            let rules = rules_of_policy(members);
            let SourceDecision::AllowWith(converted) = rules.check(identifier, attributes) else {
                panic!("{identifier} is shared");
            };
            let tag = TenantTag::of_tenant(rules.tenant.as_ref().expect("tenant").name());
            let mut expected = attributes.clone();
            match identifier.starts_with("git://") {
                true => tag
                    .separate_git(&mut expected, "github.com/acme/app", &*rules.secrets, true)
                    .expect("git"),
                false => tag.separate_http_if_checksum(&mut expected),
            }
            assert_eq!(converted, expected);
            // The daemon asks again about the converted source.
            assert_eq!(rules.check(identifier, &converted), SourceDecision::Allow);
        }
    }
}

#[test]
fn reading_an_allowed_image_grants_the_pull_scope_of_its_repository_and_no_other() {
    let rules = rules_of_policy(TENANT_MEMBERS_JSON);
    decide_source_without_attributes(&rules, "docker-image://r.example/acme/base:1");
    denial_of_source(&rules, "docker-image://r.example/victim/private:1");
    let scopes = ["repository:acme/base:pull,push", "repository:victim/private:pull"];
    let scopes = scopes.map(str::to_owned);
    assert_eq!(
        rules.access.granted_scopes("r.example", &scopes),
        ["repository:acme/base:pull"]
    );
}
