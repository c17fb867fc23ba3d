//! Proxies that do not let a step through.

use super::evidence::Evidence;
use super::network::{host_after_words_or_elsewhere_in_line, pip_index_host};
use super::{Hint, HintKind, text};

/// The words of programs before the status with which a proxy answers a request for a tunnel.
const REFUSED_TUNNEL_WORDS: &[&str] = &[
    // curl, git and cargo
    "CONNECT tunnel failed, response ",
    "Received HTTP code ",
    // Python
    "Tunnel connection failed: ",
    // Node.js
    "tunneling socket could not be established, statusCode=",
    "Proxy response (",
    // Java
    "Proxy returns \"HTTP/1.1 ",
    // apt-get
    "Invalid response from proxy: HTTP/1.1 ",
    "Invalid response from proxy: HTTP/1.0 ",
];

/// The answers of a proxy in Go's errors, which have no number, and their status.
const GO_REFUSED_TUNNEL_ENDS: &[(&str, &str)] = &[
    ("\": Forbidden", "403"),
    ("\": Proxy Authentication Required", "407"),
];

/// The number of last lines in which a cause is looked for: what a program wrote before did not stop it.
const LAST_LINES_SEARCHED: usize = 80;

/// Explains a proxy that refuses a step the connection to a host.
pub(super) fn explain_refusing_proxy(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let mut last = evidence.lines().rev().take(LAST_LINES_SEARCHED);
    let (line, words, status) = last.find_map(|line| {
        let (words, status) = parse_refused_tunnel(line)?;
        Some((line, words, status))
    })?;
    let host = host_after_words_or_elsewhere_in_line(line, words)
        .or_else(|| pip_index_host(evidence, line))
        .or_else(|| only_host_of_command(evidence))
        .unwrap_or("a host");
    let cause =
        format!("the proxy of the step does not connect it to {host}: it answers with the status {status}");
    Some(match status {
        "407" => Hint::new(
            HintKind::NetworkDenied,
            cause,
            "the proxy wants a login: ask the operator which address of the proxy the step has to use (HTTPS_PROXY)",
        ),
        _ if status.starts_with('5') => Hint::new(
            HintKind::ConnectionFailed,
            cause,
            "check the name of the host, and that it serves; if it does, the operator finds the reason in the proxy's log",
        ),
        _ => Hint::new(
            HintKind::NetworkDenied,
            cause,
            "ask the operator to allow the host in the proxy, or copy what the step needs from the context or a base image",
        ),
    })
}

/// Returns the words that a line has about a refused tunnel, and the status, unless it is that of a success.
fn parse_refused_tunnel(line: &str) -> Option<(&'static str, &str)> {
    let numbered = REFUSED_TUNNEL_WORDS.iter().find_map(|words| {
        let (_, rest) = line.split_once(words)?;
        let is_of_proxy = *words != "Received HTTP code " || rest.contains(" from proxy after CONNECT");
        Some((*words, rest.get(..3).filter(|_| is_of_proxy)?))
    });
    let of_go = || {
        line.contains("Get \"https://").then_some(())?;
        let mut ends = GO_REFUSED_TUNNEL_ENDS.iter();
        ends.find_map(|(end, status)| line.ends_with(end).then_some((*end, *status)))
    };
    let (words, status) = numbered.or_else(of_go)?;
    let is_status = status.bytes().all(|byte| byte.is_ascii_digit()) && status.starts_with(['3', '4', '5']);
    is_status.then_some((words, status))
}

/// Returns the host of the only URL in the command of the step.
fn only_host_of_command<'e>(evidence: &'e Evidence<'_>) -> Option<&'e str> {
    let command = &evidence.instruction()?.text;
    (command.matches("://").count() == 1).then(|| text::host_of_first_url(command))?
}
