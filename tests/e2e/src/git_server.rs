//! An HTTP server with git repositories and files. What is below `/private/` needs a token.
//!
//! Repositories are served as plain files (git's dumb HTTP protocol), for which git needs no program on the server.

use std::{
    fs,
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode, Uri,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::task::JoinHandle;

/// A server of git repositories and files on the loopback address. It stops on drop.
pub struct GitServer {
    address: SocketAddr,
    folder: Arc<tempfile::TempDir>,
    serving: JoinHandle<()>,
}

/// The files of a [`GitServer`], and the header `Authorization` that its private ones need.
#[derive(Clone)]
struct ServedFiles {
    folder: Arc<tempfile::TempDir>,
    authorization: Arc<str>,
}

impl GitServer {
    /// Starts a server without files. BuildKit sends `token`, if it is the secret `GIT_AUTH_TOKEN` of a build, in the
    /// form that private files need.
    pub async fn start_with_token_for_private_files(token: &str) -> Result<Self> {
        let folder = Arc::new(tempfile::tempdir()?);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let login = STANDARD.encode(format!("x-access-token:{token}"));
        let app = Router::new()
            .fallback(serve_file_if_public_or_authorized)
            .with_state(ServedFiles {
                folder: Arc::clone(&folder),
                authorization: format!("basic {login}").into(),
            });
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self {
            address,
            folder,
            serving,
        })
    }

    /// Returns the host and port of the server.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Adds a file at `path`, which has no slash at its start.
    pub fn add_file(&self, path: &str, content: &str) -> Result<()> {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(fs::write(path, content)?)
    }

    /// Adds a git repository at `path`, which ends in `.git`, whose branch `main` has one file. Returns the commit.
    pub fn add_repository(&self, path: &str, file: &str, content: &str) -> Result<String> {
        let work = tempfile::tempdir()?;
        fs::write(work.path().join(file), content)?;
        let served = self.folder.path().join(path);
        let target = served.to_str().context("the path is not UTF-8")?;
        run_git(work.path(), &["init", "--quiet", "--initial-branch=main"])?;
        run_git(work.path(), &["add", "."])?;
        run_git(work.path(), &["commit", "--quiet", "--message=first"])?;
        run_git(work.path(), &["clone", "--quiet", "--bare", ".", target])?;
        run_git(&served, &["update-server-info"])?;
        let commit = run_git(work.path(), &["rev-parse", "HEAD"])?;
        Ok(commit.trim().to_owned())
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Runs git without the machine's settings, and returns its output.
fn run_git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(folder).args(arguments);
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "Ann")
            .env(format!("GIT_{role}_EMAIL"), "ann@example.com");
    }
    let output = command.output().context("git")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

async fn serve_file_if_public_or_authorized(
    State(files): State<ServedFiles>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let path = PathBuf::from(uri.path().trim_start_matches('/'));
    let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    let is_authorized = headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes() == files.authorization.as_bytes());
    if path.starts_with("private") && !is_authorized {
        let challenge = [(WWW_AUTHENTICATE, "Basic realm=\"git\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    match fs::read(files.folder.path().join(&path)) {
        Ok(content) if is_inside => content.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
