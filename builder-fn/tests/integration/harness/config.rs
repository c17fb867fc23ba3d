//! Checks of the invariants of a build's configuration and of the rules for it, for any bytes.

use builder_fn::request::{
    dockerfile_path_in_config, frontend_violation_in_dockerfile, violations_in_config,
};
use function_host::policy::{Policy, ReservedNames, Tenant};
use serde_json::json;

/// The prefix of the repositories to which the tenant may push.
const PUSH_PREFIX: &str = "registry.example:5000/acme/";

/// The prefix of the names of the functions that the tenant may deploy.
const FUNCTION_PREFIX: &str = "acme-";

/// The secret that no policy allows a function to use.
const RESERVED_SECRET: &str = "payload-secret";

thread_local! {
    static POLICY: Policy = Policy::parse(
        &json!({"tenants": {"acme": {
            "keys": ["acme-payload"],
            "push": [PUSH_PREFIX],
            "functions": [format!("{FUNCTION_PREFIX}*")],
            "secrets": ["*"],
        }}})
        .to_string(),
    )
    .unwrap_or_else(|_| panic!("the policy is valid"));
}

/// Parses the content as a build's configuration, or as the values in one, or as a Dockerfile, and checks what a
/// tenant may do with it.
///
/// The first byte says which of these the content is. Values are divided by line breaks.
pub(crate) fn check_config(mode_and_content: &[u8]) {
    let Some((mode, bytes)) = mode_and_content.split_first() else {
        return;
    };
    POLICY.with(|policy| {
        let tenant = policy.tenant("acme").expect("a tenant");
        match mode % 3 {
            0 => drop(check_config_and_return_whether_allowed(bytes, tenant)),
            1 => check_config_with_values(&String::from_utf8_lossy(bytes), tenant),
            _ => check_frontend_of_dockerfile(bytes, tenant),
        }
    });
}

/// Checks a configuration, and returns whether it is valid and allowed.
fn check_config_and_return_whether_allowed(content: &[u8], tenant: &Tenant) -> bool {
    let mut reserved = ReservedNames::default();
    reserved.reserve_secret(RESERVED_SECRET);
    let violations = violations_in_config(content, tenant, &reserved);
    match dockerfile_path_in_config(content) {
        Err(error) => {
            let error = error.to_string();
            assert!(
                !error.is_empty() && !error.contains(char::is_control),
                "{error:?}"
            );
            assert!(violations.is_err());
            false
        }
        Ok(path) => {
            let is_inside = !path.starts_with('/') && path.split('/').all(|name| name != "..");
            assert!(
                is_inside && !path.contains('\0'),
                "{path:?} leads out of the context"
            );
            let violations = violations.expect("the configuration is valid");
            for violation in &violations {
                assert!(!violation.contains(char::is_control), "{violation:?}");
            }
            violations.is_empty()
        }
    }
}

/// Checks a configuration with these values, one a line: nothing is allowed that the policy excludes.
fn check_config_with_values(values: &str, tenant: &Tenant) {
    let mut values = values.split('\n');
    let mut next = || values.next().unwrap_or_default();
    let (image, service, secret) = (next(), next(), next());
    let config = json!({
        "image": image,
        "deploy": {"service": service, "secrets": [secret]},
        "platforms": [next()],
        "target": next(),
        "dockerfile": next(),
        "cacheTo": [next()],
        "cacheFrom": [next()],
        "timeout": next(),
        "notAfter": next(),
        "submittedAt": next(),
        "notify": next(),
        "buildArgs": {next(): next()},
        "labels": {next(): next()},
        "tags": [next()],
    });
    if check_config_and_return_whether_allowed(config.to_string().as_bytes(), tenant) {
        assert!(image.trim().starts_with(PUSH_PREFIX), "{image:?} is pushed");
        assert!(
            service.is_empty() || service.starts_with(FUNCTION_PREFIX),
            "{service:?} is deployed"
        );
        assert_ne!(secret, RESERVED_SECRET);
    }
}

/// Checks that a tenant without frontends of its own gets no frontend by a directive.
fn check_frontend_of_dockerfile(content: &[u8], tenant: &Tenant) {
    let violation = frontend_violation_in_dockerfile(content, tenant);
    if let Some(violation) = &violation {
        assert!(!violation.contains(char::is_control), "{violation:?}");
    }
    let first_line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let named = first_line.strip_prefix(b"# syntax=").unwrap_or_default();
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || b"/:.".contains(byte);
    if named.len() > 2
        && named[0].is_ascii_lowercase()
        && named.iter().all(is_name)
        && !named.starts_with(b"docker")
    {
        assert!(
            violation.is_some(),
            "{:?} is a frontend",
            String::from_utf8_lossy(named)
        );
    }
}
