//! A git repository, and an HTTP server for it: `git http-backend` behind a check of its clients' token.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process::Command, task::JoinHandle};

/// The name of the repository, as its URL has it.
const REPOSITORY: &str = "app.git";

/// A git repository with one branch, `main`, in a temporary folder.
#[derive(Debug)]
pub struct GitRepository {
    folder: tempfile::TempDir,
}

impl GitRepository {
    /// Creates a repository without commits.
    pub async fn create() -> Result<Self> {
        let repository = Self {
            folder: tempfile::tempdir()?,
        };
        repository
            .run_git(["init", "--quiet", "--initial-branch=main", REPOSITORY], false)
            .await?;
        Ok(repository)
    }

    /// Commits these files, as paths and contents, and returns the hash of the commit.
    pub async fn commit_files(&self, files: &[(&str, &str)]) -> Result<String> {
        for (path, content) in files {
            let path = self.work_tree().join(path);
            std::fs::create_dir_all(path.parent().context("the path has no parent folder")?)?;
            std::fs::write(path, content)?;
        }
        self.run_git(["add", "--all"], true).await?;
        self.run_git(["commit", "--quiet", "--message=A commit"], true)
            .await?;
        Ok(self.run_git(["rev-parse", "HEAD"], true).await?.trim().to_owned())
    }

    /// Makes an annotated tag of the last commit.
    pub async fn tag_commit(&self, name: &str) -> Result<()> {
        self.run_git(["tag", "--annotate", "--message=A tag", name], true)
            .await?;
        Ok(())
    }

    fn work_tree(&self) -> PathBuf {
        self.folder.path().join(REPOSITORY)
    }

    async fn run_git(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        is_inside: bool,
    ) -> Result<String> {
        let folder = match is_inside {
            true => self.work_tree(),
            false => self.folder.path().to_owned(),
        };
        let output = git_command()
            .args(["-c", "user.name=e2e", "-c", "user.email=e2e@example.com"])
            .args(arguments)
            .current_dir(folder)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "git failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Returns a git command without the settings of this machine and its user.
fn git_command() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// An HTTP server on loopback for a [`GitRepository`], which wants a token. It stops on drop.
#[derive(Debug)]
pub struct SmartGitServer {
    host: String,
    serving: JoinHandle<()>,
}

struct ServerState {
    root: PathBuf,
    /// The value of the header `Authorization` that clients have to send.
    authorization: String,
}

impl SmartGitServer {
    /// Starts a server for `repository`. Clients send `token` as BuildKit does.
    pub async fn start(repository: &GitRepository, token: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let host = listener.local_addr()?.to_string();
        let credentials = STANDARD.encode(format!("x-access-token:{token}"));
        let state = ServerState {
            root: repository.folder.path().to_owned(),
            authorization: format!("basic {credentials}"),
        };
        let app = Router::new().fallback(answer_request).with_state(Arc::new(state));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self { host, serving })
    }

    /// Returns the server's host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the URL of the repository.
    pub fn repository_url(&self) -> String {
        format!("http://{}/{REPOSITORY}", self.host)
    }
}

impl Drop for SmartGitServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer_request(
    State(state): State<Arc<ServerState>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if given != state.authorization {
        return (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")],
        )
            .into_response();
    }
    match run_http_backend(&state.root, &method, &uri, &headers, &body).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Runs git's CGI program for one request (RFC 3875), and converts its output to a response.
async fn run_http_backend(
    root: &Path,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response> {
    let header_of = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut child = git_command()
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method.as_str())
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header_of("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header_of("content-encoding"))
        .env("GIT_PROTOCOL", header_of("git-protocol"))
        .env("REMOTE_USER", "e2e")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("the program has no standard input")?;
    let body = body.to_vec();
    let writer = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await?;
    // A program that does not read its input closes the pipe, which is not an error.
    writer.await?.ok();
    let end = output.stdout.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let end = end.context("git http-backend gave no headers")?;
    let (head, content) = output.stdout.split_at(end);
    let mut response = Response::new(axum::body::Body::from(content[4..].to_vec()));
    for line in std::str::from_utf8(head)?.lines() {
        let (name, value) = line.split_once(": ").context("a malformed header")?;
        match name {
            "Status" => {
                let code = value.split(' ').next().unwrap_or_default();
                *response.status_mut() = code.parse()?;
            }
            _ => {
                let name: header::HeaderName = name.parse()?;
                response.headers_mut().insert(name, value.parse()?);
            }
        }
    }
    Ok(response)
}
