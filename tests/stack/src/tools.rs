//! The build of the stack's Go programs from pinned modules.
//!
//! Each directory of `tools/` is a Go module whose `tool` lines name programs; `go.mod` and `go.sum` pin
//! every dependency with its checksum. The programs are cached in a directory whose name has a hash of these
//! two files and of the module's own source files.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    command::{new_command, run_program},
    directories::{self, LauncherDirectories},
    error::{IoResultExt as _, LauncherError, Result},
    progress::ProgressSink,
};

/// The paths of the Go programs that the stack runs or gives to its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolPaths {
    /// The path of `buildkitd`, the BuildKit daemon.
    pub buildkitd: PathBuf,
    /// The path of `buildctl`, BuildKit's own client.
    pub buildctl: PathBuf,
    /// The path of containerd; its shim is in the same directory.
    pub(crate) containerd: PathBuf,
    /// The path of `ctr`, containerd's own client.
    pub(crate) ctr: PathBuf,
    /// The path of the OpenFaaS gateway's program.
    pub(crate) gateway: PathBuf,
    /// The path of the Community queue-worker's program.
    pub(crate) queue_worker: PathBuf,
    /// The path of the server program of NATS Streaming, the gateway's queue.
    pub(crate) nats: PathBuf,
    /// The path of `faas-cli`, the client of OpenFaaS.
    pub faas_cli: PathBuf,
    /// The path of runc, which runs the containers of functions and of build steps; empty in the plan of a stack
    /// that an earlier launcher started.
    #[serde(default)]
    pub runc: PathBuf,
}

impl ToolPaths {
    /// Builds the Go modules that are not in the cache, one after the other, because `go build` uses every core
    /// by itself.
    pub(crate) async fn build_missing_tools(
        directories: &LauncherDirectories,
        progress: &ProgressSink,
    ) -> Result<Self> {
        for module in ["openfaas", "faas-cli", "containerd", "runc", "buildkit"] {
            build_go_module(directories, module, progress).await?;
        }
        Self::paths_once_built(directories)
    }

    /// Returns the paths that the Go programs have once they are built.
    pub(crate) fn paths_once_built(directories: &LauncherDirectories) -> Result<Self> {
        let programs = |module| built_programs_directory(directories, module);
        let (openfaas, faas_cli) = (programs("openfaas")?, programs("faas-cli")?);
        let (containerd, runc) = (programs("containerd")?, programs("runc")?);
        let buildkit = programs("buildkit")?;
        Ok(Self {
            buildkitd: buildkit.join("buildkitd"),
            buildctl: buildkit.join("buildctl"),
            containerd: containerd.join("containerd"),
            ctr: containerd.join("ctr"),
            gateway: openfaas.join("gateway"),
            queue_worker: openfaas.join("nats-queue-worker"),
            nats: openfaas.join("nats-streaming-server"),
            faas_cli: faas_cli.join("faas-cli"),
            runc: runc.join("runc"),
        })
    }
}

/// Builds a Go module of `tools/` unless it is in the cache, and returns the directory of its programs.
pub async fn build_go_module(
    directories: &LauncherDirectories,
    module: &str,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    let (source, built) = (
        module_source_directory(module),
        built_programs_directory(directories, module)?,
    );
    let tools = directories.cache.join("tools");
    if built.exists() {
        return Ok(built);
    }
    fs::create_dir_all(&tools).with_operation("create", &tools)?;
    let _lock = directories::truncate_and_lock_file_async(tools.join(format!(".{module}.lock"))).await?;
    if built.exists() {
        return Ok(built);
    }
    progress.emit_progress_line("tools", format_args!("building {module}"));
    let new = tempfile::tempdir_in(&tools).with_operation("create a directory in", &tools)?;
    let mut go = new_command("go");
    let GoBuildCgoTagsAndLdflags { cgo, tags, ldflags } =
        GoBuildCgoTagsAndLdflags::of_module(module, &source)?;
    go.current_dir(source).env("CGO_ENABLED", cgo);
    if env::var_os("GOGC").is_none() {
        // Saves a fifth of the compiler's time, which it would spend on garbage collection.
        go.env("GOGC", "400");
    }
    // The trailing slash marks a directory: `go` would take it for a file's name if the module has a single
    // program.
    go.args(["build", "-trimpath", &ldflags, tags, "-o"])
        .arg(new.path().join(""))
        .arg("tool");
    progress
        .show_while(format!("tools: building {module}"), |_| run_program(&mut go))
        .await?;
    let new = new.keep();
    fs::rename(&new, &built).with_operation("rename", &new)?;
    progress.emit_progress_line("tools", format_args!("built {module}"));
    Ok(built)
}

/// The options of `go build` that differ between modules.
#[derive(Debug, PartialEq, Eq)]
struct GoBuildCgoTagsAndLdflags {
    /// The value of `CGO_ENABLED`.
    cgo: &'static str,
    tags: &'static str,
    ldflags: String,
}

impl GoBuildCgoTagsAndLdflags {
    fn of_module(module: &str, source: &Path) -> Result<Self> {
        let options = |cgo, tags, more_ldflags: &str| Self {
            cgo,
            tags,
            ldflags: format!("-ldflags=-s -w{more_ldflags}"),
        };
        Ok(match module {
            // runc enters namespaces in C, before Go's runtime starts threads, and filters system calls with
            // libseccomp.
            "runc" => options("1", "-tags=seccomp,urfave_cli_no_docs", ""),
            "kubernetes" => options("0", "-tags=", &kubernetes_version_ldflags(&read_go_mod(source)?)),
            "buildkit" => options("0", "-tags=", &buildkit_version_ldflags(&read_go_mod(source)?)),
            _ => options("0", "-tags=", ""),
        })
    }
}

/// Returns the linker flags that make the programs of Kubernetes report the version in `go.mod`. Without them they
/// report v0.0.0, and charts that need a version refuse to be installed.
fn kubernetes_version_ldflags(go_mod: &str) -> String {
    let version = required_version(go_mod, "k8s.io/kubernetes");
    let mut numbers = version.trim_start_matches('v').split('.');
    let values = [
        ("gitVersion", version),
        ("gitMajor", numbers.next().unwrap_or_default()),
        ("gitMinor", numbers.next().unwrap_or_default()),
        ("gitTreeState", "clean"),
    ];
    values
        .map(|(name, value)| format!(" -X k8s.io/component-base/version.{name}={value}"))
        .concat()
}

/// Returns the linker flags that make BuildKit's programs report the version in `go.mod`, as those of its releases do.
/// builder-fn lets no two tenants share a daemon that does not report its version.
fn buildkit_version_ldflags(go_mod: &str) -> String {
    let version = required_version(go_mod, "github.com/moby/buildkit");
    format!(" -X github.com/moby/buildkit/version.Version={version}")
}

fn read_go_mod(module_directory: &Path) -> Result<String> {
    let path = module_directory.join("go.mod");
    fs::read_to_string(&path).with_operation("read", &path)
}

/// Returns the version of a module that `go.mod` requires, such as `v1.2.3`; empty if it does not require the module.
fn required_version<'a>(go_mod: &'a str, module: &str) -> &'a str {
    let requirement = go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix(module)?.strip_prefix(' '));
    requirement
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_default()
}

/// Returns the directory of a Go module in the repository.
fn module_source_directory(module: &str) -> PathBuf {
    directories::repository_root()
        .join("tests/stack/tools")
        .join(module)
}

/// Returns the directory of a Go module's programs, whether it exists or not.
fn built_programs_directory(directories: &LauncherDirectories, module: &str) -> Result<PathBuf> {
    Ok(directories.cache.join("tools").join(format!(
        "{module}-{}",
        hash_of_module(&module_source_directory(module))?
    )))
}

/// Returns the hash of a Go module's `go.mod`, `go.sum` and source files, 16 hexadecimal digits, which is part of the
/// name of its programs' directory.
fn hash_of_module(module_directory: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["go.mod", "go.sum"] {
        let path = module_directory.join(name);
        hash.update(fs::read(&path).with_operation("read", &path)?);
    }
    for path in go_files_of_own_programs(module_directory)? {
        hash.update(fs::read(&path).with_operation("read", &path)?);
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(16);
    Ok(text)
}

/// Returns the source files of a module's own programs, each of which is a directory of the module, in order.
fn go_files_of_own_programs(module_directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = |path: &Path| {
        let entries = fs::read_dir(path).with_operation("read", path)?;
        Ok::<_, LauncherError>(entries.flatten().map(|entry| entry.path()))
    };
    for program in entries(module_directory)?.filter(|path| path.is_dir()) {
        found.extend(entries(&program)?.filter(|path| path.extension().is_some_and(|it| it == "go")));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_flags_of_kubernetes_have_the_version_in_go_mod() {
        let flags = kubernetes_version_ldflags("require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n");
        for value in ["gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"] {
            assert!(
                flags.contains(&format!(" -X k8s.io/component-base/version.{value}")),
                "{flags}"
            );
        }
        let source = module_source_directory("kubernetes");
        let options = GoBuildCgoTagsAndLdflags::of_module("kubernetes", &source).unwrap();
        assert!(options.ldflags.contains("gitMajor=1 "), "{options:?}");
    }

    #[test]
    fn the_linker_flags_of_buildkit_have_the_version_in_go_mod() {
        let source = module_source_directory("buildkit");
        let options = GoBuildCgoTagsAndLdflags::of_module("buildkit", &source).unwrap();
        let (_, version) = options
            .ldflags
            .split_once("github.com/moby/buildkit/version.Version=v")
            .unwrap();
        assert!(
            version.starts_with(|first: char| first.is_ascii_digit()),
            "{options:?}"
        );
    }

    #[test]
    fn a_changed_go_file_of_a_module_changes_its_hash() {
        let module = tempfile::tempdir().unwrap();
        fs::create_dir(module.path().join("program")).unwrap();
        let main = module.path().join("program/main.go");
        for path in [
            &module.path().join("go.mod"),
            &module.path().join("go.sum"),
            &main,
        ] {
            fs::write(path, "").unwrap();
        }
        let before = hash_of_module(module.path()).unwrap();
        fs::write(&main, "package main\n").unwrap();
        assert_ne!(hash_of_module(module.path()).unwrap(), before);
    }
}
