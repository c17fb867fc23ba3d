//! Where the builder is, and with which key requests to it are signed.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use function_host::Secret;
use function_host::http::Uri;
use function_host::signature::HmacKeys;

use crate::faas_cli_login;
use crate::failure::Failure;

/// The variable with the key itself.
const KEY_VARIABLE: &str = "SLIPWAY_PAYLOAD_SECRET";

/// The variables with the path of the file with the key: Slipway's, and faas-cli's.
const KEY_FILE_VARIABLES: [&str; 2] = ["SLIPWAY_PAYLOAD_SECRET_FILE", "OPENFAAS_PAYLOAD_SECRET"];

/// The variables with the builder's URL: Slipway's, and faas-cli's.
const BUILDER_URL_VARIABLES: [&str; 2] = ["SLIPWAY_BUILDER_URL", "OPENFAAS_REMOTE_BUILDER"];

/// The variable with the gateway's URL.
const GATEWAY_URL_VARIABLE: &str = "OPENFAAS_URL";

/// The gateway that faas-cli takes where nothing names one.
const DEFAULT_GATEWAY_URL: &str = "http://127.0.0.1:8080";

/// The name of the builder's function at the gateway.
const DEFAULT_BUILDER_FUNCTION: &str = "builder-fn";

/// The arguments of every command that asks the builder.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectionArguments {
    /// The gateway's URL. Default: the stack file's, OPENFAAS_URL, that of faas-cli's only login,
    /// http://127.0.0.1:8080.
    #[arg(long, short, value_name = "URL")]
    gateway: Option<String>,
    /// The builder's own URL. Default: SLIPWAY_BUILDER_URL, OPENFAAS_REMOTE_BUILDER; without one, only the gateway is
    /// used.
    #[arg(long, value_name = "URL")]
    builder: Option<String>,
    /// The builder's name at the gateway.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_BUILDER_FUNCTION, env = "SLIPWAY_BUILDER_FUNCTION")]
    builder_function: String,
    /// The file with the key that signs requests. Default: SLIPWAY_PAYLOAD_SECRET (the key itself),
    /// SLIPWAY_PAYLOAD_SECRET_FILE, OPENFAAS_PAYLOAD_SECRET (files).
    #[arg(long, value_name = "FILE")]
    payload_secret: Option<PathBuf>,
    /// The tenant whose key this is, where the operator has a policy. Saves the builder trying all keys.
    #[arg(long, value_name = "NAME", env = "SLIPWAY_TENANT")]
    tenant: Option<String>,
}

/// The addresses and the key of the builder.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// The gateway's URL, without a trailing slash.
    pub(crate) gateway: String,
    /// The builder's own URL, without a trailing slash.
    pub(crate) builder: Option<String>,
    /// The builder's name at the gateway.
    pub(crate) builder_function: String,
    /// The key that signs requests, and where it was found.
    pub(crate) key: SigningKey,
    /// The tenant whose key it is.
    pub(crate) tenant: Option<String>,
    /// The options that lead another command to the same builder, each with a space before it.
    pub(crate) options: String,
}

/// The key that signs requests, and where it was found. `Debug` does not show it.
#[derive(Clone, Debug)]
pub(crate) struct SigningKey {
    /// The key, ready to sign with.
    pub(crate) keys: HmacKeys,
    /// The place of the key, as messages name it.
    pub(crate) place: String,
    /// The file of the key, if it is in one.
    pub(crate) file: Option<PathBuf>,
}

impl ConnectionArguments {
    /// Returns the settings from the command line, the stack file's gateway, the environment and faas-cli's login, in
    /// this order.
    ///
    /// # Errors
    /// Fails if there is no key, its file cannot be read, or a URL is malformed.
    pub(crate) fn resolve(&self, stack_gateway: Option<&str>) -> Result<ConnectionSettings, Failure> {
        self.resolve_with_environment(stack_gateway, &|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    fn resolve_with_environment(
        &self,
        stack_gateway: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ConnectionSettings, Failure> {
        let gateway = self.gateway.clone();
        let gateway = gateway.or_else(|| stack_gateway.map(str::to_owned));
        let gateway = gateway.or_else(|| environment(GATEWAY_URL_VARIABLE));
        let gateway = gateway.or_else(|| faas_cli_login::gateway_of_only_login(environment));
        let builder = self.builder.clone();
        let builder = builder.or_else(|| BUILDER_URL_VARIABLES.iter().find_map(|name| environment(name)));
        Ok(ConnectionSettings {
            gateway: parse_url_adding_http_if_no_scheme(
                "the gateway",
                gateway.as_deref().unwrap_or(DEFAULT_GATEWAY_URL),
            )?,
            builder: builder
                .map(|url| parse_url_adding_http_if_no_scheme("the builder", &url))
                .transpose()?
                .map(|url| url.strip_suffix("/build").map(str::to_owned).unwrap_or(url)),
            builder_function: match self.builder_function.as_str() {
                "" => DEFAULT_BUILDER_FUNCTION.to_owned(),
                name => name.to_owned(),
            },
            key: self.find_key(environment)?,
            tenant: self.tenant.clone().filter(|tenant| !tenant.is_empty()),
            options: self.options_for_same_builder(stack_gateway),
        })
    }

    /// Returns the options that lead another command, in another folder, to the same builder.
    fn options_for_same_builder(&self, stack_gateway: Option<&str>) -> String {
        let key = self.payload_secret.as_ref();
        let key = key.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let key = key.map(|path| path.display().to_string());
        let named = |name: &String| !name.is_empty() && name != DEFAULT_BUILDER_FUNCTION;
        let options = [
            ("gateway", self.gateway.as_deref().or(stack_gateway)),
            ("builder", self.builder.as_deref()),
            (
                "builder-function",
                Some(&self.builder_function)
                    .filter(|name| named(name))
                    .map(String::as_str),
            ),
            ("payload-secret", key.as_deref()),
            (
                "tenant",
                self.tenant.as_deref().filter(|tenant| !tenant.is_empty()),
            ),
        ];
        let given = options
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        given
            .map(|(name, value)| format!(" --{name} {}", quote_for_shell(value)))
            .collect()
    }

    /// Finds the key that signs requests: in the file of `--payload-secret`, or else by the environment.
    fn find_key(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<SigningKey, Failure> {
        if let Some(path) = &self.payload_secret {
            return read_key(path, "--payload-secret");
        }
        if let Some(text) = environment(KEY_VARIABLE) {
            return parse_key(text.into_bytes(), KEY_VARIABLE.to_owned());
        }
        for name in KEY_FILE_VARIABLES {
            if let Some(path) = environment(name) {
                return read_key(Path::new(&path), name);
            }
        }
        Err(Failure::usage(
            "there is no key to sign the request with",
            "give the file with the builder's secret payload-secret: --payload-secret FILE, or SLIPWAY_PAYLOAD_SECRET_FILE \
             (for the local stack: eval \"$(make env)\")",
        ))
    }
}

/// Quotes a value for a shell, if it needs that.
pub(crate) fn quote_for_shell(value: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:@".contains(character);
    match value.chars().all(is_plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

/// Reads the key in a file, whose path is from the setting `setting_name`.
fn read_key(path: &Path, setting_name: &str) -> Result<SigningKey, Failure> {
    let place = format!("{} ({setting_name})", path.display());
    let bytes = fs::read(path).map_err(|error| {
        Failure::usage(
            format!("could not read the key in {place}: {error}"),
            "name a readable file with the builder's secret payload-secret",
        )
    })?;
    let mut key = parse_key(bytes, place)?;
    key.file = Some(path.to_owned());
    Ok(key)
}

fn parse_key(bytes: Vec<u8>, place: String) -> Result<SigningKey, Failure> {
    match HmacKeys::new(&Secret::new(bytes)) {
        Some(keys) => Ok(SigningKey {
            keys,
            place,
            file: None,
        }),
        None => Err(Failure::usage(
            format!("there is no key in {place}"),
            "put the builder's secret payload-secret there: one line of random text",
        )),
    }
}

/// Parses a URL with the scheme `http` or `https`, and returns it without a trailing slash. Without a scheme it has
/// `http`, as with faas-cli.
fn parse_url_adding_http_if_no_scheme(url_owner: &str, text: &str) -> Result<String, Failure> {
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let reject = |reason: String| {
        Failure::usage(
            format!("the URL of {url_owner}, {text:?}, {reason}"),
            "give a URL such as https://gateway.example",
        )
    };
    let full = full.trim_end_matches('/');
    let url: Uri = full
        .parse()
        .map_err(|error| reject(format!("is not valid: {error}")))?;
    let authority = url
        .authority()
        .map(|authority| authority.as_str())
        .unwrap_or_default();
    match url.scheme_str() {
        Some("http" | "https") if authority.is_empty() => Err(reject("has no host".to_owned())),
        Some("http" | "https") if authority.contains('@') => {
            Err(reject("has a user, which is not sent".to_owned()))
        }
        Some("http" | "https") if url.query().is_some() => Err(reject("has a query".to_owned())),
        Some("http" | "https") => Ok(full.to_owned()),
        _ => Err(reject("should begin with http:// or https://".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const NO_ARGUMENTS: ConnectionArguments = ConnectionArguments {
        gateway: None,
        builder: None,
        builder_function: String::new(),
        payload_secret: None,
        tenant: None,
    };

    fn resolve(
        arguments: &ConnectionArguments,
        stack_gateway: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Result<ConnectionSettings, Failure> {
        let environment: HashMap<_, _> = environment.iter().copied().collect();
        arguments.resolve_with_environment(stack_gateway, &|name| {
            environment.get(name).map(|value| (*value).to_owned())
        })
    }

    #[test]
    fn the_gateway_is_that_of_the_command_line_the_stack_file_or_the_environment() {
        let key = (KEY_VARIABLE, "a key of the test");
        let named = ConnectionArguments {
            gateway: Some("https://named.example/".into()),
            ..NO_ARGUMENTS
        };
        let gateway = |arguments: &ConnectionArguments, stack: Option<&str>, environment: &[(&str, &str)]| {
            resolve(arguments, stack, environment).map(|settings| settings.gateway)
        };
        let variable = [key, (GATEWAY_URL_VARIABLE, "gateway.example:8080")];
        assert_eq!(
            gateway(&named, Some("http://stack"), &variable).as_deref(),
            Ok("https://named.example")
        );
        assert_eq!(
            gateway(&NO_ARGUMENTS, Some("http://stack"), &variable).as_deref(),
            Ok("http://stack")
        );
        assert_eq!(
            gateway(&NO_ARGUMENTS, None, &variable).as_deref(),
            Ok("http://gateway.example:8080")
        );
        assert_eq!(
            gateway(&NO_ARGUMENTS, None, &[key]).as_deref(),
            Ok(DEFAULT_GATEWAY_URL)
        );
    }

    #[test]
    fn the_builders_url_is_also_read_from_openfaas_remote_builder() {
        let environment = [
            (KEY_VARIABLE, "a key of the test"),
            ("OPENFAAS_REMOTE_BUILDER", "http://b:8081/build"),
        ];
        let settings = resolve(&NO_ARGUMENTS, None, &environment).expect("settings");
        assert_eq!(settings.builder.as_deref(), Some("http://b:8081"));
    }

    #[test]
    fn a_missing_an_empty_and_an_unreadable_key_are_errors_with_the_next_step_and_without_the_key() {
        let failure = resolve(&NO_ARGUMENTS, None, &[]).expect_err("no key");
        assert!(failure.next.contains("--payload-secret FILE"), "{failure:?}");
        let failure =
            resolve(&NO_ARGUMENTS, None, &[(KEY_FILE_VARIABLES[0], "/no/such/file")]).expect_err("no file");
        assert!(
            failure
                .message
                .contains("/no/such/file (SLIPWAY_PAYLOAD_SECRET_FILE)"),
            "{failure:?}"
        );
        let failure = resolve(&NO_ARGUMENTS, None, &[(KEY_VARIABLE, " \n")]).expect_err("an empty key");
        assert!(failure.message.contains(KEY_VARIABLE), "{failure:?}");
        let settings = resolve(&NO_ARGUMENTS, None, &[(KEY_VARIABLE, "hush")]).expect("a key");
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn the_options_that_were_given_lead_another_command_to_the_same_builder() {
        let key = [(KEY_VARIABLE, "a key of the test")];
        let options = |arguments: &ConnectionArguments, stack: Option<&str>| {
            resolve(arguments, stack, &key).expect("settings").options
        };
        assert_eq!(options(&NO_ARGUMENTS, None), "");
        assert_eq!(
            options(&NO_ARGUMENTS, Some("https://stack.example")),
            " --gateway https://stack.example"
        );
        let given = ConnectionArguments {
            gateway: Some("https://named.example".into()),
            builder_function: "its builder".into(),
            tenant: Some("acme".into()),
            ..NO_ARGUMENTS
        };
        assert_eq!(
            options(&given, Some("https://stack.example")),
            " --gateway https://named.example --builder-function 'its builder' --tenant acme"
        );
    }

    #[test]
    fn an_empty_tenant_counts_as_none_and_an_empty_builder_function_as_the_default() {
        let arguments = ConnectionArguments {
            tenant: Some(String::new()),
            ..NO_ARGUMENTS
        };
        let settings = resolve(&arguments, None, &[(KEY_VARIABLE, "key")]).expect("settings");
        assert_eq!(
            (settings.tenant, settings.builder_function.as_str()),
            (None, DEFAULT_BUILDER_FUNCTION)
        );
    }

    #[test]
    fn a_malformed_url_is_an_error() {
        for url in ["ftp://x", "http://", "http://x?y=1"] {
            let arguments = ConnectionArguments {
                gateway: Some(url.into()),
                ..NO_ARGUMENTS
            };
            resolve(&arguments, None, &[(KEY_VARIABLE, "key")]).expect_err(url);
        }
    }
}
