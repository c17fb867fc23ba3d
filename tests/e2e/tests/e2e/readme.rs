//! The README's quick start, as a newcomer runs it.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use slipway_e2e::{testbed::Testbed, work_dir::path_in_repository};

/// The function of the quick start.
const FUNCTION: &str = "shop";

/// The folder of the quick start.
const FOLDER: &str = "/tmp/shop";

/// Returns the first block of shell commands in the README that contains `command` as a line.
fn block_of_readme_with(command: &str) -> Result<String> {
    let readme = fs::read_to_string(path_in_repository("README.md"))?;
    let blocks = readme.split("```sh\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.lines().any(|line| line == command));
    Ok(block
        .with_context(|| format!("no block of the README has the line {command:?}"))?
        .to_owned())
}

/// Slipway's command is compiled as one static program on the way, if that has not been done before.
#[tokio::test]
async fn the_quick_start_of_the_readme_ends_with_the_answer_of_an_own_function() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().context("the path is not UTF-8")?;
    let commands = block_of_readme_with("slipway up")?.replace(FOLDER, path);
    let mut shell = Command::new("bash");
    shell
        .args(["-euo", "pipefail", "-c", &commands])
        .current_dir(path_in_repository(""))
        .env("SLIPWAY_STACK", testbed.stack.name());
    // Set by a make that runs the tests: the make of the quick start would print the folder that it works in.
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        shell.env_remove(variable);
    }
    let output = tokio::task::spawn_blocking(move || shell.output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{commands}: {errors}");
    let printed = String::from_utf8(output.stdout)?;
    let lines: Vec<_> = printed.lines().collect();
    let url = testbed.functions.function_url(FUNCTION);
    assert_eq!(
        lines[lines.len().saturating_sub(2)..],
        [url.as_str(), "Hello, there!"],
        "{errors}"
    );
    testbed.functions.remove_function(FUNCTION).await
}
