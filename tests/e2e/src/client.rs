//! A minimal client of builder-fn, like the published examples.

use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::record_stream::RecordStream;

/// An HTTP answer of builder-fn, of the queue in front of it, or of deployer-fn.
#[derive(Debug)]
pub struct HttpReply {
    /// The answer's HTTP status.
    pub status: u16,
    /// The answer's header `X-Call-Id`.
    pub call_id: Option<String>,
    /// The answer's header `Retry-After`.
    pub retry_after: Option<String>,
    /// The answer's body as text.
    pub text: String,
}

impl HttpReply {
    /// Returns the answer's body as JSON. A body that is not JSON becomes a string that shows it, so that
    /// assertions print it.
    pub fn json_or_error_text(&self) -> Value {
        match serde_json::from_str(&self.text) {
            Ok(value) => value,
            Err(error) => Value::String(format!("not JSON ({error}): {}", self.text)),
        }
    }

    /// Returns a text field of the answer's JSON body, or an empty text.
    pub fn text_field(&self, name: &str) -> String {
        self.json_or_error_text()
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }
}

/// A client that posts tars and JSON to one URL and signs them with one key. Its timeout is 15 minutes.
#[derive(Debug, Clone)]
pub struct SigningClient {
    url: String,
    key: Vec<u8>,
    http: reqwest::Client,
}

impl SigningClient {
    /// Returns a client for this URL (with path) and key; white space around the key is trimmed.
    pub fn new(url: impl Into<String>, key: &[u8]) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(900))
            .no_proxy()
            .build()?;
        Ok(Self {
            url: url.into(),
            key: key.trim_ascii().to_vec(),
            http,
        })
    }

    /// Posts a signed tar.
    pub async fn post_signed(&self, tar: impl Into<Bytes>) -> Result<HttpReply> {
        let tar = tar.into();
        let signature = sign_body(&self.key, &tar)?;
        self.post_with_signature(tar, Some(&signature), &[]).await
    }

    /// Posts a signed JSON request.
    pub async fn post_json(&self, request: &Value) -> Result<HttpReply> {
        let body = request.to_string().into_bytes();
        let signature = sign_body(&self.key, &body)?;
        self.post_as_media_type("application/json", body.into(), Some(&signature), &[])
            .await
    }

    /// Posts a signed tar with more headers.
    pub async fn post_signed_with_headers(
        &self,
        tar: Vec<u8>,
        headers: &[(&str, &str)],
    ) -> Result<HttpReply> {
        let signature = sign_body(&self.key, &tar)?;
        self.post_with_signature(tar, Some(&signature), headers).await
    }

    /// Posts a signed tar and returns the stream of records in this media type. Fails if the answer has another media
    /// type or another status than 200.
    pub async fn post_and_stream_records(&self, tar: Vec<u8>, accept: &str) -> Result<RecordStream> {
        let signature = sign_body(&self.key, &tar)?;
        let request = self.http.post(&self.url).header("Accept", accept);
        let request = request.header("X-Build-Signature", signature).body(tar);
        RecordStream::new(request.send().await?, accept)
    }

    /// Posts a tar with this signature, or with none.
    pub async fn post_with_signature(
        &self,
        tar: impl Into<Bytes>,
        signature: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<HttpReply> {
        self.post_as_media_type("application/octet-stream", tar.into(), signature, headers)
            .await
    }

    async fn post_as_media_type(
        &self,
        media_type: &str,
        body: Bytes,
        signature: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<HttpReply> {
        let mut request = self
            .http
            .post(&self.url)
            .header("Content-Type", media_type)
            .body(body);
        if let Some(signature) = signature {
            request = request.header("X-Build-Signature", signature);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("POST {}", self.url))?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let (call_id, retry_after) = (header("X-Call-Id"), header("Retry-After"));
        Ok(HttpReply {
            status,
            call_id,
            retry_after,
            text: response.text().await?,
        })
    }
}

/// Returns the value of `X-Build-Signature`: `sha256=` and the HMAC-SHA256 in hexadecimal.
pub fn sign_body(key: &[u8], body: &[u8]) -> Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    mac.update(body);
    Ok(format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
}
