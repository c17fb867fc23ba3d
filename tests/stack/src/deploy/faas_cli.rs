//! faas-cli in a working directory of its own, with copies of the template, the handlers and `stack.yml`,
//! without cargo's output.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    command::{self, new_command},
    directories,
    error::{IoResultExt as _, Result},
    stack::Stack,
};

use super::{SLIPWAY_FUNCTION_NAMES, shared_stack_yml_variables};

/// The faas-cli program with its working directory.
#[derive(Debug)]
pub(super) struct FaasCliProject {
    directory: PathBuf,
}

impl FaasCliProject {
    /// Copies the template, the handlers and `stack.yml` into faas-cli's working directory; replaces an earlier
    /// copy.
    pub(super) fn recreate_project_from_repository(stack: &Stack) -> Result<Self> {
        let directory = stack.dir.faas_cli_directory();
        if directory.exists() {
            fs::remove_dir_all(&directory).with_operation("remove", &directory)?;
        }
        let repository = directories::repository_root();
        for name in ["template"].into_iter().chain(SLIPWAY_FUNCTION_NAMES) {
            copy_directory_without_targets(&repository.join(name), &directory.join(name))?;
        }
        let faas_cli = Self { directory };
        let from = repository.join("stack.yml");
        fs::copy(&from, faas_cli.stack_yml_path()).with_operation("copy", from)?;
        Ok(faas_cli)
    }

    /// Writes the build contexts of Slipway's functions with faas-cli.
    pub(super) async fn write_function_contexts(&self, stack: &Stack) -> Result<()> {
        self.run_faas_cli(
            stack,
            &["build", "--shrinkwrap", "-f", "stack.yml"],
            shared_stack_yml_variables(stack),
        )
        .await
    }

    /// Creates a sample function from the template and writes its build context with faas-cli.
    pub(super) async fn write_sample_context(&self, stack: &Stack, name: &str) -> Result<()> {
        self.run_faas_cli(stack, &["new", "--lang", "rust-hyper", name], Vec::new())
            .await?;
        let file = format!("{name}.yml");
        self.run_faas_cli(stack, &["build", "--shrinkwrap", "-f", &file], Vec::new())
            .await
    }

    /// Returns the directory of a function's build context.
    pub(super) fn context_directory(&self, function: &str) -> PathBuf {
        self.directory.join("build").join(function)
    }

    /// Returns the text of `stack.yml`.
    pub(super) fn stack_yml_text(&self) -> Result<String> {
        let path = self.stack_yml_path();
        fs::read_to_string(&path).with_operation("read", path)
    }

    /// Runs faas-cli, logged in as the stack's administrator, with the values that `stack.yml` takes from the
    /// environment.
    pub(super) async fn run_faas_cli(
        &self,
        stack: &Stack,
        arguments: &[&str],
        environment: Vec<(&'static str, String)>,
    ) -> Result<()> {
        let mut process = new_command(&stack.tools.faas_cli);
        process
            .args(arguments)
            .current_dir(&self.directory)
            .envs(environment);
        process.env(
            "OPENFAAS_CONFIG",
            stack.login_with_faas_cli_and_return_config_dir().await?,
        );
        command::run_program(&mut process).await.map(drop)
    }

    fn stack_yml_path(&self) -> PathBuf {
        self.directory.join("stack.yml")
    }
}

/// Copies a directory without cargo's `target` directories.
fn copy_directory_without_targets(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_operation("create", to)?;
    for entry in fs::read_dir(from).with_operation("read", from)? {
        let entry = entry.with_operation("read", from)?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().with_operation("read", &path)?.is_dir() {
            true if entry.file_name() == "target" => {}
            true => copy_directory_without_targets(&path, &to)?,
            false => fs::copy(&path, &to).with_operation("copy", &path).map(drop)?,
        }
    }
    Ok(())
}
