//! The gateway API of the fake daemon, with the lookup of a source and a solve without a frontend only.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceGitResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, SolveRequest,
    SolveResponse,
};
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A received call of `LLBBridge.ResolveSourceMeta`.
pub(crate) struct LookupCall {
    pub(crate) request: ResolveSourceMetaRequest,
    /// The reference of the solve that the call belongs to.
    pub(crate) reference: String,
    reply: oneshot::Sender<Result<ResolveSourceMetaResponse, Status>>,
}

impl LookupCall {
    /// Answers with the hash of a tag's object, if there is one, and of the commit.
    pub(crate) fn answer_with_commit(self, tag_object_hash: Option<&str>, commit_hash: &str) {
        let git = ResolveSourceGitResponse {
            checksum: tag_object_hash.unwrap_or(commit_hash).to_owned(),
            commit_checksum: tag_object_hash
                .map(|_| commit_hash.to_owned())
                .unwrap_or_default(),
            ..ResolveSourceGitResponse::default()
        };
        let response = ResolveSourceMetaResponse {
            git: Some(git),
            ..ResolveSourceMetaResponse::default()
        };
        self.reply.send(Ok(response)).expect("the client waits");
    }

    pub(crate) fn answer_with_error(self, message: &str) {
        self.reply
            .send(Err(Status::unknown(message)))
            .expect("the client waits");
    }
}

/// A received call of `LLBBridge.Solve`.
pub(crate) struct BridgeSolveCall {
    pub(crate) request: SolveRequest,
    reply: oneshot::Sender<Result<SolveResponse, Status>>,
}

impl BridgeSolveCall {
    pub(crate) fn answer_with_success(self) {
        self.reply
            .send(Ok(SolveResponse::default()))
            .expect("the client waits");
    }

    pub(crate) fn answer_with_error(self, message: &str) {
        self.reply
            .send(Err(Status::unknown(message)))
            .expect("the client waits");
    }
}

/// The gRPC service of the gateway API.
#[derive(Clone)]
pub(super) struct FakeBridge {
    pub(super) lookups: mpsc::UnboundedSender<LookupCall>,
    pub(super) solves: mpsc::UnboundedSender<BridgeSolveCall>,
}

impl UnaryService<SolveRequest> for FakeBridge {
    type Response = SolveResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::Response>, Status>> + Send>>;

    fn call(&mut self, request: Request<SolveRequest>) -> Self::Future {
        let (reply, replied) = oneshot::channel();
        let call = BridgeSolveCall {
            request: request.into_inner(),
            reply,
        };
        let sent = self.solves.send(call);
        Box::pin(async move {
            sent.map_err(|_| Status::unavailable("the test is over"))?;
            let answer = replied.await;
            answer
                .map_err(|_| Status::unknown("the test gave no answer"))?
                .map(Response::new)
        })
    }
}

impl UnaryService<ResolveSourceMetaRequest> for FakeBridge {
    type Response = ResolveSourceMetaResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::Response>, Status>> + Send>>;

    fn call(&mut self, request: Request<ResolveSourceMetaRequest>) -> Self::Future {
        let (reply, replied) = oneshot::channel();
        let reference = request.metadata().get("buildkit-controlapi-buildid");
        let reference = reference.and_then(|id| id.to_str().ok()).unwrap_or_default();
        let call = LookupCall {
            reference: reference.to_owned(),
            request: request.into_inner(),
            reply,
        };
        let sent = self.lookups.send(call);
        Box::pin(async move {
            sent.map_err(|_| Status::unavailable("the test is over"))?;
            let answer = replied.await;
            answer
                .map_err(|_| Status::unknown("the test gave no answer"))?
                .map(Response::new)
        })
    }
}

impl Service<http::Request<Body>> for FakeBridge {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bridge = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/moby.buildkit.v1.frontend.LLBBridge/ResolveSourceMeta" => {
                    let codec = ProstCodec::<ResolveSourceMetaResponse, ResolveSourceMetaRequest>::default();
                    Grpc::new(codec).unary(bridge, request).await
                }
                "/moby.buildkit.v1.frontend.LLBBridge/Solve" => {
                    let codec = ProstCodec::<SolveResponse, SolveRequest>::default();
                    Grpc::new(codec).unary(bridge, request).await
                }
                _ => Status::unimplemented("not implemented by the fake daemon").into_http(),
            })
        })
    }
}

impl NamedService for FakeBridge {
    const NAME: &'static str = "moby.buildkit.v1.frontend.LLBBridge";
}
