//! `moby.filesync.v1.FileSync`: the context's files, as BuildKit asks for them.
//!
//! The protocol is that of `tonistiigi/fsutil` (`send.go`, `receive.go`): we send a STAT for every entry and an empty
//! one at the end; meanwhile BuildKit asks for the content of files by the number of their STAT (folders and links
//! count too), and gets DATA packets, an empty one at a file's end; when it has all, it sends FIN and gets FIN.
//!
//! Everything here is one stream that is polled by the HTTP/2 server as fast as the daemon reads: no task, no
//! queue, and when the daemon goes away, nothing that goes on.

mod request;
mod stat;

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server;
use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::context::{self, Entry, SourceContext};

/// Bytes in one DATA packet.
const PACKET: usize = 64 << 10;

/// Bytes that are read at once: a read goes to another thread, and is to be worth it.
const READ: usize = 4 * PACKET;

/// Files that are sent at the same time, so that a large one does not hold up small ones. With [`READ`], what one
/// transfer may keep in memory.
const FILES_AT_ONCE: usize = 4;

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

/// Sends what it is asked for of one context.
#[derive(Clone, Debug)]
pub struct FileSync {
    context: Arc<SourceContext>,
}

impl FileSync {
    /// Sends the files of `context`.
    pub fn new(context: Arc<SourceContext>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl file_sync_server::FileSync for FileSync {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let wanted = request::Wanted::from_metadata(request.metadata())?;
        let context = self.context.clone();
        let (entries, stats) = tokio::task::spawn_blocking(move || visible(&context, &wanted))
            .await
            .map_err(|_| Status::internal("listing the context failed"))??;
        let files = Files {
            context: self.context.clone(),
            entries: entries.into(),
        };
        Ok(Response::new(packets(stats, files, request.into_inner())))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("files are sent with DiffCopy"))
    }
}

/// What is to be sent: entries of the context by the number of their STAT, and the STATs.
fn visible(context: &SourceContext, wanted: &request::Wanted) -> Result<(Vec<Entry>, Vec<Packet>), Status> {
    let shown = context::view(context, &wanted.filter)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    tracing::debug!(
        folder = wanted.folder,
        entries = shown.len(),
        "BuildKit asked for files"
    );
    Ok(shown
        .into_iter()
        .map(|visible| (visible.entry.clone(), stat::packet(&visible)))
        .unzip())
}

/// The whole answer.
fn packets(
    stats: Vec<Packet>,
    files: Files,
    asked: impl Stream<Item = Result<Packet, Status>> + Send + 'static,
) -> Packets {
    let stats = stream::iter(stats).chain(stream::iter([stat::end()])).map(Ok);
    let data = asked
        .map(|packet| packet.and_then(Ask::try_from))
        .try_take_while(|ask| future::ok(!matches!(ask, Ask::Finish)))
        .map_ok(move |ask| files.data(ask))
        .try_flatten_unordered(FILES_AT_ONCE);
    let finish = stream::iter([Ok(Packet {
        r#type: PacketType::PacketFin.into(),
        ..Packet::default()
    })]);
    Box::pin(stream::select(stats, data).chain(finish))
}

/// What a packet from BuildKit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    File(u32),
    Finish,
}

impl TryFrom<Packet> for Ask {
    type Error = Status;

    fn try_from(packet: Packet) -> Result<Self, Status> {
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketReq) => Ok(Self::File(packet.id)),
            Ok(PacketType::PacketFin) => Ok(Self::Finish),
            Ok(PacketType::PacketErr) => {
                let reason = String::from_utf8_lossy(&packet.data).into_owned();
                tracing::warn!(reason, "BuildKit could not take the files");
                Err(Status::aborted(format!("the receiver failed: {reason}")))
            }
            _ => Err(Status::invalid_argument("unexpected packet")),
        }
    }
}

/// The files that were announced.
#[derive(Clone, Debug)]
struct Files {
    context: Arc<SourceContext>,
    entries: Arc<[Entry]>,
}

impl Files {
    /// The content of one file, and the empty packet that ends it.
    fn data(&self, ask: Ask) -> Packets {
        let Ask::File(id) = ask else {
            return Box::pin(stream::empty());
        };
        let index = id as usize;
        if !self.entries.get(index).is_some_and(stat::has_content) {
            return Box::pin(stream::iter([Err(Status::invalid_argument(format!(
                "no file has the number {id}"
            )))]));
        }
        let packet = move |data| Packet {
            r#type: PacketType::PacketData.into(),
            id,
            data,
            ..Packet::default()
        };
        let chunks = stream::try_unfold((self.clone(), 0), move |(files, offset)| async move {
            let bytes = files.clone().read(index, offset).await.map_err(|error| {
                tracing::error!(%error, "the spool cannot be read");
                Status::internal("the context cannot be read")
            })?;
            let next = offset + bytes.len() as u64;
            Ok::<_, Status>((!bytes.is_empty()).then_some((bytes, (files, next))))
        });
        let data = chunks.map_ok(move |bytes| {
            let packets: Vec<_> = bytes
                .chunks(PACKET)
                .map(|chunk| Ok(packet(chunk.to_vec())))
                .collect();
            stream::iter(packets)
        });
        Box::pin(data.try_flatten().chain(stream::iter([Ok(packet(Vec::new()))])))
    }

    /// Up to [`READ`] bytes from `offset` on; none at the end.
    async fn read(self, index: usize, offset: u64) -> io::Result<Vec<u8>> {
        let left = self.entries[index].size().saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(READ).min(READ);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let read = move || {
            let mut buffer = vec![0; wanted];
            match self.context.read(&self.entries[index], offset, &mut buffer)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    buffer.truncate(count);
                    Ok(buffer)
                }
            }
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(io::Error::other)?
    }
}
