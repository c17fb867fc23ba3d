//! What the environment says of traces.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;

use super::HEADERS_SECRET;
use crate::env::Parser;
use crate::error::ErrorChain;
use crate::secret::{SecretError, Secrets};

/// The settings; nothing, where nothing is to be traced.
#[derive(Debug, Default)]
pub(crate) struct Settings(pub(super) Option<Tracing>);

/// How to trace.
#[derive(Debug)]
pub(super) struct Tracing {
    pub(super) endpoint: Uri,
    pub(super) headers: Headers,
    pub(super) secrets: Secrets,
    /// Certificates to trust the collector by, in PEM.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) compress: bool,
    pub(super) timeout: Duration,
    pub(super) sampler: Sampler,
    /// Whether the environment names the function.
    pub(super) is_named: bool,
}

/// Headers whose values no `Debug` shows.
#[derive(Clone, Default)]
pub(super) struct Headers(pub(super) HeaderMap);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Variables of which the first that is set counts: the one for traces, and the one for everything.
type Either = [&'static str; 2];

const HEADERS: Either = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
const CERTIFICATE: Either = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
const COMPRESSION: Either = [
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
];
const PROTOCOL: Either = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const TIMEOUT: Either = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];

/// The whole address of the collector, and its address without the path that is for traces.
const ENDPOINT: Either = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const PATH: &str = "/v1/traces";

/// What an address of a collector looks like.
const SHAPE: &str = "should be like http://HOST:4318 or https://HOST:4318";

/// What headers look like.
const HEADERS_SHAPE: &str = "should be NAME=VALUE, several separated by commas, values percent-encoded";

impl Settings {
    /// Reads them. What is wrong is in the parser then.
    pub(crate) fn read(parser: &mut Parser<'_>, secrets: &Secrets) -> Self {
        let exporter = parser.parse("OTEL_TRACES_EXPORTER", true, |value| match value {
            "otlp" => Ok(true),
            "none" => Ok(false),
            _ => Err("should be otlp or none"),
        });
        if parser.flag("OTEL_SDK_DISABLED", false) || !exporter {
            return Self(None);
        }
        let Some(endpoint) = endpoint(parser) else {
            return Self(None);
        };
        let protocol = of(parser, PROTOCOL);
        parser.parse(protocol, (), |value| match value {
            "http/protobuf" => Ok(()),
            _ => Err("should be http/protobuf, or not set: no other protocol is spoken here"),
        });
        let compression = of(parser, COMPRESSION);
        let timeout = of(parser, TIMEOUT);
        Self(Some(Tracing {
            endpoint,
            headers: headers(parser, secrets),
            secrets: secrets.clone(),
            authorities: authorities(parser),
            compress: parser.parse(compression, false, |value| match value {
                "gzip" => Ok(true),
                "none" => Ok(false),
                _ => Err("should be gzip or none"),
            }),
            timeout: Duration::from_millis(parser.number(timeout, 10_000)),
            sampler: sampler(parser),
            is_named: is_named(parser),
        }))
    }

    /// How long the end of the function may take longer for what is still to be delivered.
    pub(crate) fn flushing(&self) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |_| super::FLUSH_TIMEOUT)
    }
}

/// The variable that counts.
fn of(parser: &mut Parser<'_>, [traces, all]: Either) -> &'static str {
    match parser.text(traces) {
        Some(_) => traces,
        None => all,
    }
}

fn endpoint(parser: &mut Parser<'_>) -> Option<Uri> {
    let name = of(parser, ENDPOINT);
    let text = parser.text(name)?;
    let whole = match name == ENDPOINT[0] {
        true => text.clone(),
        false => format!("{}{PATH}", text.trim_end_matches('/')),
    };
    let wrong = match whole.parse::<Uri>() {
        Err(error) => error.to_string(),
        Ok(uri) => match fault(&uri) {
            None => return Some(uri),
            Some(fault) => fault.to_owned(),
        },
    };
    // There may be a password in it, or a token.
    let shown = match text.contains(['@', '?']) {
        true => String::new(),
        false => format!(", not {text:?}"),
    };
    parser.problem(name, format!("{SHAPE}{shown}: {wrong}"));
    None
}

/// What is wrong with an address.
fn fault(uri: &Uri) -> Option<&'static str> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Some("it does not begin with http:// or https://");
    }
    if authority.contains('@') {
        return Some("credentials in it would be logged; they belong into the secret otel-headers");
    }
    uri.host()
        .is_none_or(str::is_empty)
        .then_some("there is no host in it")
}

fn headers(parser: &mut Parser<'_>, secrets: &Secrets) -> Headers {
    let name = of(parser, HEADERS);
    let mut headers = HeaderMap::new();
    if let Some(text) = parser.text(name) {
        match parse_headers(&text) {
            Some(parsed) => headers = parsed,
            // It is not repeated: it is a secret more often than not.
            None => parser.problem(name, HEADERS_SHAPE),
        }
    }
    if let Err(fault) = secret_headers(secrets) {
        parser.problem(
            name,
            format!("cannot be completed by the secret {HEADERS_SECRET}: {fault}"),
        );
    }
    Headers(headers)
}

/// What the secret with headers has now; nothing where there is no such secret.
///
/// # Errors
/// When it cannot be read or understood.
pub(super) fn secret_headers(secrets: &Secrets) -> Result<HeaderMap, String> {
    let secret = match secrets.read(HEADERS_SECRET) {
        Ok(secret) => secret,
        Err(SecretError::Missing { .. }) => return Ok(HeaderMap::new()),
        Err(error) => return Err(ErrorChain(&error).to_string()),
    };
    let parsed = secret.expose_text().and_then(parse_headers);
    parsed.ok_or_else(|| format!("it {HEADERS_SHAPE}"))
}

/// `NAME=VALUE,…`, as <https://opentelemetry.io/docs/specs/otel/protocol/exporter/> has it; or one a line.
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

fn authorities(parser: &mut Parser<'_>) -> Option<Vec<u8>> {
    let name = of(parser, CERTIFICATE);
    parser.parse(name, None, |path| {
        let pem =
            std::fs::read(path).map_err(|error| format!("cannot be read ({error}): should be a file"))?;
        Ok::<_, String>(Some(pem))
    })
}

fn sampler(parser: &mut Parser<'_>) -> Sampler {
    let share = parser.parse("OTEL_TRACES_SAMPLER_ARG", 1.0, |value| {
        match value.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
            _ => Err("should be a number from 0 to 1"),
        }
    });
    let of_parent = |sampler: Sampler| Sampler::ParentBased(Box::new(sampler));
    let default = of_parent(Sampler::AlwaysOn);
    parser.parse("OTEL_TRACES_SAMPLER", default, |value| {
        Ok(match value {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(share),
            "parentbased_always_on" => of_parent(Sampler::AlwaysOn),
            "parentbased_always_off" => of_parent(Sampler::AlwaysOff),
            "parentbased_traceidratio" => of_parent(Sampler::TraceIdRatioBased(share)),
            _ => {
                return Err(
                    "should be always_on, always_off or traceidratio, or one of them after parentbased_",
                );
            }
        })
    })
}

/// Whether the environment names the function. The attributes themselves are read by the SDK, which skips what is wrong.
fn is_named(parser: &mut Parser<'_>) -> bool {
    let attributes = parser.parse("OTEL_RESOURCE_ATTRIBUTES", false, |value| {
        let mut named = false;
        for part in value.split(',').filter(|part| !part.trim().is_empty()) {
            let (key, _) = part
                .split_once('=')
                .ok_or("should be KEY=VALUE, several separated by commas")?;
            named |= key.trim() == "service.name";
        }
        Ok::<_, &str>(named)
    });
    attributes || parser.text("OTEL_SERVICE_NAME").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Problems;

    fn read(strings: &[(&str, &str)], secret: Option<&str>) -> Result<Settings, Problems> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(secret) = secret {
            std::fs::write(folder.path().join(HEADERS_SECRET), secret).unwrap();
        }
        let strings: std::collections::HashMap<_, _> = strings.iter().copied().collect();
        let mut parser = Parser::new(&strings);
        let settings = Settings::read(&mut parser, &Secrets::new(folder.path()));
        parser.finish().map(|()| settings)
    }

    #[test]
    fn nothing_is_traced_unless_a_collector_is_named() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (strings, traced) in [
            (&[][..], false),
            // What is wrong with the rest does not matter then.
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
            let settings = read(strings, None).unwrap();
            assert_eq!(settings.0.is_some(), traced, "{strings:?}");
            assert_eq!(settings.flushing().is_zero(), !traced, "{strings:?}");
        }
    }

    #[test]
    fn the_path_is_added_to_the_address_that_is_not_for_traces_alone() {
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for (strings, expected) in [
            (&[(ALL, "http://c:4318")][..], "http://c:4318/v1/traces"),
            (&[(ALL, "https://c:4318/")], "https://c:4318/v1/traces"),
            (&[(ALL, "https://c/otlp")], "https://c/otlp/v1/traces"),
            (&[(TRACES, "http://c:4318/here")], "http://c:4318/here"),
            (&[(ALL, "http://a"), (TRACES, "http://b/x")], "http://b/x"),
        ] {
            let tracing = read(strings, None).unwrap().0.unwrap();
            assert_eq!(tracing.endpoint.to_string(), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let collector = (ENDPOINT, "http://collector:4318");
        for (strings, expected) in [
            (
                &[(ENDPOINT, "collector:4318")][..],
                "OTEL_EXPORTER_OTLP_ENDPOINT should be like http://HOST:4318 or https://HOST:4318, not \"collector:4318\": \
                 invalid",
            ),
            (
                &[(ENDPOINT, "grpc://collector:4317")],
                "it does not begin with http:// or https://",
            ),
            (
                &[(ENDPOINT, "http://")],
                "OTEL_EXPORTER_OTLP_ENDPOINT should be like",
            ),
            (
                &[(ENDPOINT, "http://me:hunter2@collector:4318")],
                "they belong into the secret otel-headers",
            ),
            (
                &[collector, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
                "OTEL_EXPORTER_OTLP_PROTOCOL should be http/protobuf, or not set: no other protocol is spoken here, not \
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
            let problems = read(strings, None).unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems}");
            let text = problems.to_string();
            assert!(text.contains(expected), "{text}\nshould have\n{expected}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn headers_are_read_and_never_shown() {
        let strings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2, x-team = a%2Cb"),
        ];
        let tracing = read(&strings, None).unwrap().0.unwrap();
        assert_eq!(tracing.headers.0["api-key"], "hunter2");
        assert_eq!(tracing.headers.0["x-team"], "a,b");
        assert!(!format!("{tracing:?}").contains("hunter2"));
    }

    #[test]
    fn a_secret_with_headers_has_to_be_understood_at_start() {
        let strings = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")];
        read(&strings, Some("authorization=Bearer%20hunter2\napi-key=x\n")).unwrap();
        for wrong in ["hunter2", "a b=hunter2", "a=hunter2\x07"] {
            let text = read(&strings, Some(wrong)).unwrap_err().to_string();
            assert!(
                text.contains("otel-headers") && !text.contains("hunter2"),
                "{text}"
            );
        }
        let empty = read(&strings, Some("\n")).unwrap_err().to_string();
        assert!(empty.contains("secret otel-headers is empty"), "{empty}");
    }
}
