//! An HTTP server with one file.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use axum::{Router, body::Bytes, extract::State};
use tokio::{net::TcpListener, task::JoinHandle};

/// An HTTP server on loopback that answers every request with one file, and counts the requests. It stops on drop.
#[derive(Debug)]
pub struct FileServer {
    url: String,
    requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl FileServer {
    /// Starts a server on a free port.
    pub async fn start(file: impl Into<Bytes>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let requests = Arc::new(AtomicUsize::new(0));
        let answer = async |State((file, requests)): State<(Bytes, Arc<AtomicUsize>)>| {
            requests.fetch_add(1, Ordering::SeqCst);
            file
        };
        let app = Router::new()
            .fallback(answer)
            .with_state((file.into(), Arc::clone(&requests)));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self {
            url,
            requests,
            serving,
        })
    }

    /// Returns the server's URL, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the number of requests so far.
    pub fn request_count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
