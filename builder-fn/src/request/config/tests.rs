//! What clients write, and what they should not.

use serde_json::json;

use super::*;
use crate::compression::Format;

fn parse(value: &Value) -> Result<BuildConfig, ConfigError> {
    BuildConfig::parse(value.to_string().as_bytes())
}

fn with(key: &str, value: Value) -> Value {
    let mut config = json!({"image": "example.com/hello:v1"});
    config[key] = value;
    config
}

#[test]
fn the_least_and_the_most_that_a_config_can_say() {
    let least = parse(&json!({"image": "hello"})).unwrap();
    assert_eq!(least.image.to_string(), "docker.io/library/hello:latest");
    assert_eq!(least.image_as_given, "hello");
    assert!(!least.skip_push && !least.no_cache && least.platforms.is_empty() && least.deploy.is_none());

    let most = parse(&json!({
        "image": "example.com/hello:v1",
        "buildArgs": {"GO111MODULE": "on", "SOURCE_DATE_EPOCH": "0", "EMPTY": ""},
        "platforms": ["linux/amd64", "linux/arm64/v8"],
        "skipPush": false,
        "deploy": {"service": "hello", "envVars": {"a": "b"}},
        "probe": {"path": "/works"},
        "target": "ship",
        "labels": {"org.opencontainers.image.source": "here"},
        "noCache": true,
        "dockerfile": "./build//Dockerfile",
        "timeout": "1m30s",
        "notAfter": "2030-01-31T12:00:00Z",
        "tags": ["latest", "v1.2"],
        "cacheFrom": ["example.com/hello:cache"],
        "cacheTo": ["type=registry,ref=example.com/hello:cache,mode=max"],
        "provenance": "max",
        "sbom": true,
        "compression": "gzip",
        "compressionLevel": 9,
    }))
    .unwrap();
    assert_eq!(most.build_args["GO111MODULE"], "on");
    assert_eq!(most.platforms, ["linux/amd64", "linux/arm64/v8"]);
    assert_eq!(most.deploy.unwrap()["service"], "hello");
    assert_eq!(most.target.as_deref(), Some("ship"));
    assert_eq!(most.labels.len(), 1);
    assert!(most.no_cache);
    assert_eq!(most.dockerfile.as_deref(), Some("build/Dockerfile"));
    assert_eq!(most.timeout, Some(Duration::from_secs(90)));
    assert!(most.not_after.is_some());
    let tags: Vec<String> = most.tags.iter().map(ToString::to_string).collect();
    assert_eq!(tags, ["example.com/hello:latest", "example.com/hello:v1.2"]);
    assert_eq!(most.cache_from[0].to_string(), "example.com/hello:cache");
    assert!(most.cache_to[0].max);
    assert_eq!(most.compression, Compression::new(Format::Gzip, Some(9)).ok());
    assert_eq!((most.provenance, most.sbom), (Some(Provenance::Max), true));
    assert!(most.unknown.is_empty());
}

#[test]
fn null_is_the_same_as_nothing() {
    let config = parse(&json!({
        "image": "hello", "buildArgs": null, "platforms": null, "skipPush": null, "deploy": null, "target": null,
        "labels": null, "noCache": null, "dockerfile": null, "timeout": null, "notAfter": null, "tags": null,
        "cacheFrom": null, "cacheTo": null, "provenance": null, "sbom": null,
        "compression": null, "compressionLevel": null,
    }));
    assert!(config.unwrap().unknown.is_empty());
}

#[test]
fn empty_platforms_are_the_daemons_own() {
    for value in [json!([]), json!([""]), json!([" ", ""])] {
        assert!(parse(&with("platforms", value)).unwrap().platforms.is_empty());
    }
    let twice = parse(&with(
        "platforms",
        json!([" linux/amd64", "Linux/AMD64 ", "arm64"]),
    ));
    assert_eq!(twice.unwrap().platforms, ["linux/amd64", "arm64"]);
}

#[test]
fn provenance_can_be_asked_for_in_several_ways() {
    for (value, expected) in [
        (json!(false), None),
        (json!(true), Some(Provenance::Min)),
        (json!("min"), Some(Provenance::Min)),
        (json!("mode=max"), Some(Provenance::Max)),
    ] {
        assert_eq!(parse(&with("provenance", value)).unwrap().provenance, expected);
    }
}

#[test]
fn unknown_keys_are_remembered() {
    let mut config = with("cachefrom", json!([]));
    config["Image"] = json!("x");
    assert_eq!(parse(&config).unwrap().unknown, ["Image", "cachefrom"]);
}

#[test]
fn a_timeout_may_be_a_number_of_seconds() {
    for (value, seconds) in [
        (json!(90), 90),
        (json!("90"), 90),
        (json!("1.5m"), 90),
        (json!("500ms"), 0),
    ] {
        assert_eq!(
            parse(&with("timeout", value)).unwrap().timeout.unwrap().as_secs(),
            seconds
        );
    }
}

#[test]
fn arguments_that_steer_buildkit_are_refused() {
    for name in ["BUILDKIT_SYNTAX", "BUILDKIT_INLINE_CACHE", "buildkit_syntax"] {
        let error = parse(&with("buildArgs", json!({ name: "docker.io/evil/frontend" }))).unwrap_err();
        assert_eq!(
            error,
            ConfigError::Reserved {
                name: name.to_owned()
            }
        );
    }
    assert!(
        parse(&with(
            "buildArgs",
            json!({"MY_BUILDKIT_X": "", "HTTP_PROXY": "x"})
        ))
        .is_ok()
    );
}

#[test]
fn every_error_names_the_key_and_what_would_be_right() {
    for (config, key, hint) in [
        (json!({}), "image", "registry.example.com"),
        (json!({"image": null}), "image", "registry.example.com"),
        (json!({"image": 1}), "image", "a string"),
        (json!({"image": ""}), "image", "registry.example.com"),
        (json!({"image": "Hello"}), "image", "lowercase"),
        (json!({"image": "hello@sha256:00"}), "image", "tag"),
        (json!([]), "com.openfaas.docker.config", "object"),
        (with("buildArgs", json!([])), "buildArgs", "object"),
        (with("buildArgs", json!({"A": 1})), "buildArgs.A", "string"),
        (with("buildArgs", json!({"A=B": "1"})), "A=B", "'='"),
        (with("buildArgs", json!({"": "1"})), "buildArgs", "'='"),
        (with("platforms", json!("linux/amd64")), "platforms", "list"),
        (
            with("platforms", json!(["linux/amd64", 1])),
            "platforms[1]",
            "string",
        ),
        (
            with("platforms", json!(["linux/amd64,linux/arm64"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (
            with("platforms", json!(["a/b/c/d"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (
            with("platforms", json!(["linux//v7"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (with("skipPush", json!("true")), "skipPush", "true or false"),
        (with("noCache", json!(1)), "noCache", "true or false"),
        (with("deploy", json!("hello")), "deploy", "object"),
        (with("deploy", json!({})), "deploy.service", "name"),
        (with("probe", json!({})), "probe", "beside deploy"),
        (
            with("deploy", json!({"service": "hello", "image": "x"})),
            "deploy.image",
            "left out",
        ),
        (with("target", json!(" ")), "target", "stage"),
        (with("labels", json!({"": "x"})), "labels", "blank"),
        (with("labels", json!({"a": null})), "labels.a", "string"),
        (with("dockerfile", json!("/Dockerfile")), "dockerfile", "context/"),
        (
            with("dockerfile", json!("../Dockerfile")),
            "dockerfile",
            "context/",
        ),
        (with("dockerfile", json!("./")), "dockerfile", "context/"),
        (with("timeout", json!("soon")), "timeout", "10m"),
        (with("timeout", json!("0s")), "timeout", "10m"),
        (with("timeout", json!(-1)), "timeout", "10m"),
        (with("timeout", json!(1.5)), "timeout", "10m"),
        (with("notAfter", json!("tomorrow")), "notAfter", "2030"),
        (with("notAfter", json!(1_893_456_000)), "notAfter", "string"),
        (with("tags", json!(["v1", "v 2"])), "tags[1]", "tag"),
        (with("cacheFrom", json!("r/a")), "cacheFrom", "list"),
        (
            with("cacheTo", json!(["r.example/a", "type=gha"])),
            "cacheTo[1]",
            "type=registry",
        ),
        (with("provenance", json!("most")), "provenance", "\"max\""),
        (with("sbom", json!("true")), "sbom", "true or false"),
        (with("compression", json!("lz4")), "compression", "\"gzip\""),
        (
            with("compressionLevel", json!(3)),
            "compressionLevel",
            "compression said with it",
        ),
        (
            json!({"image": "hello", "compression": "gzip", "compressionLevel": 10}),
            "compressionLevel",
            "from 1 to 9 for gzip",
        ),
        (
            json!({"image": "hello", "compression": "zstd", "compressionLevel": "3"}),
            "compressionLevel",
            "from 1 to 22 for zstd",
        ),
    ] {
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(hint), "{config}: {error}");
    }
    let both = json!({"image": "hello", "skipPush": true, "deploy": {"service": "hello"}});
    assert!(parse(&both).unwrap_err().to_string().contains("skipPush"));
}

#[test]
fn what_is_no_json_is_told_by_its_place_and_not_by_its_content() {
    let error =
        BuildConfig::parse(b"{\"image\": \"hello\", \"buildArgs\": {\"TOKEN\": hunter2}}").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("line 1") && !text.contains("hunter2"), "{text}");
    for content in [&b""[..], b"{", b"\xff", b"{} {}", b"[[[["] {
        assert!(matches!(
            BuildConfig::parse(content),
            Err(ConfigError::Syntax { .. })
        ));
    }
    assert!(matches!(
        BuildConfig::parse("[".repeat(100_000).as_bytes()),
        Err(ConfigError::Syntax { .. })
    ));
}

#[test]
fn debug_shows_no_values() {
    let mut config = with("buildArgs", json!({"TOKEN": "hunter2"}));
    config["deploy"] = json!({"service": "hello", "envVars": {"PASSWORD": "hunter2"}});
    let shown = format!("{:?}", parse(&config).unwrap());
    assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
}
