//! CNI plugins: programs that get the command in their environment and the configuration on standard input.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::error::ProviderError;

/// The CNI plugins in a directory.
#[derive(Debug)]
pub(super) struct CniPlugins {
    directory: PathBuf,
}

/// The command of a CNI plugin's run: to connect a container, or to disconnect it.
#[derive(Clone, Copy, Debug)]
pub(super) enum CniCommand {
    Add,
    Del,
}

/// The environment of a CNI plugin's invocation.
#[derive(Debug)]
pub(super) struct PluginInvocation<'a> {
    pub(super) command: CniCommand,
    /// The id of the container that the plugin connects or disconnects.
    pub(super) id: &'a str,
    pub(super) namespace: &'a Path,
    pub(super) interface: &'a str,
}

impl CniPlugins {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Runs the CNI plugin that the configuration names, and returns its result, if it prints one. `previous_result` is
    /// the result of the plugin before it.
    pub(super) async fn run_plugin_and_parse_output_if_json(
        &self,
        invocation: &PluginInvocation<'_>,
        conf: &Value,
        previous_result: Option<&Value>,
    ) -> Result<Option<Value>, ProviderError> {
        let name = conf["type"].as_str().unwrap_or_default();
        let command = match invocation.command {
            CniCommand::Add => "ADD",
            CniCommand::Del => "DEL",
        };
        let failed = |reason: String| ProviderError::Network {
            operation: format!("{command} by plugin {name} for"),
            subject: invocation.id.to_owned(),
            reason,
        };
        let program = self.directory.join(name);
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", invocation.id)
            .env("CNI_NETNS", invocation.namespace)
            .env("CNI_IFNAME", invocation.interface)
            .env("CNI_PATH", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(ProviderError::io_error("run", &program))?;
        if let Some(mut input) = child.stdin.take() {
            let text = plugin_input(conf, previous_result).to_string();
            input
                .write_all(text.as_bytes())
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        let output = child
            .wait_with_output()
            .await
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(plugin_error_message(&output.stdout, &output.stderr)));
        }
        Ok(serde_json::from_slice(&output.stdout).ok())
    }
}

/// Returns the input of a plugin: its configuration, with the result of the plugin before it.
fn plugin_input(conf: &Value, previous_result: Option<&Value>) -> Value {
    let mut input = conf.clone();
    if let Some(previous_result) = previous_result {
        input["prevResult"] = previous_result.clone();
    }
    input
}

/// Returns the error message in a CNI plugin's output: from the JSON on standard output, or else from
/// standard error.
fn plugin_error_message(stdout: &[u8], stderr: &[u8]) -> String {
    let error: Value = serde_json::from_slice(stdout).unwrap_or_else(|_| json!({}));
    match (error["msg"].as_str(), error["details"].as_str()) {
        (Some(message), Some(details)) if !details.is_empty() => format!("{message}; {details}"),
        (Some(message), _) => message.to_owned(),
        _ => String::from_utf8_lossy(stderr).trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_plugin_gets_the_result_of_the_one_before_it() {
        let previous = json!({"ips": []});
        let input = plugin_input(&json!({"type": "firewall"}), Some(&previous));
        assert_eq!(input, json!({"type": "firewall", "prevResult": {"ips": []}}));
        assert_eq!(
            plugin_input(&json!({"type": "bridge"}), None),
            json!({"type": "bridge"})
        );
    }

    #[test]
    fn error_messages_are_found_on_both_outputs() {
        assert_eq!(
            plugin_error_message(br#"{"code":11,"msg":"no range"}"#, b"x"),
            "no range"
        );
        assert_eq!(
            plugin_error_message(br#"{"code":11,"msg":"a","details":"b"}"#, b""),
            "a; b"
        );
        assert_eq!(plugin_error_message(b"", b"not found\n"), "not found");
    }

    #[tokio::test]
    async fn a_plugin_gets_the_command_in_its_environment_and_the_configuration_on_its_input() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("echo");
        let script = "#!/bin/sh\nread conf\n\
            echo \"{\\\"said\\\": \\\"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME\\\", \\\"conf\\\": $conf}\"\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let invocation = PluginInvocation {
            command: CniCommand::Add,
            id: "hello.1",
            namespace: Path::new("/ns"),
            interface: "eth0",
        };
        let conf = json!({"type": "echo"});
        let answer = CniPlugins::new(directory.path())
            .run_plugin_and_parse_output_if_json(&invocation, &conf, None)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer, json!({"said": "ADD hello.1 /ns eth0", "conf": conf}));
    }
}
