//! Attacks by build contexts whose links, names and special files point out of the context.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::crafted_layer::CraftedLayerBuilder;
use tar::EntryType;

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    daemon::root_or_first_disk_major_and_minor,
    world::AttackWorld,
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "context-links-out",
        attempts: "copies files of the daemon or the builder through symbolic links to absolute paths and `..`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "context-folder-links-out",
        attempts: "copies a folder behind a link to `/`, and a file below such a link",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "context-hard-link-out",
        attempts: "makes an entry a hard link to a file outside of the context",
        stopped_with: &[400],
    },
    AttackDescription {
        name: "context-names-out",
        attempts: "writes outside of the context by names with `..` and absolute names",
        stopped_with: &[200, 400],
    },
    AttackDescription {
        name: "context-through-a-link",
        attempts: "writes a file through a link that an earlier entry made",
        stopped_with: &[400],
    },
    AttackDescription {
        name: "context-devices",
        attempts: "packs the disk's device into the context, and reads it in a step",
        stopped_with: &[400],
    },
    AttackDescription {
        name: "context-fifo",
        attempts: "packs a FIFO as Dockerfile and as a file, so that its reader waits for ever",
        stopped_with: &[400],
    },
    AttackDescription {
        name: "dockerfile-links-out",
        attempts: "makes the Dockerfile and `.dockerignore` links to files of the builder, to see them in an error",
        stopped_with: &[200, 422],
    },
];

/// The content of a file that only this machine has.
const BAIT_FILE_CONTENT: &str = "content-of-a-file-of-the-machine";

#[tokio::test(flavor = "multi_thread")]
async fn no_context_reads_or_writes_outside_of_itself() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "contexts").await?;
    let attacks = ContextAttacks::prepare(&world)?;
    let mut outcomes = Outcomes::default();
    attacks.run_attacks(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Attacks by contexts, and a folder of this machine that builder-fn, BuildKit and the test can all see.
struct ContextAttacks<'a> {
    world: &'a AttackWorld,
    folder: String,
    /// The path of the bait's folder without its leading slash, behind enough `..` to leave any folder.
    climbing: String,
}

impl<'a> ContextAttacks<'a> {
    /// Writes the bait to the world's folder.
    fn prepare(world: &'a AttackWorld) -> Result<Self> {
        let folder = world
            .folder()
            .to_str()
            .context("the path is not UTF-8")?
            .to_owned();
        fs::write(world.folder().join("bait"), BAIT_FILE_CONTENT)?;
        let climbing = format!("{}{}", "../".repeat(12), folder.trim_start_matches('/'));
        Ok(Self {
            world,
            folder,
            climbing,
        })
    }

    async fn run_attacks(&self, outcomes: &mut Outcomes) -> Result<()> {
        let base = self.world.testbed.build_busybox_once_and_get_name().await?;
        let copies = |from: &str| {
            format!("FROM {base}\nCOPY {from} /got/\nRUN find /got -type f -exec head -c 99 {{}} +\n")
        };
        let (folder, climbing) = (&self.folder, &self.climbing);
        // The same Dockerfiles show the bait if it is in the context.
        for (path, from) in [
            ("context/a", "a"),
            ("context/a/bait", "a/bait"),
            ("context/x", "."),
        ] {
            let layer = CraftedLayerBuilder::new().with_file(path, 0o644, BAIT_FILE_CONTENT.as_bytes())?;
            let control = self.build_each_layer_as_context([layer], &copies(from)).await?;
            ensure!(
                control.has_succeeded(),
                "the bait in {path} is not shown: {control:?}"
            );
        }
        let layers = [
            CraftedLayerBuilder::new().with_symlink("context/a", &format!("{folder}/bait"))?,
            CraftedLayerBuilder::new().with_symlink("context/a", &format!("{climbing}/bait"))?,
        ];
        outcomes.add_outcome(
            "context-links-out",
            self.build_each_layer_as_context(layers, &copies("a")).await?,
        );
        let layers = [
            CraftedLayerBuilder::new().with_symlink("context/a", folder)?,
            CraftedLayerBuilder::new()
                .with_symlink("context/a", climbing)?
                .with_symlink("context/b", "/")?,
        ];
        outcomes.add_outcome(
            "context-folder-links-out",
            self.build_each_layer_as_context(layers, &copies("a/bait"))
                .await?,
        );
        let layers = [
            CraftedLayerBuilder::new().with_hard_link("context/a", &format!("{folder}/bait"))?,
            CraftedLayerBuilder::new().with_hard_link("context/a", &format!("context/{climbing}/bait"))?,
        ];
        outcomes.add_outcome(
            "context-hard-link-out",
            self.build_each_layer_as_context(layers, &copies("a")).await?,
        );

        let layers = [
            CraftedLayerBuilder::new().with_file(&format!("context/{climbing}/written"), 0o644, b"x")?,
            CraftedLayerBuilder::new().with_file(&format!("{folder}/written"), 0o644, b"x")?,
            CraftedLayerBuilder::new().with_file(&format!("context/{folder}/written"), 0o644, b"x")?,
        ];
        outcomes.add_outcome(
            "context-names-out",
            self.build_each_layer_as_context(layers, &copies(".")).await?,
        );
        let layers = [
            CraftedLayerBuilder::new()
                .with_symlink("context/a", folder)?
                .with_file("context/a/written", 0o644, b"x")?,
            CraftedLayerBuilder::new()
                .with_symlink("context/a", climbing)?
                .with_file("context/a/written", 0o644, b"x")?,
        ];
        outcomes.add_outcome(
            "context-through-a-link",
            self.build_each_layer_as_context(layers, &copies(".")).await?,
        );

        let number = root_or_first_disk_major_and_minor()?;
        let reads = format!(
            "FROM {base}\nCOPY . /got\nRUN dd if=/got/a bs=512 count=1 2>/dev/null | wc -c | grep 512 && echo {} | rev\n",
            BAIT_FILE_CONTENT.chars().rev().collect::<String>()
        );
        let layers = [CraftedLayerBuilder::new().with_device("context/a", EntryType::Block, number)?];
        outcomes.add_outcome(
            "context-devices",
            self.build_each_layer_as_context(layers, &reads).await?,
        );

        let fifo = |name: &str| CraftedLayerBuilder::new().with_device(name, EntryType::Fifo, (0, 0));
        let as_file = self
            .build_each_layer_as_context([fifo("context/a")?], &copies("a"))
            .await?;
        let as_dockerfile = self
            .build_each_layer_as_context([fifo("context/Dockerfile")?], "")
            .await?;
        outcomes.add_outcome("context-fifo", as_file.and(as_dockerfile));

        let target = format!("{folder}/bait");
        let layers = [
            CraftedLayerBuilder::new().with_symlink("context/Dockerfile", &target)?,
            CraftedLayerBuilder::new().with_symlink("context/Dockerfile", &format!("{climbing}/bait"))?,
            CraftedLayerBuilder::new()
                .with_symlink("context/.dockerignore", &target)?
                .with_file("context/Dockerfile", 0o644, b"FROM scratch\nCOPY . /\n")?,
        ];
        outcomes.add_outcome(
            "dockerfile-links-out",
            self.build_each_layer_as_context(layers, "").await?,
        );
        Ok(())
    }

    /// Builds each tar, with this Dockerfile unless it is empty. The attack succeeded if an answer has the bait, if a
    /// file was written to the folder, or if the build ran until its time limit: no honest one takes so long.
    async fn build_each_layer_as_context<const N: usize>(
        &self,
        layers: [CraftedLayerBuilder; N],
        dockerfile_or_empty: &str,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::before_first_attempt();
        for layer in layers {
            let config = json!({
                "image": self.world.mallory.image("context", "1"), "skipPush": true, "noCache": true, "timeout": "60s",
            });
            let mut layer =
                layer.with_file("com.openfaas.docker.config", 0o644, config.to_string().as_bytes())?;
            if !dockerfile_or_empty.is_empty() {
                layer = layer.with_file("context/Dockerfile", 0o644, dockerfile_or_empty.as_bytes())?;
            }
            let tar = layer.finish()?.tar;
            let reply = self.world.mallory.client.post_signed(tar).await?;
            let written = self.world.folder().join("written").exists();
            let succeeded = written
                || reply.text.contains(BAIT_FILE_CONTENT)
                || reply.text.contains("ran past its time limit");
            outcome = outcome.and(Outcome::of_reply(succeeded, &reply));
            if outcome.has_succeeded() {
                break;
            }
        }
        Ok(outcome)
    }
}
