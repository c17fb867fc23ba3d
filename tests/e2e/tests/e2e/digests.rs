//! Images equal those of `buildctl`, digest for digest, if timestamps are pinned.
//!
//! GNU tar packs a folder with every kind of entry for builder-fn; `buildctl` gets the folder itself.
//!
//! Known differences:
//!
//! - Owners: both clients send all files as 0:0, and ignore the owners in a tar or a folder.
//! - Devices and fifos: `buildctl` sends them, builder-fn rejects a tar with them.
//! - Sockets: `buildctl` sends them as empty files, tar leaves them out.
//! - Sparse files: builder-fn rejects a tar made with `--sparse`. Without it, holes are zeros and the images are
//!   equal.
//! - Extended attributes other than `user.*` and `security.capability`: builder-fn drops them.
//! - Folders without an entry in the tar: they have no time and mode 0755; an extracted folder has those of its
//!   extraction.
//! - Fractions of a second: the formats ustar and GNU have whole seconds.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    buildctl::Buildctl,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    registry::{ManifestWithDigest, RegistryClient},
    testbed::Testbed,
};

/// The time that both clients give to the image, and the latest one that its files keep, in seconds since 1970.
const SOURCE_DATE_EPOCH_TEXT: &str = "1700000000";
const DIGESTS_REPOSITORY: &str = "e2e/digests";

/// A folder `context` to build from.
struct ContextFolder {
    dir: tempfile::TempDir,
}

impl ContextFolder {
    fn new(dockerfile: &str) -> Result<Self> {
        let folder = Self {
            dir: tempfile::tempdir()?,
        };
        fs::create_dir(folder.context_path())?;
        folder.write_file("Dockerfile", dockerfile)?;
        Ok(folder)
    }

    fn context_path(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// Creates the parent folders of a path in the context, and returns the whole path.
    fn create_parents_and_get_path(&self, path: &str) -> Result<PathBuf> {
        let path = self.context_path().join(path);
        fs::create_dir_all(path.parent().context("the path has no parent folder")?)?;
        Ok(path)
    }

    fn write_file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        Ok(fs::write(self.create_parents_and_get_path(path)?, content)?)
    }

    fn write_file_with_mode(&self, path: &str, mode: u32) -> Result<()> {
        self.write_file(path, path)?;
        Ok(fs::set_permissions(
            self.create_parents_and_get_path(path)?,
            Permissions::from_mode(mode),
        )?)
    }

    fn write_link(&self, path: &str, target: &str) -> Result<()> {
        Ok(symlink(target, self.create_parents_and_get_path(path)?)?)
    }

    /// Sets the same time on all files, folders and links.
    fn set_times(&self, touch_date: &str) -> Result<()> {
        run_command(
            Command::new("find")
                .arg(self.context_path())
                .args(["-depth", "-exec", "touch", "-h", "-d", touch_date, "{}", "+"]),
        )
    }

    /// Writes the config beside the context, and packs both with GNU tar and these options.
    fn tar_with_gnu_tar(&self, config: &Value, options: &[&str]) -> Result<Vec<u8>> {
        fs::write(
            self.dir.path().join("com.openfaas.docker.config"),
            config.to_string(),
        )?;
        let tar = self.dir.path().join("tar");
        run_command(
            Command::new("tar")
                .arg("-C")
                .arg(self.dir.path())
                .arg("-cf")
                .arg(&tar)
                .args(options)
                .args(["com.openfaas.docker.config", "context"]),
        )?;
        Ok(fs::read(tar)?)
    }
}

/// Runs a command, and fails with its standard error unless it succeeds.
fn run_command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Both clients, builder-fn and `buildctl`, and a daemon of their own.
struct DigestComparison {
    testbed: Testbed,
    builder: BuilderProcess,
    buildctl: Buildctl,
    _daemon: BuildkitDaemon,
}

impl DigestComparison {
    /// Starts a daemon and a builder-fn that uses it.
    async fn start() -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let registry = &testbed.stack.registry;
        let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        let daemon = BuildkitDaemon::start(&testbed, "").await?;
        let settings = [("buildkit_url", daemon.socket_url())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let builder = BuilderProcess::start_with_docker_config(&testbed, &credentials, &settings).await?;
        Ok(Self {
            buildctl: Buildctl::new(&testbed, &daemon)?,
            testbed,
            builder,
            _daemon: daemon,
        })
    }

    /// Builds with both clients, and asserts that the images have the same digest, and the compression in `more_config`
    /// or zstd. `more_config` is added to the config. Neither client uses the cache: its keys depend on the content
    /// only, so the second build would get the layers of the first.
    async fn assert_both_build_same_image_with_expected_compression(
        &self,
        name: &str,
        folder: &ContextFolder,
        gnu_tar_options: &[&str],
        more_config: Value,
    ) -> Result<()> {
        let (ours, theirs) = (format!("{name}-builder-fn"), format!("{name}-buildctl"));
        let mut config = json!({
            "image": self.testbed.image_name(DIGESTS_REPOSITORY, &ours),
            "noCache": true,
            "buildArgs": { "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH_TEXT },
        });
        let text = |key: &str, default: &str| more_config[key].as_str().unwrap_or(default).to_owned();
        let (dockerfile, compression) = (text("dockerfile", "Dockerfile"), text("compression", "zstd"));
        if let (Value::Object(config), Value::Object(more_config)) = (&mut config, more_config) {
            config.extend(more_config);
        }
        let reply = self
            .builder
            .build_client_with_own_key()?
            .post_signed(folder.tar_with_gnu_tar(&config, gnu_tar_options)?)
            .await?;
        ensure!(reply.status == 200, "{name}: {}", reply.text);
        self.build_with_buildctl(&folder.context_path(), &theirs, &dockerfile, &compression)?;
        let manifest = self.assert_same_digest(name).await?;
        let media_type = manifest.body["layers"][0]["mediaType"]
            .as_str()
            .unwrap_or_default();
        let suffix = match compression.as_str() {
            "uncompressed" => "tar".to_owned(),
            other => format!("tar+{other}"),
        };
        ensure!(
            media_type == format!("application/vnd.oci.image.layer.v1.{suffix}"),
            "{media_type}"
        );
        Ok(())
    }

    /// Builds a folder with `buildctl`, with pinned timestamps and this compression, and pushes the image.
    fn build_with_buildctl(
        &self,
        folder: &Path,
        tag: &str,
        dockerfile: &str,
        compression: &str,
    ) -> Result<()> {
        let options = [
            format!("filename={dockerfile}"),
            format!("build-arg:SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH_TEXT}"),
        ];
        let output = format!(",rewrite-timestamp=true,oci-mediatypes=true,compression={compression}");
        self.buildctl.build_uncached_and_push_with_output_options(
            folder,
            &self.testbed.image_name(DIGESTS_REPOSITORY, tag),
            &options.each_ref().map(String::as_str),
            &output,
        )
    }

    /// Asserts that both images have the same digest; returns the manifest.
    async fn assert_same_digest(&self, name: &str) -> Result<ManifestWithDigest> {
        let manifest = async |by: &str| {
            let manifest = self
                .testbed
                .registry
                .get_manifest(DIGESTS_REPOSITORY, &format!("{name}-{by}"))
                .await?;
            manifest.context("the image is not in the registry")
        };
        let (ours, theirs) = (manifest("builder-fn").await?, manifest("buildctl").await?);
        ensure!(ours.digest == theirs.digest, "{name}: {ours:#?} {theirs:#?}");
        Ok(ours)
    }
}

/// Creates a folder with everything that all tar formats can hold.
fn folder_with_portable_entries() -> Result<ContextFolder> {
    let folder = ContextFolder::new("FROM scratch\nCOPY . /\nCOPY --chown=7:8 nested/ /again/\n")?;
    folder.write_file("nested/deep/er/file", "deep")?;
    for name in ["a-b", "a/b", "a.b", "a b", "a!", "A", "a0/x"] {
        folder.write_file(&format!("nested/{name}"), "sorts apart by byte and by component")?;
    }
    folder.write_file("ünïcode ☂/näme", "unicode")?;
    folder.write_file(
        &format!("long/{}/{}", "d".repeat(60), "f".repeat(90)),
        "in ustar's prefix",
    )?;
    folder.write_file("empty", "")?;
    fs::create_dir_all(folder.create_parents_and_get_path("no/thing/here")?)?;
    for (name, mode) in [
        ("run", 0o755),
        ("private", 0o600),
        ("setuid", 0o4755),
        ("setgid", 0o2711),
        ("none", 0),
    ] {
        folder.write_file_with_mode(&format!("modes/{name}"), mode)?;
    }
    fs::create_dir_all(folder.create_parents_and_get_path("modes/sticky")?)?;
    fs::set_permissions(
        folder.create_parents_and_get_path("modes/sticky")?,
        Permissions::from_mode(0o1777),
    )?;
    for (name, target) in [
        ("in", "../nested/a/b"),
        ("folder", "../nested"),
        ("out", "../../../etc"),
        ("absolute", "/etc/passwd"),
        ("broken", "nothing"),
        ("loop", "loop"),
    ] {
        folder.write_link(&format!("links/{name}"), target)?;
    }
    folder.write_file("hard/first", "one file")?;
    fs::hard_link(
        folder.create_parents_and_get_path("hard/first")?,
        folder.create_parents_and_get_path("hard/second")?,
    )?;
    fs::hard_link(
        folder.create_parents_and_get_path("hard/first")?,
        folder.create_parents_and_get_path("another")?,
    )?;
    let sparse = fs::File::create(folder.create_parents_and_get_path("sparse")?)?;
    sparse.set_len(3 << 20)?;
    folder.write_file("large", vec![0x5a; 300_000])?;
    Ok(folder)
}

#[tokio::test]
async fn every_kind_of_entry_gives_the_same_digest_as_with_buildctl_in_every_tar_format() -> Result<()> {
    let comparison = DigestComparison::start().await?;
    let _parts = comparison.testbed.share_parts().await;
    let folder = folder_with_portable_entries()?;
    folder.set_times("@1600000000")?;
    for (format, compression) in [("ustar", "gzip"), ("gnu", "uncompressed"), ("pax", "zstd")] {
        let more = json!({ "compression": compression });
        comparison
            .assert_both_build_same_image_with_expected_compression(
                &format!("plain-{format}"),
                &folder,
                &["--format", format],
                more,
            )
            .await?;
    }

    // Entries that only some formats can hold.
    folder.write_file(
        &format!("longer/{}/{}", "d".repeat(200), "f".repeat(250)),
        "in no header",
    )?;
    folder.write_link("links/long", &"t/".repeat(150))?;
    folder.set_times("@1600000000")?;
    comparison
        .assert_both_build_same_image_with_expected_compression(
            "long-gnu",
            &folder,
            &["--format=gnu"],
            Value::Null,
        )
        .await?;
    let attributed = folder.create_parents_and_get_path("nested/a/b")?;
    rustix::fs::setxattr(
        &attributed,
        "user.slipway",
        b"value",
        rustix::fs::XattrFlags::empty(),
    )?;
    folder.set_times("@1600000000.123456789")?;
    comparison
        .assert_both_build_same_image_with_expected_compression(
            "all-pax",
            &folder,
            &["--format=pax", "--xattrs"],
            Value::Null,
        )
        .await
}

#[tokio::test]
async fn ignore_patterns_give_the_same_digest_as_with_buildctl() -> Result<()> {
    let comparison = DigestComparison::start().await?;
    let _parts = comparison.testbed.share_parts().await;
    let files = [
        "a.log",
        "b.txt",
        "keep/a.log",
        "keep/me.log",
        "x/y/z/a.tmp",
        "x/y/z/b",
        "node/modules/x",
        "node/keep",
        " spaced",
        "ä.md",
        "docs/a.md",
        "docs/README.md",
    ];
    for (name, ignore, in_file, config) in [
        (
            "ignore",
            "# a comment\n\n*.log\n!keep/me.log\n**/*.tmp  \n  /node/modules/  \nb.tx?\n*.md\ndocs/*\n!docs/README.md\n",
            ".dockerignore",
            json!({}),
        ),
        (
            "ignore-all",
            "*\n!keep\nkeep/a.log\n!x/y\n",
            ".dockerignore",
            json!({}),
        ),
        ("ignore-own", "**/a.*\n", "Dockerfile.dockerignore", json!({})),
        (
            "elsewhere",
            "x/**/z\n",
            "docker/Release.dockerignore",
            json!({ "dockerfile": "docker/Release" }),
        ),
    ] {
        let folder = ContextFolder::new("FROM scratch\nCOPY . /\n")?;
        folder.write_file("docker/Release", "FROM scratch\nCOPY . /\nCOPY ke*/ /other/\n")?;
        files.iter().try_for_each(|file| folder.write_file(file, file))?;
        folder.write_file(in_file, ignore)?;
        if in_file != ".dockerignore" {
            folder.write_file(".dockerignore", "# not this one\n*\n")?;
        }
        folder.set_times("@1600000000")?;
        comparison
            .assert_both_build_same_image_with_expected_compression(name, &folder, &[], config)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_several_tar_entries_for_a_path_the_last_one_is_in_the_image() -> Result<()> {
    let comparison = DigestComparison::start().await?;
    let _parts = comparison.testbed.share_parts().await;
    let folder = ContextFolder::new("FROM scratch\nCOPY . /\n")?;
    folder.write_file("file", "first")?;
    folder.write_file("kind", "a file first")?;
    folder.set_times("@1500000000")?;
    let config = json!({
        "image": comparison.testbed.image_name(DIGESTS_REPOSITORY, "twice-builder-fn"),
        "noCache": true,
        "buildArgs": { "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH_TEXT },
    });
    folder.tar_with_gnu_tar(&config, &[])?;
    folder.write_file("file", "and last")?;
    fs::remove_file(folder.create_parents_and_get_path("kind")?)?;
    folder.write_link("kind", "file")?;
    folder.set_times("@1600000000")?;
    let tar = folder.dir.path().join("tar");
    run_command(
        Command::new("tar")
            .arg("-C")
            .arg(folder.dir.path())
            .arg("-rf")
            .arg(&tar)
            .arg("context"),
    )?;
    let reply = comparison
        .builder
        .build_client_with_own_key()?
        .post_signed(fs::read(&tar)?)
        .await?;
    ensure!(reply.status == 200, "{}", reply.text);

    comparison.build_with_buildctl(&folder.context_path(), "twice-buildctl", "Dockerfile", "zstd")?;
    comparison.assert_same_digest("twice").await.map(drop)
}

#[tokio::test]
async fn twenty_thousand_files_give_the_same_digest_as_with_buildctl() -> Result<()> {
    let comparison = DigestComparison::start().await?;
    let _parts = comparison.testbed.share_parts().await;
    let folder = ContextFolder::new("FROM scratch\nCOPY . /\n")?;
    for number in 0..20_000 {
        folder.write_file(
            &format!("{}/{}/{number}", number % 7, number % 130),
            number.to_string(),
        )?;
    }
    folder.set_times("@1600000000")?;
    comparison
        .assert_both_build_same_image_with_expected_compression("many", &folder, &[], Value::Null)
        .await
}

#[tokio::test]
async fn steps_on_a_base_image_give_the_same_digest_as_with_buildctl() -> Result<()> {
    let comparison = DigestComparison::start().await?;
    let _parts = comparison.testbed.share_parts().await;
    let base = comparison.testbed.build_busybox_once_and_get_name().await?;
    let folder = ContextFolder::new(&format!(
        "FROM {base}\nCOPY --chown=1000:1000 tool /bin/tool\nRUN /bin/tool > /output\nCOPY nested/ /nested/\n"
    ))?;
    folder.write_file("tool", "#!/bin/sh\necho output\n")?;
    fs::set_permissions(
        folder.create_parents_and_get_path("tool")?,
        Permissions::from_mode(0o755),
    )?;
    folder.write_file("nested/deep/er/file", "deep")?;
    folder.set_times("@1600000000")?;
    // Layers of the base image keep their compression, which is that of the stack's builder.
    let config = json!({
        "image": comparison.testbed.image_name(DIGESTS_REPOSITORY, "steps-builder-fn"),
        "noCache": true,
        "buildArgs": { "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH_TEXT },
    });
    let reply = comparison
        .builder
        .build_client_with_own_key()?
        .post_signed(folder.tar_with_gnu_tar(&config, &[])?)
        .await?;
    ensure!(reply.status == 200, "{}", reply.text);
    comparison.build_with_buildctl(&folder.context_path(), "steps-buildctl", "Dockerfile", "zstd")?;
    comparison.assert_same_digest("steps").await.map(drop)
}
