//! `moby.filesync.v1.FileSync`: the context's files, as BuildKit requests them.
//!
//! The protocol is that of `tonistiigi/fsutil` (`send.go`, `receive.go`). The sender, which is this side, sends a STAT
//! for every entry and an empty one at the end. Meanwhile the receiver requests the content of files by the number of
//! their STAT (folders and links count too), and gets DATA packets, an empty one at a file's end. When it has
//! everything, it sends FIN and gets FIN.
//!
//! A transfer that fails ends with an ERR packet, and only then with a gRPC status: the receiver's context ends with the
//! stream, so of a status alone it may report no more than "context canceled".
//!
//! A transfer is one stream, which the HTTP/2 server polls as fast as the daemon reads: there is no task and no queue
//! of packets, and nothing continues when the daemon goes away.

mod content;
mod request;
mod stat;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server;
use futures_util::{Stream, StreamExt, stream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::source_check::SourceGate;
use crate::buildkit::shared_key::{KeyLease, TransferGuard};
use crate::context::{self, ContextView, SourceContext};

/// The number of batches that are read ahead of sending. Times [`content::BATCH_CONTENT_MAX_BYTES`], this is the
/// content that one transfer has in memory.
const BATCHES_READ_AHEAD: usize = 2;

/// The error for a daemon that does not ask whether a build may read a source. Such a daemon is older than BuildKit
/// 0.26.
pub(in crate::buildkit) const UNCHECKED_SOURCES_ERROR: &str = "this BuildKit does not ask the builder which sources a build may read; \
     the builder needs BuildKit 0.26 or later";

/// The beginning of the errors of a transfer that are neither the caller's nor the daemon's fault. They have no gRPC code
/// once they went through the daemon.
pub(in crate::buildkit) const BUILDER_FAULT_PREFIX: &str = "error from sender: builder-fn could not ";

/// The name by which BuildKit requests the files of the context.
const CONTEXT_FOLDER: &str = "context";

/// The error for a context whose entries could not be listed.
const LISTING_ERROR: &str = "builder-fn could not list the context";
/// The error for a file whose content could not be read.
const READING_ERROR: &str = "builder-fn could not read the context";
/// The error for a transfer whose end could not be recorded.
const RECORDING_ERROR: &str = "builder-fn could not record the transfer";

/// The stream of packets that answers a file-sync request.
type PacketStream = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

/// The file-sync service of a session, with the files of one context.
#[derive(Clone, Debug)]
pub struct FileSync {
    context: Arc<SourceContext>,
    lease: Arc<KeyLease>,
    /// The gate that opens once the daemon obeys the session's rules for sources; `None` in a session without rules.
    gate: Option<SourceGate>,
}

impl FileSync {
    /// Creates the file-sync service for `context`, in a session with the shared key of `lease`.
    pub fn new(context: Arc<SourceContext>, lease: Arc<KeyLease>) -> Self {
        Self {
            context,
            lease,
            gate: None,
        }
    }

    /// Makes the service reject requests for files until `gate` is open.
    #[must_use]
    pub(super) fn behind_gate(self, gate: SourceGate) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }

    /// Begins the transfer that a request with this metadata asks for; fails while the gate is closed. Lists the
    /// entries on another thread.
    async fn begin_transfer(&self, metadata: &MetadataMap) -> Result<FileTransfer, Status> {
        if self.gate.as_ref().is_some_and(|gate| !gate.is_open()) {
            return Err(Status::failed_precondition(UNCHECKED_SOURCES_ERROR));
        }
        let folder = request::FolderRequest::from_metadata(metadata)?;
        let sync = self.clone();
        // Dropped with this future, when BuildKit gives the request up.
        let caller = Arc::new(());
        let waiting = Arc::downgrade(&caller);
        let is_wanted = move || waiting.strong_count() > 0;
        tokio::task::spawn_blocking(move || FileTransfer::new(&sync, &folder, &is_wanted))
            .await
            .map_err(|_| Status::internal(LISTING_ERROR))?
    }
}

#[tonic::async_trait]
impl file_sync_server::FileSync for FileSync {
    type DiffCopyStream = PacketStream;
    type TarStreamStream = PacketStream;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<PacketStream>, Status> {
        let answer = match self.begin_transfer(request.metadata()).await {
            Ok(transfer) => answer_packets(transfer, request.into_inner()),
            Err(status) => Box::pin(stream::iter(failure_packets(status))),
        };
        Ok(Response::new(answer))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<PacketStream>, Status> {
        Err(Status::unimplemented("files are sent with DiffCopy"))
    }
}

/// One transfer of files to the daemon. Clones share the transfer.
#[derive(Clone)]
struct FileTransfer {
    context: Arc<SourceContext>,
    lease: Arc<KeyLease>,
    /// The announced entries of the context, by the number of their STAT packets.
    entries: Arc<ContextView>,
    /// Whether the transfer is that of the context, and not of the Dockerfile.
    is_context: bool,
    guard: Arc<Mutex<TransferGuard>>,
}

impl FileTransfer {
    /// Selects the entries that `folder` asks for, and begins a transfer of them. Fails once `is_wanted` returns
    /// `false`.
    fn new(
        sync: &FileSync,
        folder: &request::FolderRequest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Self, Status> {
        let entries = context::view_while(is_wanted, &sync.context, &folder.filter)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::debug!(
            folder = folder.name,
            entries = entries.len(),
            "BuildKit requested files"
        );
        Ok(Self {
            guard: Arc::new(Mutex::new(sync.lease.begin_transfer())),
            is_context: folder.name == CONTEXT_FOLDER,
            context: sync.context.clone(),
            lease: sync.lease.clone(),
            entries: entries.into(),
        })
    }

    /// Returns the STAT packets of all announced entries, and the packet that ends the announcement.
    fn stat_packets(&self) -> impl Iterator<Item = Packet> + use<> {
        let transfer = self.clone();
        let stat = move |number: usize| {
            let view_entry = transfer.entries.get(number)?;
            let is_forced = transfer.lease.is_forced(view_entry.entry);
            Some(stat::stat_packet(&transfer.context, view_entry, is_forced))
        };
        (0..self.entries.len())
            .filter_map(stat)
            .chain([stat::end_of_stats_packet()])
    }

    /// Marks the transfer as complete, and returns its FIN packet.
    async fn complete_with_fin_packet(self) -> Result<Packet, Status> {
        let completing = move || {
            let mut contents = None;
            self.update_guard(|guard| contents = guard.complete_transfer(&self.context, &self.entries));
            if let Some(contents) = contents.filter(|_| self.is_context) {
                // On yet another thread: the daemon does not wait for it.
                self.lease
                    .start_listing_if_requested(self.context.clone(), self.entries.clone(), contents);
            }
        };
        // As listing the entries, this takes a while for a large context.
        tokio::task::spawn_blocking(completing)
            .await
            .map_err(|_| Status::internal(RECORDING_ERROR))?;
        Ok(Packet {
            r#type: PacketType::PacketFin.into(),
            ..Packet::default()
        })
    }

    /// Adds the pieces of files in a batch to the hashes of their files. Called for each batch in order, before it is
    /// sent.
    fn add_to_file_hashes(&self, batch: &content::PacketBatch) {
        let total = self.context.index().len();
        self.update_guard(|guard| {
            for (number, piece) in batch.pieces() {
                if let Some(visible) = self.entries.get(number as usize) {
                    guard.hash_sent_piece(visible.entry, total, piece);
                }
            }
        });
    }

    /// Runs `update` with the transfer's guard, which is locked meanwhile.
    fn update_guard(&self, update: impl FnOnce(&mut TransferGuard)) {
        update(&mut self.guard.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Returns the packets of a transfer: its STATs, the contents that the daemon's packets in `received` request, and FIN.
fn answer_packets(
    transfer: FileTransfer,
    received: impl Stream<Item = Result<Packet, Status>> + Send + Unpin + 'static,
) -> PacketStream {
    let stats = stream::iter(transfer.stat_packets()).map(Ok);
    let finish = stream::once({
        let transfer = transfer.clone();
        // Only once everything was sent.
        async move { transfer.complete_with_fin_packet().await }
    });
    let sent = transfer.clone();
    let data = content::stream_content_batches(transfer, received)
        .buffered(BATCHES_READ_AHEAD)
        .flat_map(move |batch| match batch {
            Ok(batch) => {
                // Here the batches are in order again.
                sent.add_to_file_hashes(&batch);
                stream::iter(batch.packets.into_iter().map(Ok).collect::<Vec<_>>())
            }
            Err(status) => stream::iter(vec![Err(status)]),
        });
    // Here nothing comes between an ERR packet and the status.
    let answered = stream::select(stats, data)
        .chain(finish)
        .flat_map(|answer| match answer {
            Ok(packet) => stream::iter([Ok(packet)]).left_stream(),
            Err(status) => stream::iter(failure_packets(status)).right_stream(),
        });
    Box::pin(answered)
}

/// Returns the end of a transfer that fails with `status`: an ERR packet with its text, and the status.
fn failure_packets(status: Status) -> [Result<Packet, Status>; 2] {
    let error = Packet {
        r#type: PacketType::PacketErr.into(),
        data: status.message().as_bytes().to_vec(),
        ..Packet::default()
    };
    [Ok(error), Err(status)]
}
