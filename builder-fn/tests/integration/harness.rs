//! What has to hold for any bytes from outside. The ordinary tests run it on what they make up, `fuzz/` on what a fuzzer does.
//!
//! Nothing here knows the rest of the tests: `fuzz/` takes this file alone.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use builder_fn::buildkit::session::{FileSync, SharedKeys};
use builder_fn::context::{
    ArchiveLimits, ArchiveReader, ContentHash, Entry, Index, Kind, SourceContext, Spool, SpoolRoom,
    SpoolSettings,
};
use builder_fn::request::{Keys, Limits, RequestError, Trust, receive};
use bytes::Bytes;
use function_host::Secret;
use function_host::prometheus::{IntCounter, IntGauge};
use http_body_util::{BodyExt, Full};
use tonic::codegen::Service;

const BLOCK: usize = 512;

const LIMITS: ArchiveLimits = ArchiveLimits {
    body: 1 << 20,
    entries: 200,
    index: 64 << 10,
    small_file: 4 << 10,
};

/// What reading a tar yields, comparable.
type Read = Result<(Index, Option<Vec<u8>>, Option<Vec<u8>>, Vec<String>), String>;

/// Reads `bytes` as a tar, and everything that is in it. The first byte says whether checksums are put right before,
/// so that changed headers get further, the second how long the pieces are.
pub(crate) fn index(bytes: &[u8]) {
    let [mode, piece, tar @ ..] = bytes else { return };
    let mut tar = tar.to_vec();
    if mode & 1 == 1 {
        put_checksums_right(&mut tar);
    }
    let whole = read(&tar, tar.len());
    let in_pieces = read(&tar, usize::from(*piece) + 1);
    assert_eq!(whole, in_pieces, "how it arrives makes a difference");
    let (index, config, secrets, warnings) = match whole {
        Ok(contents) => contents,
        Err(text) => return assert!(!text.contains(char::is_control), "{text:?}"),
    };
    assert!(
        warnings.iter().all(|text| !text.contains(char::is_control)),
        "{warnings:?}"
    );
    for small in [config, secrets].into_iter().flatten() {
        assert!(small.len() <= LIMITS.small_file);
    }
    let entries = listed(&index);
    assert_eq!(entries.len(), index.len());
    check_bounds(&entries, tar.len());
    check_paths(&entries);
    check_against_another_reader(&entries, &tar);
    drop(entries);
    check_content(index, tar);
}

/// Paths and entries, in order.
fn listed(index: &Index) -> Vec<(String, Entry<'_>)> {
    let mut listed = Vec::new();
    let mut walk = index.walk();
    while let Some((at, path)) = walk.step() {
        listed.push((path.to_owned(), index.entry(at)));
    }
    listed
}

fn read(tar: &[u8], piece: usize) -> Read {
    let mut reader = ArchiveReader::new(LIMITS);
    for piece in tar.chunks(piece.max(1)) {
        reader.feed(piece).map_err(|error| error.to_string())?;
    }
    let contents = reader.finish().map_err(|error| error.to_string())?;
    Ok((
        contents.entries,
        contents.config,
        contents.secrets,
        contents.warnings,
    ))
}

/// Gives each block that could be a header the checksum of its bytes.
pub(crate) fn put_checksums_right(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            let sum = |(at, byte): (usize, &u8)| match (148..156).contains(&at) {
                true => u32::from(b' '),
                false => u32::from(*byte),
            };
            let sum: u32 = block.iter().enumerate().map(sum).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// All of it stays within the limits, and the files within the tar: side by side, and as long together as it is at most.
fn check_bounds(entries: &[(String, Entry<'_>)], length: usize) {
    assert!(entries.len() <= LIMITS.entries);
    let texts = |(path, entry): &(String, Entry<'_>)| {
        let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
        let target = match entry.kind {
            Kind::Symlink { target } => target.len(),
            _ => 0,
        };
        // A path is kept as the names in it, and each of those once.
        let name = path.rsplit('/').next().unwrap_or_default();
        name.len() + target + xattrs.sum::<usize>()
    };
    assert!(entries.iter().map(texts).sum::<usize>() <= LIMITS.index);
    let mut ranges = BTreeMap::new();
    for (_, entry) in entries {
        assert!(entry.mode <= 0o7777, "{entry:?}");
        if let Kind::File { offset, size } = entry.kind {
            let first = ranges.entry(offset).or_insert((size, entry.content));
            assert_eq!(*first, (size, entry.content), "hard links are one file");
        }
    }
    let mut end = BLOCK as u64;
    for (offset, (size, _)) in &ranges {
        assert!(*offset >= end && offset % BLOCK as u64 == 0, "{ranges:?}");
        // An empty file's offset is where the next header is.
        end = offset + size + BLOCK as u64;
        assert!(offset + size <= length as u64, "{ranges:?} in {length}");
    }
}

/// No path leads out, each is there once, in order, and after its folder.
fn check_paths(entries: &[(String, Entry<'_>)]) {
    let mut folders = std::collections::HashSet::new();
    for (at, (path, entry)) in entries.iter().enumerate() {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        assert!(path.split('/').all(is_part), "{path:?}");
        if let Some(before) = at.checked_sub(1) {
            let (before, _) = &entries[before];
            assert!(before.split('/').lt(path.split('/')), "{before:?}, then {path:?}");
        }
        if let Some((folder, _)) = path.rsplit_once('/') {
            assert!(folders.contains(folder), "{path:?} is in no folder");
        }
        if entry.is_directory() {
            folders.insert(path.clone());
        }
    }
}

/// Two readers see the same files in it, or one of them refuses it.
fn check_against_another_reader(entries: &[(String, Entry<'_>)], tar: &[u8]) {
    let mut archive = tar::Archive::new(tar);
    let Ok(others) = archive.entries() else { return };
    let mut files = HashMap::new();
    let mut has_other_names = false;
    for other in others {
        let Ok(mut other) = other else { return };
        let kind = other.header().entry_type();
        // The crate does not know these by themselves, and takes them for files, in headers of formats that have none.
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
            return;
        }
        // Of a name that is said twice it takes the first, where the last counts.
        let Ok(records) = other.pax_extensions() else {
            return;
        };
        let records = records.into_iter().flatten().flatten();
        has_other_names |= records.filter(|record| record.key_bytes() == b"path").count() > 1;
        has_other_names |= kind.is_hard_link();
        let name = String::from_utf8_lossy(&other.path_bytes()).into_owned();
        let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
        let name = parts.collect::<Vec<_>>().join("/");
        files.insert(other.raw_file_position(), (other.size(), name));
    }
    for (path, entry) in entries {
        if let Kind::File { offset, size } = entry.kind {
            let seen = files.get(&offset);
            let seen = seen.unwrap_or_else(|| panic!("{entry:?} is none for tar, which sees {files:?}"));
            assert_eq!(seen.0, size, "{entry:?}, for tar {seen:?}");
            let name = format!("context/{path}");
            assert!(has_other_names || seen.1 == name, "{name}, for tar {seen:?}");
        }
    }
}

/// The bytes that the index points to are those that were hashed on the way, and two that differ have two hashes.
fn check_content(index: Index, tar: Vec<u8>) {
    let context = SourceContext::new(index, Spool::in_memory(tar));
    let mut hashes = HashMap::new();
    for (path, entry) in listed(context.index()) {
        assert_eq!(context.get(&path), Some(entry));
        let Kind::File { size, .. } = entry.kind else {
            assert!(context.read(entry, 0, &mut [0]).is_err());
            continue;
        };
        let mut content = vec![0; usize::try_from(size).expect("no larger than the tar")];
        context.read_exact(entry, 0, &mut content).expect("all of it");
        assert_eq!(ContentHash::of(&content), entry.content);
        let same = hashes
            .entry(entry.content)
            .or_insert_with(|| blake3::hash(&content));
        assert_eq!(*same, blake3::hash(&content));
        assert_eq!(context.read(entry, size, &mut [0]).expect("the end"), 0);
    }
}

/// Takes `bytes` for the body of a request: by anyone, and by somebody who does not have the key. The first byte says
/// whether it is packed before, and whether checksums are put right before that.
pub(crate) async fn request(bytes: &[u8]) {
    let Some((mode, body)) = bytes.split_first() else {
        return;
    };
    let mut body = body.to_vec();
    if mode & 1 == 1 {
        put_checksums_right(&mut body);
    }
    let body = Bytes::from(match mode >> 1 & 3 {
        0 | 1 => body,
        2 => gzip(&body),
        _ => zstd(&body),
    });
    let used = IntGauge::new("used", "used").expect("gauge");
    let mut limits = Limits::new(
        2 << 20,
        std::env::temp_dir(),
        SpoolRoom::new(3 << 20, used.clone()),
    );
    limits.spool.memory = 8 << 10;
    let ask = |trust, signature| receive(Full::new(body.clone()), signature, trust, &limits);

    match ask(&Trust::Anyone, None).await {
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
        Ok(request) => {
            let held = u64::try_from(used.get()).expect("a count");
            assert!(held <= 2 << 20, "{held} bytes of {}", body.len());
            assert!(
                request
                    .warnings
                    .iter()
                    .all(|text| !text.contains(char::is_control))
            );
            for (_, entry) in listed(request.context.index()) {
                let size = match entry.kind {
                    Kind::File { offset, size } if offset + size <= held => size,
                    Kind::File { .. } => panic!("{entry:?} is not in the {held} bytes"),
                    _ => continue,
                };
                let mut content = vec![0; usize::try_from(size).expect("no larger than the limit")];
                request
                    .context
                    .read_exact(entry, 0, &mut content)
                    .expect("all of it");
                assert_eq!(ContentHash::of(&content), entry.content);
            }
        }
    }
    assert_eq!(used.get(), 0, "all room is given back");

    let keys = Keys::new(&Secret::new("key"), false).expect("a key");
    let signature = format!("sha256={}", "0".repeat(64));
    match ask(&Trust::Signed(keys), Some(&signature)).await {
        Err(RequestError::WrongSignature | RequestError::Spool(_)) => {}
        other => panic!("a stranger is told {other:?}"),
    }
    assert_eq!(used.get(), 0, "all room is given back");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).expect("gzip");
    packed.finish().expect("gzip")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("zstd")
}

/// Takes `bytes` for what a daemon says that asks for files. The first says how, then come lines of patterns up to an
/// empty one (`i`nclude, `e`xclude or `f`ollow, and the pattern), then what it sends: packets, or anything.
pub(crate) async fn peer(bytes: &[u8]) {
    let Some((mode, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut asking = Asking {
        goes_away: mode & 8 != 0,
        ..Asking::default()
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
            asking.patterns.push((key, pattern.to_owned()));
        }
    }
    asking.patterns.push(("followpaths-encoded", encoded.to_owned()));
    let context = contexts(mode & 2 != 0);
    let keys = SharedKeys::counting(IntCounter::new("sent", "sent").expect("counter"));
    let lease = Arc::new(keys.lease("image", &context));
    let server = FileSyncServer::new(FileSync::new(context.clone(), lease));
    if mode & 1 == 0 {
        asking.anything(server, rest).await;
    } else {
        asking.packets = rest.chunks(2).map(packet).collect();
        asking.properly(server, &context).await;
    }
}

fn split_at_newline(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// A packet with the type and the number that these bytes say.
fn packet(bytes: &[u8]) -> Packet {
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

/// One transfer.
#[derive(Default)]
struct Asking {
    patterns: Vec<(&'static str, String)>,
    packets: Vec<Packet>,
    /// In the middle of it.
    goes_away: bool,
}

impl Asking {
    /// Sends `frames`, well formed or not.
    async fn anything(self, mut server: FileSyncServer<FileSync>, frames: &[u8]) {
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
                // What the transport makes of frames that are none is its own.
                Err(_) => return,
            }
        }
        let message = trailers.as_ref().and_then(|last| last.get("grpc-message"));
        let message = message.or(head.headers.get("grpc-message"));
        let message = message.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        assert!(
            !message.is_some_and(|text| text.contains("the%20context")),
            "an internal error"
        );
    }

    /// Sends packets, and looks at what comes.
    async fn properly(self, server: FileSyncServer<FileSync>, context: &SourceContext) {
        let asked = self.packets.clone();
        let mut request = tonic::Request::new(tokio_stream::iter(asked));
        request
            .metadata_mut()
            .insert("dir-name", "context".parse().expect("ascii"));
        for (key, pattern) in &self.patterns {
            if let Ok(value) = pattern.parse() {
                request.metadata_mut().append(*key, value);
            }
        }
        let mut received = Received::default();
        let ended = match FileSyncClient::new(server).diff_copy(request).await {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(packet)) => received.take(packet, context),
                        Ok(None) => break Ok(()),
                        Err(status) => break Err(status),
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
            Ok(()) => received.is_all_of(&self.packets),
        }
    }
}

/// What a daemon has got.
#[derive(Default)]
struct Received {
    stats: Vec<Stat>,
    all_announced: bool,
    /// By the number of the file: bytes, and how often its end was said.
    files: HashMap<u32, (u64, u64)>,
    bytes: u64,
    finished: bool,
}

impl Received {
    fn take(&mut self, packet: Packet, context: &SourceContext) {
        assert!(!self.finished, "nothing comes after the end");
        match (packet.r#type(), packet.stat) {
            (PacketType::PacketStat, Some(stat)) => self.announced(stat, context),
            (PacketType::PacketStat, None) => {
                assert!(!std::mem::replace(&mut self.all_announced, true));
            }
            (PacketType::PacketFin, _) => self.finished = true,
            (PacketType::PacketData, _) => {
                // It may be asked for before it is announced.
                let file = self.files.entry(packet.id).or_default();
                file.0 += packet.data.len() as u64;
                file.1 += u64::from(packet.data.is_empty());
                self.bytes += packet.data.len() as u64;
                if let Some(byte) = packet.data.first() {
                    let (path, _) = FILES
                        .iter()
                        .find(|(path, _)| fill(path) == *byte)
                        .expect("a file");
                    assert!(packet.data.iter().all(|other| other == byte));
                    if let Some(stat) = self.stats.get(packet.id as usize) {
                        let kind = |path| context.get(path).map(|entry| entry.kind);
                        assert_eq!(kind(path), kind(&stat.path), "{path} for {}", stat.path);
                    }
                }
            }
            (kind, _) => panic!("{kind:?} is nothing to send"),
        }
    }

    fn announced(&mut self, stat: Stat, context: &SourceContext) {
        assert!(!self.all_announced);
        let entry = context.get(&stat.path).expect("only what is in the context");
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

    /// Everything that was asked for up to the end has come, as often as it was asked for, and nothing else.
    fn is_all_of(&self, asked: &[Packet]) {
        assert!(self.all_announced && self.finished);
        let mut wanted: HashMap<u32, u64> = HashMap::new();
        for packet in asked {
            match packet.r#type() {
                PacketType::PacketReq => *wanted.entry(packet.id).or_default() += 1,
                PacketType::PacketFin => break,
                kind => panic!("{kind:?} is nothing to go on after"),
            }
        }
        assert_eq!(wanted.len(), self.files.len());
        for (number, times) in wanted {
            let size = u64::try_from(self.stats[number as usize].size).expect("a size");
            assert_eq!(self.files[&number], (size * times, times), "file {number}");
        }
    }
}

/// Paths and sizes of the files that a daemon is shown.
const FILES: [(&str, u64); 6] = [
    ("a", 0),
    ("b/c", 10),
    ("b/d/e", 70_000),
    ("b/d.txt", 1),
    ("f.log", 3),
    ("g", 140_000),
];

/// What the file at `path` is full of, and no other.
fn fill(path: &str) -> u8 {
    path.bytes()
        .fold(1u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
        | 1
}

/// A context with files of all sizes and links of all kinds, in memory or on disk.
fn contexts(on_disk: bool) -> Arc<SourceContext> {
    static CONTEXTS: OnceLock<[Arc<SourceContext>; 2]> = OnceLock::new();
    let contexts = CONTEXTS.get_or_init(|| {
        let tar = context();
        [tar.len(), 0].map(|memory| {
            let settings = SpoolSettings {
                dir: std::env::temp_dir(),
                memory,
                room: SpoolRoom::new(u64::MAX, IntGauge::new("used", "used").expect("gauge")),
            };
            let mut spool = Spool::new(settings);
            spool.append(&tar).expect("spool");
            let mut reader = ArchiveReader::new(ArchiveLimits::default());
            reader.feed(&tar).expect("a tar");
            let contents = reader.finish().expect("a tar");
            Arc::new(SourceContext::new(contents.entries, spool))
        })
    });
    contexts[usize::from(on_disk)].clone()
}

fn context() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, size) in FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        let content = vec![fill(path); usize::try_from(size).expect("small")];
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
