//! A part of the stack that a test takes away for a while and gives back.
//!
//! Parts of a stack of the launcher's are stopped and started. Those of somebody else's are not touched: there, builder-fn runs
//! beside them, behind a cable that is cut and mended, which is all that it can see of a part that is away.

use anyhow::{Context as _, Result};
use slipway_stack::Part;

use crate::{cable::Cable, client::Client, plain::PlainBuilder, shared::Bench};

/// builder-fn, and the part.
pub struct Away<'a> {
    bench: &'a Bench,
    part: Part,
    /// Nothing where the stack's own part is stopped, and the stack's own builder-fn is asked.
    beside: Option<Beside>,
}

/// builder-fn behind cables.
struct Beside {
    builder: PlainBuilder,
    buildkit: Cable,
    gateway: Cable,
}

impl<'a> Away<'a> {
    /// Finds out how this stack's BuildKit or gateway can be taken away.
    pub async fn of(bench: &'a Bench, part: Part) -> Result<Self> {
        let beside = match bench.stack.has_parts() {
            true => None,
            false => Some(Beside::start(bench).await?),
        };
        Ok(Self { bench, part, beside })
    }

    /// builder-fn, for which the part is away when it is.
    pub fn builder(&self) -> Result<Client> {
        match &self.beside {
            None => Ok(self.bench.builder.clone()),
            Some(beside) => beside.builder.client(),
        }
    }

    /// Takes the part away.
    pub async fn take(&self) -> Result<()> {
        match &self.beside {
            None => self.bench.stack.stop(self.part).await.context("stopping a part"),
            Some(beside) => {
                beside.cable_of(self.part)?.cut();
                Ok(())
            }
        }
    }

    /// Gives it back.
    pub async fn give_back(&self) -> Result<()> {
        match &self.beside {
            None => self.bench.stack.start(self.part).await.context("starting a part"),
            Some(beside) => {
                beside.cable_of(self.part)?.mend();
                Ok(())
            }
        }
    }

    /// How many connections builder-fn has open to BuildKit: one a build.
    pub fn sessions(&self) -> Result<usize> {
        match &self.beside {
            None => self.bench.sessions(),
            Some(beside) => Ok(beside.buildkit.connections()),
        }
    }
}

impl Beside {
    async fn start(bench: &Bench) -> Result<Self> {
        let buildkit = Cable::to(&bench.stack.buildkit_host).await?;
        let gateway = Cable::to(&bench.stack.gateway.url).await?;
        let settings = [("buildkit_url", buildkit.url()), ("gateway_url", gateway.url())];
        let builder = PlainBuilder::with_settings(bench, &settings).await?;
        Ok(Self {
            builder,
            buildkit,
            gateway,
        })
    }

    fn cable_of(&self, part: Part) -> Result<&Cable> {
        match part {
            Part::Buildkit => Ok(&self.buildkit),
            Part::Gateway => Ok(&self.gateway),
            other => anyhow::bail!("no cable leads to {other:?}"),
        }
    }
}
