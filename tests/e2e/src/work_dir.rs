//! Programs that are not ours, run as their users run them: in a folder of their own, judged by what they print and
//! how they end.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{shared::Bench, source::Source};

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    /// The last line of the output as JSON; a line that is none shows itself.
    pub fn json(&self) -> Value {
        let last = self.out.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| Value::String(format!("{error}: {self:?}")))
    }

    /// Both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A folder in which a client works, with a small template in `template/small`.
#[derive(Debug)]
pub struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    /// An empty folder, with the template. `base` is the stack's busybox image: a function of the template serves its
    /// handler's files.
    pub fn new(base: &str) -> Result<Self> {
        let desk = Self {
            folder: tempfile::tempdir()?,
        };
        let dockerfile = format!(
            "FROM {base}\nARG ADDITIONAL_PACKAGE\nARG NOTE=none\nLABEL note=\"$NOTE\" packages=\"$ADDITIONAL_PACKAGE\"\n\
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
            desk.write(path, text)?;
        }
        Ok(desk)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().context("a path without a folder")?)?;
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Writes a build context into the folder `name`, and gives its path.
    pub fn context(&self, name: &str, source: &Source) -> Result<PathBuf> {
        source.extract(&self.path().join(name))
    }

    /// Runs a program here. It has of the environment what any program needs, and what is given.
    pub fn run(
        &self,
        program: impl AsRef<OsStr>,
        arguments: &[&str],
        environment: &[(&str, &str)],
        input: &[u8],
    ) -> Result<Ran> {
        let program = program.as_ref();
        let mut child = Command::new(program);
        child.args(arguments).current_dir(self.path());
        // The stack is at an address of this machine.
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
        let (mut stdin, input) = (child.stdin.take().context("no input")?, input.to_vec());
        // A program that does not read ends the pipe, which is no mistake.
        let writer = thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).ok());
        let output = child.wait_with_output()?;
        drop(writer.join());
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the stack's faas-cli, logged in to the stack's gateway.
    pub async fn faas_cli(&self, bench: &Bench, arguments: &[&str], input: &[u8]) -> Result<Ran> {
        let login = bench.stack.login().await?;
        let environment = [
            ("OPENFAAS_CONFIG", login.to_str().context("a folder's name")?),
            ("OPENFAAS_URL", bench.stack.gateway.url.as_str()),
        ];
        self.run(&bench.stack.tools.faas_cli, arguments, &environment, input)
    }
}

/// A path below this repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
