//! Contexts in a git repository, which BuildKit reads.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    builder_process::BuilderProcess, buildkit::BuildkitDaemon, control_api::ControlApi,
    registry::RegistryClient, sealed_secrets::BuilderPrivateKey, smart_git_server::GitRepository,
    smart_git_server::SmartGitServer, testbed::Testbed,
};

const GIT_TOKEN: &str = "the-token-of-a-private-repository";

/// Returns the configurations and the provenance of an image with the tag `1`.
async fn configs_and_provenance_json_of_tag_1(testbed: &Testbed, repository: &str) -> Result<String> {
    let registry = &testbed.registry;
    let index = registry
        .get_manifest(repository, "1")
        .await?
        .context("the image")?;
    let mut texts = String::new();
    for manifest in index.body["manifests"].as_array().context("an index")? {
        let digest = manifest["digest"].as_str().context("a digest")?;
        let manifest = registry.get_manifest(repository, digest).await?;
        let manifest = manifest.context("a manifest")?;
        let config = manifest.body["config"]["digest"].as_str().context("a config")?;
        texts += &registry.get_json_blob(repository, config).await?.to_string();
        for layer in manifest.body["layers"].as_array().context("layers")? {
            if layer["mediaType"] == "application/vnd.in-toto+json" {
                let digest = layer["digest"].as_str().context("a digest")?;
                texts += &registry.get_json_blob(repository, digest).await?.to_string();
            }
        }
    }
    Ok(texts)
}

/// Asserts that the builder's own log, its list of builds, and the state and the log of each build, of which there is
/// at least one, do not have the token.
async fn assert_token_is_in_no_answer_about_builds_and_no_log(builder: &BuilderProcess) -> Result<()> {
    let (status, list) = builder.ask("/builds").await?;
    let builds = list["builds"].as_array().context("a list of builds")?;
    assert!(status == 200 && !builds.is_empty(), "{status} {list:#}");
    let mut texts = format!("{}{list}", builder.log_text());
    for build in builds {
        let id = build["id"].as_str().context("an ID")?;
        let (_, state) = builder.ask(&format!("/builds/{id}")).await?;
        let (lines, terminal) = builder
            .questions()?
            .read_numbered_lines_and_terminal_record(id)
            .await?;
        texts += &format!("{state}{lines:?}{terminal}");
    }
    assert!(texts.contains("git"), "{texts}");
    assert!(!texts.contains(GIT_TOKEN), "{texts}");
    Ok(())
}

#[tokio::test]
async fn an_operators_git_token_reads_a_context_that_its_tenants_rules_allow_and_no_step_gets_it()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let repository = GitRepository::create().await?;
    let server = SmartGitServer::start_with_token(&repository, GIT_TOKEN).await?;
    let secrets = format!("GIT_AUTH_TOKEN GIT_AUTH_TOKEN.{}", server.host());
    let mounts: String = secrets
        .split(' ')
        .map(|id| format!("--mount=type=secret,id={id},target=/secrets/{id} "))
        .collect();
    // Git leaves the token in no file of the context either. The Dockerfile, which is one of them, has it in two
    // pieces.
    let (start, end) = GIT_TOKEN.split_at(9);
    let dockerfile = format!(
        "FROM {base}\nCOPY . /context\n\
         RUN {mounts} test -z \"$(ls /secrets 2>/dev/null)\" && ! grep -rq {start}''{end} /context\n"
    );
    let commit = repository
        .write_files_and_commit_all(&[("fn/Dockerfile", &dockerfile), ("fn/text", "of main")])
        .await?;
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let docker_config = RegistryClient::docker_config(
        &testbed.stack.registry.host,
        &testbed.stack.registry.user,
        &testbed.stack.registry.password,
    );
    let secrets = [
        ("registry-config", docker_config.as_str()),
        ("git-token", GIT_TOKEN),
    ];
    let folder = tempfile::tempdir()?;
    let start = async |name: &str, read: Value| {
        let mut policy = json!({"tenants": {"acme": {
            "keys": ["payload-secret"], "registryConfig": "registry-config",
        }}});
        if !read.is_null() {
            policy["tenants"]["acme"]["read"] = read;
        }
        let path = folder.path().join(name);
        std::fs::write(&path, policy.to_string())?;
        let (url, tokens) = (
            daemon.socket_url(),
            format!("http://{}/=git-token", server.host()),
        );
        let settings = [
            ("allowed_sources", server.host()),
            ("buildkit_url", &url),
            ("git_tokens", &tokens),
            ("policy_file", path.to_str().context("the path is not UTF-8")?),
        ];
        BuilderProcess::start_with_secrets_replacing_registry_config(&testbed, &settings, &secrets).await
    };
    let images = format!("{}/", testbed.stack.registry.host);
    let rules = json!({"git": [format!("http://{}/", server.host())], "images": [images]});
    let with_rule = start("with-rule", rules).await?;
    let without = start("without", Value::Null).await?;
    let name = "e2e/from-git-of-the-operator";
    let request = json!({
        "image": testbed.image_name(name, "1"),
        "provenance": "max",
        "context": {"git": {"repository": server.repository_url(), "ref": "main", "subdir": "fn"}},
    });

    let reply = without.build_client_with_own_key()?.post_json(&request).await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    assert!(
        reply.text_field("error").contains("needs its token"),
        "{}",
        reply.text
    );
    let reply = with_rule.build_client_with_own_key()?.post_json(&request).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.text_field("commit"), commit);
    assert!(!reply.text.contains(GIT_TOKEN), "{}", reply.text);
    let texts = configs_and_provenance_json_of_tag_1(&testbed, name).await?;
    assert!(texts.contains("https://slsa.dev/provenance/v1"), "{texts}");
    assert!(!texts.contains(GIT_TOKEN), "{texts}");
    assert_token_is_in_no_answer_about_builds_and_no_log(&with_rule).await?;
    // The checkout is the tenant's alone.
    let reply = without.build_client_with_own_key()?.post_json(&request).await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn a_private_git_subdir_is_built_at_the_refs_commit_and_its_token_is_in_no_answer_or_image()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let repository = GitRepository::create().await?;
    let tagged = repository
        .write_files_and_commit_all(&[
            ("fn/Dockerfile", "FROM scratch\nCOPY text /\n"),
            ("fn/text", "of the tag"),
            ("other", "outside of the context"),
        ])
        .await?;
    repository.tag_last_commit("v1.0+build").await?;
    let latest = repository
        .write_files_and_commit_all(&[("fn/text", "of main")])
        .await?;
    let server = SmartGitServer::start_with_token(&repository, GIT_TOKEN).await?;
    // A daemon of its own: the stack's is in another network.
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let key = BuilderPrivateKey::generate()?;
    let keys = tempfile::tempdir()?;
    let key_path = keys.path().join("key");
    std::fs::write(&key_path, key.private_key_file_content())?;
    let key_path = key_path.to_str().context("the path is not UTF-8")?;
    let policy = json!({"tenants": {"acme": {
        "keys": ["payload-secret"],
        "registryConfig": "registry-config",
        "read": {"git": [format!("http://{}/", server.host())]},
    }}});
    let policy_path = keys.path().join("policy.json");
    std::fs::write(&policy_path, policy.to_string())?;
    let policy_path = policy_path.to_str().context("the path is not UTF-8")?;
    let daemon_url = daemon.socket_url();
    let settings = [
        ("allowed_sources", server.host()),
        ("buildkit_url", &daemon_url),
        ("build_secrets_private_key_path", key_path),
        ("policy_file", policy_path),
    ];
    // The sources of a tenant get attributes of its own.
    let of_tenant = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &settings[..3]).await?;
    let sealed = key.seal_secret("GIT_AUTH_TOKEN", GIT_TOKEN)?;
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
            .build_client_with_own_key()?
            .post_json(&request(git(reference), Some(&sealed)))
            .await?;

        assert_eq!(reply.status, 200, "{reference}: {}", reply.text);
        assert_eq!(reply.text_field("commit"), *commit, "{reference}");
        assert!(!reply.text.contains(GIT_TOKEN), "{}", reply.text);
        let texts = configs_and_provenance_json_of_tag_1(&testbed, name).await?;
        let label = format!("\"org.opencontainers.image.revision\":\"{commit}\"");
        assert!(texts.contains(&label), "{reference}: {texts}");
        assert!(texts.contains("https://slsa.dev/provenance/v1"), "{texts}");
        assert!(!texts.contains(GIT_TOKEN), "{texts}");
    }

    let history = ControlApi::connect(&daemon).await?.history_text().await?;
    assert!(history.contains(&latest), "{history}");
    assert!(!history.contains(GIT_TOKEN), "{history}");
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
            .build_client_with_own_key()?
            .post_json(&request(git.clone(), secrets))
            .await?;
        assert_eq!(reply.status, 422, "{git}: {}", reply.text);
        assert!(reply.text_field("error").contains(text), "{git}: {}", reply.text);
        assert!(!reply.text.contains(GIT_TOKEN), "{}", reply.text);
    }
    for builder in [&builder, &of_tenant] {
        assert_token_is_in_no_answer_about_builds_and_no_log(builder).await?;
    }
    Ok(())
}
