//! faas-cli in a folder of its own, with copies of the template, the handlers and `stack.yml`, without
//! cargo's output.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    command::{command, run},
    error::{At as _, Result},
    places,
    stack::Stack,
};

use super::{FUNCTIONS, shared_environment};

/// faas-cli with its working folder.
#[derive(Debug)]
pub(super) struct Workshop {
    folder: PathBuf,
}

impl Workshop {
    /// Copies the template, the handlers and `stack.yml` into a folder of the stack; replaces an earlier
    /// copy.
    pub(super) fn open(stack: &Stack) -> Result<Self> {
        let folder = stack.place().workshop();
        if folder.exists() {
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        let repository = places::repository();
        for name in ["template"].into_iter().chain(FUNCTIONS) {
            copy(&repository.join(name), &folder.join(name))?;
        }
        let workshop = Self { folder };
        let from = repository.join("stack.yml");
        fs::copy(&from, workshop.stack_yml()).at("copy", from)?;
        Ok(workshop)
    }

    /// Writes the build contexts of Slipway's functions.
    pub(super) async fn lay_out_functions(&self, stack: &Stack) -> Result<()> {
        self.faas_cli(
            stack,
            &["build", "--shrinkwrap", "-f", "stack.yml"],
            shared_environment(stack),
        )
        .await
    }

    /// Creates a function from the template and writes its build context.
    pub(super) async fn lay_out_sample(&self, stack: &Stack, name: &str) -> Result<()> {
        self.faas_cli(stack, &["new", "--lang", "rust-hyper", name], Vec::new())
            .await?;
        let file = format!("{name}.yml");
        self.faas_cli(stack, &["build", "--shrinkwrap", "-f", &file], Vec::new())
            .await
    }

    /// Returns the folder of a function's build context.
    pub(super) fn context(&self, function: &str) -> PathBuf {
        self.folder.join("build").join(function)
    }

    /// Returns the text of `stack.yml`.
    pub(super) fn stack_file(&self) -> Result<String> {
        let path = self.stack_yml();
        fs::read_to_string(&path).at("read", path)
    }

    /// Runs faas-cli, logged in as the stack's administrator, with the values that `stack.yml` takes from the
    /// environment.
    pub(super) async fn faas_cli(
        &self,
        stack: &Stack,
        arguments: &[&str],
        environment: Vec<(&'static str, String)>,
    ) -> Result<()> {
        let mut faas_cli = command(&stack.tools.faas_cli);
        faas_cli
            .args(arguments)
            .current_dir(&self.folder)
            .envs(environment);
        faas_cli.env("OPENFAAS_CONFIG", stack.login().await?);
        run(&mut faas_cli).await.map(drop)
    }

    fn stack_yml(&self) -> PathBuf {
        self.folder.join("stack.yml")
    }
}

/// Copies a folder without cargo's `target` folders.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).at("create", to)?;
    for entry in fs::read_dir(from).at("read", from)? {
        let entry = entry.at("read", from)?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().at("read", &path)?.is_dir() {
            true if entry.file_name() == "target" => {}
            true => copy(&path, &to)?,
            false => fs::copy(&path, &to).at("copy", &path).map(drop)?,
        }
    }
    Ok(())
}
