//! Checks of the invariants of receiving a request's body, for any bytes.

use std::io::Write as _;
use std::time::SystemTime;

use builder_fn::context::{Kind, SpoolQuota};
use builder_fn::request::{
    RequestError, RequestHead, RequestLimits, SignatureCheck, SignatureKeys, receive_body,
};
use bytes::Bytes;
use function_host::Secret;
use function_host::prometheus::IntGauge;
use function_host::unverified::HeldResource;
use http_body_util::Full;

use super::{fix_checksums, paths_and_entries};

/// Receives the bytes as the body of a request, and checks the outcome: once without signatures, and once from a caller
/// without the key.
///
/// The first byte says whether checksums are corrected first, and whether the body is compressed then.
pub(crate) async fn check_receiving_of_request(mode_and_body: &[u8]) {
    let Some((mode, body)) = mode_and_body.split_first() else {
        return;
    };
    let mut body = body.to_vec();
    if mode & 1 == 1 {
        fix_checksums(&mut body);
    }
    let body = Bytes::from(match mode >> 1 & 3 {
        0 | 1 => body,
        2 => compress_gzip(&body),
        _ => compress_zstd(&body),
    });
    let spooled = IntGauge::new("used", "used").expect("gauge");
    let mut limits = RequestLimits::new(
        2 << 20,
        std::env::temp_dir(),
        SpoolQuota::new(3 << 20, spooled.clone()),
    );
    limits.spool.memory = 8 << 10;
    let send = |check, signature: Option<&str>| {
        let head = RequestHead {
            signature: signature.map(str::to_owned),
            tenant: None,
            start_time: None,
            is_asynchronous: false,
            is_resumed: false,
            is_json: false,
            arrived: SystemTime::now(),
        };
        let body = Full::new(body.clone());
        let limits = &limits;
        async move {
            let body = receive_body(body, &head, check, limits).await?;
            body.into_build_request(head, limits).await
        }
    };

    match send(&SignatureCheck::Disabled, None).await {
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
        Ok(request) => {
            let held = u64::try_from(spooled.get()).expect("a count");
            assert!(held <= 2 << 20, "{held} bytes of {}", body.len());
            assert!(
                request
                    .warnings
                    .iter()
                    .all(|text| !text.contains(char::is_control))
            );
            let files = request.received_files().expect("a tar");
            for (_, entry) in paths_and_entries(files.index()) {
                let size = match entry.kind {
                    Kind::File { offset, size } if offset + size <= held => size,
                    Kind::File { .. } => panic!("{entry:?} is not in the {held} bytes"),
                    _ => continue,
                };
                let mut content = vec![0; usize::try_from(size).expect("no larger than the limit")];
                files
                    .read_file_exact(entry, 0, &mut content)
                    .expect("the whole content");
            }
        }
    }
    assert_eq!(spooled.get(), 0, "the quota is released");

    let keys = SignatureKeys::new(&Secret::new("key"), false).expect("a key");
    let signature = format!("sha256={}", "0".repeat(64));
    match send(&SignatureCheck::Required(keys), Some(&signature)).await {
        Err(RequestError::WrongSignature) => {}
        other => panic!("a caller without the key gets {other:?}"),
    }
    assert_eq!(spooled.get(), 0, "the quota is released");
    let budget = limits.unverified.budget();
    let held = [HeldResource::Memory, HeldResource::Disk].map(|resource| budget.held_bytes(resource));
    assert_eq!(
        (held, budget.undisplaced_sender_count()),
        ([0, 0], 0),
        "the budget is released"
    );
}

fn compress_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).expect("gzip");
    packed.finish().expect("gzip")
}

fn compress_zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("zstd")
}
