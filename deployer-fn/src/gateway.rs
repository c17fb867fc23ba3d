//! The gateway: what is asked of it ([`call`], pure functions), what it says of a function ([`FunctionStatus`]), and the
//! one place that sends ([`Transport`]).

mod bearer;
pub mod call;
mod exchange;
mod status;

use std::future::Future;
use std::time::Duration;

use function_host::Bytes;
use function_host::gateway::GatewayError;
use function_host::http::{Request, Response, StatusCode};
use serde::Deserialize;

pub use self::bearer::{Bearer, TOKEN_SECRET};
pub use self::exchange::{Exchange, TOKEN_FILE};
pub use self::status::FunctionStatus;
use crate::error::chain;

/// How much of an answer's text is worth repeating.
const SAID_MAX: usize = 300;

/// Carries one request to the gateway and its whole answer back, both within a limit. Addresses of requests have no
/// host; credentials are the transport's business.
pub trait Transport: Send + Sync {
    /// Sends `request` once. It is never sent again by itself.
    fn send(
        &self,
        request: Request<Bytes>,
        limit: Duration,
    ) -> impl Future<Output = Result<Response<Bytes>, GatewayError>> + Send;
}

/// Why a function's state is not known.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The gateway gave no answer.
    #[error("{}", chain(.0))]
    NoAnswer(GatewayError),
    /// It answered something else than what was asked for.
    #[error("the gateway answered GET {path} with {said}")]
    Answer {
        /// What was asked for.
        path: String,
        /// The status of the answer.
        status: StatusCode,
        /// Status and text.
        said: String,
    },
}

/// The state of a function; `None` where there is no such function.
///
/// # Errors
/// [`ReadError`] where that cannot be told.
pub async fn read(
    transport: &impl Transport,
    name: &str,
    namespace: Option<&str>,
    limit: Duration,
) -> Result<Option<FunctionStatus>, ReadError> {
    let request = call::read(name, namespace);
    let path = request.uri().path().to_owned();
    let answer = transport
        .send(request, limit)
        .await
        .map_err(ReadError::NoAnswer)?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    // A web page with status 200 is no function, and neither is JSON without a name.
    match serde_json::from_slice::<FunctionStatus>(answer.body()) {
        Ok(status) if answer.status() == StatusCode::OK && status.name == name => Ok(Some(status)),
        _ => Err(refused(path, &answer)),
    }
}

/// The names in a list of the gateway: of namespaces, which are texts, or of secrets, which are objects with a name.
/// `None` where the provider has no such list.
///
/// # Errors
/// [`ReadError`] where that cannot be told.
pub async fn names(
    transport: &impl Transport,
    list: impl Fn() -> Request<Bytes>,
    limit: Duration,
) -> Result<Option<Vec<String>>, ReadError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Item {
        Text(String),
        Object { name: String },
    }
    let request = list();
    let path = request.uri().path().to_owned();
    let answer = transport
        .send(request, limit)
        .await
        .map_err(ReadError::NoAnswer)?;
    if matches!(
        answer.status(),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    ) {
        return Ok(None);
    }
    match serde_json::from_slice::<Option<Vec<Item>>>(answer.body()) {
        Ok(items) if answer.status() == StatusCode::OK => Ok(Some(
            items
                .unwrap_or_default()
                .into_iter()
                .map(|item| match item {
                    Item::Text(name) | Item::Object { name } => name,
                })
                .collect(),
        )),
        _ => Err(refused(path, &answer)),
    }
}

fn refused(path: String, answer: &Response<Bytes>) -> ReadError {
    ReadError::Answer {
        path,
        status: answer.status(),
        said: said(answer),
    }
}

impl ReadError {
    /// Whether asking again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer(error) => !matches!(
                error,
                GatewayError::Url | GatewayError::Path { .. } | GatewayError::TooLarge { .. }
            ),
            Self::Answer { status, .. } => {
                !status.is_client_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
        }
    }
}

/// An answer on one line: its status and the beginning of its text.
pub fn said(answer: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(answer.body());
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect();
    let mut text = words.join(" ");
    if text.is_empty() {
        return format!("{} and no text", answer.status().as_u16());
    }
    if text.len() > SAID_MAX {
        let end = text.floor_char_boundary(SAID_MAX);
        text.truncate(end);
        text.push('…');
    }
    format!("{}: {text}", answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
        Response::builder().status(status).body(body.into()).unwrap()
    }

    #[test]
    fn an_answer_is_repeated_on_one_line_and_not_at_length() {
        assert_eq!(said(&answer(200, "")), "200 and no text");
        assert_eq!(
            said(&answer(400, "unable to find\r\n  secret: x\n")),
            "400: unable to find secret: x"
        );
        let long = said(&answer(502, "ä".repeat(1000)));
        assert!(long.len() < SAID_MAX + 20 && long.ends_with('…'), "{long}");
    }
}
