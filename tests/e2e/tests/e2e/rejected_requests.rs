//! Errors of the caller: each has its status and message, and leaves no image and no function behind.

use anyhow::Result;
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, client::HttpReply, testbed::Testbed};

/// The expected answer to one error of a caller.
struct ExpectedRejection {
    what: &'static str,
    status: u16,
    message: &'static [&'static str],
}

/// Returns a valid config that pushes and deploys under names of this case, so that the effects of a request can be
/// seen.
fn valid_config_of_rejection_case(testbed: &Testbed, case: &str) -> Value {
    json!({ "image": testbed.image_name(&format!("e2e/refused-{case}"), "1"), "deploy": { "service": format!("refused-{case}") } })
}

/// Asserts the status and message of an answer, and that this case has neither image nor function.
async fn assert_rejected_without_effects(
    testbed: &Testbed,
    case: &str,
    expected: ExpectedRejection,
    reply: HttpReply,
) -> Result<()> {
    let ExpectedRejection {
        what,
        status,
        message,
    } = expected;
    assert_eq!(reply.status, status, "{what}: {}", reply.text);
    assert_eq!(reply.text_field("status"), "failed", "{what}: {}", reply.text);
    for part in message {
        assert!(
            reply.text_field("error").contains(part),
            "{what}: {:?} is not in {}",
            part,
            reply.text
        );
    }
    assert_no_image_and_no_function_of_case(testbed, case).await
}

async fn assert_no_image_and_no_function_of_case(testbed: &Testbed, case: &str) -> Result<()> {
    let manifest = testbed
        .registry
        .get_manifest(&format!("e2e/refused-{case}"), "1")
        .await?;
    assert!(manifest.is_none(), "an image was pushed: {manifest:?}");
    assert!(
        testbed
            .functions
            .function_status(&format!("refused-{case}"))
            .await?
            .is_none(),
        "a function was deployed"
    );
    Ok(())
}

fn valid_context() -> BuildContext {
    BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a")
}

#[tokio::test]
async fn a_wrong_signature_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let tar =
        valid_context().tar_with_config_last(&valid_config_of_rejection_case(&testbed, "wrong-signature"))?;
    let signature = slipway_e2e::client::sign_body(b"another key", &tar)?;
    let expected = ExpectedRejection {
        what: "wrong signature",
        status: 401,
        message: &["X-Build-Signature", "does not match"],
    };
    let reply = testbed
        .builder
        .post_with_signature(tar, Some(&signature), &[])
        .await?;
    assert_rejected_without_effects(&testbed, "wrong-signature", expected, reply).await
}

#[tokio::test]
async fn a_body_without_a_signature_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let tar =
        valid_context().tar_with_config_last(&valid_config_of_rejection_case(&testbed, "no-signature"))?;
    let expected = ExpectedRejection {
        what: "no signature",
        status: 401,
        message: &["X-Build-Signature"],
    };
    let reply = testbed.builder.post_with_signature(tar, None, &[]).await?;
    assert_rejected_without_effects(&testbed, "no-signature", expected, reply).await
}

#[tokio::test]
async fn a_truncated_tar_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let mut tar = valid_context()
        .with_file("b", vec![7; 4096])
        .tar_with_config_last(&valid_config_of_rejection_case(&testbed, "truncated"))?;
    tar.truncate(512 * 6 + 100);
    let expected = ExpectedRejection {
        what: "truncated tar",
        status: 400,
        message: &["context/b"],
    };
    let reply = testbed.builder.post_signed(tar).await?;
    assert_rejected_without_effects(&testbed, "truncated", expected, reply).await
}

#[tokio::test]
async fn a_tar_without_a_config_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let expected = ExpectedRejection {
        what: "no config",
        status: 400,
        message: &["com.openfaas.docker.config"],
    };
    let reply = testbed
        .builder
        .post_signed(valid_context().tar_without_config()?)
        .await?;
    assert_rejected_without_effects(&testbed, "no-config", expected, reply).await
}

#[tokio::test]
async fn an_invalid_image_name_is_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    for image in [
        "",
        "reg.example/UPPER:1",
        "reg.example/a b",
        "reg.example/name:bad tag",
        "-",
    ] {
        let config = json!({ "image": image, "deploy": { "service": "refused-bad-image" } });
        let expected = ExpectedRejection {
            what: image,
            status: 400,
            message: &["image"],
        };
        let reply = testbed
            .builder
            .post_signed(valid_context().tar_with_config_last(&config)?)
            .await?;
        assert_rejected_without_effects(&testbed, "bad-image", expected, reply).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_step_is_reported_with_its_log_and_nothing_is_deployed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let source = BuildContext::dockerfile(format!("FROM {base}\nRUN echo this is said before; exit 3\n"));
    let reply = testbed
        .builder
        .post_signed(source.tar_with_config_last(&valid_config_of_rejection_case(&testbed, "failing-step"))?)
        .await?;
    let log = reply.json_or_error_text()["log"].to_string();
    assert!(log.contains("this is said before"), "{}", reply.text);
    let expected = ExpectedRejection {
        what: "failing step",
        status: 422,
        message: &["exit code: 3"],
    };
    assert_rejected_without_effects(&testbed, "failing-step", expected, reply).await
}

#[tokio::test]
async fn a_syntax_error_in_the_dockerfile_is_reported_with_the_instruction() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let source = BuildContext::dockerfile("FROM scratch\nNONSENSE here\n");
    let reply = testbed
        .builder
        .post_signed(source.tar_with_config_last(&valid_config_of_rejection_case(&testbed, "no-parse"))?)
        .await?;
    let expected = ExpectedRejection {
        what: "unknown instruction",
        status: 422,
        message: &["NONSENSE"],
    };
    assert_rejected_without_effects(&testbed, "no-parse", expected, reply).await
}

#[tokio::test]
async fn a_context_without_a_dockerfile_is_rejected_before_the_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let reply = testbed
        .builder
        .post_signed(
            BuildContext::new()
                .with_file("a", "a")
                .tar_with_config_last(&valid_config_of_rejection_case(&testbed, "no-dockerfile"))?,
        )
        .await?;
    let expected = ExpectedRejection {
        what: "no Dockerfile",
        status: 400,
        message: &["context/Dockerfile"],
    };
    assert_rejected_without_effects(&testbed, "no-dockerfile", expected, reply).await
}
