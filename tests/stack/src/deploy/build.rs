//! A build by builder-fn, with what it tells on the way.

use std::{fs, path::Path};

use futures_util::StreamExt as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, StatusCode, header::ACCEPT};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    command::tail,
    error::{At as _, Error, Result},
    http::{answer, send},
    progress::Progress,
};

/// The header with the signature.
pub(super) const SIGNATURE: &str = "X-Build-Signature";

/// How much of a failed build's log an error carries, in lines.
const TAIL: usize = 40;

/// What builder-fn says, at the end or on the way.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) log: Vec<String>,
    pub(super) status: String,
    pub(super) error: Option<String>,
    pub(super) deployment: Option<Value>,
}

impl Record {
    /// Success, or the error with the end of the log.
    pub(super) fn succeeded(self, what: &str, log: &[String]) -> Result<Self> {
        if self.status == "success" {
            return Ok(self);
        }
        let error = self
            .error
            .unwrap_or_else(|| format!("ended with status {:?}", self.status));
        let output = format!("{}\n{error}", tail(&log.join("\n"), TAIL));
        Err(Error::Program {
            program: format!("the build of {what}"),
            status: self.status,
            output,
        })
    }
}

/// A configuration for a context made from the template.
pub(super) fn config(image: &str, rust_image: &str) -> Value {
    json!({ "image": image, "buildArgs": { "RUST_IMAGE": rust_image } })
}

/// The signature of a request: `sha256=` and the HMAC of its body.
pub(super) fn signature(key: &Path, body: &[u8]) -> Result<String> {
    let secret = fs::read(key).at("read", key)?;
    let mac = Hmac::<Sha256>::new_from_slice(secret.trim_ascii());
    let mut mac = mac.map_err(|_| Error::Machine(format!("{} is no key", key.display())))?;
    mac.update(body);
    Ok(format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
}

/// builder-fn at an address.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    client: Client,
    url: String,
    key: &'a Path,
}

impl<'a> Builder<'a> {
    /// builder-fn at this address, called with this key.
    pub(super) fn new(client: Client, url: String, key: &'a Path) -> Result<Self> {
        Ok(Self { client, url, key })
    }

    /// Builds, and tells each step when it begins.
    pub(super) async fn build(&self, what: &str, tar: &[u8], progress: &Progress) -> Result<Record> {
        let request = self.client.post(format!("{}/build", self.url));
        let request = request
            .header(SIGNATURE, signature(self.key, tar)?)
            .header(ACCEPT, "application/x-ndjson");
        let response = answer(send(request.body(tar.to_vec())).await?, &[StatusCode::OK]).await?;
        let name = response.url().to_string();
        let mut lines = Lines::default();
        let mut log = Vec::new();
        let mut stream = response.bytes_stream();
        let mut last = None;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| Error::NoAnswer {
                request: name.clone(),
                source,
            })?;
            for line in lines.push(&chunk) {
                let Ok(record) = serde_json::from_slice::<Record>(&line) else {
                    continue;
                };
                for step in record.log.iter().filter_map(|line| step(line)) {
                    progress.step(what, step);
                }
                log.extend_from_slice(&record.log);
                if record.status != "in_progress" {
                    last = Some(record);
                }
            }
        }
        last.unwrap_or_default().succeeded(what, &log)
    }
}

/// The name of a step that begins: `v: TIME NAME`, and without the seconds that it took, which stand at its end.
fn step(line: &str) -> Option<&str> {
    let (_, name) = line.strip_prefix("v: ")?.split_once(' ')?;
    let last = name.rsplit(' ').next().unwrap_or_default();
    let took = last
        .strip_suffix('s')
        .is_some_and(|seconds| seconds.parse::<f64>().is_ok());
    (!took && !name.starts_with("[internal]")).then_some(name)
}

/// Lines out of chunks.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(chunk);
        let mut lines = self
            .rest
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>();
        self.rest = lines.pop().unwrap_or_default();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_when_it_begins_and_only_then() {
        assert_eq!(
            step("v: 2026-01-01T00:00:00Z [2/6] RUN cargo build"),
            Some("[2/6] RUN cargo build")
        );
        assert_eq!(step("v: 2026-01-01T00:00:00Z [2/6] RUN cargo build 12.30s"), None);
        assert_eq!(
            step("v: 2026-01-01T00:00:00Z [internal] load build context"),
            None
        );
        assert_eq!(step("l: 2026-01-01T00:00:00Z Compiling"), None);
    }

    #[test]
    fn lines_are_put_together_from_chunks() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), [b"a".to_vec()]);
        assert_eq!(lines.push(b"c\n\n"), [b"bc".to_vec(), Vec::new()]);
    }

    #[test]
    fn a_stream_without_an_end_is_a_failure() {
        let error = Record::default()
            .succeeded("x", &["l: a".to_owned()])
            .unwrap_err();
        assert!(error.to_string().contains("the build of x"), "{error}");
    }

    #[test]
    fn the_signature_is_the_one_that_openssl_makes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "key\n").unwrap();
        // printf %s 'The quick brown fox jumps over the lazy dog' | openssl dgst -sha256 -hmac key
        let expected = "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
        let body = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(signature(file.path(), body).unwrap(), expected);
    }
}
