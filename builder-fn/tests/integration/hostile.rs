//! Tests of malformed and malicious tars: each is rejected with the reason, and nothing of it stays stored.

use std::io::Write as _;
use std::time::SystemTime;

use builder_fn::context::{ArchiveLimits, SpoolQuota};
use builder_fn::request::{RequestErrorKind, RequestHead, RequestLimits, SignatureCheck, receive_body};
use bytes::Bytes;
use function_host::prometheus::IntGauge;
use http_body_util::Full;
use proptest::prelude::*;
use tar::{EntryType, Header};

use crate::harness;

const TAR_BLOCK_BYTES: usize = 512;

/// Returns the bytes of a tar entry, whose header `change_header` may make invalid.
fn tar_entry(name: &[u8], content: &[u8], change_header: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_entry_type(EntryType::Regular);
    change_header(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(TAR_BLOCK_BYTES), 0);
    bytes
}

fn regular_file_entry(name: &str) -> Vec<u8> {
    tar_entry(name.as_bytes(), b"content", |_| ())
}

fn entry_of_type(name: &str, entry_type: EntryType, link_target: &str) -> Vec<u8> {
    tar_entry(name.as_bytes(), b"", |header| {
        header.set_entry_type(entry_type);
        if !link_target.is_empty() {
            header.set_link_name_literal(link_target).expect("a link target");
        }
    })
}

fn pax_header_entry(records: &str) -> Vec<u8> {
    tar_entry(b"pax", records.as_bytes(), |header| {
        header.set_entry_type(EntryType::XHeader)
    })
}

/// Returns the tar of a valid request, with `additional_entries` at its end.
fn request_tar_with_entries(additional_entries: &[Vec<u8>]) -> Vec<u8> {
    let config = tar_entry(
        b"com.openfaas.docker.config",
        br#"{"image": "example.com/a"}"#,
        |_| (),
    );
    let dockerfile = tar_entry(b"context/Dockerfile", b"FROM scratch\n", |_| ());
    [
        config,
        dockerfile,
        additional_entries.concat(),
        vec![0; 2 * TAR_BLOCK_BYTES],
    ]
    .concat()
}

/// Sends a tar, checks that no file and no byte of the quota is left afterwards, and returns the error if it is
/// rejected.
async fn rejection_of_tar_that_leaves_nothing_stored(
    body: Vec<u8>,
    change_limits: impl FnOnce(&mut ArchiveLimits),
) -> Option<(RequestErrorKind, String)> {
    let folder = tempfile::tempdir().expect("folder");
    let spooled = IntGauge::new("used", "used").expect("gauge");
    let mut allowed = RequestLimits::new(
        64 << 20,
        folder.path(),
        SpoolQuota::new(u64::MAX, spooled.clone()),
    );
    change_limits(&mut allowed.archive);
    let head = RequestHead {
        signature: None,
        tenant: None,
        start_time: None,
        is_asynchronous: false,
        is_resumed: false,
        is_json: false,
        arrived: SystemTime::now(),
    };
    let body = Full::new(Bytes::from(body));
    let body = receive_body(body, &head, &SignatureCheck::Disabled, &allowed).await;
    let received = body
        .expect("it is stored")
        .into_build_request(head, &allowed)
        .await;
    let rejection = received.err().map(|error| (error.kind(), error.to_string()));
    assert_eq!(spooled.get(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
    rejection
}

#[tokio::test]
async fn a_malformed_or_malicious_tar_entry_is_rejected_with_its_name_and_the_reason() {
    let sized = |size: &[u8; 12]| {
        let size = *size;
        tar_entry(b"context/huge", b"", move |header| {
            header.as_old_mut().size = size
        })
    };
    for (name, more, entry, reason) in [
        (
            "an absolute path",
            vec![regular_file_entry("/etc/passwd")],
            "/etc/passwd",
            "absolute path",
        ),
        (
            "dots",
            vec![regular_file_entry("context/../../etc/passwd")],
            "context/../../etc/passwd",
            "'..'",
        ),
        (
            "dots at the end",
            vec![regular_file_entry("context/a/..")],
            "context/a/..",
            "'..'",
        ),
        (
            "dots in pax",
            vec![
                pax_header_entry("24 path=context/../../x\n"),
                regular_file_entry("context/x"),
            ],
            "context/../../x",
            "'..'",
        ),
        (
            "a file below a symlink",
            vec![
                entry_of_type("context/out", EntryType::Symlink, "/etc"),
                regular_file_entry("context/out/passwd"),
            ],
            "context/out/passwd",
            "symbolic link",
        ),
        (
            "a symlink below a symlink",
            vec![
                entry_of_type("context/out", EntryType::Symlink, ".."),
                entry_of_type("context/out/a/b", EntryType::Symlink, "x"),
            ],
            "context/out/a/b",
            "symbolic link",
        ),
        (
            "a hard link to an absolute path",
            vec![entry_of_type("context/hard", EntryType::Link, "/etc/passwd")],
            "context/hard",
            "absolute",
        ),
        (
            "a hard link with dots",
            vec![entry_of_type("context/hard", EntryType::Link, "context/../x")],
            "context/hard",
            "'..'",
        ),
        (
            "a hard link to nothing",
            vec![entry_of_type("context/hard", EntryType::Link, "context/no")],
            "context/hard",
            "not in the tar",
        ),
        (
            "a hard link to the configuration",
            vec![entry_of_type(
                "context/hard",
                EntryType::Link,
                "com.openfaas.docker.config",
            )],
            "context/hard",
            "not in context/",
        ),
        (
            "a device",
            vec![entry_of_type("context/sda", EntryType::Block, "")],
            "context/sda",
            "device",
        ),
        (
            "another device",
            vec![entry_of_type("context/null", EntryType::Char, "")],
            "context/null",
            "device",
        ),
        (
            "a fifo",
            vec![entry_of_type("context/fifo", EntryType::Fifo, "")],
            "context/fifo",
            "fifo",
        ),
        (
            "a sparse file",
            vec![entry_of_type("context/holes", EntryType::GNUSparse, "")],
            "context/holes",
            "sparse",
        ),
        (
            "a file below a file",
            vec![regular_file_entry("context/a"), regular_file_entry("context/a/b")],
            "context/a/b",
            "not a folder",
        ),
        (
            "a file that replaces a folder",
            vec![regular_file_entry("context/a/b"), regular_file_entry("context/a")],
            "context/a",
            "folder that is not empty",
        ),
        (
            "a huge size",
            vec![sized(b"77777777777\0")],
            "context/huge",
            "bytes; it can have from 0",
        ),
        (
            "a negative size",
            vec![sized(&[0xff; 12])],
            "context/huge",
            "has a size of -1 bytes",
        ),
        (
            "a size that is not a number",
            vec![sized(b"not a number")],
            "context/huge",
            "size",
        ),
        (
            "a negative size in pax",
            vec![
                pax_header_entry("11 size=-1\n"),
                regular_file_entry("context/less"),
            ],
            "context/less",
            "-1 bytes",
        ),
        (
            "a size above 64 bits",
            vec![
                pax_header_entry("30 size=999999999999999999999\n"),
                regular_file_entry("context/x"),
            ],
            "pax",
            "too large",
        ),
        (
            "a NUL in a name",
            vec![
                pax_header_entry("19 path=context/\0x\n"),
                regular_file_entry("context/x"),
            ],
            "context/\\0x",
            "NUL",
        ),
        (
            "a name that is not UTF-8",
            vec![tar_entry(b"context/\xff\xfe", b"", |_| ())],
            "context/",
            "UTF-8",
        ),
        (
            "a huge extended header",
            vec![tar_entry(b"bomb", b"", |header| {
                header.set_entry_type(EntryType::XHeader);
                header.set_size(1 << 30);
            })],
            "bomb",
            "the limit is 1048576",
        ),
        (
            "a record with a wrong length",
            vec![pax_header_entry("999 path=x\n"), regular_file_entry("context/x")],
            "pax",
            "length",
        ),
        (
            "an unknown type",
            vec![tar_entry(b"context/new", b"", |header| {
                header.as_old_mut().linkflag = [b'Z']
            })],
            "context/new",
            "unknown type",
        ),
    ] {
        let (kind, text) =
            rejection_of_tar_that_leaves_nothing_stored(request_tar_with_entries(&more), |_| ())
                .await
                .unwrap_or_else(|| panic!("{name} is accepted"));
        assert_eq!(kind, RequestErrorKind::Invalid, "{name}: {text}");
        assert!(text.contains(&format!("\"{entry}")), "{name}: {text}");
        assert!(text.contains(reason), "{name}: {text}");
    }
    assert_eq!(
        rejection_of_tar_that_leaves_nothing_stored(
            request_tar_with_entries(&[regular_file_entry("context/good")]),
            |_| ()
        )
        .await,
        None,
        "the rest of the request is valid"
    );
}

#[tokio::test]
async fn a_tar_cut_within_an_entry_is_rejected_and_one_cut_between_entries_may_be_accepted() {
    let more = [
        pax_header_entry("12 mtime=12\n"),
        regular_file_entry("context/a"),
        entry_of_type("context/b", EntryType::Symlink, "a"),
        regular_file_entry("context/c"),
    ];
    let body = request_tar_with_entries(&more);
    let end = body.len() - 2 * TAR_BLOCK_BYTES;
    // A tar that is cut between two entries is accepted, as tar itself does.
    let between: Vec<usize> = std::iter::successors(Some(0), |at| Some(at + TAR_BLOCK_BYTES))
        .take_while(|at| *at <= end)
        .collect();
    for at in between
        .iter()
        .flat_map(|at| [at.saturating_sub(1), *at, at + 1, at + 257])
        .filter(|at| *at < end)
    {
        let Some((kind, text)) =
            rejection_of_tar_that_leaves_nothing_stored(body[..at].to_vec(), |_| ()).await
        else {
            assert!(
                at % TAR_BLOCK_BYTES == 0 && at >= 4 * TAR_BLOCK_BYTES,
                "cut at {at}"
            );
            continue;
        };
        assert_eq!(kind, RequestErrorKind::Invalid, "cut at {at}: {text}");
    }
}

#[tokio::test]
async fn decompression_bombs_floods_of_entries_and_large_indexes_are_rejected_at_their_limits() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&request_tar_with_entries(&[])[..4 * TAR_BLOCK_BYTES])
        .expect("gzip");
    bomb.write_all(&tar_entry(b"context/zeros", &vec![0; 80 << 20], |_| ()))
        .expect("gzip");
    let (kind, text) = rejection_of_tar_that_leaves_nothing_stored(bomb.finish().expect("gzip"), |limits| {
        limits.body = 1 << 40
    })
    .await
    .expect("the bomb is rejected");
    assert_eq!(kind, RequestErrorKind::Invalid);
    assert!(text.contains("200 times its size"), "{text}");

    let flood: Vec<_> = (0..20_000)
        .map(|number| tar_entry(format!("context/{number}").as_bytes(), b"", |_| ()))
        .collect();
    let (kind, text) =
        rejection_of_tar_that_leaves_nothing_stored(request_tar_with_entries(&flood), |limits| {
            limits.entries = 10_000
        })
        .await
        .expect("the flood is rejected");
    assert_eq!(
        (kind, text.as_str()),
        (RequestErrorKind::Invalid, "the tar has more than 10000 entries")
    );

    let deep = format!("context/{}x", "d/".repeat(40));
    let deep: Vec<_> = (0..400)
        .map(|number| regular_file_entry(&format!("{deep}{number}")))
        .collect();
    assert_eq!(
        rejection_of_tar_that_leaves_nothing_stored(request_tar_with_entries(&deep), |_| ()).await,
        None
    );
    let (_, text) = rejection_of_tar_that_leaves_nothing_stored(request_tar_with_entries(&deep), |limits| {
        limits.index = 20_000
    })
    .await
    .expect("the index is rejected");
    assert!(text.contains("more than 20000 bytes"), "{text}");
}

/// Generates tars of plausible entries with changed bytes. Checksums are correct, so that headers are parsed.
fn damaged_tars() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "context/a",
        "context/a/b",
        "context/b",
        "./context/c/",
        "com.openfaas.secrets",
        "x",
    ]);
    let kind = prop::sample::select(b"0157235xgLKSV\0".to_vec());
    let one = (
        name,
        kind,
        prop::collection::vec(any::<u8>(), 0..700),
        prop::collection::vec((0usize..TAR_BLOCK_BYTES, any::<u8>()), 0..3),
    );
    let one = one.prop_map(|(name, kind, content, changes)| {
        tar_entry(name.as_bytes(), &content, |header| {
            header.as_old_mut().linkflag = [kind];
            for (at, byte) in changes {
                header.as_mut_bytes()[at] = byte;
            }
        })
    });
    prop::collection::vec(one, 0..8).prop_map(|more| request_tar_with_entries(&more))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn an_index_is_consistent_or_the_tar_is_rejected(
        tar in damaged_tars(),
        mode in any::<u8>(),
        piece in any::<u8>(),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        harness::check_index(&[&[mode, piece][..], &tar].concat());
        harness::check_index(&bytes);
    }

    #[test]
    fn a_request_is_parsed_or_rejected_and_its_stored_bytes_are_released(tar in damaged_tars(), mode in 0u8..8) {
        current_thread_runtime().block_on(harness::check_receiving_of_request(&[&[mode][..], &tar].concat()));
    }

    #[test]
    fn a_tenant_gets_nothing_that_its_policy_excludes_whatever_the_configuration(
        mode in any::<u8>(),
        values in prop::collection::vec("(registry\\.example(:5000)?/)?[ac][./:@a-z-]{0,6}|payload-secret|[0-9smh]{1,4}|\\PC{0,4}", 0..20),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        harness::check_config(&[b"\x01", values.join("\n").as_bytes()].concat());
        harness::check_config(&[b"\x02# syntax=", values.concat().as_bytes()].concat());
        harness::check_config(&[&[mode][..], &bytes].concat());
    }

    #[test]
    fn a_daemon_gets_only_files_of_the_context_whatever_it_requests(
        mode in any::<u8>(),
        patterns in prop::collection::vec("[ief][!./*a-g\\[\\]\\\\?-]{0,8}|f(l/)?(to|out|root|round|there|back|up|\\*)(/e)?", 0..4),
        asked in prop::collection::vec((1u8..4, 0u8..20), 0..20),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let head = [&[mode][..], patterns.join("\n").as_bytes(), b"\n\n"].concat();
        let asked: Vec<u8> = asked.into_iter().flat_map(|(kind, number)| [kind, number]).collect();
        current_thread_runtime().block_on(harness::check_file_sync_with_fuzzed_daemon(&[&head[..], &asked].concat()));
        current_thread_runtime().block_on(harness::check_file_sync_with_fuzzed_daemon(&[&head[..], &bytes].concat()));
        current_thread_runtime().block_on(harness::check_file_sync_with_fuzzed_daemon(&bytes));
    }
}

fn current_thread_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}
