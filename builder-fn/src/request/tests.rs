//! Tests of bodies that arrive in pieces: which are accepted, why others are rejected, and that they leave
//! nothing behind.

mod many_keys;
mod unverified;

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task;
use std::time::{Duration, SystemTime};

use function_host::signature::HmacKeys;
use function_host::{Secret, signature};
use futures_util::stream::{self, Stream};
use http_body::{Frame, SizeHint};
use http_body_util::{Full, StreamBody};
use tempfile::TempDir;

use super::*;
use crate::context::Kind;

const VALID_CONFIG_JSON: &[u8] = br#"{"image": "example.com/hello:v1", "soon": 1}"#;

fn unlimited_quota() -> SpoolQuota {
    SpoolQuota::new(u64::MAX, test_gauge())
}

fn test_gauge() -> function_host::prometheus::IntGauge {
    function_host::prometheus::IntGauge::new("used", "used").unwrap()
}

fn hmac_keys(lines: &str) -> HmacKeys {
    HmacKeys::new(&Secret::new(lines)).unwrap()
}

fn signature_required() -> SignatureCheck {
    signature_required_with_keys("the key")
}

fn signature_required_with_keys(lines: &str) -> SignatureCheck {
    SignatureCheck::Required(SignatureKeys::new(&Secret::new(lines), true).unwrap())
}

fn sign_body(body: &[u8]) -> String {
    signature::sign_body(&hmac_keys("the key"), body)
}

fn tar_with_files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn valid_tar() -> Vec<u8> {
    tar_with_files(&[
        ("context/Dockerfile", b"FROM scratch\n"),
        ("com.openfaas.docker.config", VALID_CONFIG_JSON),
    ])
}

fn tar_of_3_megabytes() -> Vec<u8> {
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
    tar_with_files(&[
        ("com.openfaas.docker.config", VALID_CONFIG_JSON),
        ("context/large", &content),
        ("context/Dockerfile", b"FROM scratch\n"),
    ])
}

/// Receives a request that arrives now, and whose only header is `signature`.
async fn receive_with_signature<B>(
    body: B,
    signature: Option<&str>,
    check: &SignatureCheck,
    limits: &RequestLimits,
) -> Result<BuildRequest, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    receive_with_head(body, request_head(signature, None), check, limits).await
}

async fn receive_with_head<B>(
    body: B,
    head: RequestHead,
    check: &SignatureCheck,
    limits: &RequestLimits,
) -> Result<BuildRequest, RequestError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let body = receive_body(body, &head, check, limits).await?;
    body.into_build_request(head, limits).await
}

fn request_head(signature: Option<&str>, start_time: Option<&str>) -> RequestHead {
    RequestHead {
        signature: signature.map(str::to_owned),
        tenant: None,
        start_time: start_time.map(|value| value.as_bytes().to_vec()),
        is_asynchronous: false,
        is_resumed: false,
        is_json: false,
        arrived: SystemTime::now(),
    }
}

/// Returns a body of `pieces`, without a declared length.
fn body_of_pieces(
    pieces: impl Stream<Item = Result<Vec<u8>, io::Error>>,
) -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    use futures_util::StreamExt;
    StreamBody::new(pieces.map(|piece| piece.map(|piece| Frame::data(Bytes::from(piece)))))
}

fn body_cut_into_pieces(body: &[u8], size: usize) -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    let pieces: Vec<_> = body.chunks(size).map(|piece| Ok(piece.to_vec())).collect();
    body_of_pieces(stream::iter(pieces))
}

/// Returns a body that panics when it is read.
fn body_that_panics_when_read() -> impl http_body::Body<Data = Bytes, Error = io::Error> {
    body_of_pieces(stream::poll_fn(|_| panic!("the body was read")))
}

/// A body that declares its length, and panics when it is read.
struct BodyOfLengthPanickingWhenRead {
    length: u64,
}

impl http_body::Body for BodyOfLengthPanickingWhenRead {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        panic!("the body was read")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

/// A folder for spool files, and the limits of requests that are spooled in it.
struct SpoolFolder {
    dir: TempDir,
    limits: RequestLimits,
}

fn spool_folder() -> SpoolFolder {
    let dir = TempDir::new().unwrap();
    let limits = RequestLimits::new(100 << 20, dir.path(), unlimited_quota());
    SpoolFolder { dir, limits }
}

impl SpoolFolder {
    /// Returns the number of names in the spool folder, and of its files that this process has open.
    fn count_names_and_open_files(&self) -> (usize, usize) {
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

    /// Sends a body, which has to be rejected without leaving a spool file, and returns the error.
    async fn error_of_body_rejected_without_leftovers(
        &self,
        body: &[u8],
        signature: Option<&str>,
    ) -> RequestError {
        let error = receive_with_signature(
            body_cut_into_pieces(body, 1000),
            signature,
            &signature_required(),
            &self.limits,
        )
        .await
        .unwrap_err();
        assert_eq!(self.count_names_and_open_files(), (0, 0), "{error}");
        error
    }
}

#[tokio::test]
async fn a_signed_tar_becomes_the_same_build_request_whatever_pieces_it_arrives_in() {
    let spooled = spool_folder();
    for body in [valid_tar(), tar_of_3_megabytes()] {
        for size in [1000, 64 << 10, 1 << 20, body.len()] {
            let arriving = body_cut_into_pieces(&body, size);
            let request = receive_with_signature(
                arriving,
                Some(&sign_body(&body)),
                &signature_required(),
                &spooled.limits,
            )
            .await
            .unwrap();
            assert_eq!(request.config.image.to_string(), "example.com/hello:v1");
            assert_eq!(request.body_bytes, body.len() as u64);
            let signature = request.signature.as_ref().map(VerifiedSignature::as_str);
            assert_eq!(signature, Some(sign_body(&body).as_str()));
            assert_eq!(
                request.warnings,
                ["key \"soon\" in com.openfaas.docker.config is ignored"]
            );
            assert!(request.sealed_secrets.is_none());
            let context = request.received_files().unwrap();
            let dockerfile = context.get("Dockerfile").unwrap();
            let mut content = [0; 20];
            assert_eq!(context.read_file(dockerfile, 5, &mut content).unwrap(), 8);
            assert_eq!(&content[..8], b"scratch\n");
            let on_disk = if body.len() > 256 << 10 { 1 } else { 0 };
            assert_eq!(spooled.count_names_and_open_files(), (0, on_disk));
            drop((request, context));
            assert_eq!(spooled.count_names_and_open_files(), (0, 0));
        }
    }
}

#[tokio::test]
async fn content_read_from_the_spool_file_is_the_content_that_was_sent() {
    let spooled = spool_folder();
    let body = tar_of_3_megabytes();
    let arriving = body_cut_into_pieces(&body, 10_007);
    let request = receive_with_signature(
        arriving,
        Some(&sign_body(&body)),
        &signature_required(),
        &spooled.limits,
    )
    .await
    .unwrap();
    let context = request.received_files().unwrap();
    let entry = context.get("large").unwrap();
    let Kind::File { offset, size } = entry.kind else {
        panic!("{entry:?}")
    };
    let mut content = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = context
            .read_file(entry, content.len() as u64, &mut buffer)
            .unwrap();
        if count == 0 {
            break;
        }
        content.extend_from_slice(&buffer[..count]);
    }
    let start = usize::try_from(offset).unwrap();
    assert!(content == body[start..start + usize::try_from(size).unwrap()]);
    assert_eq!(context.read_file(entry, u64::MAX, &mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn a_build_request_has_the_sealed_secrets_of_the_tar_unchanged() {
    let body = tar_with_files(&[
        ("com.openfaas.docker.config", VALID_CONFIG_JSON),
        ("com.openfaas.secrets", b"version: v1\n"),
        ("context/Dockerfile", b""),
    ]);
    let request = receive_with_signature(
        body_cut_into_pieces(&body, 100),
        Some(&sign_body(&body)),
        &signature_required(),
        &spool_folder().limits,
    )
    .await
    .unwrap();
    assert_eq!(request.sealed_secrets.as_deref(), Some(&b"version: v1\n"[..]));
}

#[tokio::test]
async fn a_body_whose_signature_header_is_missing_or_malformed_is_not_read() {
    let limits = spool_folder().limits;
    for (signature, expected) in [
        (None, "not signed"),
        (Some(""), "64"),
        (Some("sha1=00"), "64"),
        (Some("sha256=zz"), "64"),
    ] {
        let error = receive_with_signature(
            body_that_panics_when_read(),
            signature,
            &signature_required(),
            &limits,
        )
        .await
        .unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::Unauthorized);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_signature_is_valid_with_the_second_of_two_keys_and_not_with_another_key_or_body() {
    let spooled = spool_folder();
    let both = signature_required_with_keys("new\nthe key\n");
    let body = valid_tar();
    assert!(
        receive_with_signature(
            body_cut_into_pieces(&body, 999),
            Some(&sign_body(&body)),
            &both,
            &spooled.limits
        )
        .await
        .is_ok()
    );
    let other = signature::sign_body(&hmac_keys("other"), &body);
    let error = spooled
        .error_of_body_rejected_without_leftovers(&body, Some(&other))
        .await;
    assert!(matches!(error, RequestError::WrongSignature));
    // A signature of the body before it was changed.
    let mut changed = body.clone();
    changed[600] ^= 1;
    assert!(matches!(
        spooled
            .error_of_body_rejected_without_leftovers(&changed, Some(&sign_body(&body)))
            .await,
        RequestError::WrongSignature
    ));
    assert!(matches!(
        spooled
            .error_of_body_rejected_without_leftovers(&body[..1000], Some(&sign_body(&body)))
            .await,
        RequestError::WrongSignature
    ));
}

#[tokio::test]
async fn errors_in_the_tar_are_not_reported_to_a_caller_without_the_key() {
    let spooled = spool_folder();
    for body in [&b"no tar at all"[..], &[0; 4096], &tar_with_files(&[("x", b"")])] {
        let error = spooled
            .error_of_body_rejected_without_leftovers(body, Some(&sign_body(b"something else")))
            .await;
        assert!(matches!(error, RequestError::WrongSignature), "{error}");
    }
}

#[tokio::test]
async fn no_signature_is_checked_or_kept_where_signatures_are_disabled() {
    let body = valid_tar();
    let limits = spool_folder().limits;
    for signature in [None, Some("sha256=00")] {
        let arriving = body_cut_into_pieces(&body, 512);
        let request = receive_with_signature(arriving, signature, &SignatureCheck::Disabled, &limits).await;
        assert_eq!(request.unwrap().signature, None);
    }
}

#[tokio::test]
async fn errors_in_a_body_are_reported_to_a_caller_with_the_key() {
    let spooled = spool_folder();
    let dockerfile = ("context/Dockerfile", &b""[..]);
    let cut = &valid_tar()[..700];
    for (body, hint) in [
        (Vec::new(), "empty"),
        (b"\x1f\x8b\x08".to_vec(), "gzip"),
        (b"hello".to_vec(), "not a tar"),
        (cut.to_vec(), "cut short"),
        (tar_with_files(&[dockerfile]), "com.openfaas.docker.config"),
        (
            tar_with_files(&[("com.openfaas.docker.config", VALID_CONFIG_JSON)]),
            "context/",
        ),
        (
            tar_with_files(&[
                ("com.openfaas.docker.config", VALID_CONFIG_JSON),
                ("context/x", b""),
            ]),
            "context/Dockerfile",
        ),
        (
            tar_with_files(&[("com.openfaas.docker.config", b"{}"), dockerfile]),
            "image",
        ),
        (
            tar_with_files(&[("com.openfaas.docker.config", b"{"), dockerfile]),
            "JSON",
        ),
    ] {
        let error = spooled
            .error_of_body_rejected_without_leftovers(&body, Some(&sign_body(&body)))
            .await;
        assert_eq!(error.kind(), RequestErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    let late = br#"{"image": "hello", "notAfter": "2001-01-01T00:00:00Z"}"#;
    let body = tar_with_files(&[("com.openfaas.docker.config", late), dockerfile]);
    let error = spooled
        .error_of_body_rejected_without_leftovers(&body, Some(&sign_body(&body)))
        .await;
    assert_eq!(error.kind(), RequestErrorKind::Unauthorized);
}

#[tokio::test]
async fn a_body_one_byte_over_the_limit_is_rejected() {
    let mut limits = spool_folder().limits;
    let body = valid_tar();
    limits.archive.body = body.len() as u64;
    let declared = || Full::new(Bytes::from(body.clone()));
    assert!(
        receive_with_signature(
            declared(),
            Some(&sign_body(&body)),
            &signature_required(),
            &limits
        )
        .await
        .is_ok()
    );
    limits.archive.body -= 1;
    let error = receive_with_signature(
        declared(),
        Some(&sign_body(&body)),
        &signature_required(),
        &limits,
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::TooLarge);
}

#[tokio::test]
async fn a_body_that_declares_more_than_the_limit_is_rejected_unread() {
    let mut limits = spool_folder().limits;
    limits.archive.body = 10_000;
    let declared = BodyOfLengthPanickingWhenRead { length: 10_001 };
    let error = receive_with_signature(declared, Some(&sign_body(b"")), &signature_required(), &limits)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::TooLarge);
}

#[tokio::test]
async fn a_body_without_a_declared_length_is_read_no_further_than_the_limit() {
    let mut spooled = spool_folder();
    spooled.limits.archive.body = 10_000;
    let mut pieces = 0;
    let endless = stream::poll_fn(|_| {
        pieces += 1;
        assert!(pieces <= 11, "the body was read on after the limit");
        task::Poll::Ready(Some(Ok(vec![b'x'; 1000])))
    });
    let error = receive_with_signature(
        body_of_pieces(endless),
        Some(&sign_body(b"")),
        &signature_required(),
        &spooled.limits,
    )
    .await
    .unwrap_err();
    assert!(
        matches!(error, RequestError::TooLarge { limit: 10_000 }),
        "{error}"
    );
    assert_eq!(spooled.count_names_and_open_files(), (0, 0));
}

#[test]
fn a_request_whose_connection_breaks_leaves_no_spool_file() {
    runtime_with_one_blocking_thread().block_on(async {
        let spooled = spool_folder();
        let body = tar_of_3_megabytes();
        let pieces = [
            Ok(body[..2_000_000].to_vec()),
            Err(io::ErrorKind::ConnectionReset.into()),
        ];
        let arriving = body_of_pieces(stream::iter(pieces));
        let error = receive_with_signature(
            arriving,
            Some(&sign_body(&body)),
            &signature_required(),
            &spooled.limits,
        )
        .await
        .unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::Broken);
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(spooled.count_names_and_open_files(), (0, 0));
    });
}

#[test]
fn a_dropped_request_leaves_no_spool_file() {
    runtime_with_one_blocking_thread().block_on(async {
        let spooled = spool_folder();
        let body = tar_of_3_megabytes();
        let signature = sign_body(&body);
        let check = signature_required();
        let first = stream::iter(
            body[..2_500_000]
                .chunks(100_000)
                .map(|piece| Ok(piece.to_vec()))
                .collect::<Vec<_>>(),
        );
        let arriving = body_of_pieces(futures_util::StreamExt::chain(first, stream::pending()));
        let mut request = Box::pin(receive_with_signature(
            arriving,
            Some(&signature),
            &check,
            &spooled.limits,
        ));
        // Until everything sent has been processed and is in a file, while the caller stalls. There are fewer pieces
        // than rounds, and each round processes at least one.
        let mut rounds = 0;
        while spooled.count_names_and_open_files() != (0, 1) {
            rounds += 1;
            assert!(rounds < 100, "the body is not spooled");
            tokio::select! {
                biased;
                _ = &mut request => panic!("the body has not ended"),
                () = wait_until_blocking_work_is_done() => {}
            }
        }
        drop(request);
        // What is under way ends, and then the file is freed.
        wait_until_blocking_work_is_done().await;
        wait_until_blocking_work_is_done().await;
        assert_eq!(spooled.count_names_and_open_files(), (0, 0));
    });
}

#[tokio::test]
async fn a_failure_to_write_the_spool_file_is_an_error_of_the_platform() {
    let spooled = spool_folder();
    let limits = RequestLimits::new(100 << 20, spooled.dir.path().join("missing"), unlimited_quota());
    let body = tar_of_3_megabytes();
    let error = receive_with_signature(
        body_cut_into_pieces(&body, 1 << 20),
        Some(&sign_body(&body)),
        &signature_required(),
        &limits,
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::Platform);
    assert!(error.to_string().contains("missing"), "{error}");
}

/// Returns a runtime that runs blocking work on a single thread, and so one after the other.
fn runtime_with_one_blocking_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap()
}

/// Waits until all blocking work has been done, on [`runtime_with_one_blocking_thread`].
async fn wait_until_blocking_work_is_done() {
    tokio::task::yield_now().await;
    tokio::task::spawn_blocking(|| ()).await.unwrap();
}

#[tokio::test]
async fn a_body_that_stalls_is_rejected_with_the_time_limit_in_the_error() {
    let spooled = spool_folder();
    let limit = Duration::from_secs(7);
    let pieces = stream::iter([
        Ok(Frame::data(Bytes::from_static(b"half"))),
        Err(function_host::BodyError::Stalled { limit }),
    ]);

    let error = receive_with_signature(
        StreamBody::new(pieces),
        Some(&sign_body(b"")),
        &signature_required(),
        &spooled.limits,
    )
    .await
    .unwrap_err();

    assert!(error.to_string().contains("for 7s"), "{error}");
    assert_eq!(
        (error.kind(), spooled.count_names_and_open_files()),
        (RequestErrorKind::TooSlow, (0, 0))
    );
}

#[tokio::test]
async fn a_build_request_has_the_submission_time_of_the_config_or_else_of_the_gateway() {
    let spooled = spool_folder();
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
        (
            config(9),
            Some(gateway(5)),
            (ago(9), SubmissionTimeSource::Config),
        ),
        (config(9), None, (ago(9), SubmissionTimeSource::Config)),
        (
            r#"{"image": "a"}"#.to_owned(),
            Some(gateway(5)),
            (ago(5), SubmissionTimeSource::Gateway),
        ),
    ] {
        let body = tar_with_files(&[
            ("context/Dockerfile", b"FROM scratch"),
            ("com.openfaas.docker.config", content.as_bytes()),
        ]);
        let head = request_head(Some(&sign_body(&body)), start_time.as_deref());
        let request = receive_with_head(
            body_cut_into_pieces(&body, 999),
            head,
            &signature_required(),
            &spooled.limits,
        )
        .await
        .unwrap();
        let SubmittedAt { at, source } = request.submitted_at;
        assert_eq!((at, source), expected);
        assert_eq!((request.warnings, request.is_single_use), (Vec::new(), false));
    }
}

#[tokio::test]
async fn a_signed_request_with_a_time_of_its_own_is_single_use_if_ages_are_limited() {
    let mut spooled = spool_folder();
    spooled.limits.freshness = FreshnessLimit::Limited {
        max_age: Duration::from_secs(60),
        is_required: true,
    };
    let body = |seconds: u64| {
        let submitted_at = time::format_rfc3339_nanos(SystemTime::now() - Duration::from_secs(seconds));
        let config = format!(r#"{{"image": "a", "submittedAt": "{submitted_at}"}}"#);
        tar_with_files(&[
            ("context/Dockerfile", b"FROM scratch"),
            ("com.openfaas.docker.config", config.as_bytes()),
        ])
    };
    for (check, is_single_use) in [(signature_required(), true), (SignatureCheck::Disabled, false)] {
        let fresh = body(30);
        let request = receive_with_signature(
            body_cut_into_pieces(&fresh, 999),
            Some(&sign_body(&fresh)),
            &check,
            &spooled.limits,
        )
        .await;
        assert_eq!(request.unwrap().is_single_use, is_single_use);
    }
    for (body, reason) in [(body(90), "max_age"), (valid_tar(), "require_fresh")] {
        let error = spooled
            .error_of_body_rejected_without_leftovers(&body, Some(&sign_body(&body)))
            .await;
        assert!(
            error.to_string().contains(reason) && error.kind() == RequestErrorKind::Invalid,
            "{error}"
        );
        assert!(error.is_from_verified_caller());
    }
}
