//! A git repository, and an HTTP server for it: `git http-backend`, behind a check of its clients' token if it has one.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    process::Command,
    task::JoinHandle,
};

/// The name of the repository, as its URL has it.
const REPOSITORY_FOLDER_NAME: &str = "app.git";

/// The size of the pieces in which a response is sent, in bytes.
const RESPONSE_PIECE_BYTES: usize = 64 << 10;

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
            .run_git_in_work_tree_or_its_parent(
                ["init", "--quiet", "--initial-branch=main", REPOSITORY_FOLDER_NAME],
                false,
            )
            .await?;
        Ok(repository)
    }

    /// Writes a file that the next commit contains.
    pub fn write_file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.work_tree().join(path);
        std::fs::create_dir_all(path.parent().context("the path has no parent folder")?)?;
        Ok(std::fs::write(path, content)?)
    }

    /// Writes these files, as paths and contents, commits everything in the work tree, and returns the hash of the
    /// commit.
    pub async fn write_files_and_commit_all(&self, files: &[(&str, &str)]) -> Result<String> {
        for (path, content) in files {
            self.write_file(path, content)?;
        }
        self.run_git_in_work_tree_or_its_parent(["add", "--all"], true)
            .await?;
        self.run_git_in_work_tree_or_its_parent(["commit", "--quiet", "--message=A commit"], true)
            .await?;
        Ok(self
            .run_git_in_work_tree_or_its_parent(["rev-parse", "HEAD"], true)
            .await?
            .trim()
            .to_owned())
    }

    /// Makes an annotated tag of the last commit.
    pub async fn tag_last_commit(&self, name: &str) -> Result<()> {
        self.run_git_in_work_tree_or_its_parent(["tag", "--annotate", "--message=A tag", name], true)
            .await?;
        Ok(())
    }

    fn work_tree(&self) -> PathBuf {
        self.folder.path().join(REPOSITORY_FOLDER_NAME)
    }

    async fn run_git_in_work_tree_or_its_parent(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        inside_work_tree: bool,
    ) -> Result<String> {
        let folder = match inside_work_tree {
            true => self.work_tree(),
            false => self.folder.path().to_owned(),
        };
        let output = git_command_without_user_settings_or_compression()
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

/// Returns a git command without the settings of this machine and its user. It compresses nothing and compares no large
/// files, so a large repository costs little time.
fn git_command_without_user_settings_or_compression() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .args(["-c", "core.compression=0", "-c", "core.bigFileThreshold=1m"]);
    command
}

/// An HTTP server for a [`GitRepository`], which may want a token. It stops on drop.
#[derive(Debug)]
pub struct SmartGitServer {
    host: String,
    serving: JoinHandle<()>,
}

struct ServerState {
    root: PathBuf,
    /// The value of the header `Authorization` that clients have to send, if the repository is private.
    authorization: Option<String>,
}

impl SmartGitServer {
    /// Starts a server on loopback for `repository`, which only clients that send `token` as BuildKit does may read.
    pub async fn start_with_token(repository: &GitRepository, token: &str) -> Result<Self> {
        let credentials = STANDARD.encode(format!("x-access-token:{token}"));
        let authorization = format!("basic {credentials}");
        Self::serve(repository, Ipv4Addr::LOCALHOST.into(), Some(authorization)).await
    }

    /// Starts a server at this address of the machine for `repository`, which everybody may read.
    pub async fn start_public_at(address: IpAddr, repository: &GitRepository) -> Result<Self> {
        Self::serve(repository, address, None).await
    }

    async fn serve(
        repository: &GitRepository,
        address: IpAddr,
        authorization: Option<String>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let host = listener.local_addr()?.to_string();
        let state = ServerState {
            root: repository.folder.path().to_owned(),
            authorization,
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
        format!("http://{}/{REPOSITORY_FOLDER_NAME}", self.host)
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
    if state.authorization.as_ref().is_some_and(|wanted| wanted != given) {
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
    let mut child = git_command_without_user_settings_or_compression()
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
    // A program that does not read its input closes the pipe, which is not an error.
    tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child
        .stdout
        .take()
        .context("the program has no standard output")?;
    let mut output = BufReader::new(output);
    let mut response = Response::new(Body::empty());
    loop {
        let mut line = String::new();
        ensure!(
            output.read_line(&mut line).await? > 0,
            "git http-backend gave no headers"
        );
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
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
    // The child is waited for with the end of its output.
    let content = stream::try_unfold((output, child), |(mut output, mut child)| async move {
        let mut piece = vec![0; RESPONSE_PIECE_BYTES];
        let length = output.read(&mut piece).await?;
        piece.truncate(length);
        if length == 0 {
            child.wait().await?;
            return Ok::<_, std::io::Error>(None);
        }
        Ok(Some((piece, (output, child))))
    });
    *response.body_mut() = Body::from_stream(content);
    Ok(response)
}
