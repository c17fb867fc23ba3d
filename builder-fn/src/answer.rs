//! The one place where an outcome or an error becomes an HTTP response.
//!
//! The status tells a queue whether to try again: 502 and 507 yes, the others no. The body is the same JSON object for all. Where
//! the answer is streamed the status is 200, whatever comes of the build: clients read the body of no other one.

use bytes::Bytes;
use function_host::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use function_host::http::{Method, StatusCode, header};
use function_host::{Response, ResponseBody, reply, trace};
use futures_util::{Stream, StreamExt};

use crate::build::Built;
use crate::chain::{self, Seal};
use crate::error::{Error, Kind};
use crate::report::{Ending, Format, Mask, Report};

/// For nginx, which holds answers back otherwise.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How much of the log goes with a hand-over that a queue-worker carries, in bytes: the deployer has no use for it, and
/// takes 1 MiB in all.
const CALLBACK_LOG_MAX: usize = 256 * 1024;

/// What is known when an answer is due.
#[derive(Debug, Default)]
pub struct Known<'a> {
    /// The image, as the caller wrote it.
    pub image: Option<&'a str>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// An answer that has not been sent yet.
#[derive(Debug)]
pub struct Answer {
    /// The status, where it is not streamed.
    pub status: StatusCode,
    /// What is told. The log is added by whoever has it.
    pub report: Report,
    close: bool,
    /// Where there is nothing wrong with the request but its time.
    later: Option<Later>,
    /// What signs it, where it carries a hand-over.
    seal: Option<Seal>,
}

/// Why a request is to come again later.
#[derive(Clone, Copy, Debug)]
enum Later {
    /// So many builds run, which is as many as may.
    Full { limit: usize },
    /// This builder is being ended.
    Draining,
}

impl Answer {
    /// There is an image. Where a deployment of it was asked for and failed, the status is that of the deployment.
    pub fn built(mut built: Built, known: Known<'_>) -> Self {
        let (status, error) = match &built.deployment {
            None => (StatusCode::OK, None),
            Some(deployment) => {
                let status = match deployment.ending {
                    chain::Ending::Ready | chain::Ending::Sent => StatusCode::OK,
                    chain::Ending::Refused => StatusCode::UNPROCESSABLE_ENTITY,
                    chain::Ending::Failed => StatusCode::BAD_GATEWAY,
                };
                let error = (status != StatusCode::OK).then(|| {
                    format!(
                        "the image was built and pushed, but not deployed: {}",
                        deployment.reason()
                    )
                });
                (status, error)
            }
        };
        let deployment = built.deployment.as_mut();
        let seal = deployment.and_then(|deployment| deployment.seal.take());
        Self {
            status,
            report: Report {
                log: None,
                image: known.image.map(str::to_owned),
                digest: built.digest,
                status: match error {
                    None => Ending::Success,
                    Some(_) => Ending::Failed,
                },
                error,
                deployment: built.deployment.map(|deployment| deployment.answer),
                duration: known.seconds,
            },
            close: false,
            later: None,
            seal,
        }
    }

    /// There is none.
    pub fn failed(error: &Error, known: Known<'_>) -> Self {
        let kind = error.kind();
        let status = match kind {
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Refused => StatusCode::BAD_REQUEST,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::BuildFailed => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Busy { .. } | Kind::Draining => StatusCode::TOO_MANY_REQUESTS,
            Kind::Platform => StatusCode::BAD_GATEWAY,
        };
        Self {
            status,
            report: failure(error.to_string(), known),
            // What has not been read yet is not going to be.
            close: matches!(kind, Kind::TooLarge | Kind::NoSpace),
            later: match kind {
                Kind::Busy { limit } => Some(Later::Full { limit }),
                Kind::Draining => Some(Later::Draining),
                _ => None,
            },
            seal: None,
        }
    }

    /// Hides what is secret.
    #[must_use]
    pub fn masked(mut self, mask: &Mask) -> Self {
        if let Some(error) = &mut self.report.error {
            *error = mask.text(error).into_owned();
        }
        if let Some(deployment) = &mut self.report.deployment {
            mask.json(deployment);
        }
        self
    }

    /// As one JSON object; a builder that is to be asked later says so in plain text, as queues know it.
    pub fn into_response(mut self) -> Response {
        match self.later {
            Some(Later::Full { limit }) => return reply::concurrency_limit_exceeded(limit),
            Some(Later::Draining) => {
                return reply::too_many_requests(self.report.error.unwrap_or_default() + "\n");
            }
            None => {}
        }
        if let (Some(_), Some(log)) = (&self.seal, &mut self.report.log) {
            keep_end(log, CALLBACK_LOG_MAX);
        }
        let body = text(&self.report);
        let signature = self.seal.map(|seal| seal.header(&body));
        let mut response = respond(self.status, body);
        if let Some((name, signature)) = signature
            && let Ok(signature) = HeaderValue::from_str(&signature)
        {
            response.headers_mut().insert(name, signature);
            // Whoever brings it to the deployer brings the headers, too: the trace goes on there.
            trace::inject(response.headers_mut());
        }
        if self.close {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }

    /// As a stream that consists of its end.
    pub fn into_stream(self, format: Format) -> Response {
        streaming(format, ResponseBody::full(format.terminal(self.report)))
    }
}

/// 200, and records as they come.
pub fn stream(format: Format, records: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    streaming(format, ResponseBody::stream(records.map(Ok)))
}

/// What a build that panicked is told as.
pub fn panicked(call_id: &str, image: &str) -> Report {
    let known = Known {
        image: Some(image),
        seconds: 0.0,
    };
    failure(format!("internal error, call id {call_id}"), known)
}

/// The key to seal secrets to.
pub fn public_key(key: &serde_json::Value) -> Response {
    reply::json(format!("{key}\n"))
}

/// Nothing is at this path.
pub fn not_found(what: &str) -> Response {
    json(StatusCode::NOT_FOUND, &failure(what.to_owned(), Known::default()))
}

/// Something is, but not for this method.
pub fn wrong_method(allowed: &Method) -> Response {
    let report = failure(format!("only {allowed} is served here"), Known::default());
    let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &report);
    if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

fn failure(error: String, known: Known<'_>) -> Report {
    Report {
        log: None,
        image: known.image.map(str::to_owned),
        digest: None,
        status: Ending::Failed,
        error: Some(error),
        deployment: None,
        duration: known.seconds,
    }
}

/// Leaves the last lines of so many bytes.
fn keep_end(lines: &mut Vec<String>, limit: usize) {
    let mut left = limit;
    let fits = |line: &&String| {
        let rest = left.checked_sub(line.len());
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    let kept = lines.iter().rev().take_while(fits).count();
    lines.drain(..lines.len() - kept);
}

fn json(status: StatusCode, report: &Report) -> Response {
    respond(status, text(report))
}

fn text(report: &Report) -> Vec<u8> {
    // Texts and numbers: this cannot fail. An empty body with the right status would still be understood.
    let mut body = serde_json::to_vec(report).unwrap_or_default();
    body.push(b'\n');
    body
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = reply::json(body);
    *response.status_mut() = status;
    response
}

fn streaming(format: Format, body: ResponseBody) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::buildkit::{Failure, Fault};
    use crate::chain::Deployment;
    use crate::context::SpoolError;
    use crate::request::RequestError;

    async fn read(response: Response) -> (u16, Value) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn known() -> Known<'static> {
        Known {
            image: Some("registry/hello:1"),
            seconds: 1.5,
        }
    }

    fn with_log(mut answer: Answer) -> Response {
        answer.report.log = Some(vec!["l: x".into()]);
        answer.into_response()
    }

    #[tokio::test]
    async fn an_image_is_200_with_the_log() {
        let answer = Answer::built(
            Built {
                digest: Some("sha256:12".into()),
                deployment: None,
            },
            known(),
        );

        assert_eq!(
            read(with_log(answer)).await,
            (
                200,
                json!({"log": ["l: x"], "image": "registry/hello:1", "digest": "sha256:12", "status": "success",
                       "duration": 1.5})
            )
        );
    }

    #[tokio::test]
    async fn a_deployment_that_fails_gives_its_status_and_says_that_the_image_is_there() {
        for (ending, status) in [
            (chain::Ending::Ready, 200),
            (chain::Ending::Refused, 422),
            (chain::Ending::Failed, 502),
        ] {
            let deployment = Deployment {
                ending,
                answer: json!({"status": "x", "reasons": ["it crashed"]}),
                seal: None,
            };
            let answer = Answer::built(
                Built {
                    digest: Some("sha256:12".into()),
                    deployment: Some(deployment),
                },
                known(),
            );

            let (found, body) = read(with_log(answer)).await;
            assert_eq!(found, status);
            assert_eq!(body["digest"], "sha256:12");
            assert_eq!(body["deployment"]["reasons"][0], "it crashed");
            let text = "the image was built and pushed, but not deployed: it crashed";
            assert_eq!(body["error"] == text, status != 200, "{body}");
            assert_eq!(body["status"], if status == 200 { "success" } else { "failed" });
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let lines = || vec!["12345".to_owned(), "1234".to_owned(), "123".to_owned()];
        for (limit, left) in [(12, 3), (11, 2), (7, 2), (6, 1), (2, 0)] {
            let mut lines = lines();
            keep_end(&mut lines, limit);
            assert_eq!(lines.len(), left, "{limit}");
            assert!(lines.last().is_none_or(|last| last == "123"));
        }
    }

    #[tokio::test]
    async fn every_kind_of_error_has_its_status_and_the_log_so_far() {
        let build = |fault| {
            Error::Failed(Failure {
                message: "exit code: 3".into(),
                fault,
            })
        };
        for (error, status) in [
            (Error::Request(RequestError::NotSigned), 401),
            (Error::Request(RequestError::NoConfig), 400),
            (Error::Request(RequestError::TooLarge { limit: 7 }), 413),
            (Error::Request(SpoolError::Quota { limit: 7 }.into()), 507),
            (
                Error::NoDeployment {
                    secret: "deploy-secret",
                },
                400,
            ),
            (Error::SealedSecrets, 400),
            (build(Fault::Caller), 422),
            (
                Error::TimeLimit {
                    limit: std::time::Duration::from_secs(90),
                },
                422,
            ),
            (build(Fault::Platform), 502),
            (Error::Interrupted, 502),
            (Error::Lost("reset".into()), 502),
        ] {
            let text = error.to_string();
            let (found, body) = read(with_log(Answer::failed(&error, known()))).await;
            assert_eq!(found, status, "{text}");
            assert_eq!(body["error"], text);
            assert_eq!(body["status"], "failed");
            assert_eq!(body["image"], "registry/hello:1");
            assert_eq!(body["log"], json!(["l: x"]));
        }
    }

    #[tokio::test]
    async fn no_place_is_told_in_the_words_of_the_host() {
        let response = Answer::failed(&Error::Busy { limit: 3 }, known()).into_response();

        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        let body = response.into_body().collect().await.expect("body").to_bytes();
        assert_eq!(
            body,
            "Concurrent request limit exceeded. Max concurrent requests: 3\n"
        );
    }

    #[tokio::test]
    async fn a_builder_that_is_being_ended_asks_for_another_time() {
        let response = Answer::failed(&Error::Draining, Known::default()).into_response();

        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        let body = response.into_body().collect().await.expect("body").to_bytes();
        assert_eq!(
            body,
            "the builder is being ended and begins no more builds; try again\n"
        );
    }

    #[test]
    fn a_body_that_is_not_read_on_ends_its_connection() {
        let error = Error::Request(RequestError::TooLarge { limit: 7 });

        let response = Answer::failed(&error, Known::default()).into_response();
        assert_eq!(response.headers()[CONNECTION], "close");
    }

    #[tokio::test]
    async fn what_is_streamed_is_200_and_passes_proxies_as_it_comes() {
        let answer = Answer::failed(&Error::Request(RequestError::NoConfig), known());
        let response = answer.into_stream(Format::Events);

        assert_eq!(response.status(), 200);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        let body = response.into_body().collect().await.expect("body").to_bytes();
        let record = body
            .strip_prefix(b"data: ")
            .and_then(|rest| rest.strip_suffix(b"\n\n"));
        let record: Value = serde_json::from_slice(record.expect("an event")).expect("JSON");
        assert_eq!(record["status"], "failed");
    }
}
