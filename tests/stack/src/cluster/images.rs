//! The images of the pods that every cluster has, made on this machine from the launcher's programs and Debian's.
//!
//! They are in one archive in the cache, which containerd imports at each start.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::plan::{ClusterProgramDirectories, ClusterProvider};
use crate::{
    command::{new_command, run_program},
    directories::{self, LauncherDirectories},
    error::{IoResultExt as _, LauncherError, Result},
    image::{BytesLinkOrDirectory, ImageToArchive, LayerEntry, layer_from_entries_in_memory, write_archive},
    plan::ProgramFileStamp,
    progress::ProgressSink,
};

/// The directory of Debian's CNI plugins.
pub(crate) const CNI_PLUGINS_DIRECTORY: &str = "/usr/lib/cni";

/// The directory of programs in the images.
const PROGRAMS_IN_IMAGE: &str = "usr/bin";

/// Debian's static busybox: a shell and its tools.
const BUSYBOX: &str = "/bin/busybox";

/// Debian's program behind `iptables` and `ip6tables`.
const XTABLES: &str = "/usr/sbin/xtables-nft-multi";

/// The CNI plugins in BuildKit's image, whose names there begin with `buildkit-cni-`.
const BUILDKIT_CNI_PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// The certificate authorities of this machine.
const CERTIFICATE_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The number of archives in the cache. Several worktrees may start clusters with different programs.
const KEPT_ARCHIVES: usize = 3;

/// An increase of this makes new archives from unchanged programs.
const RECIPE: u32 = 2;

/// An image that every cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemImage {
    /// The container that holds a pod's namespaces.
    Pause,
    /// The resolver of the cluster's names.
    Coredns,
    /// The registry, to which pods push and from which the node pulls.
    Registry,
    /// A shell, its tools and curl, for pods of tests.
    Tools,
    /// The gateway of OpenFaaS.
    Gateway,
    /// The provider of OpenFaaS.
    Provider,
    /// NATS Streaming, the gateway's queue.
    Nats,
    /// The Community queue-worker.
    QueueWorker,
    /// BuildKit for pods with a user namespace, with what the chart's scripts need.
    Buildkit,
    /// The function builder-fn.
    Builder,
    /// The function deployer-fn.
    Deployer,
}

/// The programs from which the images are made.
#[derive(Debug)]
pub(crate) struct ImageSources<'a> {
    pub(crate) programs: &'a ClusterProgramDirectories,
    pub(crate) provider: &'a ClusterProvider,
    /// The path of the docker-registry program.
    pub(crate) registry: PathBuf,
    /// The path of builder-fn.
    pub(crate) builder: PathBuf,
    /// The path of deployer-fn.
    pub(crate) deployer: PathBuf,
}

impl SystemImage {
    /// All images of the archive.
    pub(super) const ALL: [SystemImage; 11] = [
        SystemImage::Pause,
        SystemImage::Coredns,
        SystemImage::Registry,
        SystemImage::Tools,
        SystemImage::Gateway,
        SystemImage::Provider,
        SystemImage::Nats,
        SystemImage::QueueWorker,
        SystemImage::Buildkit,
        SystemImage::Builder,
        SystemImage::Deployer,
    ];

    fn name(self) -> &'static str {
        match self {
            SystemImage::Pause => "pause",
            SystemImage::Coredns => "coredns",
            SystemImage::Registry => "registry",
            SystemImage::Tools => "tools",
            SystemImage::Gateway => "gateway",
            SystemImage::Provider => "provider",
            SystemImage::Nats => "nats",
            SystemImage::QueueWorker => "queue-worker",
            SystemImage::Buildkit => "buildkit",
            SystemImage::Builder => "builder-fn",
            SystemImage::Deployer => "deployer-fn",
        }
    }

    /// Returns the reference of the image. Its host does not exist: it is imported and never pulled.
    pub(crate) fn reference(self) -> String {
        format!("cluster.slipway.invalid/{}:1", self.name())
    }

    /// Returns the programs that the image contains; its containers run the first one.
    fn programs(self, sources: &ImageSources<'_>) -> Vec<PathBuf> {
        let programs = sources.programs;
        match self {
            SystemImage::Pause => vec![programs.kubernetes.join("pause")],
            SystemImage::Coredns => vec![programs.coredns.join("coredns")],
            SystemImage::Registry => vec![sources.registry.clone()],
            SystemImage::Tools => vec![BUSYBOX.into(), "/usr/bin/curl".into()],
            SystemImage::Gateway => vec![programs.openfaas.join("gateway")],
            SystemImage::Provider => vec![sources.provider.program().to_owned()],
            SystemImage::Nats => vec![programs.openfaas.join("nats-streaming-server")],
            SystemImage::QueueWorker => vec![programs.openfaas.join("nats-queue-worker")],
            SystemImage::Buildkit => vec![
                programs.buildkit.join("buildkitd"),
                programs.buildkit.join("buildctl"),
                programs.runc.join("runc"),
                "/usr/bin/openssl".into(),
                XTABLES.into(),
                BUSYBOX.into(),
            ],
            SystemImage::Builder => vec![sources.builder.clone()],
            SystemImage::Deployer => vec![sources.deployer.clone()],
        }
    }

    /// Returns the user and group of the image's containers, if the pod names none.
    fn user(self) -> &'static str {
        match self {
            SystemImage::Pause => "65535:65535",
            SystemImage::Coredns => "65532:65532",
            SystemImage::Registry => "1000:1000",
            SystemImage::Tools | SystemImage::Buildkit => "0:0",
            SystemImage::Gateway | SystemImage::Provider | SystemImage::Nats | SystemImage::QueueWorker => {
                "10001:10001"
            }
            SystemImage::Builder | SystemImage::Deployer => "12000:12000",
        }
    }

    /// Returns the settings of the image's containers.
    fn settings(self, sources: &ImageSources<'_>) -> Value {
        let path = format!("PATH=/{PROGRAMS_IN_IMAGE}");
        let entrypoint = self
            .programs(sources)
            .first()
            .map(|program| format!("/{}", path_in_image(program)));
        json!({ "Env": [path], "Entrypoint": entrypoint.as_slice(), "User": self.user() })
    }
}

/// Returns the path of a program in the images, without a leading slash.
fn path_in_image(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default();
    format!("{PROGRAMS_IN_IMAGE}/{}", name.to_string_lossy())
}

/// Returns the path of the archive with all images; makes it if it is not in the cache.
pub(crate) async fn load_or_make_archive(
    directories: &LauncherDirectories,
    sources: &ImageSources<'_>,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    let cache = directories.cache.join("images");
    fs::create_dir_all(&cache).with_operation("create", &cache)?;
    let archive = cache.join(format!(
        "cluster-{}.tar",
        fingerprint_of_program_file_stamps(sources)?
    ));
    if !archive.exists() {
        let _lock = directories::truncate_and_lock_file_async(cache.join(".cluster.lock")).await?;
        progress.emit_progress_line("images", "making the cluster's images");
        let mut images = Vec::new();
        for image in SystemImage::ALL {
            images.push(make_image(image, sources).await?);
        }
        let new = tempfile::NamedTempFile::new_in(&cache).with_operation("create a file in", &cache)?;
        write_archive(new.path(), &images)?;
        new.persist(&archive)
            .map_err(|error| error.error)
            .with_operation("write", &archive)?;
        remove_oldest_archives(&cache)?;
    }
    Ok(archive)
}

/// Removes all but the newest archives of a cache.
fn remove_oldest_archives(cache: &Path) -> Result<()> {
    let mut archives = Vec::new();
    for entry in fs::read_dir(cache).with_operation("read", cache)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("cluster-") && name.ends_with(".tar") {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            archives.push((modified.with_operation("read", entry.path())?, entry.path()));
        }
    }
    archives.sort();
    let surplus = archives.len().saturating_sub(KEPT_ARCHIVES);
    for (_, archive) in archives.drain(..surplus) {
        fs::remove_file(&archive).with_operation("remove", &archive)?;
    }
    Ok(())
}

/// Returns 16 hexadecimal digits that change when a program in one of the images changes.
fn fingerprint_of_program_file_stamps(sources: &ImageSources<'_>) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(RECIPE.to_le_bytes());
    for image in SystemImage::ALL {
        for program in image.programs(sources) {
            let stamp = ProgramFileStamp::read_stamp(&program)?;
            hash.update(format!("{}\n{stamp:?}\n", image.name()));
        }
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(16);
    Ok(text)
}

async fn make_image(image: SystemImage, sources: &ImageSources<'_>) -> Result<ImageToArchive> {
    let mut entries = vec![LayerEntry {
        path: "tmp".to_owned(),
        mode: 0o1777,
        content: BytesLinkOrDirectory::Directory,
    }];
    for program in image.programs(sources) {
        let stripped = without_debug_information(&program).await?;
        entries.push(read_executable_file_entry(
            &path_in_image(&program),
            stripped.path(),
        )?);
        for library in libraries_of(&program).await? {
            let path = library.trim_start_matches('/').to_owned();
            if entries.iter().all(|entry| entry.path != path) {
                entries.push(read_executable_file_entry(&path, Path::new(&library))?);
            }
        }
    }
    if image.programs(sources).contains(&PathBuf::from(BUSYBOX)) {
        let list = run_program(new_command(BUSYBOX).arg("--list")).await?;
        // Debian's static busybox cannot resolve names, as it cannot load the C library's modules for that.
        let commands = String::from_utf8_lossy(&list).into_owned();
        let commands = commands
            .lines()
            .filter(|name| !["busybox", "wget"].contains(name));
        entries.extend(commands.map(|name| link_entry(name, "busybox")));
        // Scripts begin with `#!/bin/sh`.
        entries.push(LayerEntry {
            path: "bin".to_owned(),
            mode: 0o777,
            content: BytesLinkOrDirectory::SymbolicLink(PROGRAMS_IN_IMAGE.to_owned()),
        });
    }
    if image == SystemImage::Buildkit {
        entries.extend(["iptables", "ip6tables"].map(|name| link_entry(name, "xtables-nft-multi")));
        entries.push(link_entry("buildkit-runc", "runc"));
        for plugin in BUILDKIT_CNI_PLUGINS {
            let path = format!("{PROGRAMS_IN_IMAGE}/buildkit-cni-{plugin}");
            entries.push(read_executable_file_entry(
                &path,
                &Path::new(CNI_PLUGINS_DIRECTORY).join(plugin),
            )?);
        }
        let modules = format!("/usr/lib/{}-linux-gnu/xtables", env::consts::ARCH);
        for module in fs::read_dir(&modules).with_operation("read", &modules)?.flatten() {
            let path = module.path();
            entries.push(read_executable_file_entry(
                path.to_string_lossy().trim_start_matches('/'),
                &path,
            )?);
        }
        let authorities = CERTIFICATE_AUTHORITIES;
        entries.push(read_executable_file_entry(
            authorities.trim_start_matches('/'),
            Path::new(authorities),
        )?);
    }
    Ok(ImageToArchive {
        reference: image.reference(),
        layers: vec![layer_from_entries_in_memory(entries)?],
        settings: image.settings(sources),
    })
}

/// Returns a copy of a program without debug information, which is most of a debug build.
async fn without_debug_information(program: &Path) -> Result<tempfile::NamedTempFile> {
    let copy = tempfile::NamedTempFile::new().with_operation("create", "a temporary file")?;
    let mut strip = new_command("strip");
    run_program(strip.arg("--strip-debug").arg("-o").arg(copy.path()).arg(program)).await?;
    Ok(copy)
}

/// Reads a file as an executable entry of a layer.
fn read_executable_file_entry(path_in_image: &str, source: &Path) -> Result<LayerEntry> {
    Ok(LayerEntry {
        path: path_in_image.to_owned(),
        mode: 0o755,
        content: BytesLinkOrDirectory::File(fs::read(source).with_operation("read", source)?),
    })
}

/// Returns a symbolic link beside the programs.
fn link_entry(name: &str, target: &str) -> LayerEntry {
    LayerEntry {
        path: format!("{PROGRAMS_IN_IMAGE}/{name}"),
        mode: 0o777,
        content: BytesLinkOrDirectory::SymbolicLink(target.to_owned()),
    }
}

/// Returns the paths of the libraries that a program loads, with the loader; none for a static program.
async fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let output = new_command("ldd").arg(program).output().await;
    let output = output.map_err(|source| LauncherError::Spawn {
        program: "ldd".into(),
        source,
    })?;
    // ldd fails for a static program.
    Ok(libraries_in_ldd_output(&String::from_utf8_lossy(&output.stdout)))
}

/// Returns the paths in the output of `ldd`.
fn libraries_in_ldd_output(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_a_program_are_the_paths_that_ldd_lists_with_the_loader() {
        let output = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries_in_ldd_output(output),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert!(libraries_in_ldd_output("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn the_newest_archives_stay_in_the_cache_with_everything_that_is_no_archive() {
        let cache = tempfile::tempdir().unwrap();
        for number in 0..5 {
            let archive = fs::File::create(cache.path().join(format!("cluster-{number}.tar"))).unwrap();
            let age = std::time::Duration::from_secs(100 * (10 - number));
            archive.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        fs::create_dir(cache.path().join("debian-0")).unwrap();
        remove_oldest_archives(cache.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(cache.path()).unwrap().flatten().collect();
        left.sort_by_key(fs::DirEntry::file_name);
        let left: Vec<_> = left
            .iter()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        assert_eq!(
            left,
            ["cluster-2.tar", "cluster-3.tar", "cluster-4.tar", "debian-0"]
        );
    }
}
