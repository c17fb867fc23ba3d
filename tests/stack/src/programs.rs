//! The build of the workspace's own programs with cargo.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    command::{new_command, run_program},
    directories,
    error::{IoResultExt as _, LauncherError, Result},
};

/// Builds programs of this workspace with cargo and returns their paths in the given order. A program has the
/// name of its package.
pub(crate) async fn build_programs<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N]> {
    let mut cargo = new_command("cargo");
    cargo.current_dir(directories::repository_root());
    cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]);
    for name in names {
        cargo.args(["--package", name, "--bin", name]);
    }
    let output = run_program(&mut cargo).await?;
    let built = executables_in_cargo_messages(&String::from_utf8_lossy(&output));
    let mut found = names.map(|_| PathBuf::new());
    for (name, target) in names.iter().zip(&mut found) {
        let executable = built.iter().find(|(built, _)| built == name);
        let (_, path) = executable.ok_or_else(|| {
            LauncherError::Environment(format!("cargo build reported no executable for {name}"))
        })?;
        target.clone_from(path);
    }
    Ok(found)
}

/// Returns the path of the launcher's program, whose `hold` command becomes the holder of a stack.
///
/// This is the current program, or, if the current program uses this crate as a library, `slipway-stack`
/// beside it in cargo's directory.
pub(crate) fn path_of_slipway_stack_program() -> Result<PathBuf> {
    let own = std::env::current_exe().with_operation("find", "/proc/self/exe")?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("slipway-stack"));
    let mut candidates = [own.clone()].into_iter().chain(beside);
    let found = candidates.find(|path| path.file_name() == Some("slipway-stack".as_ref()) && path.is_file());
    found.ok_or_else(|| {
        LauncherError::Environment("slipway-stack is not built; run: cargo build -p slipway-stack".into())
    })
}

/// A message of cargo's JSON output, of which most kinds lack these fields.
#[derive(Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
}

/// Returns the target name and the path of each executable in cargo's JSON messages; other lines are skipped.
fn executables_in_cargo_messages(messages: &str) -> Vec<(String, PathBuf)> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok());
    messages
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_found_among_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"builder_fn\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"builder-fn\"},\"executable\":\"/t/builder-fn\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(
            executables_in_cargo_messages(messages),
            [("builder-fn".to_owned(), PathBuf::from("/t/builder-fn"))]
        );
    }
}
