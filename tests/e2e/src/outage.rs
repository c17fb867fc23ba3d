//! An outage of one part of the stack, which a test begins and ends.
//!
//! A part that the launcher started is stopped and started. A part that the launcher did not start is left alone:
//! there, a separate builder-fn runs behind a proxy that drops connections, which looks the same to builder-fn.

use anyhow::{Context as _, Result};
use slipway_stack::StackPart;

use crate::{builder_process::BuilderProcess, client::SigningClient, tcp_proxy::TcpProxy, testbed::Testbed};

/// The builder's `deploy_timeout` during an outage of the gateway. The stack's own builder-fn sends hand-overs for
/// minutes.
const OUTAGE_DEPLOY_TIMEOUT: &str = "5s";

/// An outage of one part of the stack, and the builder-fn that is affected by it.
pub struct PartOutage<'a> {
    testbed: &'a Testbed,
    part: StackPart,
    /// The affected builder-fn of an outage of the gateway, if the launcher runs the part.
    short_timeout: Option<BuilderProcess>,
    /// A separate builder-fn behind proxies; `None` if the launcher runs the part and the stack's own
    /// builder-fn is affected.
    proxied: Option<BuilderBehindBuildkitAndGatewayProxies>,
}

/// builder-fn behind proxies to BuildKit and to the gateway.
struct BuilderBehindBuildkitAndGatewayProxies {
    builder: BuilderProcess,
    buildkit: TcpProxy,
    gateway: TcpProxy,
}

impl<'a> PartOutage<'a> {
    /// Starts the builder-fn that an outage of BuildKit or the gateway will affect, unless it is the stack's own. The
    /// part stays available.
    pub async fn start_affected_builder_unless_stacks_own(
        testbed: &'a Testbed,
        part: StackPart,
    ) -> Result<Self> {
        let proxied = match testbed.stack.can_stop_parts() {
            true => None,
            false => Some(BuilderBehindBuildkitAndGatewayProxies::start(testbed).await?),
        };
        let short_timeout = match part {
            StackPart::Gateway if proxied.is_none() => Some(
                BuilderProcess::start_with_settings(testbed, &[("deploy_timeout", OUTAGE_DEPLOY_TIMEOUT)])
                    .await?,
            ),
            _ => None,
        };
        Ok(Self {
            testbed,
            part,
            short_timeout,
            proxied,
        })
    }

    /// Returns a client of the builder-fn that the outage affects.
    pub fn builder_client(&self) -> Result<SigningClient> {
        match (&self.short_timeout, &self.proxied) {
            (Some(builder), _) => builder.build_client_with_own_key(),
            (None, Some(proxied)) => proxied.builder.build_client_with_own_key(),
            (None, None) => Ok(self.testbed.builder.clone()),
        }
    }

    /// Makes the part unavailable.
    pub async fn make_unavailable(&self) -> Result<()> {
        match &self.proxied {
            None => self
                .testbed
                .stack
                .stop_part(self.part)
                .await
                .context("stopping a part"),
            Some(proxied) => {
                proxied
                    .proxy_for(self.part)?
                    .drop_connections_until_accepted_again();
                Ok(())
            }
        }
    }

    /// Makes the part available again.
    pub async fn make_available(&self) -> Result<()> {
        match &self.proxied {
            None => self
                .testbed
                .stack
                .start_part(self.part)
                .await
                .context("starting a part"),
            Some(proxied) => {
                proxied.proxy_for(self.part)?.accept_connections_again();
                Ok(())
            }
        }
    }

    /// Returns the number of open connections to BuildKit's TCP port in the stack, or through the proxy to BuildKit.
    pub fn open_buildkit_connection_count(&self) -> Result<usize> {
        match &self.proxied {
            None => self.testbed.buildkit_connection_count(),
            Some(proxied) => Ok(proxied.buildkit.open_connection_count()),
        }
    }
}

impl BuilderBehindBuildkitAndGatewayProxies {
    async fn start(testbed: &Testbed) -> Result<Self> {
        let buildkit = TcpProxy::start_to(&testbed.stack.buildkit_host).await?;
        let gateway = TcpProxy::start_to(&testbed.stack.gateway.url).await?;
        let settings = [
            ("buildkit_url", buildkit.url()),
            ("gateway_url", gateway.url()),
            ("deploy_timeout", OUTAGE_DEPLOY_TIMEOUT),
        ];
        let builder = BuilderProcess::start_with_settings(testbed, &settings).await?;
        Ok(Self {
            builder,
            buildkit,
            gateway,
        })
    }

    fn proxy_for(&self, part: StackPart) -> Result<&TcpProxy> {
        match part {
            StackPart::Buildkit => Ok(&self.buildkit),
            StackPart::Gateway => Ok(&self.gateway),
            other => anyhow::bail!("no proxy for {other:?}"),
        }
    }
}
