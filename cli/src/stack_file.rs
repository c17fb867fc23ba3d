//! faas-cli's stack file: the functions of a project, where their handlers are, and how they are deployed.
//!
//! The schema is that of faas-cli (go-sdk `stack/schema.go`), and so are the places: every path in the file is relative
//! to the working folder, and not to the file.

mod document;
mod keys;
mod substitution;

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::suggestion::did_you_mean;
use document::StackDocument;
pub(crate) use document::{FunctionEntry, ResourcesEntry};

/// The names that are tried where the command line names no stack file, as faas-cli does.
const DEFAULT_STACK_FILE_NAMES: [&str; 2] = ["stack.yaml", "stack.yml"];

/// The gateway that faas-cli takes where nothing names one. As a value in the stack file it counts as none.
const DEFAULT_GATEWAY_URL: &str = "http://127.0.0.1:8080";

/// A parsed stack file.
#[derive(Debug)]
pub(crate) struct StackFile {
    /// The path of the file, as the errors name it.
    pub(crate) path: PathBuf,
    /// The gateway that the file names, unless it is faas-cli's default.
    pub(crate) gateway: Option<String>,
    /// The folders and files that are copied into each function's handler.
    pub(crate) copied_paths: Vec<String>,
    /// Keys that nobody reads, and what they were probably meant to be.
    pub(crate) warnings: Vec<String>,
    functions: Vec<(String, FunctionEntry)>,
}

impl StackFile {
    /// Reads the stack file at `path`, or the one with a default name in the working folder.
    ///
    /// # Errors
    /// Fails if there is none, or it is not a stack file.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => find_default_stack_file()?,
        };
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::usage(
                format!("could not read the stack file {}: {error}", path.display()),
                "name an existing file with -f FILE",
            )
        })?;
        Self::parse(path, &text, &|name| std::env::var(name).ok())
    }

    /// Returns the gateway of the working folder's stack file, if there is a valid one that names a gateway.
    pub(crate) fn gateway_of_working_folder() -> Option<String> {
        let path = DEFAULT_STACK_FILE_NAMES
            .iter()
            .map(Path::new)
            .find(|path| path.is_file())?;
        Self::read(Some(path)).ok()?.gateway
    }

    /// Parses the text of a stack file, with the values of environment variables from `environment`.
    ///
    /// # Errors
    /// Fails if the text is not a stack file.
    pub(crate) fn parse(
        path: PathBuf,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let shown = path.display();
        let text = substitution::substitute(text, environment).map_err(|problem| {
            Failure::usage(
                format!("{shown}:{}: {}", problem.line, problem.reason),
                "write ${NAME} or ${NAME:-default}, or $${NAME} for the characters themselves",
            )
        })?;
        let document: StackDocument = serde_saphyr::from_str(&text).map_err(|error| {
            let place = error.location().map_or_else(String::new, |location| {
                format!("{}:{}:", location.line(), location.column())
            });
            Failure::usage(
                format!("{shown}:{place} {}", error.without_snippet()),
                "correct that line; `faas-cli new --lang LANGUAGE NAME` writes an example of a stack file",
            )
        })?;
        let warnings = keys::warnings_of_unknown_keys(&text)
            .into_iter()
            .map(|warning| format!("{shown}: {warning}"))
            .collect();
        if let Some(name) = document
            .provider
            .as_ref()
            .and_then(|provider| provider.name.as_deref())
            && name != "openfaas"
        {
            return Err(Failure::usage(
                format!("{shown}: provider.name is {name:?}, and should be \"openfaas\""),
                "set provider.name to openfaas",
            ));
        }
        let functions: Vec<_> = document.functions.unwrap_or_default().into_iter().collect();
        if functions.is_empty() {
            return Err(Failure::usage(
                format!("{shown}: there are no functions"),
                "add one below `functions:`, or run `faas-cli new --lang LANGUAGE NAME`",
            ));
        }
        Ok(Self {
            gateway: document
                .provider
                .and_then(|provider| provider.gateway)
                .filter(|gateway| {
                    !gateway.is_empty() && gateway.trim_end_matches('/') != DEFAULT_GATEWAY_URL
                }),
            copied_paths: document
                .configuration
                .and_then(|configuration| configuration.copy)
                .unwrap_or_default(),
            path,
            warnings,
            functions,
        })
    }

    /// Returns the paths of the files with environment variables of the function with this name.
    pub(crate) fn environment_file_paths_as_written(&self, function: &str) -> Vec<PathBuf> {
        let entries = self.functions.iter().filter(|(name, _)| name == function);
        let files = entries.flat_map(|(_, entry)| entry.environment_file.iter().flatten());
        files.map(PathBuf::from).collect()
    }

    /// Returns the functions with these names, or all if there are no names, in the order of their names.
    ///
    /// # Errors
    /// Fails with all names that are not in the file.
    pub(crate) fn select_or_all(&self, names: &[String]) -> Result<Vec<(&str, &FunctionEntry)>, Failure> {
        let known = || self.functions.iter().map(|(name, _)| name.as_str());
        let missing: Vec<_> = names
            .iter()
            .filter(|name| !known().any(|known| known == *name))
            .map(|name| {
                format!(
                    "{}: no function {name:?}{}",
                    self.path.display(),
                    did_you_mean(name, known())
                )
            })
            .collect();
        if !missing.is_empty() {
            let all: Vec<_> = known().collect();
            return Err(Failure::usage(
                missing.join("\n"),
                format!("name some of {}, or none for all of them", all.join(", ")),
            ));
        }
        let is_selected = |name: &String| names.is_empty() || names.contains(name);
        Ok(self
            .functions
            .iter()
            .filter(|(name, _)| is_selected(name))
            .map(|(name, entry)| (name.as_str(), entry))
            .collect())
    }
}

/// Finds the stack file with a default name in the working folder.
fn find_default_stack_file() -> Result<PathBuf, Failure> {
    let found = DEFAULT_STACK_FILE_NAMES
        .iter()
        .map(Path::new)
        .find(|path| path.is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        let others = yaml_files_in_working_folder();
        let next = match others.is_empty() {
            true => "run `faas-cli new --lang LANGUAGE NAME` to begin a function, or go to the folder of one"
                .to_owned(),
            false => format!("name the stack file with -f: here are {}", others.join(", ")),
        };
        Failure::usage("this folder has no stack.yaml and no stack.yml", next)
    })
}

/// Returns the names of the working folder's YAML files.
fn yaml_files_in_working_folder() -> Vec<String> {
    let entries = fs::read_dir(".").into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names
        .filter(|name| name.ends_with(".yml") || name.ends_with(".yaml"))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
