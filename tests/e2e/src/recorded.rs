//! A recorded faas-cli: the bytes that it sends to a builder, and its reaction to answers.
//!
//! A current faas-cli is not available as a package, so the recording stands in for it in every run.
//! `tests/clients/recorded/README.md` gives the source of each rule.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::work_dir::in_repository;

const BLOCK: usize = 512;

/// The longest line, with its end, that the SDK reads. It stops at a longer one without an error.
const LONGEST_LINE: usize = 64 << 10;

/// The parts of a request that differ between users.
#[derive(Debug, Clone)]
pub struct RequestVariables {
    /// The image without its tag.
    pub repository: String,
    /// The time at which faas-cli copied the context, in seconds since 1970.
    pub mtime: u64,
    /// The content of `context/Dockerfile`, if not the recorded one.
    pub dockerfile: Option<String>,
}

/// The recorded requests and secrets.
#[derive(Debug)]
pub struct RecordedCli {
    requests: Value,
    /// Key pair, public key and sealed secrets.
    pub secrets: Value,
}

impl RecordedCli {
    /// Reads the recording from `tests/clients/recorded`.
    pub fn read() -> Result<Self> {
        Ok(Self {
            requests: file("requests.json")?,
            secrets: file("secrets.json")?,
        })
    }

    /// Returns all commands in order.
    pub fn commands(&self) -> &[Value] {
        self.requests["requests"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Returns the command of this name.
    pub fn command(&self, name: &str) -> Result<&Value> {
        let found = self.commands().iter().find(|command| command["name"] == name);
        found.with_context(|| format!("no command {name:?} was recorded"))
    }

    /// Writes the recorded private key to `folder` and returns its path, for `build_secrets_private_key_path`.
    pub fn private_key(&self, folder: &Path) -> Result<String> {
        let path = folder.join("private-key");
        fs::write(&path, text(&self.secrets["private_key"])?)?;
        Ok(path.to_str().context("the path is not UTF-8")?.to_owned())
    }

    /// Returns the headers for a path, without those that depend on body, host or user.
    pub fn headers(&self, path: &str) -> Result<Vec<(&str, &str)>> {
        let headers = self.requests["headers"][path].as_object();
        let headers = headers.with_context(|| format!("no headers for {path}"))?;
        let text = |(name, value)| Some((String::as_str(name), Value::as_str(value)?));
        Ok(headers.iter().filter_map(text).collect())
    }

    /// Returns the body of `POST /build`.
    pub fn tar(&self, send: &Value, variables: &RequestVariables) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        let owner = &self.requests["owner"];
        let owner = Owner {
            id: owner["uid"].as_u64().context("requests.json: no owner.uid")?,
            name: text(&owner["user"])?,
        };
        for entry in self.requests["context"]
            .as_array()
            .context("requests.json: no context")?
        {
            let path = text(&entry["path"])?;
            let content = match (path, &variables.dockerfile) {
                ("context/Dockerfile", Some(dockerfile)) => dockerfile.as_str(),
                _ => entry["text"].as_str().unwrap_or_default(),
            };
            let folder = entry["folder"] == true;
            let header = Header {
                kind: if folder { b'5' } else { b'0' },
                mode: mode(entry)?,
                mtime: variables.mtime,
                owner: &owner,
            };
            add(
                &mut tar,
                path,
                entry["long_name"].as_str(),
                &header,
                content.as_bytes(),
            )?;
        }
        let no_owner = Owner { id: 0, name: "" };
        let mut last = |entry: &Value, content: &str| {
            let header = Header {
                kind: b'0',
                mode: mode(entry)?,
                mtime: 0,
                owner: &no_owner,
            };
            add(&mut tar, text(&entry["path"])?, None, &header, content.as_bytes())
        };
        let config = text(&send["config"])?.replace("{repository}", &variables.repository);
        last(&self.requests["config_entry"], &config)?;
        if send["secrets"] == true {
            last(&self.requests["secrets_entry"], text(&self.secrets["sealed"])?)?;
        }
        tar.resize(tar.len() + 2 * BLOCK, 0);
        Ok(tar)
    }
}

/// faas-cli's reaction to an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct CliOutcome {
    /// The exit code. `up` deploys only if it is 0.
    pub exit: i32,
    /// The error message, unless Go's own libraries wrote it.
    pub message: Option<String>,
}

/// Returns faas-cli's reaction to a decompressed answer of `POST /build`.
pub fn cli_outcome(function: &str, image: &str, status: u16, body: &str) -> CliOutcome {
    let failed = |message: Option<String>| CliOutcome { exit: 1, message };
    if !matches!(status, 200 | 202) {
        return failed(Some(format!(
            "failed to invoke builder: failed to build function, builder responded with status code {status}"
        )));
    }
    for line in body.split_inclusive('\n') {
        if line.len() > LONGEST_LINE {
            break;
        }
        let line = line.trim_end_matches('\n').trim_end_matches('\r');
        let Ok(Value::Object(record)) = serde_json::from_str(line) else {
            return failed(None);
        };
        let is_text = |line: &Value| line.is_string();
        match record.get("log") {
            None | Some(Value::Null) => {}
            Some(Value::Array(lines)) if lines.iter().all(is_text) => {}
            Some(_) => return failed(None),
        }
        if record.get("status").is_some_and(|status| status == "failed") {
            let error = record.get("error").and_then(Value::as_str).unwrap_or_default();
            return failed(Some(format!(
                "failed to invoke builder: {function} failure while building or pushing image {image}: {error}"
            )));
        }
    }
    CliOutcome {
        exit: 0,
        message: None,
    }
}

struct Owner<'a> {
    id: u64,
    name: &'a str,
}

struct Header<'a> {
    kind: u8,
    mode: u64,
    mtime: u64,
    owner: &'a Owner<'a>,
}

/// Appends an entry as Go's `archive/tar` writes it. `long` is the encoding of a name that is over 100 bytes long
/// or not ASCII.
fn add(tar: &mut Vec<u8>, path: &str, long: Option<&str>, header: &Header<'_>, content: &[u8]) -> Result<()> {
    match long {
        None => block(tar, "", path, header, content.len(), true)?,
        Some("prefix") => {
            let end = path.len().min(156);
            let at = path.get(..end).and_then(|start| start.rfind('/'));
            let at = at.with_context(|| format!("{path} cannot be split"))?;
            block(tar, &path[..at], &path[at + 1..], header, content.len(), true)?;
        }
        Some("pax") => {
            let (folder, name) = path.rsplit_once('/').context("the name has no folder")?;
            let record = record("path", path);
            let extended = Header {
                kind: b'x',
                mode: 0,
                mtime: 0,
                owner: &Owner { id: 0, name: "" },
            };
            let name = ascii(&format!("{folder}/PaxHeaders.0/{name}"));
            block(tar, "", &name, &extended, record.len(), false)?;
            padded(tar, record.as_bytes());
            block(tar, "", &ascii(path), header, content.len(), true)?;
        }
        Some(other) => bail!("{path}: unknown encoding {other:?} of a long name"),
    }
    padded(tar, content);
    Ok(())
}

fn block(
    tar: &mut Vec<u8>,
    prefix: &str,
    name: &str,
    header: &Header<'_>,
    size: usize,
    devices: bool,
) -> Result<()> {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, width: usize, bytes: &[u8]| -> Result<()> {
        ensure!(
            bytes.len() <= width,
            "{:?} is too long",
            String::from_utf8_lossy(bytes)
        );
        block[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    put(0, 100, name.as_bytes())?;
    put(100, 7, format!("{:07o}", header.mode).as_bytes())?;
    put(108, 7, format!("{:07o}", header.owner.id).as_bytes())?;
    put(116, 7, format!("{:07o}", header.owner.id).as_bytes())?;
    put(124, 11, format!("{size:011o}").as_bytes())?;
    put(136, 11, format!("{:011o}", header.mtime).as_bytes())?;
    put(148, 8, b"        ")?;
    put(156, 1, &[header.kind])?;
    put(257, 8, b"ustar\x0000")?;
    put(265, 31, header.owner.name.as_bytes())?;
    put(297, 31, header.owner.name.as_bytes())?;
    if devices {
        put(329, 7, b"0000000")?;
        put(337, 7, b"0000000")?;
    }
    put(345, 155, prefix.as_bytes())?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
    Ok(())
}

fn padded(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// Returns a PAX record, which starts with its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    format!("{length}{rest}")
}

/// Returns the part of a name that Go writes to an ASCII field.
fn ascii(name: &str) -> String {
    name.chars().filter(char::is_ascii).take(100).collect()
}

fn mode(entry: &Value) -> Result<u64> {
    u64::from_str_radix(text(&entry["mode"])?, 8).context("the mode is not an octal number")
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is not a string"))
}

fn file(name: &str) -> Result<Value> {
    let path = in_repository("tests/clients/recorded").join(name);
    let text = fs::read(&path).with_context(|| format!("{path:?}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{path:?}"))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::client::signature;

    #[test]
    fn every_recorded_request_is_reproduced_byte_for_byte() {
        let recorded = RecordedCli::read().unwrap();
        let key = recorded.requests["payload_secret"].as_str().unwrap().trim();
        let variables = RequestVariables {
            repository: text(&recorded.requests["repository"]).unwrap().to_owned(),
            mtime: recorded.requests["mtime"].as_u64().unwrap(),
            dockerfile: None,
        };
        let mut checked = 0;
        for command in recorded.commands() {
            for send in command["sends"].as_array().unwrap() {
                if send["path"] != "/build" {
                    continue;
                }
                let tar = recorded.tar(send, &variables).unwrap();
                assert_eq!(Some(tar.len() as u64), send["size"].as_u64(), "{command}");
                assert_eq!(hex::encode(Sha256::digest(&tar)), send["sha256"], "{command}");
                assert_eq!(
                    signature(key.as_bytes(), &tar).unwrap(),
                    send["signature"],
                    "{command}"
                );
                checked += 1;
            }
        }
        assert_eq!(checked, 13);
    }

    #[test]
    fn the_computed_outcome_equals_the_recorded_one() {
        let (image, answers) = ("registry.example/demo/hello:1", file("answers.json").unwrap());
        let function = answers["function"].as_str().unwrap();
        let filled = |text: &str| {
            text.replace("{image}", image)
                .replace("{x70000}", &"x".repeat(70_000))
        };
        for case in answers["answers"].as_array().unwrap() {
            // faas-cli asks for a stream, and gets one if the builder streams this answer.
            let answer = case["answers"]
                .get("streamed")
                .unwrap_or(&case["answers"]["whole"]);
            let chunks = answer["chunks"].as_array().unwrap();
            let body: String = chunks
                .iter()
                .map(|chunk| filled(chunk.as_str().unwrap()))
                .collect();
            let status = u16::try_from(answer["status"].as_u64().unwrap()).unwrap();
            let expected = &case["observed"]["faas-cli"];

            let cli_outcome = cli_outcome(function, image, status, &body);

            assert_eq!(
                Some(i64::from(cli_outcome.exit)),
                expected["exit"].as_i64(),
                "{case}"
            );
            if let Some(message) = cli_outcome.message {
                assert_eq!(message, filled(expected["message"].as_str().unwrap()), "{case}");
            }
        }
    }
}
