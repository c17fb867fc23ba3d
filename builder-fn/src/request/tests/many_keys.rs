//! Tests of bodies that the keys of many tenants could have signed.

use std::sync::Arc;

use function_host::policy::Policy;
use proptest::prelude::*;

use super::*;

/// Returns the check of a request that names no tenant, by one key of each of `count` tenants.
fn signature_check_with_one_key_per_tenant(count: usize) -> SignatureCheck {
    let tenants = (0..count).map(|number| format!(r#""t{number}": {{"keys": ["k{number}"]}}"#));
    let tenants = tenants.collect::<Vec<_>>().join(", ");
    let policy = Policy::parse(&format!(r#"{{"tenants": {{{tenants}}}}}"#)).unwrap();
    let secrets = (0..count).map(|number| {
        let tenant = policy.tenant(&format!("t{number}")).unwrap();
        (Arc::clone(tenant), Secret::new(key_of_numbered_tenant(number)))
    });
    SignatureCheck::Required(SignatureKeys::of_tenants(secrets, true))
}

fn key_of_numbered_tenant(tenant: usize) -> String {
    format!("the key of tenant {tenant}")
}

fn sign_as_numbered_tenant(tenant: usize, body: &[u8]) -> String {
    signature::sign_body(&hmac_keys(&key_of_numbered_tenant(tenant)), body)
}

/// Receives a body in pieces, and returns the name of the tenant whose key signed it.
fn receive_and_return_signer(
    body: &[u8],
    piece_bytes: usize,
    signature: &str,
    check: &SignatureCheck,
) -> Result<String, RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = spool_folder();
        let head = request_head(Some(signature), None);
        let verified = receive_body(
            body_cut_into_pieces(body, piece_bytes),
            &head,
            check,
            &folder.limits,
        )
        .await?;
        assert_eq!(verified.spool.len(), body.len() as u64);
        let tenant = verified.signature.as_ref().unwrap().tenant().unwrap();
        Ok(tenant.name().to_string())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_body_without_a_tenants_name_is_verified_by_the_key_of_its_signer_and_no_other(
        count in 1..40_usize,
        signer in 0..40_usize,
        length in prop_oneof![0..2000_usize, 60_000..70_000_usize, 200_000..700_000_usize],
        piece in 1000..300_000_usize,
    ) {
        let check = signature_check_with_one_key_per_tenant(count);
        let body = vec![7; length];
        let signer = signer % count;
        let found = receive_and_return_signer(&body, piece, &sign_as_numbered_tenant(signer, &body), &check);
        prop_assert_eq!(found.unwrap(), format!("t{signer}"));
        let unknown = receive_and_return_signer(&body, piece, &sign_as_numbered_tenant(99, &body), &check);
        prop_assert!(matches!(unknown, Err(RequestError::WrongSignature)));
    }
}

#[tokio::test]
async fn many_keys_limit_the_length_of_a_body_that_names_no_tenant() {
    let folder = spool_folder();
    let receive = async |keys: usize, length: usize| {
        let body = vec![7; length];
        let head = request_head(Some(&sign_as_numbered_tenant(0, &body)), None);
        let arriving = body_cut_into_pieces(&body, 1 << 20);
        receive_body(
            arriving,
            &head,
            &signature_check_with_one_key_per_tenant(keys),
            &folder.limits,
        )
        .await
    };
    let error = receive(64, (4 << 20) + 1).await.unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::TooLarge);
    assert!(error.to_string().contains("X-Slipway-Tenant"), "{error}");
    assert!(receive(64, 4 << 20).await.is_ok());
    assert!(receive(8, (4 << 20) + 1).await.is_ok(), "few keys have a limit");
}

#[tokio::test]
async fn a_body_that_declares_more_than_the_limit_for_many_keys_is_rejected_unread() {
    let head = request_head(Some(&sign_as_numbered_tenant(0, b"")), None);
    let declared = BodyOfLengthPanickingWhenRead { length: 5 << 20 };
    let error = receive_body(
        declared,
        &head,
        &signature_check_with_one_key_per_tenant(64),
        &spool_folder().limits,
    )
    .await;
    assert!(matches!(
        error,
        Err(RequestError::TooLargeWithoutTenant { limit }) if limit == 4 << 20
    ));
}
