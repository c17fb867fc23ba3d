//! Contexts that are larger than any message of the queue, by each kind of reference, built through the queue.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use axum::body::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    build_context::BuildContext,
    buildkit::BuildkitDaemon,
    certificates::CertificateAuthority,
    context_tree::decompress_layer,
    deployed_builder::DeployedBuilder,
    file_server::FileServer,
    incompressible::incompressible_bytes_rounded_down_to_8,
    smart_git_server::{GitRepository, SmartGitServer},
    tcp_proxy::TcpProxy,
    testbed::Testbed,
    tls_proxy::TlsProxy,
};

/// The Community Edition's limit on a queued body, in bytes.
const COMMUNITY_EDITION_QUEUED_BODY_MAX_BYTES: usize = 256_000;

/// The size of the file in the contexts, in bytes. No compression makes it smaller.
const LARGE_FILE_BYTES: usize = 300_000_000;

/// The limit on the memory of a builder without the pages of its program, in bytes: much less than the contexts.
const BUILDER_OWN_MEMORY_MAX_BYTES: usize = 64 << 20;

/// The repository of the stored contexts, without the registry's host.
const CONTEXTS_REPOSITORY: &str = "e2e/contexts-large";

/// A context with one large file, whose image has the file and the file's hash as the builder's step computed it.
struct LargeContextAsTarAndGitCommit {
    hash: String,
    tar: Bytes,
    repository: GitRepository,
    commit: String,
}

impl LargeContextAsTarAndGitCommit {
    async fn generate(base: &str) -> Result<Self> {
        let file = incompressible_bytes_rounded_down_to_8(LARGE_FILE_BYTES);
        let hash = hex::encode(Sha256::digest(&file));
        let dockerfile = format!("FROM {base}\nCOPY large /large\nRUN sha256sum </large >/digest\n");
        let repository = GitRepository::create().await?;
        repository.write_file("large", &file)?;
        let commit = repository
            .write_files_and_commit_all(&[("Dockerfile", &dockerfile)])
            .await?;
        let tar = BuildContext::dockerfile(dockerfile).with_file("large", file);
        Ok(Self {
            hash,
            tar: tar.tar_without_config()?.into(),
            repository,
            commit,
        })
    }
}

/// A build that has succeeded, as the builder that ran it has described it.
struct SeenBuild {
    id: String,
    state: Value,
    log: Vec<(u64, String)>,
    terminal: Value,
}

impl SeenBuild {
    /// Asserts that a builder gives the same state and the same log again.
    async fn assert_same_at(&self, builder: &DeployedBuilder<'_>) -> Result<()> {
        let questions = builder.questions()?;
        let (status, state) = questions.get(&format!("/builds/{}", self.id)).await?;
        assert_eq!(status, 200, "{state:#}");
        for field in ["state", "digest", "commit", "image"] {
            assert_eq!(state[field], self.state[field], "{field}: {state:#}");
        }
        let (log, terminal) = questions
            .read_numbered_lines_and_terminal_record(&self.id)
            .await?;
        assert_eq!(log, self.log);
        assert_eq!(terminal["status"], self.terminal["status"], "{terminal:#}");
        Ok(())
    }
}

/// Sends a request through the queue, follows the log of the build to its end, and asserts that the image has the large
/// file.
async fn build_through_queue_and_assert_image(
    testbed: &Testbed,
    builder: &DeployedBuilder<'_>,
    context: &LargeContextAsTarAndGitCommit,
    reference_kind: &str,
    reference: Value,
) -> Result<SeenBuild> {
    let repository = format!("e2e/large-context-by-{reference_kind}");
    if let Some(manifest) = testbed.registry.get_manifest(&repository, "1").await? {
        testbed
            .registry
            .delete_manifest_and_its_tags(&repository, &manifest.digest)
            .await?;
    }
    let request = json!({ "image": testbed.image_name(&repository, "1"), "context": reference });
    assert!(request.to_string().len() < COMMUNITY_EDITION_QUEUED_BODY_MAX_BYTES);
    let reply = builder.queued_client()?.post_json(&request).await?;
    ensure!(
        reply.status == 202,
        "{reference_kind}: {} {}",
        reply.status,
        reply.text
    );
    let id = reply.call_id.context("the answer has no call id")?;
    builder.wait_until_known(&id).await?;
    // While it runs.
    let (log, terminal) = builder
        .questions()?
        .read_numbered_lines_and_terminal_record(&id)
        .await?;
    assert_eq!(terminal["status"], "success", "{reference_kind}: {terminal:#}");
    assert!(
        log.iter().any(|(_, line)| line.contains("sha256sum")),
        "{reference_kind}: {log:?}"
    );
    let build = builder
        .wait_for_state_or_timeout(&id, "success")
        .await
        .context(reference_kind.to_owned())?;

    let image = testbed.registry.get_manifest(&repository, "1").await?;
    let image = image.with_context(|| format!("{reference_kind}: no image"))?;
    assert_eq!(build["digest"], image.digest, "{reference_kind}: {build:#}");
    let sizes: Vec<_> = image.body["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|layer| layer["size"].as_u64())
        .collect();
    assert!(
        sizes.iter().any(|size| *size >= LARGE_FILE_BYTES as u64),
        "{reference_kind}: {sizes:?}"
    );
    let last = image.layer_digests().pop().context("no layers")?;
    let layer = decompress_layer(&testbed.registry.get_blob(&repository, &last).await?)?;
    assert_eq!(
        text_of_digest_file_in_layer_tar(&layer)?,
        format!("{}  -\n", context.hash),
        "{reference_kind}"
    );
    Ok(SeenBuild {
        id,
        state: build,
        log,
        terminal,
    })
}

/// Returns the content of the file `digest` in a layer's tar.
fn text_of_digest_file_in_layer_tar(layer_tar: &[u8]) -> Result<String> {
    let mut archive = tar::Archive::new(layer_tar);
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.path()?.as_os_str() == "digest" {
            return Ok(std::io::read_to_string(entry)?);
        }
    }
    anyhow::bail!("the layer has no file digest")
}

/// The limit on what a builder may still store after the builds: copies of their logs, and no context.
const SPOOLED_BYTES_MAX: u64 = 1 << 20;

/// Asserts that a builder has used little memory, and stores no context any more.
fn assert_little_memory_and_no_stored_context(builder: &DeployedBuilder<'_>) -> Result<()> {
    let peak = builder.peak_memory_bytes_minus_current_file_pages()?;
    assert!(peak <= BUILDER_OWN_MEMORY_MAX_BYTES, "{} KiB", peak >> 10);
    let spooled = builder.unlinked_open_file_bytes_of_process()?;
    assert!(spooled <= SPOOLED_BYTES_MAX, "{spooled} bytes");
    Ok(())
}

/// State and log are read while a build runs, and again after its builder was killed, which the provider restarts. For
/// the last one, the daemon was killed and restarted too.
///
/// The web server has a certificate of a private authority, and an address that only the operator opens. The daemon of
/// the git context is one beside the stack: the stack's own reaches no private address.
#[tokio::test(flavor = "multi_thread")]
async fn a_context_of_300_megabytes_is_built_through_the_queue_by_every_kind_of_reference() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let context =
        LargeContextAsTarAndGitCommit::generate(testbed.build_busybox_once_and_get_name().await?).await?;
    let machine = IpAddr::from(testbed.stack.machine_address()?);
    let files = FileServer::start(context.tar.clone()).await?;
    let authority = CertificateAuthority::new("large-contexts-ca")?;
    let identity = authority.issue_certificate(&machine.to_string())?;
    let web = TlsProxy::start_at(machine, files.url(), &identity).await?;
    let web_host = web.url().strip_prefix("https://").context("an https URL")?;
    testbed
        .functions
        .put_secret("gateway-ca", &authority.certificate_pem())
        .await?;
    let contexts = format!("{}/{CONTEXTS_REPOSITORY}", testbed.stack.registry.host);
    let settings = [
        ("allowed_sources", web_host),
        ("contexts_repository", &contexts),
        ("delete_contexts", "true"),
    ];
    let builder = DeployedBuilder::deploy_anew_and_wait_until_ready(
        &testbed,
        "builder-large",
        &settings,
        &["gateway-ca"],
    )
    .await?;
    let build = async |name: &str, reference: Value| {
        build_through_queue_and_assert_image(&testbed, &builder, &context, name, reference).await
    };

    let repository = "e2e/contexts-large-by-oras";
    let digest = testbed
        .registry
        .push_artifact_and_get_digest(repository, context.tar.clone())
        .await?;
    let artifact = format!("{}/{repository}@{digest}", testbed.stack.registry.host);
    let mut seen = vec![build("oci", json!({ "oci": artifact })).await?];

    let stored = builder
        .contexts_client()?
        .post_signed(context.tar.clone())
        .await?;
    assert_eq!(stored.status, 201, "{}", stored.text);
    let stored = stored.json_or_error_text();
    assert_eq!(stored["bytes"], json!(context.tar.len()));
    let digest = stored["context"]["oci"]
        .as_str()
        .and_then(|oci| oci.split_once('@'));
    let digest = digest.context("a digest")?.1;
    let manifest = testbed.registry.get_manifest(CONTEXTS_REPOSITORY, digest).await?;
    assert!(manifest.is_some(), "{stored}");
    seen.push(build("contexts", stored["context"].clone()).await?);
    let manifest = testbed.registry.get_manifest(CONTEXTS_REPOSITORY, digest).await?;
    assert!(manifest.is_none(), "a stored context is deleted after its build");

    let sha256 = hex::encode(Sha256::digest(&context.tar));
    let url = json!({ "url": format!("{}/fn.tar", web.url()), "sha256": sha256 });
    seen.push(build("url", url).await?);
    assert_eq!(files.request_count(), 1);
    assert_little_memory_and_no_stored_context(&builder)?;
    builder.kill_and_wait_for_restart().await?;
    for build in &seen {
        build.assert_same_at(&builder).await?;
    }
    builder.remove().await?;

    let server = SmartGitServer::start_public_at(IpAddr::from([127, 0, 0, 1]), &context.repository).await?;
    let mut daemon = BuildkitDaemon::start(&testbed, "").await?;
    let proxy = TcpProxy::start_at(machine, &daemon.socket_url()).await?;
    let settings = [
        ("allowed_sources", server.host()),
        ("buildkit_plaintext", "true"),
        ("buildkit_url", proxy.url()),
    ];
    let builder =
        DeployedBuilder::deploy_anew_and_wait_until_ready(&testbed, "builder-large-git", &settings, &[])
            .await?;
    let git = json!({ "git": { "repository": server.repository_url(), "ref": "main" } });
    let build = build_through_queue_and_assert_image(&testbed, &builder, &context, "git", git).await?;
    assert_eq!(build.state["commit"], context.commit, "{:#}", build.state);
    assert_little_memory_and_no_stored_context(&builder)?;
    builder.kill_and_wait_for_restart().await?;
    daemon.kill_and_restart_on_another_port().await?;
    build.assert_same_at(&builder).await?;
    builder.remove().await
}
