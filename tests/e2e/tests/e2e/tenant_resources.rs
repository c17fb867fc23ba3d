//! The registry tokens and the BuildKit daemon that a tenant's builds use.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    buildctl::Buildctl,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    certificates::CertificateAuthority,
    client::{HttpReply, SigningClient},
    registry::RegistryClient,
    testbed::Testbed,
    token_registry::{IDENTITY_TOKEN, TOKEN_USER, TOKEN_USER_PASSWORD, TokenRegistry},
};

/// A builder with a policy, whose tenants sign with the content of the secret `NAME-payload`.
struct BuilderWithTenants {
    builder: BuilderProcess,
    _folder: tempfile::TempDir,
}

impl BuilderWithTenants {
    /// Starts a builder whose tenants have these rules, and the key `the payload key of NAME`.
    async fn start(
        testbed: &Testbed,
        tenant_names_and_rules: &[(&str, Value)],
        settings: &[(&str, &str)],
        secrets: &[(&str, &str)],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut policy = json!({});
        let mut all_secrets = secrets.to_vec();
        let keys: Vec<_> = tenant_names_and_rules
            .iter()
            .map(|(name, _)| (format!("{name}-payload"), format!("the payload key of {name}")))
            .collect();
        all_secrets.extend(keys.iter().map(|(name, key)| (name.as_str(), key.as_str())));
        for ((name, rules), (secret, _)) in tenant_names_and_rules.iter().zip(&keys) {
            policy[name] = rules.clone();
            policy[name]["keys"] = json!([secret]);
        }
        let path = folder.path().join("policy.json");
        fs::write(&path, json!({ "tenants": policy }).to_string())?;
        let path = path.to_str().context("the path is not UTF-8")?;
        let mut all_settings = vec![("policy_file", path)];
        all_settings.extend(settings);
        Ok(Self {
            builder: BuilderProcess::start_with_secrets_replacing_registry_config(
                testbed,
                &all_settings,
                &all_secrets,
            )
            .await?,
            _folder: folder,
        })
    }

    /// Builds a context with the files `Dockerfile` and `a` for this tenant.
    async fn build(&self, tenant: &str, dockerfile: &str, config: &Value) -> Result<HttpReply> {
        let key = format!("the payload key of {tenant}");
        let client = SigningClient::new(format!("{}/build", self.builder.url()), key.as_bytes())?;
        let context = BuildContext::dockerfile(dockerfile).with_file("a", "the same file for all");
        client.post_signed(context.tar_with_config_last(config)?).await
    }
}

/// What a registry's token server noted when it issued a token: the credentials that it was requested with, and its
/// scopes.
#[derive(Debug)]
struct IssuedToken {
    /// The credentials that the token was requested with.
    credentials: String,
    /// The scopes, each `repository:NAME:ACTIONS`.
    scopes: Vec<String>,
}

/// Takes the list of tokens that the registry's token server has issued since the last call.
fn take_issued_tokens(registry: &TokenRegistry) -> Result<Vec<IssuedToken>> {
    let parse = |token: String| {
        let (credentials, scopes) = token.split_once(" for ").context("a token without scopes")?;
        Ok(IssuedToken {
            credentials: credentials.to_owned(),
            scopes: scopes.split_whitespace().map(str::to_owned).collect(),
        })
    };
    registry
        .take_issued_token_descriptions()
        .into_iter()
        .map(parse)
        .collect()
}

#[tokio::test]
async fn the_tokens_of_a_tenants_build_are_for_its_own_repositories_and_actions_with_its_own_credentials()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let authority = CertificateAuthority::new("private")?;
    let registry = TokenRegistry::start_with_tls_for_tokens(&testbed, &authority).await?;
    let host = registry.host.as_str();
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("ca.pem"), authority.certificate_pem())?;
    let trust = format!(
        "\n[registry.\"{host}\"]\n  http = false\n  ca = [\"{}/ca.pem\"]\n",
        folder.path().display()
    );
    let daemon = BuildkitDaemon::start(&testbed, &trust).await?;
    let (by_password, by_identity_token) = (
        format!("{TOKEN_USER} by password"),
        "anonymous by identity token".to_owned(),
    );
    let push = |names: &[&str]| {
        names
            .iter()
            .map(|name| format!("{host}/{name}/"))
            .collect::<Vec<_>>()
    };
    let tenants = BuilderWithTenants::start(
        &testbed,
        &[
            ("victim", json!({ "push": push(&["victim", "shared"]), "registryConfig": "password" })),
            (
                "acme",
                json!({ "push": push(&["acme"]), "read": { "images": push(&["shared"]) }, "registryConfig": "identity-token" }),
            ),
            ("globex", json!({ "push": push(&["globex"]) })),
        ],
        &[
            ("buildkit_url", &daemon.socket_url()),
            ("insecure", "false"),
            ("token_realms", "localhost"),
        ],
        &[
            ("gateway-ca", &authority.certificate_pem()),
            ("password", &RegistryClient::docker_config(host, TOKEN_USER, TOKEN_USER_PASSWORD)),
            (
                "identity-token",
                &json!({ "auths": { host: { "identitytoken": IDENTITY_TOKEN } } }).to_string(),
            ),
            // The builder's own credentials belong to no tenant.
            ("registry-config", &RegistryClient::docker_config(host, TOKEN_USER, TOKEN_USER_PASSWORD)),
        ],
    )
    .await?;
    let config = |name: &str| json!({ "image": format!("{host}/{name}:1"), "noCache": true });

    for name in ["victim/private", "shared/base"] {
        let reply = tenants
            .build("victim", "FROM scratch\nCOPY a /a\n", &config(name))
            .await?;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
    }
    let issued = take_issued_tokens(&registry)?;
    assert!(
        issued.iter().all(|token| token.credentials == by_password),
        "{issued:?}"
    );

    // The daemon has the layer of victim/private, which the image of acme has too, and may ask for a token to mount it.
    let reply = tenants
        .build(
            "acme",
            &format!("FROM {host}/shared/base:1\nCOPY a /b\n"),
            &config("acme/app"),
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(registry.has_tag("acme/app", "1"));
    let issued = take_issued_tokens(&registry)?;
    let mut scopes = BTreeSet::new();
    for token in &issued {
        assert_eq!(token.credentials, by_identity_token, "{issued:?}");
        for scope in &token.scopes {
            let may_have = matches!(
                scope.as_str(),
                "repository:acme/app:pull"
                    | "repository:acme/app:push"
                    | "repository:acme/app:pull,push"
                    | "repository:shared/base:pull"
            );
            assert!(may_have, "{scope} in {issued:?}");
            scopes.insert(scope.as_str());
        }
    }
    assert!(scopes.contains("repository:acme/app:pull,push"), "{issued:?}");
    assert!(scopes.contains("repository:shared/base:pull"), "{issued:?}");

    for (name, dockerfile, status) in [
        ("acme/app", format!("FROM {host}/victim/private:1\n"), 422),
        ("victim/private", "FROM scratch\nCOPY a /b\n".to_owned(), 403),
        ("shared/base", "FROM scratch\nCOPY a /b\n".to_owned(), 403),
    ] {
        let reply = tenants.build("acme", &dockerfile, &config(name)).await?;
        assert_eq!(reply.status, status, "{name}: {}", reply.text);
    }
    // This tenant has no credentials, and gets no token with those of the builder or of another tenant.
    let reply = tenants
        .build("globex", "FROM scratch\nCOPY a /a\n", &config("globex/app"))
        .await?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(!registry.has_tag("globex/app", "1"));
    let issued = take_issued_tokens(&registry)?;
    assert!(issued.iter().all(|token| token.scopes.is_empty()), "{issued:?}");
    Ok(())
}

#[tokio::test]
async fn a_tenant_with_a_daemon_of_its_own_builds_there_and_nowhere_else() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let shared = BuildkitDaemon::start(&testbed, "").await?;
    let own = BuildkitDaemon::start(&testbed, "").await?;
    let recorded = |daemon: &BuildkitDaemon| Buildctl::new(&testbed, daemon)?.running_and_ended_build_count();
    let registry = &testbed.stack.registry;
    let login = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
    let rules =
        |name: &str| json!({ "push": [format!("{}/e2e/{name}/", registry.host)], "registryConfig": "login" });
    let mut acme = rules("acme");
    acme["buildkit"] = json!(format!("tcp://127.0.0.1:{}", own.port));
    let tenants = BuilderWithTenants::start(
        &testbed,
        &[("acme", acme), ("globex", rules("globex"))],
        &[("buildkit_url", &shared.socket_url())],
        &[("login", &login)],
    )
    .await?;
    let build = async |tenant: &str| {
        let config = json!({ "image": testbed.image_name(&format!("e2e/{tenant}/daemon"), "1") });
        tenants.build(tenant, "FROM scratch\nCOPY a /a\n", &config).await
    };

    let reply = build("acme").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!((recorded(&own)?, recorded(&shared)?), (1, 0));
    let reply = build("globex").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!((recorded(&own)?, recorded(&shared)?), (1, 1));

    drop(own);
    let reply = tokio::time::timeout(Duration::from_secs(120), build("acme")).await??;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert_eq!(
        recorded(&shared)?,
        1,
        "the shared daemon does not replace the tenant's own"
    );
    let reply = build("globex").await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}
