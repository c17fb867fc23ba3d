//! HTTP requests of the launcher, with errors that name the request.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::error::{LauncherError, Result, error_with_causes};

/// The longest body of an unexpected answer in an error, in bytes.
const QUOTED_BODY_MAX_BYTES: usize = 2000;

/// Creates an HTTP client that connects to the stack directly, without the machine's proxy.
pub(crate) fn http_client_without_proxy() -> Result<Client> {
    let client = Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .build();
    client.map_err(|error| {
        LauncherError::Environment(format!(
            "cannot make an HTTP client: {}",
            error_with_causes(error)
        ))
    })
}

/// Sends an HTTP request; an error names its method and URL.
pub(crate) async fn send_request(request: RequestBuilder) -> Result<Response> {
    let (client, request) = request.build_split();
    let request = request.map_err(|error| {
        LauncherError::Environment(format!("cannot make a request: {}", error_with_causes(error)))
    })?;
    let name = format!("{} {}", request.method(), request.url());
    client
        .execute(request)
        .await
        .map_err(|source| LauncherError::NoAnswer {
            request: name,
            source: source.without_url(),
        })
}

/// Returns the response if its status is among `expected`; otherwise fails with the status and the beginning of
/// the body.
pub(crate) async fn expect_status(response: Response, expected: &[StatusCode]) -> Result<Response> {
    if expected.contains(&response.status()) {
        return Ok(response);
    }
    let (request, status) = (response.url().to_string(), response.status().as_u16());
    let mut body = response.text().await.unwrap_or_default();
    body.truncate(body.floor_char_boundary(QUOTED_BODY_MAX_BYTES));
    Err(LauncherError::UnexpectedStatus {
        request,
        status,
        body: body.trim().to_owned(),
    })
}
