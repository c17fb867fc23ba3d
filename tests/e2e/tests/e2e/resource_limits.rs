//! The memory and disk space that builds use and free.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use slipway_e2e::{
    build_context::gated_command, builder_process::BuilderProcess, client::HttpReply,
    context_tree::ContextTree, registry::RegistryClient, testbed::Testbed,
};

const BYTES_PER_MIB: usize = 1 << 20;

/// Starts a builder-fn with the stack's BuildKit and these settings.
async fn start_builder_with_stack_credentials(
    testbed: &Testbed,
    settings: &[(&str, &str)],
) -> Result<BuilderProcess> {
    let registry = &testbed.stack.registry;
    let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
    BuilderProcess::start_with_docker_config(testbed, &credentials, settings).await
}

/// Returns a context of `file_count` files with `total_bytes` bytes in all, whose content compresses quickly.
fn compressible_context(dockerfile: &str, total_bytes: usize, file_count: usize) -> ContextTree {
    let file = |tree: ContextTree, number: usize| {
        tree.with_file(
            &format!("files/{number}"),
            vec![number as u8; total_bytes / file_count],
        )
    };
    (0..file_count).fold(ContextTree::dockerfile(dockerfile), file)
}

/// Builds a context without a push, and returns the answer.
async fn build_context_without_push(
    testbed: &Testbed,
    builder: &BuilderProcess,
    tag: &str,
    tree: &ContextTree,
) -> Result<HttpReply> {
    let config = json!({ "image": testbed.image_name("e2e/lean", tag), "skipPush": true, "compression": "gzip", "compressionLevel": 1 });
    builder
        .build_client_with_own_key()?
        .post_signed(tree.tar_with_config_last(&config)?)
        .await
}

/// Returns whether builder-fn is built with optimisation: `SLIPWAY_BUILDER_PROFILE` is `function` or `release`.
fn builder_is_optimized() -> bool {
    matches!(
        std::env::var("SLIPWAY_BUILDER_PROFILE").as_deref(),
        Ok("function" | "release")
    )
}

/// The largest number of builders that are measured. Each needs the memory that its work needs; on a machine with ten
/// times as many runnable processes as processors, more waits in buffers besides.
const MAX_MEASURED_BUILDERS: usize = 3;

/// The limit on builder-fn's own memory for the largest number of files. Measured unoptimised, on a busy machine: 26.2
/// MiB.
const MOST_FILES_MEMORY_MAX_BYTES: usize = 28 * BYTES_PER_MIB;

/// The limit on builder-fn's own memory for a context of few files, whatever its size. Measured unoptimised: 6.4 MiB.
const FEW_FILES_MEMORY_MAX_BYTES: usize = 16 * BYTES_PER_MIB;

/// Asserts that `work` raises the peak memory of one of several new builders, without the pages of its program, to
/// `limit_bytes` at most.
async fn assert_peak_own_memory_of_one_of_3_builders(
    testbed: &Testbed,
    limit_bytes: usize,
    work: impl AsyncFn(&BuilderProcess) -> Result<()>,
) -> Result<()> {
    let mut peaks = Vec::new();
    for _ in 0..MAX_MEASURED_BUILDERS {
        let builder = start_builder_with_stack_credentials(testbed, &[]).await?;
        work(&builder).await?;
        let peak = builder.peak_memory_bytes_minus_current_file_pages()?;
        if peak <= limit_bytes {
            return Ok(());
        }
        peaks.push(peak >> 10);
    }
    bail!(
        "each builder needed more than {} KiB: {peaks:?} KiB",
        limit_bytes >> 10
    )
}

#[tokio::test]
async fn one_of_3_builders_has_a_peak_memory_of_at_most_16_mib_for_512_mib_in_64_files() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let tree = compressible_context("FROM scratch\nCOPY . /\n", 512 * BYTES_PER_MIB, 64);

    assert_peak_own_memory_of_one_of_3_builders(&testbed, FEW_FILES_MEMORY_MAX_BYTES, async |builder| {
        let reply = build_context_without_push(&testbed, builder, "large", &tree).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        assert!(builder.files_in_spool_and_unlinked_open_files()?.is_empty());
        assert_eq!(builder.metric_value("slipway_spool_bytes").await?, 0.0);
        Ok(())
    })
    .await
}

/// Returns a context with almost as many files as a tar may have, in folders of 100, with names as long as in
/// source trees.
fn context_with_197_000_files() -> ContextTree {
    let file = |tree: ContextTree, number: usize| {
        let path = format!("module-{:04}/source-{number:06}.rs", number / 100);
        tree.with_file(&path, *b"fn main() {}\n")
    };
    (0..197_000).fold(ContextTree::dockerfile("FROM scratch\nCOPY . /\n"), file)
}

#[tokio::test]
async fn one_of_3_builders_has_a_bounded_peak_memory_with_197_000_files() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let tree = context_with_197_000_files();

    assert_peak_own_memory_of_one_of_3_builders(&testbed, MOST_FILES_MEMORY_MAX_BYTES, async |builder| {
        for _ in ["cold", "warm"] {
            let reply = build_context_without_push(&testbed, builder, "many", &tree).await?;
            ensure!(reply.status == 200, "{}", reply.text);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn each_concurrent_build_needs_little_memory() -> Result<()> {
    const CONCURRENT_BUILDS: usize = 16;
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = start_builder_with_stack_credentials(&testbed, &[]).await?;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let tree = |gate: &str| {
        // The gate is the file /{gate}, so the context needs another name.
        let dockerfile = format!(
            "FROM {base}\nCOPY . /context-{gate}\nRUN {}\n",
            gated_command(gate)
        );
        compressible_context(&dockerfile, 4 * BYTES_PER_MIB, 500)
    };
    // Every step runs until all builds have come to theirs.
    let build_at_once = async |gates: &[String]| -> Result<()> {
        let trees: Vec<_> = gates.iter().map(|gate| tree(gate)).collect();
        let builds = gates.iter().zip(&trees).map(async |(gate, tree)| {
            let reply = build_context_without_push(&testbed, &builder, gate, tree).await?;
            ensure!(reply.status == 200, "{gate}: {}", reply.text);
            Ok(())
        });
        let open_gates = async {
            for gate in gates {
                testbed.wait_for_step(gate, true).await?;
            }
            gates.iter().try_for_each(|gate| testbed.open_gate_of_step(gate))
        };
        // A build that fails ends the wait for its step.
        tokio::try_join!(futures_util::future::try_join_all(builds), open_gates)?;
        Ok(())
    };
    build_at_once(&["one-alone".to_owned()]).await?;
    let one = builder.peak_memory_bytes()?;

    let gates: Vec<_> = (0..CONCURRENT_BUILDS)
        .map(|number| format!("at-once-{number:02}"))
        .collect();
    build_at_once(&gates).await?;

    // Unoptimised code has larger futures and deeper stacks.
    let most = if builder_is_optimized() {
        2 * BYTES_PER_MIB
    } else {
        4 * BYTES_PER_MIB
    };
    let growth = builder.peak_memory_bytes()?.saturating_sub(one) / (CONCURRENT_BUILDS - 1);
    assert!(
        growth <= most,
        "{} KiB for each build, and {} KiB for the first",
        growth >> 10,
        one >> 10
    );
    Ok(())
}

/// Returns the headers of a million empty files with different names: 512 MB.
fn headers_of_a_million_empty_files() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..14].copy_from_slice(b"context/000000");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    let first = header.as_bytes();
    let bytes = first[..148].iter().chain(&[b' '; 8]).chain(&first[156..]);
    let sum: u32 = bytes.map(|byte| u32::from(*byte)).sum();
    let mut tar = first.repeat(1_000_000);
    // Patch the bytes directly: the tar crate would take longer for a million headers than the rest of the test.
    for (number, header) in (0u32..).zip(tar.chunks_exact_mut(512)) {
        let mut sum = sum;
        let mut rest = number;
        for digit in header[8..14].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            sum += rest % 10;
            rest /= 10;
        }
        for digit in header[148..155].iter_mut().rev() {
            *digit = b'0' + (sum % 8) as u8;
            sum /= 8;
        }
    }
    tar
}

#[tokio::test]
async fn a_tar_with_a_million_entries_is_rejected_by_one_of_3_builders_within_the_memory_limit() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let config = json!({ "image": testbed.image_name("e2e/lean", "million"), "skipPush": true });
    let mut tar = ContextTree::dockerfile("FROM scratch\n").tar_with_config_last(&config)?;
    // Remove the end-of-archive marker.
    tar.truncate(tar.len() - 1024);
    tar.extend(headers_of_a_million_empty_files());

    // The index holds 200,000 entries; nothing is kept of those after them.
    assert_peak_own_memory_of_one_of_3_builders(&testbed, MOST_FILES_MEMORY_MAX_BYTES, async |builder| {
        let reply = builder
            .build_client_with_own_key()?
            .post_signed(tar.clone())
            .await?;
        assert_eq!(reply.status, 400, "{}", reply.text);
        assert_eq!(reply.text_field("error"), "the tar has more than 200000 entries");
        assert!(builder.files_in_spool_and_unlinked_open_files()?.is_empty());
        assert_eq!(builder.metric_value("slipway_spool_bytes").await?, 0.0);
        Ok(())
    })
    .await
}

/// A mounted file system of limited size; unmounted on drop.
struct SmallTmpfsMount(tempfile::TempDir);

impl SmallTmpfsMount {
    fn new(bytes: usize) -> Result<Self> {
        let disk = Self(tempfile::tempdir()?);
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "slipway-test"])
            .arg(disk.0.path())
            .status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(disk)
    }

    fn mount_path(&self) -> &Path {
        self.0.path()
    }

    /// Returns how many bytes of the file system are in use.
    fn used_bytes(&self) -> Result<u64> {
        let state = rustix::fs::statvfs(self.mount_path())?;
        Ok((state.f_blocks - state.f_bfree) * state.f_frsize)
    }
}

impl Drop for SmallTmpfsMount {
    fn drop(&mut self) {
        // An error cannot be reported here. The folder then cannot be removed, and stays visible.
        Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status()
            .ok();
    }
}

#[tokio::test]
async fn neither_a_full_disk_nor_a_kill_leaves_spooled_files() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let disk = SmallTmpfsMount::new(8 * BYTES_PER_MIB)?;
    let spool = disk.mount_path().to_string_lossy().into_owned();
    let builder = start_builder_with_stack_credentials(&testbed, &[("spool_dir", &spool)]).await?;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let copy = "FROM scratch\nCOPY . /\n";

    let reply = build_context_without_push(
        &testbed,
        &builder,
        "full",
        &compressible_context(copy, 16 * BYTES_PER_MIB, 4),
    )
    .await?;
    assert_eq!(reply.status, 507, "{}", reply.text);
    assert!(
        reply
            .text_field("error")
            .contains("no space left in the spool folder"),
        "{}",
        reply.text
    );
    // The file is closed in the background, maybe after the answer.
    testbed
        .wait_until_condition("the spool is empty", || {
            let files = builder.files_in_spool_and_unlinked_open_files()?;
            Ok(disk.used_bytes()? == 0 && files.is_empty())
        })
        .await?;
    assert_eq!(builder.metric_value("slipway_spool_bytes").await?, 0.0);

    let reply = build_context_without_push(
        &testbed,
        &builder,
        "fits",
        &compressible_context(copy, 4 * BYTES_PER_MIB, 4),
    )
    .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let waits = compressible_context(
        &format!("FROM {base}\nCOPY . /x\nRUN sleep 306; true\n"),
        4 * BYTES_PER_MIB,
        4,
    );
    let config =
        json!({ "image": testbed.image_name("e2e/lean", "killed"), "skipPush": true, "noCache": true });
    let (client, tar) = (
        builder.build_client_with_own_key()?,
        waits.tar_with_config_last(&config)?,
    );
    let build = tokio::spawn(async move { client.post_signed(tar).await });
    testbed.wait_for_step("sleep 306; true", true).await?;
    assert!(disk.used_bytes()? >= 4 * BYTES_PER_MIB as u64);
    assert!(
        fs::read_dir(disk.mount_path())?.next().is_none(),
        "the spool has a name"
    );
    drop(builder);
    ensure!(build.await?.is_err(), "the builder was killed");
    testbed
        .wait_until_condition("the spool's disk is empty", || Ok(disk.used_bytes()? == 0))
        .await?;
    testbed.wait_for_step("sleep 306; true", false).await
}

#[tokio::test]
async fn concurrent_requests_share_the_spool_limit() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let limit = (8 * BYTES_PER_MIB).to_string();
    let builder =
        start_builder_with_stack_credentials(&testbed, &[("spool_limit", &limit), ("max_body", &limit)])
            .await?;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let gate = "gate-of-spool-limit";
    let waits = compressible_context(
        &format!("FROM {base}\nCOPY . /x\nRUN {}\n", gated_command(gate)),
        5 * BYTES_PER_MIB,
        4,
    );
    let config =
        json!({ "image": testbed.image_name("e2e/lean", "waits"), "skipPush": true, "noCache": true });
    let (client, tar) = (
        builder.build_client_with_own_key()?,
        waits.tar_with_config_last(&config)?,
    );
    let build = tokio::spawn(async move { client.post_signed(tar).await });
    testbed.wait_for_step(gate, true).await?;

    let second = compressible_context("FROM scratch\nCOPY . /\n", 4 * BYTES_PER_MIB, 4);
    let reply = build_context_without_push(&testbed, &builder, "no-room", &second).await?;
    assert_eq!(reply.status, 507, "{}", reply.text);
    assert!(
        reply
            .text_field("error")
            .contains("8388608 bytes that this builder may spool"),
        "{}",
        reply.text
    );
    testbed.open_gate_of_step(gate)?;
    let first = build.await??;
    assert_eq!(first.status, 200, "{}", first.text);

    let reply = build_context_without_push(&testbed, &builder, "room-again", &second).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}
