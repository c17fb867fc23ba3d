//! Two tenants of one builder, the victim and the attacker, with a deployer that has the same policy.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::{HttpReply, SigningClient},
    deployer_process::DeployerProcess,
    deployer_route::DeployerRoute,
    pausing_proxy::PausingProxy,
    registry::RegistryClient,
    testbed::Testbed,
};

/// The signing key of the victim.
pub(crate) const VICTIM_KEY: &str = "the key of the victim";
/// The signing key of the attacker.
pub(crate) const MALLORY_KEY: &str = "the key of mallory";

/// A tenant of the builder: a client that signs with its key, and its part of the registry.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) client: SigningClient,
    /// The part of the registry that the tenant may push to, `HOST/hostile/TENANT`.
    repositories: String,
}

impl Tenant {
    /// Returns the name of one of the tenant's images.
    pub(crate) fn image(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.repositories)
    }

    /// Builds a context with this config and returns the answer.
    pub(crate) async fn build(&self, source: &BuildContext, config: &Value) -> Result<HttpReply> {
        self.client
            .post_signed(source.tar_with_config_last(config)?)
            .await
    }

    /// Builds a Dockerfile without a push and without the cache, and returns the answer.
    pub(crate) async fn build_dockerfile_without_push_or_cache(
        &self,
        name: &str,
        dockerfile: impl Into<String>,
    ) -> Result<HttpReply> {
        let config = json!({ "image": self.image(name, "1"), "skipPush": true, "noCache": true });
        self.build(&BuildContext::dockerfile(dockerfile), &config).await
    }
}

/// The addresses besides images that the tenants' builds may read.
#[derive(Debug, Default)]
pub(crate) struct ReadableFileAndGitUrls {
    /// The addresses of files that the victim's builds may read.
    pub(crate) victim_http: Vec<String>,
    /// The addresses of files that the attacker's builds may read.
    pub(crate) mallory_http: Vec<String>,
    /// The addresses of git repositories that the builds of both may read.
    pub(crate) git: Vec<String>,
}

/// A registry beside the stack's, in which both tenants keep their images. The policy lets each use all of it: only the
/// registry distinguishes them, by their own accounts.
#[derive(Debug)]
pub(crate) struct RegistryWithAccounts {
    /// The registry's host and port, as in image references.
    pub(crate) host: String,
    /// The Docker `config.json` of each tenant.
    pub(crate) victim_login: String,
    pub(crate) mallory_login: String,
    /// The certificate of the authority that signed the registry's, in PEM.
    pub(crate) authority: String,
}

/// A builder and a deployer beside the stack, and the two tenants of their policy.
pub(crate) struct AttackWorld {
    pub(crate) testbed: Testbed,
    pub(crate) builder: BuilderProcess,
    pub(crate) deployer: DeployerProcess,
    /// The gateway of the deployer; it records the deployer's requests.
    pub(crate) gateway: PausingProxy,
    pub(crate) victim: Tenant,
    pub(crate) mallory: Tenant,
    policy: tempfile::TempDir,
    /// The route from the builder to the deployer; it records hand-overs.
    pub(crate) route: DeployerRoute,
}

impl AttackWorld {
    /// Starts the builder and the deployer with the policy of both tenants.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with_settings(&[], &[]).await
    }

    /// Starts the builder with more settings, and a policy that lets the attacker read these addresses.
    pub(crate) async fn start_with_settings(
        builder_settings: &[(&str, &str)],
        urls_mallory_may_read: &[String],
    ) -> Result<Self> {
        let readable = ReadableFileAndGitUrls {
            mallory_http: urls_mallory_may_read.to_vec(),
            ..ReadableFileAndGitUrls::default()
        };
        Self::start_with_readable_addresses(builder_settings, &readable).await
    }

    /// Starts the builder with more settings, and a policy that lets the tenants read these addresses.
    pub(crate) async fn start_with_readable_addresses(
        settings: &[(&str, &str)],
        readable: &ReadableFileAndGitUrls,
    ) -> Result<Self> {
        Self::start_with_optional_registry(settings, readable, None).await
    }

    /// Starts the builder with more settings, and a policy that lets each tenant read and push all images of a registry
    /// beside the stack's.
    pub(crate) async fn start_with_permissive_policy_for_registry(
        settings: &[(&str, &str)],
        registry: &RegistryWithAccounts,
    ) -> Result<Self> {
        Self::start_with_optional_registry(settings, &ReadableFileAndGitUrls::default(), Some(registry)).await
    }

    async fn start_with_optional_registry(
        settings: &[(&str, &str)],
        readable: &ReadableFileAndGitUrls,
        registry: Option<&RegistryWithAccounts>,
    ) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        // Base images are built by the stack's own builder, before there is a policy.
        testbed.build_busybox_once_and_get_name().await?;
        let policy = tempfile::tempdir()?;
        let path = policy.path().join("policy.json");
        let rules = match registry {
            None => policy_of_both_tenants(&testbed, readable),
            Some(registry) => permissive_policy_for_registry(&testbed, registry),
        };
        fs::write(&path, rules.to_string())?;
        let path = path.to_str().context("the path is not UTF-8")?.to_owned();

        let gateway = PausingProxy::start_to_gateway(&testbed.stack.gateway.url).await?;
        let deployer_settings = [("policy_file", path.as_str())];
        let secrets = secrets_to_give_both_functions(&testbed, registry);
        let deployer =
            DeployerProcess::start_with_more_secrets(&testbed, gateway.url(), &deployer_settings, &secrets)
                .await?;
        let route = DeployerRoute::start_forwarding_to(deployer.url()).await?;
        let mut all = vec![
            ("policy_file", path.as_str()),
            ("gateway_url", route.gateway_url()),
        ];
        all.extend(settings);
        let secrets: Vec<_> = secrets
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let builder =
            BuilderProcess::start_with_secrets_replacing_registry_config(&testbed, &all, &secrets).await?;
        let host = registry.map_or(&testbed.stack.registry.host, |registry| &registry.host);
        let tenant = |name: &str, key: &str| -> Result<Tenant> {
            Ok(Tenant {
                client: SigningClient::new(format!("{}/build", builder.url()), key.as_bytes())?,
                repositories: format!("{host}/hostile/{name}"),
            })
        };
        Ok(Self {
            victim: tenant("victim", VICTIM_KEY)?,
            mallory: tenant("mallory", MALLORY_KEY)?,
            testbed,
            builder,
            deployer,
            gateway,
            policy,
            route,
        })
    }

    /// Returns the path of a folder for files of the test, removed at its end.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.policy.path()
    }
}

/// Returns the secrets of both functions: the tenants' keys, and the registry's credentials for tenants and builder.
fn secrets_to_give_both_functions(
    testbed: &Testbed,
    with_accounts: Option<&RegistryWithAccounts>,
) -> Vec<(&'static str, String)> {
    let registry = &testbed.stack.registry;
    let login = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
    let (victim, mallory) = match with_accounts {
        // The stack's registry has one account, with all rights.
        None => (&login, &login),
        Some(registry) => (&registry.victim_login, &registry.mallory_login),
    };
    let mut secrets = vec![
        ("victim-payload", VICTIM_KEY.to_owned()),
        ("mallory-payload", MALLORY_KEY.to_owned()),
        ("payload-secret", format!("{VICTIM_KEY}\n{MALLORY_KEY}\n")),
        ("victim-registry", victim.clone()),
        ("mallory-registry", mallory.clone()),
        ("registry-config", login.clone()),
    ];
    secrets.extend(with_accounts.map(|registry| ("gateway-ca", registry.authority.clone())));
    secrets
}

/// Returns a policy that lets both tenants push all images of the registry, and so read them.
fn permissive_policy_for_registry(testbed: &Testbed, registry: &RegistryWithAccounts) -> Value {
    let busybox = format!("{}/e2e/busybox", testbed.stack.registry.host);
    let tenant = |name: &str| {
        json!({
            "keys": [format!("{name}-payload")],
            "push": [format!("{}/", registry.host)],
            "read": { "images": [format!("{}/", registry.host), busybox] },
            "maxBuilds": 4,
            "registryConfig": format!("{name}-registry"),
        })
    };
    json!({ "tenants": { "victim": tenant("victim"), "mallory": tenant("mallory") } })
}

fn policy_of_both_tenants(testbed: &Testbed, readable: &ReadableFileAndGitUrls) -> Value {
    let host = &testbed.stack.registry.host;
    let tenant = |name: &str, http: &[String]| {
        let images = [
            format!("{host}/hostile/{name}/"),
            format!("{host}/hostile/base/"),
            format!("{host}/e2e/busybox"),
        ];
        json!({
            "keys": [format!("{name}-payload")],
            "push": [format!("{host}/hostile/{name}/")],
            "read": { "images": images, "http": http, "git": readable.git },
            "functions": [format!("{name}-*")],
            "secrets": [format!("{name}-*")],
            "maxBuilds": 4,
            "registryConfig": format!("{name}-registry"),
        })
    };
    json!({ "tenants": {
        "victim": tenant("victim", &readable.victim_http),
        "mallory": tenant("mallory", &readable.mallory_http),
    } })
}
