//! The file-sync service as BuildKit uses it: what is announced, what is sent, how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use builder_fn::buildkit::{BuiltImage, EventTimeouts, Job, JobError, Services, Solve};
use builder_fn::context::SourceContext;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::daemon::{self, Calls, SessionCall};
use crate::shared_keys;

/// A build that waits for files to be asked for.
struct Served {
    session: SessionCall,
    _calls: Calls,
    _build: JoinHandle<Result<BuiltImage, JobError>>,
}

async fn serve(tar: Vec<u8>) -> Served {
    let context = Arc::new(SourceContext::from_tar(&tar).expect("context"));
    let (daemon, mut calls) = daemon::start();
    let build = tokio::spawn(async move {
        let connection = daemon.connect().await.expect("connect");
        let lease = Arc::new(shared_keys().lease_single_use());
        let job = Job {
            services: Services::new().with_health().with_files(context, lease.clone()),
            shared_key: lease,
            solve: Solve::default(),
            timeouts: EventTimeouts::default(),
        };
        job.run(&connection, |_| ()).await
    });
    let session = calls.session().await;
    Served {
        session,
        _calls: calls,
        _build: build,
    }
}

/// One transfer, from the daemon's side.
struct Transfer {
    requests: mpsc::UnboundedSender<Packet>,
    answers: Streaming<Packet>,
}

impl Served {
    async fn ask(&self, metadata: &[(&'static str, &str)]) -> Result<Transfer, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver).then(|packet| async {
            // Each in a frame of its own, as Go's client sends them.
            tokio::task::yield_now().await;
            packet
        }));
        for (key, value) in metadata {
            request.metadata_mut().append(*key, value.parse().expect("ascii"));
        }
        let answers = FileSyncClient::new(self.session.services.clone())
            .diff_copy(request)
            .await?
            .into_inner();
        Ok(Transfer { requests, answers })
    }
}

impl Transfer {
    fn send(&self, kind: PacketType, id: u32) {
        self.requests
            .send(Packet {
                r#type: kind.into(),
                id,
                ..Packet::default()
            })
            .expect("the transfer runs");
    }

    async fn next(&mut self) -> Result<Option<Packet>, Status> {
        self.answers.message().await
    }

    /// What is announced, up to the empty packet that ends it.
    async fn stats(&mut self) -> Vec<Stat> {
        let mut stats = Vec::new();
        while let Some(packet) = self.next().await.expect("a packet") {
            assert_eq!(packet.r#type(), PacketType::PacketStat);
            match packet.stat {
                Some(stat) => stats.push(stat),
                None => return stats,
            }
        }
        panic!("the stats do not end");
    }

    /// Asks for `ids` and reads until all are whole; also the order in which they were.
    async fn contents(&mut self, ids: &[u32]) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        for id in ids {
            self.send(PacketType::PacketReq, *id);
        }
        self.take(ids.len() as u32).await
    }

    /// Reads until `count` files are whole.
    async fn take(&mut self, count: u32) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        let mut contents: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut done = Vec::new();
        while done.len() < count as usize {
            let packet = self.next().await.expect("a packet").expect("more");
            assert_eq!(packet.r#type(), PacketType::PacketData);
            assert!(
                packet.data.len() <= 64 << 10,
                "messages stay far below what gRPC allows"
            );
            match packet.data.is_empty() {
                true => done.push(packet.id),
                false => contents.entry(packet.id).or_default().extend(packet.data),
            }
        }
        (contents, done)
    }

    async fn finish(mut self) {
        self.send(PacketType::PacketFin, 0);
        let packet = self.next().await.expect("a packet").expect("an answer to FIN");
        assert_eq!(packet.r#type(), PacketType::PacketFin);
        assert!(self.next().await.expect("a clean end").is_none());
    }
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("com.openfaas.docker.config", b"{}".as_slice())]
        .iter()
        .chain(files)
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content).expect("append");
    }
    tar.into_inner().expect("tar")
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn entries_are_announced_in_order_and_files_sent_by_number() {
    let served = serve(tar(&[
        ("context/b/file", b"in b"),
        ("context/a", b"in a"),
        ("context/b-", b""),
    ]))
    .await;

    for folder in ["context", "dockerfile"] {
        let mut transfer = served.ask(&[("dir-name", folder)]).await.expect("a transfer");
        let stats = transfer.stats().await;
        let paths: Vec<_> = stats.iter().map(|stat| stat.path.as_str()).collect();
        assert_eq!(
            paths,
            ["a", "b", "b/file", "b-"],
            "a folder's content comes before its longer siblings"
        );
        let (contents, _) = transfer.contents(&[0, 2, 3]).await;
        assert_eq!(
            contents,
            BTreeMap::from([(0, b"in a".to_vec()), (2, b"in b".to_vec())]),
            "folders are counted"
        );
        transfer.finish().await;
    }
}

#[tokio::test]
async fn a_large_file_does_not_hold_up_small_ones_and_arrives_whole() {
    let large = pattern((3 << 20) + 17);
    let small = pattern(100);
    let served = serve(tar(&[
        ("context/0", &large),
        ("context/1", &small),
        ("context/2", &small),
    ]))
    .await;
    let mut transfer = served.ask(&[("dir-name", "context")]).await.expect("a transfer");
    transfer.stats().await;

    let (contents, done) = transfer.contents(&[0, 1, 2]).await;

    assert_eq!(done.last(), Some(&0), "the large one ends last");
    assert!(contents[&0] == large && contents[&1] == small && contents[&2] == small);
    transfer.finish().await;
}

#[tokio::test]
async fn many_more_files_than_are_sent_at_once_all_arrive() {
    let names: Vec<_> = (0..300).map(|number| format!("context/{number:03}")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    let served = serve(tar(&files)).await;
    let mut transfer = served.ask(&[("dir-name", "context")]).await.expect("a transfer");
    assert_eq!(transfer.stats().await.len(), 300);

    let (contents, _) = transfer.contents(&(0..300).collect::<Vec<_>>()).await;

    for (id, name) in names.iter().enumerate() {
        assert_eq!(contents[&(id as u32)], name.as_bytes());
    }
    transfer.finish().await;
}

/// BuildKit's receiver asks for every file as soon as it has its STAT, one small frame each, however slowly it takes
/// what it asked for.
#[tokio::test(flavor = "multi_thread")]
async fn all_files_of_a_large_context_may_be_asked_for_before_any_is_taken() {
    const COUNT: u32 = 20_000;
    let names: Vec<_> = (0..COUNT).map(|number| format!("context/{number:05}")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    let served = serve(tar(&files)).await;
    let mut transfer = served.ask(&[("dir-name", "context")]).await.expect("a transfer");
    assert_eq!(transfer.stats().await.len(), COUNT as usize);

    for id in 0..COUNT {
        transfer.send(PacketType::PacketReq, id);
    }
    // Long enough for all of them to arrive, if they are let in.
    for _ in 0..200_000 {
        tokio::task::yield_now().await;
    }

    let (contents, _) = transfer.take(COUNT).await;
    assert_eq!(contents.len(), COUNT as usize);
    transfer.finish().await;
}

#[tokio::test]
async fn patterns_decide_what_is_announced_and_numbers_count_only_that() {
    let served = serve(tar(&[
        ("context/keep", b"kept"),
        ("context/ignored", b"secret"),
        ("context/x", b"x"),
    ]))
    .await;
    let excluding = [("dir-name", "context"), ("exclude-patterns", "ignored")];
    let mut transfer = served.ask(&excluding).await.expect("a transfer");

    let paths: Vec<_> = transfer.stats().await.into_iter().map(|stat| stat.path).collect();
    assert_eq!(paths, ["keep", "x"]);
    let (contents, _) = transfer.contents(&[1]).await;
    assert_eq!(contents[&1], b"x");
    transfer.finish().await;
}

#[tokio::test]
async fn what_was_not_announced_is_not_sent() {
    let served = serve(tar(&[("context/folder/file", b"x")])).await;
    for id in [0, 2, u32::MAX] {
        let mut transfer = served.ask(&[("dir-name", "context")]).await.expect("a transfer");
        transfer.stats().await;
        transfer.send(PacketType::PacketReq, id);
        assert_eq!(
            transfer.next().await.expect_err("no such file").code(),
            Code::InvalidArgument,
            "{id}"
        );
    }
    let elsewhere = served
        .ask(&[("dir-name", "/etc")])
        .await
        .err()
        .expect("no such folder");
    assert_eq!(elsewhere.code(), Code::NotFound);
    let malformed = [("dir-name", "context"), ("exclude-patterns", "[")];
    assert_eq!(
        served
            .ask(&malformed)
            .await
            .err()
            .expect("no such pattern")
            .code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_daemon_that_cannot_take_the_files_ends_the_transfer() {
    let served = serve(tar(&[("context/file", b"x")])).await;
    let mut transfer = served.ask(&[("dir-name", "context")]).await.expect("a transfer");
    transfer.stats().await;

    let full = Packet {
        r#type: PacketType::PacketErr.into(),
        data: b"no space left".to_vec(),
        ..Packet::default()
    };
    transfer.requests.send(full).expect("the transfer runs");

    let error = transfer.next().await.expect_err("it ends");
    assert_eq!(
        (error.code(), error.message()),
        (Code::Aborted, "the receiver failed: no space left")
    );
}
