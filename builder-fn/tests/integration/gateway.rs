//! A fake OpenFaaS gateway on loopback, which answers for the deployer behind it.

use std::net::SocketAddr;

use bytes::Bytes;
use function_host::http;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

pub(crate) type ReceivedRequest = http::Request<Bytes>;

/// The deployer's answer to a dry run that it accepts.
pub(crate) const DRY_RUN_ACCEPTED_JSON: &str = r#"{"dryRun":true,"status":"accepted","reasons":[]}"#;

/// A request at the fake gateway that waits for the test's answer. Dropping it cuts the connection.
pub(crate) struct GatewayCall {
    pub(crate) request: ReceivedRequest,
    reply: oneshot::Sender<(u16, String)>,
}

impl GatewayCall {
    pub(crate) fn answer(self, status: u16, body: &str) {
        // A builder that has given up does not wait for it.
        let _ = self.reply.send((status, body.to_owned()));
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        serde_json::from_slice(self.request.body()).is_ok_and(|body: Value| body["dryRun"] == true)
    }

    pub(crate) fn body(&self) -> Value {
        serde_json::from_slice(self.request.body()).expect("JSON")
    }
}

/// Starts a fake gateway whose requests the test answers. Returns its address and the requests that it receives.
pub(crate) async fn start_manual_gateway() -> (SocketAddr, mpsc::UnboundedReceiver<GatewayCall>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (calls, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = calls.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let calls = calls.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let (reply, replied) = oneshot::channel();
                    let request = http::Request::from_parts(head, body);
                    let _ = calls.send(GatewayCall { request, reply });
                    let (status, body) = replied.await?;
                    let mut response = http::Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status.try_into().expect("status");
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, received)
}

/// Starts a fake gateway that accepts every dry run, and gives every hand-over the same answer. Returns its address and
/// the hand-overs that it receives.
pub(crate) async fn start_gateway_answering_hand_overs(
    status: u16,
    answer: &'static str,
) -> (SocketAddr, mpsc::UnboundedReceiver<ReceivedRequest>) {
    let (address, mut calls) = start_manual_gateway().await;
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            if call.is_dry_run() {
                call.answer(200, DRY_RUN_ACCEPTED_JSON);
            } else {
                let _ = sender.send(call.request.clone());
                call.answer(status, answer);
            }
        }
    });
    (address, received)
}
