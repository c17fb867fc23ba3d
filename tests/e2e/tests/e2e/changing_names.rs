//! Names that are resolved to private addresses, from the beginning or later, in what callers make builder-fn connect
//! to.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    changing_dns::{ChangingDns, ChangingName},
    private_network::LoopbackOnlyNamespace,
    testbed::Testbed,
};

/// An address that is a public one for builder-fn. In the test's network it is on the loopback interface.
const PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// The private addresses, with what rejections call them.
const PRIVATE_NAMES_ADDRESSES_AND_KINDS: [(&str, Ipv4Addr, &str); 4] = [
    ("loopback.names.test", Ipv4Addr::LOCALHOST, "a loopback address"),
    (
        "private.names.test",
        Ipv4Addr::new(10, 1, 2, 3),
        "a private address",
    ),
    (
        "link-local.names.test",
        Ipv4Addr::new(169, 254, 7, 7),
        "a link-local address or a metadata service",
    ),
    (
        "metadata.names.test",
        Ipv4Addr::new(169, 254, 169, 254),
        "a link-local address or a metadata service",
    ),
];

/// The name that is public for one answer, and a metadata service's from then on; for `url`.
const NAME_CHANGING_FOR_URL: &str = "url.names.test";

/// The name that is public for one answer, and loopback from then on; for `notify`.
const NAME_CHANGING_FOR_NOTIFY: &str = "notify.names.test";

/// The longest time until a notification has failed, with a retry.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(120);

/// Polls the builder, which sends no event, until `count` notifications have failed.
async fn wait_for_failed_notifications(builder: &BuilderProcess, count: f64) -> Result<()> {
    while builder
        .metric_value("slipway_notifications_total{outcome=\"failed\"}")
        .await?
        < count
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Asserts that neither `url` nor `notify` makes the builder connect to a private address, in a network that has a
/// server at each of them.
async fn assert_no_private_server_is_reached(
    testbed: &Testbed,
    network: &LoopbackOnlyNamespace,
    daemon: &BuildkitDaemon,
) -> Result<()> {
    let private = PRIVATE_NAMES_ADDRESSES_AND_KINDS.map(|(_, address, _)| address);
    let addresses: Vec<_> = private
        .iter()
        .skip(1)
        .chain([&PUBLIC_ADDRESS])
        .map(|at| IpAddr::from(*at))
        .collect();
    let extra = network.namespace()?.with_addresses(&addresses)?;
    let servers = private
        .iter()
        .map(|at| BaitServer::start_in_namespace(extra.namespace(), (*at, 80)))
        .collect::<Result<Vec<_>>>()?;
    let public = BaitServer::start_in_namespace(extra.namespace(), (PUBLIC_ADDRESS, 80))?;
    let fixed = PRIVATE_NAMES_ADDRESSES_AND_KINDS.map(|(name, then, _)| ChangingName {
        name,
        first: then,
        answers: 0,
        then,
    });
    let changing = |name, then| ChangingName {
        name,
        first: PUBLIC_ADDRESS,
        answers: 1,
        then,
    };
    let changing = [
        changing(NAME_CHANGING_FOR_URL, private[3]),
        changing(NAME_CHANGING_FOR_NOTIFY, private[0]),
    ];
    let names: Vec<_> = fixed.into_iter().chain(changing).collect();
    let _dns = ChangingDns::start_in_namespace(extra.namespace(), Ipv4Addr::LOCALHOST, &names)?;
    let daemon = daemon.socket_url();
    let settings = [("buildkit_url", daemon.as_str())];
    let builder = BuilderProcess::start_with_resolv_conf_and_no_registry_config(
        testbed,
        &network.resolv_conf_path(),
        &settings,
    )
    .await?;

    let image = testbed.image_name("e2e/changing-names", "1");
    let from_url = async |url: String| {
        let context = json!({ "url": url, "sha256": "0".repeat(64) });
        let request = json!({ "image": image, "skipPush": true, "context": context });
        builder.build_client_with_own_key()?.post_json(&request).await
    };
    for (name, _, kind) in PRIVATE_NAMES_ADDRESSES_AND_KINDS {
        let reply = from_url(format!("http://{name}/a")).await?;
        assert_eq!(reply.status, 403, "{name}: {}", reply.text);
        let expected = format!("context.url: {name} is resolved to {kind}");
        assert!(reply.text_field("error").contains(&expected), "{}", reply.text);
    }
    let reply = from_url(format!(
        "http://{NAME_CHANGING_FOR_URL}/redirect/{NAME_CHANGING_FOR_URL}/a"
    ))
    .await?;
    assert_eq!(reply.status, 403, "{}", reply.text);
    let expected = format!(
        "context.url: {NAME_CHANGING_FOR_URL} is resolved to {}",
        PRIVATE_NAMES_ADDRESSES_AND_KINDS[3].2
    );
    assert!(reply.text_field("error").contains(&expected), "{}", reply.text);
    assert_eq!(
        public.request_paths(),
        [format!("/redirect/{NAME_CHANGING_FOR_URL}/a")]
    );

    let mut failed = 0.0;
    let fixed = PRIVATE_NAMES_ADDRESSES_AND_KINDS
        .map(|(name, _, kind)| (format!("http://{name}/result"), name, kind));
    let changing = format!("http://{NAME_CHANGING_FOR_NOTIFY}/unavailable");
    for (url, name, kind) in fixed.into_iter().chain([(
        changing,
        NAME_CHANGING_FOR_NOTIFY,
        PRIVATE_NAMES_ADDRESSES_AND_KINDS[0].2,
    )]) {
        let config = json!({ "image": image, "skipPush": true, "notify": url });
        let tar =
            BuildContext::dockerfile("FROM scratch\nLABEL by=notify\n").tar_with_config_last(&config)?;
        let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        failed += 1.0;
        let failing = wait_for_failed_notifications(&builder, failed);
        tokio::time::timeout(NOTIFICATION_TIMEOUT, failing)
            .await
            .context(name)??;
        let log = builder.log_text();
        let rejection = log.lines().find(|line| {
            line.contains("a notification failed") && line.contains(name) && line.contains(kind)
        });
        assert!(rejection.is_some(), "{name}: {log}");
    }
    assert_eq!(
        public.request_paths().last().map(String::as_str),
        Some("/unavailable")
    );
    for server in &servers {
        assert_eq!(
            server.request_paths(),
            Vec::<String>::new(),
            "{}",
            server.address()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_becomes_private_is_rejected_by_name_and_not_connected_to_for_url_and_notify()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    // Its socket is reached from every network.
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let network = LoopbackOnlyNamespace::create().await?;
    // Builds the binary where the machine's network is.
    drop(BuilderProcess::start_with_settings(&testbed, &[]).await?);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // Sockets belong to the network of the thread that opens them: this one, and those that its runtime starts.
    let thread = network.namespace()?.spawn_inside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let result = runtime.block_on(assert_no_private_server_is_reached(&testbed, &network, &daemon));
        sender.send(result).ok();
        Ok(())
    });
    receiver.await.context("the test's thread panicked")??;
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the test's thread panicked"))?
}
