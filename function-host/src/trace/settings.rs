//! The settings of traces and their export.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;

use super::COLLECTOR_HEADERS_SECRET;
use crate::env::SettingsParser;
use crate::error_chain::ErrorChain;
use crate::secret::{SecretError, Secrets};

/// The settings of traces; `None` if tracing is disabled.
#[derive(Debug, Default)]
pub(crate) struct Settings(pub(super) Option<ExporterSettings>);

/// The settings of the export of spans to the collector.
#[derive(Debug)]
pub(super) struct ExporterSettings {
    pub(super) endpoint: Uri,
    pub(super) headers: EnvironmentCollectorHeaders,
    pub(super) secrets: Secrets,
    /// Certificates (PEM) that authenticate the collector, in addition to the system's.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) compress: bool,
    pub(super) timeout: Duration,
    pub(super) sampler: Sampler,
    /// Whether the environment sets the function's service name in traces.
    pub(super) is_named: bool,
}

/// Headers for requests to the collector, from the environment. `Debug` shows their names only.
#[derive(Clone, Default)]
pub(super) struct EnvironmentCollectorHeaders(pub(super) HeaderMap);

impl fmt::Debug for EnvironmentCollectorHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The names of two variables for one setting: for traces only, which takes precedence, and for all signals.
type VariableNames = [&'static str; 2];

/// The variables with further headers for the collector.
const HEADERS_VARIABLES: VariableNames = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
/// The variables with the path of a file with certificates that authenticate the collector.
const CERTIFICATE_VARIABLES: VariableNames = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
/// The variables with the compression of exports, `gzip` or `none`.
const COMPRESSION_VARIABLES: VariableNames = [
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
];
/// The variables with the protocol of exports.
const PROTOCOL_VARIABLES: VariableNames = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
/// The variables with the timeout of one export, in milliseconds.
const TIMEOUT_VARIABLES: VariableNames = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// The variables with the collector's URL: complete, and without the path for traces.
const ENDPOINT_VARIABLES: VariableNames = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// The collector's URL path for traces.
const TRACES_URL_PATH: &str = "/v1/traces";

/// The description of a valid collector URL, for error messages.
const VALID_ENDPOINT_DESCRIPTION: &str = "should be like http://HOST:4318 or https://HOST:4318";

/// The description of valid headers for the collector, for error messages.
const VALID_HEADERS_DESCRIPTION: &str =
    "should be NAME=VALUE, several separated by commas, values percent-encoded";

impl Settings {
    /// Reads the settings of traces; problems are added to `parser`.
    pub(crate) fn read(parser: &mut SettingsParser<'_>, secrets: &Secrets) -> Self {
        let exporter = parser.parse_or_default("OTEL_TRACES_EXPORTER", true, |value| match value {
            "otlp" => Ok(true),
            "none" => Ok(false),
            _ => Err("should be otlp or none"),
        });
        if parser.flag("OTEL_SDK_DISABLED", false) || !exporter {
            return Self(None);
        }
        let Some(endpoint) = read_collector_url_if_set_and_valid(parser) else {
            return Self(None);
        };
        let protocol = effective_variable_name(parser, PROTOCOL_VARIABLES);
        parser.parse_or_default(protocol, (), |value| match value {
            "http/protobuf" => Ok(()),
            _ => Err("should be http/protobuf, or not set: no other protocol is supported"),
        });
        let compression = effective_variable_name(parser, COMPRESSION_VARIABLES);
        let timeout = effective_variable_name(parser, TIMEOUT_VARIABLES);
        Self(Some(ExporterSettings {
            endpoint,
            headers: read_environment_headers_and_check_secret(parser, secrets),
            secrets: secrets.clone(),
            authorities: read_trusted_certificates(parser),
            compress: parser.parse_or_default(compression, false, |value| match value {
                "gzip" => Ok(true),
                "none" => Ok(false),
                _ => Err("should be gzip or none"),
            }),
            timeout: Duration::from_millis(parser.number(timeout, 10_000)),
            sampler: read_sampler(parser),
            is_named: is_service_name_set_checking_attributes(parser),
        }))
    }

    /// Returns the time by which the export of queued spans may delay the end of the process.
    pub(crate) fn flush_timeout(&self) -> Duration {
        self.0
            .as_ref()
            .map_or(Duration::ZERO, |_| super::SPAN_FLUSH_TIMEOUT)
    }
}

/// Returns which of two variables for one setting takes effect.
fn effective_variable_name(parser: &mut SettingsParser<'_>, [traces, all]: VariableNames) -> &'static str {
    match parser.optional_text(traces) {
        Some(_) => traces,
        None => all,
    }
}

/// Reads the URL that spans are posted to; `None` if it is not set, or wrong, which is added to the problems of
/// `parser`.
fn read_collector_url_if_set_and_valid(parser: &mut SettingsParser<'_>) -> Option<Uri> {
    let name = effective_variable_name(parser, ENDPOINT_VARIABLES);
    let text = parser.optional_text(name)?;
    let url = match name == ENDPOINT_VARIABLES[0] {
        true => text.clone(),
        false => format!("{}{TRACES_URL_PATH}", text.trim_end_matches('/')),
    };
    let problem = match url.parse::<Uri>() {
        Err(error) => error.to_string(),
        Ok(uri) => match collector_url_problem(&uri) {
            None => return Some(uri),
            Some(problem) => problem.to_owned(),
        },
    };
    // The text may contain a password or a token, and is not shown then.
    let shown = match text.contains(['@', '?']) {
        true => String::new(),
        false => format!(", not {text:?}"),
    };
    parser.add_problem(name, format!("{VALID_ENDPOINT_DESCRIPTION}{shown}: {problem}"));
    None
}

/// Returns the fault in the collector's URL, if there is one.
fn collector_url_problem(uri: &Uri) -> Option<&'static str> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Some("it does not begin with http:// or https://");
    }
    if authority.contains('@') {
        return Some("it contains credentials, which belong in the secret otel-headers");
    }
    uri.host().is_none_or(str::is_empty).then_some("it has no host")
}

/// Reads the headers for the collector from the environment. Those in the secret are only checked here, and read again
/// for each export.
fn read_environment_headers_and_check_secret(
    parser: &mut SettingsParser<'_>,
    secrets: &Secrets,
) -> EnvironmentCollectorHeaders {
    let name = effective_variable_name(parser, HEADERS_VARIABLES);
    let mut headers = HeaderMap::new();
    if let Some(text) = parser.optional_text(name) {
        match parse_headers(&text) {
            Some(parsed) => headers = parsed,
            // The value is not shown: it usually contains a secret.
            None => parser.add_problem(name, VALID_HEADERS_DESCRIPTION),
        }
    }
    if let Err(problem) = read_secret_headers_empty_if_missing(secrets) {
        parser.add_problem(
            name,
            format!("cannot be completed by the secret {COLLECTOR_HEADERS_SECRET}: {problem}"),
        );
    }
    EnvironmentCollectorHeaders(headers)
}

/// Reads the collector's headers from the secret [`COLLECTOR_HEADERS_SECRET`]; returns none if the secret does not exist.
///
/// # Errors
/// Fails if the secret cannot be read, or its format is wrong.
pub(super) fn read_secret_headers_empty_if_missing(secrets: &Secrets) -> Result<HeaderMap, String> {
    let secret = match secrets.read_secret(COLLECTOR_HEADERS_SECRET) {
        Ok(secret) => secret,
        Err(SecretError::Missing { .. }) => return Ok(HeaderMap::new()),
        Err(error) => return Err(ErrorChain(&error).to_string()),
    };
    let parsed = secret.expose_text().and_then(parse_headers);
    parsed.ok_or_else(|| format!("it {VALID_HEADERS_DESCRIPTION}"))
}

/// Parses the collector's headers, separated by commas or line ends; returns `None` if the format is wrong.
///
/// The format is `NAME=VALUE,…` of <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
fn parse_headers(text: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for part in text
        .split([',', '\n'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (name, value) = part.split_once('=')?;
        let name: HeaderName = name.trim().parse().ok()?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

/// Reads the file with further certificates (PEM) that authenticate the collector; `None` if it is not set, or not
/// readable, which is added to the problems of `parser`.
fn read_trusted_certificates(parser: &mut SettingsParser<'_>) -> Option<Vec<u8>> {
    let name = effective_variable_name(parser, CERTIFICATE_VARIABLES);
    parser.parse_or_default(name, None, |path| {
        let pem =
            std::fs::read(path).map_err(|error| format!("cannot be read ({error}): should be a file"))?;
        Ok::<_, String>(Some(pem))
    })
}

/// Reads the sampler of traces from `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
fn read_sampler(parser: &mut SettingsParser<'_>) -> Sampler {
    let ratio = parser.parse_or_default("OTEL_TRACES_SAMPLER_ARG", 1.0, |value| {
        match value.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err("should be a number from 0 to 1"),
        }
    });
    let parent_based = |sampler: Sampler| Sampler::ParentBased(Box::new(sampler));
    let default = parent_based(Sampler::AlwaysOn);
    parser.parse_or_default("OTEL_TRACES_SAMPLER", default, |value| {
        Ok(match value {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(ratio),
            "parentbased_always_on" => parent_based(Sampler::AlwaysOn),
            "parentbased_always_off" => parent_based(Sampler::AlwaysOff),
            "parentbased_traceidratio" => parent_based(Sampler::TraceIdRatioBased(ratio)),
            _ => {
                return Err(
                    "should be always_on, always_off or traceidratio, or one of them with the prefix parentbased_",
                );
            }
        })
    })
}

/// Returns whether the environment sets the function's service name in traces.
///
/// Also checks the format of the attributes: the SDK reads them itself, and skips malformed ones without an error.
fn is_service_name_set_checking_attributes(parser: &mut SettingsParser<'_>) -> bool {
    let attributes = parser.parse_or_default("OTEL_RESOURCE_ATTRIBUTES", false, |value| {
        let mut named = false;
        for part in value.split(',').filter(|part| !part.trim().is_empty()) {
            let (key, _) = part
                .split_once('=')
                .ok_or("should be KEY=VALUE, several separated by commas")?;
            named |= key.trim() == "service.name";
        }
        Ok::<_, &str>(named)
    });
    attributes || parser.optional_text("OTEL_SERVICE_NAME").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SettingProblems;

    fn read_trace_settings(
        variables: &[(&str, &str)],
        headers_secret: Option<&str>,
    ) -> Result<Settings, SettingProblems> {
        let directory = tempfile::tempdir().unwrap();
        if let Some(headers_secret) = headers_secret {
            std::fs::write(directory.path().join(COLLECTOR_HEADERS_SECRET), headers_secret).unwrap();
        }
        let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
        let mut parser = SettingsParser::new(&variables);
        let settings = Settings::read(&mut parser, &Secrets::new(directory.path()));
        parser.fail_if_problems().map(|()| settings)
    }

    #[test]
    fn tracing_is_enabled_by_a_collector_url_unless_a_variable_disables_it() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (variables, traced) in [
            (&[][..], false),
            // Without a collector, the other settings are not checked.
            (&[("OTEL_TRACES_SAMPLER", "sometimes")], false),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false),
            (&[endpoint, ("OTEL_SDK_DISABLED", "true")], false),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[endpoint], true),
            (&[endpoint, ("OTEL_SDK_DISABLED", "false")], true),
            (
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/")],
                true,
            ),
        ] {
            let settings = read_trace_settings(variables, None).unwrap();
            assert_eq!(settings.0.is_some(), traced, "{variables:?}");
            assert_eq!(settings.flush_timeout().is_zero(), !traced, "{variables:?}");
        }
    }

    #[test]
    fn the_traces_path_is_appended_only_to_the_endpoint_for_all_signals() {
        const ALL_SIGNALS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for (variables, expected) in [
            (
                &[(ALL_SIGNALS_ENDPOINT, "http://c:4318")][..],
                "http://c:4318/v1/traces",
            ),
            (
                &[(ALL_SIGNALS_ENDPOINT, "https://c:4318/")],
                "https://c:4318/v1/traces",
            ),
            (
                &[(ALL_SIGNALS_ENDPOINT, "https://c/otlp")],
                "https://c/otlp/v1/traces",
            ),
            (&[(TRACES_ENDPOINT, "http://c:4318/here")], "http://c:4318/here"),
            (
                &[
                    (ALL_SIGNALS_ENDPOINT, "http://a"),
                    (TRACES_ENDPOINT, "http://b/x"),
                ],
                "http://b/x",
            ),
        ] {
            let settings = read_trace_settings(variables, None).unwrap().0.unwrap();
            assert_eq!(settings.endpoint.to_string(), expected);
        }
    }

    #[test]
    fn every_problem_of_a_trace_setting_says_what_would_be_right_and_shows_no_secret() {
        const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let collector = (ENDPOINT_VARIABLE, "http://collector:4318");
        for (variables, expected) in [
            (
                &[(ENDPOINT_VARIABLE, "collector:4318")][..],
                "OTEL_EXPORTER_OTLP_ENDPOINT should be like http://HOST:4318 or https://HOST:4318, not \"collector:4318\": \
                 invalid",
            ),
            (
                &[(ENDPOINT_VARIABLE, "grpc://collector:4317")],
                "it does not begin with http:// or https://",
            ),
            (
                &[(ENDPOINT_VARIABLE, "http://")],
                "OTEL_EXPORTER_OTLP_ENDPOINT should be like",
            ),
            (
                &[(ENDPOINT_VARIABLE, "http://me:hunter2@collector:4318")],
                "which belong in the secret otel-headers",
            ),
            (
                &[collector, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
                "OTEL_EXPORTER_OTLP_PROTOCOL should be http/protobuf, or not set: no other protocol is supported, not \
                 \"grpc\"",
            ),
            (
                &[collector, ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")],
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION should be gzip or none",
            ),
            (
                &[collector, ("OTEL_EXPORTER_OTLP_HEADERS", "Bearer hunter2")],
                "OTEL_EXPORTER_OTLP_HEADERS should be NAME=VALUE",
            ),
            (
                &[collector, ("OTEL_TRACES_SAMPLER", "sometimes")],
                "OTEL_TRACES_SAMPLER should be always_on",
            ),
            (
                &[collector, ("OTEL_TRACES_SAMPLER_ARG", "1.5")],
                "OTEL_TRACES_SAMPLER_ARG should be a number from 0 to 1, not \"1.5\"",
            ),
            (
                &[collector, ("OTEL_RESOURCE_ATTRIBUTES", "production")],
                "OTEL_RESOURCE_ATTRIBUTES should be KEY=VALUE",
            ),
            (
                &[collector, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere")],
                "OTEL_EXPORTER_OTLP_CERTIFICATE cannot be read",
            ),
            (
                &[collector, ("OTEL_TRACES_EXPORTER", "zipkin")],
                "OTEL_TRACES_EXPORTER should be otlp or none",
            ),
        ] {
            let problems = read_trace_settings(variables, None).unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems}");
            let text = problems.to_string();
            assert!(text.contains(expected), "{text}\ndoes not contain\n{expected}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn collector_headers_are_percent_decoded_and_not_shown_in_debug_output() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2, x-team = a%2Cb"),
        ];
        let settings = read_trace_settings(&variables, None).unwrap().0.unwrap();
        assert_eq!(settings.headers.0["api-key"], "hunter2");
        assert_eq!(settings.headers.0["x-team"], "a,b");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_malformed_headers_secret_is_a_problem_of_the_settings() {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")];
        read_trace_settings(&variables, Some("authorization=Bearer%20hunter2\napi-key=x\n")).unwrap();
        for wrong in ["hunter2", "a b=hunter2", "a=hunter2\x07"] {
            let text = read_trace_settings(&variables, Some(wrong))
                .unwrap_err()
                .to_string();
            assert!(
                text.contains("otel-headers") && !text.contains("hunter2"),
                "{text}"
            );
        }
        let empty = read_trace_settings(&variables, Some("\n"))
            .unwrap_err()
            .to_string();
        assert!(empty.contains("secret otel-headers is empty"), "{empty}");
    }
}
