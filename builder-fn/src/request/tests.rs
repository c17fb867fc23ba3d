//! Tests of bodies that arrive in pieces: which are accepted, why others are rejected, and that they leave
//! nothing behind.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use function_host::signature::HmacKeys;
use function_host::{Secret, signature};
use futures_util::stream::{self, Stream};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tempfile::TempDir;

use super::*;
use crate::context::Kind;

const CONFIG: &[u8] = br#"{"image": "example.com/hello:v1", "soon": 1}"#;

fn quota() -> SpoolQuota {
    SpoolQuota::new(
        u64::MAX,
        function_host::prometheus::IntGauge::new("used", "used").unwrap(),
    )
}

fn key(lines: &str) -> HmacKeys {
    HmacKeys::new(&Secret::new(lines)).unwrap()
}

fn required() -> SignatureCheck {
    required_with("the key")
}

fn required_with(lines: &str) -> SignatureCheck {
    SignatureCheck::Required(SignatureKeys::new(&Secret::new(lines), true).unwrap())
}

fn sign(body: &[u8]) -> String {
    signature::sign(&key("the key"), body)
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn good() -> Vec<u8> {
    tar(&[
        ("context/Dockerfile", b"FROM scratch\n"),
        ("com.openfaas.docker.config", CONFIG),
    ])
}

fn large() -> Vec<u8> {
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
    tar(&[
        ("com.openfaas.docker.config", CONFIG),
        ("context/large", &content),
        ("context/Dockerfile", b"FROM scratch\n"),
    ])
}

/// Receives a request that arrives now, and whose only header is `signature`.
async fn receive<B>(
    body: B,
    signature: Option<&str>,
    check: &SignatureCheck,
    limits: &RequestLimits,
) -> Result<BuildRequest, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    super::receive(body, head(signature, None), check, limits).await
}

fn head(signature: Option<&str>, start_time: Option<&str>) -> RequestHead {
    RequestHead {
        signature: signature.map(str::to_owned),
        start_time: start_time.map(|value| value.as_bytes().to_vec()),
        arrived: SystemTime::now(),
    }
}

/// Returns a body of `pieces`, without a declared length.
fn streamed(
    pieces: impl Stream<Item = Result<Vec<u8>, io::Error>>,
) -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    use futures_util::StreamExt;
    StreamBody::new(pieces.map(|piece| piece.map(|piece| Frame::data(Bytes::from(piece)))))
}

fn in_pieces(body: &[u8], size: usize) -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    let pieces: Vec<_> = body.chunks(size).map(|piece| Ok(piece.to_vec())).collect();
    streamed(stream::iter(pieces))
}

/// Returns a body that panics when it is read.
fn untouched() -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    streamed(stream::poll_fn(|_| panic!("the body was read")))
}

struct Spooled {
    dir: TempDir,
    limits: RequestLimits,
}

fn spool() -> Spooled {
    let dir = TempDir::new().unwrap();
    let limits = RequestLimits::new(100 << 20, dir.path(), quota());
    Spooled { dir, limits }
}

impl Spooled {
    /// Returns the number of names in the spool folder, and of its files that this process has open.
    fn left(&self) -> (usize, usize) {
        let names = fs::read_dir(self.dir.path()).unwrap().count();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let is_ours =
            |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(self.dir.path()));
        (
            names,
            descriptors
                .filter(|entry| entry.as_ref().is_ok_and(|entry| is_ours(&entry.path())))
                .count(),
        )
    }

    /// Returns the error for a rejected body, and checks that the body leaves no spool file.
    async fn rejection(&self, body: &[u8], signature: Option<&str>) -> RequestError {
        let error = receive(in_pieces(body, 1000), signature, &required(), &self.limits)
            .await
            .unwrap_err();
        assert_eq!(self.left(), (0, 0), "{error}");
        error
    }
}

#[tokio::test]
async fn a_signed_tar_becomes_the_same_build_request_in_pieces_of_any_size() {
    let spooled = spool();
    for body in [good(), large()] {
        for size in [1000, 64 << 10, 1 << 20, body.len()] {
            let arriving = in_pieces(&body, size);
            let request = receive(arriving, Some(&sign(&body)), &required(), &spooled.limits)
                .await
                .unwrap();
            assert_eq!(request.config.image.to_string(), "example.com/hello:v1");
            assert_eq!(request.body_bytes, body.len() as u64);
            let signature = request.signature.as_ref().map(VerifiedSignature::as_str);
            assert_eq!(signature, Some(sign(&body).as_str()));
            assert_eq!(
                request.warnings,
                ["key \"soon\" in com.openfaas.docker.config is ignored"]
            );
            assert!(request.sealed_secrets.is_none());
            let dockerfile = request.context.get("Dockerfile").unwrap();
            let mut content = [0; 20];
            assert_eq!(request.context.read(dockerfile, 5, &mut content).unwrap(), 8);
            assert_eq!(&content[..8], b"scratch\n");
            let on_disk = if body.len() > 256 << 10 { 1 } else { 0 };
            assert_eq!(spooled.left(), (0, on_disk));
            drop(request);
            assert_eq!(spooled.left(), (0, 0));
        }
    }
}

#[tokio::test]
async fn content_read_from_the_spool_file_is_the_content_that_was_sent() {
    let spooled = spool();
    let body = large();
    let arriving = in_pieces(&body, 10_007);
    let request = receive(arriving, Some(&sign(&body)), &required(), &spooled.limits)
        .await
        .unwrap();
    let entry = request.context.get("large").unwrap();
    let Kind::File { offset, size } = entry.kind else {
        panic!("{entry:?}")
    };
    let mut content = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = request
            .context
            .read(entry, content.len() as u64, &mut buffer)
            .unwrap();
        if count == 0 {
            break;
        }
        content.extend_from_slice(&buffer[..count]);
    }
    let start = usize::try_from(offset).unwrap();
    assert!(content == body[start..start + usize::try_from(size).unwrap()]);
    assert_eq!(request.context.read(entry, u64::MAX, &mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn sealed_secrets_are_passed_on_unchanged() {
    let body = tar(&[
        ("com.openfaas.docker.config", CONFIG),
        ("com.openfaas.secrets", b"version: v1\n"),
        ("context/Dockerfile", b""),
    ]);
    let request = receive(
        in_pieces(&body, 100),
        Some(&sign(&body)),
        &required(),
        &spool().limits,
    )
    .await
    .unwrap();
    assert_eq!(request.sealed_secrets.as_deref(), Some(&b"version: v1\n"[..]));
}

#[tokio::test]
async fn a_body_without_a_valid_signature_header_is_not_read() {
    let limits = spool().limits;
    for (signature, expected) in [
        (None, "not signed"),
        (Some(""), "64"),
        (Some("sha1=00"), "64"),
        (Some("sha256=zz"), "64"),
    ] {
        let error = receive(untouched(), signature, &required(), &limits)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::Unauthorized);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_signature_is_valid_with_any_of_the_keys_and_with_no_other() {
    let spooled = spool();
    let both = required_with("new\nthe key\n");
    let body = good();
    assert!(
        receive(in_pieces(&body, 999), Some(&sign(&body)), &both, &spooled.limits)
            .await
            .is_ok()
    );
    let other = signature::sign(&key("other"), &body);
    let error = spooled.rejection(&body, Some(&other)).await;
    assert!(matches!(error, RequestError::WrongSignature));
    // A signature of the body before it was changed.
    let mut changed = body.clone();
    changed[600] ^= 1;
    assert!(matches!(
        spooled.rejection(&changed, Some(&sign(&body))).await,
        RequestError::WrongSignature
    ));
    assert!(matches!(
        spooled.rejection(&body[..1000], Some(&sign(&body))).await,
        RequestError::WrongSignature
    ));
}

#[tokio::test]
async fn errors_in_the_tar_are_not_reported_to_a_caller_without_the_key() {
    let spooled = spool();
    for body in [&b"no tar at all"[..], &[0; 4096], &tar(&[("x", b"")])] {
        let error = spooled.rejection(body, Some(&sign(b"something else"))).await;
        assert!(matches!(error, RequestError::WrongSignature), "{error}");
    }
}

#[tokio::test]
async fn no_signature_is_checked_or_kept_where_signatures_are_disabled() {
    let body = good();
    let limits = spool().limits;
    for signature in [None, Some("sha256=00")] {
        let arriving = in_pieces(&body, 512);
        let request = receive(arriving, signature, &SignatureCheck::Disabled, &limits).await;
        assert_eq!(request.unwrap().signature, None);
    }
}

#[tokio::test]
async fn errors_in_a_signed_body_are_reported() {
    let spooled = spool();
    let dockerfile = ("context/Dockerfile", &b""[..]);
    let cut = &good()[..700];
    for (body, hint) in [
        (Vec::new(), "empty"),
        (b"\x1f\x8b\x08".to_vec(), "gzip"),
        (b"hello".to_vec(), "not a tar"),
        (cut.to_vec(), "cut short"),
        (tar(&[dockerfile]), "com.openfaas.docker.config"),
        (tar(&[("com.openfaas.docker.config", CONFIG)]), "context/"),
        (
            tar(&[("com.openfaas.docker.config", CONFIG), ("context/x", b"")]),
            "context/Dockerfile",
        ),
        (tar(&[("com.openfaas.docker.config", b"{}"), dockerfile]), "image"),
        (tar(&[("com.openfaas.docker.config", b"{"), dockerfile]), "JSON"),
    ] {
        let error = spooled.rejection(&body, Some(&sign(&body))).await;
        assert_eq!(error.kind(), RequestErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    let late = br#"{"image": "hello", "notAfter": "2001-01-01T00:00:00Z"}"#;
    let body = tar(&[("com.openfaas.docker.config", late), dockerfile]);
    let error = spooled.rejection(&body, Some(&sign(&body))).await;
    assert_eq!(error.kind(), RequestErrorKind::Unauthorized);
}

#[tokio::test]
async fn a_body_whose_declared_length_exceeds_the_limit_is_not_read() {
    let mut limits = spool().limits;
    let body = good();
    limits.archive.body = body.len() as u64;
    let declared = || Full::new(Bytes::from(body.clone()));
    assert!(
        receive(declared(), Some(&sign(&body)), &required(), &limits)
            .await
            .is_ok()
    );
    limits.archive.body -= 1;
    let error = receive(declared(), Some(&sign(&body)), &required(), &limits)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::TooLarge);
}

#[tokio::test]
async fn reading_stops_when_the_limit_is_exceeded() {
    let mut spooled = spool();
    spooled.limits.archive.body = 10_000;
    let mut pieces = 0;
    let endless = stream::poll_fn(|_| {
        pieces += 1;
        assert!(pieces <= 11, "the body was read on after the limit");
        std::task::Poll::Ready(Some(Ok(vec![b'x'; 1000])))
    });
    let error = receive(streamed(endless), Some(&sign(b"")), &required(), &spooled.limits)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RequestError::TooLarge { limit: 10_000 }),
        "{error}"
    );
    assert_eq!(spooled.left(), (0, 0));
}

#[test]
fn a_connection_that_breaks_leaves_no_spool_file() {
    one_blocking_thread().block_on(async {
        let spooled = spool();
        let body = large();
        let pieces = [
            Ok(body[..2_000_000].to_vec()),
            Err(io::ErrorKind::ConnectionReset.into()),
        ];
        let arriving = streamed(stream::iter(pieces));
        let error = receive(arriving, Some(&sign(&body)), &required(), &spooled.limits)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::Broken);
        assert!(std::error::Error::source(&error).is_some());
        idle_threads().await;
        assert_eq!(spooled.left(), (0, 0));
    });
}

#[test]
fn a_dropped_request_leaves_no_spool_file() {
    one_blocking_thread().block_on(async {
        let spooled = spool();
        let body = large();
        let signature = sign(&body);
        let check = required();
        let first = stream::iter(
            body[..2_500_000]
                .chunks(100_000)
                .map(|piece| Ok(piece.to_vec()))
                .collect::<Vec<_>>(),
        );
        let arriving = streamed(futures_util::StreamExt::chain(first, stream::pending()));
        let mut request = Box::pin(receive(arriving, Some(&signature), &check, &spooled.limits));
        // Until everything sent has been processed and is in a file, while the caller stalls. There are fewer pieces than
        // rounds, and each round processes at least one.
        let mut rounds = 0;
        while spooled.left() != (0, 1) {
            rounds += 1;
            assert!(rounds < 100, "the body is not spooled");
            tokio::select! {
                biased;
                _ = &mut request => panic!("the body has not ended"),
                () = idle_threads() => {}
            }
        }
        drop(request);
        idle_threads().await;
        assert_eq!(spooled.left(), (0, 0));
    });
}

#[tokio::test]
async fn a_failure_of_the_spool_is_the_platforms() {
    let spooled = spool();
    let limits = RequestLimits::new(100 << 20, spooled.dir.path().join("missing"), quota());
    let body = large();
    let error = receive(
        in_pieces(&body, 1 << 20),
        Some(&sign(&body)),
        &required(),
        &limits,
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::Platform);
    assert!(error.to_string().contains("missing"), "{error}");
}

/// Returns a runtime that runs blocking work on a single thread, and so one after the other.
fn one_blocking_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap()
}

/// Waits until all blocking work has been done, on [`one_blocking_thread`].
async fn idle_threads() {
    tokio::task::yield_now().await;
    tokio::task::spawn_blocking(|| ()).await.unwrap();
}

#[tokio::test]
async fn a_stalled_body_is_reported_with_the_limit() {
    let spooled = spool();
    let limit = Duration::from_secs(7);
    let pieces = stream::iter([
        Ok(Frame::data(Bytes::from_static(b"half"))),
        Err(function_host::BodyError::Stalled { limit }),
    ]);

    let error = receive(
        StreamBody::new(pieces),
        Some(&sign(b"")),
        &required(),
        &spooled.limits,
    )
    .await
    .unwrap_err();

    assert!(error.to_string().contains("for 7s"), "{error}");
    assert_eq!((error.kind(), spooled.left()), (RequestErrorKind::Broken, (0, 0)));
}

#[tokio::test]
async fn the_time_of_submission_is_that_of_the_config_or_the_gateway() {
    let spooled = spool();
    let now = SystemTime::now();
    let ago = |seconds| now - Duration::from_secs(seconds);
    let config = |seconds| {
        let submitted_at = time::format_rfc3339_nanos(ago(seconds));
        format!(r#"{{"image": "a", "submittedAt": "{submitted_at}"}}"#)
    };
    let gateway = |seconds| {
        let at = ago(seconds).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        at.as_nanos().to_string()
    };
    for (content, start_time, expected) in [
        (config(9), Some(gateway(5)), (ago(9), SubmissionSource::Config)),
        (config(9), None, (ago(9), SubmissionSource::Config)),
        (
            r#"{"image": "a"}"#.to_owned(),
            Some(gateway(5)),
            (ago(5), SubmissionSource::Gateway),
        ),
    ] {
        let body = tar(&[
            ("context/Dockerfile", b"FROM scratch"),
            ("com.openfaas.docker.config", content.as_bytes()),
        ]);
        let head = head(Some(&sign(&body)), start_time.as_deref());
        let request = super::receive(in_pieces(&body, 999), head, &required(), &spooled.limits)
            .await
            .unwrap();
        let SubmittedAt { at, source } = request.submitted_at;
        assert_eq!((at, source), expected);
        assert_eq!((request.warnings, request.is_single_use), (Vec::new(), false));
    }
}

#[tokio::test]
async fn a_dated_and_signed_request_is_built_only_once_where_ages_are_limited() {
    let mut spooled = spool();
    spooled.limits.freshness = Freshness::Limited {
        max_age: Duration::from_secs(60),
        is_required: true,
    };
    let body = |seconds: u64| {
        let submitted_at = time::format_rfc3339_nanos(SystemTime::now() - Duration::from_secs(seconds));
        let config = format!(r#"{{"image": "a", "submittedAt": "{submitted_at}"}}"#);
        tar(&[
            ("context/Dockerfile", b"FROM scratch"),
            ("com.openfaas.docker.config", config.as_bytes()),
        ])
    };
    for (check, is_single_use) in [(required(), true), (SignatureCheck::Disabled, false)] {
        let fresh = body(30);
        let request = receive(
            in_pieces(&fresh, 999),
            Some(&sign(&fresh)),
            &check,
            &spooled.limits,
        )
        .await;
        assert_eq!(request.unwrap().is_single_use, is_single_use);
    }
    for (body, reason) in [(body(90), "max_age"), (good(), "require_fresh")] {
        let error = spooled.rejection(&body, Some(&sign(&body))).await;
        assert!(
            error.to_string().contains(reason) && error.kind() == RequestErrorKind::Invalid,
            "{error}"
        );
        assert!(error.is_from_verified_caller());
    }
}
