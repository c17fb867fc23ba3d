//! The receiver of a queued call's outcome: one request to an address of this machine that only the stack
//! reaches.

use std::{convert::Infallible, net::Ipv4Addr};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc};

use crate::error::{IoResultExt as _, Result};

/// The longest outcome of a queued call that is read, in bytes.
const OUTCOME_MAX_BYTES: usize = 16 << 20;

/// A listener for the outcome of one queued call.
#[derive(Debug)]
pub(super) struct CallbackListener {
    listener: TcpListener,
    /// The callback URL to give to the queue.
    pub(super) url: String,
}

impl CallbackListener {
    /// Opens a listener at `address`, the machine's end of the pair of interfaces between machine and stack.
    pub(super) async fn open_on_address(address: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))
            .await
            .with_operation("listen on", address.to_string())?;
        let url = format!(
            "http://{}/",
            listener
                .local_addr()
                .with_operation("listen on", address.to_string())?
        );
        Ok(Self { listener, url })
    }

    /// Waits for the outcome of the queued call, which is the first complete request, and returns its body.
    pub(super) async fn wait_without_limit_for_outcome(&self) -> Result<Vec<u8>> {
        let (sender, mut bodies) = mpsc::channel(1);
        loop {
            let (stream, _) = self
                .listener
                .accept()
                .await
                .with_operation("accept on", &self.url)?;
            let service = service_fn(|request: Request<Incoming>| async {
                if let Ok(body) = Limited::new(request.into_body(), OUTCOME_MAX_BYTES)
                    .collect()
                    .await
                {
                    let _ = sender.try_send(body.to_bytes().to_vec());
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let _ = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Ok(body) = bodies.try_recv() {
                return Ok(body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_posted_body_is_the_outcome() {
        let callback = CallbackListener::open_on_address(Ipv4Addr::LOCALHOST)
            .await
            .unwrap();
        let url = callback.url.clone();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let both = async {
            tokio::join!(
                client.post(url).body("done").send(),
                callback.wait_without_limit_for_outcome()
            )
        };
        // The limit only ends a test that would otherwise hang.
        let (posted, outcome) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert!(posted.unwrap().status().is_success());
        assert_eq!(outcome.unwrap(), b"done");
    }
}
