//! The process of a function, and requests to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use function_host::http::{self, StatusCode, header::HeaderMap};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::handlers;

/// The time after which a test fails instead of waiting longer for an event. No event should take nearly as
/// long.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The environment variable that makes the test program serve the function.
const SERVE_VARIABLE: &str = "FUNCTION_HOST_TEST_SERVE";

/// Serves the function under test, in a process that [`FunctionProcess::spawn_without_known_addresses`] started.
///
/// In other processes it returns at once. It is not a test, but the entry point of the process under test.
#[test]
fn serve_as_child_process() {
    if std::env::var_os(SERVE_VARIABLE).is_some() {
        let code = function_host::run_with(handlers::set_up_test_handler);
        // `ExitCode` can be returned from `main` only, so its number is searched.
        let number = (0..=u8::MAX)
            .find(|number| ExitCode::from(*number) == code)
            .unwrap();
        std::process::exit(number.into());
    }
}

/// The running process of the function under test. Dropping it kills the process.
pub(crate) struct FunctionProcess {
    process: Child,
    log: Lines<BufReader<ChildStdout>>,
    /// The address at which the function answers requests.
    pub(crate) address: SocketAddr,
    /// The address at which the function serves its metrics.
    pub(crate) metrics_address: SocketAddr,
}

/// A complete response of the function.
#[derive(Debug)]
pub(crate) struct FunctionResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl FunctionProcess {
    /// Starts the function under test with these settings and waits until it listens.
    pub(crate) async fn start_and_wait(settings: &[(&str, &str)]) -> Self {
        let mut function = Self::spawn_without_known_addresses(settings);
        let line = function.next_log_line_with_message("listening").await;
        let port = |name: &str| u16::try_from(line[name].as_u64().unwrap()).unwrap();
        function.address = (Ipv4Addr::LOCALHOST, port("port")).into();
        function.metrics_address = (Ipv4Addr::LOCALHOST, port("metrics_port")).into();
        function
    }

    /// Starts the function under test without waiting until it listens.
    pub(crate) fn spawn_without_known_addresses(settings: &[(&str, &str)]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "function::serve_as_child_process",
                "--nocapture",
                "--quiet",
            ])
            .env_clear()
            .envs([
                (SERVE_VARIABLE, "1"),
                ("port", "0"),
                ("metrics_port", "0"),
                ("healthcheck_interval", "0s"),
            ])
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stdout.take().unwrap()).lines();
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            process,
            log,
            address: nowhere,
            metrics_address: nowhere,
        }
    }

    /// Waits for the next line of the function's log and returns it, or `None` at its end. Skips lines of the
    /// test harness.
    pub(crate) async fn next_raw_log_line(&mut self) -> Option<String> {
        loop {
            let line = tokio::time::timeout(TEST_TIMEOUT, self.log.next_line())
                .await
                .unwrap()
                .unwrap()?;
            if !line.is_empty() && !line.starts_with("running ") {
                return Some(line);
            }
        }
    }

    /// Waits for a line of the function's log with this message, skips others, and returns it parsed.
    pub(crate) async fn next_log_line_with_message(&mut self, message: &str) -> Value {
        while let Some(line) = self.next_raw_log_line().await {
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == message {
                return line;
            }
        }
        panic!("the log ended without {message:?}");
    }

    /// Sends a GET request to the function.
    pub(crate) async fn get(&self, path: &str) -> FunctionResponse {
        get_page(self.address, path).await
    }

    /// Fetches the function's page of metrics and returns its text.
    pub(crate) async fn get_metrics_page(&self) -> String {
        let answer = get_page(self.metrics_address, "/metrics").await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.text
    }

    /// Returns the names of the function's threads that begin with `prefix`.
    #[cfg(feature = "traces")]
    pub(crate) fn thread_names(&self, prefix: &str) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id().unwrap())).unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Sends a signal to the function's process.
    pub(crate) fn send_signal(&self, name: &str) {
        let pid = self.process.id().unwrap().to_string();
        let status = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits until the function's process exits; returns its exit code.
    pub(crate) async fn wait_for_exit_code(mut self) -> i32 {
        let status = tokio::time::timeout(TEST_TIMEOUT, self.process.wait())
            .await
            .unwrap()
            .unwrap();
        status
            .code()
            .unwrap_or_else(|| panic!("killed by signal {:?}", status.signal()))
    }
}

/// Sends a GET request on a new connection.
pub(crate) async fn get_page(address: SocketAddr, path: &str) -> FunctionResponse {
    get_page_or_error_after_connect(address, path).await.unwrap()
}

/// Sends a GET request on a new connection, and returns its error if it fails.
pub(crate) async fn get_page_or_error_after_connect(
    address: SocketAddr,
    path: &str,
) -> Result<FunctionResponse, hyper::Error> {
    send_request_or_error_after_connect(
        address,
        http::Request::get(path)
            .header("host", "test")
            .body(Full::default())
            .unwrap(),
    )
    .await
}

/// Sends a request on a new connection. Fails if the response is incomplete.
pub(crate) async fn send_request_or_error_after_connect(
    address: SocketAddr,
    request: http::Request<Full<Bytes>>,
) -> Result<FunctionResponse, hyper::Error> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let text = String::from_utf8(body.collect().await?.to_bytes().into()).unwrap();
        Ok(FunctionResponse {
            status: head.status,
            headers: head.headers,
            text,
        })
    };
    tokio::time::timeout(TEST_TIMEOUT, exchange).await.unwrap()
}
