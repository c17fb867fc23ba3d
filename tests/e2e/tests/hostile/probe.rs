//! Attacks by shell scripts within one build step.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::build_context::BuildContext;

use crate::{
    attack::{AttackDescription, Outcome},
    world::AttackWorld,
};

/// An attack by a shell script that runs as root in a build step. It succeeded if the script exits with 0; its output
/// is the evidence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScriptAttack {
    pub(crate) attack: AttackDescription,
    pub(crate) script: &'static str,
}

impl ScriptAttack {
    /// Creates the attack of this name by a script.
    pub(crate) const fn with_script(
        name: &'static str,
        attempts: &'static str,
        script: &'static str,
    ) -> Self {
        Self {
            attack: AttackDescription {
                name,
                attempts,
                stopped_with: STATUS_OF_PROBES_BUILD,
            },
            script,
        }
    }
}

/// The status of the build whose step runs all probes: it succeeds, so that every probe reports.
const STATUS_OF_PROBES_BUILD: &[u16] = &[200];

/// Returns the attacks that the probes try, one for each.
pub(crate) const fn attacks_of_probes<const N: usize>(probes: &[ScriptAttack; N]) -> [AttackDescription; N] {
    let mut attacks = [probes[0].attack; N];
    let mut at = 0;
    while at < N {
        attacks[at] = probes[at].attack;
        at += 1;
    }
    attacks
}

/// The tool `http ADDRESS PORT PATH` of the probes.
const HTTP_GET_TOOL_SCRIPT: &str = "#!/bin/sh\n\
    printf 'GET %s HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' \"$3\" \"$1\" | timeout 6 nc -w ${WAIT:-5} \"$1\" \"$2\"\n";

/// The controls of the probes: they use the programs that the probes use, and must succeed in the same step. Without
/// them, a step in which nothing works would stop every probe.
const CONTROL_SCRIPTS: [(&str, &str); 3] = [
    (
        "control-of-http",
        "(printf 'HTTP/1.0 200 OK\\r\\n\\r\\nthe-control' | nc -l -p 4991 > /dev/null) &\n\
         for try in 1 2 3 4 5 6; do for at in 127.0.0.1 $(ip -4 -o address | awk '{ sub(\"/.*\", \"\", $4); print $4 }'); do\n\
         http $at 4991 / | grep the-control && exit 0; done; sleep 1; done; exit 1",
    ),
    (
        "control-of-programs",
        "[ \"$(printf 'a b\\nPONG' | grep PONG | tr P p | awk '{ print $1 }' | head -c 4)\" = pONG ] && timeout 5 ls /proc/self/environ",
    ),
    (
        "control-of-root",
        "[ \"$(id -u)\" = 0 ] && cat /proc/1/cmdline > /tmp/own && [ -s /tmp/own ] && ip route",
    ),
];

/// Runs all probes and their controls at once in one step of the attacker's, and returns the probes' outcomes. Fails if
/// one of them did not report, or if a control did not succeed: then nothing is known about the probes.
///
/// `controls` are more controls, each a name and a script. `source` has files for the probes in the folder `tools`,
/// which is first in their `PATH`; `variables` are set for them. The tool `http ADDRESS PORT PATH` prints an answer
/// with its head: busybox's own wget needs glibc's resolver, which its static program does not have.
pub(crate) async fn run_probes_and_controls(
    world: &AttackWorld,
    name: &str,
    source: BuildContext,
    variables: &BTreeMap<&str, String>,
    controls: &[(&str, &str)],
    probes: &[ScriptAttack],
) -> Result<Vec<(&'static str, Outcome)>> {
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let dockerfile = format!(
        "FROM {base}\nCOPY . /hostile\nRUN mkdir -p /tmp; PATH=/hostile/tools:$PATH; . /hostile/variables; for probe in /hostile/probes/*; do \
         ( output=$(timeout 20 sh $probe 2>&1); code=$?; \
         echo \"PROBE $(basename $probe) $code $(echo \"$output\" | tr '\\n' ' ' | head -c 300)\" ) & done; wait\n"
    );
    let mut source = source.with_file("Dockerfile", dockerfile).with_file_of_mode(
        "tools/http",
        HTTP_GET_TOOL_SCRIPT,
        0o755,
    );
    let variables: String = variables
        .iter()
        .map(|(name, value)| format!("export {name}='{value}'\n"))
        .collect();
    source = source.with_file("variables", variables);
    let controls = CONTROL_SCRIPTS.iter().chain(controls);
    let attacks = probes.iter().map(|probe| (probe.attack.name, probe.script));
    for (name, script) in controls.clone().copied().chain(attacks) {
        source = source.with_file(&format!("probes/{name}"), script);
    }
    let config = json!({ "image": world.mallory.image(name, "1"), "skipPush": true, "noCache": true });
    let reply = world.mallory.build(&source, &config).await?;

    ensure!(
        reply.status == 200,
        "the probes' build: {} {}",
        reply.status,
        reply.text
    );

    let log = reply.json_or_error_text()["log"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let lines: Vec<_> = log.iter().filter_map(|line| line.as_str()).collect();
    for (name, _) in controls {
        let (code, output) = exit_code_and_output_of_script(&lines, name)?;
        ensure!(code == "0", "{name} failed with {code}: {output}");
    }
    let outcome = |probe: &ScriptAttack| {
        let (code, output) = exit_code_and_output_of_script(&lines, probe.attack.name)?;
        let evidence = format!("the step's exit code {code}: {output}");
        Ok((
            probe.attack.name,
            Outcome::of_status(code == "0", reply.status, evidence),
        ))
    };
    probes.iter().map(outcome).collect()
}

/// Returns the exit code and the output that the script with this name reported in a step's log. Fails if it did not
/// report.
fn exit_code_and_output_of_script<'a>(lines: &[&'a str], name: &str) -> Result<(&'a str, &'a str)> {
    let report = lines.iter().find_map(|line| {
        let (_, report) = line.split_once("PROBE ")?;
        report.strip_prefix(name)?.strip_prefix(' ')
    });
    let report = report.with_context(|| format!("{name} did not report: {lines:#?}"))?;
    Ok(report.split_once(' ').unwrap_or((report, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_did_not_report_is_an_error_and_no_outcome() {
        let lines = [
            "o: PROBE mount 1 not permitted",
            "o: PROBE mount-of-others 0",
            "the step was killed",
        ];
        assert_eq!(
            exit_code_and_output_of_script(&lines, "mount").unwrap(),
            ("1", "not permitted")
        );
        assert_eq!(
            exit_code_and_output_of_script(&lines, "mount-of-others").unwrap(),
            ("0", "")
        );
        assert!(exit_code_and_output_of_script(&lines, "mount-of").is_err());
        assert!(exit_code_and_output_of_script(&lines, "kernel-memory").is_err());
    }
}
