//! HTTP requests of the launcher: one client, and one way of saying what went wrong.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::error::{Error, Result};

/// How much of an unexpected answer an error carries, in bytes.
const BODY: usize = 2000;

/// A client that speaks to the stack itself, whatever proxy this machine uses for the rest of the world.
pub(crate) fn client() -> Result<Client> {
    let client = Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .build();
    client.map_err(|source| Error::NoAnswer {
        request: "anything".into(),
        source,
    })
}

/// Sends a request.
pub(crate) async fn send(request: RequestBuilder) -> Result<Response> {
    let (client, request) = request.build_split();
    let request = request.map_err(|source| Error::NoAnswer {
        request: "a request".into(),
        source,
    })?;
    let name = format!("{} {}", request.method(), request.url());
    client.execute(request).await.map_err(|source| Error::NoAnswer {
        request: name,
        source: source.without_url(),
    })
}

/// Takes an answer with one of these statuses, and makes an error of any other.
pub(crate) async fn answer(response: Response, wanted: &[StatusCode]) -> Result<Response> {
    if wanted.contains(&response.status()) {
        return Ok(response);
    }
    let (request, status) = (response.url().to_string(), response.status().as_u16());
    let mut body = response.text().await.unwrap_or_default();
    body.truncate(body.floor_char_boundary(BODY));
    Err(Error::Answer {
        request,
        status,
        body: body.trim().to_owned(),
    })
}
