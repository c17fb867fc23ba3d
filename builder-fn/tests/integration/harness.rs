//! What has to hold for any bytes from outside. The ordinary tests run it on what they make up, `fuzz/` on what a fuzzer does.
//!
//! Nothing here knows the rest of the tests: `fuzz/` takes this file alone.

use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSyncServer;
use builder_fn::buildkit::session::{FileSync, SharedKeys};
use builder_fn::context::{ArchiveLimits, ArchiveReader, Kind, SourceContext, Spool, SpoolRoom};
use builder_fn::request::{Limits, Trust, receive};
use bytes::Bytes;
use function_host::prometheus::{IntCounter, IntGauge};
use http_body_util::{BodyExt, Full};
use tonic::codegen::Service;

/// Reads `bytes` as a tar, in pieces, and everything that is in it.
pub(crate) fn index(bytes: &[u8]) {
    let Some((first, tar)) = bytes.split_first() else {
        return;
    };
    let limits = ArchiveLimits {
        body: 1 << 20,
        entries: 200,
        index: 64 << 10,
        small_file: 4 << 10,
    };
    let mut reader = ArchiveReader::new(limits);
    for piece in tar.chunks(usize::from(*first) + 1) {
        if let Err(error) = reader.feed(piece) {
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
            return;
        }
    }
    let Ok(contents) = reader.finish() else { return };
    assert!(contents.entries.len() <= 200);
    let context = SourceContext::new(contents.entries, Spool::in_memory(tar.to_vec()));
    for (at, entry) in context.entries().iter().enumerate() {
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        assert!(entry.path.split('/').all(is_part), "{:?}", entry.path);
        if let Some((folder, _)) = entry.path.rsplit_once('/') {
            let before = context.entries()[..at]
                .iter()
                .find(|before| before.path == folder);
            assert!(
                before.is_some_and(|before| before.is_directory()),
                "{:?}",
                entry.path
            );
        }
        if let Kind::File { size, .. } = entry.kind {
            let mut content = vec![0; usize::try_from(size).expect("no larger than the tar")];
            context.read_exact(entry, 0, &mut content).expect("all of it");
            assert_eq!(blake3::hash(&content).as_bytes()[..16], entry.content.0);
        }
    }
}

/// Takes `bytes` for the body of a request by anyone, packed or not.
pub(crate) async fn request(bytes: &[u8]) {
    let used = IntGauge::new("used", "used").expect("gauge");
    let limits = Limits::new(
        4 << 20,
        std::env::temp_dir(),
        SpoolRoom::new(8 << 20, used.clone()),
    );
    let received = receive(
        Full::new(Bytes::copy_from_slice(bytes)),
        None,
        &Trust::Anyone,
        &limits,
    )
    .await;
    if let Err(error) = &received {
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    drop(received);
    assert_eq!(used.get(), 0, "all room is given back");
}

/// Takes `bytes` for what a daemon says that asks for files: patterns, then packets, well formed or not.
pub(crate) async fn peer(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let (patterns, rest) = rest.split_at(rest.len().min(usize::from(first >> 1) / 4));
    let context = Arc::new(context());
    let keys = SharedKeys::counting(IntCounter::new("sent", "sent").expect("counter"));
    let lease = Arc::new(keys.lease("image", &context));
    let mut server = FileSyncServer::new(FileSync::new(context, lease));

    let mut asking = http::Request::post("http://session/moby.filesync.v1.FileSync/DiffCopy")
        .header("content-type", "application/grpc")
        .header("dir-name", "context");
    let key = ["include-patterns", "exclude-patterns", "followpaths"][usize::from(first >> 1) % 3];
    for pattern in patterns.split(|byte| *byte == 0) {
        if let Ok(value) = http::HeaderValue::from_bytes(pattern) {
            asking = asking.header(key, value);
        }
    }
    let frames = match first % 2 {
        0 => rest.to_vec(),
        _ => rest.chunks(2).flat_map(frame).collect(),
    };
    let asking = asking.body(Full::new(Bytes::from(frames))).expect("a request");
    let answer = server.call(asking).await.expect("an answer");
    let (head, body) = answer.into_parts();
    let trailers = match body.collect().await {
        Ok(body) => body.trailers().cloned().unwrap_or_default(),
        Err(_) => return,
    };
    // What the transport makes of frames that are none is its own; of ours there is no such error for any question.
    let message = trailers.get("grpc-message").or(head.headers.get("grpc-message"));
    let message = message.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
    assert!(
        !message.is_some_and(|text| text.contains("the%20context")),
        "an internal error"
    );
}

/// A packet with the type and the number that these bytes say.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let number = bytes.get(1).copied().unwrap_or_default() & 0x7f;
    vec![0, 0, 0, 0, 4, 0x08, bytes[0] % 7, 0x18, number]
}

fn context() -> SourceContext {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, size) in [
        ("a", 0),
        ("b/c", 10),
        ("b/d/e", 70_000),
        ("f.log", 3),
        ("g", 200_000),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        let content = vec![7; usize::try_from(size).expect("small")];
        tar.append_data(&mut header, format!("context/{path}"), &content[..])
            .expect("append");
    }
    SourceContext::from_tar(&tar.into_inner().expect("tar")).expect("context")
}
