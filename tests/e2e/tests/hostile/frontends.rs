//! Attacks by builds that name a frontend of the attacker's, by comments, links and arguments, or ask for more rights
//! than an ordinary step has.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    builder_process::BuilderProcess,
    network_namespace::{NetworkNamespace, find_first_process},
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    world::AttackWorld,
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "frontend-by-comment",
        attempts: "names a frontend by `# syntax=`, also without blanks, indented and in capitals",
        stopped_with: &[200, 403],
    },
    AttackDescription {
        name: "frontend-by-other-comments",
        attempts: "names a frontend by `//syntax=` and by JSON on the first line",
        stopped_with: &[403, 422],
    },
    AttackDescription {
        name: "frontend-after-a-byte-order-mark",
        attempts: "hides `# syntax=` behind a byte order mark",
        stopped_with: &[403, 422],
    },
    AttackDescription {
        name: "frontend-after-other-directives",
        attempts: "hides `# syntax=` behind `# escape=`, `# check=`, and a `#!` line",
        stopped_with: &[200, 403],
    },
    AttackDescription {
        name: "frontend-behind-a-link",
        attempts: "names a frontend in a file that the Dockerfile is a symbolic link to",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "frontend-behind-a-folder-link",
        attempts: "names a frontend in a Dockerfile behind a link of its folder, and in a `dockerfile` in lower case",
        stopped_with: &[400, 403, 422],
    },
    AttackDescription {
        name: "frontend-by-argument",
        attempts: "names a frontend by `ARG BUILDKIT_SYNTAX`, and by that build argument",
        stopped_with: &[200, 400],
    },
    AttackDescription {
        name: "frontend-by-other-line-ends",
        attempts: "ends the line `# syntax=` with a carriage return, with NUL, and with none",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "security-insecure",
        attempts: "runs a step by `RUN --security=insecure` and makes a device",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "network-host",
        attempts: "runs a step in the daemon's network by `RUN --network=host`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "devices-by-name",
        attempts: "asks for devices by `RUN --device=`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "options-of-the-frontend",
        attempts: "sets the frontend's options by build arguments: sandbox, multi-platform, named contexts",
        stopped_with: &[400],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn no_build_chooses_its_frontend_or_gets_more_rights() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "frontends").await?;
    // A registry that the daemon asks for the frontend, if it asks at all. The stack's own would be asked too.
    let daemon = find_first_process("buildkitd", &world.testbed.stack.dir.root.to_string_lossy())?;
    let namespace = NetworkNamespace::of_process(daemon)?;
    // BuildKit speaks plain HTTP with registries on loopback addresses.
    let registry = BaitServer::start_in_namespace(&namespace, (Ipv4Addr::new(127, 0, 0, 88), 0))?;
    let attacks = FrontendAttacks {
        frontend: format!("{}/mallory/frontend:1", registry.address()),
        world: &world,
        registry,
    };
    attacks.require_reachable_registry().await?;
    let mut outcomes = Outcomes::default();
    attacks.attack_by_named_frontends(&mut outcomes).await?;
    attacks.ask_for_rights_and_frontend_options(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Attacks by frontends and rights, and the registry that a frontend of the attacker's would come from.
struct FrontendAttacks<'a> {
    world: &'a AttackWorld,
    frontend: String,
    registry: BaitServer,
}

impl FrontendAttacks<'_> {
    /// Names the attacker's frontend by comments, line ends, links and build arguments.
    async fn attack_by_named_frontends(&self, outcomes: &mut Outcomes) -> Result<()> {
        let frontend = &self.frontend;
        let rest = "\nFROM scratch\nCOPY Dockerfile /\n";
        let syntax = format!("# syntax={frontend}");
        let each = async |texts: &[String]| self.build_each_dockerfile(texts).await;
        let comments = [
            format!("{syntax}{rest}"),
            format!("#syntax={frontend}{rest}"),
            format!("  #   SYNTAX  =  {frontend}  {rest}"),
        ];
        outcomes.add_outcome("frontend-by-comment", each(&comments).await?);
        let others = [
            format!("//syntax={frontend}{rest}"),
            format!("// syntax = {frontend}{rest}"),
            format!("{{\"syntax\": \"{frontend}\"}}{rest}"),
        ];
        outcomes.add_outcome("frontend-by-other-comments", each(&others).await?);
        let marks = [
            format!("\u{feff}{syntax}{rest}"),
            format!("\u{feff}\u{feff}{syntax}{rest}"),
            format!("\u{feff}//syntax={frontend}{rest}"),
        ];
        outcomes.add_outcome("frontend-after-a-byte-order-mark", each(&marks).await?);
        let directives = [
            format!("# escape=`\n{syntax}{rest}"),
            format!("# check=skip=all\n# escape=\\\n{syntax}{rest}"),
            format!("#!/bin/sh\n{syntax}{rest}"),
            format!("\n{syntax}{rest}"),
            format!("# a comment\n{syntax}{rest}"),
        ];
        outcomes.add_outcome("frontend-after-other-directives", each(&directives).await?);
        let ends = [
            format!("{syntax}\r\nFROM scratch\r\nCOPY Dockerfile /\r\n"),
            format!("{syntax}\rFROM scratch\rCOPY Dockerfile /\r"),
            format!("{syntax}\0{rest}"),
            syntax.clone(),
        ];
        outcomes.add_outcome("frontend-by-other-line-ends", each(&ends).await?);

        let text = format!("{syntax}{rest}");
        let links = [
            (
                BuildContext::new()
                    .with_link("Dockerfile", "other")
                    .with_file("other", text.clone()),
                json!({}),
            ),
            (
                BuildContext::new()
                    .with_link("Dockerfile", "a")
                    .with_link("a", "b")
                    .with_file("b", text.clone()),
                json!({}),
            ),
            (
                BuildContext::new()
                    .with_link("Dockerfile", "/other")
                    .with_file("other", text.clone()),
                json!({}),
            ),
        ];
        outcomes.add_outcome("frontend-behind-a-link", self.build_each_context(&links).await?);
        let folders = [
            (
                BuildContext::new()
                    .with_link("folder", "real")
                    .with_file("real/Dockerfile", text.clone()),
                json!({ "dockerfile": "folder/Dockerfile" }),
            ),
            (
                BuildContext::new().with_file("dockerfile", text.clone()),
                json!({}),
            ),
            (
                BuildContext::new().with_file("x/Dockerfile", text.clone()),
                json!({ "dockerfile": "./x/../x/Dockerfile" }),
            ),
        ];
        outcomes.add_outcome(
            "frontend-behind-a-folder-link",
            self.build_each_context(&folders).await?,
        );
        let plain = BuildContext::dockerfile("FROM scratch\nCOPY Dockerfile /\n");
        let arguments = [
            (
                BuildContext::dockerfile(format!("ARG BUILDKIT_SYNTAX={frontend}{rest}")),
                json!({}),
            ),
            (
                plain.clone(),
                json!({ "buildArgs": { "BUILDKIT_SYNTAX": frontend } }),
            ),
            (
                plain.clone(),
                json!({ "buildArgs": { "buildkit_syntax": frontend } }),
            ),
            (
                plain.clone(),
                json!({ "buildargs": { "BUILDKIT_SYNTAX": frontend } }),
            ),
            (
                plain,
                json!({ "buildArgs": { "BUILDKIT_SYNTAX ": frontend, "cmdline": frontend, "source": frontend } }),
            ),
        ];
        outcomes.add_outcome("frontend-by-argument", self.build_each_context(&arguments).await?);
        Ok(())
    }

    async fn build_each_dockerfile(&self, texts: &[String]) -> Result<Outcome> {
        let builds: Vec<_> = texts
            .iter()
            .map(|text| (BuildContext::dockerfile(text.clone()), json!({})))
            .collect();
        self.build_each_context(&builds).await
    }

    /// Builds each context; the attack succeeded if the daemon asked for the frontend, or said that it does.
    async fn build_each_context(
        &self,
        contexts_with_more_config: &[(BuildContext, Value)],
    ) -> Result<Outcome> {
        let mut outcome = Outcome::before_first_attempt();
        for (source, more) in contexts_with_more_config {
            let mut config = json!({
                "image": self.world.mallory.image("frontend", "1"), "skipPush": true, "noCache": true,
            });
            if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
                config.extend(more.clone());
            }
            let before = self.registry.request_paths().len();
            let reply = self.world.mallory.build(source, &config).await?;
            let asked = self.registry.request_paths().len() > before;
            let said = reply.text.contains(&format!(
                "resolve image config for docker-image://{}",
                self.frontend
            ));
            outcome = outcome.and(Outcome::of_reply(asked || said, &reply));
            if outcome.has_succeeded() {
                break;
            }
        }
        Ok(outcome)
    }

    /// Checks that the daemon asks the attacker's registry for an image there if a builder lets it: one without a
    /// policy.
    async fn require_reachable_registry(&self) -> Result<()> {
        let builder = BuilderProcess::start_with_settings(&self.world.testbed, &[]).await?;
        let source = BuildContext::dockerfile(format!("FROM {}\n", self.frontend));
        let image = self.world.testbed.image_name("hostile/frontend", "1");
        let config = json!({ "image": image, "skipPush": true, "noCache": true });
        let reply = builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&config)?)
            .await?;
        ensure!(
            !self.registry.request_paths().is_empty(),
            "the daemon did not ask the attacker's registry: {}",
            reply.text
        );
        Ok(())
    }

    /// Asks for an insecure step, the daemon's network, devices, and options of the frontend.
    async fn ask_for_rights_and_frontend_options(&self, outcomes: &mut Outcomes) -> Result<()> {
        let base = self.world.testbed.build_busybox_once_and_get_name().await?;
        let mallory = &self.world.mallory;
        // The output of these steps is not in the text of the Dockerfile.
        let insecure = format!(
            "FROM {base}\nRUN --security=insecure mkdir /m && mount -t tmpfs none /m && echo got $((1000 + 234))\n"
        );
        let labs = format!("# syntax=docker/dockerfile:1-labs\n{insecure}");
        let mut outcome = Outcome::before_first_attempt();
        for text in [insecure, labs] {
            let reply = mallory
                .build_dockerfile_without_push_or_cache("rights", text)
                .await?;
            outcome = outcome.and(Outcome::succeeded_if_reply_contains(&reply, "got 1234"));
        }
        outcomes.add_outcome("security-insecure", outcome);
        // In the daemon's network, and in no step's.
        let interface = self.interface_only_the_daemon_has().await?;
        let host = format!(
            "FROM {base}\nRUN --network=host grep -q {interface}: /proc/net/dev && echo got $((1000 + 234))\n"
        );
        let reply = mallory
            .build_dockerfile_without_push_or_cache("rights", host)
            .await?;
        outcomes.add_outcome(
            "network-host",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );
        let device = format!(
            "FROM {base}\nRUN --device=vendor.test/disk=all find /dev -type b | grep . && echo got $((1000 + 234))\n"
        );
        let reply = mallory
            .build_dockerfile_without_push_or_cache("rights", device)
            .await?;
        outcomes.add_outcome(
            "devices-by-name",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );

        let sandboxed =
            format!("FROM {base}\nRUN grep -q {interface}: /proc/net/dev && echo got $((1000 + 234))\n");
        let config = json!({
            "image": mallory.image("rights", "1"), "skipPush": true, "noCache": true,
            "buildArgs": {
                "force-network-mode": "host", "network": "host", "context:base": format!("docker-image://{}", self.frontend),
                "BUILDKIT_SANDBOX_HOSTNAME": "host", "BUILDKIT_CONTEXT_KEEP_GIT_DIR": "1",
            },
        });
        let before = self.registry.request_paths().len();
        let reply = mallory
            .build(&BuildContext::dockerfile(sandboxed), &config)
            .await?;
        let asked = self.registry.request_paths().len() > before;
        outcomes.add_outcome(
            "options-of-the-frontend",
            Outcome::of_reply(asked || reply.text.contains("got 1234"), &reply),
        );
        Ok(())
    }

    /// Returns the name of an interface that the daemon's network has and that of an ordinary step has not.
    async fn interface_only_the_daemon_has(&self) -> Result<String> {
        let base = self.world.testbed.build_busybox_once_and_get_name().await?;
        let print = format!("FROM {base}\nRUN sed 's/^ */interface /' /proc/net/dev\n");
        let reply = self
            .world
            .mallory
            .build_dockerfile_without_push_or_cache("rights", print)
            .await?;
        ensure!(
            reply.text.contains("interface lo:"),
            "the step has printed no interfaces: {}",
            reply.text
        );
        let daemon = find_first_process("buildkitd", &self.world.testbed.stack.dir.root.to_string_lossy())?;
        let listed = NetworkNamespace::of_process(daemon)?.program_output("ip", &["-o", "link", "show"])?;
        let mut names = listed.lines().filter_map(|line| {
            let name = line.split_whitespace().nth(1)?.trim_end_matches(':');
            Some(name.split('@').next().unwrap_or(name))
        });
        let name = names.find(|name| !reply.text.contains(&format!("interface {name}:")));
        let name = name.with_context(|| format!("a step has all interfaces of the daemon: {listed}"))?;
        Ok(name.to_owned())
    }
}
