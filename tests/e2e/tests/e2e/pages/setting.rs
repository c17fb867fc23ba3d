//! A builder of its own for each test, whose pages are opened through a proxy.

use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, client::HttpReply,
    prefix_proxy::PrefixProxyForwardingAsGet, testbed::Testbed,
};
use tokio::sync::RwLockReadGuard;

/// A builder below the path that the gateway has for it.
pub(super) struct BuilderBehindPrefixProxy {
    pub(super) testbed: Testbed,
    pub(super) builder: BuilderProcess,
    proxy: PrefixProxyForwardingAsGet,
    _parts: RwLockReadGuard<'static, ()>,
}

impl BuilderBehindPrefixProxy {
    /// Starts a builder and its proxy, while no test stops a part of the stack. `settings` override the builder's usual
    /// ones.
    pub(super) async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let parts = testbed.share_parts().await;
        let builder = BuilderProcess::start_with_settings(&testbed, settings).await?;
        let proxy = PrefixProxyForwardingAsGet::start(builder.url()).await?;
        Ok(Self {
            testbed,
            builder,
            proxy,
            _parts: parts,
        })
    }

    /// Returns a context that builds on busybox with these steps, none of which an earlier build has cached.
    pub(super) async fn uncached_context_with_steps(&self, steps: &str) -> Result<BuildContext> {
        let base = self.testbed.build_busybox_once_and_get_name().await?;
        let now = format!("{:?}", SystemTime::now());
        Ok(BuildContext::dockerfile(format!("FROM {base}\nCOPY now /now\n{steps}\n")).with_file("now", now))
    }

    /// Returns the name of an image of these tests.
    pub(super) fn image_name(&self, name: &str) -> String {
        self.testbed.image_name(&format!("e2e/{name}"), "1")
    }

    /// Builds a context as the call `id`, and waits for the answer.
    pub(super) async fn build(&self, id: &str, context: &BuildContext, image: &str) -> Result<HttpReply> {
        self.build_with_config(id, context, &json!({ "image": image }))
            .await
    }

    /// Builds a context with this config as the call `id`, and waits for the answer.
    pub(super) async fn build_with_config(
        &self,
        id: &str,
        context: &BuildContext,
        config: &Value,
    ) -> Result<HttpReply> {
        let tar = context.tar_with_config_last(config)?;
        let client = self.builder.build_client_with_own_key()?;
        client.post_signed_with_headers(tar, &[("X-Call-Id", id)]).await
    }

    /// Returns the URL of the page that an answer of the builder names.
    pub(super) fn page_url(&self, answer: &Value) -> Result<String> {
        let page = answer["page"].as_str();
        let page = page.with_context(|| format!("no page in {answer}"))?;
        Ok(format!("{}{page}", self.proxy.url()))
    }
}

/// Returns an ID that no other run has used.
pub(super) fn fresh_id(name: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("{name}-{}", now.as_nanos()))
}
