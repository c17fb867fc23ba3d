//! Checks a policy, and evaluates it against a request.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use function_host::ErrorChain;
use function_host::policy::{InvalidPolicy, Policy, ReservedNames, Tenant};

use super::source;
use crate::failure::Failure;

/// The arguments of `slipway policy check`.
#[derive(Args)]
pub(crate) struct CheckArguments {
    /// The policy's JSON file.
    file: PathBuf,
    /// The tenant that the request is evaluated for. A hand-over may name it itself.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    request: RequestFileArguments,
    /// Functions that no policy can allow, as in the setting `protected_functions`.
    #[arg(long, value_delimiter = ',')]
    protected_functions: Vec<String>,
    /// Secrets that no policy can allow, as in the setting `protected_secrets`.
    #[arg(long, value_delimiter = ',')]
    protected_secrets: Vec<String>,
}

#[derive(Args)]
#[group(multiple = false)]
struct RequestFileArguments {
    /// A build's configuration (com.openfaas.docker.config).
    #[arg(long)]
    config: Option<PathBuf>,
    /// A build's tar, plain or compressed with gzip or zstd. Its Dockerfile's frontend is evaluated, too.
    #[arg(long)]
    tar: Option<PathBuf>,
    /// The file with the JSON of a hand-over to evaluate.
    #[arg(long)]
    hand_over: Option<PathBuf>,
}

/// The result of a check.
pub(crate) struct PolicyCheckResult {
    /// The lines for the standard output.
    pub(crate) lines: Vec<String>,
    /// What to do next if the request is rejected; `None` if it is allowed, or there is none.
    pub(crate) next_if_rejected: Option<String>,
}

impl PolicyCheckResult {
    /// Makes the result of a request: allowed if there are no violations, or else rejected with one line for each.
    fn of_violations(violations: Vec<String>, tenant: &Tenant, policy: &Path, request: &Path) -> Self {
        match violations.is_empty() {
            true => Self {
                lines: vec![format!("allowed for tenant {}", tenant.name())],
                next_if_rejected: None,
            },
            false => Self {
                lines: violations,
                next_if_rejected: Some(format!(
                    "change what the lines name in {}, or the rules of the tenant {} in {}",
                    request.display(),
                    tenant.name(),
                    policy.display()
                )),
            },
        }
    }
}

/// Checks the policy, and the request if one is given.
///
/// # Errors
/// Fails if the policy is not valid, or the request cannot be read.
pub(crate) fn check_policy_and_request(arguments: &CheckArguments) -> Result<PolicyCheckResult, Failure> {
    let policy = read_policy(&arguments.file)?;
    let mut reserved = ReservedNames::default();
    for name in &arguments.protected_functions {
        reserved.reserve_function_in_every_namespace(name);
    }
    for name in &arguments.protected_secrets {
        reserved.reserve_secret(name);
    }
    let named = arguments.tenant.as_deref();
    let request = &arguments.request;
    if let Some(path) = &request.hand_over {
        let bytes = read_whole_request_file(path)?;
        let name = match named {
            Some(name) => name.to_owned(),
            None => deployer_fn::tenant_in_valid_hand_over(&bytes).ok_or_else(|| {
                let message = format!("{} names no tenant", path.display());
                failure_of_missing_tenant(message, &policy)
            })?,
        };
        let tenant = find_tenant(&policy, &name)?;
        let violations = deployer_fn::violations_in_hand_over(&bytes, tenant, &reserved)
            .map_err(|problems| failure_of_request(path, &problems.join("; ")))?;
        return Ok(PolicyCheckResult::of_violations(
            violations,
            tenant,
            &arguments.file,
            path,
        ));
    }
    let needed_tenant = |option: &str| match named {
        Some(name) => find_tenant(&policy, name),
        None => Err(failure_of_missing_tenant(
            format!("{option} needs --tenant"),
            &policy,
        )),
    };
    if let Some(path) = &request.config {
        let tenant = needed_tenant("--config")?;
        let violations = violations_in_config(path, &read_whole_request_file(path)?, tenant, &reserved)?;
        return Ok(PolicyCheckResult::of_violations(
            violations,
            tenant,
            &arguments.file,
            path,
        ));
    }
    if let Some(path) = &request.tar {
        let tenant = needed_tenant("--tar")?;
        let source = source::read_config_and_dockerfile_in_tar(path)
            .map_err(|error| failure_of_request(path, &format!("{error:#}")))?;
        let mut violations = violations_in_config(path, &source.config, tenant, &reserved)?;
        violations.extend(builder_fn::request::frontend_violation_in_dockerfile(
            &source.dockerfile,
            tenant,
        ));
        return Ok(PolicyCheckResult::of_violations(
            violations,
            tenant,
            &arguments.file,
            path,
        ));
    }
    if let Some(name) = named {
        find_tenant(&policy, name)?;
    }
    Ok(PolicyCheckResult {
        lines: vec![format!("valid, with the tenants {}", names_of_tenants(&policy))],
        next_if_rejected: None,
    })
}

/// Reads and parses a policy; the error of an invalid one names every problem.
fn read_policy(path: &Path) -> Result<Policy, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::usage(
            format!("could not read {}: {error}", path.display()),
            "name the policy's JSON file: slipway policy check FILE",
        )
    })?;
    Policy::parse(&text).map_err(|InvalidPolicy { problems }| {
        Failure::usage(
            format!(
                "{} is not a valid policy:\n  {}",
                path.display(),
                problems.join("\n  ")
            ),
            format!("correct {} as the lines above say", path.display()),
        )
    })
}

fn read_whole_request_file(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| failure_of_request(path, &error.to_string()))
}

fn violations_in_config(
    path: &Path,
    config: &[u8],
    tenant: &Tenant,
    reserved: &ReservedNames,
) -> Result<Vec<String>, Failure> {
    builder_fn::request::violations_in_config(config, tenant, reserved)
        .map_err(|error| failure_of_request(path, &ErrorChain(&error).to_string()))
}

fn find_tenant<'p>(policy: &'p Policy, name: &str) -> Result<&'p Tenant, Failure> {
    let tenant = policy.tenant(name).map(|tenant| &**tenant);
    tenant.ok_or_else(|| failure_of_missing_tenant(format!("the policy has no tenant {name:?}"), policy))
}

/// Creates the error for a request that names no tenant, or one that the policy does not have.
fn failure_of_missing_tenant(message: String, policy: &Policy) -> Failure {
    let names = names_of_tenants(policy);
    Failure::usage(
        message,
        match names.is_empty() {
            true => "add the tenant to the policy, which has none".to_owned(),
            false => format!("give one of the policy's tenants with --tenant NAME: {names}"),
        },
    )
}

/// Creates the error for a request that cannot be read.
fn failure_of_request(path: &Path, problem: &str) -> Failure {
    Failure::usage(
        format!("{}: {problem}", path.display()),
        format!(
            "correct {}, or name another file: slipway policy check --help says what each option takes",
            path.display()
        ),
    )
}

fn names_of_tenants(policy: &Policy) -> String {
    let names: Vec<&str> = policy.tenants().map(|tenant| tenant.name().as_str()).collect();
    names.join(", ")
}
