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
/// on. `run_id` distinguishes this run from others.
pub(super) fn submissions_of_phase(
    platform: &SoakPlatform,
    options: &SoakOptions,
    fault: Fault,
    run_id: &str,
) -> Result<Vec<Submission>> {
    let functions = options.functions.clamp(1, options.submissions.max(1));
    (0..options.submissions)
        .map(|number| {
            let function = format!("soak-{}-{}", fault.name(), number % functions);
            let version = number / functions + 1;
            let (repository, tag) = (format!("soak/{run_id}/{function}"), format!("v{version}"));
            let image = platform.testbed.image_name(&repository, &tag);
            let call_id = format!("{run_id}-{function}-{version}");
            let page = format!("version {version} of {function} in {run_id}");
            let config = json!({ "image": image, "deploy": { "service": function } });
            let tar = page_context_with_min_build_time(&platform.base_image, &page, options.build_time)
                .tar_with_config_last(&config)?;
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

/// Returns the context of a function that serves this page, and whose build takes at least `min_build_time`.
fn page_context_with_min_build_time(base: &str, page: &str, min_build_time: Duration) -> BuildContext {
    // The step names the page, so that it is never in the cache.
    BuildContext::static_page_function(base, page).with_dockerfile(&format!(
        "FROM {base}\nRUN sleep {} && echo '{page}' > /version\nCOPY www /www\nUSER 1000\n\
         CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n",
        min_build_time.as_secs_f64()
    ))
}

/// Sends submissions one after the other, each until the gateway has accepted it, as a careful client does: with the
/// same call ID. Returns the number of submissions that were sent more than once.
pub(super) async fn submit_all_and_count_resent(
    queue_client: SigningClient,
    callback_url: String,
    submissions: Vec<Submission>,
) -> Result<usize> {
    let mut sent_again = 0;
    for submission in submissions {
        let headers = [
            ("X-Call-Id", submission.call_id.as_str()),
            ("X-Callback-Url", callback_url.as_str()),
        ];
        let mut is_first = true;
        loop {
            let reply = queue_client
                .post_signed_with_headers(submission.tar.clone(), &headers)
                .await;
            if matches!(&reply, Ok(reply) if reply.status == 202) {
                break;
            }
            sent_again += usize::from(is_first);
            is_first = false;
            tokio::time::sleep(RESEND_PAUSE).await;
        }
    }
    Ok(sent_again)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex},
    };

    use axum::{Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};

    use super::*;

    /// The number of times that a call is still rejected, by its ID.
    type RemainingRejections = Arc<Mutex<HashMap<String, usize>>>;

    async fn answer_submission(
        State(rejections): State<RemainingRejections>,
        headers: HeaderMap,
    ) -> StatusCode {
        let id = headers["x-call-id"].to_str().unwrap();
        match rejections.lock().unwrap().get_mut(id) {
            Some(left) if *left > 0 => {
                *left -= 1;
                StatusCode::BAD_GATEWAY
            }
            _ => StatusCode::ACCEPTED,
        }
    }

    #[tokio::test]
    async fn a_submission_that_is_rejected_twice_counts_once_as_sent_again() {
        let rejections = [("a", 0), ("b", 2), ("c", 1)];
        let state: RemainingRejections = Arc::new(Mutex::new(
            rejections.map(|(id, count)| (id.to_owned(), count)).into(),
        ));
        let app = Router::new()
            .route("/", post(answer_submission))
            .with_state(Arc::clone(&state));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        let submission = |(id, _): (&str, usize)| Submission {
            call_id: id.to_owned(),
            function: String::new(),
            version: 1,
            repository: String::new(),
            tag: String::new(),
            image: String::new(),
            page: String::new(),
            tar: Vec::new(),
        };
        let queue = SigningClient::new(url, b"a key").unwrap();
        let sent_again = submit_all_and_count_resent(
            queue,
            "http://callback.test".to_owned(),
            rejections.map(submission).into(),
        );
        assert_eq!(sent_again.await.unwrap(), 2);
        assert!(state.lock().unwrap().values().all(|left| *left == 0));
        serving.abort();
    }
}
