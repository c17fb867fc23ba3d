//! Results of builds that the builder sends to the URL in a config's `notify`.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha256;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, certificates::CertificateAuthority,
    client::SigningClient, testbed::Testbed, tls_proxy::TlsProxy,
};
use tokio::{net::TcpListener, sync::mpsc};

/// The limit on the time until a result arrives.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// The channel to which the receiver sends its requests, and their number.
type ReceiverState = (mpsc::UnboundedSender<(HeaderMap, Bytes)>, Arc<AtomicUsize>);

/// Passes each request on to the test, and answers 503 to the first one and 204 to all others.
async fn record_result_and_fail_first(
    State((received, count)): State<ReceiverState>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    received.send((headers, body)).ok();
    match count.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NO_CONTENT,
    }
}

#[tokio::test]
async fn a_result_is_sent_over_tls_until_the_receiver_accepts_it() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let (sender, mut received) = mpsc::unbounded_channel();
    let url = format!("http://{}", listener.local_addr()?);
    let app = Router::new()
        .fallback(record_result_and_fail_first)
        .with_state((sender, Arc::default()));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let authority = CertificateAuthority::new("results-ca")?;
    let proxy = TlsProxy::start_to(&url, &authority.issue_certificate("localhost")?).await?;
    let host = proxy.url().strip_prefix("https://").context("an https URL")?;
    let settings = [("allowed_sources", host), ("insecure", "false")];
    let secrets = [("gateway-ca", &*authority.certificate_pem())];
    let builder =
        BuilderProcess::start_with_secrets_replacing_registry_config(&testbed, &settings, &secrets).await?;
    let tar = BuildContext::dockerfile("FROM scratch\nLABEL by=notify\n").tar_with_config_last(&json!({
        "image": testbed.image_name("e2e/notified", "1"),
        "skipPush": true,
        "notify": format!("{}/results?of=e2e", proxy.url()),
    }))?;

    let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;

    assert_eq!(reply.status, 200, "{}", reply.text);
    let key = std::fs::read_to_string(&testbed.stack.payload_secret)?;
    for _ in 0..2 {
        let next = tokio::time::timeout(RECEIPT_TIMEOUT, received.recv()).await;
        let (headers, body) = next.context("no result arrived")?.context("the receiver runs")?;
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&body)?,
            reply.json_or_error_text()
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(key.trim().as_bytes())?;
        mac.update(&body);
        let expected = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
        assert_eq!(headers["x-build-signature"], expected.as_str());
    }
    serving.abort();
    Ok(())
}

/// The queue-worker posts the builder's answer, whatever its status is, and tries no second time.
#[tokio::test]
async fn the_queue_posts_the_result_of_a_success_and_of_a_failure_to_the_callback_url() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    // The queue-worker is in the stack's network.
    let listener = TcpListener::bind((IpAddr::from(testbed.stack.machine_address()?), 0)).await?;
    let url = format!("http://{}/results?of=e2e", listener.local_addr()?);
    let (sender, mut received) = mpsc::unbounded_channel();
    let app = Router::new()
        .fallback(record_result_and_fail_first)
        .with_state((sender, Arc::default()));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let key = std::fs::read(&testbed.stack.payload_secret)?;
    let client = SigningClient::new(testbed.functions.queued_call_url("builder-fn"), &key)?;
    for (dockerfile, function_status, status) in [
        ("FROM scratch\nLABEL by=callback\n", "200", "success"),
        ("FROM scratch\nCOPY missing /\n", "422", "failed"),
    ] {
        let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&json!({
            "image": testbed.image_name("e2e/called-back", "1"),
            "skipPush": true,
        }))?;

        let accepted = client
            .post_signed_with_headers(tar, &[("X-Callback-Url", &url)])
            .await?;

        assert_eq!(accepted.status, 202, "{}", accepted.text);
        let next = tokio::time::timeout(RECEIPT_TIMEOUT, received.recv()).await;
        let (headers, body) = next.context("no result arrived")?.context("the receiver runs")?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("x-call-id"), accepted.call_id.as_deref(), "{headers:?}");
        assert_eq!(header("x-function-status"), Some(function_status), "{headers:?}");
        let result: serde_json::Value = serde_json::from_slice(&body)?;
        assert_eq!(result["status"], status, "{result:#}");
    }
    assert!(received.try_recv().is_err(), "a result was posted twice");
    serving.abort();
    Ok(())
}
