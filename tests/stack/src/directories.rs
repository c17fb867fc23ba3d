//! The launcher's directories: the cache that all stacks share, and the directory of each stack.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::error::{IoResultExt as _, LauncherError, Result};

/// The directories in which the launcher stores files (XDG base directory specification).
#[derive(Debug, Clone)]
pub struct LauncherDirectories {
    /// The cache of tools and base images; safe to delete.
    pub cache: PathBuf,
    /// The parent directory of the stacks' directories.
    pub(crate) stacks: PathBuf,
    /// The parent directory of the clusters' directories.
    pub(crate) clusters: PathBuf,
}

impl LauncherDirectories {
    /// Reads the launcher's directories from `XDG_CACHE_HOME`, `XDG_STATE_HOME` and `HOME`.
    pub fn from_env() -> Result<Self> {
        let home = |under: &str| env::var_os("HOME").map(|home| PathBuf::from(home).join(under));
        let base = |name: &str, under: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
                .or_else(|| home(under))
        };
        match (
            base("XDG_CACHE_HOME", ".cache"),
            base("XDG_STATE_HOME", ".local/state"),
        ) {
            (Some(cache), Some(state)) => Ok(Self {
                cache: cache.join("slipway"),
                stacks: state.join("slipway/stacks"),
                clusters: state.join("slipway/clusters"),
            }),
            _ => Err(LauncherError::Environment(
                "HOME is not set; set it, or both XDG_CACHE_HOME and XDG_STATE_HOME".into(),
            )),
        }
    }

    /// Returns the directory of the stack with this name; fails if the name is invalid.
    pub fn stack_directory(&self, name: &str) -> Result<StackDir> {
        Self::directory_below(&self.stacks, name)
    }

    /// Returns the directory of the cluster with this name; fails if the name is invalid.
    pub(crate) fn cluster_directory(&self, name: &str) -> Result<StackDir> {
        Self::directory_below(&self.clusters, name)
    }

    fn directory_below(parent: &Path, name: &str) -> Result<StackDir> {
        let valid = !name.is_empty()
            && name.len() <= 32
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !valid {
            return Err(LauncherError::Environment(format!(
                "{name:?} is not a valid name; use 1 to 32 of a-z, 0-9 and -"
            )));
        }
        Ok(StackDir {
            root: parent.join(name),
            name: name.to_owned(),
        })
    }
}

/// Returns the root of the repository that this launcher was built from, which has the Go modules, the
/// template and the functions.
pub(crate) fn repository_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The directory of one stack or cluster, with the paths of its files.
#[derive(Debug, Clone)]
pub struct StackDir {
    /// The name of the stack.
    pub(crate) name: String,
    /// The path of the stack's directory.
    pub root: PathBuf,
}

impl StackDir {
    /// Returns the path of the stack's plan. A directory with this file is a stack's.
    pub(crate) fn plan_file(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    /// Returns the path of the file with the state of the running stack.
    pub(crate) fn running_state_file(&self) -> PathBuf {
        self.root.join("running.json")
    }

    /// Returns the path of the supervisor's control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// Returns the directory of the secrets of Slipway's functions, one file each.
    pub(crate) fn secrets_directory(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Returns the directory of the parts' generated configuration.
    pub(crate) fn config_directory(&self) -> PathBuf {
        self.root.join("config")
    }

    /// Returns the directory of a part's data, which stays when the stack is stopped.
    pub(crate) fn part_data_directory(&self, part: &str) -> PathBuf {
        self.root.join("data").join(part)
    }

    /// Returns the path of the image of the file system with BuildKit's data.
    pub(crate) fn buildkit_disk_image(&self) -> PathBuf {
        self.root.join("data/buildkit.img")
    }

    /// Returns the directory of the sockets for clients on the machine.
    pub(crate) fn sockets_directory(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Returns the directory of the programs for a user's `PATH`.
    pub(crate) fn programs_directory(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Returns the working directory of faas-cli, with the build contexts.
    pub(crate) fn faas_cli_directory(&self) -> PathBuf {
        self.root.join("workshop")
    }

    /// Returns the `HOME` of the parts, with the logins of the stack's own clients.
    pub(crate) fn home_of_parts(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Returns the path of the log of a part or of the supervisor.
    pub(crate) fn part_log_file(&self, part_or_supervisor: &str) -> PathBuf {
        self.root.join("log").join(format!("{part_or_supervisor}.log"))
    }

    /// Creates the stack's directory, with access for its owner only, and the directories in it.
    pub(crate) fn create_directories(&self) -> Result<()> {
        create_private_directory_if_missing(&self.root)?;
        let parts = ["registry", "buildkit", "containerd", "nats", "provider", "faasd"]
            .map(|part| self.part_data_directory(part));
        let logs = self.root.join("log");
        for dir in [
            self.secrets_directory(),
            self.config_directory(),
            self.sockets_directory(),
            self.programs_directory(),
            self.home_of_parts(),
            logs,
        ]
        .iter()
        .chain(&parts)
        {
            fs::create_dir_all(dir).with_operation("create", dir)?;
        }
        Ok(())
    }

    /// Waits for the lock of the stack, which keeps other launchers from changing it until the returned file is
    /// dropped.
    pub(crate) async fn lock_stack_and_create_its_directory(&self) -> Result<File> {
        create_private_directory_if_missing(&self.root)?;
        truncate_and_lock_file_async(self.root.join("lock")).await
    }
}

/// Locks a file, which is created if it is missing, and waits while another process holds the lock; dropping the
/// returned file releases it.
pub(crate) fn truncate_and_lock_file(path: &Path) -> Result<File> {
    let file = File::create(path).with_operation("create", path)?;
    file.lock().with_operation("lock", path)?;
    Ok(file)
}

/// Locks a file as [`truncate_and_lock_file`] does, without blocking other tasks.
pub(crate) async fn truncate_and_lock_file_async(path: PathBuf) -> Result<File> {
    let at = path.clone();
    let locked = tokio::task::spawn_blocking(move || truncate_and_lock_file(&path)).await;
    locked.map_err(std::io::Error::other).with_operation("lock", at)?
}

/// Creates a directory with access for its owner only.
pub(crate) fn create_private_directory_if_missing(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_operation("create", path)
}

/// Writes a file that only its owner can read. The write is atomic: a reader sees the old content or the new.
pub(crate) fn write_private_file(path: &Path, content: &[u8]) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut name = OsString::from(path);
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_operation("write", &new)?;
    file.write_all(content).with_operation("write", &new)?;
    fs::rename(&new, path).with_operation("write", path)
}

/// Returns the free space of the file system that a path is on, in bytes.
pub(crate) fn free_space_bytes(path: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(path).with_operation("read the free space of", path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_name_of_other_characters_than_a_to_z_0_to_9_and_hyphens_or_too_long_is_rejected() {
        let directories = LauncherDirectories {
            cache: "/c".into(),
            stacks: "/s".into(),
            clusters: "/c".into(),
        };
        assert_eq!(
            directories.stack_directory("second-1").unwrap().control_socket(),
            Path::new("/s/second-1/control.sock")
        );
        for name in ["", "..", "a/b", "A", "a.b", &"x".repeat(33)] {
            assert!(directories.stack_directory(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn repository_root_contains_the_launchers_manifest() {
        assert!(repository_root().join("tests/stack/Cargo.toml").is_file());
    }
}
