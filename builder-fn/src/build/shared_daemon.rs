//! The rule that tenants share only daemons whose version is known to have no flaw by which one tenant reaches another.

use function_host::policy::{PolicyFile, Tenant};

use crate::buildkit::Connection;
use crate::error::Error;

/// The rule for daemons that several tenants of the policy share. By default there is no policy, and nothing is shared.
#[derive(Clone, Debug, Default)]
pub struct SharedDaemonRule {
    /// The policy, which says who shares a daemon.
    pub policy: Option<PolicyFile>,
    /// Whether tenants may share a daemon of any version, also one that does not report it.
    pub allows_any_version: bool,
}

impl SharedDaemonRule {
    /// Checks that a tenant's build may run on the daemon that was chosen for it, at the pool with this address.
    ///
    /// # Errors
    /// Fails with [`Error::UnsafeSharedDaemon`] if other tenants build there too and the daemon is older than
    /// [`LOWEST_SHARED_BUILDKIT_RELEASE`](crate::buildkit::LOWEST_SHARED_BUILDKIT_RELEASE) or of an unknown version, and
    /// if the daemon does not answer.
    pub(super) async fn check_daemon(
        &self,
        tenant: Option<&Tenant>,
        operators_pool: &str,
        connection: &Connection,
    ) -> Result<(), Error> {
        if self.allows_any_version || !tenant.is_some_and(|tenant| self.is_shared(tenant, operators_pool)) {
            return Ok(());
        }
        // Asked each time, because a daemon may be replaced at any time. It is one small call on the open connection.
        let version = connection.ask_version().await?;
        if version.may_be_shared() {
            return Ok(());
        }
        let daemon = connection.daemon().address_for_messages();
        tracing::error!(daemon, %version, "tenants share a BuildKit daemon that is too old; their builds are refused");
        Err(Error::UnsafeSharedDaemon {
            daemon: daemon.to_owned(),
            version,
        })
    }

    /// Returns whether another tenant builds on the same daemons. A tenant without daemons of its own builds on the
    /// operator's.
    fn is_shared(&self, tenant: &Tenant, operators_pool: &str) -> bool {
        let Some(policy) = &self.policy else {
            return false;
        };
        let address = |tenant: &Tenant| tenant.own_buildkit_address().unwrap_or(operators_pool).to_owned();
        let own = address(tenant);
        let policy = policy.reload_if_changed();
        policy
            .tenants()
            .any(|other| other.name() != tenant.name() && address(other) == own)
    }
}

#[cfg(test)]
mod tests {
    use function_host::policy::Policy;

    use super::*;

    #[test]
    fn a_daemon_is_shared_by_all_tenants_whose_builds_go_to_its_address() {
        let text = r#"{"tenants": {
            "acme": {"keys": ["a"]},
            "beta": {"keys": ["b"], "buildkit": "tcp://operator:1234"},
            "own": {"keys": ["c"], "buildkit": "tcp://own:1234"},
            "first": {"keys": ["d"], "buildkit": "tcp://pair:1234"},
            "second": {"keys": ["e"], "buildkit": "tcp://pair:1234"}
        }}"#;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("policy.json");
        std::fs::write(&path, text).expect("write");
        let rule = SharedDaemonRule {
            policy: Some(PolicyFile::open(path).expect("a policy")),
            allows_any_version: false,
        };
        let policy = Policy::parse(text).expect("a policy");
        for (name, expected) in [
            ("acme", true),
            ("beta", true),
            ("own", false),
            ("first", true),
            ("second", true),
        ] {
            let tenant = policy.tenant(name).expect(name);
            assert_eq!(rule.is_shared(tenant, "tcp://operator:1234"), expected, "{name}");
            assert!(!SharedDaemonRule::default().is_shared(tenant, "tcp://operator:1234"));
        }
    }
}
