//! The functions' network: one network namespace for each container, and the CNI plugins that connect it to
//! the bridge.
//!
//! A namespace is mounted on a file in the state directory. It outlives the process in it, so that the
//! plugins can undo their changes in order, even if a function has crashed or the provider was restarted. The
//! plugins' results are kept in a file beside it.

mod conf;
mod plugin;

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::{
    fs::statfs,
    mount::{UnmountFlags, unmount},
};
use serde_json::Value;
use tokio::{process::Command, sync::Mutex};

use self::plugin::{CniCommand, CniPlugins, PluginInvocation};
use crate::{error::ProviderError, settings::ProviderSettings};

/// The name of the network interface inside a function's namespace.
const FUNCTION_INTERFACE: &str = "eth0";

/// The file system type of the files on which namespaces are mounted (linux/magic.h).
const NSFS_FILE_SYSTEM_TYPE: rustix::fs::FsWord = 0x6e73_6673;

/// The functions' network, which connects containers to the bridge.
#[derive(Debug)]
pub(crate) struct FunctionNetwork {
    plugins: CniPlugins,
    plugin_confs: Vec<Value>,
    loopback_conf: Value,
    namespaces: PathBuf,
    results: PathBuf,
    /// A lock for running CNI plugins one after the other, because they change the same firewall.
    one_at_a_time: Mutex<()>,
}

impl FunctionNetwork {
    /// Writes the CNI configuration, creates the state directories of the network, and returns the network's handle;
    /// creates no interface.
    pub(crate) fn write_configuration(settings: &ProviderSettings) -> Result<Self, ProviderError> {
        let list = conf::plugin_list_conf(
            &settings.bridge,
            &settings.subnet,
            &settings.state_dir.join("cni/ipam"),
        );
        let file = settings.cni_conf_dir().join(conf::CNI_CONF_FILE);
        let network = Self {
            plugins: CniPlugins::new(&settings.cni_bin_dir),
            plugin_confs: conf::plugin_inputs(&list),
            loopback_conf: conf::loopback_conf(),
            namespaces: settings.state_dir.join("netns"),
            results: settings.state_dir.join("cni/results"),
            one_at_a_time: Mutex::new(()),
        };
        for directory in [&settings.cni_conf_dir(), &network.namespaces, &network.results] {
            fs::create_dir_all(directory).map_err(ProviderError::io_error("create", directory))?;
        }
        fs::write(&file, format!("{list:#}\n")).map_err(ProviderError::io_error("write", &file))?;
        Ok(network)
    }

    /// Connects and disconnects a test namespace. This creates the bridge, with the host's address on it, and
    /// shows whether the plugins work on this machine.
    pub(crate) async fn connect_and_disconnect_test_namespace(&self) -> Result<(), ProviderError> {
        self.connect_container("self-test").await?;
        self.disconnect_container("self-test").await;
        Ok(())
    }

    /// Returns the file on which a container's network namespace is mounted.
    pub(crate) fn namespace_file(&self, id: &str) -> PathBuf {
        self.namespaces.join(id)
    }

    /// Creates a container's network namespace, in place of an earlier one, connects it to the bridge, and returns the
    /// container's address.
    pub(crate) async fn connect_container(&self, id: &str) -> Result<IpAddr, ProviderError> {
        self.disconnect_container(id).await;
        let attached = self.connect_new_namespace(id).await;
        if attached.is_err() {
            self.disconnect_container(id).await;
        }
        attached
    }

    /// Creates a namespace and runs the plugins for it; undoes nothing if that fails.
    async fn connect_new_namespace(&self, id: &str) -> Result<IpAddr, ProviderError> {
        let namespace = self.namespace_file(id);
        create_network_namespace(id, &namespace).await?;
        let invocation = |command, interface| PluginInvocation {
            command,
            id,
            namespace: &namespace,
            interface,
        };
        let _one = self.one_at_a_time.lock().await;
        self.plugins
            .run_plugin_and_parse_output_if_json(
                &invocation(CniCommand::Add, "lo"),
                &self.loopback_conf,
                None,
            )
            .await?;
        let mut result = None;
        for conf in &self.plugin_confs {
            result = self
                .plugins
                .run_plugin_and_parse_output_if_json(
                    &invocation(CniCommand::Add, FUNCTION_INTERFACE),
                    conf,
                    result.as_ref(),
                )
                .await?;
            // Written after every plugin, so that a chain that fails half-way can be undone.
            let bytes = result.as_ref().map(Value::to_string).unwrap_or_default();
            let file = self.results.join(id);
            fs::write(&file, bytes).map_err(ProviderError::io_error("write", &file))?;
        }
        result
            .as_ref()
            .and_then(first_address_in_result)
            .ok_or_else(|| ProviderError::Network {
                operation: "add".to_owned(),
                subject: id.to_owned(),
                reason: "the plugins returned no address".to_owned(),
            })
    }

    /// Disconnects a container from the bridge and removes its network namespace, if it has one. Errors are
    /// logged only, because no caller could handle them.
    pub(crate) async fn disconnect_container(&self, id: &str) {
        let namespace = self.namespace_file(id);
        let result_file = self.results.join(id);
        if namespace.exists() || result_file.exists() {
            let _one = self.one_at_a_time.lock().await;
            let result = read_cni_result(&result_file);
            // After a reboot, nothing is mounted on the file; everything else can still be undone.
            let namespace = if is_mounted_namespace(&namespace) {
                namespace.as_path()
            } else {
                Path::new("")
            };
            let invocation = PluginInvocation {
                command: CniCommand::Del,
                id,
                namespace,
                interface: FUNCTION_INTERFACE,
            };
            for conf in self.plugin_confs.iter().rev() {
                if let Err(error) = self
                    .plugins
                    .run_plugin_and_parse_output_if_json(&invocation, conf, result.as_ref())
                    .await
                {
                    tracing::warn!(container = id, %error, "a CNI plugin failed to clean up");
                }
            }
        }
        // An error means that nothing is mounted there.
        let _ = unmount(&namespace, UnmountFlags::DETACH);
        for file in [&namespace, &result_file] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %file.display(), "cannot remove a network file");
                }
                _ => {}
            }
        }
    }

    /// Returns the address of a container, if the container is connected to the bridge.
    pub(crate) fn address_in_stored_cni_result(&self, id: &str) -> Option<IpAddr> {
        first_address_in_result(&read_cni_result(&self.results.join(id))?)
    }

    /// Disconnects every container that is not known, and removes its network namespace.
    pub(crate) async fn disconnect_all_except(&self, is_known: impl Fn(&str) -> bool) {
        for directory in [&self.results, &self.namespaces] {
            let Ok(entries) = fs::read_dir(directory) else {
                continue;
            };
            let names = entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok());
            for id in names.filter(|id| !is_known(id)) {
                self.disconnect_container(&id).await;
            }
        }
    }
}

/// Creates a persistent network namespace, mounted on a file.
///
/// Uses the program `unshare`, because doing it in this process would need a thread of its own and an unsafe
/// call.
async fn create_network_namespace(id: &str, file: &Path) -> Result<(), ProviderError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .map_err(ProviderError::io_error("create a network namespace at", file))?;
    let mut mounted_on = std::ffi::OsString::from("--net=");
    mounted_on.push(file);
    let output = Command::new("unshare")
        .arg(mounted_on)
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .await;
    let output = output.map_err(ProviderError::io_error("run", "unshare"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ProviderError::Network {
        operation: "create a namespace for".to_owned(),
        subject: id.to_owned(),
        reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Returns whether a namespace is mounted on a file.
fn is_mounted_namespace(file: &Path) -> bool {
    statfs(file).is_ok_and(|statistics| statistics.f_type == NSFS_FILE_SYSTEM_TYPE)
}

fn read_cni_result(file: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Returns the first address in a CNI plugin's result, where it is followed by the length of its prefix.
fn first_address_in_result(result: &Value) -> Option<IpAddr> {
    let address = result["ips"][0]["address"].as_str()?;
    address.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_containers_address_is_read_without_prefix_from_the_cni_result() {
        let result = json!({"cniVersion": "0.4.0", "interfaces": [{"name": "openfaas0"}],
            "ips": [{"version": "4", "interface": 2, "address": "10.62.0.7/16", "gateway": "10.62.0.1"}]});
        assert_eq!(first_address_in_result(&result), Some([10, 62, 0, 7].into()));
        assert_eq!(first_address_in_result(&json!({"ips": []})), None);
    }
}
