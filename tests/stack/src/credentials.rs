//! Credentials of a stack, which are generated at its first start and kept as long as its data.

use std::{fmt, fs, io::Read as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    command::{new_command, run_program_with_input},
    directories::{StackDir, write_private_file},
    error::{IoResultExt as _, Result},
};

/// The user name of the gateway's administrator.
const GATEWAY_USER_NAME: &str = "admin";
/// The user name for the stack's registry.
const REGISTRY_USER_NAME: &str = "slipway";

/// The names of the secrets that Slipway's functions mount, besides those for BuildKit.
pub(crate) const FUNCTION_SECRET_NAMES: [&str; 5] = [
    "basic-auth-user",
    "basic-auth-password",
    "payload-secret",
    "deploy-secret",
    "registry-config",
];

/// A user name and password; `Debug` omits the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// The credentials of one stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayAndRegistryLogins {
    pub(crate) gateway: Login,
    /// The login for the stack's registry; `None` if the registry requires no password.
    pub(crate) registry: Option<Login>,
}

impl GatewayAndRegistryLogins {
    /// Reads the stack's credentials, and generates and stores those that are missing.
    ///
    /// `registry_host` is the registry's host and port; `registry_requires_password` is whether it requires a password.
    pub(crate) fn read_or_generate_also_signing_keys(
        dir: &StackDir,
        registry_host: &str,
        registry_requires_password: bool,
    ) -> Result<Self> {
        let secrets = dir.secrets_directory();
        let random =
            |name: &str| read_nonempty_text_or_make_file(&secrets.join(name), random_hex_of_192_bits);
        random("payload-secret")?;
        random("deploy-secret")?;
        let password = read_nonempty_text_or_make_file(
            &dir.config_directory().join("registry-password"),
            random_hex_of_192_bits,
        )?;
        let credentials = Self {
            gateway: Login {
                user: read_nonempty_text_or_make_file(&secrets.join("basic-auth-user"), || {
                    Ok(GATEWAY_USER_NAME.to_owned())
                })?,
                password: random("basic-auth-password")?,
            },
            registry: registry_requires_password.then(|| Login {
                user: REGISTRY_USER_NAME.to_owned(),
                password,
            }),
        };
        write_private_file(
            &secrets.join("registry-config"),
            credentials.docker_config(registry_host).as_bytes(),
        )?;
        Ok(credentials)
    }

    /// Reads the credentials of a stack that was started before.
    pub(crate) fn read_existing(dir: &StackDir, registry_requires_password: bool) -> Result<Self> {
        let read = |path: &Path| fs::read_to_string(path).with_operation("read", path);
        let password = read(&dir.config_directory().join("registry-password"))?;
        Ok(Self {
            gateway: Login {
                user: read(&dir.secrets_directory().join("basic-auth-user"))?,
                password: read(&dir.secrets_directory().join("basic-auth-password"))?,
            },
            registry: registry_requires_password.then(|| Login {
                user: REGISTRY_USER_NAME.to_owned(),
                password,
            }),
        })
    }

    /// Returns a Docker `config.json` with the registry's credentials.
    fn docker_config(&self, registry_host: &str) -> String {
        let auths = match &self.registry {
            Some(Login { user, password }) => {
                json!({ registry_host: { "auth": STANDARD.encode(format!("{user}:{password}")) } })
            }
            None => json!({}),
        };
        json!({ "auths": auths }).to_string()
    }

    /// Generates the registry's password file: the user name and a bcrypt hash, the format that the registry
    /// reads.
    pub(crate) async fn generate_htpasswd(login: &Login) -> Result<Vec<u8>> {
        run_program_with_input(
            new_command("htpasswd").args(["-niB", &login.user]),
            login.password.as_bytes(),
        )
        .await
    }
}

/// Returns the text of a file; if it is missing or empty, writes and returns what `make` returns.
fn read_nonempty_text_or_make_file(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => {
            let value = make()?;
            write_private_file(path, value.as_bytes())?;
            Ok(value)
        }
    }
}

/// Generates 192 random bits in hexadecimal.
fn random_hex_of_192_bits() -> Result<String> {
    let source = "/dev/urandom";
    let mut bytes = [0; 24];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .with_operation("read", source)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates the directories of a stack without credentials, which are removed when the first value is dropped.
    fn temporary_stack_dir() -> (tempfile::TempDir, StackDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = StackDir {
            name: "x".into(),
            root: temp.path().join("x"),
        };
        dir.create_directories().unwrap();
        (temp, dir)
    }

    #[test]
    fn credentials_are_generated_once_and_kept() {
        let (_temp, dir) = temporary_stack_dir();
        let first =
            GatewayAndRegistryLogins::read_or_generate_also_signing_keys(&dir, "10.63.1.2:5000", true)
                .unwrap();
        assert_eq!(
            GatewayAndRegistryLogins::read_or_generate_also_signing_keys(&dir, "10.63.1.2:5000", true)
                .unwrap(),
            first
        );
        assert_eq!(
            GatewayAndRegistryLogins::read_existing(&dir, true).unwrap(),
            first
        );
        for name in FUNCTION_SECRET_NAMES {
            assert!(
                fs::metadata(dir.secrets_directory().join(name)).unwrap().len() > 0,
                "{name}"
            );
        }
    }

    #[test]
    fn gateway_passwords_differ_between_stacks_and_from_the_registrys_password() {
        let ((_one, first), (_two, second)) = (temporary_stack_dir(), temporary_stack_dir());
        let first = GatewayAndRegistryLogins::read_or_generate_also_signing_keys(&first, "r", true).unwrap();
        assert_ne!(
            first.gateway.password,
            GatewayAndRegistryLogins::read_or_generate_also_signing_keys(&second, "r", true)
                .unwrap()
                .gateway
                .password
        );
        assert_ne!(first.gateway.password, first.registry.unwrap().password);
    }

    #[test]
    fn a_registry_without_a_password_has_no_login() {
        let (_temp, dir) = temporary_stack_dir();
        assert_eq!(
            GatewayAndRegistryLogins::read_or_generate_also_signing_keys(&dir, "r", false)
                .unwrap()
                .registry,
            None
        );
        assert_eq!(
            fs::read_to_string(dir.secrets_directory().join("registry-config")).unwrap(),
            r#"{"auths":{}}"#
        );
    }

    #[test]
    fn debug_output_of_a_login_has_no_password() {
        let login = Login {
            user: "u".into(),
            password: "hidden".into(),
        };
        assert!(!format!("{login:?}").contains("hidden"));
    }
}
