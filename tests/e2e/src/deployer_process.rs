//! A deployer-fn process beside the stack: tests can kill it, and choose settings that the stack's own must not
//! have.

use std::{ffi::OsStr, fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use slipway_stack::RegistryAccess;
use tempfile::TempDir;

use crate::{
    client::{HttpReply, sign_body},
    process::FunctionProcess,
    registry,
    testbed::Testbed,
};

/// The client's timeout for a hand-over, longer than any rollout of a test.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(180);

/// A running deployer-fn process, killed on drop.
#[derive(Debug)]
pub struct DeployerProcess {
    function: FunctionProcess,
    secrets: TempDir,
}

/// A client that signs hand-overs and sends them to one deployer, as builder-fn does.
#[derive(Debug, Clone)]
pub struct HandOverClient {
    url: String,
    key: Vec<u8>,
    http: reqwest::Client,
}

impl DeployerProcess {
    /// Starts deployer-fn with the stack's secrets, the gateway at this URL, and more settings.
    pub async fn start(testbed: &Testbed, gateway_url: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_with_more_secrets(testbed, gateway_url, settings, &[]).await
    }

    /// Starts deployer-fn with the stack's secrets and these; those of the same name replace the stack's.
    pub async fn start_with_more_secrets(
        testbed: &Testbed,
        gateway: &str,
        settings: &[(&str, &str)],
        more_secrets: &[(&str, String)],
    ) -> Result<Self> {
        let secrets = tempfile::tempdir()?;
        fs::copy(&testbed.stack.deploy_secret, secrets.path().join("deploy-secret"))?;
        fs::write(
            secrets.path().join("basic-auth-user"),
            &testbed.stack.gateway.user,
        )?;
        fs::write(
            secrets.path().join("basic-auth-password"),
            &testbed.stack.gateway.password,
        )?;
        let RegistryAccess { host, user, password } = &testbed.stack.registry;
        fs::write(
            secrets.path().join("registry-pull-config"),
            registry::RegistryClient::docker_config(host, user, password),
        )?;
        for (name, content) in more_secrets {
            fs::write(secrets.path().join(name), content)?;
        }
        Self::start_with_only_secrets(secrets, gateway, settings).await
    }

    /// Starts deployer-fn with the files in `secrets` as its only secrets.
    pub async fn start_with_only_secrets(
        secrets: TempDir,
        gateway_url: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let fixed: [(&str, &OsStr); 5] = [
            ("secret_mount_path", secrets.path().as_ref()),
            ("gateway_url", gateway_url.as_ref()),
            ("exec_timeout", "3m".as_ref()),
            ("insecure", "true".as_ref()),
            ("settling_time", "0s".as_ref()),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, OsStr::new(*value)));
        let function = FunctionProcess::start("deployer-fn", fixed.into_iter().chain(settings)).await?;
        Ok(Self { function, secrets })
    }

    /// Returns the URL of the deployer's metrics.
    pub fn metrics_url(&self) -> &str {
        &self.function.metrics_url
    }

    /// Returns the deployer's URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.function.url
    }

    /// Returns a client of this deployer that signs with its secret `deploy-secret`.
    pub fn hand_over_client(&self) -> Result<HandOverClient> {
        Ok(HandOverClient {
            url: format!("{}/", self.function.url),
            key: fs::read(self.secrets.path().join("deploy-secret"))?
                .trim_ascii()
                .to_vec(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(HAND_OVER_TIMEOUT)
                .build()?,
        })
    }

    /// Signs and sends a hand-over, and returns the deployer's answer.
    pub async fn send_hand_over_and_get_status_and_text(&self, hand_over: &Value) -> Result<HttpReply> {
        self.hand_over_client()?
            .send_hand_over_and_get_status_and_text(hand_over)
            .await
    }

    /// Returns the deployer's log so far.
    pub fn log_text(&self) -> String {
        self.function.process.log_text()
    }

    /// Returns the process id of the deployer.
    pub fn process_id(&self) -> u32 {
        self.function.process.id()
    }

    /// Kills the deployer process, as a crash does, and waits for its exit.
    pub fn kill(mut self) -> Result<()> {
        self.function.process.kill()
    }
}

impl HandOverClient {
    /// Signs and sends a hand-over, and returns the deployer's answer.
    pub async fn send_hand_over_and_get_status_and_text(&self, hand_over: &Value) -> Result<HttpReply> {
        let body = hand_over.to_string();
        let response = self
            .http
            .post(&self.url)
            .header("X-Deploy-Signature", sign_body(&self.key, body.as_bytes())?)
            .header("Content-Type", "application/json")
            .body(body)
            .send()
            .await
            .with_context(|| format!("POST {}", self.url))?;
        Ok(HttpReply {
            status: response.status().as_u16(),
            call_id: None,
            retry_after: None,
            text: response.text().await?,
        })
    }
}
