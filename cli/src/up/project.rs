//! The functions that a command is about.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use crate::failure::Failure;
use crate::function::{Function, RegistryAndBuildArgumentOptions};
use crate::stack_file::StackFile;

/// The arguments that select functions, and complete or replace what the stack file says of them.
#[derive(Args, Clone, Debug)]
pub(crate) struct SourceArguments {
    /// The functions, by name. Default: all of the stack file.
    #[arg(value_name = "FUNCTION")]
    functions: Vec<String>,
    /// The stack file. Default: stack.yaml or stack.yml.
    #[arg(long = "yaml", short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// The registry, with a path if needed, of images whose names have none.
    #[arg(long, value_name = "REGISTRY", env = "SLIPWAY_REGISTRY")]
    registry: Option<String>,
    /// A build argument, which replaces that of the stack file.
    #[arg(long = "build-arg", short = 'b', value_name = "NAME=VALUE", value_parser = parse_build_argument)]
    build_arguments: Vec<(String, String)>,
    /// Build arguments that the stack file need not name, NAME=VALUE, separated by spaces. Those of the stack file and
    /// of --build-arg replace them.
    #[arg(long, value_name = "ARGUMENTS", env = "SLIPWAY_BUILD_ARGS")]
    default_build_args: Option<String>,
}

/// The functions of a stack file that a command is about.
pub(crate) struct Project {
    stack: StackFile,
    functions: Vec<Function>,
    /// A warning for each function that the stack file does not want to be built.
    skipped: Vec<String>,
}

impl Project {
    /// Reads the stack file and the templates, and checks the functions.
    ///
    /// # Errors
    /// Fails with the first thing that cannot be read, or with all that is wrong with a function.
    pub(crate) fn read_stopping_at_first_faulty_function(
        arguments: &SourceArguments,
    ) -> Result<Self, Failure> {
        let stack = StackFile::read(arguments.file.as_deref())?;
        let options = RegistryAndBuildArgumentOptions {
            registry: arguments.registry.clone().filter(|registry| !registry.is_empty()),
            build_args: arguments
                .build_arguments
                .iter()
                .cloned()
                .collect::<BTreeMap<_, _>>(),
            default_build_args: parse_default_build_arguments(
                arguments.default_build_args.as_deref().unwrap_or_default(),
            )?,
        };
        let mut functions = Vec::new();
        let mut skipped = Vec::new();
        for (name, entry) in stack.select_or_all(&arguments.functions)? {
            match entry.skip_build {
                Some(true) => skipped.push(format!(
                    "{name} is skipped, because the stack file has skip_build for it; faas-cli deploy deploys its image"
                )),
                _ => functions.push(Function::from_entry(&stack, name, entry, &options).map_err(|mut failure| {
                    failure.message = with_warnings(&failure.message, &stack.warnings);
                    failure
                })?),
            }
        }
        if functions.is_empty() {
            return Err(Failure::usage(
                skipped.join("\n"),
                "remove skip_build from the stack file to have the function built",
            ));
        }
        Ok(Self {
            stack,
            functions,
            skipped,
        })
    }

    /// Returns the functions that the command is about, without those that `skip_build` leaves out.
    pub(crate) fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Returns the stack file's gateway.
    pub(crate) fn gateway(&self) -> Option<&str> {
        self.stack.gateway.as_deref()
    }

    /// Returns what may be wrong with the stack file, and what is left out.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.stack.warnings.iter().chain(&self.skipped).cloned().collect()
    }

    /// Returns the folders of a function's handler and template, and the copied paths, which may be files.
    pub(crate) fn watched_folders_of(function: &Function) -> Vec<PathBuf> {
        let template = function.template.as_ref().map(|template| template.folder.clone());
        let copied = function.copied_paths.iter().map(PathBuf::from);
        [function.handler.clone()]
            .into_iter()
            .chain(template)
            .chain(copied)
            .collect()
    }

    /// Returns the single files whose changes change a function: the stack file, and those that it names for
    /// environment variables and build secrets.
    pub(crate) fn watched_files_of(&self, function: &Function) -> Vec<PathBuf> {
        [self.stack.path.clone()]
            .into_iter()
            .chain(self.stack.environment_file_paths_as_written(&function.name))
            .chain(function.build_secrets.values().cloned())
            .collect()
    }
}

/// Adds warnings to an error that they may explain.
fn with_warnings(message: &str, warnings: &[String]) -> String {
    let lines = [message].into_iter().chain(warnings.iter().map(String::as_str));
    lines.collect::<Vec<_>>().join("\n  ")
}

/// Parses build arguments that are separated by white space.
fn parse_default_build_arguments(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let parse = |argument: &str| {
        parse_build_argument(argument).map_err(|problem| {
            Failure::usage(
                format!("{argument:?} in SLIPWAY_BUILD_ARGS or --default-build-args {problem}"),
                "separate several arguments by spaces: SLIPWAY_BUILD_ARGS=\"A=1 B=2\"",
            )
        })
    };
    text.split_whitespace().map(parse).collect()
}

fn parse_build_argument(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("should be NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_build_arguments_are_separated_by_white_space_and_a_wrong_one_is_named() {
        let parsed = parse_default_build_arguments(" A=1\tB=x=y  C= ").expect("three arguments");
        let expected = [("A", "1"), ("B", "x=y"), ("C", "")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parsed, expected.into());
        assert!(parse_default_build_arguments("").expect("none").is_empty());
        let failure = parse_default_build_arguments("A=1 B").expect_err("no value");
        assert!(failure.message.contains("\"B\""), "{failure:?}");
    }
}
