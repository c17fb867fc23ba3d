//! Checks a policy, and evaluates it against a request.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use function_host::policy::{InvalidPolicy, Policy, ReservedNames, Tenant};

use super::source;

/// The arguments of `slipway policy check`.
#[derive(Args)]
pub(crate) struct CheckArguments {
    /// The policy's JSON file.
    file: PathBuf,
    /// The tenant that the request is evaluated for. A hand-over may name it itself.
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    request: RequestArguments,
    /// Functions that no policy can allow, as in the setting `protected_functions`.
    #[arg(long, value_delimiter = ',')]
    protected_functions: Vec<String>,
    /// Secrets that no policy can allow, as in the setting `protected_secrets`.
    #[arg(long, value_delimiter = ',')]
    protected_secrets: Vec<String>,
}

#[derive(Args)]
#[group(multiple = false)]
struct RequestArguments {
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

/// The result of a check: lines for the standard output, and whether the request is allowed.
pub(crate) struct PolicyCheckResult {
    pub(crate) lines: Vec<String>,
    pub(crate) is_allowed: bool,
}

impl PolicyCheckResult {
    /// Makes the result of a request: allowed if there are no violations, or else rejected with one line for each.
    fn of_violations(violations: Vec<String>, tenant: &Tenant) -> Self {
        match violations.is_empty() {
            true => Self {
                lines: vec![format!("allowed for tenant {}", tenant.name())],
                is_allowed: true,
            },
            false => Self {
                lines: violations,
                is_allowed: false,
            },
        }
    }
}

/// Checks the policy, and the request if one is given.
///
/// # Errors
/// Fails if the policy is not valid, or the request cannot be read.
pub(crate) fn check_policy_and_request(arguments: &CheckArguments) -> anyhow::Result<PolicyCheckResult> {
    let policy = read_policy(&arguments.file)?;
    let mut reserved = ReservedNames::default();
    for name in &arguments.protected_functions {
        reserved.reserve_function(name);
    }
    for name in &arguments.protected_secrets {
        reserved.reserve_secret(name);
    }
    let named = arguments.tenant.as_deref();
    let request = &arguments.request;
    if let Some(path) = &request.hand_over {
        let bytes = read_file(path)?;
        let name = match named {
            Some(name) => name.to_owned(),
            None => deployer_fn::tenant_in_hand_over(&bytes)
                .with_context(|| format!("{} names no tenant: give one with --tenant", path.display()))?,
        };
        let tenant = find_tenant(&policy, &name)?;
        let violations = deployer_fn::violations_in_hand_over(&bytes, tenant, &reserved)
            .map_err(|problems| anyhow::anyhow!("{}: {}", path.display(), problems.join("; ")))?;
        return Ok(PolicyCheckResult::of_violations(violations, tenant));
    }
    if let Some(path) = &request.config {
        let tenant = find_tenant(&policy, named.context("--config needs --tenant")?)?;
        let violations = builder_fn::request::violations_in_config(&read_file(path)?, tenant, &reserved)
            .with_context(|| path.display().to_string())?;
        return Ok(PolicyCheckResult::of_violations(violations, tenant));
    }
    if let Some(path) = &request.tar {
        let tenant = find_tenant(&policy, named.context("--tar needs --tenant")?)?;
        let source = source::read_config_and_dockerfile(path).with_context(|| path.display().to_string())?;
        let mut violations = builder_fn::request::violations_in_config(&source.config, tenant, &reserved)
            .with_context(|| path.display().to_string())?;
        violations.extend(builder_fn::request::frontend_violation_in_dockerfile(
            &source.dockerfile,
            tenant,
        ));
        return Ok(PolicyCheckResult::of_violations(violations, tenant));
    }
    if let Some(name) = named {
        find_tenant(&policy, name)?;
    }
    let names: Vec<&str> = policy.tenants().map(|tenant| tenant.name().as_str()).collect();
    Ok(PolicyCheckResult {
        lines: vec![format!("valid, with the tenants {}", names.join(", "))],
        is_allowed: true,
    })
}

/// Reads and parses a policy; the error of an invalid one names every problem.
fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    match Policy::parse(&text) {
        Ok(policy) => Ok(policy),
        Err(InvalidPolicy { problems }) => {
            bail!(
                "{} is not a valid policy:\n  {}",
                path.display(),
                problems.join("\n  ")
            )
        }
    }
}

fn find_tenant<'p>(policy: &'p Policy, name: &str) -> anyhow::Result<&'p Tenant> {
    let tenant = policy.tenant(name).map(|tenant| &**tenant);
    tenant.with_context(|| format!("the policy has no tenant {name:?}"))
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}
