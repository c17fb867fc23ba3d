//! A proxy that serves a builder below a path, as the gateway does, for a builder that is not deployed.

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The path of builder-fn at the gateway.
const PREFIX: &str = "/function/builder-fn";

/// A proxy on loopback that serves a builder below the path that it has at the gateway. It stops on drop.
#[derive(Debug)]
pub struct PrefixProxyForwardingAsGet {
    url: String,
    serving: JoinHandle<()>,
}

impl PrefixProxyForwardingAsGet {
    /// Starts a proxy on a free port, for the builder at this URL, which has no trailing slash.
    pub async fn start(builder_url: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}{PREFIX}", listener.local_addr()?);
        let http = reqwest::Client::builder().no_proxy().build()?;
        let app = Router::new()
            .fallback(forward_as_get_without_body)
            .with_state((http, builder_url.to_owned()));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self { url, serving })
    }

    /// Returns the URL of the builder at the proxy, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for PrefixProxyForwardingAsGet {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Forwards a request as GET, without its body, and returns the answer as it arrives.
async fn forward_as_get_without_body(
    State((http, builder_url)): State<(reqwest::Client, String)>,
    request: Request,
) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Some(path) = path.strip_prefix(PREFIX) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut forwarded = http.get(format!("{builder_url}{path}"));
    for (name, value) in request.headers() {
        if name != "host" {
            forwarded = forwarded.header(name, value);
        }
    }
    let Ok(answer) = forwarded.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for (name, value) in answer.headers() {
        if name != "transfer-encoding" {
            response.headers_mut().append(name, value.clone());
        }
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}
