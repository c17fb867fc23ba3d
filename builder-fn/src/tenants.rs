//! What a tenant has of its own: registry credentials, and maybe BuildKit daemons.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use function_host::Secrets;
use function_host::policy::Tenant;
use function_host::registry::AdditionalTokenHosts;

use crate::buildkit::{CredentialStore, DaemonPool};
use crate::docker_config::{CredentialHelpers, DockerConfig};
use crate::registry::{NoCredentials, Registries};
use crate::supersede::Supersession;

/// A function that creates the pool of the daemons at an address that a policy names. Connections use TLS if the
/// builder's settings say so.
pub type DaemonFactory = Arc<dyn Fn(&str) -> Result<DaemonPool, String> + Send + Sync>;

/// The clients of registries and the daemons of tenants, created when a tenant first needs them. Clones share them.
#[derive(Clone)]
pub struct TenantResources(Arc<SharedResources>);

struct SharedResources {
    secrets: Secrets,
    insecure: bool,
    token_realms: AdditionalTokenHosts,
    helpers: CredentialHelpers,
    daemon_factory: DaemonFactory,
    /// The registries with tenants' credentials, by the name of the secret that has the credentials.
    registries: Mutex<HashMap<Option<String>, Arc<Registries>>>,
    /// The daemons of tenants, by their addresses.
    daemons: Mutex<HashMap<String, TenantDaemons>>,
}

/// A tenant's own daemons, with the order of the builds on them.
#[derive(Clone, Debug)]
pub struct TenantDaemons {
    /// The tenant's BuildKit daemons.
    pub pool: DaemonPool,
    /// The order of builds of one function on the daemons.
    pub supersession: Supersession,
}

impl TenantResources {
    /// Creates the resources of tenants whose credentials are among `secrets`.
    pub fn new(
        secrets: Secrets,
        insecure: bool,
        token_realms: AdditionalTokenHosts,
        helpers: CredentialHelpers,
        daemon_factory: DaemonFactory,
    ) -> Self {
        Self(Arc::new(SharedResources {
            secrets,
            insecure,
            token_realms,
            helpers,
            daemon_factory,
            registries: Mutex::default(),
            daemons: Mutex::default(),
        }))
    }

    /// Returns the client of registries with the credentials of the tenant. Without `registryConfig` in the policy it
    /// has no credentials: those of the operator and of other tenants are never used.
    pub fn registries_with_own_credentials(&self, tenant: &Tenant) -> Arc<Registries> {
        let secret = tenant.registry_config_secret().map(str::to_owned);
        let mut registries = self.0.registries.lock().unwrap_or_else(PoisonError::into_inner);
        let create = || {
            let credentials: Arc<dyn CredentialStore> = match &secret {
                Some(name) => {
                    let config = DockerConfig::at(self.0.secrets.directory().join(name));
                    Arc::new(config.with_helpers(self.0.helpers.clone()))
                }
                None => Arc::new(NoCredentials),
            };
            Arc::new(Registries {
                credentials,
                secrets: self.0.secrets.clone(),
                insecure: self.0.insecure,
                token_realms: self.0.token_realms.clone(),
            })
        };
        registries.entry(secret.clone()).or_insert_with(create).clone()
    }

    /// Returns the tenant's own daemons, if the policy names one.
    ///
    /// # Errors
    /// Fails if the address of the daemon cannot be used; the text is for the operator.
    pub fn daemon(&self, tenant: &Tenant) -> Result<Option<TenantDaemons>, String> {
        let Some(address) = tenant.own_buildkit_address() else {
            return Ok(None);
        };
        let mut daemons = self.0.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(daemon) = daemons.get(address) {
            return Ok(Some(daemon.clone()));
        }
        let pool = (self.0.daemon_factory)(address)
            .map_err(|problem| format!("tenants.{}.buildkit {problem}", tenant.name()))?;
        let daemon = TenantDaemons {
            supersession: Supersession::new(pool.clone()),
            pool,
        };
        daemons.insert(address.to_owned(), daemon.clone());
        Ok(Some(daemon))
    }
}

impl fmt::Debug for TenantResources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantResources").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use function_host::policy::Policy;

    use super::*;
    use crate::buildkit::Daemon;

    fn example_resources(folder: &tempfile::TempDir) -> TenantResources {
        let daemon_factory: DaemonFactory = Arc::new(|text| {
            let address = text.parse::<crate::buildkit::DaemonAddress>();
            Ok(Daemon::at(address.map_err(|error| error.to_string())?).into())
        });
        TenantResources::new(
            Secrets::new(folder.path()),
            false,
            AdditionalTokenHosts::default(),
            CredentialHelpers::default(),
            daemon_factory,
        )
    }

    fn tenant_with_rules(rules: &str) -> Arc<Tenant> {
        let text = format!(r#"{{"tenants": {{"acme": {{"keys": ["acme-payload"]{rules}}}}}}}"#);
        Policy::parse(&text)
            .expect("policy")
            .tenant("acme")
            .expect("tenant")
            .clone()
    }

    #[tokio::test]
    async fn a_tenant_has_its_own_credentials_and_no_others() {
        let folder = tempfile::tempdir().expect("folder");
        for (name, password) in [("registry-config", "shared"), ("acme-registry", "of acme")] {
            let login =
                format!(r#"{{"auths": {{"r.example": {{"username": "u", "password": "{password}"}}}}}}"#);
            std::fs::write(folder.path().join(name), login).expect("write");
        }
        let resources = example_resources(&folder);
        for (rules, expected) in [
            (r#", "registryConfig": "acme-registry""#, "of acme"),
            (r#", "registryConfig": "acme-missing""#, ""),
            ("", ""),
        ] {
            let registries = resources.registries_with_own_credentials(&tenant_with_rules(rules));
            let credentials = registries.credentials.credentials_or_empty("r.example").await;
            assert_eq!(credentials.secret, expected, "{rules}");
        }
    }

    #[tokio::test]
    async fn a_tenant_has_a_daemon_of_its_own_only_if_the_policy_names_one() {
        let resources = example_resources(&tempfile::tempdir().expect("folder"));
        assert!(
            resources
                .daemon(&tenant_with_rules(""))
                .expect("no daemon")
                .is_none()
        );
        let own = resources
            .daemon(&tenant_with_rules(r#", "buildkit": "tcp://acme-buildkit:1234""#))
            .expect("an address")
            .expect("a daemon");
        assert_eq!(own.pool.address_for_messages(), "tcp://acme-buildkit:1234");
        let error = resources.daemon(&tenant_with_rules(r#", "buildkit": "tcp://acme-buildkit:0x1""#));
        let error = error.expect_err("no address");
        assert!(
            error.starts_with("tenants.acme.buildkit should have a host and a port"),
            "{error}"
        );
    }
}
