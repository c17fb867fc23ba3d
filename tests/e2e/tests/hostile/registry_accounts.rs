//! Attacks on another tenant's images that the policy allows, by a mistake of the operator's: each tenant has an account
//! of its own at the registry, which rejects the attacker's.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    buildkit::BuildkitDaemon,
    certificates::CertificateAuthority,
    registry::RegistryClient,
    testbed::Testbed,
    token_registry::{RegistryAccount, TokenRegistry},
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    world::{AttackWorld, RegistryWithAccounts},
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "account-reads-a-private-image",
        attempts: "reads another tenant's image, which the policy allows, by `FROM`, `COPY --from` and a mount of its tag",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "account-reads-a-private-cache",
        attempts: "reads another tenant's steps, which the policy allows, by `cacheFrom`",
        // A cache that cannot be read fails no build.
        stopped_with: &[200],
    },
    AttackDescription {
        name: "account-overwrites-an-image",
        attempts: "pushes over another tenant's tag, which the policy allows, by `image` and `tags`",
        stopped_with: STATUS_OF_REFUSED_PUSH,
    },
    AttackDescription {
        name: "account-overwrites-by-cache",
        attempts: "writes over another tenant's tag, which the policy allows, by `cacheTo` with `skipPush`",
        stopped_with: STATUS_OF_REFUSED_PUSH,
    },
];

/// The status of a build whose push the registry refuses: a password or a right that is missing at a registry is the
/// operator's to mend. The registry itself has to have refused each attempt, which is checked.
const STATUS_OF_REFUSED_PUSH: &[u16] = &[502];

/// The content of the victim's private image.
const PRIVATE_CONTENT: &str = "what-only-the-victims-account-reads";
/// The victim's private repository.
const PRIVATE_REPOSITORY: &str = "hostile/victim/private";
const MALLORY_USER: &str = "mallory";

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_rejects_a_tenants_account_where_the_policy_allows_too_much() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let authority = CertificateAuthority::new("private")?;
    let account = |tenant: &str| RegistryAccount {
        user: tenant.to_owned(),
        password: format!("the registry password of {tenant}"),
        repository_prefixes: vec![format!("hostile/{tenant}/")],
    };
    let (victim, mallory) = (account("victim"), account(MALLORY_USER));
    let accounts = vec![victim.clone(), mallory.clone()];
    let registry = TokenRegistry::start_with_accounts(&testbed, &authority, accounts).await?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("ca.pem"), authority.certificate_pem())?;
    let trust = format!(
        "\n[registry.\"{}\"]\n  http = false\n  ca = [\"{}/ca.pem\"]\n",
        registry.host,
        folder.path().display()
    );
    let daemon = BuildkitDaemon::start(&testbed, &trust).await?;
    let of_both = RegistryWithAccounts {
        host: registry.host.clone(),
        victim_login: login_with_stacks_registry(&testbed, &registry.host, &victim)?,
        mallory_login: login_with_stacks_registry(&testbed, &registry.host, &mallory)?,
        authority: authority.certificate_pem(),
    };
    let settings = [
        ("buildkit_url", daemon.socket_url()),
        ("insecure", "false".to_owned()),
        ("token_realms", "localhost".to_owned()),
    ];
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let world = AttackWorld::start_with_permissive_policy_for_registry(&settings, &of_both).await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "registry-accounts").await?;

    let attacks = AccountAttacks {
        world: &world,
        registry: &registry,
        base: world.testbed.build_busybox_once_and_get_name().await?,
    };
    let digest = attacks.push_private_image_and_return_digest().await?;
    let mut outcomes = Outcomes::default();
    for (name, attempts) in attacks.attempts_of_attacks() {
        let mut outcome = Outcome::before_first_attempt();
        for attempt in attempts {
            outcome = outcome.and(attacks.run_refused_attempt(name, &attempt, &digest).await?);
        }
        outcomes.add_outcome(name, outcome);
    }
    // With the victim's account, all of it is possible: the policy stops none.
    world
        .builder
        .replace_secret("mallory-registry", &of_both.victim_login)?;
    for (name, attempts) in attacks.attempts_of_attacks() {
        for attempt in attempts {
            let rejected_before = registry.requests_rejected_for_scope();
            let reply = world.mallory.build(&attempt.source, &attempt.config).await?;
            ensure!(
                reply.status == 200
                    && registry.requests_rejected_for_scope() == rejected_before
                    && (!attempt.prints_content || reply.text.contains(PRIVATE_CONTENT)),
                "{name} does not succeed with the victim's account either: {} {}",
                reply.status,
                reply.text
            );
        }
    }
    ensure!(
        attacks.private_digest()? != digest,
        "pushes with the victim's account have changed nothing"
    );
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Returns a Docker `config.json` with an account at a registry and the login of the stack's registry, which has the
/// base images.
fn login_with_stacks_registry(testbed: &Testbed, host: &str, account: &RegistryAccount) -> Result<String> {
    let stacks = &testbed.stack.registry;
    let parse = |config: String| serde_json::from_str::<Value>(&config);
    let mut config = parse(RegistryClient::docker_config(
        &stacks.host,
        &stacks.user,
        &stacks.password,
    ))?;
    let own = parse(RegistryClient::docker_config(
        host,
        &account.user,
        &account.password,
    ))?;
    config["auths"][host] = own["auths"][host].clone();
    Ok(config.to_string())
}

/// A build of the attacker's.
struct Attempt {
    source: BuildContext,
    config: Value,
    /// Whether a step prints the content of the victim's image if the build can read it.
    prints_content: bool,
}

/// Attacks with the attacker's account, at a registry that knows which repositories an account may use.
struct AccountAttacks<'a> {
    world: &'a AttackWorld,
    registry: &'a TokenRegistry,
    base: &'static str,
}

impl AccountAttacks<'_> {
    async fn push_private_image_and_return_digest(&self) -> Result<String> {
        let victim = &self.world.victim;
        let source = BuildContext::dockerfile(format!("FROM {}\nCOPY private /private\n", self.base))
            .with_file("private", PRIVATE_CONTENT);
        let config = json!({
            "image": victim.image("private", "1"),
            "cacheTo": [format!("type=registry,ref={},mode=max", victim.image("private", "cache"))],
        });
        let reply = victim.build(&source, &config).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        // The attacker's account works where it may be used.
        let own = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a");
        let config = json!({ "image": self.world.mallory.image("own", "1") });
        let reply = self.world.mallory.build(&own, &config).await?;
        ensure!(reply.status == 200, "the attacker's own image: {}", reply.text);
        self.private_digest()
    }

    /// Returns the digest of the victim's private image in the registry.
    fn private_digest(&self) -> Result<String> {
        let digest = self.registry.digest_of_tag(PRIVATE_REPOSITORY, "1")?;
        digest.context("the victim's image is gone")
    }

    /// Returns the attempts of each attack.
    fn attempts_of_attacks(&self) -> Vec<(&'static str, Vec<Attempt>)> {
        let (victim, mallory) = (&self.world.victim, &self.world.mallory);
        let private = victim.image("private", "1");
        let own_without_push =
            || json!({ "image": mallory.image("own", "1"), "skipPush": true, "noCache": true });
        let read = |dockerfile: String| Attempt {
            source: BuildContext::dockerfile(dockerfile),
            config: own_without_push(),
            prints_content: true,
        };
        let base = self.base;
        let source =
            || BuildContext::dockerfile(format!("FROM {base}\nCOPY a /a\n")).with_file("a", "overwritten");
        let write = |config: Value| Attempt {
            source: source(),
            config,
            prints_content: false,
        };
        let cache = victim.image("private", "cache");
        vec![
            (
                "account-reads-a-private-image",
                vec![
                    read(format!("FROM {private}\nRUN cat /private\n")),
                    read(format!(
                        "FROM {base}\nCOPY --from={private} /private /got\nRUN cat /got\n"
                    )),
                    read(format!(
                        "FROM {base}\nRUN --mount=type=bind,from={private},target=/x cat /x/private\n"
                    )),
                ],
            ),
            (
                "account-reads-a-private-cache",
                vec![write(json!({
                    "image": mallory.image("own", "1"), "skipPush": true,
                    "cacheFrom": [format!("type=registry,ref={cache}")],
                }))],
            ),
            (
                "account-overwrites-an-image",
                vec![
                    write(json!({ "image": private })),
                    write(json!({ "image": victim.image("private", "added"), "tags": ["1"] })),
                ],
            ),
            (
                "account-overwrites-by-cache",
                vec![write(json!({
                    "image": mallory.image("own", "1"), "skipPush": true,
                    "cacheTo": [format!("type=registry,ref={private},mode=max")],
                }))],
            ),
        ]
    }

    /// Builds as the attacker. The attempt succeeds if the answer has the private content, or the victim's repository
    /// has changed. Fails if the attempt did not reach the registry and was not refused there.
    async fn run_refused_attempt(
        &self,
        name: &str,
        attempt: &Attempt,
        digest_before: &str,
    ) -> Result<Outcome> {
        self.registry.take_users_and_refused_scopes();
        let rejected_before = self.registry.requests_rejected_for_scope();
        let reply = self.world.mallory.build(&attempt.source, &attempt.config).await?;
        let refused = self.registry.take_users_and_refused_scopes();
        let rejected = self.registry.requests_rejected_for_scope() - rejected_before;
        let is_changed =
            self.private_digest()? != digest_before || self.registry.has_tag(PRIVATE_REPOSITORY, "added");
        let outcome = Outcome::of_reply(is_changed || reply.text.contains(PRIVATE_CONTENT), &reply);
        let is_refused_to_attacker = refused
            .iter()
            .any(|(user, scope)| user == MALLORY_USER && scope.contains(PRIVATE_REPOSITORY));
        ensure!(
            outcome.has_succeeded() || (is_refused_to_attacker && rejected > 0),
            "{name}: the registry rejected {rejected} requests, and no token for {refused:?}: {} {}",
            reply.status,
            reply.text
        );
        Ok(outcome)
    }
}
