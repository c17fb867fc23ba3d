//! Tars that other tools write, and that a reader of one format gets wrong.
//!
//! Reference: GNU tar extracts the same bytes, and `buildctl` builds the folder. builder-fn makes the same image, or, where
//! a table allows it, rejects the tar. No case may lose a file.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    client::Reply,
    comparison::{Comparison, Outcome},
};

const BLOCK: usize = 512;
const CONFIG: &str = "com.openfaas.docker.config";
const REPOSITORY: &str = "e2e/odd-tars";

/// The bytes of the name in a tar header, and of the prefix in a ustar header.
const NAME: std::ops::Range<usize> = 0..100;
const PREFIX: std::ops::Range<usize> = 345..500;

/// The magic and the version of a tar header.
type Magic = [u8; 8];
const USTAR: Magic = *b"ustar\x0000";
const GNU: Magic = *b"ustar  \0";
const V7: Magic = [0; 8];

/// A tar that a test writes block by block.
#[derive(Debug, Clone, Default)]
struct RawTar(Vec<u8>);

/// A tar header that a test writes field by field.
#[derive(Debug, Clone)]
struct Header([u8; BLOCK]);

impl Header {
    fn new(magic: Magic, kind: u8, name: &str, size: usize) -> Self {
        let mut header = Self([0; BLOCK])
            .with(100, b"0000644\0")
            .with(108, b"0000000\0")
            .with(116, b"0000000\0")
            .with(124, format!("{size:011o}\0").as_bytes())
            .with(136, b"14524770400\0")
            .with(156, &[kind])
            .with(257, &magic);
        if kind == b'5' {
            header = header.with(100, b"0000755\0");
        }
        header.with(NAME.start, name.as_bytes())
    }

    /// Writes bytes at an offset of the header. The formats are fixed, so a wrong offset is an error of the
    /// test.
    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn prefix(self, prefix: &str) -> Self {
        self.with(PREFIX.start, prefix.as_bytes())
    }

    fn link(self, target: &str) -> Self {
        self.with(157, target.as_bytes())
    }

    fn bytes(&self) -> [u8; BLOCK] {
        let blank = self.clone().with(148, b"        ");
        let sum: u32 = blank.0.iter().copied().map(u32::from).sum();
        blank.with(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

impl RawTar {
    /// Returns a tar with a Dockerfile that copies the whole context.
    fn new() -> Self {
        Self::default().file("context/Dockerfile", "FROM scratch\nCOPY . /\n")
    }

    fn entry(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend(header.bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(&Header::new(USTAR, b'0', path, content.len()), content.as_bytes())
    }

    /// Adds the config and the two blocks of zeros that end a tar.
    fn finished(self, config: &Value) -> Vec<u8> {
        let mut tar = self.file(CONFIG, &config.to_string()).0;
        tar.resize(tar.len() + 2 * BLOCK, 0);
        tar
    }
}

/// Returns a folder's path of 90 bytes below `context/`, for a ustar prefix.
fn deep_folder() -> String {
    format!("context/{}/{}", "d".repeat(40), "e".repeat(41))
}

/// Returns the tars whose odd part is an entry, by name. builder-fn has to build each of them.
fn tars_with_odd_entries() -> Vec<(&'static str, RawTar)> {
    let deep = deep_folder();
    let long = |magic: Magic| {
        let name = format!("{}.txt", "f".repeat(60));
        let header = Header::new(magic, b'0', &name, 4).prefix(&deep);
        RawTar::new().entry(&header, b"deep")
    };
    let magic = |version: [u8; 2]| {
        let mut magic = USTAR;
        magic[6..].copy_from_slice(&version);
        magic
    };
    let pax = |record: &str| {
        let record = format!("{} {record}\n", record.len() + 4);
        let header = Header::new(USTAR, b'g', "pax_global_header", record.len());
        RawTar::default()
            .entry(&header, record.as_bytes())
            .file("context/Dockerfile", "FROM scratch\nCOPY . /\n")
    };
    vec![
        ("ustar-00", long(USTAR)),
        ("ustar-nul-nul", long(magic(*b"\0\0"))),
        ("ustar-blanks", long(magic(*b"  "))),
        ("ustar-blank-nul", long(magic(*b" \0"))),
        ("ustar-zero-nul", long(magic(*b"0\0"))),
        ("ustar-letters", long(magic(*b"xy"))),
        // What is the prefix in a ustar header are times in an old GNU header.
        (
            "old-gnu-with-times-in-the-prefix",
            RawTar::new().entry(
                &Header::new(GNU, b'0', "context/gnu", 3)
                    .prefix("14524770400\0")
                    .with(357, b"14524770400\0"),
                b"gnu",
            ),
        ),
        (
            "a-config-below-a-long-prefix-is-a-file",
            [USTAR, magic(*b"\0\0"), magic(*b"  "), magic(*b" \0")]
                .iter()
                .enumerate()
                .fold(RawTar::new(), |tar, (number, magic)| {
                    let other = json!({ "image": "elsewhere.example/stolen:1" }).to_string();
                    let below = format!("{deep}/{number}");
                    let header = Header::new(*magic, b'0', CONFIG, other.len()).prefix(&below);
                    tar.entry(&header, other.as_bytes())
                }),
        ),
        (
            "a-config-in-the-context-is-a-file",
            RawTar::new().file(&format!("context/{CONFIG}"), "{}"),
        ),
        (
            "a-directory-with-a-size",
            RawTar::new()
                .entry(&Header::new(USTAR, b'5', "context/sized/", 4096), b"")
                .file("context/sized/file", "after"),
        ),
        (
            "an-old-directory",
            RawTar::new()
                .entry(
                    &Header::new(V7, 0, "context/old/", 0).with(100, b"0000755\0"),
                    b"",
                )
                .file("context/old/file", "in it"),
        ),
        (
            "a-hard-link-with-a-size",
            RawTar::new()
                .file("context/target", "linked")
                .entry(
                    &Header::new(USTAR, b'1', "context/link", 6).link("context/target"),
                    b"",
                )
                .file("context/zlast", "after"),
        ),
        (
            "a-symbolic-link-with-a-size",
            RawTar::new()
                .entry(&Header::new(USTAR, b'2', "context/link", 6).link("zlast"), b"")
                .file("context/zlast", "after"),
        ),
        (
            "a-contiguous-file",
            RawTar::new().entry(&Header::new(USTAR, b'7', "context/contiguous", 3), b"one"),
        ),
        (
            "an-unnamed-kind-of-file",
            RawTar::new().entry(&Header::new(USTAR, 0, "context/kind-nul", 3), b"nul"),
        ),
        (
            "sizes-in-blanks-and-base-256",
            RawTar::new()
                .entry(
                    &Header::new(USTAR, b'0', "context/blanks", 0).with(124, b"         5 \0"),
                    b"blank",
                )
                .entry(
                    &Header::new(GNU, b'0', "context/base-256", 0)
                        .with(124, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
                    b"base2",
                ),
        ),
        (
            "paths-with-dots-and-double-slashes",
            RawTar::new()
                .file("./context/dotted", "1")
                .file("context//double", "2")
                .file("context/./inner", "3"),
        ),
        (
            "the-last-of-two-entries",
            RawTar::new()
                .file("context/twice", "first")
                .file("context/twice", "second and longer"),
        ),
        ("a-global-header", pax("comment=a commit's hash")),
        (
            "a-volume-label",
            RawTar::default()
                .entry(&Header::new(GNU, b'V', "a label of a volume", 0), b"")
                .file("context/Dockerfile", "FROM scratch\nCOPY . /\n"),
        ),
    ]
}

/// Returns the tars that programs read in different ways, by name. builder-fn may reject them.
fn ambiguous_tars() -> Vec<(&'static str, RawTar)> {
    vec![(
        "v7-with-rubbish-in-the-prefix",
        RawTar::new().entry(&Header::new(V7, b'0', "context/v7", 2).prefix("rubbish"), b"v7"),
    )]
}

/// Extracts a tar with GNU tar; returns the context's folder.
fn extract(tar: &[u8], to: &Path, options: &[&str]) -> Result<PathBuf> {
    let file = to.join("tar");
    fs::write(&file, tar)?;
    let folder = to.join("extracted");
    fs::create_dir(&folder)?;
    let output = Command::new("tar")
        .args(["-x", "--no-same-owner"])
        .args(options)
        .arg("-f")
        .arg(&file)
        .arg("-C")
        .arg(&folder)
        .output()?;
    ensure!(
        output.status.success(),
        "GNU tar: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder.join("context"))
}

/// Pipes bytes through a program.
fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    Ok(output.stdout)
}

/// Returns builder-fn's answer to `tar` and its outcome, and the outcome of `buildctl` with what GNU tar extracts.
async fn build_with_both(
    comparison: &Comparison,
    name: &str,
    tar: Vec<u8>,
    options: &[&str],
) -> Result<(Reply, Outcome, Outcome)> {
    let dir = tempfile::tempdir()?;
    let folder = extract(&tar, dir.path(), options).with_context(|| name.to_owned())?;
    let theirs = comparison
        .buildctl(&folder, &format!("{name}-buildctl"), &[])
        .await?;
    let (reply, ours) = comparison.post(tar, name).await?;
    ensure!(theirs.is_ok(), "{name}: {theirs:?}");
    Ok((reply, ours, theirs))
}

/// Asserts that builder-fn builds `tar`, and that the image is the one that `buildctl` builds of what GNU tar extracts.
async fn assert_same_image(
    comparison: &Comparison,
    name: &str,
    tar: Vec<u8>,
    options: &[&str],
) -> Result<()> {
    let (_, ours, theirs) = build_with_both(comparison, name, tar, options).await?;
    assert_eq!(ours, theirs, "{name}");
    Ok(())
}

#[tokio::test]
async fn no_file_of_an_odd_tar_is_lost_or_taken_for_the_config() -> Result<()> {
    let comparison = Comparison::start(REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut differences = Vec::new();
    for (name, tar) in tars_with_odd_entries() {
        let tar = tar.finished(&comparison.config(name));
        let (_, ours, theirs) = build_with_both(&comparison, name, tar, &[]).await?;
        if ours != theirs {
            differences.push(format!("{name}: {ours:?}\n    buildctl: {theirs:?}"));
        }
    }
    for (name, tar) in ambiguous_tars() {
        let tar = tar.finished(&comparison.config(name));
        let (reply, ours, theirs) = build_with_both(&comparison, name, tar, &[]).await?;
        if reply.status != 400 && ours != theirs {
            differences.push(format!("{name}: {ours:?}\n    buildctl: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[tokio::test]
async fn every_compression_that_gnu_tar_reads_is_read() -> Result<()> {
    let comparison = Comparison::start(REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let tar = |name: &str| {
        RawTar::new()
            .file("context/file", "content")
            .finished(&comparison.config(name))
    };
    let padded = |mut packed: Vec<u8>, zeros: usize| {
        packed.resize(packed.len() + zeros, 0);
        packed
    };
    let skippable = {
        let mut frame = 0x184d_2a50_u32.to_le_bytes().to_vec();
        frame.extend(4_u32.to_le_bytes());
        frame.extend(b"skip");
        frame
    };
    let (gzip, zstd): (&[&str], &[&str]) = (&["--gzip"], &["--zstd"]);
    for (name, packed, options) in [
        ("gzip", pipe("gzip", &["-c"], &tar("gzip"))?, gzip),
        (
            "gzip-with-zeros",
            padded(pipe("gzip", &["-c"], &tar("gzip-with-zeros"))?, 10_240 - 1),
            gzip,
        ),
        (
            "two-gzip-members",
            {
                let tar = tar("two-gzip-members");
                let (first, second) = tar.split_at(700);
                [pipe("gzip", &["-c"], first)?, pipe("gzip", &["-c"], second)?].concat()
            },
            gzip,
        ),
        ("zstd", pipe("zstd", &["-c"], &tar("zstd"))?, zstd),
        (
            "zstd-after-a-skippable-frame",
            [
                skippable.clone(),
                pipe("zstd", &["-c"], &tar("zstd-after-a-skippable-frame"))?,
            ]
            .concat(),
            zstd,
        ),
        (
            "zstd-before-a-skippable-frame",
            [
                pipe("zstd", &["-c"], &tar("zstd-before-a-skippable-frame"))?,
                skippable,
            ]
            .concat(),
            zstd,
        ),
        ("pzstd", pipe("pzstd", &["-c"], &tar("pzstd"))?, zstd),
    ] {
        assert_same_image(&comparison, name, packed, options).await?;
    }
    Ok(())
}

/// The default limit is 8 MiB; `zstd --long=27` makes a window of 128 MiB, if the content is as large.
#[tokio::test]
async fn a_zstd_window_over_the_limit_is_rejected_by_name() -> Result<()> {
    let comparison = Comparison::start(REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let pad = "x".repeat(20 << 20);
    let tar = RawTar::new()
        .file("context/pad", &pad)
        .finished(&comparison.config("window"));
    let packed = pipe("zstd", &["-c", "--long=27"], &tar)?;

    let (reply, _) = comparison.post(packed, "window").await?;

    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(reply.field("error").contains("window"), "{}", reply.text);
    Ok(())
}

/// A tar without its last blocks is one whose end may be missing, which is worth a warning.
#[tokio::test]
async fn a_tar_without_its_end_builds_with_a_warning() -> Result<()> {
    let comparison = Comparison::start(REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut tar = RawTar::new()
        .file("context/file", "content")
        .finished(&comparison.config("no-end"));
    tar.truncate(tar.len() - 2 * BLOCK);

    let (reply, ours, theirs) = build_with_both(&comparison, "no-end", tar, &[]).await?;

    assert_eq!(ours, theirs, "{}", reply.text);
    let log = reply.json()["log"].to_string();
    assert!(
        log.contains("warning: the tar has no end-of-archive block"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_tar_with_two_different_configs_or_envelopes_is_rejected() -> Result<()> {
    let comparison = Comparison::start(REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let config = comparison.config("two");
    let mut other = config.clone();
    other["target"] = json!("other");
    for (what, name, tar) in [
        (
            "two configs",
            CONFIG,
            RawTar::new().file(CONFIG, &other.to_string()),
        ),
        (
            "two configs, one of them with ./",
            CONFIG,
            RawTar::new().file(&format!("./{CONFIG}"), &other.to_string()),
        ),
        (
            "two envelopes",
            "com.openfaas.secrets",
            RawTar::new()
                .file("com.openfaas.secrets", "version: v1\n")
                .file("com.openfaas.secrets", "version: v1\nsecrets: {}\n"),
        ),
    ] {
        let (reply, _) = comparison.post(tar.finished(&config), "two").await?;
        assert_eq!(reply.status, 400, "{what}: {}", reply.text);
        assert!(reply.field("error").contains(name), "{what}: {}", reply.text);
    }
    Ok(())
}
