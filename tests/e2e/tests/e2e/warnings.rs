//! Warnings as data: what the builder ignored is a list in the result and in the terminal record.

use anyhow::Result;
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, builder_process::BuilderProcess, testbed::Testbed};

const JSON_LINES_MEDIA_TYPE: &str = "application/x-ndjson";

/// Returns the warnings of a result or a record.
fn warnings_in_answer(record: &Value) -> Vec<&str> {
    let list = record["warnings"].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn what_was_ignored_is_a_warning_in_the_result_and_in_the_terminal_record() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let client = builder.build_client_with_own_key()?;
    let source = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a");
    let image = testbed.image_name("e2e/warnings", "1");
    let with = |key: &str| {
        let mut config = json!({ "image": image, "skipPush": true });
        config[key] = json!("x");
        config
    };
    for (what, config, part) in [
        ("an unknown key", with("nonsense"), "nonsense"),
        (
            "a key in another case",
            json!({ "image": image, "SkipPush": true }),
            "SkipPush",
        ),
    ] {
        let tar = source.tar_with_config_last(&config)?;
        let reply = client.post_signed(tar.clone()).await?;
        assert_eq!(reply.status, 200, "{what}: {}", reply.text);
        let result = reply.json_or_error_text();
        assert!(
            warnings_in_answer(&result).iter().any(|one| one.contains(part)),
            "{what}: {result}"
        );
        assert!(result["log"].to_string().contains(part), "{what}: {result}");

        let (lines, last) = client
            .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
            .await?
            .read_remaining_lines_and_terminal_record()
            .await?;
        assert_eq!(
            warnings_in_answer(&last),
            warnings_in_answer(&result),
            "{what}: {last}"
        );
        assert!(lines.iter().any(|line| line.contains(part)), "{what}: {lines:?}");
    }

    let reply = client
        .post_signed(source.tar_with_config_last(&json!({ "image": image, "skipPush": true }))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json_or_error_text().get("warnings"), None, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn a_failed_build_has_its_warnings_too() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let source = BuildContext::dockerfile("FROM scratch\nCOPY nowhere /\n");
    let config = json!({ "image": testbed.image_name("e2e/warnings", "1"), "nonsense": 1 });

    let reply = builder
        .build_client_with_own_key()?
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;

    assert_eq!(reply.status, 422, "{}", reply.text);
    let result = reply.json_or_error_text();
    assert!(
        warnings_in_answer(&result)
            .iter()
            .any(|one| one.contains("nonsense")),
        "{result}"
    );
    Ok(())
}
