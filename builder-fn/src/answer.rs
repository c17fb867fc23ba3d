//! The one place where an outcome or an error becomes an HTTP response.
//!
//! The status tells a queue whether to try again: 502 yes, the others no. The body is the same JSON object for all.

use function_host::http::header::{CONNECTION, HeaderValue};
use function_host::http::{Method, StatusCode, header};
use function_host::{Response, reply};

use crate::build::Built;
use crate::chain;
use crate::error::{Error, Kind};
use crate::report::{Ending, Log, Report};

/// What is known when an answer is due.
#[derive(Debug, Default)]
pub struct Known<'a> {
    /// The image, as the caller wrote it.
    pub image: Option<&'a str>,
    /// What happened.
    pub log: Log,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// There is an image. Where a deployment of it was asked for and failed, the status is that of the deployment.
pub fn built(built: &Built, known: Known<'_>) -> Response {
    let (status, error) = match &built.deployment {
        None => (StatusCode::OK, None),
        Some(deployment) => {
            let status = match deployment.ending {
                chain::Ending::Ready => StatusCode::OK,
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
    let report = Report {
        log: Some(known.log.into_lines()),
        image: known.image,
        digest: built.digest.as_deref(),
        status: if error.is_none() {
            Ending::Success
        } else {
            Ending::Failed
        },
        error,
        deployment: built.deployment.as_ref().map(|deployment| &deployment.answer),
        duration: known.seconds,
    };
    json(status, &report)
}

/// There is none.
pub fn failed(error: &Error, known: Known<'_>) -> Response {
    let kind = error.kind();
    let status = match kind {
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::Refused => StatusCode::BAD_REQUEST,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::BuildFailed => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Platform => StatusCode::BAD_GATEWAY,
    };
    let mut response = failure(status, error.to_string(), known);
    if kind == Kind::TooLarge {
        // What has not been read yet is not going to be.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Nothing is at this path.
pub fn not_found(what: &str) -> Response {
    failure(StatusCode::NOT_FOUND, what.to_owned(), Known::default())
}

/// Something is, but not for this method.
pub fn wrong_method(allowed: &Method) -> Response {
    let mut response = failure(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("only {allowed} is served here"),
        Known::default(),
    );
    if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

fn failure(status: StatusCode, error: String, known: Known<'_>) -> Response {
    let report = Report {
        log: known.image.map(|_| known.log.into_lines()),
        image: known.image,
        digest: None,
        status: Ending::Failed,
        error: Some(error),
        deployment: None,
        duration: known.seconds,
    };
    json(status, &report)
}

fn json(status: StatusCode, report: &Report<'_>) -> Response {
    // Texts and numbers: this cannot fail. An empty body with the right status would still be understood.
    let mut body = serde_json::to_vec(report).unwrap_or_default();
    body.push(b'\n');
    let mut response = reply::json(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::buildkit::{Failure, Fault};
    use crate::chain::Deployment;
    use crate::request::RequestError;

    async fn read(response: Response) -> (u16, Value) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn known() -> Known<'static> {
        let mut log = Log::new();
        log.push("l: x".into());
        Known {
            image: Some("registry/hello:1"),
            log,
            seconds: 1.5,
        }
    }

    #[tokio::test]
    async fn an_image_is_200_with_the_log() {
        let answer = built(
            &Built {
                digest: Some("sha256:12".into()),
                deployment: None,
            },
            known(),
        );

        assert_eq!(
            read(answer).await,
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
            };
            let answer = built(
                &Built {
                    digest: Some("sha256:12".into()),
                    deployment: Some(deployment),
                },
                known(),
            );

            let (found, body) = read(answer).await;
            assert_eq!(found, status);
            assert_eq!(body["digest"], "sha256:12");
            assert_eq!(body["deployment"]["reasons"][0], "it crashed");
            let text = "the image was built and pushed, but not deployed: it crashed";
            assert_eq!(body["error"] == text, status != 200, "{body}");
            assert_eq!(body["status"], if status == 200 { "success" } else { "failed" });
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
            let (found, body) = read(failed(&error, known())).await;
            assert_eq!(found, status, "{text}");
            assert_eq!(body["error"], text);
            assert_eq!(body["status"], "failed");
            assert_eq!(body["image"], "registry/hello:1");
            assert_eq!(body["log"], json!(["l: x"]));
        }
    }

    #[test]
    fn a_body_that_is_not_read_on_ends_its_connection() {
        let error = Error::Request(RequestError::TooLarge { limit: 7 });

        assert_eq!(failed(&error, Known::default()).headers()[CONNECTION], "close");
    }
}
