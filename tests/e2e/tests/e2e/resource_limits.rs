//! What contexts take of memory and disk, and what is left of them.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use slipway_e2e::{client::Reply, plain::PlainBuilder, registry::Registry, shared::Bench, tree::Tree};

const MIB: usize = 1 << 20;

async fn builder(bench: &Bench, settings: &[(&str, &str)]) -> Result<PlainBuilder> {
    let registry = &bench.stack.registry;
    let credentials = Registry::docker_config(&registry.host, &registry.user, &registry.password);
    PlainBuilder::start(bench, &credentials, settings).await
}

/// Content that is no work to compress.
fn context(dockerfile: &str, bytes: usize, files: usize) -> Tree {
    let file =
        |tree: Tree, number: usize| tree.file(&format!("files/{number}"), vec![number as u8; bytes / files]);
    (0..files).fold(Tree::dockerfile(dockerfile), file)
}

async fn post(bench: &Bench, builder: &PlainBuilder, name: &str, tree: &Tree) -> Result<Reply> {
    let config = json!({ "image": bench.image("e2e/lean", name), "skipPush": true, "compression": "gzip", "compressionLevel": 1 });
    builder.client()?.post(tree.tar(&config)?).await
}

/// Whether builder-fn is as it is shipped, or nearly so: `SLIPWAY_BUILDER_PROFILE=function` makes it so.
fn is_optimized() -> bool {
    matches!(
        std::env::var("SLIPWAY_BUILDER_PROFILE").as_deref(),
        Ok("function" | "release")
    )
}

/// The most memory that a build of any context may have taken.
fn assert_peak(builder: &PlainBuilder) -> Result<()> {
    // Unoptimised, it takes 7 MiB more before it does anything, and has larger futures and deeper stacks.
    let most = if is_optimized() { 32 * MIB } else { 42 * MIB };
    let peak = builder.peak_memory()?;
    assert!(peak <= most, "{} KiB", peak >> 10);
    Ok(())
}

#[tokio::test]
async fn memory_does_not_grow_with_the_context() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = builder(&bench, &[]).await?;

    let reply = post(
        &bench,
        &builder,
        "large",
        &context("FROM scratch\nCOPY . /\n", 512 * MIB, 64),
    )
    .await?;

    ensure!(reply.status == 200, "{}", reply.text);
    assert!(
        builder.peak_memory()? <= 32 * MIB,
        "{} KiB",
        builder.peak_memory()? >> 10
    );
    assert!(builder.files_left()?.is_empty());
    assert_eq!(builder.metric("slipway_spool_bytes").await?, 0.0);
    Ok(())
}

/// As many files as a tar may have, but for a few, in folders of 100: with names as long as those of sources are.
fn as_many_files_as_may_be() -> Tree {
    let file = |tree: Tree, number: usize| {
        let path = format!("module-{:04}/source-{number:06}.rs", number / 100);
        tree.file(&path, *b"fn main() {}\n")
    };
    (0..197_000).fold(Tree::dockerfile("FROM scratch\nCOPY . /\n"), file)
}

#[tokio::test]
async fn memory_grows_little_with_the_number_of_files() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = builder(&bench, &[]).await?;
    let tree = as_many_files_as_may_be();

    for _ in ["cold", "warm"] {
        let reply = post(&bench, &builder, "many", &tree).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        assert_peak(&builder)?;
    }
    Ok(())
}

#[tokio::test]
async fn memory_grows_little_with_builds_in_flight() -> Result<()> {
    const AT_ONCE: usize = 16;
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = builder(&bench, &[]).await?;
    let base = bench.busybox().await?;
    let tree = |name: usize| {
        context(
            &format!("FROM {base}\nCOPY . /{name}\nRUN sleep 4.{name}\n"),
            4 * MIB,
            500,
        )
    };
    let reply = post(&bench, &builder, "one", &tree(99)).await?;
    ensure!(reply.status == 200, "{}", reply.text);
    let one = builder.peak_memory()?;

    let builds = (0..AT_ONCE).map(|name| {
        let (bench, builder, tree) = (&bench, &builder, tree(name));
        async move { post(bench, builder, &format!("at-once-{name}"), &tree).await }
    });
    for reply in futures_util::future::join_all(builds).await {
        let reply = reply?;
        ensure!(reply.status == 200, "{}", reply.text);
    }

    // Unoptimised code has larger futures and deeper stacks.
    let most = if is_optimized() { 2 * MIB } else { 4 * MIB };
    let growth = builder.peak_memory()?.saturating_sub(one) / (AT_ONCE - 1);
    assert!(
        growth <= most,
        "{} KiB a build, on {} KiB for one",
        growth >> 10,
        one >> 10
    );
    Ok(())
}

/// The headers of a million empty files, each with a name of its own: 512 MB.
fn a_million_empty_files() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..14].copy_from_slice(b"context/000000");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    let first = header.as_bytes();
    let bytes = first[..148].iter().chain(&[b' '; 8]).chain(&first[156..]);
    let sum: u32 = bytes.map(|byte| u32::from(*byte)).sum();
    let mut tar = first.repeat(1_000_000);
    // By hand: to have a million headers written and summed up by a crate would take longer than all the rest.
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
async fn a_million_empty_entries_are_refused_and_take_little() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = builder(&bench, &[]).await?;
    let config = json!({ "image": bench.image("e2e/lean", "million"), "skipPush": true });
    let mut tar = Tree::dockerfile("FROM scratch\n").tar(&config)?;
    // Without its end.
    tar.truncate(tar.len() - 1024);
    tar.extend(a_million_empty_files());

    let reply = builder.client()?.post(tar).await?;

    assert_eq!(reply.status, 400, "{}", reply.text);
    assert_eq!(reply.field("error"), "the tar has more than 200000 entries");
    // What 200,000 entries take is the index; of what comes after them nothing is kept.
    assert_peak(&builder)?;
    assert!(builder.files_left()?.is_empty());
    assert_eq!(builder.metric("slipway_spool_bytes").await?, 0.0);
    Ok(())
}

/// A file system of this size; gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Result<Self> {
        let disk = Self(tempfile::tempdir()?);
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "slipway-test"])
            .arg(disk.0.path())
            .status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(disk)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn used(&self) -> Result<u64> {
        let state = rustix::fs::statvfs(self.path())?;
        Ok((state.f_blocks - state.f_bfree) * state.f_frsize)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing can be told here; the folder cannot be removed then, and stays to be seen.
        Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status()
            .ok();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing_and_so_does_a_kill() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let disk = SmallDisk::new(8 * MIB)?;
    let spool = disk.path().to_string_lossy().into_owned();
    let builder = builder(&bench, &[("spool_dir", &spool)]).await?;
    let base = bench.busybox().await?;
    let copy = "FROM scratch\nCOPY . /\n";

    let reply = post(&bench, &builder, "full", &context(copy, 16 * MIB, 4)).await?;
    assert_eq!(reply.status, 507, "{}", reply.text);
    assert!(
        reply.field("error").contains("no space left in the spool folder"),
        "{}",
        reply.text
    );
    assert_eq!((disk.used()?, builder.files_left()?.len()), (0, 0));
    assert_eq!(builder.metric("slipway_spool_bytes").await?, 0.0);

    let reply = post(&bench, &builder, "fits", &context(copy, 4 * MIB, 4)).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let waits = context(
        &format!("FROM {base}\nCOPY . /x\nRUN sleep 31; true\n"),
        4 * MIB,
        4,
    );
    let config = json!({ "image": bench.image("e2e/lean", "killed"), "skipPush": true, "noCache": true });
    let (client, tar) = (builder.client()?, waits.tar(&config)?);
    let build = tokio::spawn(async move { client.post(tar).await });
    bench.wait_for_step("sleep 31; true", true).await?;
    assert!(disk.used()? >= 4 * MIB as u64);
    assert!(fs::read_dir(disk.path())?.next().is_none(), "it has no name");
    drop(builder);
    ensure!(build.await?.is_err(), "the builder was killed");
    bench
        .wait_until(
            Duration::from_secs(5),
            "nothing is left",
            || Ok(disk.used()? == 0),
        )
        .await?;
    bench.wait_for_step("sleep 31; true", false).await
}

#[tokio::test]
async fn requests_under_way_share_the_room_that_there_is() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let limit = (8 * MIB).to_string();
    let builder = builder(&bench, &[("spool_limit", &limit), ("max_body", &limit)]).await?;
    let base = bench.busybox().await?;
    let waits = context(
        &format!("FROM {base}\nCOPY . /x\nRUN sleep 4; true\n"),
        5 * MIB,
        4,
    );
    let config = json!({ "image": bench.image("e2e/lean", "waits"), "skipPush": true, "noCache": true });
    let (client, tar) = (builder.client()?, waits.tar(&config)?);
    let build = tokio::spawn(async move { client.post(tar).await });
    bench.wait_for_step("sleep 4; true", true).await?;

    let second = context("FROM scratch\nCOPY . /\n", 4 * MIB, 4);
    let reply = post(&bench, &builder, "no-room", &second).await?;
    assert_eq!(reply.status, 507, "{}", reply.text);
    assert!(
        reply
            .field("error")
            .contains("8388608 bytes that the builder may spool"),
        "{}",
        reply.text
    );
    let first = build.await??;
    assert_eq!(first.status, 200, "{}", first.text);

    let reply = post(&bench, &builder, "room-again", &second).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}
