//! builder-fn and `buildctl` on one daemon, to compare what they build.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    buildctl::Buildctl,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    client::Reply,
    context_tree::{Node, read_image},
    testbed::Testbed,
};

/// The files of an image by path.
pub type Files = BTreeMap<String, Node>;

/// The result of one client: the image's files, or the reason why there is no image.
pub type Outcome = Result<Files, String>;

/// Both clients, builder-fn and `buildctl`, and a daemon of their own.
pub struct Comparison {
    /// The stack with the registry.
    pub testbed: Testbed,
    /// The BuildKit daemon of both clients.
    pub daemon: BuildkitDaemon,
    /// The builder-fn process that uses the daemon.
    pub builder: BuilderProcess,
    buildctl: Buildctl,
    repository: &'static str,
}

impl Comparison {
    /// Starts a daemon and builder-fn. Both clients push to `repository` of the stack's registry.
    pub async fn start(repository: &'static str) -> Result<Self> {
        let testbed = Testbed::find()?;
        let daemon = BuildkitDaemon::start(&testbed, "").await?;
        let builder = BuilderProcess::with_settings(&testbed, &[("buildkit_url", &daemon.url())]).await?;
        let buildctl = Buildctl::new(&testbed, &daemon)?;
        Ok(Self {
            testbed,
            daemon,
            builder,
            buildctl,
            repository,
        })
    }

    /// Returns the config for builder-fn's image with this tag. The build uses no cache, because its keys depend on
    /// content only.
    pub fn config(&self, tag: &str) -> Value {
        json!({ "image": self.testbed.image(self.repository, tag), "noCache": true })
    }

    /// Builds a tar with builder-fn; `tag` is the one in the tar's [`config`](Self::config).
    pub async fn post(&self, tar: Vec<u8>, tag: &str) -> Result<(Reply, Outcome)> {
        let reply = self.builder.client()?.post(tar).await?;
        let outcome = match reply.status {
            200 => Ok(self.files(tag).await?),
            status => Err(format!("{status}: {}", reply.field("error"))),
        };
        Ok((reply, outcome))
    }

    /// Builds a folder with `buildctl`, under this tag, with these options of the frontend.
    pub async fn buildctl(&self, folder: &Path, tag: &str, options: &[&str]) -> Result<Outcome> {
        let image = self.testbed.image(self.repository, tag);
        match self.buildctl.build(folder, &image, options) {
            Ok(()) => Ok(Ok(self.files(tag).await?)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    async fn files(&self, tag: &str) -> Result<Files> {
        let files = read_image(&self.testbed.registry, self.repository, tag).await;
        files.with_context(|| format!("reading {}:{tag}", self.repository))
    }
}
