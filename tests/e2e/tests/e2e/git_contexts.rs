//! Contexts in a git repository, which BuildKit reads.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    builder_process::BuilderProcess, buildkit::BuildkitDaemon, sealed_secrets::SealingKey,
    smart_git_server::GitRepository, smart_git_server::SmartGitServer, testbed::Testbed,
};

const TOKEN: &str = "the-token-of-a-private-repository";

#[tokio::test]
async fn a_folder_of_a_private_repository_is_built_at_its_commit_and_its_token_is_nowhere() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let repository = GitRepository::create().await?;
    let tagged = repository
        .commit_files(&[
            ("fn/Dockerfile", "FROM scratch\nCOPY text /\n"),
            ("fn/text", "of the tag"),
            ("other", "outside of the context"),
        ])
        .await?;
    repository.tag_commit("v1.0+build").await?;
    let latest = repository.commit_files(&[("fn/text", "of main")]).await?;
    let server = SmartGitServer::start(&repository, TOKEN).await?;
    // A daemon of its own: the stack's is in another network.
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let key = SealingKey::generate()?;
    let keys = tempfile::tempdir()?;
    let key_path = keys.path().join("key");
    std::fs::write(&key_path, key.file_content())?;
    let key_path = key_path.to_str().context("the path is not UTF-8")?;
    let policy = json!({"tenants": {"acme": {
        "keys": ["payload-secret"],
        "registryConfig": "registry-config",
        "read": {"git": [format!("http://{}/", server.host())]},
    }}});
    let policy_path = keys.path().join("policy.json");
    std::fs::write(&policy_path, policy.to_string())?;
    let policy_path = policy_path.to_str().context("the path is not UTF-8")?;
    let daemon_url = daemon.url();
    let settings = [
        ("allowed_sources", server.host()),
        ("buildkit_url", &daemon_url),
        ("build_secrets_private_key_path", key_path),
        ("policy_file", policy_path),
    ];
    // The sources of a tenant get attributes of its own.
    let of_tenant = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &settings[..3]).await?;
    let sealed = key.seal_secret("GIT_AUTH_TOKEN", TOKEN)?;
    let name = "e2e/from-git";
    let request = |git: Value, secrets: Option<&str>| {
        json!({
            "image": testbed.image_name(name, "1"),
            "provenance": "max",
            "context": { "git": git },
            "sealedSecrets": secrets,
        })
    };
    let git =
        |reference: &str| json!({"repository": server.repository_url(), "ref": reference, "subdir": "fn"});
    for (builder, reference, commit) in [
        (&builder, "main", &latest),
        (&builder, "v1.0+build", &tagged),
        (&builder, tagged.as_str(), &tagged),
        (&of_tenant, "main", &latest),
        (&of_tenant, "v1.0+build", &tagged),
    ] {
        let reply = builder
            .client()?
            .post_json(&request(git(reference), Some(&sealed)))
            .await?;

        assert_eq!(reply.status, 200, "{reference}: {}", reply.text);
        assert_eq!(reply.text_field("commit"), *commit, "{reference}");
        assert!(!reply.text.contains(TOKEN), "{}", reply.text);
        let index = testbed
            .registry
            .get_manifest(name, "1")
            .await?
            .context("the image")?;
        let manifests = index.body["manifests"].as_array().context("an index")?.clone();
        let mut texts = String::new();
        for manifest in &manifests {
            let digest = manifest["digest"].as_str().context("a digest")?;
            let manifest = testbed
                .registry
                .get_manifest(name, digest)
                .await?
                .context("a manifest")?;
            let config = manifest.body["config"]["digest"].as_str().context("a config")?;
            texts += &testbed.registry.get_json_blob(name, config).await?.to_string();
            for layer in manifest.body["layers"].as_array().context("layers")? {
                if layer["mediaType"] == "application/vnd.in-toto+json" {
                    let digest = layer["digest"].as_str().context("a digest")?;
                    texts += &testbed.registry.get_json_blob(name, digest).await?.to_string();
                }
            }
        }
        let label = format!("\"org.opencontainers.image.revision\":\"{commit}\"");
        assert!(texts.contains(&label), "{reference}: {texts}");
        assert!(texts.contains("https://slsa.dev/provenance/v1"), "{texts}");
        assert!(!texts.contains(TOKEN), "{texts}");
    }

    for (git, secrets, text) in [
        (git("main"), None, "needs its token among the sealed secrets"),
        (git("no-such-branch"), Some(&*sealed), "does not contain ref"),
        (
            json!({"repository": server.repository_url(), "subdir": "none"}),
            Some(&*sealed),
            "invalid subdir none",
        ),
        (
            json!({"repository": "http://127.0.0.1:1/app.git"}),
            Some(&*sealed),
            "127.0.0.1 is a loopback address",
        ),
    ] {
        let reply = builder
            .client()?
            .post_json(&request(git.clone(), secrets))
            .await?;
        assert_eq!(reply.status, 422, "{git}: {}", reply.text);
        assert!(reply.text_field("error").contains(text), "{git}: {}", reply.text);
        assert!(!reply.text.contains(TOKEN), "{}", reply.text);
    }
    Ok(())
}
