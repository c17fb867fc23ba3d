//! A fake BuildKit daemon in memory. It passes the calls of solves, statuses, sessions and the frontend gateway to the
//! test, which may answer them, and answers questions about its history itself.

mod bridge;
mod history;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bollard_buildkit_proto::moby::buildkit::v1::control_server::{Control, ControlServer};
use bollard_buildkit_proto::moby::buildkit::v1::types::BuildkitVersion;
use bollard_buildkit_proto::moby::buildkit::v1::*;
pub(crate) use bridge::{BridgeSolveCall, LookupCall};
use builder_fn::buildkit::{Daemon, DialFuture, Dialer, LOWEST_SHARED_BUILDKIT_RELEASE};
use futures_util::{Stream, StreamExt};
pub(crate) use history::{FakeHistory, HistoryBehaviour};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::io::ReaderStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// The gRPC calls that reach the fake daemon. Dropping them ends the daemon.
pub(crate) struct DaemonCalls {
    pub(crate) solves: mpsc::UnboundedReceiver<SolveCall>,
    pub(crate) statuses: mpsc::UnboundedReceiver<StatusCall>,
    pub(crate) sessions: mpsc::UnboundedReceiver<SessionCall>,
    pub(crate) lookups: mpsc::UnboundedReceiver<LookupCall>,
    pub(crate) bridge_solves: mpsc::UnboundedReceiver<BridgeSolveCall>,
    pub(crate) history: FakeHistory,
    transports: TransportTasks,
    server: tokio::task::JoinHandle<()>,
}

/// The tasks that carry the bytes of each connection to the fake daemon, until they are aborted.
type TransportTasks = Arc<Mutex<JoinSet<()>>>;

/// A received call of `Control.Solve`. `reply.closed()` completes when the client no longer waits.
pub(crate) struct SolveCall {
    pub(crate) request: SolveRequest,
    pub(crate) headers: MetadataMap,
    pub(crate) reply: oneshot::Sender<Result<SolveResponse, Status>>,
}

/// A received call of `Control.Status`. `events.closed()` completes when the client no longer reads.
pub(crate) struct StatusCall {
    pub(crate) reference: String,
    pub(crate) events: mpsc::Sender<Result<StatusResponse, Status>>,
}

/// A received call of `Control.Session`, with a channel to the services that the client serves over it.
pub(crate) struct SessionCall {
    pub(crate) headers: MetadataMap,
    pub(crate) services: Channel,
    /// The receiver that completes when the client ends the session.
    pub(crate) ended_by_client: oneshot::Receiver<()>,
    /// The sender that ends the session from the daemon's side, with an error if one is sent.
    pub(crate) end: oneshot::Sender<Option<Status>>,
}

/// The gRPC server of the fake daemon.
struct FakeControl {
    /// The version that the daemon reports.
    version: String,
    history: FakeHistory,
    solves: mpsc::UnboundedSender<SolveCall>,
    statuses: mpsc::UnboundedSender<StatusCall>,
    sessions: mpsc::UnboundedSender<SessionCall>,
}

/// A dialer that connects to the fake daemon over a pipe in memory.
struct InMemoryDialer {
    dials: mpsc::UnboundedSender<DuplexStream>,
    transports: TransportTasks,
}

impl Dialer for InMemoryDialer {
    fn open_transport(&self) -> DialFuture {
        let (ours, mut near) = tokio::io::duplex(256 << 10);
        let (mut far, theirs) = tokio::io::duplex(256 << 10);
        self.transports.lock().expect("no panic").spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        let sent = self.dials.send(theirs);
        Box::pin(async move {
            sent.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(ours) as _)
        })
    }
}

/// A dialer whose attempts to connect neither succeed nor fail.
struct NeverConnectingDialer;

impl Dialer for NeverConnectingDialer {
    fn open_transport(&self) -> DialFuture {
        Box::pin(std::future::pending())
    }
}

/// Returns a daemon for which attempts to connect never end.
pub(crate) fn never_connecting_daemon() -> Daemon {
    never_connecting_daemon_at("the daemon in this test")
}

/// Returns a daemon at `address` for which attempts to connect never end.
pub(crate) fn never_connecting_daemon_at(address: &str) -> Daemon {
    Daemon::with_dialer(address, NeverConnectingDialer)
}

/// Starts a fake daemon, and returns it with the calls that reach it.
pub(crate) fn start_fake_daemon() -> (Daemon, DaemonCalls) {
    start_fake_daemon_at("the daemon in this test")
}

/// Starts a fake daemon at `address`, and returns it with the calls that reach it. It reports the lowest version that
/// tenants may share.
pub(crate) fn start_fake_daemon_at(address: &str) -> (Daemon, DaemonCalls) {
    start_fake_daemon_of_version(address, &format!("v{LOWEST_SHARED_BUILDKIT_RELEASE}"))
}

/// Starts a fake daemon at `address` that reports this version, and returns it with the calls that reach it.
pub(crate) fn start_fake_daemon_of_version(address: &str, version: &str) -> (Daemon, DaemonCalls) {
    let history = FakeHistory::default();
    let (dials, dialled) = mpsc::unbounded_channel();
    let (solves, solve_calls) = mpsc::unbounded_channel();
    let (statuses, status_calls) = mpsc::unbounded_channel();
    let (sessions, session_calls) = mpsc::unbounded_channel();
    let (lookups, lookup_calls) = mpsc::unbounded_channel();
    let (bridge_solves, bridge_solve_calls) = mpsc::unbounded_channel();
    let control = ControlServer::new(FakeControl {
        history: history.clone(),
        solves,
        statuses,
        sessions,
        version: version.to_owned(),
    });
    let incoming = UnboundedReceiverStream::new(dialled).map(Ok::<_, io::Error>);
    let server = tokio::spawn(async move {
        Server::builder()
            .add_service(control)
            .add_service(bridge::FakeBridge {
                lookups,
                solves: bridge_solves,
            })
            .serve_with_incoming(incoming)
            .await
            .expect("serve");
    });
    let transports = TransportTasks::default();
    let dial = InMemoryDialer {
        dials,
        transports: transports.clone(),
    };
    let calls = DaemonCalls {
        solves: solve_calls,
        statuses: status_calls,
        sessions: session_calls,
        lookups: lookup_calls,
        bridge_solves: bridge_solve_calls,
        history,
        transports,
        server,
    };
    (Daemon::with_dialer(address, dial), calls)
}

impl DaemonCalls {
    /// Waits for the Solve, Status and Session calls of one build.
    pub(crate) async fn wait_without_limit_for_build_calls(
        &mut self,
    ) -> (SolveCall, StatusCall, SessionCall) {
        let (solve, status, session) =
            tokio::join!(self.solves.recv(), self.statuses.recv(), self.sessions.recv());
        (
            solve.expect("a solve"),
            status.expect("a status"),
            session.expect("a session"),
        )
    }

    /// Adds a finished build to the fake daemon's history, with its digest or its error.
    pub(crate) fn add_finished_build(&self, reference: &str, outcome: Result<&str, Status>) {
        let record = BuildHistoryRecord {
            r#ref: reference.into(),
            ..BuildHistoryRecord::default()
        };
        match outcome {
            Ok(digest) => self.history.add_finished_build(record, Ok(digest)),
            Err(status) => self.history.add_finished_build(record, Err(&status)),
        }
    }

    /// Cuts every connection to the fake daemon, without closing it first.
    pub(crate) fn cut_connections(&self) {
        self.transports.lock().expect("no panic").abort_all();
    }

    /// Waits for the Session call of one build.
    pub(crate) async fn next_session_call(&mut self) -> SessionCall {
        self.sessions.recv().await.expect("a session")
    }
}

impl Drop for DaemonCalls {
    fn drop(&mut self) {
        self.server.abort();
        self.cut_connections();
    }
}

impl SolveCall {
    pub(crate) fn answer_with_digest(self, digest: &str) {
        let exporter_response = [("containerimage.digest".to_owned(), digest.to_owned())].into();
        self.reply
            .send(Ok(SolveResponse { exporter_response }))
            .expect("the client waits");
    }

    pub(crate) fn answer_with_error(self, status: Status) {
        self.reply.send(Err(status)).expect("the client waits");
    }
}

type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for FakeControl {
    type PruneStream = AnswerStream<UsageRecord>;
    type StatusStream = AnswerStream<StatusResponse>;
    type SessionStream = AnswerStream<BytesMessage>;
    type ListenBuildHistoryStream = AnswerStream<BuildHistoryEvent>;

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let (reply, replied) = oneshot::channel();
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let recording = self.history.record_start(&request)?;
        let call = SolveCall {
            headers,
            request,
            reply,
        };
        self.solves
            .send(call)
            .map_err(|_| Status::unavailable("the test is over"))?;
        let answer = replied
            .await
            .map_err(|_| Status::unknown("the test gave no answer"))?;
        match &answer {
            Ok(answer) => recording.record_outcome(Ok(&answer.exporter_response["containerimage.digest"])),
            Err(status) => recording.record_outcome(Err(status)),
        }
        answer.map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let (events, answers) = mpsc::channel(1);
        let call = StatusCall {
            reference: request.into_inner().r#ref,
            events,
        };
        self.statuses
            .send(call)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (headers, _, mut incoming) = request.into_parts();
        let (client_side, daemon_side) = tokio::io::duplex(256 << 10);
        let (from_client, mut to_services) = tokio::io::split(daemon_side);
        let (client_ended, ended_by_client) = oneshot::channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                if to_services.write_all(&message.data).await.is_err() {
                    break;
                }
            }
            let _ = client_ended.send(());
        });
        let (end, ended) = oneshot::channel::<Option<Status>>();
        let outgoing = ReaderStream::new(from_client).map(|bytes| {
            Ok(BytesMessage {
                data: bytes.map_err(|error| Status::internal(error.to_string()))?.into(),
            })
        });
        // A dropped sender does not end the session: in most tests the client ends it.
        let end_of_session = futures_util::stream::once(async {
            match ended.await {
                Ok(Some(status)) => Some(Err(status)),
                Ok(None) => None,
                Err(_) => std::future::pending().await,
            }
        });
        let outgoing = outgoing.map(Some).chain(futures_util::stream::pending());
        let answers = futures_util::stream::select(outgoing, end_of_session)
            .scan((), |(), message| std::future::ready(message))
            .fuse();
        let mut client_side = Some(TokioIo::new(client_side));
        let services = Endpoint::from_static("http://session").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let io = client_side
                    .take()
                    .ok_or(io::Error::from(io::ErrorKind::NotConnected));
                async move { io }
            }),
        );
        let call = SessionCall {
            headers,
            services,
            ended_by_client,
            end,
        };
        self.sessions
            .send(call)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(answers)))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            buildkit_version: Some(BuildkitVersion {
                version: self.version.clone(),
                ..BuildkitVersion::default()
            }),
        }))
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        Err(Status::unimplemented("not implemented by the fake daemon"))
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented("not implemented by the fake daemon"))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Err(Status::unimplemented("not implemented by the fake daemon"))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Ok(Response::new(Box::pin(
            self.history.answer_listen_request(request.get_ref())?,
        )))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        self.history
            .answer_update_request_without_change(request.get_ref())
            .await?;
        Ok(Response::new(UpdateBuildHistoryResponse::default()))
    }
}
