//! `moby.buildkit.v1.sourcepolicy.policysession`: the daemon asks whether a build may read a source.
//!
//! A solve names this session in `source_policy_session`, and the daemon then asks about every source of the build
//! before it reads it: what the Dockerfile names (`FROM`, `COPY --from`, `ADD`, `RUN --mount`), and what a frontend
//! resolves itself (BuildKit `solver/llbsolver/policy.go`). Identifiers are in the daemon's normalised form. A redirect
//! of a server, and the submodules of a git repository, are no sources of their own.
//!
//! A daemon that does not know this service would read everything. It gets no files: see [`SourceGate`].
//!
//! The messages are those of BuildKit `sourcepolicy/policysession/policysession.proto`, as far as they are used.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::ResolveSourceMetaResponse;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::pb::SourceOp;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The name of the gRPC service that decides about sources.
const POLICY_SERVICE_NAME: &str = "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier";
/// The path of the only method of the gRPC service.
pub(super) const CHECK_POLICY_PATH: &str =
    "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// A decision about one source of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceDecision {
    /// The build may read the source.
    Allow,
    /// The build may read the source with these attributes in place of its own.
    AllowWith(BTreeMap<String, String>),
    /// The build may not read the source. The text names the rule, for the caller.
    Deny(String),
}

/// Rules for what a build may read.
pub trait SourceCheck: fmt::Debug + Send + Sync + 'static {
    /// Decides whether the build may read a source, given by BuildKit's identifier and attributes.
    fn check(&self, identifier: &str, attributes: &BTreeMap<String, String>) -> SourceDecision;
}

/// A gate that opens once the daemon asks about a source of the build, with the denials so far. Clones share the gate.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceGate(Arc<GateState>);

/// The state that the clones of a gate share.
#[derive(Debug, Default)]
struct GateState {
    /// Whether the daemon has asked about a source, which opens the gate.
    was_asked: AtomicBool,
    /// The first denials, up to [`MAX_DENIALS`].
    denials: Mutex<Vec<Denial>>,
}

/// A source that a build was not allowed to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// BuildKit's identifier of the source.
    pub identifier: String,
    /// The reason, which names the rule.
    pub reason: String,
}

impl SourceGate {
    /// Returns whether the daemon has asked about a source, as a daemon does that obeys the session's rules.
    pub(super) fn is_open(&self) -> bool {
        self.0.was_asked.load(Ordering::Acquire)
    }

    /// Returns the denial of the source that a daemon's error `message` names, or the first denial if it names none of
    /// them; `None` for another error.
    pub(super) fn denial_that_error_is_about(&self, message: &str) -> Option<Denial> {
        let denials = self.0.denials.lock().unwrap_or_else(PoisonError::into_inner);
        let is_named = |denial: &&Denial| message.contains(&denial.identifier);
        if !message.contains(DENIED_ERROR_TEXT) {
            return None;
        }
        denials.iter().find(is_named).or(denials.first()).cloned()
    }

    /// Opens the gate, and remembers a denial.
    fn open_and_record_decision(&self, identifier: &str, decision: &SourceDecision) {
        self.0.was_asked.store(true, Ordering::Release);
        if let SourceDecision::Deny(reason) = decision {
            let mut denials = self.0.denials.lock().unwrap_or_else(PoisonError::into_inner);
            if denials.len() < MAX_DENIALS {
                denials.push(Denial {
                    identifier: identifier.to_owned(),
                    reason: reason.clone(),
                });
            }
        }
    }
}

/// The text in the daemon's error about a source that the session denied: BuildKit `solver/llbsolver/policy.go`.
const DENIED_ERROR_TEXT: &str = " not allowed by policy";

/// The limit on the denials that are remembered of one build. The first ends the build.
const MAX_DENIALS: usize = 16;

/// The gRPC service that decides about sources, with the rules of one build.
#[derive(Clone, Debug)]
pub(super) struct PolicyVerifier {
    check: Arc<dyn SourceCheck>,
    gate: SourceGate,
}

impl PolicyVerifier {
    pub(super) fn new(check: Arc<dyn SourceCheck>, gate: SourceGate) -> Self {
        Self { check, gate }
    }

    /// Decides about the source in `request`, and records the decision at the gate.
    fn answer_check(&self, request: CheckPolicyRequest) -> Result<CheckPolicyResponse, Status> {
        let source = request.source.and_then(|response| response.source);
        let source = source.ok_or_else(|| Status::invalid_argument("the request names no source"))?;
        let decision = self.check.check(&source.identifier, &source.attrs);
        self.gate.open_and_record_decision(&source.identifier, &decision);
        tracing::debug!(
            source = source.identifier,
            ?decision,
            "BuildKit asked about a source"
        );
        let response = match decision {
            SourceDecision::Allow => DecisionResponse {
                action: PolicyAction::Allow.into(),
                ..DecisionResponse::default()
            },
            SourceDecision::AllowWith(attrs) => DecisionResponse {
                action: PolicyAction::Convert.into(),
                update: Some(SourceOp {
                    identifier: source.identifier,
                    attrs,
                }),
                ..DecisionResponse::default()
            },
            SourceDecision::Deny(message) => DecisionResponse {
                action: PolicyAction::Deny.into(),
                deny_messages: vec![DenyMessage { message }],
                ..DecisionResponse::default()
            },
        };
        Ok(CheckPolicyResponse {
            decision: Some(response),
        })
    }
}

/// The daemon's question whether a build may read a source. The platform in it is not used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyRequest {
    /// The source, and what the daemon knows about it.
    #[prost(message, optional, tag = "2")]
    pub source: Option<ResolveSourceMetaResponse>,
}

/// The answer to [`CheckPolicyRequest`]. BuildKit's own clients may answer with a question instead.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckPolicyResponse {
    /// The decision about the source.
    #[prost(message, optional, tag = "1")]
    pub decision: Option<DecisionResponse>,
}

/// The decision about a source.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DecisionResponse {
    /// Whether the source is allowed, denied, or to be converted.
    #[prost(enumeration = "PolicyAction", tag = "1")]
    pub action: i32,
    /// The reasons of a denial.
    #[prost(message, repeated, tag = "2")]
    pub deny_messages: Vec<DenyMessage>,
    /// The source that is read in place of the one asked about. The daemon asks about it too.
    #[prost(message, optional, tag = "3")]
    pub update: Option<SourceOp>,
}

/// One reason of a denial.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DenyMessage {
    /// The text of the reason.
    #[prost(string, tag = "1")]
    pub message: String,
}

impl UnaryService<CheckPolicyRequest> for PolicyVerifier {
    type Response = CheckPolicyResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CheckPolicyResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CheckPolicyRequest>) -> Self::Future {
        let answer = self.answer_check(request.into_inner());
        Box::pin(async { answer.map(Response::new) })
    }
}

impl Service<http::Request<Body>> for PolicyVerifier {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let verifier = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                CHECK_POLICY_PATH => Grpc::new(ProstCodec::default()).unary(verifier, request).await,
                _ => Status::unimplemented("only CheckPolicy is implemented").into_http(),
            })
        })
    }
}

impl NamedService for PolicyVerifier {
    const NAME: &'static str = POLICY_SERVICE_NAME;
}
