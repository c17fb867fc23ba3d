//! A recorded faas-cli: the bytes that it sends to a builder, and its reaction to answers.
//!
//! A current faas-cli is not available as a package, so the recording stands in for it in every run.
//! `tests/clients/recorded/README.md` gives the source of each rule.

mod go_tar;
mod outcome;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::go_tar::{EntryOwner, HeaderFields};
pub use self::outcome::{FaasCliOutcome, faas_cli_outcome};
use crate::work_dir::path_in_repository;

/// The parts of a request that differ between users.
#[derive(Debug, Clone)]
pub struct BuildBodyVariables {
    /// The name of the image without its tag.
    pub repository: String,
    /// The time at which faas-cli copied the context, in seconds since 1970.
    pub mtime: u64,
    /// The content of `context/Dockerfile`, if not the recorded one.
    pub dockerfile: Option<String>,
}

/// The recorded requests and secrets.
#[derive(Debug)]
pub struct FaasCliRecording {
    requests: Value,
    /// The recorded key pair, public key and sealed secrets.
    pub secrets: Value,
}

impl FaasCliRecording {
    /// Reads the recorded requests, key pair and sealed secrets from `tests/clients/recorded`.
    pub fn read_recording() -> Result<Self> {
        Ok(Self {
            requests: read_recorded_json("requests.json")?,
            secrets: read_recorded_json("secrets.json")?,
        })
    }

    /// Returns all recorded commands in order.
    pub fn recorded_commands(&self) -> &[Value] {
        self.requests["requests"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Returns the recorded command of this name.
    pub fn recorded_command(&self, name: &str) -> Result<&Value> {
        let found = self
            .recorded_commands()
            .iter()
            .find(|command| command["name"] == name);
        found.with_context(|| format!("no command {name:?} was recorded"))
    }

    /// Writes the recorded private key to `folder` and returns its path, for `build_secrets_private_key_path`.
    pub fn write_build_secrets_private_key(&self, folder: &Path) -> Result<String> {
        let path = folder.join("private-key");
        fs::write(&path, text_of_value(&self.secrets["private_key"])?)?;
        Ok(path.to_str().context("the path is not UTF-8")?.to_owned())
    }

    /// Returns the recorded headers of a request to `path`, without those that depend on body, host or user.
    pub fn request_headers_without_body_host_or_user(&self, path: &str) -> Result<Vec<(&str, &str)>> {
        let headers = self.requests["headers"][path].as_object();
        let headers = headers.with_context(|| format!("no headers for {path}"))?;
        let text = |(name, value)| Some((String::as_str(name), Value::as_str(value)?));
        Ok(headers.iter().filter_map(text).collect())
    }

    /// Returns the body of a recorded `POST /build`, with these variables.
    pub fn build_request_body(
        &self,
        recorded_send: &Value,
        variables: &BuildBodyVariables,
    ) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        let owner = &self.requests["owner"];
        let owner = EntryOwner {
            id: owner["uid"].as_u64().context("requests.json: no owner.uid")?,
            name: text_of_value(&owner["user"])?,
        };
        for entry in self.requests["context"]
            .as_array()
            .context("requests.json: no context")?
        {
            let path = text_of_value(&entry["path"])?;
            let content = match (path, &variables.dockerfile) {
                ("context/Dockerfile", Some(dockerfile)) => dockerfile.as_str(),
                _ => entry["text"].as_str().unwrap_or_default(),
            };
            let folder = entry["folder"] == true;
            let header = HeaderFields {
                kind: if folder { b'5' } else { b'0' },
                mode: mode_of_entry(entry)?,
                mtime: variables.mtime,
                owner: &owner,
            };
            go_tar::append_entry(
                &mut tar,
                path,
                entry["long_name"].as_str(),
                &header,
                content.as_bytes(),
            )?;
        }
        let no_owner = EntryOwner { id: 0, name: "" };
        let mut last = |entry: &Value, content: &str| {
            let header = HeaderFields {
                kind: b'0',
                mode: mode_of_entry(entry)?,
                mtime: 0,
                owner: &no_owner,
            };
            go_tar::append_entry(
                &mut tar,
                text_of_value(&entry["path"])?,
                None,
                &header,
                content.as_bytes(),
            )
        };
        let config = text_of_value(&recorded_send["config"])?.replace("{repository}", &variables.repository);
        last(&self.requests["config_entry"], &config)?;
        if recorded_send["secrets"] == true {
            last(
                &self.requests["secrets_entry"],
                text_of_value(&self.secrets["sealed"])?,
            )?;
        }
        go_tar::append_end_marker(&mut tar);
        Ok(tar)
    }
}

/// Returns the mode of a recorded entry, which is an octal number in text.
fn mode_of_entry(entry: &Value) -> Result<u64> {
    u64::from_str_radix(text_of_value(&entry["mode"])?, 8).context("the mode is not an octal number")
}

fn text_of_value(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is not a string"))
}

/// Reads a JSON file of the recording.
fn read_recorded_json(name: &str) -> Result<Value> {
    let path = path_in_repository("tests/clients/recorded").join(name);
    let text = fs::read(&path).with_context(|| format!("{path:?}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{path:?}"))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::client::sign_body;

    #[test]
    fn every_recorded_build_request_is_reproduced_byte_for_byte() {
        let recorded = FaasCliRecording::read_recording().unwrap();
        let key = recorded.requests["payload_secret"].as_str().unwrap().trim();
        let variables = BuildBodyVariables {
            repository: text_of_value(&recorded.requests["repository"])
                .unwrap()
                .to_owned(),
            mtime: recorded.requests["mtime"].as_u64().unwrap(),
            dockerfile: None,
        };
        let mut checked = 0;
        for command in recorded.recorded_commands() {
            for send in command["sends"].as_array().unwrap() {
                if send["path"] != "/build" {
                    continue;
                }
                let tar = recorded.build_request_body(send, &variables).unwrap();
                assert_eq!(Some(tar.len() as u64), send["size"].as_u64(), "{command}");
                assert_eq!(hex::encode(Sha256::digest(&tar)), send["sha256"], "{command}");
                assert_eq!(
                    sign_body(key.as_bytes(), &tar).unwrap(),
                    send["signature"],
                    "{command}"
                );
                checked += 1;
            }
        }
        assert_eq!(checked, 13);
    }
}
