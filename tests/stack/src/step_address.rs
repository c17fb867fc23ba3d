//! The CNI plugin that gives addresses to build steps: one in the subnet of the step's tenant, by which the firewall
//! tells tenants apart.
//!
//! BuildKit passes on the host name that builder-fn sets for the steps of a tenant's builds: the tenant's name. A
//! Dockerfile cannot change it, and a step cannot send with an address that it was not given.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    address::tenant_steps_subnet,
    directories::{StackDir, write_private_file},
    error::{IoResultExt as _, LauncherError, Result},
    plan::StackPlan,
    step_link, up,
};

/// The name of the plugin's program: the launcher under another name.
pub(crate) const ADDRESS_PLUGIN_PROGRAM_NAME: &str = "slipway-step-address";

/// The name of the plugin's configuration file, beside its program.
const ADDRESS_PLUGIN_CONFIGURATION_FILE: &str = "slipway-step-address.json";

/// The folder of Debian's CNI plugins.
pub(crate) const DEBIANS_CNI_PLUGINS_DIRECTORY: &str = "/usr/lib/cni";

/// The plugin that chooses an address within a subnet.
const DEBIANS_ADDRESS_PLUGIN: &str = "host-local";

/// The argument of CNI plugins with the host name of a step.
const HOST_NAME_ARGUMENT_PREFIX: &str = "K8S_POD_NAME=";

/// The configuration of the plugin: the subnets of tenants, by their names.
#[derive(Debug, Default, Serialize, Deserialize)]
struct TenantSubnets(BTreeMap<String, String>);

/// Returns the folder with the CNI plugins of the stack.
pub(crate) fn cni_plugin_directory_of_stack(dir: &StackDir) -> PathBuf {
    dir.config_directory().join("cni")
}

/// Writes the folder with the CNI plugins of the stack: this one with its configuration, the one that connects steps,
/// and a link to Debian's `loopback`.
pub(crate) fn write_cni_plugin_directory(dir: &StackDir, plan: &StackPlan) -> Result<()> {
    let folder = cni_plugin_directory_of_stack(dir);
    fs::create_dir_all(&folder).with_operation("create", &folder)?;
    let link = folder.join("loopback");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(Path::new(DEBIANS_CNI_PLUGINS_DIRECTORY).join("loopback"), &link)
        .with_operation("create", &link)?;
    for program in [ADDRESS_PLUGIN_PROGRAM_NAME, step_link::LINK_PLUGIN_PROGRAM_NAME] {
        up::write_launcher_as(&folder.join(program), plan)?;
    }
    let tenants = plan.tenants.iter().enumerate();
    let subnets =
        tenants.filter_map(|(index, tenant)| Some((tenant.tenant.clone(), tenant_steps_subnet(index)?)));
    let path = folder.join(ADDRESS_PLUGIN_CONFIGURATION_FILE);
    let text = serde_json::to_vec(&TenantSubnets(subnets.collect()));
    let text = text.map_err(|source| LauncherError::InvalidFile {
        path: path.clone(),
        source,
    })?;
    write_private_file(&path, &text)
}

/// Returns whether this process was started as the CNI plugin for addresses.
pub fn was_started_as_address_plugin() -> bool {
    let program = env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name() == Some(OsStr::new(ADDRESS_PLUGIN_PROGRAM_NAME))
}

/// Runs the plugin that chooses an address, with the subnet of the step's tenant in the configuration that it reads,
/// and returns its exit code.
pub fn run_address_plugin() -> Result<ExitCode> {
    let program = PathBuf::from(env::args_os().next().unwrap_or_default());
    let path = program.with_file_name(ADDRESS_PLUGIN_CONFIGURATION_FILE);
    let invalid = |path: &Path, source| LauncherError::InvalidFile {
        path: path.to_owned(),
        source,
    };
    let text = fs::read(&path).with_operation("read", &path)?;
    let subnets: TenantSubnets = serde_json::from_slice(&text).map_err(|error| invalid(&path, error))?;
    let input = Path::new("/dev/stdin");
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).with_operation("read", input)?;
    let mut configuration: Value = serde_json::from_slice(&text).map_err(|error| invalid(input, error))?;
    set_host_local_plugin_and_tenants_subnet(
        &mut configuration,
        &env::var("CNI_ARGS").unwrap_or_default(),
        &subnets,
    );

    let plugin = Path::new(DEBIANS_CNI_PLUGINS_DIRECTORY).join(DEBIANS_ADDRESS_PLUGIN);
    let mut child = Command::new(&plugin)
        .stdin(Stdio::piped())
        .spawn()
        .with_operation("run", &plugin)?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(configuration.to_string().as_bytes())
            .with_operation("write to", &plugin)?;
    }
    let status = child.wait().with_operation("wait for", &plugin)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Changes the configuration of a network (CNI specification) to that of Debian's `host-local`, with the subnet of the
/// step's tenant, if it has one.
fn set_host_local_plugin_and_tenants_subnet(
    configuration: &mut Value,
    cni_arguments: &str,
    subnets: &TenantSubnets,
) {
    let Some(addresses) = configuration
        .get_mut("ipam")
        .filter(|addresses| addresses.is_object())
    else {
        return;
    };
    addresses["type"] = json!(DEBIANS_ADDRESS_PLUGIN);
    let tenant = cni_arguments
        .split(';')
        .find_map(|argument| argument.strip_prefix(HOST_NAME_ARGUMENT_PREFIX));
    if let Some(subnet) = tenant.and_then(|tenant| subnets.0.get(tenant)) {
        addresses["ranges"] = json!([[{ "subnet": subnet }]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_tenant_with_rules_get_addresses_in_its_subnet_and_others_in_the_general_one() {
        let subnets = TenantSubnets(BTreeMap::from([("acme".to_owned(), "10.65.128.0/24".to_owned())]));
        let subnet_with = |arguments: &str| {
            let mut configuration = json!({
                "name": "steps",
                "ipam": { "type": ADDRESS_PLUGIN_PROGRAM_NAME, "ranges": [[{ "subnet": "10.65.0.0/17" }]] },
            });
            set_host_local_plugin_and_tenants_subnet(&mut configuration, arguments, &subnets);
            assert_eq!(configuration["ipam"]["type"], DEBIANS_ADDRESS_PLUGIN);
            configuration["ipam"]["ranges"][0][0]["subnet"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(subnet_with("K8S_POD_NAME=acme;IgnoreUnknown=1"), "10.65.128.0/24");
        assert_eq!(subnet_with("IgnoreUnknown=1;K8S_POD_NAME=acme"), "10.65.128.0/24");
        for other in [
            "",
            "K8S_POD_NAME=",
            "K8S_POD_NAME=acme2",
            "K8S_POD_NAME=acm",
            "XK8S_POD_NAME=acme",
        ] {
            assert_eq!(subnet_with(other), "10.65.0.0/17", "{other}");
        }
    }

    #[test]
    fn a_network_configuration_without_ipam_stays_unchanged() {
        let mut configuration = json!({ "cniVersion": "1.0.0" });
        set_host_local_plugin_and_tenants_subnet(
            &mut configuration,
            "K8S_POD_NAME=acme",
            &TenantSubnets::default(),
        );
        assert_eq!(configuration, json!({ "cniVersion": "1.0.0" }));
    }
}
