//! Two builders that share one BuildKit, and their restarts: which source runs, and what a request delivered again
//! does.
//!
//! The builders and deployers run beside the stack; `kill -9` and a new process stand for a crash, so nothing that
//! these tests show can depend on one process's memory.

mod accepted;
mod freshness;
mod one_function;
mod order;
mod redelivery;

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    client::HttpReply,
    deployer_process::DeployerProcess,
    pausing_proxy::{ExtraRoute, PausingProxy},
    testbed::Testbed,
};
use tokio::{sync::RwLockReadGuard, task::JoinHandle};

type SettingNameAndValue = (&'static str, &'static str);

/// Settings of the deployer with a ready timeout that is long enough for a version that works, and short for
/// one that never becomes ready.
const DEPLOYER_SETTINGS: &[SettingNameAndValue] = &[("ready_timeout", "20s")];

/// Two builders, a deployer, and one function that they build and deploy.
struct TwoBuildersAndOneDeployer {
    testbed: Testbed,
    builders: [BuilderProcess; 2],
    deployer: DeployerProcess,
    /// The proxy between builders, deployer and gateway; hand-overs go to the deployer.
    proxy: PausingProxy,
    settings: Vec<SettingNameAndValue>,
    /// The repository in which the builders keep records, if they keep any.
    records: Option<String>,
    function: String,
    _parts: RwLockReadGuard<'static, ()>,
}

impl TwoBuildersAndOneDeployer {
    /// Removes the function, and starts the builders and the deployer.
    async fn remove_function_and_start(function: &str, settings: &[SettingNameAndValue]) -> Result<Self> {
        Self::remove_function_and_start_all(function, settings, None).await
    }

    /// Removes the function, and starts the deployer, and builders that keep records of their builds.
    async fn remove_function_and_start_with_records(
        function: &str,
        settings: &[SettingNameAndValue],
    ) -> Result<Self> {
        // An earlier run has left records in its own repository.
        let repository = format!("e2e/records/{}", unused_call_id(function)?);
        Self::remove_function_and_start_all(function, settings, Some(&repository)).await
    }

    async fn remove_function_and_start_all(
        function: &str,
        settings: &[SettingNameAndValue],
        records_repository: Option<&str>,
    ) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = testbed.share_parts().await;
        testbed.functions.remove_function(function).await?;
        let proxy = PausingProxy::start_to_gateway(&testbed.stack.gateway.url).await?;
        let deployer = DeployerProcess::start(&testbed, proxy.url(), DEPLOYER_SETTINGS).await?;
        let to_deployer = ExtraRoute::Server(deployer.url().to_owned());
        proxy.add_route_for_exact_path("/function/deployer-fn", to_deployer);
        let records = records_repository.map(|name| format!("{}/{name}", testbed.stack.registry.host));
        let builders = [
            start_builder(&testbed, &proxy, settings, records.as_deref()).await?,
            start_builder(&testbed, &proxy, settings, records.as_deref()).await?,
        ];
        Ok(Self {
            testbed,
            builders,
            deployer,
            proxy,
            settings: settings.to_vec(),
            records,
            function: function.to_owned(),
            _parts: parts,
        })
    }

    /// Starts another builder, and then kills the one whose place it takes.
    async fn start_new_builder_then_kill_old(&mut self, index: usize) -> Result<()> {
        let records = self.records.as_deref();
        let started = start_builder(&self.testbed, &self.proxy, &self.settings, records).await?;
        std::mem::replace(&mut self.builders[index], started).kill()
    }

    /// Replaces the first builder and then the second: the new one starts before the old one is killed.
    async fn replace_builders_one_after_the_other(&mut self) -> Result<()> {
        self.start_new_builder_then_kill_old(0).await?;
        self.start_new_builder_then_kill_old(1).await
    }

    /// Returns the path of the repository of the function's images, without the registry's host.
    fn repository_path_of_function(&self) -> String {
        format!("e2e/two-builders/{}", self.function)
    }

    /// Returns a config that deploys the image with this tag.
    fn config_with_deployment(&self, tag: &str) -> Value {
        json!({
            "image": self.testbed.image_name(&self.repository_path_of_function(), tag),
            "deploy": { "service": self.function },
        })
    }

    /// Returns a config that only builds the image with this tag.
    fn config_without_deployment(&self, tag: &str) -> Value {
        json!({ "image": self.testbed.image_name(&self.repository_path_of_function(), tag) })
    }

    /// Returns a tar of a function whose page is this text.
    async fn page_tar(&self, page: &str, config: &Value) -> Result<Vec<u8>> {
        BuildContext::static_page_function(self.testbed.build_busybox_once_and_get_name().await?, page)
            .tar_with_config_last(config)
    }

    /// Returns a tar of a function whose page is this text, and whose build runs until the gate is opened.
    async fn gated_page_tar(&self, page: &str, gate: &str, config: &Value) -> Result<Vec<u8>> {
        let base = self.testbed.build_busybox_once_and_get_name().await?;
        let dockerfile = format!(
            "FROM {base}\nRUN {}\nCOPY www /www\nUSER 1000\n\
             CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n",
            gated_command(gate)
        );
        BuildContext::static_page_function(base, page)
            .with_dockerfile(&dockerfile)
            .tar_with_config_last(config)
    }

    /// Sends a build to one of the builders and waits for its answer.
    async fn build_at(&self, index: usize, tar: &[u8], call_id: &str) -> Result<HttpReply> {
        self.build_at_with_headers(index, tar, &[("X-Call-Id", call_id)])
            .await
    }

    /// Sends a build with these headers to one of the builders and waits for its answer.
    async fn build_at_with_headers(
        &self,
        index: usize,
        tar: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<HttpReply> {
        let client = self.builders[index].build_client_with_own_key()?;
        client.post_signed_with_headers(tar.to_vec(), headers).await
    }

    /// Sends a build with a gate to one of the builders, and waits until its step runs.
    async fn start_gated_build_and_wait_for_its_step(
        &self,
        index: usize,
        tar: &[u8],
        gate: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<JoinHandle<Result<HttpReply>>> {
        let build = self.start_build(index, tar, headers)?;
        self.testbed.wait_for_step(gate, true).await?;
        Ok(build)
    }

    /// Sends a build to one of the builders in the background.
    fn start_build(
        &self,
        index: usize,
        tar: &[u8],
        headers: &[(&'static str, &str)],
    ) -> Result<JoinHandle<Result<HttpReply>>> {
        let (client, tar) = (self.builders[index].build_client_with_own_key()?, tar.to_vec());
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        Ok(tokio::spawn(async move {
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            client.post_signed_with_headers(tar, &headers).await
        }))
    }

    /// Asks the gateway when the provider created the running version of the function.
    async fn creation_time_of_running_version(&self) -> Result<Value> {
        let status = self.testbed.functions.function_status(&self.function).await?;
        Ok(status.context("there is no such function")?["createdAt"].take())
    }

    async fn get_function_page(&self) -> Result<(u16, String)> {
        self.testbed.functions.get_function_page(&self.function).await
    }

    /// Asserts that no image was pushed under this tag.
    async fn assert_not_pushed(&self, tag: &str) -> Result<()> {
        let manifest = self
            .testbed
            .registry
            .get_manifest(&self.repository_path_of_function(), tag)
            .await?;
        ensure!(manifest.is_none(), "{tag} was pushed: {manifest:?}");
        Ok(())
    }

    /// Removes the manifest of this tag, which an earlier run of the tests may have pushed.
    async fn remove_image_manifest_if_any(&self, tag: &str) -> Result<()> {
        let repository = self.repository_path_of_function();
        let registry = &self.testbed.registry;
        if let Some(manifest) = registry.get_manifest(&repository, tag).await? {
            registry
                .delete_manifest_and_its_tags(&repository, &manifest.digest)
                .await?;
        }
        Ok(())
    }

    async fn remove_function(self) -> Result<()> {
        self.testbed.functions.remove_function(&self.function).await
    }
}

/// Starts a builder-fn whose gateway is the proxy.
async fn start_builder(
    testbed: &Testbed,
    proxy: &PausingProxy,
    settings: &[SettingNameAndValue],
    records_repository: Option<&str>,
) -> Result<BuilderProcess> {
    let mut all = vec![("gateway_url", proxy.url())];
    all.extend(records_repository.map(|records_repository| ("records_repository", records_repository)));
    all.extend_from_slice(settings);
    BuilderProcess::start_with_settings(testbed, &all).await
}

/// Asserts that a build was successful and its version runs; returns the result.
fn assert_built_and_ready(reply: &HttpReply) -> Result<Value> {
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    let result = reply.json_or_error_text();
    assert_eq!(result["status"], "success", "{result:#}");
    assert_eq!(result["deployment"]["status"], "ready", "{result:#}");
    Ok(result)
}

/// Asserts that a build ended because the build with this call ID is newer.
fn assert_superseded(reply: &HttpReply, newer_call_id: &str) -> Result<()> {
    ensure!(reply.status == 409, "{} {}", reply.status, reply.text);
    let result = reply.json_or_error_text();
    assert_eq!(result["status"], "failed", "{result:#}");
    assert_eq!(result["supersededBy"], newer_call_id, "{result:#}");
    Ok(())
}

/// Returns a call id that no earlier run has used: BuildKit remembers the builds of earlier runs.
fn unused_call_id(name: &str) -> Result<String> {
    let now = Timestamp::now();
    Ok(format!("{name}-{}", now.as_nanosecond()))
}

/// Returns the time so many seconds from now, in RFC 3339.
fn time_seconds_from_now(seconds: i64) -> Result<String> {
    let time = Timestamp::now().checked_add(SignedDuration::from_secs(seconds));
    Ok(time.context("no such time")?.to_string())
}
