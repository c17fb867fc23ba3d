//! Tars that other tools write, and that a reader of one format gets wrong.
//!
//! Reference: GNU tar extracts the same bytes, and `buildctl` builds the folder. builder-fn makes the same image, or,
//! where a table allows it, rejects the tar. No case may lose a file.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    client::HttpReply,
    comparison::{ClientComparison, ClientOutcome},
};

const TAR_BLOCK_BYTES: usize = 512;
const CONFIG_ENTRY_NAME: &str = "com.openfaas.docker.config";
const ODD_TARS_REPOSITORY: &str = "e2e/odd-tars";

/// The bytes of the name in a tar header.
const NAME_FIELD: std::ops::Range<usize> = 0..100;
/// The bytes of the prefix in a ustar header.
const PREFIX_FIELD: std::ops::Range<usize> = 345..500;

/// The magic and the version of a tar header.
type TarMagic = [u8; 8];
const USTAR_MAGIC: TarMagic = *b"ustar\x0000";
const GNU_MAGIC: TarMagic = *b"ustar  \0";
const V7_MAGIC: TarMagic = [0; 8];

/// A tar that a test writes block by block.
#[derive(Debug, Clone, Default)]
struct RawTar(Vec<u8>);

/// A tar header that a test writes field by field.
#[derive(Debug, Clone)]
struct Header([u8; TAR_BLOCK_BYTES]);

impl Header {
    fn new(magic: TarMagic, kind: u8, name: &str, size: usize) -> Self {
        let mut header = Self([0; TAR_BLOCK_BYTES])
            .with_bytes_at(100, b"0000644\0")
            .with_bytes_at(108, b"0000000\0")
            .with_bytes_at(116, b"0000000\0")
            .with_bytes_at(124, format!("{size:011o}\0").as_bytes())
            .with_bytes_at(136, b"14524770400\0")
            .with_bytes_at(156, &[kind])
            .with_bytes_at(257, &magic);
        if kind == b'5' {
            header = header.with_bytes_at(100, b"0000755\0");
        }
        header.with_bytes_at(NAME_FIELD.start, name.as_bytes())
    }

    /// Writes bytes at an offset of the header. The formats are fixed, so a wrong offset is an error of the
    /// test.
    fn with_bytes_at(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn with_ustar_prefix(self, prefix: &str) -> Self {
        self.with_bytes_at(PREFIX_FIELD.start, prefix.as_bytes())
    }

    fn with_link_target(self, target: &str) -> Self {
        self.with_bytes_at(157, target.as_bytes())
    }

    /// Returns the header with its checksum.
    fn block_with_checksum(&self) -> [u8; TAR_BLOCK_BYTES] {
        let blank = self.clone().with_bytes_at(148, b"        ");
        let sum: u32 = blank.0.iter().copied().map(u32::from).sum();
        blank.with_bytes_at(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

impl RawTar {
    /// Returns a tar with a Dockerfile that copies the whole context.
    fn with_dockerfile() -> Self {
        Self::default().with_file("context/Dockerfile", "FROM scratch\nCOPY . /\n")
    }

    fn with_entry(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend(header.block_with_checksum());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(TAR_BLOCK_BYTES), 0);
        self
    }

    fn with_file(self, path: &str, content: &str) -> Self {
        self.with_entry(
            &Header::new(USTAR_MAGIC, b'0', path, content.len()),
            content.as_bytes(),
        )
    }

    /// Adds the config and the two blocks of zeros that end a tar.
    fn with_config_and_end(self, config: &Value) -> Vec<u8> {
        let mut tar = self.with_file(CONFIG_ENTRY_NAME, &config.to_string()).0;
        tar.resize(tar.len() + 2 * TAR_BLOCK_BYTES, 0);
        tar
    }
}

/// Returns the path of a folder in the context, 90 bytes with `context/`, for a ustar prefix.
fn folder_path_of_90_bytes() -> String {
    format!("context/{}/{}", "d".repeat(40), "e".repeat(41))
}

/// Returns the tars whose odd part is an entry, by name. builder-fn has to build each of them.
fn tars_with_odd_entries() -> Vec<(&'static str, RawTar)> {
    let deep = folder_path_of_90_bytes();
    let long = |magic: TarMagic| {
        let name = format!("{}.txt", "f".repeat(60));
        let header = Header::new(magic, b'0', &name, 4).with_ustar_prefix(&deep);
        RawTar::with_dockerfile().with_entry(&header, b"deep")
    };
    let magic = |version: [u8; 2]| {
        let mut magic = USTAR_MAGIC;
        magic[6..].copy_from_slice(&version);
        magic
    };
    let pax = |record: &str| {
        let record = format!("{} {record}\n", record.len() + 4);
        let header = Header::new(USTAR_MAGIC, b'g', "pax_global_header", record.len());
        RawTar::default()
            .with_entry(&header, record.as_bytes())
            .with_file("context/Dockerfile", "FROM scratch\nCOPY . /\n")
    };
    vec![
        ("ustar-00", long(USTAR_MAGIC)),
        ("ustar-nul-nul", long(magic(*b"\0\0"))),
        ("ustar-blanks", long(magic(*b"  "))),
        ("ustar-blank-nul", long(magic(*b" \0"))),
        ("ustar-zero-nul", long(magic(*b"0\0"))),
        ("ustar-letters", long(magic(*b"xy"))),
        // What is the prefix in a ustar header are times in an old GNU header.
        (
            "old-gnu-with-times-in-the-prefix",
            RawTar::with_dockerfile().with_entry(
                &Header::new(GNU_MAGIC, b'0', "context/gnu", 3)
                    .with_ustar_prefix("14524770400\0")
                    .with_bytes_at(357, b"14524770400\0"),
                b"gnu",
            ),
        ),
        (
            "a-config-below-a-long-prefix-is-a-file",
            [USTAR_MAGIC, magic(*b"\0\0"), magic(*b"  "), magic(*b" \0")]
                .iter()
                .enumerate()
                .fold(RawTar::with_dockerfile(), |tar, (number, magic)| {
                    let other = json!({ "image": "elsewhere.example/stolen:1" }).to_string();
                    let below = format!("{deep}/{number}");
                    let header =
                        Header::new(*magic, b'0', CONFIG_ENTRY_NAME, other.len()).with_ustar_prefix(&below);
                    tar.with_entry(&header, other.as_bytes())
                }),
        ),
        (
            "a-config-in-the-context-is-a-file",
            RawTar::with_dockerfile().with_file(&format!("context/{CONFIG_ENTRY_NAME}"), "{}"),
        ),
        (
            "a-directory-with-a-size",
            RawTar::with_dockerfile()
                .with_entry(&Header::new(USTAR_MAGIC, b'5', "context/sized/", 4096), b"")
                .with_file("context/sized/file", "after"),
        ),
        (
            "an-old-directory",
            RawTar::with_dockerfile()
                .with_entry(
                    &Header::new(V7_MAGIC, 0, "context/old/", 0).with_bytes_at(100, b"0000755\0"),
                    b"",
                )
                .with_file("context/old/file", "in it"),
        ),
        (
            "a-hard-link-with-a-size",
            RawTar::with_dockerfile()
                .with_file("context/target", "linked")
                .with_entry(
                    &Header::new(USTAR_MAGIC, b'1', "context/link", 6).with_link_target("context/target"),
                    b"",
                )
                .with_file("context/zlast", "after"),
        ),
        (
            "a-symbolic-link-with-a-size",
            RawTar::with_dockerfile()
                .with_entry(
                    &Header::new(USTAR_MAGIC, b'2', "context/link", 6).with_link_target("zlast"),
                    b"",
                )
                .with_file("context/zlast", "after"),
        ),
        (
            "a-contiguous-file",
            RawTar::with_dockerfile()
                .with_entry(&Header::new(USTAR_MAGIC, b'7', "context/contiguous", 3), b"one"),
        ),
        (
            "an-unnamed-kind-of-file",
            RawTar::with_dockerfile().with_entry(&Header::new(USTAR_MAGIC, 0, "context/kind-nul", 3), b"nul"),
        ),
        (
            "sizes-in-blanks-and-base-256",
            RawTar::with_dockerfile()
                .with_entry(
                    &Header::new(USTAR_MAGIC, b'0', "context/blanks", 0).with_bytes_at(124, b"         5 \0"),
                    b"blank",
                )
                .with_entry(
                    &Header::new(GNU_MAGIC, b'0', "context/base-256", 0)
                        .with_bytes_at(124, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
                    b"base2",
                ),
        ),
        (
            "paths-with-dots-and-double-slashes",
            RawTar::with_dockerfile()
                .with_file("./context/dotted", "1")
                .with_file("context//double", "2")
                .with_file("context/./inner", "3"),
        ),
        (
            "the-last-of-two-entries",
            RawTar::with_dockerfile()
                .with_file("context/twice", "first")
                .with_file("context/twice", "second and longer"),
        ),
        ("a-global-header", pax("comment=a commit's hash")),
        (
            "a-volume-label",
            RawTar::default()
                .with_entry(&Header::new(GNU_MAGIC, b'V', "a label of a volume", 0), b"")
                .with_file("context/Dockerfile", "FROM scratch\nCOPY . /\n"),
        ),
    ]
}

/// Returns the tars that programs read in different ways, by name. builder-fn may reject them.
fn ambiguous_tars() -> Vec<(&'static str, RawTar)> {
    vec![(
        "v7-with-rubbish-in-the-prefix",
        RawTar::with_dockerfile().with_entry(
            &Header::new(V7_MAGIC, b'0', "context/v7", 2).with_ustar_prefix("rubbish"),
            b"v7",
        ),
    )]
}

/// Extracts a tar with GNU tar; returns the context's folder.
fn extract_context_with_gnu_tar(tar: &[u8], to: &Path, options: &[&str]) -> Result<PathBuf> {
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
fn pipe_through_program(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
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

/// The results of both clients for one tar.
struct ResultsOfBothClients {
    /// The answer of builder-fn.
    reply: HttpReply,
    /// The outcome of builder-fn.
    ours: ClientOutcome,
    /// The outcome of `buildctl`.
    theirs: ClientOutcome,
}

/// Builds `tar` with builder-fn, and what GNU tar extracts of it with `buildctl`, which has to succeed.
async fn build_with_builder_and_buildctl(
    comparison: &ClientComparison,
    name: &str,
    tar: Vec<u8>,
    gnu_tar_options: &[&str],
) -> Result<ResultsOfBothClients> {
    let dir = tempfile::tempdir()?;
    let folder =
        extract_context_with_gnu_tar(&tar, dir.path(), gnu_tar_options).with_context(|| name.to_owned())?;
    let theirs = comparison
        .build_with_buildctl(&folder, &format!("{name}-buildctl"), &[])
        .await?;
    let (reply, ours) = comparison.build_with_builder(tar, name).await?;
    ensure!(theirs.is_ok(), "{name}: {theirs:?}");
    Ok(ResultsOfBothClients { reply, ours, theirs })
}

/// Asserts that builder-fn builds `tar`, and that the image is the one that `buildctl` builds of what GNU tar extracts.
async fn assert_same_image_as_buildctl(
    comparison: &ClientComparison,
    name: &str,
    tar: Vec<u8>,
    gnu_tar_options: &[&str],
) -> Result<()> {
    let ResultsOfBothClients { ours, theirs, .. } =
        build_with_builder_and_buildctl(comparison, name, tar, gnu_tar_options).await?;
    assert_eq!(ours, theirs, "{name}");
    Ok(())
}

#[tokio::test]
async fn no_file_of_an_odd_tar_is_lost_or_taken_for_the_config() -> Result<()> {
    let comparison = ClientComparison::start(ODD_TARS_REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut differences = Vec::new();
    for (name, tar) in tars_with_odd_entries() {
        let tar = tar.with_config_and_end(&comparison.config_without_cache(name));
        let ResultsOfBothClients { ours, theirs, .. } =
            build_with_builder_and_buildctl(&comparison, name, tar, &[]).await?;
        if ours != theirs {
            differences.push(format!("{name}: {ours:?}\n    buildctl: {theirs:?}"));
        }
    }
    for (name, tar) in ambiguous_tars() {
        let tar = tar.with_config_and_end(&comparison.config_without_cache(name));
        let ResultsOfBothClients { reply, ours, theirs } =
            build_with_builder_and_buildctl(&comparison, name, tar, &[]).await?;
        if reply.status != 400 && ours != theirs {
            differences.push(format!("{name}: {ours:?}\n    buildctl: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[tokio::test]
async fn every_form_of_gzip_and_zstd_that_gnu_tar_reads_is_read() -> Result<()> {
    let comparison = ClientComparison::start(ODD_TARS_REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let tar = |name: &str| {
        RawTar::with_dockerfile()
            .with_file("context/file", "content")
            .with_config_and_end(&comparison.config_without_cache(name))
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
        ("gzip", pipe_through_program("gzip", &["-c"], &tar("gzip"))?, gzip),
        (
            "gzip-with-zeros",
            padded(
                pipe_through_program("gzip", &["-c"], &tar("gzip-with-zeros"))?,
                10_240 - 1,
            ),
            gzip,
        ),
        (
            "two-gzip-members",
            {
                let tar = tar("two-gzip-members");
                let (first, second) = tar.split_at(700);
                [
                    pipe_through_program("gzip", &["-c"], first)?,
                    pipe_through_program("gzip", &["-c"], second)?,
                ]
                .concat()
            },
            gzip,
        ),
        ("zstd", pipe_through_program("zstd", &["-c"], &tar("zstd"))?, zstd),
        (
            "zstd-after-a-skippable-frame",
            [
                skippable.clone(),
                pipe_through_program("zstd", &["-c"], &tar("zstd-after-a-skippable-frame"))?,
            ]
            .concat(),
            zstd,
        ),
        (
            "zstd-before-a-skippable-frame",
            [
                pipe_through_program("zstd", &["-c"], &tar("zstd-before-a-skippable-frame"))?,
                skippable,
            ]
            .concat(),
            zstd,
        ),
        (
            "pzstd",
            pipe_through_program("pzstd", &["-c"], &tar("pzstd"))?,
            zstd,
        ),
    ] {
        assert_same_image_as_buildctl(&comparison, name, packed, options).await?;
    }
    Ok(())
}

/// The default limit is 8 MiB; `zstd --long=27` makes a window of 128 MiB, if the content is as large.
#[tokio::test]
async fn a_zstd_window_over_the_limit_is_rejected_with_an_error_about_the_window() -> Result<()> {
    let comparison = ClientComparison::start(ODD_TARS_REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let pad = "x".repeat(20 << 20);
    let tar = RawTar::with_dockerfile()
        .with_file("context/pad", &pad)
        .with_config_and_end(&comparison.config_without_cache("window"));
    let packed = pipe_through_program("zstd", &["-c", "--long=27"], &tar)?;

    let (reply, _) = comparison.build_with_builder(packed, "window").await?;

    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(reply.text_field("error").contains("window"), "{}", reply.text);
    Ok(())
}

/// A tar without its last blocks is one whose end may be missing, which is worth a warning.
#[tokio::test]
async fn a_tar_without_its_end_builds_with_a_warning() -> Result<()> {
    let comparison = ClientComparison::start(ODD_TARS_REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut tar = RawTar::with_dockerfile()
        .with_file("context/file", "content")
        .with_config_and_end(&comparison.config_without_cache("no-end"));
    tar.truncate(tar.len() - 2 * TAR_BLOCK_BYTES);

    let ResultsOfBothClients { reply, ours, theirs } =
        build_with_builder_and_buildctl(&comparison, "no-end", tar, &[]).await?;

    assert_eq!(ours, theirs, "{}", reply.text);
    let log = reply.json_or_error_text()["log"].to_string();
    assert!(
        log.contains("warning: the tar has no end-of-archive block"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_tar_with_two_different_configs_or_envelopes_is_rejected() -> Result<()> {
    let comparison = ClientComparison::start(ODD_TARS_REPOSITORY).await?;
    let _parts = comparison.testbed.share_parts().await;
    let config = comparison.config_without_cache("two");
    let mut other = config.clone();
    other["target"] = json!("other");
    for (what, name, tar) in [
        (
            "two configs",
            CONFIG_ENTRY_NAME,
            RawTar::with_dockerfile().with_file(CONFIG_ENTRY_NAME, &other.to_string()),
        ),
        (
            "two configs, one of them with ./",
            CONFIG_ENTRY_NAME,
            RawTar::with_dockerfile().with_file(&format!("./{CONFIG_ENTRY_NAME}"), &other.to_string()),
        ),
        (
            "two envelopes",
            "com.openfaas.secrets",
            RawTar::with_dockerfile()
                .with_file("com.openfaas.secrets", "version: v1\n")
                .with_file("com.openfaas.secrets", "version: v1\nsecrets: {}\n"),
        ),
    ] {
        let (reply, _) = comparison
            .build_with_builder(tar.with_config_and_end(&config), "two")
            .await?;
        assert_eq!(reply.status, 400, "{what}: {}", reply.text);
        assert!(reply.text_field("error").contains(name), "{what}: {}", reply.text);
    }
    Ok(())
}
