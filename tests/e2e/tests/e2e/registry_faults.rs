//! Registries that limit, refuse and revoke in the middle of a push.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    client::{HttpReply, SigningClient},
    registry_proxy::{RegistryProxy, Rejection, RequestPattern},
    testbed::Testbed,
};

/// The number of requests that BuildKit sends for one part of a push before the push has failed with 429: containerd
/// `core/remotes/docker/resolver.go`, `maxAttempts`. There are no pauses between them, whatever `Retry-After` says.
const REQUESTS_BEFORE_A_LIMITED_PUSH_FAILS: usize = 5;

const PUT_MANIFEST: RequestPattern = RequestPattern {
    method: "PUT",
    path_part: "/manifests/",
};
const BEGIN_UPLOAD: RequestPattern = RequestPattern {
    method: "POST",
    path_part: "/blobs/uploads/",
};

fn small_context() -> BuildContext {
    BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a")
}

/// A builder that pushes to a registry with faults, on a daemon of its own.
struct FaultyPlatform {
    registry: RegistryProxy,
    builder: BuilderProcess,
    _daemon: BuildkitDaemon,
    /// A text that is another one in every run.
    run: String,
}

impl FaultyPlatform {
    /// Starts the parts, with a registry that limits and refuses.
    async fn start(testbed: &Testbed) -> Result<Self> {
        Self::start_with_registry(testbed, RegistryProxy::start(testbed).await?).await
    }

    async fn start_with_registry(testbed: &Testbed, registry: RegistryProxy) -> Result<Self> {
        let daemon = BuildkitDaemon::start(testbed, "").await?;
        let config = registry.docker_config_for_proxy_and_registry(testbed)?;
        let url = daemon.socket_url();
        let settings = [("buildkit_url", url.as_str())];
        let builder = BuilderProcess::start_with_docker_config(testbed, &config, &settings).await?;
        Ok(Self {
            registry,
            builder,
            _daemon: daemon,
            run: Timestamp::now().as_nanosecond().to_string(),
        })
    }

    /// Returns the name of an image in the registry with faults.
    fn image(&self, repository: &str) -> String {
        format!("{}/{repository}:{}", self.registry.host, self.run)
    }

    /// Returns the ID of the call by which the small build of this repository is delivered.
    fn id_of_small_build(&self, repository: &str) -> String {
        format!("{}-{}", repository.replace('/', "-"), self.run)
    }

    /// Delivers a build of [`small_context`] as the queue does, with more keys of its config; returns its call's ID and
    /// the answer.
    async fn deliver_small_build_as_queue(
        &self,
        repository: &str,
        more_config_keys: &[(&str, Value)],
    ) -> Result<(String, HttpReply)> {
        let id = self.id_of_small_build(repository);
        let mut config = json!({ "image": self.image(repository) });
        for (key, value) in more_config_keys {
            config[*key] = value.clone();
        }
        // A call that came from the queue has two times.
        let times = format!("{0}, {0}", self.run);
        let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", times.as_str())];
        let tar = small_context().tar_with_config_last(&config)?;
        let reply = self
            .builder
            .build_client_with_own_key()?
            .post_signed_with_headers(tar, &headers)
            .await?;
        Ok((id, reply))
    }
}

/// Returns the lines of a result's log that say that a failed attempt is retried.
fn retry_lines(result: &Value) -> Vec<&str> {
    let lines = result["log"].as_array().into_iter().flatten();
    lines
        .filter_map(Value::as_str)
        .filter(|line| line.contains("the build is tried again in "))
        .collect()
}

/// The registry rejects two pushes, and the third after some of its requests. BuildKit does not pass `Retry-After` on,
/// so the pauses are those of the builder.
#[tokio::test]
async fn a_push_that_the_registry_limits_is_retried_until_it_succeeds_and_each_attempt_is_a_line_of_the_log()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let platform = FaultyPlatform::start(&testbed).await?;
    for (repository, pattern, error) in [
        (
            "e2e/limited-manifest",
            PUT_MANIFEST,
            Some(("TOOMANYREQUESTS", "retry-after: 1")),
        ),
        ("e2e/limited-upload", BEGIN_UPLOAD, None),
    ] {
        let limited = Rejection {
            status: 429,
            retry_after: Some("1"),
            error,
        };
        // The requests of several blobs are sent at the same time, so a push may take more of them.
        let times = 2 * REQUESTS_BEFORE_A_LIMITED_PUSH_FAILS + 1;
        platform.registry.set_rejection_of_next(pattern, times, limited);

        let (id, reply) = platform
            .deliver_small_build_as_queue(repository, &[("timeout", json!("300s"))])
            .await?;

        assert_eq!(reply.status, 200, "{repository}: {}", reply.text);
        let result = reply.json_or_error_text();
        assert_eq!(result["status"], "success", "{result:#}");
        assert_eq!(
            platform.registry.rejected_since_set_rejection(),
            times,
            "{result:#}"
        );
        let retries = retry_lines(&result);
        for (number, line) in (1..).zip(&retries) {
            assert!(
                line.contains(&format!("attempt {number} failed: failed to push ")),
                "{line}"
            );
            assert!(
                ["429 Too Many Requests", "toomanyrequests"]
                    .iter()
                    .any(|text| line.contains(text)),
                "{line}"
            );
        }
        assert!((1..=2).contains(&retries.len()), "{result:#}");
        let (status, build) = platform.builder.ask(&format!("/builds/{id}")).await?;
        assert_eq!(
            (status, &build["attempts"]),
            (200, &json!(retries.len() + 1)),
            "{build:#}"
        );
        let pushed = testbed.registry.get_manifest(repository, &platform.run).await?;
        assert_eq!(
            pushed.context("the image")?.digest,
            result["digest"],
            "{result:#}"
        );
    }
    Ok(())
}

/// The registry fails until the build is tried again. Before that, BuildKit itself sends each request some more times.
#[tokio::test]
async fn a_push_that_the_registry_fails_with_500_502_503_or_504_is_retried_until_it_succeeds() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let platform = FaultyPlatform::start(&testbed).await?;
    let unknown = ("UNKNOWN", "the storage does not answer");
    for (repository, pattern, status, error) in [
        ("e2e/failing-500", PUT_MANIFEST, 500, Some(unknown)),
        ("e2e/failing-502", BEGIN_UPLOAD, 502, None),
        ("e2e/failing-503", PUT_MANIFEST, 503, None),
        ("e2e/failing-504", PUT_MANIFEST, 504, None),
    ] {
        let fault = Rejection {
            status,
            retry_after: None,
            error,
        };
        platform
            .registry
            .set_rejection_of_next(pattern, usize::MAX, fault);
        let path = format!("/builds/{}", platform.id_of_small_build(repository));
        let config = [("timeout", json!("300s"))];
        let is_tried_again = testbed.wait_until_async_condition("the build is tried again", async || {
            let (_, build) = platform.builder.ask(&path).await?;
            Ok(build["attempts"].as_u64() >= Some(2))
        });
        let recovery = async {
            is_tried_again.await?;
            platform.registry.set_rejection_of_next(pattern, 0, fault);
            anyhow::Ok(())
        };

        let delivery = platform.deliver_small_build_as_queue(repository, &config);
        let ((_, reply), ()) = tokio::try_join!(delivery, recovery)?;

        assert_eq!(reply.status, 200, "{repository}: {}", reply.text);
        let result = reply.json_or_error_text();
        let retries = retry_lines(&result);
        assert!(!retries.is_empty(), "{repository}: {result:#}");
        assert!(
            retries.iter().all(|line| line.contains(&status.to_string())),
            "{retries:?}"
        );
        let (_, build) = platform.builder.ask(&path).await?;
        assert_eq!(build["attempts"], json!(retries.len() + 1), "{build:#}");
        let pushed = testbed.registry.get_manifest(repository, &platform.run).await?;
        assert_eq!(
            pushed.context("the image")?.digest,
            result["digest"],
            "{result:#}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_push_that_stays_limited_ends_at_the_timeout_of_the_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let platform = FaultyPlatform::start(&testbed).await?;
    let limited = Rejection {
        status: 429,
        retry_after: Some("1"),
        error: None,
    };
    platform
        .registry
        .set_rejection_of_next(PUT_MANIFEST, usize::MAX, limited);

    let (_, reply) = platform
        .deliver_small_build_as_queue("e2e/always-limited", &[("timeout", json!("40s"))])
        .await?;

    let result = reply.json_or_error_text();
    assert!(
        reply.text_field("error").contains("time limit"),
        "{} {result:#}",
        reply.status
    );
    assert!(!retry_lines(&result).is_empty(), "{result:#}");
    let pushed = testbed
        .registry
        .get_manifest("e2e/always-limited", &platform.run)
        .await?;
    assert!(pushed.is_none());
    Ok(())
}

#[tokio::test]
async fn a_push_that_the_registry_refuses_with_403_404_412_or_413_is_not_retried() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let platform = FaultyPlatform::start(&testbed).await?;
    let unknown = ("NAME_UNKNOWN", "repository name not known to registry");
    let denied = (
        "DENIED",
        "requested access to the resource is denied for this user",
    );
    for (repository, pattern, status, error, answer) in [
        ("e2e/immutable", PUT_MANIFEST, 412, None, 422),
        ("e2e/unknown", BEGIN_UPLOAD, 404, Some(unknown), 422),
        ("e2e/too-large", BEGIN_UPLOAD, 413, None, 422),
        // The operator's credentials do not have the right.
        ("e2e/forbidden", BEGIN_UPLOAD, 403, None, 502),
        ("e2e/denied", PUT_MANIFEST, 403, Some(denied), 502),
    ] {
        let refusal = Rejection {
            status,
            retry_after: None,
            error,
        };
        platform
            .registry
            .set_rejection_of_next(pattern, usize::MAX, refusal);

        let (id, reply) = platform.deliver_small_build_as_queue(repository, &[]).await?;

        let result = reply.json_or_error_text();
        assert_eq!(reply.status, answer, "{repository}: {result:#}");
        assert_eq!(
            retry_lines(&result),
            Vec::<&str>::new(),
            "{repository}: {result:#}"
        );
        let (_, build) = platform.builder.ask(&format!("/builds/{id}")).await?;
        assert_eq!(build["attempts"], 1, "{repository}: {build:#}");
        // The requests of all blobs may be rejected, each once.
        assert!(
            (1..=2).contains(&platform.registry.rejected_since_set_rejection()),
            "{repository}"
        );
    }
    Ok(())
}

/// The callers whose builds push with tokens.
#[derive(Debug, Clone, Copy)]
enum OperatorOrTenant {
    /// BuildKit fetches the tokens itself, with the operator's password.
    Operator,
    /// The builder fetches the tokens for BuildKit, with the tenant's password.
    Tenant,
}

/// A builder with a registry that wants tokens, for one of its users.
struct PlatformWithRevocableTokens {
    registry: RegistryProxy,
    builder: BuilderProcess,
    client: SigningClient,
    _daemon: BuildkitDaemon,
    _folder: tempfile::TempDir,
}

impl PlatformWithRevocableTokens {
    async fn start(testbed: &Testbed, user: OperatorOrTenant, claimed_lifetime_seconds: u32) -> Result<Self> {
        let registry = RegistryProxy::start_with_tokens(testbed, claimed_lifetime_seconds).await?;
        let daemon = BuildkitDaemon::start(testbed, "").await?;
        let folder = tempfile::tempdir()?;
        let config = registry.docker_config_for_proxy_and_registry(testbed)?;
        let key = "the payload key of the tenant";
        let prefix = format!("{}/e2e/", registry.host);
        let rules = json!({
            "push": [prefix], "read": { "images": [prefix] }, "registryConfig": "registry-config", "keys": ["tenant-payload"],
        });
        let policy = folder.path().join("policy.json");
        fs::write(&policy, json!({ "tenants": { "acme": rules } }).to_string())?;
        let policy = policy.to_str().context("the path is not UTF-8")?;
        let url = daemon.socket_url();
        let mut settings = vec![("buildkit_url", url.as_str())];
        if let OperatorOrTenant::Tenant = user {
            settings.push(("policy_file", policy));
        }
        let secrets = [("registry-config", config.as_str()), ("tenant-payload", key)];
        let builder =
            BuilderProcess::start_with_secrets_replacing_registry_config(testbed, &settings, &secrets)
                .await?;
        let client = match user {
            OperatorOrTenant::Operator => builder.build_client_with_own_key()?,
            OperatorOrTenant::Tenant => {
                SigningClient::new(format!("{}/build", builder.url()), key.as_bytes())?
            }
        };
        Ok(Self {
            registry,
            builder,
            client,
            _daemon: daemon,
            _folder: folder,
        })
    }
}

/// The base image is pulled with a token that is no longer valid when the push begins. The token's server says either
/// that it is valid for a second, or for an hour, in which case BuildKit has to learn from the registry that it is not.
#[tokio::test]
async fn a_token_that_is_revoked_during_a_long_build_is_renewed_for_its_push() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let (_, base) = base.split_once('/').context("no registry in the image's name")?;
    let run = Timestamp::now().as_nanosecond().to_string();
    for (user, expires_in) in [
        (OperatorOrTenant::Operator, 1),
        (OperatorOrTenant::Operator, 3600),
        (OperatorOrTenant::Tenant, 1),
        (OperatorOrTenant::Tenant, 3600),
    ] {
        let platform = PlatformWithRevocableTokens::start(&testbed, user, expires_in).await?;
        let what = format!("{user:?} {expires_in}").to_lowercase().replace(' ', "-");
        let gate = format!("gate-before-the-push-of-{what}-{run}");
        let repository = format!("e2e/renewed/{what}");
        let host = &platform.registry.host;
        let source = BuildContext::dockerfile(format!("FROM {host}/{base}\nRUN {}\n", gated_command(&gate)));
        let tar = source.tar_with_config_last(&json!({ "image": format!("{host}/{repository}:{run}") }))?;
        let client = platform.client.clone();
        let build = tokio::spawn(async move { client.post_signed(tar).await });
        testbed.wait_for_step(&gate, true).await?;
        ensure!(
            !platform.registry.issued_tokens().is_empty(),
            "{what}: the base image needs a token"
        );

        platform.registry.revoke_tokens();
        testbed.open_gate_of_step(&gate)?;

        let reply = build.await??;
        assert_eq!(
            reply.status,
            200,
            "{what}: {}\n{}",
            reply.text,
            platform.builder.log_text()
        );
        assert_eq!(
            retry_lines(&reply.json_or_error_text()),
            Vec::<&str>::new(),
            "{what}"
        );
        assert!(
            testbed.registry.get_manifest(&repository, &run).await?.is_some(),
            "{what}"
        );
        let issued = platform.registry.issued_tokens();
        let is_renewed = issued.iter().any(|token| {
            token.revocations_before == 1
                && token
                    .scopes
                    .contains(&format!("repository:{repository}:pull,push"))
        });
        assert!(is_renewed, "{what}: {issued:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_revoked_in_the_middle_of_a_push_is_renewed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let run = Timestamp::now().as_nanosecond().to_string();
    for user in [OperatorOrTenant::Operator, OperatorOrTenant::Tenant] {
        let platform = PlatformWithRevocableTokens::start(&testbed, user, 3600).await?;
        let host = &platform.registry.host;
        for (number, (method, path_part)) in [
            ("HEAD", "/blobs/"),
            ("POST", "/blobs/uploads/"),
            ("PUT", "/blobs/uploads/"),
            ("HEAD", "/manifests/"),
            ("PUT", "/manifests/"),
        ]
        .into_iter()
        .enumerate()
        {
            let what = format!("{user:?} before {method} {path_part}");
            let repository = format!("e2e/expired/{}-{number}", format!("{user:?}").to_lowercase());
            let revocations = platform.registry.total_revocation_count();
            platform
                .registry
                .revoke_tokens_before_next(RequestPattern { method, path_part });
            // A layer that no earlier push has.
            let source =
                BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", format!("{what} {run}"));
            let config = json!({ "image": format!("{host}/{repository}:{run}") });

            let reply = platform
                .client
                .post_signed(source.tar_with_config_last(&config)?)
                .await?;

            assert_eq!(reply.status, 200, "{what}: {}", reply.text);
            assert_eq!(
                platform.registry.total_revocation_count(),
                revocations + 1,
                "{what}"
            );
            assert!(
                testbed.registry.get_manifest(&repository, &run).await?.is_some(),
                "{what}"
            );
        }
    }
    Ok(())
}
