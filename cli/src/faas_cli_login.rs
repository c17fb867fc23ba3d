//! The gateway that faas-cli is logged in to.
//!
//! Nothing but its address is used. The password would reach the function behind a route of the gateway, and no route that
//! the command uses needs it.
//!
//! Form of the file: openfaas/faas-cli, `config/config_file.go`.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

/// The variable with the folder of faas-cli's configuration.
const CONFIG_FOLDER_VARIABLE: &str = "OPENFAAS_CONFIG";

/// The folder of faas-cli's configuration in a home, if the variable does not name one.
const DEFAULT_CONFIG_FOLDER: &str = ".openfaas";

/// The file in that folder.
const CONFIG_FILE: &str = "config.yml";

/// faas-cli's configuration, without what is not used.
#[derive(Deserialize)]
struct FaasCliConfig {
    #[serde(default)]
    auths: Vec<Login>,
}

/// A login at a gateway.
#[derive(Deserialize)]
struct Login {
    gateway: String,
}

/// Returns the URL of the gateway that faas-cli is logged in to; `None` if there is no login, or several, or the file
/// cannot be read.
pub(crate) fn gateway_of_only_login(environment: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let folder = match environment(CONFIG_FOLDER_VARIABLE) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(environment("HOME")?).join(DEFAULT_CONFIG_FOLDER),
    };
    gateway_of_only_login_in(&fs::read_to_string(folder.join(CONFIG_FILE)).ok()?)
}

fn gateway_of_only_login_in(config: &str) -> Option<String> {
    let config: FaasCliConfig = serde_saphyr::from_str(config).ok()?;
    match config.auths.as_slice() {
        [only] => Some(only.gateway.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `faas-cli login` writes it.
    const ONE_LOGIN: &str =
        "auths:\n- gateway: https://gateway.example\n  auth: basic\n  token: YWRtaW46cGFzc3dvcmQ=\n";

    #[test]
    fn only_a_single_login_names_the_gateway() {
        assert_eq!(
            gateway_of_only_login_in(ONE_LOGIN).as_deref(),
            Some("https://gateway.example")
        );
        let two = format!("{ONE_LOGIN}- gateway: https://other.example\n  auth: basic\n  token: eA==\n");
        for config in ["", "auths: []\n", "auths: 7\n", ": [", two.as_str()] {
            assert_eq!(gateway_of_only_login_in(config), None, "{config}");
        }
    }

    #[test]
    fn the_configuration_is_in_the_named_folder_or_in_the_home() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join(DEFAULT_CONFIG_FOLDER);
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join(CONFIG_FILE), ONE_LOGIN).expect("a file");
        for (variable, value) in [("HOME", home.path()), (CONFIG_FOLDER_VARIABLE, &folder)] {
            let environment = |name: &str| (name == variable).then(|| value.display().to_string());
            assert!(gateway_of_only_login(&environment).is_some(), "{variable}");
        }
        assert_eq!(gateway_of_only_login(&|_| None), None);
    }
}
