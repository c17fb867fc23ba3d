//! The installation of the Debian packages that the stack and its build need.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    command::{new_command, run_program},
    directories::LauncherDirectories,
    error::{IoResultExt as _, LauncherError, Result},
    progress::ProgressSink,
};

/// The Debian packages that the stack and its build need. They only install files and start no service.
const STACK_PACKAGES: &[&str] = &[
    "apache2-utils",
    "busybox-static",
    "ca-certificates",
    "containernetworking-plugins",
    "e2fsprogs",
    "git",
    "iproute2",
    "iptables",
    "libprotobuf-dev",
    "libseccomp-dev",
    "mmdebstrap",
    "pkg-config",
    "protobuf-compiler",
    "slirp4netns",
    "util-linux",
    "zstd",
];

/// The Debian packages that the end-to-end tests need: the clients of `tests/clients`, and a browser with its driver
/// and a font.
const TEST_PACKAGES: &[&str] = &[
    "chromium",
    "chromium-driver",
    "curl",
    "fonts-dejavu-core",
    "nodejs",
    "openssl",
    "php-cli",
    "python3",
    "python3-venv",
];

/// The Debian packages that a cluster needs besides those of a stack.
const CLUSTER_PACKAGES: &[&str] = &["curl", "ipset", "openssl"];

/// The Debian package of the registry. Installing it would start a server that listens on every address, now and at
/// each boot; it is unpacked into the cache instead, unless it is installed already.
const REGISTRY_PACKAGE: &str = "docker-registry";
/// The Debian package of Prometheus and promtool. It is unpacked into the cache, because installing it would start a
/// server too.
const PROMETHEUS_PACKAGE: &str = "prometheus";

/// Installs the missing packages that the stack needs; fails if some are missing and this process is not root's.
pub async fn install_missing_packages(progress: &ProgressSink) -> Result<()> {
    install_packages_if_missing(STACK_PACKAGES, progress).await
}

/// Installs the missing packages that the stack and the end-to-end tests need.
pub async fn install_missing_packages_for_stack_and_tests(progress: &ProgressSink) -> Result<()> {
    install_packages_if_missing(&[STACK_PACKAGES, TEST_PACKAGES].concat(), progress).await
}

/// Installs the missing packages that a cluster needs.
pub(crate) async fn install_missing_packages_for_clusters(progress: &ProgressSink) -> Result<()> {
    install_packages_if_missing(&[STACK_PACKAGES, CLUSTER_PACKAGES].concat(), progress).await
}

/// Installs those of the packages that are missing with apt-get; fails if some are missing and this process is not
/// root's.
async fn install_packages_if_missing(packages: &[&'static str], progress: &ProgressSink) -> Result<()> {
    let missing = missing_packages(packages).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        return Err(LauncherError::Environment(format!(
            "packages are missing; as root, run: apt-get install {names}"
        )));
    }
    progress.emit_progress_line("packages", format_args!("installing {names}"));
    run_apt_get_updating_lists_on_failure(
        &[&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat(),
        None,
    )
    .await?;
    progress.emit_progress_line("packages", "installed");
    Ok(())
}

/// Downloads and unpacks the package of the registry's program, if it is not installed, and returns the program's path.
pub(crate) async fn unpack_registry_program_if_missing(
    directories: &LauncherDirectories,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    unpack_package_if_missing(REGISTRY_PACKAGE, "docker-registry", directories, progress).await
}

/// Downloads and unpacks the package of `promtool`, which checks metrics, if it is not installed, and returns its path.
pub async fn unpack_promtool_if_missing(
    directories: &LauncherDirectories,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    unpack_package_if_missing(PROMETHEUS_PACKAGE, "promtool", directories, progress).await
}

/// Downloads and unpacks the package of Prometheus, if it is not installed, and returns the path of its server.
pub async fn unpack_prometheus_if_missing(
    directories: &LauncherDirectories,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    unpack_package_if_missing(PROMETHEUS_PACKAGE, "prometheus", directories, progress).await
}

/// Returns the path of a program, in `/usr/bin` or in the cache; first unpacks its package into the cache if it is in
/// neither.
async fn unpack_package_if_missing(
    package: &str,
    program: &str,
    directories: &LauncherDirectories,
    progress: &ProgressSink,
) -> Result<PathBuf> {
    let installed = Path::new("/usr/bin").join(program);
    if installed.exists() {
        return Ok(installed);
    }
    let dir = directories.cache.join("tools").join(package);
    let program = dir.join("usr/bin").join(program);
    if program.exists() {
        return Ok(program);
    }
    progress.emit_progress_line("packages", format_args!("unpacking {package}"));
    let tools = directories.cache.join("tools");
    fs::create_dir_all(&tools).with_operation("create", &tools)?;
    let new = tempfile::tempdir_in(&tools).with_operation("create a directory in", &tools)?;
    // apt downloads as a user of its own, which cannot write here; root avoids the warning about that.
    run_apt_get_updating_lists_on_failure(
        &["download", "-o", "APT::Sandbox::User=root", package],
        Some(new.path()),
    )
    .await?;
    for entry in fs::read_dir(new.path()).with_operation("read", new.path())? {
        let file = entry.with_operation("read", new.path())?.path();
        run_program(new_command("dpkg").arg("-x").arg(&file).arg(new.path())).await?;
        fs::remove_file(&file).with_operation("remove", &file)?;
    }
    let new = new.keep();
    fs::rename(&new, &dir).with_operation("rename", &new)?;
    Ok(program)
}

/// Runs apt-get; if that fails, updates the package lists, which a new machine lacks, and runs it again.
async fn run_apt_get_updating_lists_on_failure(args: &[&str], dir: Option<&Path>) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut apt = new_command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(args);
        if let Some(dir) = dir {
            apt.current_dir(dir);
        }
        apt
    };
    if run_program(&mut apt(args)).await.is_ok() {
        return Ok(());
    }
    run_program(&mut apt(&["update"])).await?;
    run_program(&mut apt(args)).await.map(drop)
}

/// Asks dpkg which of the packages are not installed.
async fn missing_packages(packages: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut query = new_command("dpkg-query");
    query
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages);
    // dpkg-query fails if it does not know one of the packages, but still lists the others.
    let output = query.output().await.map_err(|source| LauncherError::Spawn {
        program: "dpkg-query".into(),
        source,
    })?;
    Ok(packages_not_installed(
        packages,
        &String::from_utf8_lossy(&output.stdout),
    ))
}

/// Returns those of the packages that are not installed by a list of dpkg-query, with a name and a status on each line.
fn packages_not_installed(packages: &[&'static str], dpkg_query_output: &str) -> Vec<&'static str> {
    let installed = |name: &str| {
        dpkg_query_output
            .lines()
            .any(|line| line.strip_prefix(name) == Some(" installed"))
    };
    packages.iter().copied().filter(|name| !installed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_was_removed_or_never_installed_counts_as_missing() {
        let listed = "runc installed\nzstd config-files\nruncible installed\n";
        assert_eq!(
            packages_not_installed(&["runc", "zstd", "iptables"], listed),
            ["zstd", "iptables"]
        );
    }
}
