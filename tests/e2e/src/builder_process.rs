//! A builder-fn process beside the stack, for settings that the stack's own builder-fn must not have.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reqwest::StatusCode;
use serde_json::Value;

use crate::{
    client::SigningClient,
    process::{
        FunctionProcess, peak_memory_bytes, peak_memory_bytes_minus_current_file_pages, unlinked_open_files,
        wait_for_status, wait_for_success,
    },
    questions::BuildQuestionClient,
    registry::RegistryClient,
    testbed::Testbed,
};

/// A running builder-fn process, killed on drop.
pub struct BuilderProcess {
    function: FunctionProcess,
    secrets: tempfile::TempDir,
    spool: tempfile::TempDir,
}

impl BuilderProcess {
    /// Starts builder-fn with the stack's BuildKit, gateway and registry credentials. `settings` override them.
    pub async fn start_with_settings(testbed: &Testbed, settings: &[(&str, &str)]) -> Result<Self> {
        let registry = &testbed.stack.registry;
        let docker_config = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        Self::start_with_docker_config(testbed, &docker_config, settings).await
    }

    /// Starts builder-fn with the stack's BuildKit and gateway and with this Docker `config.json`. `settings` override
    /// them.
    pub async fn start_with_docker_config(
        testbed: &Testbed,
        docker_config_json: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start_with_secrets_replacing_registry_config(
            testbed,
            settings,
            &[("registry-config", docker_config_json)],
        )
        .await
    }

    /// Starts builder-fn with the stack's BuildKit, gateway and keys. `settings` and `more_secrets` override them;
    /// registry credentials are only among `more_secrets`.
    pub async fn start_with_secrets_replacing_registry_config(
        testbed: &Testbed,
        settings: &[(&str, &str)],
        more_secrets: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start(testbed, settings, more_secrets, None).await
    }

    /// Starts builder-fn with this file in place of the machine's `resolv.conf`, and without registry credentials.
    /// `settings` override those of [`start_with_settings`](Self::start_with_settings).
    pub async fn start_with_resolv_conf_and_no_registry_config(
        testbed: &Testbed,
        resolv_conf: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start(testbed, settings, &[], Some(resolv_conf)).await
    }

    async fn start(
        testbed: &Testbed,
        settings: &[(&str, &str)],
        more_secrets: &[(&str, &str)],
        resolver: Option<&Path>,
    ) -> Result<Self> {
        let secrets = tempfile::tempdir()?;
        for (name, from) in [
            ("payload-secret", &testbed.stack.payload_secret),
            ("deploy-secret", &testbed.stack.deploy_secret),
        ] {
            fs::copy(from, secrets.path().join(name))?;
        }
        for (name, content) in more_secrets {
            fs::write(secrets.path().join(name), content)?;
        }
        let spool = tempfile::tempdir()?;
        let fixed: [(&str, &OsStr); 9] = [
            ("secret_mount_path", secrets.path().as_ref()),
            ("spool_dir", spool.path().as_ref()),
            ("buildkit_url", testbed.stack.buildkit_host.as_ref()),
            ("gateway_url", testbed.stack.gateway.url.as_ref()),
            ("insecure", "true".as_ref()),
            // The same value as in stack.yml and the chart.
            ("MALLOC_ARENA_MAX", "1".as_ref()),
            ("exec_timeout", "10m".as_ref()),
            ("write_timeout", "10m".as_ref()),
            ("read_timeout", "10m".as_ref()),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, OsStr::new(*value)));
        let environment = fixed.into_iter().chain(settings);
        let function = match resolver {
            None => FunctionProcess::start("builder-fn", environment).await?,
            Some(resolver) => {
                FunctionProcess::start_with_resolv_conf("builder-fn", environment, resolver).await?
            }
        };
        Ok(Self {
            function,
            secrets,
            spool,
        })
    }

    /// Returns the URL of the builder's metrics.
    pub fn metrics_url(&self) -> &str {
        &self.function.metrics_url
    }

    /// Returns the builder's URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.function.url
    }

    /// Returns a client of `POST /build` that signs with the builder's secret `payload-secret`, by default the stack's.
    pub fn build_client_with_own_key(&self) -> Result<SigningClient> {
        let key = fs::read(self.secrets.path().join("payload-secret"))?;
        SigningClient::new(format!("{}/build", self.function.url), &key)
    }

    /// Returns a client of `POST /contexts` that signs with the builder's secret `payload-secret`.
    pub fn contexts_client(&self) -> Result<SigningClient> {
        let key = fs::read(self.secrets.path().join("payload-secret"))?;
        SigningClient::new(format!("{}/contexts", self.url()), &key)
    }

    /// Sends an unsigned GET request to the builder; returns status and text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let response = http.get(format!("{}{path}", self.function.url)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Asks about builds at `path`, such as `/builds/ID`, with a question that is signed with the builder's secret
    /// `payload-secret`; returns status and answer.
    pub async fn ask(&self, path: &str) -> Result<(u16, Value)> {
        self.questions()?.get(path).await
    }

    /// Returns a client of questions about builds that signs with the builder's secret `payload-secret`.
    pub fn questions(&self) -> Result<BuildQuestionClient> {
        let key = fs::read(self.secrets.path().join("payload-secret"))?;
        BuildQuestionClient::new(self.url(), &key)
    }

    /// Replaces a secret's file atomically, as a platform does when it rotates a secret.
    pub fn replace_secret(&self, name: &str, content: &str) -> Result<()> {
        let next = self.secrets.path().join(".next");
        fs::write(&next, content)?;
        Ok(fs::rename(&next, self.secrets.path().join(name))?)
    }

    /// Removes a secret's file.
    pub fn remove_secret(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.secrets.path().join(name))?)
    }

    /// Fetches all metrics of the builder, and returns them in Prometheus' text format.
    pub async fn metrics_text(&self) -> Result<String> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(http.get(&self.function.metrics_url).send().await?.text().await?)
    }

    /// Fetches the metrics of the builder, and returns the value of one; `name_with_labels` is as in
    /// Prometheus' text format.
    pub async fn metric_value(&self, name_with_labels: &str) -> Result<f64> {
        let text = self.metrics_text().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name_with_labels)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("no metric {name_with_labels} in {text}"))?
            .parse()?)
    }

    /// Returns the builder's log so far.
    pub fn log_text(&self) -> String {
        self.function.process.log_text()
    }

    /// Returns the process ID of the builder.
    pub fn process_id(&self) -> u32 {
        self.function.process.id()
    }

    /// Kills the builder process, as a crash does, and waits for its exit.
    pub fn kill(mut self) -> Result<()> {
        self.function.process.kill()
    }

    /// Sends SIGTERM to the builder process, as providers do.
    pub fn send_sigterm(&self) -> Result<()> {
        self.function.process.send_sigterm()
    }

    /// Waits until the builder process has exited, or fails after `limit`. Call [`send_sigterm`](Self::send_sigterm)
    /// first.
    pub async fn wait_until_exited(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.function.process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("builder-fn did not exit within {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the builder process's peak resident memory so far, in bytes.
    pub fn peak_memory_bytes(&self) -> Result<usize> {
        peak_memory_bytes(self.process_id())
    }

    /// Returns the builder process's peak resident memory so far, minus the pages of files that are resident now, in
    /// bytes. Those are the program's code, and the kernel can drop them.
    pub fn peak_memory_bytes_minus_current_file_pages(&self) -> Result<usize> {
        peak_memory_bytes_minus_current_file_pages(self.process_id())
    }

    /// Returns the files in the folder that `spool_dir` names by default, and the process's open files without a name.
    pub fn files_in_spool_and_unlinked_open_files(&self) -> Result<Vec<PathBuf>> {
        let mut left = fs::read_dir(self.spool.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        left.extend(unlinked_open_files(self.function.process.id())?);
        Ok(left)
    }

    /// Polls `/ready` until it answers with success: the builder accepts a request. Fails after 20 s.
    pub async fn wait_until_ready(&self) -> Result<()> {
        wait_for_success(&format!("{}/ready", self.function.url)).await
    }

    /// Polls `/ready` until it answers with 503: the builder accepts no more requests. Fails after 20 s.
    pub async fn wait_until_not_ready(&self) -> Result<()> {
        let is_expected = |status| status == StatusCode::SERVICE_UNAVAILABLE;
        wait_for_status(&format!("{}/ready", self.function.url), is_expected).await
    }
}
