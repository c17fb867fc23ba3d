//! The options of the build configuration, other than the image's name.

use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, buildkit::BuildkitDaemon,
    registry::ManifestWithDigest, testbed::Testbed,
};

/// Fetches a manifest by its tag or digest; fails if the registry has none.
async fn manifest_of_image(
    testbed: &Testbed,
    repository: &str,
    reference: &str,
) -> Result<ManifestWithDigest> {
    let found = testbed.registry.get_manifest(repository, reference).await?;
    found.with_context(|| format!("{repository}:{reference} is not in the registry"))
}

/// Fetches the configuration of the image with this manifest from the registry.
async fn configuration_of_image(testbed: &Testbed, repository: &str, manifest: &Value) -> Result<Value> {
    let digest = manifest["config"]["digest"]
        .as_str()
        .context("the manifest has no config")?;
    testbed.registry.get_json_blob(repository, digest).await
}

/// The Dockerfile executes nothing, so this machine can build for all architectures.
#[tokio::test]
async fn several_platforms_make_one_index_under_every_tag_and_a_target_alone_a_manifest_with_labels()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let repository = "e2e/platforms";
    let source = BuildContext::dockerfile(
        "FROM scratch AS first\nCOPY a /first\nFROM scratch AS second\nARG TARGETARCH\nCOPY a-$TARGETARCH /second\n",
    )
    .with_file("a", "a")
    .with_file("a-amd64", "for amd64")
    .with_file("a-arm64", "for arm64");
    let config = json!({
        "image": testbed.image_name(repository, "1"),
        "tags": ["2"],
        "platforms": [" linux/amd64", "linux/arm64 ", ""],
    });
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let index = manifest_of_image(&testbed, repository, "1").await?;
    assert_eq!(reply.text_field("digest"), index.digest);
    assert_eq!(
        manifest_of_image(&testbed, repository, "2").await?.digest,
        index.digest
    );
    let mut architectures = Vec::new();
    for entry in index.body["manifests"].as_array().context("no index")? {
        let digest = entry["digest"].as_str().context("no digest")?;
        let one = manifest_of_image(&testbed, repository, digest).await?;
        let configuration = configuration_of_image(&testbed, repository, &one.body).await?;
        assert_eq!(configuration["architecture"], entry["platform"]["architecture"]);
        architectures.push(
            configuration["architecture"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    architectures.sort();
    assert_eq!(architectures, ["amd64", "arm64"]);

    // Another stage of the same context, for the daemon's own platform: a plain manifest, with labels.
    let config = json!({
        "image": testbed.image_name(repository, "first"),
        "platforms": [""],
        "target": "first",
        "labels": { "org.example.label": "with = and \"quotes\"" },
        "noCache": true,
    });
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let first = manifest_of_image(&testbed, repository, "first").await?;
    let configuration = configuration_of_image(&testbed, repository, &first.body).await?;
    assert_eq!(
        configuration["config"]["Labels"]["org.example.label"],
        "with = and \"quotes\""
    );
    let history = configuration["history"].to_string();
    assert!(
        history.contains("/first") && !history.contains("/second"),
        "{history}"
    );
    Ok(())
}

/// The step's output differs in every run, so an equal layer can only come from the cache; and the second daemon
/// can only have it from the registry.
#[tokio::test]
async fn another_daemon_reuses_a_cache_from_the_registry() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let repository = "e2e/cached";
    let cache = testbed.image_name(repository, "cache");
    let at = format!("{:?}", SystemTime::now());
    let source = BuildContext::dockerfile(format!(
        "FROM {base} AS work\nARG AT\nRUN echo $AT; cat /proc/sys/kernel/random/uuid > /made\n\
         FROM scratch\nCOPY --from=work /made /made\n"
    ));
    let config = |tag: &str, more: Value| {
        let mut config = json!({ "image": testbed.image_name(repository, tag), "buildArgs": { "AT": at } });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    };

    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let to = json!({ "cacheTo": [format!("type=registry,ref={cache},mode=max")] });
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config("1", to))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let kept = manifest_of_image(&testbed, repository, "cache").await?;
    assert_eq!(
        kept.body["config"]["mediaType"], "application/vnd.buildkit.cacheconfig.v0",
        "{:?}",
        kept.body
    );

    let other = BuildkitDaemon::start(&testbed, "").await?;
    let builder =
        BuilderProcess::start_with_settings(&testbed, &[("buildkit_url", &other.socket_url())]).await?;
    let from = json!({ "cacheFrom": [cache] });
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config("2", from))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        reply.text.contains("importing cache manifest from"),
        "{}",
        reply.text
    );
    let (first, second) = (
        manifest_of_image(&testbed, repository, "1").await?,
        manifest_of_image(&testbed, repository, "2").await?,
    );
    assert_eq!(first.layer_digests(), second.layer_digests());
    Ok(())
}

#[tokio::test]
async fn the_index_has_sbom_and_provenance_without_build_arguments_and_an_sbom_needs_a_generator()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let generator = testbed.image_name("e2e/generator", "1");
    let small = BuildContext::static_page_function(base, "attested").with_file("a", "a");
    let repository = "e2e/attested";
    let config = json!({
        "image": testbed.image_name(repository, "1"),
        "buildArgs": { "TOKEN": "value of an argument" },
        "sbom": true,
        "provenance": true,
        // The deployed image is an index that also lists attestations, which belong to no platform.
        "deploy": { "service": "attested" },
    });

    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(small.tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(
        reply.text_field("error").contains("sbom_generator"),
        "{}",
        reply.text
    );
    // The protocol: BuildKit docs/attestations/sbom-protocol.md.
    let scan = "#!/bin/sh\nexec > $BUILDKIT_SCAN_DESTINATION/scan.spdx.json\n\
                echo '{\"_type\": \"https://in-toto.io/Statement/v0.1\", \"predicateType\": \"https://spdx.dev/Document\", \
                \"predicate\": {\"name\": \"scanned\"}}'\n";
    let source = BuildContext::dockerfile(format!("FROM {base}\nCOPY scan /scan\nENTRYPOINT [\"/scan\"]\n"))
        .with_file_of_mode("scan", scan, 0o755);
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&json!({ "image": generator }))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let builder = BuilderProcess::start_with_settings(&testbed, &[("sbom_generator", &generator)]).await?;
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(small.tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let index = manifest_of_image(&testbed, repository, "1").await?;
    assert_eq!(reply.text_field("digest"), index.digest);
    let entries = index.body["manifests"].as_array().context("no index")?;
    let attestations = entries
        .iter()
        .find(|entry| entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest")
        .context("no attestations")?;
    let digest = attestations["digest"].as_str().context("no digest")?;
    let attestations = manifest_of_image(&testbed, repository, digest).await?;
    let mut kinds = Vec::new();
    for (layer, digest) in attestations.body["layers"]
        .as_array()
        .context("no layers")?
        .iter()
        .zip(attestations.layer_digests())
    {
        let statement = testbed.registry.get_json_blob(repository, &digest).await?;
        let kind = layer["annotations"]["in-toto.io/predicate-type"].clone();
        assert_eq!(statement["predicateType"], kind);
        assert!(
            !statement.to_string().contains("value of an argument"),
            "an attestation contains a build argument: {statement}"
        );
        kinds.push(kind.as_str().unwrap_or_default().to_owned());
    }
    kinds.sort();
    assert_eq!(
        kinds,
        ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"]
    );
    Ok(())
}

/// The frontends' names do not resolve here: if BuildKit tried to pull them, the build would fail.
#[tokio::test]
async fn a_foreign_syntax_line_is_rejected_and_one_of_docker_or_behind_a_link_is_ignored() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let config = json!({ "image": testbed.image_name("e2e/frontend", "1"), "skipPush": true });
    let evil = "# syntax=registry.invalid/frontend:1\nFROM scratch\nCOPY a /a\n";
    let post = async |source: BuildContext| {
        builder
            .build_client_with_own_key()?
            .post_signed(source.with_file("a", "a").tar_with_config_last(&config)?)
            .await
    };

    let reply = post(BuildContext::dockerfile(evil)).await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(
        reply
            .text_field("error")
            .contains("syntax=registry.invalid/frontend:1"),
        "{}",
        reply.text
    );
    let named = "# syntax=docker/dockerfile:1.99-nowhere\nFROM scratch\nCOPY a /a\n";
    let reply = post(BuildContext::dockerfile(named)).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = post(
        BuildContext::new()
            .with_file("hidden", evil)
            .with_link("Dockerfile", "hidden"),
    )
    .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn a_build_and_its_step_end_at_the_time_limit_and_an_expired_request_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("exec_timeout", "20s")]).await?;
    let at = format!("{:?}", SystemTime::now());
    let limited = async |seconds: u32, more: Value| {
        let source =
            BuildContext::dockerfile(format!("FROM {base}\nARG AT\nRUN sleep {seconds}; echo $AT\n"));
        let mut config = json!({ "image": testbed.image_name("e2e/limited", "1"), "buildArgs": { "AT": at }, "skipPush": true });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        builder
            .build_client_with_own_key()?
            .post_signed(source.tar_with_config_last(&config)?)
            .await
    };

    let reply = limited(311, json!({ "timeout": "1s" })).await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    assert_eq!(
        reply.text_field("error"),
        "the build ran past its time limit of 1s"
    );
    testbed.wait_for_step("sleep 311", false).await?;

    // The limit of the function itself, minus the two seconds that it reserves for the answer. The build comes to its
    // step within it on a busy machine too.
    let reply = limited(312, json!({ "timeout": "5m" })).await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    assert!(
        reply.text_field("error").contains("its time limit of "),
        "{}",
        reply.text
    );
    assert!(
        reply.json_or_error_text()["log"]
            .to_string()
            .contains("sleep 312"),
        "{}",
        reply.text
    );
    assert_eq!(
        reply.text_field("status"),
        "failed",
        "not the host's answer to a timeout"
    );
    testbed.wait_for_step("sleep 312", false).await?;

    let reply = limited(313, json!({ "notAfter": "2020-01-01T00:00:00Z" })).await?;
    assert_eq!(reply.status, 401, "{}", reply.text);
    assert!(
        reply.text_field("error").contains("2020-01-01T00:00:00Z"),
        "{}",
        reply.text
    );
    Ok(())
}
