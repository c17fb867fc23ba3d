//! The CNI plugin that connects build steps: Debian's `ptp`, except that the kernel removes the interfaces of a step.
//!
//! Removing a pair of interfaces takes until no processor uses them any more, and BuildKit waits for that at the end of
//! each step whose network is not from its pool, as those of a tenant's steps are not. It then removes the step's network
//! namespace, with which the kernel removes the pair in the background. So the plugin only releases the step's address.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use crate::{
    error::{LauncherError, Result},
    step_address::{DEBIANS_CNI_PLUGINS_DIRECTORY, run_address_plugin},
};

/// The name of the plugin's program: the launcher under another name.
pub(crate) const LINK_PLUGIN_PROGRAM_NAME: &str = "slipway-step-link";

/// The plugin that makes a pair of interfaces, one of them in the step's network namespace.
const DEBIANS_INTERFACES_PLUGIN: &str = "ptp";

/// The variable with the command of a CNI plugin.
const CNI_COMMAND_VARIABLE: &str = "CNI_COMMAND";

/// The command that disconnects a step.
const DISCONNECT_COMMAND: &str = "DEL";

/// Returns whether this process was started as the CNI plugin that connects build steps.
pub fn was_started_as_link_plugin() -> bool {
    let program = env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name() == Some(OsStr::new(LINK_PLUGIN_PROGRAM_NAME))
}

/// Disconnects a step by releasing its address, and returns the exit code of that; becomes Debian's plugin for every
/// other command, and returns only if that fails.
pub fn release_address_or_become_ptp() -> Result<ExitCode> {
    if env::var_os(CNI_COMMAND_VARIABLE).is_some_and(|command| command == DISCONNECT_COMMAND) {
        return run_address_plugin();
    }
    let plugin = Path::new(DEBIANS_CNI_PLUGINS_DIRECTORY).join(DEBIANS_INTERFACES_PLUGIN);
    Err(LauncherError::Spawn {
        program: plugin.display().to_string(),
        source: Command::new(&plugin).exec(),
    })
}
