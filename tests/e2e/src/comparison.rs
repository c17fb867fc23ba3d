//! builder-fn and `buildctl` on one daemon, to compare what they build.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    buildctl::Buildctl,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    client::HttpReply,
    context_tree::{TreeEntry, read_image_files_if_layers_only_add},
    testbed::Testbed,
};

/// The files of an image by path.
pub type ImageFiles = BTreeMap<String, TreeEntry>;

/// The result of one client: the image's files, or the reason why there is no image.
pub type ClientOutcome = Result<ImageFiles, String>;

/// Both clients, builder-fn and `buildctl`, and a daemon of their own.
pub struct ClientComparison {
    /// The stack with the registry.
    pub testbed: Testbed,
    /// The BuildKit daemon of both clients.
    pub daemon: BuildkitDaemon,
    /// The builder-fn process that uses the daemon.
    pub builder: BuilderProcess,
    buildctl: Buildctl,
    repository: &'static str,
}

impl ClientComparison {
    /// Starts a daemon and builder-fn. Both clients push to `repository` of the stack's registry.
    pub async fn start(repository: &'static str) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let daemon = BuildkitDaemon::start(&testbed, "").await?;
        let builder =
            BuilderProcess::start_with_settings(&testbed, &[("buildkit_url", &daemon.socket_url())]).await?;
        let buildctl = Buildctl::new(&testbed, &daemon)?;
        Ok(Self {
            testbed,
            daemon,
            builder,
            buildctl,
            repository,
        })
    }

    /// Returns the config for builder-fn's image with this tag. The build uses no cache, because the keys of the cache
    /// depend on content only.
    pub fn config_without_cache(&self, tag: &str) -> Value {
        json!({ "image": self.testbed.image_name(self.repository, tag), "noCache": true })
    }

    /// Builds a tar with builder-fn; `tag` is the one in the tar's
    /// [`config_without_cache`](Self::config_without_cache).
    pub async fn build_with_builder(&self, tar: Vec<u8>, tag: &str) -> Result<(HttpReply, ClientOutcome)> {
        let reply = self.builder.build_client_with_own_key()?.post_signed(tar).await?;
        let outcome = match reply.status {
            200 => Ok(self.files_of_image(tag).await?),
            status => Err(format!("{status}: {}", reply.text_field("error"))),
        };
        Ok((reply, outcome))
    }

    /// Builds a folder with `buildctl`, under this tag, with these options of the frontend.
    pub async fn build_with_buildctl(
        &self,
        folder: &Path,
        tag: &str,
        options: &[&str],
    ) -> Result<ClientOutcome> {
        let image = self.testbed.image_name(self.repository, tag);
        match self.buildctl.build_uncached_and_push(folder, &image, options) {
            Ok(()) => Ok(Ok(self.files_of_image(tag).await?)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    async fn files_of_image(&self, tag: &str) -> Result<ImageFiles> {
        let files = read_image_files_if_layers_only_add(&self.testbed.registry, self.repository, tag).await;
        files.with_context(|| format!("reading {}:{tag}", self.repository))
    }
}
