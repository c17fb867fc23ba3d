//! Tenants of one builder on the real BuildKit and registry: neither reads, fills or changes what belongs to the other.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::{HttpReply, SigningClient},
    registry::RegistryClient,
    testbed::Testbed,
};

const ACME_KEY: &str = "the payload key of acme";
const GLOBEX_KEY: &str = "the payload key of globex";

/// A builder with the tenants acme and globex, on the stack's BuildKit.
struct BuilderWithTwoTenants {
    builder: BuilderProcess,
    _folder: tempfile::TempDir,
}

impl BuilderWithTwoTenants {
    /// Starts the builder. Each tenant may push below `e2e/NAME/`, and has more rules.
    async fn start(
        testbed: &Testbed,
        acme_rules: Value,
        globex_rules: Value,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tenant = |name: &str, rules: Value| {
            let mut tenant = json!({
                "keys": [format!("{name}-payload")],
                "push": [testbed.stack.registry.host.clone() + &format!("/e2e/{name}/")],
                "registryConfig": format!("{name}-registry"),
            });
            for (rule, value) in rules.as_object().into_iter().flatten() {
                tenant[rule] = value.clone();
            }
            tenant
        };
        let policy = json!({"tenants": {"acme": tenant("acme", acme_rules), "globex": tenant("globex", globex_rules)}});
        let path = folder.path().join("policy.json");
        std::fs::write(&path, policy.to_string())?;
        let registry = &testbed.stack.registry;
        let login = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        let wrong =
            RegistryClient::docker_config(&registry.host, "globex", "not a password of this registry");
        let path = path.to_str().context("the path is not UTF-8")?;
        let settings: Vec<_> = [("policy_file", path)]
            .into_iter()
            .chain(settings.iter().copied())
            .collect();
        let builder = BuilderProcess::start_with_secrets_replacing_registry_config(
            testbed,
            &settings,
            &[
                ("acme-payload", ACME_KEY),
                ("globex-payload", GLOBEX_KEY),
                ("acme-registry", &login),
                ("globex-registry", &login),
                ("globex-wrong", &wrong),
                // The builder's own credentials are no tenant's.
                ("registry-config", &login),
            ],
        )
        .await?;
        Ok(Self {
            builder,
            _folder: folder,
        })
    }

    /// Builds this Dockerfile in a context with a file `a`, signed with a tenant's key, and returns the answer.
    async fn build(&self, tenant_key: &str, dockerfile: &str, config: Value) -> Result<HttpReply> {
        let client = SigningClient::new(format!("{}/build", self.builder.url()), tenant_key.as_bytes())?;
        let context = BuildContext::dockerfile(dockerfile).with_file("a", "the file of acme");
        client.post_signed(context.tar_with_config_last(&config)?).await
    }
}

/// Returns a config that names this image, with the tag `1`.
fn config_with_image_of_tag_1(testbed: &Testbed, name: &str) -> Value {
    json!({ "image": testbed.image_name(name, "1") })
}

#[tokio::test]
async fn an_image_of_another_tenant_is_neither_read_nor_overwritten_even_if_the_daemon_has_it() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let own_only = json!({"read": {}});
    let tenants = BuilderWithTwoTenants::start(&testbed, json!({}), own_only, &[]).await?;
    let private = "e2e/acme/private";
    let reply = tenants
        .build(
            ACME_KEY,
            "FROM scratch\nCOPY a /a\n",
            config_with_image_of_tag_1(&testbed, private),
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let host = &testbed.stack.registry.host;
    let digest = testbed
        .registry
        .get_manifest(private, "1")
        .await?
        .context("the image")?
        .digest;

    for dockerfile in [
        format!("FROM {host}/{private}:1\n"),
        format!("FROM {host}/{private}@{digest}\n"),
        format!("FROM scratch\nCOPY --from={host}/{private}:1 / /\n"),
        format!("FROM scratch\nCOPY --from={host}/{private}@{digest} / /\n"),
        format!("ARG BASE={host}/{private}:1\nFROM $BASE\n"),
        format!(
            "FROM scratch AS base\nFROM base\nRUN --mount=type=bind,from={host}/{private}:1,target=/m x\n"
        ),
    ] {
        let reply = tenants
            .build(
                GLOBEX_KEY,
                &dockerfile,
                config_with_image_of_tag_1(&testbed, "e2e/globex/app"),
            )
            .await?;
        assert_eq!(reply.status, 422, "{dockerfile}: {}", reply.text);
        assert!(
            reply
                .text_field("error")
                .contains("policy rule read.images of tenant globex does not allow"),
            "{dockerfile}: {}",
            reply.text
        );
        assert!(!reply.text.contains("the file of acme"), "{}", reply.text);
    }
    for (config, rule) in [
        (config_with_image_of_tag_1(&testbed, private), "push"),
        (
            json!({"image": testbed.image_name("e2e/globex/app", "1"), "skipPush": true,
            "cacheTo": [testbed.image_name(private, "1")]}),
            "push",
        ),
        (
            json!({"image": testbed.image_name("e2e/globex/app", "1"), "cacheFrom": [testbed.image_name(private, "1")]}),
            "read.images",
        ),
    ] {
        let reply = tenants
            .build(GLOBEX_KEY, "FROM scratch\nCOPY a /a\n", config.clone())
            .await?;
        assert_eq!(reply.status, 403, "{config}: {}", reply.text);
        assert!(
            reply
                .text_field("error")
                .contains(&format!("policy rule {rule} of tenant globex")),
            "{config}: {}",
            reply.text
        );
    }
    let after = testbed
        .registry
        .get_manifest(private, "1")
        .await?
        .context("the image")?
        .digest;
    assert_eq!(after, digest, "the tag of acme is what acme pushed");
    Ok(())
}

#[tokio::test]
async fn the_registry_refuses_a_tenant_with_wrong_credentials_even_where_the_policy_allows() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let globex = json!({"registryConfig": "globex-wrong"});
    let tenants = BuilderWithTwoTenants::start(&testbed, json!({}), globex, &[]).await?;
    let private = "e2e/acme/guarded";
    let reply = tenants
        .build(
            ACME_KEY,
            "FROM scratch\nCOPY a /a\n",
            config_with_image_of_tag_1(&testbed, private),
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let host = &testbed.stack.registry.host;
    let digest = testbed
        .registry
        .get_manifest(private, "1")
        .await?
        .context("the image")?
        .digest;

    for reference in [format!("{private}:1"), format!("{private}@{digest}")] {
        let dockerfile = format!("FROM {host}/{reference}\n");
        let config = json!({"image": testbed.image_name("e2e/globex/app", "1"), "skipPush": true});
        let reply = tenants.build(GLOBEX_KEY, &dockerfile, config).await?;
        assert!(
            reply.status == 502 && reply.text_field("error").contains("401"),
            "{reference}: {}",
            reply.text
        );
    }
    let reply = tenants
        .build(
            GLOBEX_KEY,
            "FROM scratch\nCOPY a /a\n",
            config_with_image_of_tag_1(&testbed, "e2e/globex/refused"),
        )
        .await?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(
        testbed
            .registry
            .get_manifest("e2e/globex/refused", "1")
            .await?
            .is_none()
    );
    Ok(())
}

#[tokio::test]
async fn two_tenants_share_neither_cache_mounts_nor_the_results_of_steps() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let tenants = BuilderWithTwoTenants::start(&testbed, json!({}), json!({}), &[]).await?;
    let mount = "--mount=type=cache,id=e2e-tenants,target=/c";
    let build = async |key: &str, step: String| {
        let config = json!({"image": testbed.image_name("e2e/acme/mounts", "1"), "skipPush": true});
        let config = match key {
            ACME_KEY => config,
            _ => json!({"image": testbed.image_name("e2e/globex/mounts", "1"), "skipPush": true}),
        };
        tenants
            .build(key, &format!("FROM {base}\nRUN {mount} {step}\n"), config)
            .await
    };
    let nonce = std::process::id();
    let reply = build(ACME_KEY, format!("echo {nonce} > /c/{nonce}")).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = build(ACME_KEY, format!("grep {nonce} /c/{nonce}")).await?;
    assert_eq!(reply.status, 200, "a tenant keeps its own mount: {}", reply.text);
    let reply = build(
        GLOBEX_KEY,
        format!("test ! -e /c/{nonce} && echo {nonce} > /c/mine"),
    )
    .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    // A step whose result is random: one that two builds share is the same in both.
    let mut layers = Vec::new();
    for (key, name) in [
        (ACME_KEY, "e2e/acme/one"),
        (ACME_KEY, "e2e/acme/two"),
        (GLOBEX_KEY, "e2e/globex/one"),
    ] {
        let dockerfile = format!("FROM {base}\nRUN cat /proc/sys/kernel/random/uuid > /{nonce}\n");
        let reply = tenants
            .build(key, &dockerfile, config_with_image_of_tag_1(&testbed, name))
            .await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let manifest = testbed
            .registry
            .get_manifest(name, "1")
            .await?
            .context("the image")?;
        layers.push(manifest.layer_digests().pop().context("a layer")?);
    }
    assert_eq!(layers[0], layers[1], "a tenant uses the cache of its own builds");
    assert_ne!(
        layers[0], layers[2],
        "a tenant got the result of another tenant's step"
    );
    Ok(())
}

#[tokio::test]
async fn no_build_gets_entitlements_a_tenant_without_network_is_offline_and_step_memory_limits() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let globex = json!({"network": "none"});
    let settings = [("step_memory", "67108864"), ("step_cpus", "0.5")];
    let tenants = BuilderWithTwoTenants::start(&testbed, json!({}), globex, &settings).await?;
    let build = async |key: &str, name: &str, step: &str| {
        let config = json!({"image": testbed.image_name(name, "1"), "skipPush": true, "noCache": true});
        tenants
            .build(key, &format!("FROM {base}\nRUN {step}\n"), config)
            .await
    };
    for step in ["--security=insecure true", "--network=host true"] {
        let reply = build(ACME_KEY, "e2e/acme/entitled", step).await?;
        assert_eq!(reply.status, 422, "{step}: {}", reply.text);
        assert!(
            reply.text_field("error").contains("is not allowed"),
            "{step}: {}",
            reply.text
        );
    }
    // The names of interfaces are before colons.
    let only_loopback = "test \"$(grep -c : /proc/net/dev)\" = 1";
    for step in [only_loopback, &format!("--network=default {only_loopback}")] {
        let reply = build(GLOBEX_KEY, "e2e/globex/offline", step).await?;
        assert_eq!(reply.status, 200, "{step}: {}", reply.text);
    }
    let greedy = "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo ${#x}";
    let reply = build(ACME_KEY, "e2e/acme/greedy", greedy).await?;
    assert_eq!(
        reply.status, 422,
        "a step used more than step_memory: {}",
        reply.text
    );
    Ok(())
}
