//! `moby.filesync.v1.FileSync`: the context's files, as BuildKit asks for them.
//!
//! The protocol is that of `tonistiigi/fsutil` (`send.go`, `receive.go`): we send a STAT for every entry and an empty
//! one at the end; meanwhile BuildKit asks for the content of files by the number of their STAT (folders and links
//! count too), and gets DATA packets, an empty one at a file's end; when it has all, it sends FIN and gets FIN.
//!
//! Everything here is one stream that is polled by the HTTP/2 server as fast as the daemon reads: no task, no
//! queue, and when the daemon goes away, nothing that goes on.

mod asked;
mod request;
mod stat;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server;
use futures_util::{Stream, StreamExt, future, stream};
use tonic::{Request, Response, Status, Streaming};

use super::Lease;
use super::keys::Transfer;
use crate::context::{self, SourceContext, View};

/// Reads that are under way while what was read before is sent. With [`asked::BATCH`], what one transfer keeps in memory.
const READS_AT_ONCE: usize = 2;

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

/// Sends what it is asked for of one context.
#[derive(Clone, Debug)]
pub struct FileSync {
    context: Arc<SourceContext>,
    lease: Arc<Lease>,
}

impl FileSync {
    /// Sends the files of `context`, in a session with the key of `lease`.
    pub fn new(context: Arc<SourceContext>, lease: Arc<Lease>) -> Self {
        Self { context, lease }
    }
}

#[tonic::async_trait]
impl file_sync_server::FileSync for FileSync {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let wanted = request::Wanted::from_metadata(request.metadata())?;
        let sync = self.clone();
        let announced = tokio::task::spawn_blocking(move || Announced::new(&sync, &wanted))
            .await
            .map_err(|_| Status::internal("listing the context failed"))??;
        Ok(Response::new(packets(announced, request.into_inner())))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("files are sent with DiffCopy"))
    }
}

/// What one transfer is of: entries of the context by the number of their STAT.
#[derive(Clone)]
struct Announced {
    context: Arc<SourceContext>,
    lease: Arc<Lease>,
    entries: Arc<View>,
    transfer: Arc<Mutex<Transfer>>,
}

impl Announced {
    fn new(sync: &FileSync, wanted: &request::Wanted) -> Result<Self, Status> {
        let entries = context::view(&sync.context, &wanted.filter)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::debug!(
            folder = wanted.folder,
            entries = entries.len(),
            "BuildKit asked for files"
        );
        Ok(Self {
            transfer: Arc::new(Mutex::new(sync.lease.begin(&sync.context, &entries))),
            context: sync.context.clone(),
            lease: sync.lease.clone(),
            entries: entries.into(),
        })
    }

    fn stats(&self) -> impl Iterator<Item = Packet> + use<> {
        let announced = self.clone();
        let stat = move |number: usize| {
            let visible = announced.entries.get(number)?;
            let is_marked = announced.lease.is_marked(visible.entry);
            Some(stat::packet(&announced.context, visible, is_marked))
        };
        (0..self.entries.len()).filter_map(stat).chain([stat::end()])
    }

    fn finish(&self) -> Packet {
        self.with_transfer(Transfer::complete);
        Packet {
            r#type: PacketType::PacketFin.into(),
            ..Packet::default()
        }
    }

    fn with_transfer(&self, note: impl FnOnce(&mut Transfer)) {
        note(&mut self.transfer.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The whole answer.
fn packets(
    announced: Announced,
    asked: impl Stream<Item = Result<Packet, Status>> + Send + Unpin + 'static,
) -> Packets {
    let stats = stream::iter(announced.stats()).map(Ok);
    let finish = stream::once({
        let announced = announced.clone();
        future::lazy(move |_| Ok(announced.finish()))
    });
    let data = asked::batches(announced, asked)
        .buffered(READS_AT_ONCE)
        .flat_map(|batch| match batch {
            Ok(packets) => stream::iter(packets.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(status) => stream::iter(vec![Err(status)]),
        });
    Box::pin(stream::select(stats, data).chain(finish))
}
