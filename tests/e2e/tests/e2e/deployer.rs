//! Tests deployer-fn on the real gateway and provider, with both update strategies.
//!
//! Most cases run twice. The embedded provider updates functions with the strategy `rolling` without a gap: a failed
//! update changes nothing. It updates those with `recreate` as faasd 0.19 does: it deletes the function first, and a
//! failed update leaves nothing. faasd itself treats all functions like that.

mod gateway_tls;
mod kills;
mod outcomes;
mod restarts;
mod tenants;
mod unverified;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, client::HttpReply, deployer_process::DeployerProcess,
    pausing_proxy::PausingProxy, tcp_proxy::TcpProxy, testbed::Testbed,
};
use slipway_stack::StackPart;
use tokio::sync::{OnceCell, RwLockReadGuard, RwLockWriteGuard};

/// The annotation that selects the embedded provider's update strategy for one function.
const STRATEGY_ANNOTATION: &str = "dev.slipway.update-strategy";

/// Makes two tests of each function, one for each update strategy.
macro_rules! for_both_update_strategies {
    ($($case:ident),* $(,)?) => {
        mod rolling {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                super::$case("rolling").await
            })*
        }
        mod recreate {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                super::$case("recreate").await
            })*
        }
    };
}
use for_both_update_strategies;

/// The images that the tests deploy, by digest.
#[derive(Debug)]
struct DeployerTestImages {
    /// An image whose function answers with the text `first`.
    first: String,
    /// An image whose function answers with the text `second`.
    second: String,
    /// An image whose container exits with an error at once.
    crash: String,
    /// An image whose container runs and never listens.
    silent: String,
    /// The name of an image that is not in the registry.
    absent: String,
}

/// The images, once this process has built them.
static DEPLOYED_IMAGES: OnceCell<DeployerTestImages> = OnceCell::const_new();

impl DeployerTestImages {
    /// Builds and pushes all images but the absent one.
    async fn build_and_push_all_but_absent(testbed: &Testbed) -> Result<Self> {
        let base = testbed.build_busybox_once_and_get_name().await?;
        let runs = |command: &str| {
            BuildContext::dockerfile(format!(
                "FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"{command}\"]\n"
            ))
        };
        let repository = |name: &str| format!("{}/e2e/deployed/{name}", testbed.stack.registry.host);
        let pushed = async |name: &str, source: BuildContext| {
            let tar = source.tar_with_config_last(&json!({ "image": format!("{}:1", repository(name)) }))?;
            let reply = testbed.builder.post_signed(tar).await?;
            anyhow::ensure!(reply.status == 200, "{name}: {} {}", reply.status, reply.text);
            anyhow::Ok(format!("{}@{}", repository(name), reply.text_field("digest")))
        };
        Ok(Self {
            first: pushed("first", BuildContext::static_page_function(base, "first")).await?,
            second: pushed("second", BuildContext::static_page_function(base, "second")).await?,
            crash: pushed("crash", runs("exit 3")).await?,
            silent: pushed("silent", runs("trap 'exit 0' TERM; sleep 3600 & wait")).await?,
            absent: format!("{}@sha256:{}", repository("first"), "0".repeat(64)),
        })
    }
}

/// A function under test, and a deployer with a pausing proxy to the gateway.
struct DeployerFixture {
    testbed: Testbed,
    images: &'static DeployerTestImages,
    proxy: PausingProxy,
    /// The TCP proxy between the pausing proxy and the gateway; `None` if the launcher runs the stack's parts.
    tcp_proxy: Option<TcpProxy>,
    deployer: DeployerProcess,
    settings: Vec<SettingNameAndValue>,
    name: String,
    strategy: &'static str,
    _parts: PartsLockGuard,
}

/// The lock on the stack's parts, held for the whole test.
enum PartsLockGuard {
    Shared { _held: RwLockReadGuard<'static, ()> },
    Exclusive { _held: RwLockWriteGuard<'static, ()> },
}

type SettingNameAndValue = (&'static str, &'static str);

impl DeployerFixture {
    /// Removes the function and starts a deployer, with the shared lock on the parts.
    async fn open_sharing_parts(
        case: &str,
        strategy: &'static str,
        settings: &[SettingNameAndValue],
    ) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = PartsLockGuard::Shared {
            _held: testbed.share_parts().await,
        };
        Self::open_with_lock(testbed, parts, case, strategy, settings).await
    }

    /// Removes the function and starts a deployer, with the exclusive lock, for tests that stop parts.
    async fn open_exclusively(
        case: &str,
        strategy: &'static str,
        settings: &[SettingNameAndValue],
    ) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = PartsLockGuard::Exclusive {
            _held: testbed.lock_parts().await,
        };
        Self::open_with_lock(testbed, parts, case, strategy, settings).await
    }

    async fn open_with_lock(
        testbed: Testbed,
        parts: PartsLockGuard,
        case: &str,
        strategy: &'static str,
        settings: &[SettingNameAndValue],
    ) -> Result<Self> {
        let images = DEPLOYED_IMAGES
            .get_or_try_init(|| DeployerTestImages::build_and_push_all_but_absent(&testbed))
            .await?;
        let name = format!("{case}-{strategy}");
        testbed.functions.remove_function(&name).await?;
        let tcp_proxy = match testbed.stack.can_stop_parts() {
            true => None,
            false => Some(TcpProxy::start_to(&testbed.stack.gateway.url).await?),
        };
        let gateway = tcp_proxy
            .as_ref()
            .map_or(testbed.stack.gateway.url.as_str(), TcpProxy::url);
        let proxy = PausingProxy::start_to_gateway(gateway).await?;
        let deployer = DeployerProcess::start(&testbed, proxy.url(), settings).await?;
        Ok(Self {
            testbed,
            images,
            proxy,
            tcp_proxy,
            deployer,
            settings: settings.to_vec(),
            name,
            strategy,
            _parts: parts,
        })
    }

    /// Stops the provider, or drops all connections to the gateway if the launcher does not run the provider.
    async fn stop_provider_or_cut_off_gateway(&self) -> Result<()> {
        match &self.tcp_proxy {
            None => Ok(self.testbed.stack.stop_part(StackPart::Provider).await?),
            Some(tcp_proxy) => {
                tcp_proxy.drop_connections_until_accepted_again();
                Ok(())
            }
        }
    }

    /// Starts the provider again, or lets new connections to the gateway through.
    async fn start_provider_or_reconnect_gateway(&self) -> Result<()> {
        match &self.tcp_proxy {
            None => Ok(self.testbed.stack.start_part(StackPart::Provider).await?),
            Some(tcp_proxy) => {
                tcp_proxy.accept_connections_again();
                Ok(())
            }
        }
    }

    /// Returns a hand-over as builder-fn sends it. A greater number is a newer build.
    fn hand_over_of_build(&self, image: &str, build_number: usize) -> Value {
        json!({
            "image": image,
            "callId": format!("{}-{build_number}", self.name),
            "builtAt": format!("2026-01-01T00:{:02}:{:02}Z", build_number / 60, build_number % 60),
            "deploy": {
                "service": self.name,
                "envVars": { "NUMBER": build_number.to_string() },
                "annotations": { STRATEGY_ANNOTATION: self.strategy },
            },
        })
    }

    /// Deploys this image as the build with this number.
    async fn deploy_build(&self, image: &str, build_number: usize) -> Result<HttpReply> {
        self.deployer
            .send_hand_over_and_get_status_and_text(&self.hand_over_of_build(image, build_number))
            .await
    }

    /// Deploys this image and asserts that the function becomes ready.
    async fn deploy_build_and_assert_ready(&self, image: &str, build_number: usize) -> Result<Value> {
        let reply = self.deploy_build(image, build_number).await?;
        anyhow::ensure!(
            reply.status == 200,
            "{build_number}: {} {}",
            reply.status,
            reply.text
        );
        let report = reply.json_or_error_text();
        assert_eq!(report["status"], "ready", "{report:#}");
        assert_eq!(report["image"], image, "{report:#}");
        assert_eq!(report["running"]["image"], image, "{report:#}");
        self.assert_build_runs_and_answers(image, build_number).await?;
        Ok(report)
    }

    /// Asserts that the provider reports the build with this number and that it answers.
    async fn assert_build_runs_and_answers(&self, image: &str, build_number: usize) -> Result<()> {
        let status = self.function_status().await?;
        assert_eq!(status["image"], image, "{status:#}");
        assert_eq!(
            status["envVars"]["NUMBER"],
            build_number.to_string(),
            "{status:#}"
        );
        let page = match image {
            image if image == self.images.first => "first",
            _ => "second",
        };
        let answer = self.testbed.functions.get_function_page(&self.name).await?;
        assert_eq!(answer, (200, page.to_owned()));
        Ok(())
    }

    async fn function_status(&self) -> Result<Value> {
        let status = self.testbed.functions.function_status(&self.name).await?;
        status.with_context(|| format!("there is no function {}", self.name))
    }

    /// Asks the gateway, and returns whether there is no such function.
    async fn function_is_absent(&self) -> Result<bool> {
        Ok(self
            .testbed
            .functions
            .function_status(&self.name)
            .await?
            .is_none())
    }

    /// Starts another deployer, without the memory of the first, and kills the first.
    async fn start_new_deployer_then_kill_old(mut self) -> Result<Self> {
        let deployer = DeployerProcess::start(&self.testbed, self.proxy.url(), &self.settings).await?;
        std::mem::replace(&mut self.deployer, deployer).kill()?;
        Ok(self)
    }

    async fn remove_function(self) -> Result<()> {
        self.testbed.functions.remove_function(&self.name).await
    }
}

/// Asserts that a deployment was rolled back or refused, and that the image of before runs. With the strategy
/// `rolling`, the embedded provider detects that a version does not start and rejects the update, so that nothing
/// changes.
fn assert_rolled_back_or_refused(reply: &HttpReply, image_before: &str) {
    let report = reply.json_or_error_text();
    assert_eq!(reply.status, 422, "{report:#}");
    let status = match report["changed"].as_bool() {
        Some(true) => "rolled_back",
        _ => report["status"].as_str().unwrap_or_default(),
    };
    assert!(matches!(status, "rolled_back" | "refused"), "{report:#}");
    assert_eq!(report["status"], status, "{report:#}");
    assert_eq!(report["running"]["image"], image_before, "{report:#}");
}

/// Returns the reasons of a report, joined.
fn joined_reasons(report: &Value) -> String {
    let reasons = report["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}
