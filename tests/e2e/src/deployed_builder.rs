//! A copy of the stack's builder-fn, deployed as another function with settings of its own. The queue delivers calls to
//! it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    client::SigningClient,
    process::{peak_memory_bytes_minus_current_file_pages, unlinked_open_file_bytes},
    questions::BuildQuestionClient,
    testbed::Testbed,
};

/// The longest time until the stack has done what a step of a test waits for.
const TEST_STEP_TIMEOUT: Duration = Duration::from_secs(180);

/// The variable by which the process of a copy is found on this machine. builder-fn does not read it.
const MARK_VARIABLE: &str = "mark_of_the_copy";

/// A deployed copy of the stack's builder-fn.
pub struct DeployedBuilder<'t> {
    testbed: &'t Testbed,
    name: String,
    deployment: Value,
    key: Vec<u8>,
    /// The value of [`MARK_VARIABLE`].
    mark: String,
}

impl<'t> DeployedBuilder<'t> {
    /// Removes the function with this name, if there is one, and deploys a copy with records of its own, with the
    /// settings and secrets of the stack's builder-fn. `settings` override those settings, and `more_secrets` are names
    /// of secrets that the stack has. With the setting `buildkit_plaintext`, the copy has no certificates for BuildKit.
    /// Waits until the copy is ready.
    pub async fn deploy_anew_and_wait_until_ready(
        testbed: &'t Testbed,
        name: &str,
        settings: &[(&str, &str)],
        more_secrets: &[&str],
    ) -> Result<Self> {
        let functions = &testbed.functions;
        functions.remove_function(name).await?;
        let own = functions.function_status("builder-fn").await?;
        let own = own.context("the stack has no builder-fn")?;
        let mut variables = own["envVars"].clone();
        ensure!(variables.is_object(), "the provider shows no environment: {own}");
        // An earlier run has left records in its own repository.
        let run = Timestamp::now().as_nanosecond();
        let mark = format!("{name}-{run}");
        variables["records_repository"] =
            json!(format!("{}/e2e/records/{mark}", testbed.stack.registry.host));
        variables[MARK_VARIABLE] = json!(mark);
        for (variable, value) in settings {
            variables[*variable] = json!(value);
        }
        let mut secrets = own["secrets"].as_array().cloned().unwrap_or_default();
        secrets.extend(more_secrets.iter().map(|secret| json!(secret)));
        if settings.iter().any(|(name, _)| *name == "buildkit_plaintext") {
            secrets.retain(|secret| !secret.as_str().unwrap_or_default().starts_with("buildkit-"));
        }
        let deployment = json!({
            "service": name, "image": own["image"], "envVars": variables, "secrets": secrets, "limits": own["limits"],
            "readOnlyRootFilesystem": own["readOnlyRootFilesystem"] == true,
        });
        let created = functions.create_function(&deployment).await?;
        ensure!(created < 300, "{name} was not created: {created}");
        functions.wait_until_ready(name, TEST_STEP_TIMEOUT).await?;
        Ok(Self {
            key: fs::read(&testbed.stack.payload_secret)?.trim_ascii().to_vec(),
            testbed,
            name: name.to_owned(),
            deployment,
            mark,
        })
    }

    /// Updates the function with this value of a variable that builder-fn does not read, so that the provider replaces
    /// its process. The provider sends SIGTERM to the old one.
    pub async fn request_update_with_changed_variable(&mut self, updated_to: &str) -> Result<()> {
        self.deployment["envVars"]["updated_to"] = json!(updated_to);
        let updated = self.testbed.functions.update_function(&self.deployment).await?;
        ensure!(updated < 300, "{} was not updated: {updated}", self.name);
        Ok(())
    }

    /// Returns a client that has its calls delivered by the queue.
    pub fn queued_client(&self) -> Result<SigningClient> {
        SigningClient::new(self.testbed.functions.queued_call_url(&self.name), &self.key)
    }

    /// Returns a client that calls through the gateway and waits for the answers.
    pub fn gateway_client(&self) -> Result<SigningClient> {
        SigningClient::new(self.testbed.functions.function_url(&self.name), &self.key)
    }

    /// Returns a client of `POST /contexts` through the gateway.
    pub fn contexts_client(&self) -> Result<SigningClient> {
        let url = self.testbed.functions.function_url(&self.name);
        SigningClient::new(format!("{url}/contexts"), &self.key)
    }

    /// Returns a client that asks about builds through the gateway.
    pub fn questions(&self) -> Result<BuildQuestionClient> {
        BuildQuestionClient::new(self.testbed.functions.function_url(&self.name), &self.key)
    }

    /// Asks about a build until it has this state, and returns the answer.
    pub async fn wait_for_state_or_timeout(&self, id: &str, state: &str) -> Result<Value> {
        let end = Instant::now() + TEST_STEP_TIMEOUT;
        let questions = self.questions()?;
        loop {
            // While the builder is replaced, the gateway may reach none.
            let answer = questions.get(&format!("/builds/{id}")).await;
            if let Ok((_, build)) = &answer
                && build["state"] == state
            {
                return Ok(build.clone());
            }
            ensure!(Instant::now() < end, "{id} is not {state}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Returns the peak resident memory of the builder's process so far, minus the pages of files, in bytes.
    pub fn peak_memory_bytes_minus_current_file_pages(&self) -> Result<usize> {
        peak_memory_bytes_minus_current_file_pages(self.process_id()?)
    }

    /// Returns the size of the builder's open files without a name, in bytes: stored bodies, and copies of logs that
    /// were read a moment ago.
    pub fn unlinked_open_file_bytes_of_process(&self) -> Result<u64> {
        unlinked_open_file_bytes(self.process_id()?)
    }

    /// Kills the builder's process (−9), and waits until the provider has started another one that is ready.
    pub async fn kill_and_wait_for_restart(&self) -> Result<()> {
        let pid =
            rustix::process::Pid::from_raw(i32::try_from(self.process_id()?)?).context("no process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        self.testbed
            .functions
            .wait_until_ready(&self.name, TEST_STEP_TIMEOUT)
            .await
    }

    /// Waits until the builder knows a build.
    pub async fn wait_until_known(&self, id: &str) -> Result<()> {
        let end = Instant::now() + TEST_STEP_TIMEOUT;
        let questions = self.questions()?;
        loop {
            let (status, answer) = questions.get(&format!("/builds/{id}")).await?;
            if status == 200 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{id} is not known: {status} {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes the function.
    pub async fn remove(self) -> Result<()> {
        self.testbed.functions.remove_function(&self.name).await
    }

    /// Returns the id of the builder's process on this machine.
    fn process_id(&self) -> Result<u32> {
        let variable = format!("{MARK_VARIABLE}={}", self.mark);
        for entry in fs::read_dir("/proc")? {
            let folder = entry?.path();
            // Most entries are not processes, and a process may exit while the list is read.
            let Ok(environment) = fs::read(folder.join("environ")) else {
                continue;
            };
            if environment
                .split(|byte| *byte == 0)
                .any(|found| found == variable.as_bytes())
            {
                let name = folder.file_name().unwrap_or_default().to_string_lossy();
                return Ok(name.parse()?);
            }
        }
        anyhow::bail!("no process with {variable} in its environment is running")
    }
}
