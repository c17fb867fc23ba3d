//! Attacks that try to read secrets of a build, of the builder and of the registry, through output, errors, images and
//! steps.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::HttpReply,
    network_namespace::{NetworkNamespace, find_process},
};

use crate::{
    attack::{Attack, HonestNeighbour, Outcome, Outcomes, summarize_reply},
    world::{AttackWorld, MALLORY_KEY},
};

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        name: "secret-by-echo",
        attempts: "prints a build secret, so that whoever reads the log has it",
    },
    Attack {
        name: "secret-by-base64",
        attempts: "prints a build secret in base64, URL-safe and wrapped",
    },
    Attack {
        name: "secret-in-an-error",
        attempts: "has a build secret in the text of an error: an unknown command, a failed step",
    },
    Attack {
        name: "secret-in-the-history",
        attempts: "finds a build secret in the image's history, configuration or layers",
    },
    Attack {
        name: "secret-in-the-provenance",
        attempts: "finds a build secret in the attestations of `provenance: max`",
    },
    Attack {
        name: "secrets-of-another-build",
        attempts: "mounts a secret of a neighbour's running build by its id",
    },
    Attack {
        name: "secrets-of-the-builder",
        attempts: "mounts the builder's own secrets by their names and paths",
    },
    Attack {
        name: "agent-of-the-builder",
        attempts: "mounts an SSH agent of the builder",
    },
    Attack {
        name: "registry-login-in-a-step",
        attempts: "finds the registry's password in the environment and the files of a step",
    },
    Attack {
        name: "registry-login-for-another-registry",
        attempts: "names an image at a registry of the attacker's, which asks for credentials",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_its_build() -> Result<()> {
    let recorded: Value = serde_json::from_str(include_str!("../../../clients/recorded/secrets.json"))?;
    let text = |name: &str| {
        recorded[name]
            .as_str()
            .map(str::to_owned)
            .with_context(|| name.to_owned())
    };
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    std::fs::write(&key, text("private_key")?)?;
    let path = key.to_str().context("the path is not UTF-8")?;
    let world = AttackWorld::with_settings(&[("build_secrets_private_key_path", path)], &[]).await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start(&world, "secrets").await?;
    let mut outcomes = Outcomes::default();
    let attacks = SecretAttacks {
        envelope: text("sealed")?,
        values: ["pip_token", "npmrc"]
            .map(|name| recorded["values"][name].as_str().unwrap_or_default().to_owned()),
        base: world.testbed.busybox_image_name().await?,
        world: &world,
    };
    attacks.print_secrets(&mut outcomes).await?;
    attacks.keep_secrets(&mut outcomes).await?;
    attacks.mount_other_secrets(&mut outcomes).await?;
    attacks.log_in_to_registries(&mut outcomes).await?;
    neighbour.stop_and_assert_unharmed().await?;
    outcomes.assert_all_stopped(ATTACKS)
}

/// Attacks on build secrets: their sealed envelope, their values, and the base image of the steps.
struct SecretAttacks<'a> {
    world: &'a AttackWorld,
    base: &'static str,
    envelope: String,
    values: [String; 2],
}

/// The mounts of both build secrets: one as a file, one as a variable.
const SECRET_MOUNTS: &str =
    "--mount=type=secret,id=pip_token,required=true --mount=type=secret,id=npmrc,env=NPMRC";

impl SecretAttacks<'_> {
    /// Builds with the secrets, and returns the answer.
    async fn build_with_secrets(&self, name: &str, steps: &str, more: &Value) -> Result<HttpReply> {
        let source = BuildContext::dockerfile(format!("FROM {}\n{steps}\n", self.base));
        let mut config = json!({ "image": self.world.mallory.image(name, "1"), "noCache": true });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        self.world
            .mallory
            .client
            .post_signed(source.tar_with_secrets(&config, &self.envelope)?)
            .await
    }

    /// Returns whether a text has a line of a secret, or its base64.
    fn leaks_secret(&self, text: &str) -> bool {
        self.values
            .iter()
            .flat_map(|value| value.lines())
            .filter(|line| line.len() >= 4)
            .any(|line| {
                let encoded = STANDARD.encode(line);
                text.contains(line) || text.contains(encoded.trim_end_matches('='))
            })
    }

    /// Prints build secrets in steps and in errors, and looks for them in the answers.
    async fn print_secrets(&self, outcomes: &mut Outcomes) -> Result<()> {
        let skip = json!({ "skipPush": true });
        let echo = format!(
            "RUN {SECRET_MOUNTS} cat /run/secrets/pip_token; echo \"with $NPMRC\"; echo \"$NPMRC\" >&2; env"
        );
        let reply = self.build_with_secrets("printed", &echo, &skip).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        outcomes.add_outcome(
            "secret-by-echo",
            Outcome::of_success(self.leaks_secret(&reply.text), summarize_reply(&reply)),
        );
        let encoded = format!(
            "RUN {SECRET_MOUNTS} base64 /run/secrets/pip_token; echo -n \"$NPMRC\" | base64; echo -n \"$NPMRC\" | base64 -w 8; \
             base64 /run/secrets/pip_token | tr '+/' '-_'"
        );
        let reply = self.build_with_secrets("printed", &encoded, &skip).await?;
        outcomes.add_outcome(
            "secret-by-base64",
            Outcome::of_success(self.leaks_secret(&reply.text), summarize_reply(&reply)),
        );
        let mut leaks = false;
        let mut evidence = String::new();
        for steps in [
            format!("RUN {SECRET_MOUNTS} sh -c \"$(cat /run/secrets/pip_token)\""),
            format!("RUN {SECRET_MOUNTS} cat \"/$NPMRC\" \"/$(cat /run/secrets/pip_token)\""),
            format!("RUN {SECRET_MOUNTS} ${{NPMRC}}"),
        ] {
            let reply = self.build_with_secrets("printed", &steps, &skip).await?;
            ensure!(reply.status == 422, "{} {}", reply.status, reply.text);
            leaks |= self.leaks_secret(&reply.text);
            evidence = summarize_reply(&reply);
        }
        outcomes.add_outcome("secret-in-an-error", Outcome::of_success(leaks, evidence));
        Ok(())
    }

    /// Uses build secrets in a step, and looks for them in the pushed image and its attestations.
    async fn keep_secrets(&self, outcomes: &mut Outcomes) -> Result<()> {
        let steps = format!(
            "RUN {SECRET_MOUNTS} [ \"$NPMRC\" ] && [ -s /run/secrets/pip_token ] && echo {} > /proof",
            "used"
        );
        let reply = self
            .build_with_secrets("kept", &steps, &json!({ "provenance": "max" }))
            .await?;
        ensure!(reply.status == 200, "{}", reply.text);
        let registry = &self.world.testbed.registry;
        let repository = "hostile/mallory/kept";
        let index = registry
            .get_manifest(repository, "1")
            .await?
            .context("no image")?;
        let (mut image, mut attestations) = (index.body.to_string(), String::new());
        for manifest in index.body["manifests"].as_array().into_iter().flatten() {
            let is_attestation =
                manifest["annotations"]["vnd.docker.reference.type"] == "attestation-manifest";
            let digest = manifest["digest"].as_str().context("no digest")?;
            let manifest = registry
                .get_manifest(repository, digest)
                .await?
                .context("no manifest")?;
            let config = manifest.body["config"]["digest"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let texts = if is_attestation {
                &mut attestations
            } else {
                &mut image
            };
            texts.push_str(&manifest.body.to_string());
            for blob in manifest.layer_digests().into_iter().chain([config]) {
                let content = registry.get_blob(repository, &blob).await?;
                texts.push_str(&unpack_to_text(&content)?);
            }
        }
        ensure!(
            attestations.contains("buildkit"),
            "no attestation: {}",
            index.body
        );
        ensure!(image.contains("used"), "the layer was not read");
        outcomes.add_outcome(
            "secret-in-the-history",
            Outcome::of_success(
                self.leaks_secret(&image),
                "read the image's configuration and layers",
            ),
        );
        outcomes.add_outcome(
            "secret-in-the-provenance",
            Outcome::of_success(self.leaks_secret(&attestations), "read the attestations"),
        );
        Ok(())
    }

    /// Mounts secrets of another build and of the builder by their ids, and an SSH agent.
    async fn mount_other_secrets(&self, outcomes: &mut Outcomes) -> Result<()> {
        let world = self.world;
        // Printed in reverse, so that no mask applies.
        let print = |ids: &[&str]| {
            let steps: String = ids
                .iter()
                .map(|id| format!("RUN --mount=type=secret,id={id},target=/got cat /got | rev; true\n"))
                .collect();
            format!("FROM {}\n{steps}", self.base)
        };
        let gate = "gate-of-the-secrets";
        let steps = format!(
            "RUN {SECRET_MOUNTS} {}",
            slipway_e2e::build_context::gated_command(gate)
        );
        let source = BuildContext::dockerfile(format!("FROM {}\n{steps}\n", self.base));
        let config = json!({ "image": world.victim.image("secrets", "1"), "skipPush": true });
        let (client, tar) = (
            world.victim.client.clone(),
            source.tar_with_secrets(&config, &self.envelope)?,
        );
        let running = tokio::spawn(async move { client.post_signed(tar).await });
        world.testbed.wait_for_step(gate, true).await?;
        let reply = world
            .mallory
            .try_dockerfile("mounted", print(&["pip_token", "npmrc"]))
            .await?;
        world.testbed.open_gate_of_step(gate)?;
        running.await??;
        let reversed = |value: &str| value.trim().chars().rev().collect::<String>();
        let leaks = self
            .values
            .iter()
            .any(|value| reply.text.contains(&reversed(value)));
        outcomes.add_outcome(
            "secrets-of-another-build",
            Outcome::of_success(leaks, summarize_reply(&reply)),
        );

        let ids = [
            "payload-secret",
            "mallory-payload",
            "deploy-secret",
            "registry-config",
            "../payload-secret",
            "/var/openfaas/secrets/payload-secret",
        ];
        let reply = world.mallory.try_dockerfile("mounted", print(&ids)).await?;
        let password = &world.testbed.stack.registry.password;
        let leaks = [MALLORY_KEY, password]
            .iter()
            .any(|value| reply.text.contains(&reversed(value)));
        outcomes.add_outcome(
            "secrets-of-the-builder",
            Outcome::of_success(leaks, summarize_reply(&reply)),
        );
        let agent = format!(
            "FROM {}\nRUN --mount=type=ssh [ -S \"$SSH_AUTH_SOCK\" ] && echo got $((1000 + 234))\n",
            self.base
        );
        let reply = world.mallory.try_dockerfile("mounted", agent).await?;
        outcomes.add_outcome("agent-of-the-builder", Outcome::of_reply(&reply, "got 1234"));
        Ok(())
    }

    /// Looks for the registry's password in a step, and has a builder pull from a registry of the attacker's.
    async fn log_in_to_registries(&self, outcomes: &mut Outcomes) -> Result<()> {
        let world = self.world;
        let password = world.testbed.stack.registry.password.trim().to_owned();
        let search = format!(
            "FROM {}\nRUN (env; cat /proc/*/environ; cat /root/.docker/config.json /run/secrets/* /kaniko/.docker/config.json) 2>/dev/null | rev; true\n",
            self.base
        );
        let reply = world.mallory.try_dockerfile("login", search).await?;
        let reversed: String = password.chars().rev().collect();
        outcomes.add_outcome(
            "registry-login-in-a-step",
            Outcome::of_success(
                !password.is_empty() && reply.text.contains(&reversed),
                summarize_reply(&reply),
            ),
        );

        // A builder without a policy, which lets everybody read from every registry.
        let daemon = find_process("buildkitd", &world.testbed.stack.dir.root.to_string_lossy())?;
        let namespace = NetworkNamespace::of_process(daemon)?;
        // BuildKit speaks plain HTTP with registries on loopback addresses.
        let registry = BaitServer::start_in_namespace(&namespace, (Ipv4Addr::new(127, 0, 0, 88), 0))?;
        let builder = BuilderProcess::start_with_settings(&world.testbed, &[]).await?;
        let source = BuildContext::dockerfile(format!("FROM {}/a/b:1\n", registry.address()));
        let config = json!({ "image": world.testbed.image_name("hostile/login", "1"), "skipPush": true });
        let reply = builder
            .client()?
            .post_signed(source.tar_with_config(&config)?)
            .await?;
        let given = registry.received_credentials();
        outcomes.add_outcome(
            "registry-login-for-another-registry",
            Outcome::of_success(!given.is_empty(), summarize_reply(&reply)),
        );
        Ok(())
    }
}

/// Decompresses the content of a layer or a document with zstd or gzip, if it is compressed, and returns it as text.
fn unpack_to_text(content: &[u8]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), content)?;
    // zstd decompresses gzip too, and with -f copies input that is not compressed.
    let output = Command::new("zstd")
        .args(["-dcf", "--quiet"])
        .arg(file.path())
        .output()?;
    ensure!(output.status.success(), "zstd");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
