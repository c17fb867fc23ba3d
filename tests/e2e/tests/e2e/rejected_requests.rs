//! What the caller got wrong: each with its status and message, and afterwards no image, no function, no file, no session.

use anyhow::Result;
use serde_json::{Value, json};
use slipway_e2e::{client::Reply, shared::Bench, source::Source};

/// One mistake, what is posted, and what the answer must be.
struct Mistake {
    what: &'static str,
    status: u16,
    message: &'static [&'static str],
}

fn config(bench: &Bench, name: &str) -> Value {
    json!({ "image": bench.image(&format!("e2e/refused-{name}"), "1"), "deploy": { "service": format!("refused-{name}") } })
}

async fn assert_refused(bench: &Bench, name: &str, mistake: Mistake, reply: Reply) -> Result<()> {
    let Mistake {
        what,
        status,
        message,
    } = mistake;
    assert_eq!(reply.status, status, "{what}: {}", reply.text);
    assert_eq!(reply.field("status"), "failed", "{what}: {}", reply.text);
    for part in message {
        assert!(
            reply.field("error").contains(part),
            "{what}: {:?} is not in {}",
            part,
            reply.text
        );
    }
    assert_nothing_left(bench, name).await
}

async fn assert_nothing_left(bench: &Bench, name: &str) -> Result<()> {
    let manifest = bench
        .registry
        .manifest(&format!("e2e/refused-{name}"), "1")
        .await?;
    assert!(manifest.is_none(), "an image was pushed: {manifest:?}");
    assert!(
        bench
            .functions
            .status(&format!("refused-{name}"))
            .await?
            .is_none(),
        "a function was deployed"
    );
    Ok(())
}

fn good() -> Source {
    Source::dockerfile("FROM scratch\nCOPY a /a\n").file("a", "a")
}

#[tokio::test]
async fn a_wrong_signature_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let tar = good().tar(&config(&bench, "wrong-signature"))?;
    let signature = slipway_e2e::client::signature(b"another key", &tar)?;
    let mistake = Mistake {
        what: "wrong signature",
        status: 401,
        message: &["X-Build-Signature", "does not match"],
    };
    let reply = bench.builder.post_with(tar, Some(&signature), &[]).await?;
    assert_refused(&bench, "wrong-signature", mistake, reply).await
}

#[tokio::test]
async fn a_body_without_a_signature_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let tar = good().tar(&config(&bench, "no-signature"))?;
    let mistake = Mistake {
        what: "no signature",
        status: 401,
        message: &["X-Build-Signature"],
    };
    let reply = bench.builder.post_with(tar, None, &[]).await?;
    assert_refused(&bench, "no-signature", mistake, reply).await
}

#[tokio::test]
async fn a_truncated_tar_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let mut tar = good()
        .file("b", vec![7; 4096])
        .tar(&config(&bench, "truncated"))?;
    tar.truncate(512 * 6 + 100);
    let mistake = Mistake {
        what: "truncated tar",
        status: 400,
        message: &["context/b"],
    };
    let reply = bench.builder.post(tar).await?;
    assert_refused(&bench, "truncated", mistake, reply).await
}

#[tokio::test]
async fn a_tar_without_a_config_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let mistake = Mistake {
        what: "no config",
        status: 400,
        message: &["com.openfaas.docker.config"],
    };
    let reply = bench.builder.post(good().tar_without_config()?).await?;
    assert_refused(&bench, "no-config", mistake, reply).await
}

#[tokio::test]
async fn a_bad_image_name_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    for image in [
        "",
        "reg.example/UPPER:1",
        "reg.example/a b",
        "reg.example/name:bad tag",
        "-",
    ] {
        let config = json!({ "image": image, "deploy": { "service": "refused-bad-image" } });
        let mistake = Mistake {
            what: image,
            status: 400,
            message: &["image"],
        };
        let reply = bench.builder.post(good().tar(&config)?).await?;
        assert_refused(&bench, "bad-image", mistake, reply).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failing_step_ends_with_its_log_and_deploys_nothing() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let source = Source::dockerfile(format!("FROM {base}\nRUN echo this is said before; exit 3\n"));
    let reply = bench
        .builder
        .post(source.tar(&config(&bench, "failing-step"))?)
        .await?;
    let log = reply.json()["log"].to_string();
    assert!(log.contains("this is said before"), "{}", reply.text);
    let mistake = Mistake {
        what: "failing step",
        status: 422,
        message: &["exit code: 3"],
    };
    assert_refused(&bench, "failing-step", mistake, reply).await
}

#[tokio::test]
async fn a_dockerfile_that_does_not_parse_ends_with_the_line() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let source = Source::dockerfile("FROM scratch\nNONSENSE here\n");
    let reply = bench
        .builder
        .post(source.tar(&config(&bench, "no-parse"))?)
        .await?;
    let mistake = Mistake {
        what: "unknown instruction",
        status: 422,
        message: &["NONSENSE"],
    };
    assert_refused(&bench, "no-parse", mistake, reply).await
}

#[tokio::test]
async fn a_context_without_a_dockerfile_is_told_so() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let reply = bench
        .builder
        .post(
            Source::new()
                .file("a", "a")
                .tar(&config(&bench, "no-dockerfile"))?,
        )
        .await?;
    let mistake = Mistake {
        what: "no Dockerfile",
        status: 422,
        message: &["Dockerfile"],
    };
    // Whether it is found in the tar (400) or by the frontend (422), it is the caller's.
    let mistake = Mistake {
        status: if reply.status == 400 { 400 } else { 422 },
        ..mistake
    };
    assert_refused(&bench, "no-dockerfile", mistake, reply).await
}
