//! Tests of the file-sync service as BuildKit uses it: announcements, contents, and the end of a transfer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use builder_fn::buildkit::{
    BuildJob, BuiltImageDigestCommitAndTimes, JobError, SessionServices, SolveOptions, TimeoutsForLastEvents,
};
use builder_fn::context::SourceContext;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::daemon::{self, DaemonCalls, SessionCall};
use crate::job::FixedAnswerManifestLookup;
use crate::new_pool_of_buildkit_shared_keys;

/// Waits for `future`, and fails the test if it hangs.
async fn complete_in_time<T>(future: impl Future<Output = T>, what_hangs: &str) -> T {
    const HANG_TIMEOUT: Duration = Duration::from_secs(60);
    let result = tokio::time::timeout(HANG_TIMEOUT, future).await;
    result.unwrap_or_else(|_| panic!("{what_hangs}"))
}

/// A running build whose session serves files to the test.
struct ServedBuild {
    session: SessionCall,
    _calls: DaemonCalls,
    _build: JoinHandle<Result<BuiltImageDigestCommitAndTimes, JobError>>,
}

/// Starts a build with the context in `tar`, and waits for its session.
async fn start_served_build(tar: Vec<u8>) -> ServedBuild {
    let context = Arc::new(SourceContext::from_tar(&tar).expect("context"));
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let build = tokio::spawn(async move {
        let connection = daemon.connect().await.expect("connect");
        let lease = Arc::new(new_pool_of_buildkit_shared_keys().lease_single_use());
        let job = BuildJob {
            services: SessionServices::new()
                .with_health()
                .with_files(context, lease.clone()),
            shared_key: lease,
            solve: SolveOptions::default(),
            manifests: Arc::new(FixedAnswerManifestLookup::Present),
            first_attempt: 1,
            timeouts: TimeoutsForLastEvents::default(),
        };
        job.run_to_outcome(&connection, |_| ()).await
    });
    let session = calls.next_session_call().await;
    ServedBuild {
        session,
        _calls: calls,
        _build: build,
    }
}

/// The daemon's side of a file transfer, played by the test.
struct DaemonTransfer {
    requests: mpsc::UnboundedSender<Packet>,
    answers: Streaming<Packet>,
    /// The number of requests that the transport has accepted.
    accepted: watch::Receiver<u32>,
}

impl ServedBuild {
    /// Requests a transfer of the session's files with this metadata, as BuildKit does.
    async fn start_transfer(&self, metadata: &[(&'static str, &str)]) -> Result<DaemonTransfer, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let (accept, accepted) = watch::channel(0);
        let accept = Arc::new(accept);
        let packets = UnboundedReceiverStream::new(receiver).then(move |packet| {
            let accept = accept.clone();
            async move {
                // Each packet in a frame of its own, as Go's client sends them.
                tokio::task::yield_now().await;
                accept.send_modify(|count| *count += 1);
                packet
            }
        });
        let mut request = Request::new(packets);
        for (key, value) in metadata {
            request.metadata_mut().append(*key, value.parse().expect("ascii"));
        }
        let answers = FileSyncClient::new(self.session.services.clone())
            .diff_copy(request)
            .await?
            .into_inner();
        Ok(DaemonTransfer {
            requests,
            answers,
            accepted,
        })
    }
}

impl DaemonTransfer {
    fn send_packet(&self, kind: PacketType, id: u32) {
        self.requests
            .send(Packet {
                r#type: kind.into(),
                id,
                ..Packet::default()
            })
            .expect("the transfer runs");
    }

    async fn next_packet(&mut self) -> Result<Option<Packet>, Status> {
        complete_in_time(self.answers.message(), "no packet arrives").await
    }

    /// Receives the end of a failed transfer: an ERR packet, and a status with the same text. The daemon may report of
    /// a status alone that its context was canceled.
    async fn receive_err_packet_and_status(&mut self) -> Status {
        let packet = self.next_packet().await.expect("a packet").expect("no end");
        let status = self.next_packet().await.expect_err("the transfer ends");
        let text = status.message().as_bytes();
        assert_eq!((packet.r#type(), &*packet.data), (PacketType::PacketErr, text));
        status
    }

    /// Receives the announced entries, up to the empty packet that ends them.
    async fn receive_stats(&mut self) -> Vec<Stat> {
        let mut stats = Vec::new();
        while let Some(packet) = self.next_packet().await.expect("a packet") {
            assert_eq!(packet.r#type(), PacketType::PacketStat);
            match packet.stat {
                Some(stat) => stats.push(stat),
                None => return stats,
            }
        }
        panic!("the stats do not end");
    }

    /// Requests the files with the numbers `ids`, and receives them. Returns the contents, and the order of completion.
    async fn request_contents_and_completion_order(
        &mut self,
        ids: &[u32],
    ) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        for id in ids {
            self.send_packet(PacketType::PacketReq, *id);
        }
        self.receive_contents_and_completion_order(ids.len() as u32).await
    }

    /// Receives the contents of `count` files. Returns the contents, and the order of completion.
    async fn receive_contents_and_completion_order(
        &mut self,
        count: u32,
    ) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        let mut contents: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut done = Vec::new();
        while done.len() < count as usize {
            let packet = self.next_packet().await.expect("a packet").expect("more packets");
            assert_eq!(packet.r#type(), PacketType::PacketData);
            assert!(
                packet.data.len() <= 64 << 10,
                "a message stays far below the limit of gRPC"
            );
            match packet.data.is_empty() {
                true => done.push(packet.id),
                false => contents.entry(packet.id).or_default().extend(packet.data),
            }
        }
        (contents, done)
    }

    /// Ends the transfer with a FIN packet, and checks that the builder answers with one and ends it too.
    async fn finish_transfer(mut self) {
        self.send_packet(PacketType::PacketFin, 0);
        let packet = self
            .next_packet()
            .await
            .expect("a packet")
            .expect("an answer to FIN");
        assert_eq!(packet.r#type(), PacketType::PacketFin);
        assert!(self.next_packet().await.expect("a clean end").is_none());
    }
}

fn tar_with_empty_config_and_files(files: &[(&str, &[u8])]) -> Vec<u8> {
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

fn pattern_bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn entries_are_announced_in_order_and_files_sent_by_their_number() {
    let served = start_served_build(tar_with_empty_config_and_files(&[
        ("context/b/file", b"in b"),
        ("context/a", b"in a"),
        ("context/b-", b""),
    ]))
    .await;

    for folder in ["context", "dockerfile"] {
        let mut transfer = served
            .start_transfer(&[("dir-name", folder)])
            .await
            .expect("a transfer");
        let stats = transfer.receive_stats().await;
        let paths: Vec<_> = stats.iter().map(|stat| stat.path.as_str()).collect();
        assert_eq!(
            paths,
            ["a", "b", "b/file", "b-"],
            "a folder's entries come before siblings with a longer name"
        );
        let (contents, _) = transfer.request_contents_and_completion_order(&[0, 2, 3]).await;
        assert_eq!(
            contents,
            BTreeMap::from([(0, b"in a".to_vec()), (2, b"in b".to_vec())]),
            "folders are numbered too"
        );
        transfer.finish_transfer().await;
    }
}

#[tokio::test]
async fn a_large_file_does_not_delay_small_ones_and_arrives_complete() {
    let large = pattern_bytes((3 << 20) + 17);
    let small = pattern_bytes(100);
    let served = start_served_build(tar_with_empty_config_and_files(&[
        ("context/0", &large),
        ("context/1", &small),
        ("context/2", &small),
    ]))
    .await;
    let mut transfer = served
        .start_transfer(&[("dir-name", "context")])
        .await
        .expect("a transfer");
    transfer.receive_stats().await;

    let (contents, done) = transfer.request_contents_and_completion_order(&[0, 1, 2]).await;

    assert_eq!(done.last(), Some(&0), "the large file is completed last");
    assert!(contents[&0] == large && contents[&1] == small && contents[&2] == small);
    transfer.finish_transfer().await;
}

#[tokio::test]
async fn all_files_arrive_when_more_are_requested_than_are_sent_at_once() {
    let names: Vec<_> = (0..300).map(|number| format!("context/{number:03}")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    let served = start_served_build(tar_with_empty_config_and_files(&files)).await;
    let mut transfer = served
        .start_transfer(&[("dir-name", "context")])
        .await
        .expect("a transfer");
    assert_eq!(transfer.receive_stats().await.len(), 300);

    let (contents, _) = transfer
        .request_contents_and_completion_order(&(0..300).collect::<Vec<_>>())
        .await;

    for (id, name) in names.iter().enumerate() {
        assert_eq!(contents[&(id as u32)], name.as_bytes());
    }
    transfer.finish_transfer().await;
}

/// BuildKit's receiver requests every file as soon as it has the file's STAT packet, in a small frame each, however
/// slowly it reads the contents.
#[tokio::test(flavor = "multi_thread")]
async fn half_of_20_000_requests_are_accepted_before_any_content_is_read_and_all_are_answered() {
    const FILE_COUNT: u32 = 20_000;
    let names: Vec<_> = (0..FILE_COUNT)
        .map(|number| format!("context/{number:05}"))
        .collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    let served = start_served_build(tar_with_empty_config_and_files(&files)).await;
    let mut transfer = served
        .start_transfer(&[("dir-name", "context")])
        .await
        .expect("a transfer");
    assert_eq!(transfer.receive_stats().await.len(), FILE_COUNT as usize);

    for id in 0..FILE_COUNT {
        transfer.send_packet(PacketType::PacketReq, id);
    }
    // Half of the requests are longer than a flow-control window, so they are accepted only if the service reads them.
    let accepted = transfer.accepted.wait_for(|count| *count >= FILE_COUNT / 2);
    complete_in_time(accepted, "requests wait until contents are read")
        .await
        .expect("the transfer runs");

    let (contents, _) = transfer.receive_contents_and_completion_order(FILE_COUNT).await;
    assert_eq!(contents.len(), FILE_COUNT as usize);
    transfer.finish_transfer().await;
}

#[tokio::test]
async fn only_entries_that_the_patterns_select_are_announced_and_numbered() {
    let served = start_served_build(tar_with_empty_config_and_files(&[
        ("context/keep", b"kept"),
        ("context/ignored", b"secret"),
        ("context/x", b"x"),
    ]))
    .await;
    let excluding = [("dir-name", "context"), ("exclude-patterns", "ignored")];
    let mut transfer = served.start_transfer(&excluding).await.expect("a transfer");

    let paths: Vec<_> = transfer
        .receive_stats()
        .await
        .into_iter()
        .map(|stat| stat.path)
        .collect();
    assert_eq!(paths, ["keep", "x"]);
    let (contents, _) = transfer.request_contents_and_completion_order(&[1]).await;
    assert_eq!(contents[&1], b"x");
    transfer.finish_transfer().await;
}

#[tokio::test]
async fn requests_for_unannounced_files_unknown_folders_or_bad_patterns_fail_the_transfer() {
    let served = start_served_build(tar_with_empty_config_and_files(&[("context/folder/file", b"x")])).await;
    for id in [0, 2, u32::MAX] {
        let mut transfer = served
            .start_transfer(&[("dir-name", "context")])
            .await
            .expect("a transfer");
        transfer.receive_stats().await;
        transfer.send_packet(PacketType::PacketReq, id);
        assert_eq!(
            transfer.receive_err_packet_and_status().await.code(),
            Code::InvalidArgument,
            "{id}"
        );
    }
    for (metadata, code) in [
        (&[("dir-name", "/etc")][..], Code::NotFound),
        (
            &[("dir-name", "context"), ("exclude-patterns", "[")],
            Code::InvalidArgument,
        ),
    ] {
        let mut transfer = served.start_transfer(metadata).await.expect("an answer");
        assert_eq!(
            transfer.receive_err_packet_and_status().await.code(),
            code,
            "{metadata:?}"
        );
    }
}

#[tokio::test]
async fn an_error_of_the_daemon_ends_the_transfer() {
    let served = start_served_build(tar_with_empty_config_and_files(&[("context/file", b"x")])).await;
    let mut transfer = served
        .start_transfer(&[("dir-name", "context")])
        .await
        .expect("a transfer");
    transfer.receive_stats().await;

    let full = Packet {
        r#type: PacketType::PacketErr.into(),
        data: b"no space left".to_vec(),
        ..Packet::default()
    };
    transfer.requests.send(full).expect("the transfer runs");

    let error = transfer.receive_err_packet_and_status().await;
    assert_eq!(
        (error.code(), error.message()),
        (Code::Aborted, "the receiver failed: no space left")
    );
}
