//! A function of a project that can be built and deployed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::stack_file::{FunctionEntry, ResourcesEntry, StackFile};
use crate::template::Template;

/// The build argument with the packages of build options, as faas-cli names it.
const PACKAGES_ARGUMENT: &str = "ADDITIONAL_PACKAGE";

/// A function of a project: all that its stack file and template say, checked.
#[derive(Debug)]
pub(crate) struct Function {
    /// The name of the function.
    pub(crate) name: String,
    /// The namespace of the function, if the stack file has one.
    pub(crate) namespace: Option<String>,
    /// The full name of the image, with its registry.
    pub(crate) image: String,
    /// The template; `None` if the handler's folder is the whole context.
    pub(crate) template: Option<Template>,
    /// The folder of the handler.
    pub(crate) handler: PathBuf,
    /// Folders and files that are copied into the handler.
    pub(crate) copied_paths: Vec<String>,
    /// Build arguments.
    pub(crate) build_args: BTreeMap<String, String>,
    /// Platforms to build for; empty for that of the builder.
    pub(crate) platforms: Vec<String>,
    /// The files with the values of build secrets, by the names of the secrets.
    pub(crate) build_secrets: BTreeMap<String, PathBuf>,
    /// The body of the gateway's `POST /system/functions`, without the image.
    pub(crate) deploy: Value,
}

/// The choices of the command line that apply to every function.
#[derive(Debug, Default)]
pub(crate) struct RegistryAndBuildArgumentOptions {
    /// The registry, with a path if needed, of images whose names have none.
    pub(crate) registry: Option<String>,
    /// Build arguments in addition to those of the stack file, which they replace.
    pub(crate) build_args: BTreeMap<String, String>,
    /// Build arguments that apply where the stack file has none of the name.
    pub(crate) default_build_args: BTreeMap<String, String>,
}

impl Function {
    /// Checks a function of a stack file.
    ///
    /// # Errors
    /// Fails with everything that is wrong with the function.
    pub(crate) fn from_entry(
        stack: &StackFile,
        name: &str,
        entry: &FunctionEntry,
        options: &RegistryAndBuildArgumentOptions,
    ) -> Result<Self, Failure> {
        let mut problems = Vec::new();
        let mut template_failure = None;
        let mut wrong =
            |key: &str, problem: String| problems.push(format!("functions.{name}.{key}: {problem}"));
        let template = match entry.lang.as_deref() {
            None | Some("") => {
                wrong(
                    "lang",
                    "is missing: the name of a template, or `dockerfile`".into(),
                );
                None
            }
            Some(lang) if lang.eq_ignore_ascii_case("dockerfile") => None,
            Some(lang) => match Template::read(lang) {
                Ok(template) => Some(template),
                Err(failure) => {
                    wrong("lang", failure.message.clone());
                    template_failure = Some(failure);
                    None
                }
            },
        };
        let handler = PathBuf::from(entry.handler.as_deref().unwrap_or_default());
        match () {
            () if handler.as_os_str().is_empty() => {
                wrong("handler", "is missing: the handler's folder".into())
            }
            () if !handler.is_dir() => wrong("handler", describe_missing_folder(&handler, &stack.path)),
            () => {}
        }
        let image = match entry.image.as_deref() {
            None | Some("") => {
                wrong(
                    "image",
                    "is missing: a name such as registry.example/team/name:1".into(),
                );
                String::new()
            }
            Some(image) if has_registry(image) => image.to_owned(),
            Some(image) => match &options.registry {
                Some(registry) => format!("{}/{image}", registry.trim_end_matches('/')),
                None => {
                    wrong(
                        "image",
                        format!(
                            "{image:?} has no registry: write registry.example/{image}, or name one with --registry \
                             (docker.io/NAME is Docker Hub)"
                        ),
                    );
                    String::new()
                }
            },
        };
        let mut build_args = options.default_build_args.clone();
        build_args.extend(texts_with_null_as_empty(entry.build_args.as_ref()));
        build_args.extend(options.build_args.clone());
        let wanted = entry.build_options.as_deref().unwrap_or_default();
        let packages = match &template {
            Some(template) => template.packages_of(wanted),
            None => Ok(Vec::new()),
        };
        match packages {
            Ok(packages) => add_packages(&mut build_args, packages),
            Err(problem) => wrong("build_options", problem),
        }
        let mut environment = texts_with_null_as_empty(entry.environment.as_ref());
        for path in entry.environment_file.iter().flatten() {
            match read_environment_file(Path::new(path)) {
                Ok(variables) => environment.extend(variables),
                Err(problem) => wrong("environment_file", problem),
            }
        }
        let build_secrets = texts_with_null_as_empty(entry.build_secrets.as_ref());
        for (secret, path) in &build_secrets {
            if !Path::new(path).is_file() {
                wrong(
                    &format!("build_secrets.{secret}"),
                    format!("there is no file {path:?} with its value"),
                );
            }
        }
        const CORRECT_FILE_ADVICE: &str =
            "correct the stack file; paths in it are relative to the folder in which slipway runs";
        match template_failure {
            // Its own error says best what to do.
            Some(failure) if problems.len() == 1 => return Err(failure),
            failure if !problems.is_empty() => {
                let next = match failure {
                    Some(failure) => format!("{}; then {CORRECT_FILE_ADVICE}", failure.next),
                    None => CORRECT_FILE_ADVICE.to_owned(),
                };
                let message = format!("{}: {}", stack.path.display(), problems.join("\n  "));
                return Err(Failure::usage(message, next));
            }
            _ => {}
        }
        let fprocess = entry.fprocess.clone().filter(|fprocess| !fprocess.is_empty());
        let fprocess = fprocess.or_else(|| template.as_ref()?.fprocess.clone());
        Ok(Self {
            name: name.to_owned(),
            namespace: entry.namespace.clone().filter(|namespace| !namespace.is_empty()),
            image,
            template,
            handler,
            copied_paths: stack.copied_paths.clone(),
            build_args,
            platforms: split_platforms(entry.platforms.as_deref()),
            build_secrets: build_secrets
                .into_iter()
                .map(|(name, path)| (name, path.into()))
                .collect(),
            deploy: deploy_request_without_image(name, entry, fprocess, environment),
        })
    }

    /// Returns the path of the function at the gateway: `/function/NAME`, with the namespace if there is one.
    pub(crate) fn path_at_gateway(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("/function/{}.{namespace}", self.name),
            None => format!("/function/{}", self.name),
        }
    }
}

/// Returns a map of texts in which the empty text has taken the place of `null`.
fn texts_with_null_as_empty(map: Option<&BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    let entries = map.into_iter().flatten();
    entries
        .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
        .collect()
}

/// Returns whether the name of an image begins with a registry, by Docker's rule: the first part is a host if it has a
/// dot or a port, or is `localhost`.
fn has_registry(image: &str) -> bool {
    image
        .split_once('/')
        .is_some_and(|(first, _)| first == "localhost" || first.contains(['.', ':']))
}

/// Adds the packages of build options to the build argument that has them, sorted and each once, as faas-cli does.
fn add_packages(build_args: &mut BTreeMap<String, String>, mut packages: Vec<String>) {
    if let Some(more) = build_args.get(PACKAGES_ARGUMENT) {
        packages.extend(more.split_whitespace().map(str::to_owned));
    }
    packages.sort();
    packages.dedup();
    if !packages.is_empty() {
        build_args.insert(PACKAGES_ARGUMENT.to_owned(), packages.join(" "));
    }
}

/// Splits a list of platforms at its commas.
fn split_platforms(platforms: Option<&str>) -> Vec<String> {
    let parts = platforms.unwrap_or_default().split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Describes a handler's folder that does not exist, and where it may be meant to be.
fn describe_missing_folder(handler: &Path, stack_file: &Path) -> String {
    let beside = stack_file.parent().map(|folder| folder.join(handler));
    match beside.filter(|beside| beside.is_dir()) {
        Some(beside) => format!(
            "there is no folder {} here, and there is {}: run slipway in the folder of the stack file",
            handler.display(),
            beside.display()
        ),
        None => format!("there is no folder {}", handler.display()),
    }
}

/// Reads the environment variables in a file of a stack file's `environment_file`.
fn read_environment_file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct EnvironmentFile {
        environment: Option<BTreeMap<String, Option<String>>>,
    }
    let text =
        fs::read_to_string(path).map_err(|error| format!("could not read {}: {error}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    // The parser's own message would repeat parts of the file, which may have secrets.
    let file: EnvironmentFile = serde_saphyr::from_str(&text).map_err(|error| {
        let line = error
            .location()
            .map_or_else(String::new, |location| format!(":{}", location.line()));
        format!(
            "{}{line}: should be `environment:` with names and values",
            path.display()
        )
    })?;
    Ok(texts_with_null_as_empty(file.environment.as_ref()))
}

/// Returns the body of the gateway's `POST /system/functions` without the image.
fn deploy_request_without_image(
    name: &str,
    entry: &FunctionEntry,
    fprocess: Option<String>,
    environment: BTreeMap<String, String>,
) -> Value {
    let mut deploy = Map::new();
    let mut set = |key: &str, value: Value| {
        let is_empty = match &value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        if !is_empty {
            deploy.insert(key.to_owned(), value);
        }
    };
    set("service", json!(name));
    set("namespace", json!(entry.namespace));
    set("envProcess", json!(fprocess));
    set("envVars", json!(environment));
    set("constraints", json!(entry.constraints));
    set("secrets", json!(entry.secrets));
    set("labels", json!(texts_with_null_as_empty(entry.labels.as_ref())));
    set(
        "annotations",
        json!(texts_with_null_as_empty(entry.annotations.as_ref())),
    );
    set("limits", resource_amounts_or_empty_object(entry.limits.as_ref()));
    set(
        "requests",
        resource_amounts_or_empty_object(entry.requests.as_ref()),
    );
    if entry.readonly_root_filesystem == Some(true) {
        set("readOnlyRootFilesystem", json!(true));
    }
    Value::Object(deploy)
}

/// Returns amounts of resources as the gateway's API has them.
fn resource_amounts_or_empty_object(entry: Option<&ResourcesEntry>) -> Value {
    let mut amounts = Map::new();
    for (key, amount) in [
        ("memory", entry.and_then(|entry| entry.memory.as_ref())),
        ("cpu", entry.and_then(|entry| entry.cpu.as_ref())),
    ] {
        if let Some(amount) = amount.filter(|amount| !amount.is_empty()) {
            amounts.insert(key.to_owned(), json!(amount));
        }
    }
    Value::Object(amounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a stack file with one function, `shop`, whose handler is an existing folder.
    fn parse_function_shop(
        lines: &str,
        options: &RegistryAndBuildArgumentOptions,
    ) -> Result<Function, Failure> {
        let text = format!(
            "functions:\n  shop:\n    lang: dockerfile\n    handler: {}\n{lines}",
            env!("CARGO_MANIFEST_DIR")
        );
        let stack = StackFile::parse("stack.yaml".into(), &text, &|_| None).expect("a stack file");
        let (name, entry) = stack.select_or_all(&[]).expect("functions")[0];
        Function::from_entry(&stack, name, entry, options)
    }

    #[test]
    fn a_function_is_deployed_as_its_stack_file_says() {
        let function = parse_function_shop(
            "    image: r.example/shop:1\n    fprocess: ./run\n    environment: {a: 1}\n    secrets: [key]\n    labels: {l: x}\n    \
             annotations: {n: y}\n    constraints: [z]\n    limits: {memory: 128Mi}\n    requests: {cpu: 100m}\n    \
             readonly_root_filesystem: true\n    namespace: team\n    platforms: linux/amd64, linux/arm64\n",
            &RegistryAndBuildArgumentOptions::default(),
        )
        .expect("a function");
        assert_eq!(
            function.deploy,
            json!({
                "service": "shop", "namespace": "team", "envProcess": "./run", "envVars": {"a": "1"}, "secrets": ["key"],
                "labels": {"l": "x"}, "annotations": {"n": "y"}, "constraints": ["z"], "limits": {"memory": "128Mi"},
                "requests": {"cpu": "100m"}, "readOnlyRootFilesystem": true,
            })
        );
        assert_eq!(function.platforms, ["linux/amd64", "linux/arm64"]);
        assert_eq!(function.path_at_gateway(), "/function/shop.team");
    }

    #[test]
    fn what_the_stack_file_leaves_out_is_left_out_of_the_deployment() {
        let function = parse_function_shop(
            "    image: r.example/shop:1\n",
            &RegistryAndBuildArgumentOptions::default(),
        )
        .expect("a function");
        assert_eq!(function.deploy, json!({"service": "shop"}));
        assert!(function.build_args.is_empty());
    }

    #[test]
    fn an_image_without_a_registry_gets_that_of_the_command_line() {
        let options = RegistryAndBuildArgumentOptions {
            registry: Some("r.example:5000/team/".into()),
            ..RegistryAndBuildArgumentOptions::default()
        };
        for (image, expected) in [
            ("shop:1", "r.example:5000/team/shop:1"),
            ("team/shop", "r.example:5000/team/team/shop"),
            ("localhost/shop", "localhost/shop"),
            ("other.example/shop", "other.example/shop"),
            ("host:5000/shop", "host:5000/shop"),
        ] {
            let function = parse_function_shop(&format!("    image: {image}\n"), &options).expect(image);
            assert_eq!(function.image, expected);
        }
        let failure = parse_function_shop("    image: shop:1\n", &RegistryAndBuildArgumentOptions::default())
            .expect_err("no registry");
        assert!(failure.message.contains("--registry"), "{failure:?}");
    }

    #[test]
    fn build_arguments_of_the_command_line_replace_those_of_the_file_which_replace_defaults() {
        let options = RegistryAndBuildArgumentOptions {
            build_args: [("A".to_owned(), "2".to_owned())].into(),
            default_build_args: ["A", "B", "C"]
                .map(|name| (name.to_owned(), "default".to_owned()))
                .into(),
            ..RegistryAndBuildArgumentOptions::default()
        };
        let function = parse_function_shop(
            "    image: r.example/shop:1\n    build_args: {A: 1, B: x, ADDITIONAL_PACKAGE: make gcc make}\n",
            &options,
        )
        .expect("a function");
        let expected = [
            ("A", "2"),
            ("ADDITIONAL_PACKAGE", "gcc make"),
            ("B", "x"),
            ("C", "default"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(function.build_args, expected.into());
    }

    #[test]
    fn a_missing_template_is_reported_with_everything_else_that_is_wrong() {
        let text =
            "functions:\n  shop:\n    lang: no-such-template\n    handler: ./nowhere\n    image: shop\n";
        let stack = StackFile::parse("stack.yaml".into(), text, &|_| None).expect("a stack file");
        let (name, entry) = stack.select_or_all(&[]).expect("functions")[0];
        let failure = Function::from_entry(&stack, name, entry, &RegistryAndBuildArgumentOptions::default())
            .expect_err("three problems");
        for part in ["no-such-template", "shop.handler", "shop.image"] {
            assert!(failure.message.contains(part), "{part}: {failure:?}");
        }
        for part in ["template", "correct the stack file"] {
            assert!(failure.next.contains(part), "{part}: {failure:?}");
        }
    }

    #[test]
    fn all_wrong_keys_of_a_function_are_reported_at_once() {
        let text = "functions:\n  shop:\n    handler: ./nowhere\n    build_secrets: {token: ./no-file}\n";
        let stack = StackFile::parse("stack.yaml".into(), text, &|_| None).expect("a stack file");
        let (name, entry) = stack.select_or_all(&[]).expect("functions")[0];
        let failure = Function::from_entry(&stack, name, entry, &RegistryAndBuildArgumentOptions::default())
            .expect_err("four problems");
        for part in [
            "shop.lang",
            "shop.handler",
            "shop.image",
            "shop.build_secrets.token",
        ] {
            assert!(failure.message.contains(part), "{part}: {failure:?}");
        }
    }
}
