//! Runs `buildctl`, the reference for the image that BuildKit builds from a folder.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{buildkit::BuildkitDaemon, registry::RegistryClient, testbed::Testbed};

/// A `buildctl` client of one daemon, with one Docker `config.json`.
pub struct Buildctl {
    program: std::path::PathBuf,
    address: String,
    docker: tempfile::TempDir,
}

/// A build in a daemon's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildNamesAndCachedSteps {
    /// The name of the build at the daemon.
    pub reference: String,
    /// The ID of the call that the build belongs to; empty for a build of another client.
    pub call_id: String,
    /// The full name of the image.
    pub image: String,
    /// The number of steps whose results came from the cache.
    pub cached_steps: u64,
}

impl Buildctl {
    /// Writes the credentials of the stack's registry to a temporary folder, and returns a `buildctl` that uses them.
    pub fn new(testbed: &Testbed, daemon: &BuildkitDaemon) -> Result<Self> {
        let registry = &testbed.stack.registry;
        let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        Self::with_docker_config(testbed, daemon, &credentials)
    }

    /// Writes this Docker `config.json` to a temporary folder, and returns a `buildctl` that uses it.
    pub fn with_docker_config(
        testbed: &Testbed,
        daemon: &BuildkitDaemon,
        docker_config_json: &str,
    ) -> Result<Self> {
        Self::with_address_and_docker_config(testbed, daemon.socket_url(), docker_config_json)
    }

    /// Returns a `buildctl` of the stack's own daemon, without credentials.
    pub fn of_stack_daemon_without_credentials(testbed: &Testbed) -> Result<Self> {
        Self::with_address_and_docker_config(testbed, testbed.stack.buildkit_host.clone(), "{}")
    }

    fn with_address_and_docker_config(
        testbed: &Testbed,
        address: String,
        docker_config_json: &str,
    ) -> Result<Self> {
        let docker = tempfile::tempdir()?;
        fs::write(docker.path().join("config.json"), docker_config_json)?;
        Ok(Self {
            program: testbed.stack.tools.buildctl.clone(),
            address,
            docker,
        })
    }

    /// Builds the folder without cached steps and pushes the image; `options` are those of the frontend, such as
    /// `filename=Dockerfile`.
    ///
    /// Removes the daemon's copies of earlier folders first: `buildctl` uses one key for all of them, and does not send
    /// files that look like those of the folder before.
    ///
    /// # Errors
    /// Fails with the output of `buildctl` if the build or the push fails.
    pub fn build_uncached_and_push(&self, folder: &Path, image: &str, options: &[&str]) -> Result<()> {
        self.build_uncached_and_push_with_output_options(folder, image, options, "")
    }

    /// Builds like [`build_uncached_and_push`](Self::build_uncached_and_push); `more_output_options` is appended to
    /// the output option and starts with a comma.
    ///
    /// # Errors
    /// Fails with the output of `buildctl` if the build or the push fails.
    pub fn build_uncached_and_push_with_output_options(
        &self,
        folder: &Path,
        image: &str,
        options: &[&str],
        more_output_options: &str,
    ) -> Result<()> {
        self.run_buildctl(&["prune", "--filter", "type==source.local"])?;
        let folder = folder.to_str().context("the folder's path is not UTF-8")?;
        let (context, dockerfile) = (format!("context={folder}"), format!("dockerfile={folder}"));
        let output = format!("type=image,name={image},push=true,registry.insecure=true{more_output_options}");
        let mut arguments = vec![
            "build",
            "--progress=plain",
            "--no-cache",
            "--frontend",
            "dockerfile.v0",
        ];
        arguments.extend(["--local", &context, "--local", &dockerfile, "--output", &output]);
        arguments.extend(options.iter().flat_map(|option| ["--opt", option]));
        self.run_buildctl(&arguments).map(drop)
    }

    /// Runs `buildctl` to list the daemon's history, and returns the number of builds in it.
    ///
    /// # Errors
    /// Fails with the output of `buildctl` if it fails.
    pub fn running_and_ended_build_count(&self) -> Result<usize> {
        // The first line has the names of the columns; the reference of a build is the second column.
        let table = self.run_buildctl(&["debug", "histories"])?;
        let builds: BTreeSet<_> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        Ok(builds.len())
    }

    /// Runs `buildctl` to list the daemon's history, and returns the builds in it, those that run included.
    ///
    /// # Errors
    /// Fails with the output of `buildctl` if it fails, or lists something else.
    pub fn running_and_ended_builds(&self) -> Result<Vec<BuildNamesAndCachedSteps>> {
        let events = self.history_events()?;
        let to_build = |event: &Value| {
            let record = &event["record"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            BuildNamesAndCachedSteps {
                reference: text(&record["Ref"]),
                call_id: text(&record["FrontendAttrs"]["slipway.call-id"]),
                image: text(&record["Exporters"][0]["Attrs"]["name"]),
                cached_steps: record["numCachedSteps"].as_u64().unwrap_or_default(),
            }
        };
        Ok(events.iter().map(to_build).collect())
    }

    /// Runs `buildctl` to list the daemon's history, and returns its events as BuildKit's API has them.
    ///
    /// # Errors
    /// Fails with the output of `buildctl` if it fails.
    pub fn history_events(&self) -> Result<Vec<Value>> {
        let lines = self.run_buildctl(&["debug", "histories", "--format", "{{json .}}"])?;
        let events = lines.lines().filter(|line| !line.trim().is_empty());
        events
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("not an event of the history: {line}"))
            })
            .collect()
    }

    /// Runs `buildctl` and returns its output.
    fn run_buildctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command
            .env("DOCKER_CONFIG", self.docker.path())
            .args(["--addr", &self.address])
            .args(arguments);
        let output = command.output().with_context(|| format!("running {command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }
}
