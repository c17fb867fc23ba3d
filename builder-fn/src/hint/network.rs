//! Hosts that cannot be resolved, reached or trusted.

use std::cell::LazyCell;

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The words for a host whose name cannot be resolved, as programs write them.
const UNRESOLVED_HOST_WORDS: &[&str] = &[
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Could not resolve host",
    "could not resolve host",
    "getaddrinfo EAI_AGAIN",
    "getaddrinfo ENOTFOUND",
    "no such host",
    "bad address",
    "failed to lookup address information",
    "unable to resolve host address",
    "nodename nor servname provided",
    "Unknown host",
    "UnknownHostException",
];

/// The words for a connection that does not come about.
const FAILED_CONNECTION_WORDS: &[&str] = &[
    "Connection refused",
    "connection refused",
    "ECONNREFUSED",
    "Connection timed out",
    "connection timed out",
    "Operation timed out",
    "ETIMEDOUT",
    "i/o timeout",
    "ConnectTimeoutError",
    "Network is unreachable",
    "network is unreachable",
    "ENETUNREACH",
    "EHOSTUNREACH",
    "No route to host",
    "no route to host",
    "Connection reset by peer",
    "connection reset by peer",
    "ECONNRESET",
];

/// The words for a certificate that is not trusted.
const UNTRUSTED_CERTIFICATE_WORDS: &[&str] = &[
    "x509: ",
    "certificate verify failed",
    "CERTIFICATE_VERIFY_FAILED",
    "unable to get local issuer certificate",
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
    "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
    "SELF_SIGNED_CERT_IN_CHAIN",
    "self-signed certificate",
    "self signed certificate",
    "SSL certificate problem",
    "server certificate verification failed",
    "invalid peer certificate",
    "PKIX path building failed",
];

/// The number of last lines in which a cause is looked for: what a program wrote before did not stop it.
const LAST_LINES_SEARCHED: usize = 80;

/// Explains why BuildKit cannot connect to a registry or to another host, by the words of Go's HTTP client.
pub(super) fn explain_connection_problem(
    reason: &str,
    registry: Option<&str>,
    purpose: &str,
) -> Option<Hint> {
    let is_request = [
        "failed to do request: ",
        "failed to fetch oauth token",
        "failed to fetch anonymous token",
        "Get \"",
        "Head \"",
    ]
    .iter()
    .any(|words| reason.contains(words));
    if !is_request {
        return None;
    }
    let host = text::host_of_first_url(reason).or(registry)?;
    if let Some(unresolved) =
        text::between(reason, "dial tcp: lookup ", " ").or_else(|| host_in_go_resolver_error(reason))
    {
        let name = unresolved.trim_end_matches(':');
        let name = Some(name).filter(|name| text::may_be_host(name)).unwrap_or(host);
        return Some(unresolved_host_hint(
            name,
            &format!("BuildKit cannot resolve the name of the host {name} {purpose}"),
        ));
    }
    if UNTRUSTED_CERTIFICATE_WORDS
        .iter()
        .any(|words| reason.contains(words))
    {
        return Some(untrusted_certificate_hint(host, "BuildKit"));
    }
    if reason.contains("server gave HTTP response to HTTPS client") {
        return Some(Hint::new(
            HintKind::RegistryUnreachable,
            format!("{host} answers without TLS, and BuildKit wants TLS {purpose}"),
            format!(
                "have the operator allow plain HTTP for {host} in BuildKit's configuration, or serve it with TLS"
            ),
        ));
    }
    let words = FAILED_CONNECTION_WORDS
        .iter()
        .find(|words| reason.contains(**words))?;
    let host = registry.unwrap_or(host);
    let kind = match registry {
        Some(_) => HintKind::RegistryUnreachable,
        None => HintKind::ConnectionFailed,
    };
    Some(Hint::new(
        kind,
        format!(
            "BuildKit cannot connect to {host} {purpose}: {}",
            words.to_lowercase()
        ),
        format!(
            "check the name and the port of {host}, and that it serves; if it does, BuildKit's network does not let it through, which the operator can change"
        ),
    ))
}

/// Explains an `ADD` whose source cannot be downloaded.
pub(super) fn explain_failed_add_download(evidence: &Evidence<'_>) -> Option<Hint> {
    // The text of a command may have the words of any error.
    if evidence.process_failure_reason().is_some() {
        return None;
    }
    let error = &*evidence.error;
    let reason = error.strip_prefix("failed to load cache key: ").or_else(|| {
        error
            .contains("error fetching default branch for repository ")
            .then_some(error)
    })?;
    if let Some(hint) = explain_connection_problem(reason, None, "for a source of the build") {
        return Some(hint);
    }
    if let Some(words) = UNRESOLVED_HOST_WORDS
        .iter()
        .find(|words| reason.contains(**words))
    {
        let host = host_after_words_or_elsewhere_in_line(reason, words)?;
        return Some(unresolved_host_hint(
            host,
            &format!("BuildKit cannot resolve the name of the host {host}"),
        ));
    }
    if reason.contains("terminal prompts disabled") || reason.contains("Authentication failed") {
        return Some(Hint::new(
            HintKind::SecretMissing,
            "the git repository wants a login, and the build has no token for it, or a wrong one",
            "give the token as the build secret GIT_AUTH_TOKEN, or GIT_AUTH_TOKEN.HOST for one host",
        ));
    }
    let status = reason.strip_prefix("invalid response status ")?;
    let url = evidence.instruction().and_then(|instruction| {
        let mut words = instruction.text.split_whitespace();
        words.find(|word| word.contains("://")).map(str::to_owned)
    });
    let what = url.map_or_else(
        || "the source".to_owned(),
        |url| text::one_line_cut_with_ellipsis(&url, super::MAX_NAME_OR_LINE_BYTES),
    );
    Some(Hint::new(
        HintKind::DownloadFailed,
        format!(
            "the server of {what} answered with the status {}",
            text::one_line_cut_with_ellipsis(status, 40)
        ),
        "correct the URL, or wait until the server has the file again",
    ))
}

/// Explains what a step's program wrote about its network.
pub(super) fn explain_network_failure_of_step(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let last_lines = || (0..).zip(evidence.lines().rev().take(LAST_LINES_SEARCHED));
    // From the end: the first line with text, and the first that reports a failure which is not repeated.
    let last_text = last_lines().find(|(_, line)| !line.is_empty());
    let last_failure =
        LazyCell::new(|| last_lines().find(|(_, line)| !announces_retry(line) && reports_failure(line)));
    let find = |words: &'static [&'static str]| {
        last_lines().find_map(|(at, line)| {
            let words = words.iter().find(|words| line.contains(**words))?;
            let follows = |found: Option<(usize, &str)>| found.is_some_and(|(after, _)| after < at);
            let is_cause = !announces_retry(line) || !follows(last_text) || follows(*last_failure);
            is_cause.then_some((line, *words))
        })
    };
    let unresolved = find(UNRESOLVED_HOST_WORDS);
    let unconnected = find(FAILED_CONNECTION_WORDS);
    if let (Some(tenant), Some((line, words))) = (evidence.failure.no_network, unresolved.or(unconnected)) {
        let host = host_after_words_or_elsewhere_in_line(line, words)
            .map_or_else(|| "a host".to_owned(), str::to_owned);
        return Some(Hint::new(
            HintKind::NetworkDenied,
            format!(
                "the step wants to reach {host}, and the policy gives the steps of the tenant {tenant} no network (\"network\": \"none\")"
            ),
            "copy what the step needs from the context or from a base image, or ask the operator for the network",
        ));
    }
    if let Some((line, words)) = unresolved {
        let cause = match host_after_words_or_elsewhere_in_line(line, words)
            .or_else(|| pip_index_host(evidence, line))
        {
            Some(host) => {
                let cause = format!("the step cannot resolve the name of the host {host}");
                return Some(unresolved_host_hint(host, &cause));
            }
            None => format!("the step cannot resolve the name of a host: {line}"),
        };
        return Some(unresolved_host_hint("the host", &cause));
    }
    if let Some((line, words)) = find(UNTRUSTED_CERTIFICATE_WORDS) {
        return Some(match host_after_words_or_elsewhere_in_line(line, words) {
            Some(host) => untrusted_certificate_hint(host, "the step"),
            None => Hint::new(
                HintKind::CertificateUntrusted,
                format!("the step does not trust the certificate of a host: {line}"),
                "install the packages of certificate authorities (ca-certificates) in the image, or add the authority of the host",
            ),
        });
    }
    if let Some(hint) = evidence
        .lines()
        .rev()
        .take(LAST_LINES_SEARCHED)
        .find_map(failed_download)
    {
        return Some(hint);
    }
    let (line, words) = unconnected?;
    let host = host_after_words_or_elsewhere_in_line(line, words);
    let cause = match host {
        Some(host) => format!("the step cannot connect to {host}: {}", words.to_lowercase()),
        None => format!("the step cannot connect: {line}"),
    };
    Some(Hint::new(
        HintKind::ConnectionFailed,
        cause,
        "check that the host serves this port; if it does, the rules for the network of build steps do not let it through, which \
         the operator can change",
    ))
}

/// Returns whether a line says that something is tried again. Such a line is the cause of a failure only if a report of
/// a failure follows, or nothing at all.
fn announces_retry(line: &str) -> bool {
    line.to_lowercase().contains("retry")
}

/// Returns whether a line reports that something failed.
fn reports_failure(line: &str) -> bool {
    const FAILURE_WORDS: &[&str] = &[
        "error:",
        "error ",
        "err!",
        "fatal",
        "failed",
        "failure",
        "giving up",
        "gave up",
        "could not",
        "cannot",
        "can't",
        "unable to",
        "exceeded",
    ];
    let line = line.to_lowercase();
    line.starts_with("e: ") || FAILURE_WORDS.iter().any(|words| line.contains(words))
}

/// Finds the answer of a server that does not have a file: in the words of curl, wget and apt-get.
fn failed_download(line: &str) -> Option<Hint> {
    let is_apt = line.starts_with("E: Failed to fetch ");
    let status = text::between(line, "The requested URL returned error: ", " ")
        .or_else(|| {
            line.split_once("The requested URL returned error: ")
                .map(|(_, status)| status)
        })
        .or_else(|| text::between(line, "ERROR ", ": "))
        .or_else(|| {
            line.split_once("server returned error: HTTP/1.1 ")
                .map(|(_, status)| status)
        })
        .or_else(|| {
            is_apt
                .then(|| line.split_once("  ").map(|(_, status)| status))
                .flatten()
        })?;
    let status = status
        .get(..3)
        .filter(|code| code.starts_with(['4', '5']) && code.bytes().all(|byte| byte.is_ascii_digit()))?;
    let next = match is_apt {
        true => {
            "run apt-get update in the same RUN instruction before the installation, so that the list of packages is not an old one"
        }
        false => {
            "correct the URL, or wait until the server has the file again; a private file needs credentials"
        }
    };
    let host = text::host_of_first_url(line)
        .map_or_else(|| "a server".to_owned(), |host| format!("the server {host}"));
    let cause = format!("{host} answered a download of the step with the status {status}: {line}");
    Some(Hint::new(HintKind::DownloadFailed, cause, next))
}

/// Returns the hint for a host whose name cannot be resolved.
pub(super) fn unresolved_host_hint(host: &str, cause: &str) -> Hint {
    Hint::new(
        HintKind::NameResolution,
        cause,
        format!(
            "check the name of {host}; if it is right, the DNS or the rules for the network of builds do not let it through, which the operator can change"
        ),
    )
}

fn untrusted_certificate_hint(host: &str, the_step_or_buildkit: &str) -> Hint {
    Hint::new(
        HintKind::CertificateUntrusted,
        format!("{the_step_or_buildkit} does not trust the certificate of {host}"),
        match the_step_or_buildkit {
            "the step" => {
                "install the packages of certificate authorities (ca-certificates) in the image, or add the authority of the host"
            }
            _ => {
                "have the operator add the certificate authority of the host to BuildKit's configuration, or use another host"
            }
        },
    )
}

/// Returns the host in an error of Go's resolver: `lookup HOST on SERVER` or `lookup HOST: no such host`.
fn host_in_go_resolver_error(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("lookup ")?;
    let is_unresolved =
        rest.contains("no such host") || rest.contains("server misbehaving") || rest.contains("i/o timeout");
    let host = rest.split([' ', ':']).next()?;
    (is_unresolved && text::may_be_host(host)).then_some(host)
}

/// Returns the host that a line of output names: in a URL, in quotes or after the words, or after `host=`.
pub(super) fn host_after_words_or_elsewhere_in_line<'l>(
    line: &'l str,
    failure_words: &str,
) -> Option<&'l str> {
    let after = line.split_once(failure_words).map_or("", |(_, rest)| rest);
    let named = after.trim_start_matches([' ', ':', '\'', '"', '`', '(']);
    let end = named.find(['\'', '"', '`', ')', ',', ' ', ':']);
    let named = named.get(..end.unwrap_or(named.len()))?;
    if named.contains('.') && text::may_be_host(named) {
        return Some(named.trim_end_matches('.')).filter(|host| !host.is_empty());
    }
    let host = text::between(line, "host='", "'").filter(|host| text::may_be_host(host));
    let host = host.or_else(|| text::between(line, "/dev/tcp/", "/").filter(|host| text::may_be_host(host)));
    let host = host.or_else(|| text::host_of_first_url(line));
    let host = host.or_else(|| {
        let rest = line.split_once("lookup ")?.1;
        rest.split([' ', ':'])
            .next()
            .filter(|host| text::may_be_host(host))
    });
    // Node writes the address before nothing else: "connect ECONNREFUSED 10.0.0.1:443".
    host.or_else(|| {
        Some(named)
            .filter(|named| !named.is_empty() && text::may_be_host(named) && named.contains(['.', ':']))
    })
}

/// Returns the host of pip's index for a line that names only its path: that of an earlier line, or `pypi.org`.
pub(super) fn pip_index_host<'e>(evidence: &'e Evidence<'_>, line: &str) -> Option<&'e str> {
    // pip names only the path of its index.
    if line.contains("/simple/") {
        let index = evidence
            .lines()
            .find_map(|line| text::host_of_first_url(line.strip_prefix("Looking in indexes: ")?));
        return Some(index.unwrap_or("pypi.org"));
    }
    None
}
