//! Runs client programs of other projects as users run them: in a folder of their own, judged by output and
//! exit code.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{build_context::BuildContext, testbed::Testbed};

/// The output and exit code of a program.
#[derive(Debug)]
pub struct ProgramOutput {
    /// The program's exit code; -1 if a signal ended it.
    pub code: i32,
    /// The program's standard output.
    pub stdout: String,
    /// The program's standard error.
    pub stderr: String,
}

impl ProgramOutput {
    /// Returns the last line of the program's standard output as JSON. A line that is not JSON becomes a string that
    /// shows it.
    pub fn last_line_as_json_or_error_text(&self) -> Value {
        let last = self.stdout.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| Value::String(format!("{error}: {self:?}")))
    }

    /// Returns the program's standard output followed by its standard error.
    pub fn stdout_and_stderr(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A folder in which a client runs, with a small template in `template/small`.
#[derive(Debug)]
pub struct ClientFolder {
    folder: tempfile::TempDir,
}

impl ClientFolder {
    /// Creates a folder that contains only the template. `base_image` is the stack's busybox image: functions of the
    /// template serve their handler's files.
    pub fn new(base_image: &str) -> Result<Self> {
        let work_dir = Self {
            folder: tempfile::tempdir()?,
        };
        let dockerfile = format!(
            "FROM {base_image}\nARG ADDITIONAL_PACKAGE\nARG NOTE=none\nLABEL note=\"$NOTE\" packages=\"$ADDITIONAL_PACKAGE\"\n\
             COPY function /www\nRUN mkdir -p /www/_ && echo OK > /www/_/health && cp /www/_/health /www/_/ready\nUSER 1000\n\
             CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
        );
        for (path, text) in [
            ("template/small/Dockerfile", dockerfile.as_str()),
            (
                "template/small/template.yml",
                "language: small\nfprocess: /bin/sh\n",
            ),
            ("template/small/function/index.html", "new"),
        ] {
            work_dir.write_file(path, text)?;
        }
        Ok(work_dir)
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file, and creates its parent folders.
    pub fn write_file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().context("the path has no parent folder")?)?;
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Writes a build context to the folder `name`; returns its path.
    pub fn write_build_context(&self, name: &str, source: &BuildContext) -> Result<PathBuf> {
        source.write_to_folder(&self.path().join(name))
    }

    /// Runs a program in this folder, with `environment` and the test's own environment, except variables of proxies
    /// and of OpenFaaS, and `CI`.
    pub fn run_program(
        &self,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
        environment: &[(&str, &str)],
        input: &[u8],
    ) -> Result<ProgramOutput> {
        let program = program.as_ref();
        let mut child = Command::new(program);
        child.args(arguments).current_dir(self.path());
        // The stack has an address of this machine.
        for name in [
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            child.env_remove(name);
        }
        for name in ["OPENFAAS_URL", "OPENFAAS_TEMPLATE_URL", "CI"] {
            child.env_remove(name);
        }
        child.envs(environment.iter().copied());
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", program.display()))?;
        let (mut stdin, input) = (
            child.stdin.take().context("the program has no standard input")?,
            input.to_vec(),
        );
        // A program that does not read its input closes the pipe, which is not an error.
        let writer = thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).ok());
        let output = child.wait_with_output()?;
        drop(writer.join());
        Ok(ProgramOutput {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the stack's faas-cli, logged in to the stack's gateway.
    pub async fn run_logged_in_faas_cli(
        &self,
        testbed: &Testbed,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<ProgramOutput> {
        let login = testbed.stack.login_with_faas_cli_and_return_config_dir().await?;
        let environment = [
            (
                "OPENFAAS_CONFIG",
                login.to_str().context("the path is not UTF-8")?,
            ),
            ("OPENFAAS_URL", testbed.stack.gateway.url.as_str()),
        ];
        self.run_program(&testbed.stack.tools.faas_cli, arguments, &environment, input)
    }
}

/// Returns a path inside this repository.
pub fn path_in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
