//! A folder of functions from the template, laid out by faas-cli.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use slipway_stack::Stack;

use crate::{build_context::BuildContext, work_dir::path_in_repository};

/// A folder for `faas-cli new` and `faas-cli build --shrinkwrap`, with a copy of the template.
#[derive(Debug)]
pub struct TemplateProject {
    folder: tempfile::TempDir,
    faas_cli: PathBuf,
}

impl TemplateProject {
    /// Creates a folder with a copy of the template, for the stack's faas-cli.
    pub fn new(stack: &Stack) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let copied = Command::new("cp")
            .arg("-r")
            .arg(path_in_repository("template"))
            .arg(folder.path())
            .status()?;
        ensure!(copied.success(), "copying the template");
        // faas-cli would copy this folder too: gigabytes, if the template was compiled in place.
        let _ = fs::remove_dir_all(folder.path().join("template/rust-hyper/target"));
        Ok(Self {
            folder,
            faas_cli: stack.tools.faas_cli.clone(),
        })
    }

    /// Creates a function from the template.
    pub fn create_function(&self, name: &str) -> Result<()> {
        self.run_faas_cli(&["new", "--lang", "rust-hyper", name])
    }

    /// Returns the folder of a function's handler.
    pub fn function_folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Overwrites the handler of a function with the starter handler, with `greeting` in place of `Hello`.
    pub fn write_starter_handler_with_greeting(&self, name: &str, greeting: &str) -> Result<()> {
        let handler = self.function_folder(name).join("src/main.rs");
        let template = path_in_repository("template/rust-hyper/function/src/main.rs");
        let code = fs::read_to_string(template)?;
        ensure!(
            code.contains("Hello"),
            "the starter handler contains no greeting: {code}"
        );
        Ok(fs::write(handler, code.replace("Hello", greeting))?)
    }

    /// Runs `faas-cli build --shrinkwrap` for a function, and returns the context that it wrote.
    pub fn shrinkwrap_function(&self, name: &str) -> Result<BuildContext> {
        self.run_faas_cli(&["build", "--shrinkwrap", "-f", &format!("{name}.yml")])?;
        let root = self.folder.path().join("build").join(name);
        add_folder(BuildContext::new(), &root, &root)
    }

    fn run_faas_cli(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.faas_cli)
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .context("running faas-cli")?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "faas-cli {arguments:?}: {text}");
        Ok(())
    }
}

/// Adds all files below `folder` to a context, with paths relative to `root`.
fn add_folder(mut source: BuildContext, root: &Path, folder: &Path) -> Result<BuildContext> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            source = add_folder(source, root, &path)?;
        } else {
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("the path is not UTF-8")?
                .to_owned();
            source = source.with_file(&name, fs::read(&path)?);
        }
    }
    Ok(source)
}
