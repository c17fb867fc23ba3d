//! The images of the pods that every cluster has, made on this machine from the launcher's programs and Debian's.
//!
//! They are in one archive in the cache, which containerd imports at each start.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::plan::ClusterProgramDirectories;
use crate::{
    command::{new_command, run_program},
    directories::{self, LauncherDirectories},
    error::{IoResultExt as _, LauncherError, Result},
    image::{BytesLinkOrDirectory, ImageToArchive, LayerEntry, layer_from_entries_in_memory, write_archive},
    progress::ProgressSink,
};

/// The directory of Debian's CNI plugins.
pub(crate) const CNI_PLUGINS_DIRECTORY: &str = "/usr/lib/cni";

/// The directory of programs in the images.
const PROGRAMS_IN_IMAGE: &str = "usr/bin";

/// An increase of this makes new archives from unchanged programs.
const RECIPE: u32 = 1;

/// An image of a pod that every cluster has.
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
}

impl SystemImage {
    /// All images of the archive.
    const ALL: [SystemImage; 4] = [
        SystemImage::Pause,
        SystemImage::Coredns,
        SystemImage::Registry,
        SystemImage::Tools,
    ];

    fn name(self) -> &'static str {
        match self {
            SystemImage::Pause => "pause",
            SystemImage::Coredns => "coredns",
            SystemImage::Registry => "registry",
            SystemImage::Tools => "tools",
        }
    }

    /// Returns the reference of the image. Its host does not exist: it is imported and never pulled.
    pub(crate) fn reference(self) -> String {
        format!("cluster.slipway.invalid/{}:1", self.name())
    }

    /// Returns the programs that the image contains.
    fn programs(self, programs: &ClusterProgramDirectories, registry_program: &Path) -> Vec<PathBuf> {
        match self {
            SystemImage::Pause => vec![programs.kubernetes.join("pause")],
            SystemImage::Coredns => vec![programs.coredns.join("coredns")],
            SystemImage::Registry => vec![registry_program.to_owned()],
            SystemImage::Tools => vec!["/bin/busybox".into(), "/usr/bin/curl".into()],
        }
    }

    /// Returns the settings of the image's containers.
    fn settings(self) -> Value {
        let program = |name: &str, user: &str| json!({ "Entrypoint": [format!("/{PROGRAMS_IN_IMAGE}/{name}")], "User": user });
        match self {
            SystemImage::Pause => program("pause", "65535:65535"),
            SystemImage::Coredns => program("coredns", "65532:65532"),
            SystemImage::Registry => program("docker-registry", "1000:1000"),
            SystemImage::Tools => json!({ "Env": ["PATH=/usr/bin"], "Cmd": ["/usr/bin/sh"] }),
        }
    }
}

/// Returns the path of the archive with all images; makes it if it is not in the cache.
pub(crate) async fn load_or_make_archive(
    directories: &LauncherDirectories,
    programs: &ClusterProgramDirectories,
    registry_program: &Path,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    let cache = directories.cache.join("images");
    fs::create_dir_all(&cache).with_operation("create", &cache)?;
    let archive = cache.join(format!(
        "cluster-{}.tar",
        fingerprint_of_program_paths_and_sizes(programs, registry_program)?
    ));
    if !archive.exists() {
        let _lock = directories::truncate_and_lock_file_async(cache.join(".cluster.lock")).await?;
        progress.emit_progress_line("images", "making the cluster's images");
        let mut images = Vec::new();
        for image in SystemImage::ALL {
            images.push(make_image(image, programs, registry_program).await?);
        }
        let new = tempfile::NamedTempFile::new_in(&cache).with_operation("create a file in", &cache)?;
        write_archive(new.path(), &images)?;
        new.persist(&archive)
            .map_err(|error| error.error)
            .with_operation("write", &archive)?;
    }
    Ok(archive)
}

/// Returns 16 hexadecimal digits that change when a program in one of the images changes.
fn fingerprint_of_program_paths_and_sizes(
    programs: &ClusterProgramDirectories,
    registry_program: &Path,
) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(RECIPE.to_le_bytes());
    for image in SystemImage::ALL {
        for program in image.programs(programs, registry_program) {
            // The path of one of the launcher's programs has a hash of its sources.
            let size = fs::metadata(&program).with_operation("read", &program)?.len();
            hash.update(format!("{}\n{}\n{size}\n", image.name(), program.display()));
        }
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(16);
    Ok(text)
}

async fn make_image(
    image: SystemImage,
    programs: &ClusterProgramDirectories,
    registry_program: &Path,
) -> Result<ImageToArchive> {
    let mut entries = vec![LayerEntry {
        path: "tmp".to_owned(),
        mode: 0o1777,
        content: BytesLinkOrDirectory::Directory,
    }];
    for program in image.programs(programs, registry_program) {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        entries.push(read_executable_file_entry(
            &format!("{PROGRAMS_IN_IMAGE}/{name}"),
            &program,
        )?);
        for library in libraries_of(&program).await? {
            let path = library.trim_start_matches('/').to_owned();
            if entries.iter().all(|entry| entry.path != path) {
                entries.push(read_executable_file_entry(&path, Path::new(&library))?);
            }
        }
    }
    if image == SystemImage::Tools {
        let list = run_program(new_command("/bin/busybox").arg("--list")).await?;
        // Debian's static busybox cannot resolve names, as it cannot load the C library's modules for that.
        let commands = String::from_utf8_lossy(&list).into_owned();
        let links = commands
            .lines()
            .filter(|name| !["busybox", "wget"].contains(name))
            .map(|name| LayerEntry {
                path: format!("{PROGRAMS_IN_IMAGE}/{name}"),
                mode: 0o777,
                content: BytesLinkOrDirectory::SymbolicLink("busybox".to_owned()),
            });
        entries.extend(links);
    }
    Ok(ImageToArchive {
        reference: image.reference(),
        layers: vec![layer_from_entries_in_memory(entries)?],
        settings: image.settings(),
    })
}

/// Reads a program or library as an executable entry of a layer.
fn read_executable_file_entry(path_in_image: &str, source: &Path) -> Result<LayerEntry> {
    Ok(LayerEntry {
        path: path_in_image.to_owned(),
        mode: 0o755,
        content: BytesLinkOrDirectory::File(fs::read(source).with_operation("read", source)?),
    })
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
}
