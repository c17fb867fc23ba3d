//! The CNI configuration: the same as faasd's, but with the address leases in the provider's state directory.

use std::path::Path;

use serde_json::{Value, json};

/// The name of the CNI configuration file.
pub(super) const CNI_CONF_FILE: &str = "10-openfaas.conflist";

/// The name of the functions' network, which appears in comments of firewall rules.
const CNI_NETWORK_NAME: &str = "openfaas-cni-bridge";

/// The version of CNI that both Debian's plugins and faasd's support.
const CNI_VERSION: &str = "0.4.0";

/// Returns the CNI configuration: the list of plugins with their settings.
pub(super) fn plugin_list_conf(bridge: &str, subnet: &str, leases_directory: &Path) -> Value {
    json!({
        "cniVersion": CNI_VERSION,
        "name": CNI_NETWORK_NAME,
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "subnet": subnet,
                    "dataDir": leases_directory,
                    "routes": [{"dst": "0.0.0.0/0"}]
                }
            },
            {"type": "firewall"}
        ]
    })
}

/// Returns the input of each CNI plugin in a list: its own section, with the list's name and version.
pub(super) fn plugin_inputs(list: &Value) -> Vec<Value> {
    let with_name = |plugin: &Value| {
        let mut conf = plugin.clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        conf["name"] = list["name"].clone();
        conf
    };
    list["plugins"]
        .as_array()
        .into_iter()
        .flatten()
        .map(with_name)
        .collect()
}

/// Returns the CNI configuration of the loopback interface.
pub(super) fn loopback_conf() -> Value {
    json!({"cniVersion": CNI_VERSION, "name": "cni-loopback", "type": "loopback"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_list_conf_has_the_given_bridge_subnet_and_lease_directory() {
        let list = plugin_list_conf("openfaas0", "10.62.0.0/16", Path::new("/state/ipam"));
        let bridge = &list["plugins"][0];
        assert_eq!(
            (&bridge["bridge"], &bridge["ipMasq"]),
            (&json!("openfaas0"), &json!(true))
        );
        assert_eq!(bridge["ipam"]["subnet"], "10.62.0.0/16");
        assert_eq!(bridge["ipam"]["dataDir"], "/state/ipam");
    }

    #[test]
    fn every_plugin_gets_the_networks_name_and_version() {
        let confs = plugin_inputs(&plugin_list_conf("b", "10.0.0.0/24", Path::new("/")));
        assert_eq!(confs.len(), 2);
        for conf in &confs {
            assert_eq!(
                (&conf["name"], &conf["cniVersion"]),
                (&json!(CNI_NETWORK_NAME), &json!(CNI_VERSION))
            );
        }
        assert_eq!(confs[1]["type"], "firewall");
    }
}
