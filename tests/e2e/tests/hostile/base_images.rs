//! Attacks by base images that no tool would make: with devices, with names and links that point out of the image, with
//! whiteouts, and with huge user databases.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    client::HttpReply, crafted_layer::CraftedLayerBuilder, flood_benchmark::peak_memory_bytes,
    network_namespace::find_first_process,
};
use tar::EntryType;

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    daemon::root_or_first_disk_major_and_minor,
    world::AttackWorld,
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "base-image-with-the-disk",
        attempts: "reads the machine's disk through a device in a base image",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "base-image-with-memory-devices",
        attempts: "reads the machine's memory and ports through devices in a base image",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "base-image-names-out",
        attempts: "writes outside of a layer by names with `..` and absolute names",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "base-image-hard-link-out",
        attempts: "makes a file of a layer a hard link to a file of the machine",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "base-image-through-a-link",
        attempts: "writes a file through a link that the same layer made",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "base-image-whiteout-out",
        attempts: "removes a file of the machine by a whiteout with `..` in its name, and behind a link",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "base-image-with-setuid",
        attempts: "becomes root of the machine by a setuid program in a step of another user",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "base-image-with-huge-passwd",
        attempts: "has the daemon read 256 MiB of /etc/passwd, packed into 1 MiB, for `USER`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "base-image-with-huge-group",
        attempts: "has the daemon read 256 MiB of /etc/group on one line, for `COPY --chown`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "base-image-with-a-device-as-passwd",
        attempts: "has the daemon read /dev/zero or a FIFO as /etc/passwd, for `USER`",
        stopped_with: &[422],
    },
];

/// The number of attacks that reach for the machine; the others exhaust the daemon.
const MACHINE_ATTACK_COUNT: usize = 7;

/// The content of a file that only this machine has.
const BAIT_FILE_CONTENT: &str = "content-of-a-file-of-the-machine";

/// The most builds whose effect on the daemon is measured, until one is within the limits. An attack has the same
/// effect each time; the daemon's own garbage, and the builds of others beside it, have not.
const MEASURED_BUILDS_MAX: usize = 3;

/// The limit on the memory that one base image may add to the daemon's peak, in bytes.
const MAX_MEMORY_GROWTH_BYTES: u64 = 128 << 20;

/// The longest time that the daemon may take to read a user database.
const MAX_USER_DATABASE_BUILD_TIME: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn no_base_image_reaches_the_machine() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "base-images").await?;
    let mut outcomes = Outcomes::default();
    let images = BaseImageAttacks::prepare(&world)?;
    images.reach_the_machine(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(&ATTACKS[..MACHINE_ATTACK_COUNT])
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_database_of_a_base_image_exhausts_the_daemon() -> Result<()> {
    let world = AttackWorld::start().await?;
    // The memory of the daemon is measured, so no other attack may run beside these.
    let _alone = world.testbed.lock_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "user-databases").await?;
    let mut outcomes = Outcomes::default();
    BaseImageAttacks::prepare(&world)?
        .exhaust_the_daemon(&mut outcomes)
        .await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(&ATTACKS[MACHINE_ATTACK_COUNT..])
}

/// Attacks by base images, and a folder of this machine that they try to reach.
struct BaseImageAttacks<'a> {
    world: &'a AttackWorld,
    folder: String,
    climbing: String,
    busybox: Vec<u8>,
}

impl<'a> BaseImageAttacks<'a> {
    fn prepare(world: &'a AttackWorld) -> Result<Self> {
        let folder = world
            .folder()
            .to_str()
            .context("the path is not UTF-8")?
            .to_owned();
        fs::write(world.folder().join("bait"), BAIT_FILE_CONTENT)?;
        fs::write(world.folder().join("victim"), BAIT_FILE_CONTENT)?;
        let climbing = format!("{}{}", "../".repeat(24), folder.trim_start_matches('/'));
        let busybox = fs::read("/bin/busybox").context("/bin/busybox")?;
        Ok(Self {
            world,
            folder,
            climbing,
            busybox,
        })
    }

    /// Returns a layer with a setuid busybox, and with links to it for a shell and other programs.
    fn layer_with_setuid_shell(&self) -> Result<CraftedLayerBuilder> {
        let names = ["sh", "cat", "dd", "wc", "id", "ls", "grep"];
        let layer = CraftedLayerBuilder::new().with_file("bin/busybox", 0o4755, &self.busybox)?;
        names.into_iter().try_fold(layer, |layer, name| {
            layer.with_symlink(&format!("bin/{name}"), "busybox")
        })
    }

    /// Pushes the layer as a base image, and builds these instructions upon it.
    async fn push_layer_and_build_on_it(
        &self,
        name: &str,
        layer: CraftedLayerBuilder,
        instructions: &str,
    ) -> Result<HttpReply> {
        let image = self.push_base_image_readable_by_both_tenants(name, layer).await?;
        self.build_on_image(&image, instructions).await
    }

    /// Pushes an image with this layer as `hostile/base/NAME:1`, and returns its name.
    async fn push_base_image_readable_by_both_tenants(
        &self,
        name: &str,
        layer: CraftedLayerBuilder,
    ) -> Result<String> {
        let repository = format!("hostile/base/{name}");
        let config: Value = json!({ "Env": ["PATH=/bin"] });
        self.world
            .testbed
            .registry
            .push_image(&repository, "1", layer, config)
            .await?;
        Ok(self.world.testbed.image_name(&repository, "1"))
    }

    /// Builds these instructions upon a base image, as the attacker.
    async fn build_on_image(&self, image: &str, instructions: &str) -> Result<HttpReply> {
        self.world
            .mallory
            .build_dockerfile_without_push_or_cache("on-base", format!("FROM {image}\n{instructions}\n"))
            .await
    }

    /// Builds upon base images with devices, names, links and whiteouts that point out of the image.
    async fn reach_the_machine(&self, outcomes: &mut Outcomes) -> Result<()> {
        let (folder, climbing) = (&self.folder, &self.climbing);
        // A base image of this kind runs its programs, and shows the bait if it has it.
        let layer = self
            .layer_with_setuid_shell()?
            .with_file("got", 0o644, BAIT_FILE_CONTENT.as_bytes())?;
        let reply = self
            .push_layer_and_build_on_it(
                "control",
                layer,
                "RUN dd if=/got bs=512 count=1 | wc -c | grep 32 && cat /got",
            )
            .await?;
        ensure!(
            reply.status == 200 && self.outcome_by_bait_or_written_file(&reply).has_succeeded(),
            "the bait in a base image is not shown: {}",
            reply.text
        );
        let layer = self.layer_with_setuid_shell()?.with_device(
            "disk",
            EntryType::Block,
            root_or_first_disk_major_and_minor()?,
        )?;
        let reply = self
            .push_layer_and_build_on_it(
                "disk",
                layer,
                "RUN dd if=/disk bs=512 count=1 | wc -c | grep 512 && echo got $((1000 + 234))",
            )
            .await?;
        outcomes.add_outcome(
            "base-image-with-the-disk",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );
        let layer = self
            .layer_with_setuid_shell()?
            .with_device("mem", EntryType::Char, (1, 1))?
            .with_device("port", EntryType::Char, (1, 4))?
            .with_device("kmsg", EntryType::Char, (1, 11))?;
        let reads = "RUN for at in mem port kmsg; do dd if=/$at bs=1 count=1 | wc -c | grep 1 && echo got $((1000 + 234)); done; true";
        let reply = self.push_layer_and_build_on_it("memory", layer, reads).await?;
        outcomes.add_outcome(
            "base-image-with-memory-devices",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );

        let layer = self
            .layer_with_setuid_shell()?
            .with_file(&format!("{climbing}/written"), 0o644, b"x")?
            .with_file(&format!("etc/{climbing}/written"), 0o644, b"x")?
            .with_file(&format!("{folder}/written"), 0o644, b"x")?;
        let reply = self
            .push_layer_and_build_on_it("names", layer, "RUN true")
            .await?;
        outcomes.add_outcome(
            "base-image-names-out",
            self.outcome_by_bait_or_written_file(&reply),
        );
        let mut outcome = Outcome::before_first_attempt();
        for (name, target) in [("hard-link", climbing), ("hard-link-absolute", folder)] {
            let layer = self
                .layer_with_setuid_shell()?
                .with_hard_link("got", &format!("{target}/bait"))?;
            let reply = self
                .push_layer_and_build_on_it(name, layer, "RUN cat /got")
                .await?;
            outcome = outcome.and(self.outcome_by_bait_or_written_file(&reply));
        }
        outcomes.add_outcome("base-image-hard-link-out", outcome);
        let layer = self
            .layer_with_setuid_shell()?
            .with_symlink("out", folder)?
            .with_file("out/written", 0o644, b"x")?
            .with_symlink("up", climbing)?
            .with_file("up/written", 0o644, b"x")?;
        let reply = self
            .push_layer_and_build_on_it("through-a-link", layer, "RUN true")
            .await?;
        outcomes.add_outcome(
            "base-image-through-a-link",
            self.outcome_by_bait_or_written_file(&reply),
        );
        let layer = self
            .layer_with_setuid_shell()?
            .with_file(&format!("{climbing}/.wh.victim"), 0o644, b"")?
            .with_symlink("out", folder)?
            .with_file("out/.wh.victim", 0o644, b"")?
            .with_file("out/.wh..wh..opq", 0o644, b"")?;
        let reply = self
            .push_layer_and_build_on_it("whiteout", layer, "RUN true")
            .await?;
        let removed = !self.world.folder().join("victim").exists();
        outcomes.add_outcome("base-image-whiteout-out", Outcome::of_reply(removed, &reply));

        // Root of the step is root without rights over the machine: it must not read the kernel's memory or mount.
        let layer = self.layer_with_setuid_shell()?;
        let steps = "USER 1000\nRUN busybox su -c 'busybox mount -t tmpfs none /bin' ; busybox dd if=/proc/kcore bs=1 count=1 | wc -c | grep 1 && echo got $((1000 + 234)); true";
        let reply = self.push_layer_and_build_on_it("setuid", layer, steps).await?;
        outcomes.add_outcome(
            "base-image-with-setuid",
            Outcome::succeeded_if_reply_contains(&reply, "got 1234"),
        );
        Ok(())
    }

    /// Returns the outcome of a build: the attack succeeded if it wrote to the bait's folder, or the answer has the
    /// bait.
    fn outcome_by_bait_or_written_file(&self, reply: &HttpReply) -> Outcome {
        let written = self.world.folder().join("written").exists();
        Outcome::of_reply(written || reply.text.contains(BAIT_FILE_CONTENT), reply)
    }

    /// Builds upon base images with huge or endless user databases, and measures the daemon's memory and time.
    async fn exhaust_the_daemon(&self, outcomes: &mut Outcomes) -> Result<()> {
        let daemon = find_first_process("buildkitd", &self.world.testbed.stack.dir.root.to_string_lossy())?;
        let lines = b"user:x:1000:1000:a name:/home/user:/bin/sh\n".repeat((256 << 20) / 43);
        let group: Vec<u8> = [b"staff:x:50:".to_vec(), b"member,".repeat((256 << 20) / 7)].concat();
        for (name, file, content, steps) in [
            (
                "base-image-with-huge-passwd",
                "etc/passwd",
                lines,
                "USER nobody-here\nRUN true",
            ),
            (
                "base-image-with-huge-group",
                "etc/group",
                group,
                "COPY --chown=0:nobody-here Dockerfile /a",
            ),
        ] {
            let layer = self.layer_with_setuid_shell()?.with_file(file, 0o644, &content)?;
            drop(content);
            // Compressing and pushing the layer takes time too, and none of the daemon's.
            let image = self.push_base_image_readable_by_both_tenants(name, layer).await?;
            let mut outcome = Outcome::before_first_attempt();
            for _ in 0..MEASURED_BUILDS_MAX {
                let peak = PeakMemory::reset(daemon)?;
                let started = Instant::now();
                let reply = self.build_on_image(&image, steps).await?;
                let (more, took) = (peak.growth_bytes()?, started.elapsed());
                require_error_naming_unknown_user_or_group(&reply)?;
                let is_exhausting = more > MAX_MEMORY_GROWTH_BYTES || took > MAX_USER_DATABASE_BUILD_TIME;
                outcome = Outcome::of_reply(false, &reply)
                    .succeeded_too_if(is_exhausting, format!("{} MiB more, {took:.1?}", more >> 20));
                if !is_exhausting {
                    break;
                }
            }
            outcomes.add_outcome(name, outcome);
        }
        let mut outcome = Outcome::before_first_attempt();
        for _ in 0..MEASURED_BUILDS_MAX {
            let peak = PeakMemory::reset(daemon)?;
            let started = Instant::now();
            let zero = self
                .layer_with_setuid_shell()?
                .with_device("etc/passwd", EntryType::Char, (1, 5))?;
            let build = self.push_layer_and_build_on_it("zero-passwd", zero, "USER nobody-here\nRUN true");
            let zero = tokio::time::timeout(MAX_USER_DATABASE_BUILD_TIME, build).await;
            let fifo = self
                .layer_with_setuid_shell()?
                .with_device("etc/passwd", EntryType::Fifo, (0, 0))?;
            let build = self.push_layer_and_build_on_it("fifo-passwd", fifo, "USER nobody-here\nRUN true");
            let fifo = tokio::time::timeout(MAX_USER_DATABASE_BUILD_TIME, build).await;
            let (more, took) = (peak.growth_bytes()?, started.elapsed());
            let is_exhausting = zero.is_err() || fifo.is_err() || more > MAX_MEMORY_GROWTH_BYTES;
            outcome = Outcome::before_first_attempt();
            for answered in [zero, fifo].into_iter().flatten() {
                let reply = answered?;
                require_error_naming_unknown_user_or_group(&reply)?;
                outcome = outcome.and(Outcome::of_reply(false, &reply));
            }
            outcome = outcome.succeeded_too_if(is_exhausting, format!("{} MiB more, {took:.1?}", more >> 20));
            if !is_exhausting {
                break;
            }
        }
        outcomes.add_outcome("base-image-with-a-device-as-passwd", outcome);
        Ok(())
    }
}

/// Fails unless the answer is about the user or the group that the build named: the daemon has then looked for them.
fn require_error_naming_unknown_user_or_group(reply: &HttpReply) -> Result<()> {
    ensure!(
        reply.status == 422 && reply.text.contains("nobody-here"),
        "the daemon did not look for the user: {} {}",
        reply.status,
        reply.text
    );
    Ok(())
}

/// The peak of a process's resident memory since a reset.
struct PeakMemory {
    pid: u32,
    at_reset: u64,
}

impl PeakMemory {
    /// Resets the peak of a process's memory to what it uses now.
    fn reset(pid: u32) -> Result<Self> {
        // See proc_pid_clear_refs(5): 5 resets the peak.
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let at_reset = peak_memory_bytes(pid)?;
        Ok(Self { pid, at_reset })
    }

    /// Returns by how much the peak has grown since the reset.
    fn growth_bytes(&self) -> Result<u64> {
        Ok(peak_memory_bytes(self.pid)?.saturating_sub(self.at_reset))
    }
}
