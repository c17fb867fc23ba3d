use function_host::Secret;
use function_host::prometheus::IntGauge;
use function_host::signature::{HmacKeys, sign_body};

use super::*;
use crate::context::SpoolQuota;
use crate::request::SignatureKeys;

fn spool_settings(folder: &tempfile::TempDir) -> SpoolSettings {
    SpoolSettings {
        folder: folder.path().to_owned(),
        memory: 1 << 20,
        quota: SpoolQuota::new(u64::MAX, IntGauge::new("used", "used").unwrap()),
    }
}

fn worker_for_signature(
    keys: &SignatureKeys,
    signature: &str,
    is_hashed_last: bool,
    settings: &SpoolSettings,
) -> BodyWorker {
    BodyWorker {
        verifier: Some(BodyVerifier::new(keys, signature).unwrap()),
        is_signature_required: true,
        is_hashed_last,
        spool: Spool::uncounted(settings),
    }
}

/// Processes a signed body, and hashes the stored body after that if `hashes_stored_body`. Returns whether it is
/// verified.
fn is_verified_after(is_hashed_last: bool, hashes_stored_body: bool) -> bool {
    let (body, folder) = (vec![7; 100_000], tempfile::tempdir().unwrap());
    let secret = Secret::new("the key");
    let keys = SignatureKeys::new(&secret, false).unwrap();
    let signature = sign_body(&HmacKeys::new(&secret).unwrap(), &body);
    let settings = spool_settings(&folder);
    let mut worker = worker_for_signature(&keys, &signature, is_hashed_last, &settings);
    let mut batch = PieceBatch::default();
    batch.add_piece(Bytes::from(body));
    worker
        .store_batch_and_hash_unless_hashed_last(batch, false)
        .unwrap();
    let mut hashed = 0;
    while hashes_stored_body && hashed < 100_000 {
        hashed += worker.hash_stored_piece(hashed, 30_000).unwrap();
    }
    worker.verify_and_count_against_quota(&settings).is_ok()
}

#[test]
fn a_body_that_is_hashed_last_is_not_hashed_while_it_arrives() {
    assert!(is_verified_after(false, false));
    assert!(!is_verified_after(true, false), "it was hashed while it arrived");
    assert!(is_verified_after(true, true));
}

#[test]
fn a_body_whose_verifier_is_missing_is_not_accepted_without_a_signature() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, secret) = (spool_settings(&folder), Secret::new("the key"));
    let keys = SignatureKeys::new(&secret, false).unwrap();
    let signature = sign_body(&HmacKeys::new(&secret).unwrap(), b"");
    let mut worker = worker_for_signature(&keys, &signature, false, &settings);
    assert!(worker.take_verifier_unless_hashed_last().is_some());
    assert!(matches!(
        worker.verify_and_count_against_quota(&settings),
        Err(RequestError::Interrupted)
    ));
}
