//! Tests of configurations that clients write, and of wrong ones.

use serde_json::json;

use super::*;
use crate::compression::CompressionFormat;

fn parse_config(value: &Value) -> Result<BuildConfig, ConfigError> {
    BuildConfig::parse(value.to_string().as_bytes())
}

fn config_with(key: &str, value: Value) -> Value {
    let mut config = json!({"image": "example.com/hello:v1"});
    config[key] = value;
    config
}

#[test]
fn a_config_with_only_the_image_and_one_with_most_keys_are_parsed() {
    let smallest = parse_config(&json!({"image": "hello"})).unwrap();
    assert_eq!(smallest.image.to_string(), "docker.io/library/hello:latest");
    assert_eq!(smallest.image_as_given, "hello");
    assert!(
        !smallest.skip_push
            && !smallest.no_cache
            && smallest.platforms.is_empty()
            && smallest.deploy.is_none()
    );

    let largest = parse_config(&json!({
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
        "submittedAt": "2026-01-31T12:00:00.5Z",
        "supersede": false,
        "tags": ["latest", "v1.2"],
        "cacheFrom": ["example.com/hello:cache"],
        "cacheTo": ["type=registry,ref=example.com/hello:cache,mode=max"],
        "provenance": "max",
        "sbom": true,
        "compression": "gzip",
        "compressionLevel": 9,
    }))
    .unwrap();
    assert_eq!(largest.build_args["GO111MODULE"], "on");
    assert_eq!(largest.platforms, ["linux/amd64", "linux/arm64/v8"]);
    assert_eq!(largest.deploy.unwrap()["service"], "hello");
    assert_eq!(largest.target.as_deref(), Some("ship"));
    assert_eq!(largest.labels.len(), 1);
    assert!(largest.no_cache);
    assert_eq!(largest.dockerfile.as_deref(), Some("build/Dockerfile"));
    assert_eq!(largest.timeout, Some(Duration::from_secs(90)));
    assert!(largest.not_after.is_some() && largest.submitted_at < largest.not_after);
    assert!(smallest.supersede && smallest.submitted_at.is_none() && !largest.supersede);
    let tags: Vec<String> = largest.tags.iter().map(ToString::to_string).collect();
    assert_eq!(tags, ["example.com/hello:latest", "example.com/hello:v1.2"]);
    assert_eq!(largest.cache_from[0].to_string(), "example.com/hello:cache");
    assert!(largest.cache_to[0].max);
    assert_eq!(
        largest.compression,
        LayerCompression::new(CompressionFormat::Gzip, Some(9)).ok()
    );
    assert_eq!(
        (largest.provenance, largest.sbom),
        (Some(ProvenanceMinOrMax::Max), true)
    );
    assert!(largest.unknown.is_empty());
}

#[test]
fn null_counts_as_absent_for_config_keys() {
    let config = parse_config(&json!({
        "image": "hello", "buildArgs": null, "platforms": null, "skipPush": null, "deploy": null, "target": null,
        "labels": null, "noCache": null, "dockerfile": null, "timeout": null, "notAfter": null, "tags": null,
        "cacheFrom": null, "cacheTo": null, "provenance": null, "sbom": null,
        "compression": null, "compressionLevel": null, "submittedAt": null, "supersede": null, "probe": null,
    }));
    assert!(config.unwrap().unknown.is_empty());
}

#[test]
fn blank_platforms_are_left_out_and_repeated_ones_merged() {
    for value in [json!([]), json!([""]), json!([" ", ""])] {
        assert!(
            parse_config(&config_with("platforms", value))
                .unwrap()
                .platforms
                .is_empty()
        );
    }
    let twice = parse_config(&config_with(
        "platforms",
        json!([" linux/amd64", "Linux/AMD64 ", "arm64"]),
    ));
    assert_eq!(twice.unwrap().platforms, ["linux/amd64", "arm64"]);
}

#[test]
fn provenance_accepts_booleans_and_modes() {
    for (value, expected) in [
        (json!(false), None),
        (json!(true), Some(ProvenanceMinOrMax::Min)),
        (json!("min"), Some(ProvenanceMinOrMax::Min)),
        (json!("mode=max"), Some(ProvenanceMinOrMax::Max)),
    ] {
        assert_eq!(
            parse_config(&config_with("provenance", value))
                .unwrap()
                .provenance,
            expected
        );
    }
}

#[test]
fn null_counts_as_absent_in_the_maps_and_lists_of_a_config() {
    let config = parse_config(&json!({
        "image": "hello",
        "buildArgs": {"A": null, "B": ""},
        "labels": {"a": null, "b": ""},
        "platforms": [null, "linux/amd64"],
        "tags": [null, "v1"],
        "cacheFrom": [null],
        "deploy": {
            "service": "hello",
            "namespace": null,
            "envVars": {"A": null, "B": ""},
            "secrets": [null, "s"],
            "limits": {"memory": null},
        },
        "probe": {"path": null, "method": "GET"},
    }))
    .unwrap();
    assert_eq!(
        config.build_args,
        BTreeMap::from([("B".to_owned(), String::new())])
    );
    assert_eq!(config.labels, BTreeMap::from([("b".to_owned(), String::new())]));
    assert_eq!(
        (config.platforms.len(), config.tags.len(), config.cache_from.len()),
        (1, 1, 0)
    );
    let deploy = json!({"service": "hello", "envVars": {"B": ""}, "secrets": ["s"], "limits": {}});
    assert_eq!(Some(Value::Object(config.deploy.unwrap())), Some(deploy));
    assert_eq!(Value::Object(config.probe.unwrap()), json!({"method": "GET"}));
}

#[test]
fn an_empty_string_counts_as_absent_for_config_keys_with_one_value() {
    for key in [
        "skipPush",
        "target",
        "noCache",
        "provenance",
        "sbom",
        "compression",
        "compressionLevel",
        "dockerfile",
        "timeout",
        "notAfter",
        "submittedAt",
        "supersede",
    ] {
        let config =
            parse_config(&config_with(key, json!(""))).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(
            config.supersede && !config.skip_push && config.target.is_none() && config.unknown.is_empty()
        );
    }
    assert!(parse_config(&json!({"image": ""})).is_err());
    assert!(parse_config(&config_with("tags", json!([""]))).is_err());
}

#[test]
fn unknown_config_keys_are_listed_instead_of_rejected() {
    let mut config = config_with("cachefroms", json!([]));
    config["Images"] = json!("x");
    assert_eq!(parse_config(&config).unwrap().unknown, ["Images", "cachefroms"]);
}

#[test]
fn config_keys_in_another_case_are_read_and_listed_for_a_warning() {
    let config = parse_config(&json!({
        "Image": "example.com/hello:v1",
        "buildargs": {"a": "1"},
        "SKIPPUSH": false,
        "Deploy": {"Service": "hello", "envvars": {"Path": "x"}, "Unknown": 1},
    }))
    .unwrap();
    assert_eq!(config.image_as_given, "example.com/hello:v1");
    assert_eq!(config.build_args["a"], "1");
    let deploy = json!({"service": "hello", "envVars": {"Path": "x"}, "Unknown": 1});
    assert_eq!(Value::Object(config.deploy.unwrap()), deploy);
    let respelled: Vec<_> = config
        .respelled
        .iter()
        .map(|key| (key.given.as_str(), key.key.as_str()))
        .collect();
    let expected = [
        ("Image", "image"),
        ("buildargs", "buildArgs"),
        ("SKIPPUSH", "skipPush"),
        ("Deploy", "deploy"),
        ("Service", "deploy.service"),
        ("envvars", "deploy.envVars"),
    ];
    assert_eq!(respelled, expected);
    assert!(config.unknown.is_empty());

    let mut twice = config_with("IMAGE", json!("example.com/hello:v1"));
    assert_eq!(parse_config(&twice).unwrap().respelled.len(), 1);
    twice["IMAGE"] = json!("example.com/other:v1");
    let error = parse_config(&twice).unwrap_err().to_string();
    assert!(error.contains("image is given twice"), "{error}");
    let error = parse_config(&config_with("deploy", json!({"service": "a", "Image": "x"})))
        .unwrap_err()
        .to_string();
    assert!(error.contains("deploy.image should be left out"), "{error}");
}

#[test]
fn a_config_with_a_byte_order_mark_is_rejected_with_the_name_of_its_encoding() {
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (content, encoding) in [
        (&b"\xef\xbb\xbf{\"image\": \"hello\"}"[..], "UTF-8"),
        (&utf16, "UTF-16"),
        (b"\xfe\xff\0{\0}", "UTF-16"),
        (b"\xff\xfe\0\0{\0\0\0}\0\0\0", "UTF-32"),
    ] {
        let error = BuildConfig::parse(content).unwrap_err().to_string();
        assert!(
            error.contains(&format!("byte order mark ({encoding})")),
            "{error}"
        );
    }
}

#[test]
fn a_timeout_is_a_duration_or_a_number_of_seconds() {
    for (value, seconds) in [
        (json!(90), 90),
        (json!("90"), 90),
        (json!("1.5m"), 90),
        (json!("500ms"), 0),
    ] {
        assert_eq!(
            parse_config(&config_with("timeout", value))
                .unwrap()
                .timeout
                .unwrap()
                .as_secs(),
            seconds
        );
    }
}

#[test]
fn build_arguments_that_configure_buildkit_are_rejected() {
    for name in ["BUILDKIT_SYNTAX", "BUILDKIT_INLINE_CACHE", "buildkit_syntax"] {
        let error = parse_config(&config_with(
            "buildArgs",
            json!({ name: "docker.io/evil/frontend" }),
        ))
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("buildArgs.{name} is not allowed")),
            "{text}"
        );
    }
    assert!(
        parse_config(&config_with(
            "buildArgs",
            json!({"MY_BUILDKIT_X": "", "HTTP_PROXY": "x"})
        ))
        .is_ok()
    );
}

#[test]
fn every_wrong_config_key_is_named_with_what_would_be_right() {
    for (config, key, hint) in [
        (json!({}), "image", "registry.example.com"),
        (json!({"image": null}), "image", "registry.example.com"),
        (json!({"image": 1}), "image", "a string"),
        (json!({"image": ""}), "image", "registry.example.com"),
        (json!({"image": "Hello"}), "image", "lowercase"),
        (json!({"image": "hello@sha256:00"}), "image", "tag"),
        (json!([]), "com.openfaas.docker.config", "object"),
        (config_with("buildArgs", json!([])), "buildArgs", "object"),
        (config_with("buildArgs", json!({"A": 1})), "buildArgs.A", "string"),
        (config_with("buildArgs", json!({"A=B": "1"})), "A=B", "'='"),
        (config_with("buildArgs", json!({"": "1"})), "buildArgs", "'='"),
        (
            config_with("platforms", json!("linux/amd64")),
            "platforms",
            "list",
        ),
        (
            config_with("platforms", json!(["linux/amd64", 1])),
            "platforms[1]",
            "string",
        ),
        (
            config_with("platforms", json!(["linux/amd64,linux/arm64"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (
            config_with("platforms", json!(["a/b/c/d"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (
            config_with("platforms", json!(["linux//v7"])),
            "platforms[0]",
            "linux/amd64",
        ),
        (
            config_with("skipPush", json!("true")),
            "skipPush",
            "true or false",
        ),
        (config_with("noCache", json!(1)), "noCache", "true or false"),
        (config_with("deploy", json!("hello")), "deploy", "object"),
        (config_with("deploy", json!({})), "deploy.service", "name"),
        (config_with("probe", json!({})), "probe", "together with deploy"),
        (
            config_with("deploy", json!({"service": "hello", "image": "x"})),
            "deploy.image",
            "left out",
        ),
        (config_with("target", json!(" ")), "target", "stage"),
        (config_with("labels", json!({"": "x"})), "labels", "blank"),
        (config_with("labels", json!({"a": 1})), "labels.a", "string"),
        (
            config_with("dockerfile", json!("/Dockerfile")),
            "dockerfile",
            "context/",
        ),
        (
            config_with("dockerfile", json!("../Dockerfile")),
            "dockerfile",
            "context/",
        ),
        (config_with("dockerfile", json!("./")), "dockerfile", "context/"),
        (config_with("timeout", json!("soon")), "timeout", "10m"),
        (config_with("timeout", json!("0s")), "timeout", "10m"),
        (config_with("timeout", json!(-1)), "timeout", "10m"),
        (config_with("timeout", json!(1.5)), "timeout", "10m"),
        (config_with("notAfter", json!("tomorrow")), "notAfter", "2030"),
        (
            config_with("notAfter", json!(1_893_456_000)),
            "notAfter",
            "string",
        ),
        (config_with("submittedAt", json!("now")), "submittedAt", "2030"),
        (
            config_with("supersede", json!("no")),
            "supersede",
            "true or false",
        ),
        (config_with("tags", json!(["v1", "v 2"])), "tags[1]", "tag"),
        (config_with("cacheFrom", json!("r/a")), "cacheFrom", "list"),
        (
            config_with("cacheTo", json!(["r.example/a", "type=gha"])),
            "cacheTo[1]",
            "type=registry",
        ),
        (config_with("provenance", json!("most")), "provenance", "\"max\""),
        (config_with("sbom", json!("true")), "sbom", "true or false"),
        (
            config_with("compression", json!("lz4")),
            "compression",
            "\"gzip\"",
        ),
        (
            config_with("compressionLevel", json!(3)),
            "compressionLevel",
            "together with compression",
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
        let error = parse_config(&config).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(hint), "{config}: {error}");
    }
    let both = json!({"image": "hello", "skipPush": true, "deploy": {"service": "hello"}});
    assert!(parse_config(&both).unwrap_err().to_string().contains("skipPush"));
}

#[test]
fn all_wrong_config_keys_are_reported_in_one_error() {
    let config = json!({
        "image": "Hello",
        "tags": ["v1", "v 2", 3],
        "buildArgs": {"A": 1, "B C": "", "BUILDKIT_SYNTAX": "", "GOOD": ""},
        "platforms": ["linux/amd64", "a/b/c/d", 7],
        "skipPush": true,
        "target": " ",
        "labels": {"": "", "a": 1},
        "noCache": "yes",
        "cacheFrom": ["A", "type=gha"],
        "cacheTo": ["r.example/a", "r.example/a"],
        "provenance": "all",
        "sbom": 1,
        "compression": "lz4",
        "dockerfile": "../Dockerfile",
        "timeout": "0s",
        "notAfter": "tomorrow",
        "deploy": {"image": "x"},
        "probe": [],
    });
    let error = parse_config(&config).unwrap_err().to_string();
    let problems: Vec<_> = error
        .strip_prefix("com.openfaas.docker.config: ")
        .unwrap()
        .split("; ")
        .filter(|part| !part.starts_with("it should be"))
        .collect();
    let keys: Vec<_> = problems
        .iter()
        .map(|part| part.split_once(" should ").or(part.split_once(" is ")).unwrap().0)
        .collect();
    let expected = [
        "image",
        "tags[2]",
        "tags[1]",
        "buildArgs.A",
        "buildArgs.\"B C\"",
        "buildArgs.BUILDKIT_SYNTAX",
        "platforms[2]",
        "platforms[1]",
        "target",
        "labels.a",
        "labels",
        "noCache",
        "cacheFrom[0]",
        "cacheFrom[1]",
        "cacheTo[1]",
        "provenance",
        "sbom",
        "compression",
        "dockerfile",
        "timeout",
        "notAfter",
        "deploy.service",
        "deploy.image",
        "skipPush",
        "probe",
    ];
    assert_eq!(keys, expected, "{error}");
}

#[test]
fn a_config_key_of_the_wrong_type_is_not_also_reported_as_missing_by_keys_that_need_it() {
    for (config, expected) in [
        (
            json!({"image": "hello", "deploy": 1, "probe": {}}),
            "com.openfaas.docker.config: deploy should be an object",
        ),
        (
            json!({"image": "hello", "compression": 1, "compressionLevel": 3}),
            "com.openfaas.docker.config: compression should be a string",
        ),
        (
            json!({"image": 1, "tags": ["v2"]}),
            "com.openfaas.docker.config: image should be a string",
        ),
    ] {
        assert_eq!(parse_config(&config).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_config_error_stays_short_and_printable_however_much_is_wrong() {
    let error = parse_config(&config_with("platforms", json!(vec![1; 300_000])))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("; and 299950 more"), "{error}");
    let name = format!("line\nbreak{}", "x".repeat(10_000));
    let error = parse_config(&config_with("labels", json!({ name: 1 })))
        .unwrap_err()
        .to_string();
    assert!(error.len() < 300 && !error.contains(char::is_control), "{error}");
}

#[test]
fn a_json_syntax_error_in_a_config_is_reported_with_its_position_and_without_content() {
    let error =
        BuildConfig::parse(b"{\"image\": \"hello\", \"buildArgs\": {\"TOKEN\": hunter2}}").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("line 1") && !text.contains("hunter2"), "{text}");
    for content in [&b""[..], b"{", b"\xff", b"{} {}", b"[[[["] {
        assert!(matches!(
            BuildConfig::parse(content),
            Err(ConfigError {
                problem: ConfigProblem::Syntax { .. },
                ..
            })
        ));
    }
    assert!(matches!(
        BuildConfig::parse("[".repeat(100_000).as_bytes()),
        Err(ConfigError {
            problem: ConfigProblem::Syntax { .. },
            ..
        })
    ));
}

#[test]
fn the_debug_output_of_a_config_has_no_values_of_build_arguments_or_deploy() {
    let mut config = config_with("buildArgs", json!({"TOKEN": "hunter2"}));
    config["deploy"] = json!({"service": "hello", "envVars": {"PASSWORD": "hunter2"}});
    let shown = format!("{:?}", parse_config(&config).unwrap());
    assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
}
