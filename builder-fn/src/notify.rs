//! Sends the result of a build to the URL that its config names (`notify`), and sets the status of its commit
//! (`commit_status.rs`).
//!
//! The queue posts its callback once, to the URL that came with the call. A notification is signed with a key of the
//! caller, is sent again after failures, and never changes the result that it reports.

mod commit_status;
mod metrics;
mod room;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_host::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use function_host::http::{Method, Request, StatusCode, Uri};
use function_host::policy::Tenant;
use function_host::signature::{HmacKeys, sign_body};
use function_host::{ErrorChain, ExchangeError, OutgoingRequestBody, Secrets, Shutdown};
use http_body_util::{BodyExt, Full};

use crate::request::SIGNATURE_HEADER;
use crate::sources::{AllowedPrivateHosts, UrlRejection, WebUrl};
pub(crate) use commit_status::{CommitState, CommitStatusReceiver};
pub use metrics::NotificationMetrics;
pub use room::NotificationMemory;
use room::ReservedNotificationMemory;

/// The time within which a receiver has to begin its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest pause before the second attempt to send a request; before each further one it is twice as long.
const FIRST_RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The largest number of attempts to send one notification or one state of a commit.
const ATTEMPTS_MAX: u32 = 8;

/// The time before the end of the process at which a notification is given up.
const TIME_RESERVED_FOR_ANSWER: Duration = Duration::from_secs(1);

const CALL_ID_HEADER: HeaderName = HeaderName::from_static("x-call-id");

const OWN_USER_AGENT: HeaderValue = HeaderValue::from_static("slipway-builder");

const JSON_MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// Sends results of builds to the URLs that configs name, and statuses of commits. Clones share the limit on memory.
#[derive(Clone, Debug)]
pub struct Notifier {
    /// The private hosts to which notifications may be sent.
    pub allowed: AllowedPrivateHosts,
    /// Whether notifications may be sent without TLS.
    pub insecure: bool,
    /// The secrets, among them the certificates of private authorities.
    pub secrets: Secrets,
    /// The metrics of notifications.
    pub metrics: NotificationMetrics,
    /// The limit on the bodies of notifications that are being sent.
    pub room: NotificationMemory,
}

/// The receiver of a build's result.
#[derive(Clone, Debug)]
pub(crate) struct ResultReceiver {
    /// The URL that the config names.
    pub(crate) url: WebUrl,
    /// The tenant whose build it is, if the builder has a policy.
    pub(crate) tenant: Option<Arc<Tenant>>,
    /// The keys that made the signature of the request; `None` if signatures are disabled.
    pub(crate) keys: Option<HmacKeys>,
}

/// A result for a receiver.
#[derive(Debug)]
struct Notification {
    receiver: ResultReceiver,
    call_id: String,
    body: Bytes,
    /// The place of the body in the limit.
    _room: ReservedNotificationMemory,
}

/// A request that may be sent several times.
struct RepeatablePost {
    /// The URL of the request: a receiver's, or that of a commit's statuses in the git host's API.
    url: Uri,
    /// The URL that is checked against the rules, at the same host.
    checked: WebUrl,
    /// The tenant whose rules apply, if the builder has a policy.
    tenant: Option<Arc<Tenant>>,
    /// The headers, besides those of every such request.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, in JSON.
    body: Bytes,
}

/// The reason why an attempt to send a notification failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    /// The notification may not be sent to the URL.
    #[error(transparent)]
    Rejected(#[from] UrlRejection),
    /// The certificates that authenticate receivers cannot be used.
    #[error("could not load the certificates that authenticate receivers")]
    Authority(#[source] function_host::BoxError),
    /// The receiver has an address to which the builder does not connect.
    #[error("{0}, to which the builder does not connect")]
    Denied(function_host::AddressDenied),
    /// No response of the receiver arrived.
    #[error("the receiver gave no response")]
    NoResponse(#[source] function_host::BoxError),
    /// The receiver's response did not arrive in time.
    #[error("the receiver gave no response within {} s", RESPONSE_TIMEOUT.as_secs())]
    Timeout,
    /// The receiver's response is not one of success.
    #[error("the receiver answered {0}")]
    Status(StatusCode),
}

impl AttemptError {
    /// Returns whether a later attempt may succeed.
    fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Rejected(_) | Self::Authority(_) | Self::Denied(_) => false,
            Self::NoResponse(_) | Self::Timeout => true,
            Self::Status(status) => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
                    )
            }
        }
    }
}

impl Notifier {
    /// Checks, before a build, that its result may be sent to a URL for a tenant.
    ///
    /// # Errors
    /// Fails if the URL is not allowed.
    pub(crate) fn check_url(&self, url: &WebUrl, tenant: Option<&Tenant>) -> Result<(), UrlRejection> {
        url.check(&self.allowed, self.insecure, tenant).map(drop)
    }

    /// Sends a result in the background, unless too many others are being sent. While the process shuts down, waits
    /// until it is sent or the process is about to end.
    pub(crate) async fn send_result_waiting_only_in_shutdown(
        &self,
        receiver: ResultReceiver,
        call_id: &str,
        body: Vec<u8>,
        shutdown: &Shutdown,
    ) {
        let tenant = receiver.tenant.as_ref().map(|tenant| tenant.name().as_str());
        let Some(room) = self.room.try_reserve(tenant, body.len()) else {
            tracing::warn!(
                url = %receiver.url,
                bytes = body.len(),
                "a notification is dropped, because too many others are being sent"
            );
            self.metrics.count_dropped();
            return;
        };
        let notification = Notification {
            receiver,
            call_id: call_id.to_owned(),
            body: body.into(),
            _room: room,
        };
        let (notifier, state) = (self.clone(), shutdown.clone());
        let sending = tokio::spawn(async move { notifier.send_with_retries(&notification, &state).await });
        if shutdown.has_begun() {
            // The process may exit once the answer was sent.
            sending.await.ok();
        }
    }

    /// Sends a notification until the receiver accepts it, rejects it, or failed too often.
    async fn send_with_retries(&self, notification: &Notification, shutdown: &Shutdown) {
        let url = &notification.receiver.url;
        let post = notification.to_post();
        let sending = async {
            let mut attempt = 1;
            loop {
                let error = match self.send_once(&post).await {
                    Ok(()) => return Ok(attempt),
                    Err(error) => error,
                };
                if attempt == ATTEMPTS_MAX || !error.is_worth_a_retry() {
                    return Err((attempt, error));
                }
                tracing::info!(%url, attempt, error = %ErrorChain(&error), "a notification is sent again");
                tokio::time::sleep(pause_after(attempt)).await;
                attempt += 1;
            }
        };
        let outcome = tokio::select! {
            outcome = sending => Some(outcome),
            () = wait_until_shortly_before_process_end(shutdown) => None,
        };
        match outcome {
            Some(Ok(attempts)) => {
                tracing::info!(%url, attempts, "sent a notification");
                self.metrics.count_sent();
            }
            Some(Err((attempts, error))) => {
                tracing::warn!(%url, attempts, error = %ErrorChain(&error), "a notification failed");
                self.metrics.count_failed();
            }
            None => {
                tracing::warn!(%url, "a notification failed, because the builder shuts down");
                self.metrics.count_failed();
            }
        }
    }

    /// Sends a request once. Redirects are not followed: they count as failures.
    async fn send_once(&self, post: &RepeatablePost) -> Result<(), AttemptError> {
        let rule = post
            .checked
            .check(&self.allowed, self.insecure, post.tenant.as_deref())?;
        let client = rule
            .http_client(&self.secrets, self.insecure)
            .map_err(AttemptError::Authority)?;
        let sent = client.send(post.to_request(), RESPONSE_TIMEOUT).await;
        let response = sent.map_err(|error| match error {
            ExchangeError::Denied(denied) => AttemptError::Denied(denied),
            ExchangeError::Connect(source) | ExchangeError::Lost(source) => AttemptError::NoResponse(source),
            ExchangeError::Timeout(_) | ExchangeError::TooLarge(_) => AttemptError::Timeout,
        })?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(AttemptError::Status(response.status())),
        }
    }
}

impl Notification {
    fn to_post(&self) -> RepeatablePost {
        let mut headers = Vec::new();
        if let Ok(call_id) = HeaderValue::from_str(&self.call_id) {
            headers.push((CALL_ID_HEADER, call_id));
        }
        if let Some(keys) = &self.receiver.keys
            && let Ok(signature) = HeaderValue::from_str(&sign_body(keys, &self.body))
        {
            headers.push((HeaderName::from_static(SIGNATURE_HEADER), signature));
        }
        RepeatablePost {
            url: self.receiver.url.uri().clone(),
            checked: self.receiver.url.clone(),
            tenant: self.receiver.tenant.clone(),
            headers,
            body: self.body.clone(),
        }
    }
}

impl RepeatablePost {
    fn to_request(&self) -> Request<OutgoingRequestBody> {
        let body = Full::new(self.body.clone()).map_err(|never| match never {});
        let mut request = Request::new(body.boxed_unsync());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON_MEDIA_TYPE);
        headers.insert(CONTENT_LENGTH, self.body.len().into());
        headers.insert(USER_AGENT, OWN_USER_AGENT);
        headers.extend(self.headers.iter().cloned());
        request
    }
}

/// Waits until [`TIME_RESERVED_FOR_ANSWER`] before `shutdown` ends the process.
async fn wait_until_shortly_before_process_end(shutdown: &Shutdown) {
    let end = shutdown.wait_until_begun().await;
    tokio::time::sleep_until(end.checked_sub(TIME_RESERVED_FOR_ANSWER).unwrap_or(end)).await;
}

/// Returns the pause after a failed attempt. Half of it is at random, so that notifications that failed together are
/// not sent again together.
fn pause_after(attempt: u32) -> Duration {
    let longest = FIRST_RETRY_PAUSE_MAX
        .saturating_mul(1 << attempt.saturating_sub(1).min(16))
        .min(RETRY_PAUSE_MAX);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_are_shortened_by_up_to_half() {
        for (attempt, longest) in [(1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (40, 60.0)] {
            let pause = pause_after(attempt).as_secs_f64();
            assert!((longest / 2.0..=longest).contains(&pause), "{attempt}: {pause}");
        }
    }

    #[test]
    fn only_a_failing_or_overloaded_receiver_gets_the_notification_again() {
        for (status, is_worth_a_retry) in [
            (500, true),
            (503, true),
            (408, true),
            (429, true),
            (302, false),
            (400, false),
            (401, false),
            (404, false),
        ] {
            let error = AttemptError::Status(StatusCode::from_u16(status).unwrap());
            assert_eq!(error.is_worth_a_retry(), is_worth_a_retry, "{status}");
        }
        assert!(AttemptError::NoResponse("reset".into()).is_worth_a_retry());
        assert!(AttemptError::Timeout.is_worth_a_retry());
    }
}
