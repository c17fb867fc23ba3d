//! Attacks that try to read secrets of a build, of the builder and of the registry, through output, errors, images and
//! steps.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::HttpReply,
    network_namespace::{NetworkNamespace, find_first_process},
    sealed_secrets::BuilderPrivateKey,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    leaks::{LeakDetector, PlainOrBase64Form},
    world::{AttackWorld, MALLORY_KEY, VICTIM_KEY},
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "secret-by-echo",
        attempts: "prints a build secret, so that whoever reads the log has it",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "secret-by-base64",
        attempts: "prints a build secret in base64, URL-safe and wrapped",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "secret-in-an-error",
        attempts: "has a build secret in the text of an error: an unknown command, a failed step",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "secret-in-the-history",
        attempts: "finds a build secret in the image's history, configuration or layers",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "secret-in-the-provenance",
        attempts: "finds a build secret in the attestations of `provenance: max`",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "secrets-of-another-build",
        attempts: "mounts a secret of a neighbour's running build by its id",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "secrets-of-the-builder",
        attempts: "mounts the builder's own secrets by their names and paths",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "agent-of-the-builder",
        attempts: "mounts an SSH agent of the builder",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "registry-login-in-a-step",
        attempts: "finds the registry's password in the environment and the files of a step",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "registry-login-for-another-registry",
        attempts: "names an image at a registry of the attacker's, which asks for credentials",
        stopped_with: &[502],
    },
];

/// The build secret that steps mount as a file.
const PIP_TOKEN: &str = "s3cr3t-7f3kq9-zx81-pv44\n";
/// The build secret that steps get as a variable. The base64 of its second line has characters of one alphabet only.
const NPMRC: &str = "//host/:_authToken=t0ken\nzw3ite?>>?~~?>>?zeile\nü=l3tzte-xk55";

/// Values in the place of the build secrets, which are no secrets: builds print them in the same ways, and no mask
/// applies.
const DECOY_SECRET_VALUES: [&str; 2] = [
    "d3coy-5h2mw8-qy67-lt93\n",
    "//host/:_authToken=f4ke\nw31tere?>>?~~?>>?zeile\nü=3nde-wm28",
];

/// The commands that print the secrets in the file `$TOKEN` and the variable `$NPMRC`, each with the forms that it
/// prints.
const ENCODING_COMMANDS: [(&str, &[PlainOrBase64Form]); 5] = [
    ("base64 $TOKEN", &[PlainOrBase64Form::Base64]),
    ("echo -n \"$NPMRC\" | base64", &[PlainOrBase64Form::Base64]),
    ("echo \"user:$NPMRC\" | base64", &[PlainOrBase64Form::Base64]),
    ("echo -n \"$NPMRC\" | base64 -w 8", &[PlainOrBase64Form::Base64]),
    (
        "(cat $TOKEN; echo -n \"$NPMRC\") | base64 | tr '+/' '-_'",
        &[PlainOrBase64Form::Base64, PlainOrBase64Form::UrlSafeBase64],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_its_build() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let key_file = keys.path().join("key");
    let key = BuilderPrivateKey::generate()?;
    std::fs::write(&key_file, key.private_key_file_content())?;
    let path = key_file.to_str().context("the path is not UTF-8")?;
    let world = AttackWorld::start_with_settings(&[("build_secrets_private_key_path", path)], &[]).await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "secrets").await?;
    let mut outcomes = Outcomes::default();
    let attacks = SecretAttacks {
        envelope: key.seal_secrets(&[("pip_token", PIP_TOKEN), ("npmrc", NPMRC)])?,
        secrets: LeakDetector::new([PIP_TOKEN, NPMRC]),
        decoys: LeakDetector::new(DECOY_SECRET_VALUES),
        base: world.testbed.build_busybox_once_and_get_name().await?,
        world: &world,
    };
    attacks.print_secrets(&mut outcomes).await?;
    attacks
        .look_for_secrets_in_image_and_attestations(&mut outcomes)
        .await?;
    attacks
        .mount_secrets_of_others_and_ssh_agent(&mut outcomes)
        .await?;
    attacks.steal_registry_login(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Attacks on build secrets: their sealed envelope, detectors of them and of the decoys, and the base image of the
/// steps.
struct SecretAttacks<'a> {
    world: &'a AttackWorld,
    base: &'static str,
    envelope: String,
    secrets: LeakDetector,
    decoys: LeakDetector,
}

/// The mounts of both build secrets: one as a file, one as a variable.
const SECRET_MOUNTS: &str =
    "--mount=type=secret,id=pip_token,required=true --mount=type=secret,id=npmrc,env=NPMRC";

impl SecretAttacks<'_> {
    /// Builds with the secrets, and returns the answer.
    async fn build_with_secrets(&self, name: &str, steps: &str, more_config: &Value) -> Result<HttpReply> {
        let source = BuildContext::dockerfile(format!("FROM {}\n{steps}\n", self.base));
        let mut config = json!({ "image": self.world.mallory.image(name, "1"), "noCache": true });
        if let (Some(config), Some(more_config)) = (config.as_object_mut(), more_config.as_object()) {
            config.extend(more_config.clone());
        }
        self.world
            .mallory
            .client
            .post_signed(source.tar_with_secrets(&config, &self.envelope)?)
            .await
    }

    /// Runs a command with the secrets in `$TOKEN`, a file, and `$NPMRC`.
    async fn run_with_secrets(&self, command: &str) -> Result<HttpReply> {
        let step = format!("RUN {SECRET_MOUNTS} TOKEN=/run/secrets/pip_token; {command}");
        self.build_with_secrets("printed", &step, &json!({ "skipPush": true }))
            .await
    }

    /// Runs a command with the decoys in the place of the secrets.
    async fn run_with_decoys(&self, command: &str) -> Result<HttpReply> {
        let source = BuildContext::dockerfile(format!(
            "FROM {}\nCOPY . /decoys\nRUN TOKEN=/decoys/token; NPMRC=\"$(cat /decoys/npmrc)\"; export NPMRC; {command}\n",
            self.base
        ));
        let [token, npmrc] = DECOY_SECRET_VALUES;
        let source = source.with_file("token", token).with_file("npmrc", npmrc);
        let config = json!({
            "image": self.world.mallory.image("decoys", "1"), "skipPush": true, "noCache": true,
        });
        self.world.mallory.build(&source, &config).await
    }

    /// Tries to print the secrets by a command that prints the decoys in all of `forms`, which is checked: a build that
    /// ends early, or a form that is not looked for, proves nothing.
    async fn outcome_of_printing_by_command(
        &self,
        command: &str,
        forms: &[PlainOrBase64Form],
    ) -> Result<Outcome> {
        let control = self.run_with_decoys(command).await?;
        for form in forms {
            ensure!(
                self.decoys.finds_form(&control.text, *form),
                "{command} printed no {form:?} of the decoys: {}",
                control.text
            );
        }
        let reply = self.run_with_secrets(command).await?;
        ensure!(
            reply.status == control.status,
            "{command} ended otherwise with the decoys, {}: {} {}",
            control.status,
            reply.status,
            reply.text
        );
        Ok(self.outcome_of_leak(&reply, command))
    }

    /// Returns the outcome of an attack by a build: the attack succeeded if the answer has a secret.
    fn outcome_of_leak(&self, reply: &HttpReply, evidence_label: &str) -> Outcome {
        match self.secrets.find_leaked_part(&reply.text) {
            Some((form, part)) => Outcome::success(format!("{evidence_label}: {form:?} {part}")),
            None => Outcome::of_reply(false, reply),
        }
    }

    /// Prints build secrets in steps and in errors, and looks for them in the answers.
    async fn print_secrets(&self, outcomes: &mut Outcomes) -> Result<()> {
        let echo = "cat $TOKEN; echo \"with $NPMRC\"; echo \"$NPMRC\" >&2; env";
        outcomes.add_outcome(
            "secret-by-echo",
            self.outcome_of_printing_by_command(echo, &[PlainOrBase64Form::Plain])
                .await?,
        );
        let mut encoded = Outcome::before_first_attempt();
        for (command, forms) in ENCODING_COMMANDS {
            encoded = encoded.and(self.outcome_of_printing_by_command(command, forms).await?);
        }
        outcomes.add_outcome("secret-by-base64", encoded);
        let mut in_errors = Outcome::before_first_attempt();
        for command in [
            "sh -c \"$(cat $TOKEN)\"",
            "cat \"/$NPMRC\" \"/$(cat $TOKEN)\"",
            "${NPMRC}",
        ] {
            let outcome = self
                .outcome_of_printing_by_command(command, &[PlainOrBase64Form::Plain])
                .await?;
            in_errors = in_errors.and(outcome);
        }
        outcomes.add_outcome("secret-in-an-error", in_errors);
        Ok(())
    }

    /// Uses build secrets in a step, and looks for them in the pushed image and its attestations.
    async fn look_for_secrets_in_image_and_attestations(&self, outcomes: &mut Outcomes) -> Result<()> {
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
                texts.push_str(&decompress_if_zstd_or_gzip_to_text(&content)?);
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
            Outcome::of_status(
                self.secrets.find_leaked_part(&image).is_some(),
                reply.status,
                "read the image's configuration and layers",
            ),
        );
        outcomes.add_outcome(
            "secret-in-the-provenance",
            Outcome::of_status(
                self.secrets.find_leaked_part(&attestations).is_some(),
                reply.status,
                "read the attestations",
            ),
        );
        Ok(())
    }

    /// Mounts secrets of another build and of the builder by their ids, and an SSH agent.
    async fn mount_secrets_of_others_and_ssh_agent(&self, outcomes: &mut Outcomes) -> Result<()> {
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
            .build_dockerfile_without_push_or_cache("mounted", print(&["pip_token", "npmrc"]))
            .await?;
        world.testbed.open_gate_of_step(gate)?;
        running.await??;
        outcomes.add_outcome(
            "secrets-of-another-build",
            self.outcome_of_leak(&reply, "mounted"),
        );
        // The same mounts in a build that has the secrets: the attacker's program prints what it gets.
        let own = print(&["pip_token", "npmrc"]).replacen(&format!("FROM {}\n", self.base), "", 1);
        let reply = self
            .build_with_secrets("mounted", &own, &json!({ "skipPush": true }))
            .await?;
        ensure!(
            self.secrets.finds_form(&reply.text, PlainOrBase64Form::Plain),
            "a build does not see its own secrets: {}",
            reply.text
        );

        let ids = [
            "payload-secret",
            "mallory-payload",
            "deploy-secret",
            "registry-config",
            "../payload-secret",
            "/var/openfaas/secrets/payload-secret",
        ];
        let reply = world
            .mallory
            .build_dockerfile_without_push_or_cache("mounted", print(&ids))
            .await?;
        let stack = &world.testbed.stack;
        let deploy_secret = std::fs::read_to_string(&stack.deploy_secret)?;
        let of_builder = LeakDetector::new([
            MALLORY_KEY,
            VICTIM_KEY,
            stack.registry.password.as_str(),
            deploy_secret.as_str(),
        ]);
        outcomes.add_outcome(
            "secrets-of-the-builder",
            Outcome::of_reply(of_builder.find_leaked_part(&reply.text).is_some(), &reply),
        );
        let agent = format!(
            "FROM {}\nRUN --mount=type=ssh [ -S \"$SSH_AUTH_SOCK\" ] && echo got $((1000 + 234))\n",
            self.base
        );
        let reply = world
            .mallory
            .build_dockerfile_without_push_or_cache("mounted", agent)
            .await?;
        outcomes.add_outcome(
            "agent-of-the-builder",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );
        Ok(())
    }

    /// Looks for the registry's password in a step, and has a builder pull from a registry of the attacker's.
    async fn steal_registry_login(&self, outcomes: &mut Outcomes) -> Result<()> {
        let world = self.world;
        let password = world.testbed.stack.registry.password.trim().to_owned();
        ensure!(!password.is_empty(), "the stack's registry needs no password");
        let search = |before: &str| {
            format!(
                "FROM {}\n{before}RUN (env; cat /proc/*/environ; cat /root/.docker/config.json /run/secrets/* /kaniko/.docker/config.json) 2>/dev/null | rev; true\n",
                self.base
            )
        };
        // The search finds a login where there is one, and prints it backwards.
        let decoy = "ENV LOGIN=decoy-of-a-login\n";
        let control = world
            .mallory
            .build_dockerfile_without_push_or_cache("login", search(decoy))
            .await?;
        ensure!(
            control.text.contains("nigol-a-fo-yoced"),
            "the search finds no login: {}",
            control.text
        );
        let reply = world
            .mallory
            .build_dockerfile_without_push_or_cache("login", search(""))
            .await?;
        let found = LeakDetector::new([password.as_str()])
            .find_leaked_part(&reply.text)
            .is_some();
        outcomes.add_outcome("registry-login-in-a-step", Outcome::of_reply(found, &reply));

        // A builder without a policy, which lets everybody read from every registry.
        let daemon = find_first_process("buildkitd", &world.testbed.stack.dir.root.to_string_lossy())?;
        let namespace = NetworkNamespace::of_process(daemon)?;
        // BuildKit speaks plain HTTP with registries on loopback addresses.
        let registry = BaitServer::start_in_namespace(&namespace, (Ipv4Addr::new(127, 0, 0, 88), 0))?;
        let builder = BuilderProcess::start_with_settings(&world.testbed, &[]).await?;
        let source = BuildContext::dockerfile(format!("FROM {}/a/b:1\n", registry.address()));
        let config = json!({ "image": world.testbed.image_name("hostile/login", "1"), "skipPush": true });
        let reply = builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&config)?)
            .await?;
        ensure!(
            !registry.request_paths().is_empty(),
            "the daemon did not ask the attacker's registry: {}",
            reply.text
        );
        let given = registry.received_credentials();
        outcomes.add_outcome(
            "registry-login-for-another-registry",
            Outcome::of_reply(!given.is_empty(), &reply),
        );
        Ok(())
    }
}

/// Decompresses the content of a layer or a document with zstd or gzip, if it is compressed, and returns it as text.
fn decompress_if_zstd_or_gzip_to_text(content: &[u8]) -> Result<String> {
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
