//! Build secrets sealed by faas-cli, on the real BuildKit.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, builder_process::BuilderProcess, testbed::Testbed};

/// Returns keys and secrets that faas-cli generated and sealed, from `tests/clients/recorded`.
fn read_recorded_secrets() -> Result<Value> {
    Ok(serde_json::from_str(include_str!(
        "../../../clients/recorded/secrets.json"
    ))?)
}

#[tokio::test]
async fn sealed_secrets_reach_the_steps_and_neither_answer_nor_image_and_those_for_another_key_fail()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let recorded = read_recorded_secrets()?;
    let text = |name: &str| recorded[name].as_str().with_context(|| name.to_owned());
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    std::fs::write(&key, text("private_key")?)?;
    let path = key.to_str().context("the path is not UTF-8")?;
    let builder =
        BuilderProcess::start_with_settings(&testbed, &[("build_secrets_private_key_path", path)]).await?;

    // Mount secrets as a file and as a variable; the printed lengths show that both are complete. Then print them.
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nENV AT=\"{at}\"\n\
         RUN --mount=type=secret,id=pip_token,required=true --mount=type=secret,id=npmrc,env=NPMRC \
         wc -c < /run/secrets/pip_token; echo -n \"$NPMRC\" | wc -c; \
         cat /run/secrets/pip_token; echo \"with $NPMRC\"; base64 /run/secrets/pip_token; \
         echo what the step wrote > /proof\n"
    ));
    let config = json!({ "image": testbed.image_name("e2e/sealed", "1") });
    let tar = source.tar_with_secrets(&config, text("sealed")?)?;
    let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;

    assert_eq!(reply.status, 200, "{}", reply.text);
    let log: Vec<String> = serde_json::from_value(reply.json_or_error_text()["log"].clone())?;
    let output: Vec<_> = log
        .iter()
        .filter_map(|line| line.strip_prefix("l: ")?.split_once(' '))
        .map(|(_, text)| text)
        .collect();
    let npmrc = recorded["values"]["npmrc"]
        .as_str()
        .context("secrets.json: no npmrc")?
        .len();
    assert_eq!(output[..3], ["7", &npmrc.to_string(), "***"], "{log:?}");
    for secret in ["s3cr3t", "t0ken", "czNjcjN0"] {
        assert!(
            !reply.text.contains(secret),
            "the answer contains {secret}: {}",
            reply.text
        );
    }
    let manifest = testbed
        .registry
        .get_manifest("e2e/sealed", "1")
        .await?
        .context("the image is not in the registry")?;
    let config = manifest.body["config"]["digest"]
        .as_str()
        .context("the manifest has no config")?
        .to_owned();
    let mut all = testbed.registry.get_blob("e2e/sealed", &config).await?;
    for digest in manifest.layer_digests() {
        let packed = keys.path().join("layer");
        std::fs::write(&packed, testbed.registry.get_blob("e2e/sealed", &digest).await?)?;
        // zstd decompresses gzip too, and with -f copies input that is not compressed.
        let unpacked = Command::new("zstd")
            .args(["-dcf", "--quiet"])
            .arg(&packed)
            .output()?;
        assert!(unpacked.status.success(), "{digest} does not decompress");
        all.extend(unpacked.stdout);
    }
    let is_there = |text: &str| all.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(is_there("what the step wrote"));
    assert!(!is_there("s3cr3t") && !is_there("t0ken"));

    let wrong = text("sealed")?.replace("UWnDv86x", "ABCDEFGH");
    let refused = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_secrets(
            &json!({ "image": testbed.image_name("e2e/sealed-wrong", "1") }),
            &wrong,
        )?)
        .await?;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert!(
        refused.text_field("error").contains("ABCDEFGH") && refused.text_field("error").contains("UWnDv86x")
    );
    assert!(
        testbed
            .registry
            .get_manifest("e2e/sealed-wrong", "1")
            .await?
            .is_none()
    );
    Ok(())
}
