//! The sample: a function made from the template, sent to builder-fn by the queue, and deployed by deployer-fn.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::{
    REPOSITORY,
    build::{self, Record, SIGNATURE},
    callback::Callback,
    context::Context,
    functions::Functions,
    workshop::Workshop,
};
use crate::{
    command::{command, run_with_input},
    error::{Error, Result},
    http::{answer, send},
    image::Push,
    progress::Progress,
    stack::Stack,
};

/// The function's name.
const NAME: &str = "hello";

/// What it is called with.
const BODY: &str = "Slipway";

/// How long the build may take, with the deployment.
const BUILT_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Takes the sample from source to running, unless it runs, and shows its answer.
pub(super) async fn run(
    stack: &Stack,
    registry: &Push,
    functions: &Functions,
    workshop: &Workshop,
    progress: &Progress,
) -> Result<()> {
    workshop.lay_out_sample(stack, NAME).await?;
    let context = Context::read(&workshop.context(NAME))?;
    let repository = format!("{REPOSITORY}/{NAME}");
    let tag = context.hash(&[&stack.rust_image()]);
    let built = registry.digest(&repository, &tag).await?;
    let deployed = functions.status(NAME).await?.map(|status| status.image);
    let same = built.is_some_and(|digest| deployed.is_some_and(|image| image.ends_with(&digest)));
    if !same || !functions.ready(NAME).await {
        let image = format!("{}/{repository}:{tag}", stack.registry.host);
        send_to_queue(stack, functions, &context, &image, progress).await?;
    }
    let answer = functions.call(NAME, BODY).await;
    let answer = answer.ok_or_else(|| Error::Machine(format!("{} does not answer", functions.url(NAME))))?;
    progress.step(
        NAME,
        format_args!("{} answers: {}", functions.url(NAME), answer.trim()),
    );
    Ok(())
}

async fn send_to_queue(
    stack: &Stack,
    functions: &Functions,
    context: &Context,
    image: &str,
    progress: &Progress,
) -> Result<()> {
    let mut config = build::config(image, &stack.rust_image());
    config["deploy"] = json!({ "service": NAME });
    // The Community gateway takes no more than 256,000 bytes for the queue.
    let body = compressed(&context.tar(&config)?).await?;
    let callback = Callback::listen(stack.plan().number.outer()).await?;
    let signature = build::signature(&stack.payload_secret, &body)?;
    progress.step(
        NAME,
        format_args!(
            "sending {} bytes of source to builder-fn by the queue",
            body.len()
        ),
    );
    let request = functions
        .queue("builder-fn")
        .header(SIGNATURE, signature)
        .header("X-Callback-Url", &callback.url);
    let queued = answer(send(request.body(body)).await?, &[StatusCode::ACCEPTED]).await?;
    let call = queued
        .headers()
        .get("x-call-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or("unknown")
        .to_owned();
    progress.step(NAME, format_args!("accepted as call {call}"));
    let outcome = tokio::time::timeout(BUILT_WITHIN, callback.wait()).await;
    let Ok(outcome) = outcome else {
        let what = format!(
            "the outcome of call {call}; the end of builder-fn's log:\n{}\n",
            functions.log_tail("builder-fn").await
        );
        return Err(Error::TooLong {
            what,
            seconds: BUILT_WITHIN.as_secs(),
        });
    };
    let outcome = outcome?;
    let Ok(record) = serde_json::from_slice::<Record>(&outcome) else {
        let output = format!(
            "{}\n{}",
            String::from_utf8_lossy(&outcome),
            functions.log_tail("builder-fn").await
        );
        return Err(Error::Program {
            program: format!("call {call}"),
            status: "no result".into(),
            output,
        });
    };
    let log = record.log.clone();
    let record = record.succeeded(NAME, &log)?;
    let deployment = record.deployment.unwrap_or_default();
    progress.step(
        NAME,
        format_args!(
            "built and deployed: {}",
            deployment["status"].as_str().unwrap_or("no word of it")
        ),
    );
    Ok(())
}

async fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    run_with_input(command("zstd").args(["-q", "-19", "-c"]), bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_context_is_sent_compressed() {
        let body = compressed(&vec![b'x'; 1 << 20]).await.unwrap();
        assert!(body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) && body.len() < 1000);
    }
}
