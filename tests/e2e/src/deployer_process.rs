//! deployer-fn as a plain process beside the stack: it can be killed, and have settings that the stack's own must not have.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use slipway_stack::Registry;
use tempfile::TempDir;

use crate::{
    client::{Reply, signature},
    plain::{binary, free_port, wait_until_alive},
    registry,
    shared::Bench,
};

/// Longer than any rollout of a test.
const LONGEST: Duration = Duration::from_secs(180);

/// A running deployer-fn; it ends with the value, at once.
#[derive(Debug)]
pub struct PlainDeployer {
    child: Child,
    secrets: TempDir,
    url: String,
}

/// Hands over as builder-fn does. Clones go to the same deployer.
#[derive(Debug, Clone)]
pub struct HandOvers {
    url: String,
    key: Vec<u8>,
    http: reqwest::Client,
}

impl PlainDeployer {
    /// Starts deployer-fn with the stack's secrets, `gateway` for its gateway, and further settings.
    pub async fn start(bench: &Bench, gateway: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::with_secrets(bench, gateway, settings, &[]).await
    }

    /// The same, with further secrets.
    pub async fn with_secrets(
        bench: &Bench,
        gateway: &str,
        settings: &[(&str, &str)],
        more_secrets: &[(&str, String)],
    ) -> Result<Self> {
        let secrets = tempfile::tempdir()?;
        fs::copy(&bench.stack.deploy_secret, secrets.path().join("deploy-secret"))?;
        fs::write(secrets.path().join("basic-auth-user"), &bench.stack.gateway.user)?;
        fs::write(
            secrets.path().join("basic-auth-password"),
            &bench.stack.gateway.password,
        )?;
        let Registry { host, user, password } = &bench.stack.registry;
        fs::write(
            secrets.path().join("registry-pull-config"),
            registry::Registry::docker_config(host, user, password),
        )?;
        for (name, content) in more_secrets {
            fs::write(secrets.path().join(name), content)?;
        }
        Self::start_with(secrets, gateway, settings).await
    }

    /// Starts deployer-fn with these secrets.
    pub async fn start_with(secrets: TempDir, gateway: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let (port, metrics) = (free_port()?, free_port()?);
        let child = Command::new(binary("deployer-fn").await?)
            .env_clear()
            .env("port", port.to_string())
            .env("metrics_port", metrics.to_string())
            .env("secret_mount_path", secrets.path())
            .env("gateway_url", gateway)
            .env("exec_timeout", "3m")
            .env("insecure", "true")
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .context("starting deployer-fn")?;
        let deployer = Self {
            child,
            secrets,
            url: format!("http://127.0.0.1:{port}"),
        };
        wait_until_alive(&deployer.url).await?;
        Ok(deployer)
    }

    /// Where it listens; no slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Who hands over to it.
    pub fn hand_overs(&self) -> Result<HandOvers> {
        Ok(HandOvers {
            url: format!("{}/", self.url),
            key: fs::read(self.secrets.path().join("deploy-secret"))?
                .trim_ascii()
                .to_vec(),
            http: reqwest::Client::builder().no_proxy().timeout(LONGEST).build()?,
        })
    }

    /// Hands over, and waits for the outcome.
    pub async fn deploy(&self, hand_over: &Value) -> Result<Reply> {
        self.hand_overs()?.deploy(hand_over).await
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for PlainDeployer {
    fn drop(&mut self) {
        // There is nothing to be told if the process is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl HandOvers {
    /// Hands over, and waits for the outcome.
    pub async fn deploy(&self, hand_over: &Value) -> Result<Reply> {
        let body = hand_over.to_string();
        let response = self
            .http
            .post(&self.url)
            .header("X-Deploy-Signature", signature(&self.key, body.as_bytes())?)
            .header("Content-Type", "application/json")
            .body(body)
            .send()
            .await
            .with_context(|| format!("POST {}", self.url))?;
        Ok(Reply {
            status: response.status().as_u16(),
            call_id: None,
            retry_after: None,
            text: response.text().await?,
        })
    }
}
