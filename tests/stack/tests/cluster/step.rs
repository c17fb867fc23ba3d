//! Build steps that run scripts: an attacker's, and a victim's that runs until its gate is opened.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use slipway_stack::Cluster;
use tokio::task::JoinHandle;

use crate::{
    gateway::{Answer, GatewayClient},
    kubectl, output_of,
    source::{shell_image, tar_of},
    wait_until,
};

/// The port on which a gated step of a victim listens.
pub(crate) const PORT_OF_VICTIMS_STEP: u16 = 4999;

/// The longest time until a step runs.
const STEP_START_TIMEOUT: Duration = Duration::from_secs(120);

/// A tenant that builds: its name in the policy, and the key that signs its builds.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) name: &'static str,
    pub(crate) key: String,
    pub(crate) registry: String,
}

impl Tenant {
    /// Returns the reference of an image in the tenant's repositories.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{}/{name}:1", self.registry, self.name)
    }

    /// Returns a Dockerfile that begins with the image with a shell.
    pub(crate) fn dockerfile(&self, instructions: &str) -> String {
        format!("FROM {}\n{instructions}\n", shell_image(&self.registry))
    }

    /// Builds a Dockerfile, and returns the answer. Nothing is pushed, and nothing is taken from the cache.
    pub(crate) async fn build(&self, gateway: &GatewayClient, name: &str, dockerfile: &str) -> Answer {
        let config = json!({ "image": self.image(name), "skipPush": true, "noCache": true });
        let tar = tar_of(&config, dockerfile, &[]);
        gateway.build_with_key(self.key.as_bytes(), tar).await
    }

    /// Runs a script as root in a build step, and returns the output of the build. Fails unless the script succeeds.
    pub(crate) async fn run_in_step(&self, gateway: &GatewayClient, name: &str, script: &str) -> String {
        let config = json!({ "image": self.image(name), "skipPush": true, "noCache": true });
        let dockerfile = self.dockerfile("COPY script /script\nRUN mkdir -p /tmp && sh /script");
        let tar = tar_of(&config, &dockerfile, &[("script", 0o755, script.as_bytes())]);
        let answer = gateway.build_with_key(self.key.as_bytes(), tar).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        log_of(&answer)
    }

    /// Starts a build whose step listens on [`PORT_OF_VICTIMS_STEP`] and runs until its gate is opened, and waits until
    /// it runs. `gate` is a word that no other process has in its arguments.
    pub(crate) async fn start_gated_build(
        &self,
        cluster: &Cluster,
        gateway: &Arc<GatewayClient>,
        gate: &'static str,
    ) -> GatedBuild {
        let serving = format!("nc -ll -p {PORT_OF_VICTIMS_STEP} -e /bin/true &");
        let step = format!("ARG TOKEN\nRUN {serving} until [ -e /{gate} ]; do sleep 0.2; done; echo right");
        let config = json!({
            "image": self.image(gate),
            "noCache": true,
            "buildArgs": { "TOKEN": "an-argument-of-the-victim" },
        });
        let tar = tar_of(&config, &self.dockerfile(&step), &[]);
        let (key, client) = (self.key.clone(), Arc::clone(gateway));
        let answer = tokio::spawn(async move { client.build_with_key(key.as_bytes(), tar).await });
        let build = GatedBuild {
            cluster: cluster.clone(),
            gate,
            answer,
        };
        wait_until("a gated step runs", STEP_START_TIMEOUT, || {
            assert!(!build.answer.is_finished(), "{gate} has ended");
            build.in_daemon("echo $process").contains("/proc/")
        })
        .await;
        build
    }
}

/// Returns the lines of the log that an answer to a build has.
pub(crate) fn log_of(answer: &Answer) -> String {
    let json = answer.json();
    let lines = json["log"].as_array().unwrap();
    let lines = lines.iter().map(|line| format!("{}\n", line.as_str().unwrap()));
    lines.collect()
}

/// A running build whose step ends when its gate is opened.
pub(crate) struct GatedBuild {
    cluster: Cluster,
    gate: &'static str,
    answer: JoinHandle<Answer>,
}

impl GatedBuild {
    /// Returns whether the build has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.answer.is_finished()
    }

    /// Returns the IPv4 addresses of the network that the step is in, after connecting to its port at each of them
    /// within that network. Fails unless it listens.
    pub(crate) fn addresses_on_which_it_listens(&self) -> Vec<String> {
        let tried = format!("nc -w 2 $at {PORT_OF_VICTIMS_STEP} -e /bin/true && echo at $at");
        let script = format!(
            "nsenter --net=$process/ns/net sh -c 'for at in $(ip -4 -o address | sed \"s/.* inet //;s|/.*||\"); do {tried}; done'"
        );
        let output = self.in_daemon(&script);
        let addresses = output.lines().filter_map(|line| line.strip_prefix("at "));
        let addresses: Vec<_> = addresses.map(str::to_owned).collect();
        assert!(!addresses.is_empty(), "the step does not listen: {output}");
        addresses
    }

    /// Opens the gate, and waits for the answer. Fails unless the build succeeds.
    pub(crate) async fn finish(self) {
        assert!(
            !self.has_ended(),
            "{} ended before its gate was opened",
            self.gate
        );
        let opened = self.in_daemon(&format!("touch $process/root/{} && echo opened", self.gate));
        assert!(opened.contains("opened"), "{opened}");
        let answer = self.answer.await.unwrap();
        assert_eq!(answer.status, 200, "{}: {answer:?}", self.gate);
        assert!(log_of(&answer).contains("right"), "{answer:?}");
    }

    /// Runs a command in the daemon's pod for the first process of the step, `$process`, a folder in `/proc`.
    fn in_daemon(&self, command: &str) -> String {
        // No argument of a process contains the pattern, so it finds only the step.
        let (first, rest) = self.gate.split_at(1);
        let script = format!(
            "for process in /proc/[0-9]*; do\n\
             if tr '\\0' ' ' <$process/cmdline 2>/dev/null | grep -q '[{first}]{rest}'; then {command}; exit; fi\ndone\n"
        );
        in_pod_of_daemon(&self.cluster, &script)
    }
}

/// Runs a script in the pod of the first daemon, and returns its output, whether it succeeded or not.
pub(crate) fn in_pod_of_daemon(cluster: &Cluster, script: &str) -> String {
    let exec = [
        "--namespace",
        "openfaas",
        "exec",
        "--stdin",
        "slipway-buildkit-0",
        "--",
        "sh",
    ];
    let output = output_of(&mut kubectl(cluster, &exec), script);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
