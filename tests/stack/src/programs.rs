//! The build of the workspace's own programs with cargo.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{
    command::{command, run},
    directories,
    error::{Error, IoResultExt as _, Result},
};

/// Builds programs of this workspace with cargo and returns their paths in the given order. A program has the
/// name of its package.
pub(crate) async fn build<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N]> {
    let mut cargo = command("cargo");
    cargo.current_dir(directories::repository());
    cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]);
    for name in names {
        cargo.args(["--package", name, "--bin", name]);
    }
    let output = run(&mut cargo).await?;
    let built = executables(&String::from_utf8_lossy(&output));
    let mut found = names.map(|_| PathBuf::new());
    for (name, target) in names.iter().zip(&mut found) {
        let executable = built.iter().find(|(built, _)| built == name);
        let (_, path) = executable
            .ok_or_else(|| Error::Environment(format!("cargo build reported no executable for {name}")))?;
        target.clone_from(path);
    }
    Ok(found)
}

/// Returns the path of the launcher's program, whose `hold` command becomes the holder of a stack.
///
/// This is the current program, or, if the current program uses this crate as a library, `slipway-stack`
/// beside it in cargo's directory.
pub(crate) fn launcher() -> Result<PathBuf> {
    let own = std::env::current_exe().at("find", "/proc/self/exe")?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("slipway-stack"));
    let mut candidates = [own.clone()].into_iter().chain(beside);
    let found = candidates.find(|path| path.file_name() == Some("slipway-stack".as_ref()) && path.is_file());
    found.ok_or_else(|| {
        Error::Environment("slipway-stack is not built; run: cargo build -p slipway-stack".into())
    })
}

/// A message of cargo's JSON output, of which most kinds lack these fields.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
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
            executables(messages),
            [("builder-fn".to_owned(), PathBuf::from("/t/builder-fn"))]
        );
    }
}
