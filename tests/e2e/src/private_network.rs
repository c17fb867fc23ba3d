//! A network namespace of its own, with a resolver of its own for processes in it.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{logged_process::LoggedProcess, network_namespace::NetworkNamespace};

/// A network namespace whose only interface is the loopback one, and a `resolv.conf` for it. Both end with this guard.
#[derive(Debug)]
pub struct LoopbackOnlyNamespace {
    /// The process that keeps the namespace.
    holder: LoggedProcess,
    folder: tempfile::TempDir,
}

impl LoopbackOnlyNamespace {
    /// Creates a namespace whose nameserver is 127.0.0.1.
    pub async fn create() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c"]);
        command.arg("ip link set lo up && echo ready && exec sleep infinity");
        let mut holder = LoggedProcess::spawn(command)?;
        holder
            .wait_for_line_in_whole_output(|line| (line == "ready").then_some(()))
            .await?;
        Ok(Self { holder, folder })
    }

    /// Returns the namespace.
    pub fn namespace(&self) -> Result<NetworkNamespace> {
        NetworkNamespace::of_process(self.holder.id())
    }

    /// Returns the path of the `resolv.conf`.
    pub fn resolv_conf_path(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }
}
