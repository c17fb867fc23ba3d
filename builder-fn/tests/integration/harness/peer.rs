//! Checks of the invariants of the file-sync service, with a daemon that sends any bytes.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use builder_fn::buildkit::{FileSync, SharedKeyPool};
use builder_fn::context::{
    ArchiveLimits, ArchiveReader, Kind, SourceContext, Spool, SpoolQuota, SpoolSettings,
};
use bytes::Bytes;
use function_host::prometheus::{IntCounter, IntGauge};
use http_body_util::{BodyExt, Full};
use tonic::codegen::Service;

/// Runs one file transfer with these bytes as the daemon's side, and checks the builder's packets.
///
/// The first byte selects the mode. Then come lines of patterns up to an empty one (`i`nclude, `e`xclude or `f`ollow,
/// and the pattern), and then what the daemon sends: packets, or any bytes.
pub(crate) async fn check_file_sync_with_fuzzed_daemon(mode_patterns_and_packets: &[u8]) {
    let Some((mode, mut rest)) = mode_patterns_and_packets.split_first() else {
        return;
    };
    let mut daemon = FuzzedDaemon {
        goes_away: mode & 8 != 0,
        ..FuzzedDaemon::default()
    };
    let encoded = if mode & 4 != 0 { "1" } else { "0" };
    loop {
        let (line, after) = split_at_newline(rest);
        rest = after;
        let Some((kind, pattern)) = line.split_first() else {
            break;
        };
        let key = match kind {
            b'i' => "include-patterns",
            b'e' => "exclude-patterns",
            _ => "followpaths",
        };
        if let Ok(pattern) = std::str::from_utf8(pattern) {
            daemon.patterns.push((key, pattern.to_owned()));
        }
    }
    daemon.patterns.push(("followpaths-encoded", encoded.to_owned()));
    let context = shared_context(mode & 2 != 0);
    let keys = SharedKeyPool::new(IntCounter::new("sent", "sent").expect("counter"));
    let lease = Arc::new(keys.lease_for_image_blocking("image", &context));
    let server = FileSyncServer::new(FileSync::new(context.clone(), lease));
    if mode & 1 == 0 {
        daemon.send_frames_and_check_no_internal_error(server, rest).await;
    } else {
        daemon.packets = rest.chunks(2).map(decode_fuzz_packet).collect();
        daemon.send_packets_and_check_answers(server, &context).await;
    }
}

fn split_at_newline(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// Decodes fuzz bytes to a packet, with the type and the id in them.
fn decode_fuzz_packet(bytes: &[u8]) -> Packet {
    let id = bytes.get(1).map_or(0, |number| match number {
        0xff => u32::MAX,
        _ => u32::from(*number),
    });
    Packet {
        r#type: i32::from(bytes[0] % 7),
        id,
        ..Packet::default()
    }
}

/// The daemon's side of a file transfer.
#[derive(Default)]
struct FuzzedDaemon {
    patterns: Vec<(&'static str, String)>,
    packets: Vec<Packet>,
    /// Whether the daemon disconnects during the transfer.
    goes_away: bool,
}

impl FuzzedDaemon {
    /// Sends gRPC frames, which may be malformed, as the daemon's side of the transfer.
    async fn send_frames_and_check_no_internal_error(
        self,
        mut server: FileSyncServer<FileSync>,
        frames: &[u8],
    ) {
        let mut request = http::Request::post("http://session/moby.filesync.v1.FileSync/DiffCopy")
            .header("content-type", "application/grpc")
            .header("dir-name", "context");
        for (key, pattern) in &self.patterns {
            if let Ok(value) = http::HeaderValue::from_bytes(pattern.as_bytes()) {
                request = request.header(*key, value);
            }
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(frames)));
        let answer = server.call(request.expect("a request")).await.expect("an answer");
        let (head, mut body) = answer.into_parts();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            match frame.map(http_body::Frame::into_trailers) {
                Ok(Ok(last)) => trailers = Some(last),
                Ok(Err(_)) => {}
                // The transport decides about malformed frames.
                Err(_) => return,
            }
        }
        let message = trailers.as_ref().and_then(|last| last.get("grpc-message"));
        let message = message.or(head.headers.get("grpc-message"));
        let message = message.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        assert!(
            !message.is_some_and(|text| text.contains("builder-fn%20could%20not")),
            "an internal error"
        );
    }

    /// Sends packets as the daemon's side of the transfer, and checks the builder's answers.
    async fn send_packets_and_check_answers(self, server: FileSyncServer<FileSync>, context: &SourceContext) {
        let packets = self.packets.clone();
        let mut request = tonic::Request::new(tokio_stream::iter(packets));
        request
            .metadata_mut()
            .insert("dir-name", "context".parse().expect("ascii"));
        for (key, pattern) in &self.patterns {
            if let Ok(value) = pattern.parse() {
                request.metadata_mut().append(*key, value);
            }
        }
        let mut received = ReceivedPackets::default();
        let ended = match FileSyncClient::new(server).diff_copy(request).await {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(packet)) if packet.r#type() == PacketType::PacketErr => {
                            let status = answers.message().await.expect_err("a status after an ERR packet");
                            assert_eq!(packet.data, status.message().as_bytes());
                            break Err(status);
                        }
                        Ok(Some(packet)) => received.check_and_record_packet(packet, context),
                        Ok(None) => break Ok(()),
                        Err(status) => panic!("a transfer failed without an ERR packet: {status:?}"),
                    }
                    if self.goes_away && received.bytes > 100_000 {
                        return;
                    }
                }
            }
            Err(status) => Err(status),
        };
        match ended {
            Err(status) => assert_ne!(status.code(), tonic::Code::Internal, "{status:?}"),
            Ok(()) => received.assert_every_request_was_answered(&self.packets),
        }
    }
}

/// The packets that the daemon has received in a transfer.
#[derive(Default)]
struct ReceivedPackets {
    stats: Vec<Stat>,
    all_announced: bool,
    /// The received bytes and ends of each file, by the number of the file.
    files: HashMap<u32, (u64, u64)>,
    bytes: u64,
    finished: bool,
}

impl ReceivedPackets {
    fn check_and_record_packet(&mut self, packet: Packet, context: &SourceContext) {
        assert!(!self.finished, "a packet after the end");
        match (packet.r#type(), packet.stat) {
            (PacketType::PacketStat, Some(stat)) => self.check_and_record_stat(stat, context),
            (PacketType::PacketStat, None) => {
                assert!(!std::mem::replace(&mut self.all_announced, true));
            }
            (PacketType::PacketFin, _) => self.finished = true,
            (PacketType::PacketData, _) => {
                // A file may be requested before it is announced.
                let file = self.files.entry(packet.id).or_default();
                file.0 += packet.data.len() as u64;
                file.1 += u64::from(packet.data.is_empty());
                self.bytes += packet.data.len() as u64;
                if let Some(byte) = packet.data.first() {
                    let (path, _) = CONTEXT_FILE_SIZES
                        .iter()
                        .find(|(path, _)| fill_byte_of_file(path) == *byte)
                        .expect("a file");
                    // Every byte equals the next one. A fuzzer records each comparison of a loop, but not these.
                    assert!(packet.data[1..] == packet.data[..packet.data.len() - 1]);
                    if let Some(stat) = self.stats.get(packet.id as usize) {
                        let kind = |path| context.get(path).map(|entry| entry.kind);
                        assert_eq!(kind(path), kind(&stat.path), "{path} for {}", stat.path);
                    }
                }
            }
            (kind, _) => panic!("{kind:?} is not sent to a daemon"),
        }
    }

    fn check_and_record_stat(&mut self, stat: Stat, context: &SourceContext) {
        assert!(!self.all_announced);
        let entry = context.get(&stat.path).expect("an entry of the context");
        assert_eq!(u64::try_from(stat.size), Ok(entry.size()));
        if let Some(before) = self.stats.last() {
            assert!(
                before.path.split('/').lt(stat.path.split('/')),
                "{before:?}, then {stat:?}"
            );
        }
        if let Some((folder, _)) = stat.path.rsplit_once('/') {
            assert!(
                self.stats.iter().any(|above| above.path == folder),
                "{stat:?} before its folder"
            );
        }
        match entry.kind {
            Kind::Symlink { target } => assert_eq!(target, stat.linkname),
            _ if stat.linkname.is_empty() => {}
            kind => {
                let first = self.stats.iter().find(|first| first.path == stat.linkname);
                let first = first.and_then(|first| context.get(&first.path));
                assert_eq!(first.map(|first| first.kind), Some(kind));
            }
        }
        self.stats.push(stat);
    }

    /// Checks that every file requested before the end was received as often as it was requested, and nothing else.
    fn assert_every_request_was_answered(&self, requests: &[Packet]) {
        assert!(self.all_announced && self.finished);
        let mut requested: HashMap<u32, u64> = HashMap::new();
        for packet in requests {
            match packet.r#type() {
                PacketType::PacketReq => *requested.entry(packet.id).or_default() += 1,
                PacketType::PacketFin => break,
                kind => panic!("the transfer succeeded after {kind:?}"),
            }
        }
        assert_eq!(requested.len(), self.files.len());
        for (number, times) in requested {
            let size = u64::try_from(self.stats[number as usize].size).expect("a size");
            assert_eq!(self.files[&number], (size * times, times), "file {number}");
        }
    }
}

/// The paths and sizes of the files in the harness's context.
const CONTEXT_FILE_SIZES: [(&str, u64); 6] = [
    ("a", 0),
    ("b/c", 10),
    ("b/d/e", 70_000),
    ("b/d.txt", 1),
    ("f.log", 3),
    ("g", 140_000),
];

/// Returns the byte that fills the file at `path`, different for each file.
fn fill_byte_of_file(path: &str) -> u8 {
    path.bytes()
        .fold(1u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
        | 1
}

/// Returns a shared context with files of several sizes and all kinds of links, spooled in memory or on disk.
fn shared_context(on_disk: bool) -> Arc<SourceContext> {
    static SHARED_CONTEXTS: OnceLock<[Arc<SourceContext>; 2]> = OnceLock::new();
    let contexts = SHARED_CONTEXTS.get_or_init(|| {
        let tar = context_tar();
        [tar.len(), 0].map(|memory| {
            let settings = SpoolSettings {
                folder: std::env::temp_dir(),
                memory,
                quota: SpoolQuota::new(u64::MAX, IntGauge::new("used", "used").expect("gauge")),
            };
            let mut spool = Spool::new(settings);
            spool.append(&tar).expect("spool");
            let mut reader = ArchiveReader::new(ArchiveLimits::default());
            reader.parse_piece(&tar).expect("a tar");
            let contents = reader.finish().expect("a tar");
            Arc::new(SourceContext::new(contents.entries, spool))
        })
    });
    contexts[usize::from(on_disk)].clone()
}

fn context_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, size) in CONTEXT_FILE_SIZES {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        let content = vec![fill_byte_of_file(path); usize::try_from(size).expect("small")];
        tar.append_data(&mut header, format!("context/{path}"), &content[..])
            .expect("append");
    }
    for (kind, path, target) in [
        (tar::EntryType::Link, "b/hard", "context/g"),
        (tar::EntryType::Symlink, "l/to", "../b/d"),
        (tar::EntryType::Symlink, "l/out", "../../../etc"),
        (tar::EntryType::Symlink, "l/root", "/b"),
        (tar::EntryType::Symlink, "l/round", "round/round"),
        (tar::EntryType::Symlink, "l/there", "back"),
        (tar::EntryType::Symlink, "l/back", "./there/x"),
        (tar::EntryType::Symlink, "l/nowhere", "no"),
        (tar::EntryType::Symlink, "up", "."),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(kind);
        tar.append_link(&mut header, format!("context/{path}"), target)
            .expect("append");
    }
    tar.into_inner().expect("tar")
}
