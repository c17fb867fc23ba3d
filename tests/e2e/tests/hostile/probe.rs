//! Attacks by shell scripts within one build step.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use slipway_e2e::build_context::BuildContext;

use crate::{
    attack::{Attack, Outcome, summarize_reply},
    world::AttackWorld,
};

/// An attack by a shell script that runs as root in a build step. It succeeded if the script exits with 0; its output
/// is the evidence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) attack: Attack,
    pub(crate) script: &'static str,
}

impl Probe {
    /// Creates the attack of this name by a script.
    pub(crate) const fn with_script(
        name: &'static str,
        attempts: &'static str,
        script: &'static str,
    ) -> Self {
        Self {
            attack: Attack { name, attempts },
            script,
        }
    }
}

/// Returns the attacks that the probes try, one for each.
pub(crate) const fn attacks_of_probes<const N: usize>(probes: &[Probe; N]) -> [Attack; N] {
    let mut attacks = [probes[0].attack; N];
    let mut at = 0;
    while at < N {
        attacks[at] = probes[at].attack;
        at += 1;
    }
    attacks
}

/// The tool `http ADDRESS PORT PATH` of the probes.
const HTTP_SCRIPT: &str = "#!/bin/sh\n\
    printf 'GET %s HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' \"$3\" \"$1\" | timeout 6 nc -w ${WAIT:-5} \"$1\" \"$2\"\n";

/// Runs all probes at once in one step of the attacker's, and returns their outcomes.
///
/// `source` has files for the probes in the folder `tools`, which is first in their `PATH`; `variables` are set for
/// them. The tool `http ADDRESS PORT PATH` prints an answer with its head: busybox's own wget needs glibc's resolver,
/// which its static program does not have.
pub(crate) async fn run_probes(
    world: &AttackWorld,
    name: &str,
    source: BuildContext,
    variables: &BTreeMap<&str, String>,
    probes: &[Probe],
) -> Result<Vec<(&'static str, Outcome)>> {
    let base = world.testbed.busybox_image_name().await?;
    let dockerfile = format!(
        "FROM {base}\nCOPY . /hostile\nRUN mkdir -p /tmp; PATH=/hostile/tools:$PATH; . /hostile/variables; for probe in /hostile/probes/*; do \
         ( output=$(timeout 20 sh $probe 2>&1); code=$?; \
         echo \"PROBE $(basename $probe) $code $(echo \"$output\" | tr '\\n' ' ' | head -c 300)\" ) & done; wait\n"
    );
    let mut source =
        source
            .with_file("Dockerfile", dockerfile)
            .with_file_of_mode("tools/http", HTTP_SCRIPT, 0o755);
    let variables: String = variables
        .iter()
        .map(|(name, value)| format!("export {name}='{value}'\n"))
        .collect();
    source = source.with_file("variables", variables);
    for probe in probes {
        source = source.with_file(&format!("probes/{}", probe.attack.name), probe.script);
    }
    let config = json!({ "image": world.mallory.image(name, "1"), "skipPush": true, "noCache": true });
    let reply = world.mallory.build(&source, &config).await?;

    let log = reply.json()["log"].as_array().cloned().unwrap_or_default();
    let lines: Vec<_> = log
        .iter()
        .filter_map(|line| line.as_str()?.split_once("PROBE "))
        .collect();
    let outcome = |probe: &Probe| {
        let result = lines.iter().find_map(|(_, rest)| {
            let rest = rest.strip_prefix(probe.attack.name)?.strip_prefix(' ')?;
            Some(rest.split_once(' ').unwrap_or((rest, "")))
        });
        let outcome = match result {
            Some((code, output)) => {
                Outcome::of_success(code == "0", format!("the step's exit code {code}: {output}"))
            }
            None => Outcome::Stopped(format!("the step did not report: {}", summarize_reply(&reply))),
        };
        (probe.attack.name, outcome)
    };
    Ok(probes.iter().map(outcome).collect())
}
