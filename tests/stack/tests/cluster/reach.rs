//! What an attacker and others can connect to: addresses, tried from pods and build steps with one script.

use std::collections::BTreeSet;

use slipway_stack::Cluster;

use crate::kubectl_output;

/// The time for one connection. A firewall that drops packets takes all of it.
const CONNECTION_TIMEOUT_SECONDS: u32 = 4;

/// An address that an attacker tries to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// What listens there, as one word.
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    pub(crate) fn new(name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self {
            name: name.into(),
            host: host.into(),
            port,
        }
    }
}

/// Returns a shell script that tries all targets at the same time, and prints a line for each that accepted a
/// connection, and one line when it has tried all.
pub(crate) fn script_that_tries(targets: &[Target]) -> String {
    let tries = targets.iter().map(|Target { name, host, port }| {
        format!(
            "(nc -w {CONNECTION_TIMEOUT_SECONDS} {host} {port} -e /bin/true </dev/null >/dev/null 2>&1 && \
             echo REACHED {name}) &\n"
        )
    });
    let tries = tries.collect::<String>();
    format!("{tries}wait\necho TRIED {}\n", targets.len())
}

/// Returns the names of the targets that the script reached. Fails unless it has tried all.
pub(crate) fn reached_in_output(output: &str, targets: &[Target]) -> BTreeSet<String> {
    let tried = format!("TRIED {}", targets.len());
    assert!(
        output.lines().any(|line| line.ends_with(&tried)),
        "the script did not try all targets: {output}"
    );
    let reached = output.lines().filter_map(|line| line.split_once("REACHED "));
    reached.map(|(_, name)| name.trim().to_owned()).collect()
}

/// Returns the names of the targets that a pod reaches. `pod` is `NAMESPACE/NAME`.
pub(crate) fn reached_by_pod(cluster: &Cluster, pod: &str, targets: &[Target]) -> BTreeSet<String> {
    let (namespace, pod) = pod.split_once('/').unwrap();
    let exec = ["--namespace", namespace, "exec", "--stdin", pod, "--", "sh"];
    let output = kubectl_output(cluster, &exec, &script_that_tries(targets));
    reached_in_output(&output, targets)
}

/// Returns the names of all targets.
pub(crate) fn names_of(targets: &[Target]) -> BTreeSet<String> {
    targets.iter().map(|target| target.name.clone()).collect()
}
