//! The provider under test: the one of `tests/provider` in this process, or a program.

use std::{collections::BTreeSet, ffi::OsString, fs, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use reqwest::Method;
use serde_json::Value;
use slipway_dev_provider::{KubernetesSettings, serve_kubernetes_until_stopped};
use tokio::{process::Child, task::JoinHandle};

use crate::{
    POLL_INTERVAL,
    api_server::{ApiServer, START_TIMEOUT, free_port, quiet_command},
    case::Request,
    objects::NAMESPACE,
};

/// The variable with the path of a faas-netes.
const FAAS_NETES_VARIABLE: &str = "SLIPWAY_FAAS_NETES";

/// The API's credentials.
const CREDENTIALS: (&str, &str) = ("admin", "password of the tests");

/// A running provider.
pub(crate) struct Provider {
    client: reqwest::Client,
    url: String,
    _run: ProviderRun,
}

/// The run of a provider, which ends when this is dropped.
enum ProviderRun {
    Program(Child),
    Task(JoinHandle<()>),
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

#[derive(Parser)]
struct ProviderArguments {
    #[command(flatten)]
    settings: KubernetesSettings,
}

impl Provider {
    /// Starts the provider, and waits until it answers.
    pub(crate) async fn start(server: &ApiServer) -> Result<Self> {
        let secrets = server.directory().join("provider");
        fs::create_dir(&secrets)?;
        fs::write(secrets.join("basic-auth-user"), CREDENTIALS.0)?;
        fs::write(secrets.join("basic-auth-password"), CREDENTIALS.1)?;
        let port = free_port()?.to_string();
        let settings: [(&str, OsString); 7] = [
            ("port", port.clone().into()),
            ("function_namespace", NAMESPACE.into()),
            ("read_timeout", "2s".into()),
            ("write_timeout", "2s".into()),
            ("http_probe", "true".into()),
            ("basic_auth", "true".into()),
            ("secret_mount_path", secrets.clone().into()),
        ];
        let kubeconfig = server.provider_kubeconfig();
        let run = match std::env::var_os(FAAS_NETES_VARIABLE) {
            Some(program) => {
                let mut command = quiet_command(program, &server.directory().join("faas-netes.log"))?;
                command.args(["--operator=false", "--kubeconfig"]).arg(kubeconfig);
                ProviderRun::Program(command.envs(settings).spawn().context("start faas-netes")?)
            }
            None => {
                let mut line: Vec<OsString> =
                    vec!["provider".into(), "--kubeconfig".into(), kubeconfig.into()];
                for (name, value) in settings {
                    line.push(format!("--{}", name.replace('_', "-")).into());
                    line.push(value);
                }
                let settings = ProviderArguments::try_parse_from(line)?.settings;
                ProviderRun::Task(tokio::spawn(async move {
                    serve_kubernetes_until_stopped(settings, std::future::pending())
                        .await
                        .unwrap();
                }))
            }
        };
        let provider = Self {
            client: reqwest::Client::new(),
            url: format!("http://127.0.0.1:{port}"),
            _run: run,
        };
        provider.wait_until_it_answers().await?;
        Ok(provider)
    }

    /// Sends a request, and returns the complete answer.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer> {
        let method = Method::from_bytes(request.method.as_bytes())?;
        let mut builder = self
            .client
            .request(method, format!("{}{}", self.url, request.path));
        if !request.anonymous {
            builder = builder.basic_auth(CREDENTIALS.0, Some(CREDENTIALS.1));
        }
        builder = match (&request.json, &request.body) {
            (Some(json), None) => builder.json(json),
            (None, Some(body)) => builder.body(body.clone()),
            _ => builder,
        };
        let response = builder
            .send()
            .await
            .with_context(|| format!("{} {}", request.method, request.path))?;
        let content_type = response.headers().get("content-type");
        Ok(Answer {
            status: response.status().as_u16(),
            content_type: content_type
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            body: response.text().await?,
        })
    }

    /// Returns the names of the functions that the provider lists.
    pub(crate) async fn function_names(&self) -> Result<BTreeSet<String>> {
        let answer = self.send(&Request::get("/system/functions")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        let functions: Vec<Value> = serde_json::from_str(&answer.body)?;
        let names = functions.iter().filter_map(|function| function["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.send(&Request::get("/healthz")).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                answer => ensure!(
                    Instant::now() < deadline,
                    "the provider does not answer: {answer:?}"
                ),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for ProviderRun {
    fn drop(&mut self) {
        match self {
            Self::Program(program) => drop(program.start_kill()),
            Self::Task(task) => task.abort(),
        }
    }
}

impl Request {
    fn get(path: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            path: path.to_owned(),
            json: None,
            body: None,
            anonymous: false,
            status: None,
        }
    }
}
