//! The submissions of a soak test: small builds of functions, each with content of its own.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{Fault, SoakOptions, platform::SoakPlatform};
use crate::{build_context::BuildContext, client::SigningClient};

/// The pause before a submission that the gateway did not accept is sent again.
const RESEND_PAUSE: Duration = Duration::from_millis(200);

/// One submission: a version of a function.
#[derive(Debug, Clone)]
pub(super) struct Submission {
    /// The ID of the call, which the client chooses.
    pub(super) call_id: String,
    /// The function's name.
    pub(super) function: String,
    /// The number of the function's version, from 1; a higher one is newer.
    pub(super) version: usize,
    /// The repository of the image, without the registry's host.
    pub(super) repository: String,
    /// The tag of the image.
    pub(super) tag: String,
    /// The image's name, with the registry's host and the tag.
    pub(super) image: String,
    /// The text of the function's page.
    pub(super) page: String,
    tar: Vec<u8>,
}

/// Returns the submissions of one phase: the first version of every function, then the second of every function, and so
/// on. `run` distinguishes this run from others.
pub(super) fn submissions_of_phase(
    platform: &SoakPlatform,
    options: &SoakOptions,
    fault: Fault,
    run: &str,
) -> Result<Vec<Submission>> {
    let functions = options.functions.clamp(1, options.submissions.max(1));
    (0..options.submissions)
        .map(|number| {
            let function = format!("soak-{}-{}", fault.name(), number % functions);
            let version = number / functions + 1;
            let (repository, tag) = (format!("soak/{run}/{function}"), format!("v{version}"));
            let image = platform.testbed.image_name(&repository, &tag);
            let call_id = format!("{run}-{function}-{version}");
            let page = format!("version {version} of {function} in {run}");
            let config = json!({ "image": image, "deploy": { "service": function } });
            let tar = slow_page_function(&platform.base_image, &page, options.build_time)
                .tar_with_config(&config)?;
            Ok(Submission {
                call_id,
                function,
                version,
                repository,
                tag,
                image,
                page,
                tar,
            })
        })
        .collect()
}

/// Returns the context of a function that serves this page, and whose build takes at least `build_time`.
fn slow_page_function(base: &str, page: &str, build_time: Duration) -> BuildContext {
    // The step names the page, so that it is never in the cache.
    BuildContext::static_page_function(base, page).with_dockerfile(&format!(
        "FROM {base}\nRUN sleep {} && echo '{page}' > /version\nCOPY www /www\nUSER 1000\n\
         CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n",
        build_time.as_secs_f64()
    ))
}

/// Sends submissions one after the other, each until the gateway has accepted it, as a careful client does: with the same
/// call ID. Returns the number of attempts that the gateway did not accept.
pub(super) async fn submit_all(
    queue: SigningClient,
    callback: String,
    submissions: Vec<Submission>,
) -> Result<usize> {
    let mut rejected = 0;
    for submission in submissions {
        let headers = [
            ("X-Call-Id", submission.call_id.as_str()),
            ("X-Callback-Url", callback.as_str()),
        ];
        loop {
            let reply = queue.post_with_headers(submission.tar.clone(), &headers).await;
            if matches!(&reply, Ok(reply) if reply.status == 202) {
                break;
            }
            rejected += 1;
            tokio::time::sleep(RESEND_PAUSE).await;
        }
    }
    Ok(rejected)
}
