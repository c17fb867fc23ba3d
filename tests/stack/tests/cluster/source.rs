//! The source of the functions that the tests build: a shell that answers every request with one text.

use std::fs;

use serde_json::{Value, json};

/// Answers the request on its connection; a server runs it for each.
const ANSWER_SCRIPT: &str = r#"#!/bin/sh
end=$(printf '\r')
while read -r line && [ "$line" != "$end" ]; do :; done
printf 'HTTP/1.1 200 OK\r\n'
[ "$reports_version" != yes ] || printf 'X-Slipway-Version: %s\r\n' "$slipway_version"
printf 'Content-Length: %s\r\nConnection: close\r\n\r\n%s' "${#answer}" "$answer"
"#;

/// Serves on the port of functions. It goes on for a while after it was asked to end, because calls arrive until the
/// platform has removed its address.
const SERVE: &str = "trap 'sleep 3; exit 0' TERM; nc -ll -p 8080 -e /answer & wait";

/// What a function's container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Answers every request.
    Serves,
    /// Ends at once, with an exit code.
    Crashes,
    /// Runs, and never listens.
    NeverListens,
    /// Answers, and ends while it has to stay up: the platform's first probe comes after 2 s.
    Dies,
}

/// A version of a function, from which a tar to be built is made.
#[derive(Debug, Clone)]
pub(crate) struct FunctionSource<'a> {
    /// The function's name.
    pub(crate) function: &'a str,
    /// The text of its answers.
    pub(crate) answer: &'a str,
    /// Whether its answers name its version.
    pub(crate) reports_version: bool,
    pub(crate) behaviour: Behaviour,
}

/// Returns what the function requests of the node: without it, a busy machine hardly runs its container.
pub(crate) fn requests() -> Value {
    json!({ "cpu": "50m" })
}

/// Returns the reference of the image with a shell, which the functions are made from.
pub(crate) fn shell_image(registry: &str) -> String {
    format!("{registry}/test/shell:1")
}

/// Returns the tar of a build of the image with a shell, in which a step runs.
pub(crate) fn shell_tar(registry: &str) -> Vec<u8> {
    let dockerfile =
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
    let busybox = fs::read("/bin/busybox").unwrap();
    let config = json!({ "image": shell_image(registry) });
    tar_of(&config, dockerfile, &[("busybox", 0o755, &busybox)])
}

/// Returns the tar of a build of an image in which a step runs, and which no function uses.
pub(crate) fn image_tar(registry: &str, image: &str) -> Vec<u8> {
    let dockerfile = format!("FROM {}\nRUN true\n", shell_image(registry));
    tar_of(&json!({ "image": image }), &dockerfile, &[])
}

impl FunctionSource<'_> {
    /// Returns the tar of a build that deploys this version.
    pub(crate) fn tar(&self, registry: &str) -> Vec<u8> {
        self.tar_with_step(registry, "true")
    }

    /// Returns the tar of a build that runs a step and deploys this version.
    pub(crate) fn tar_with_step(&self, registry: &str, step: &str) -> Vec<u8> {
        let deploy = json!({ "service": self.function, "requests": requests() });
        self.tar_with(registry, step, &deploy)
    }

    /// Returns the tar of a build that deploys this version as `deploy` says.
    pub(crate) fn tar_that_deploys(&self, registry: &str, deploy: &Value) -> Vec<u8> {
        self.tar_with(registry, "true", deploy)
    }

    fn tar_with(&self, registry: &str, step: &str, deploy: &Value) -> Vec<u8> {
        let config = json!({
            "image": format!("{registry}/test/{}:{}", self.function, self.answer),
            "deploy": deploy,
        });
        let command = match self.behaviour {
            Behaviour::Serves => SERVE,
            Behaviour::Crashes => "echo the function does not start >&2; exit 3",
            Behaviour::Dies => "nc -ll -p 8080 -e /answer & sleep 5; echo the function dies >&2; exit 4",
            Behaviour::NeverListens => "trap 'exit 0' TERM; sleep 1000000 & wait",
        };
        let dockerfile = format!(
            "FROM {}\nRUN {step}\nCOPY answer /answer\nENV answer={} reports_version={}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"{command}\"]\n",
            shell_image(registry),
            self.answer,
            if self.reports_version { "yes" } else { "no" },
        );
        tar_of(
            &config,
            &dockerfile,
            &[("answer", 0o755, ANSWER_SCRIPT.as_bytes())],
        )
    }
}

/// Returns a tar with a request's configuration, and a context with a Dockerfile and files.
pub(crate) fn tar_of(config: &Value, dockerfile: &str, files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut append = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, path, content).unwrap();
    };
    append("com.openfaas.docker.config", 0o644, config.to_string().as_bytes());
    append("context/Dockerfile", 0o644, dockerfile.as_bytes());
    for (path, mode, content) in files {
        append(&format!("context/{path}"), *mode, content);
    }
    tar.into_inner().unwrap()
}
