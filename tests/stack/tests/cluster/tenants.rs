//! Attacks of one tenant on another on the chart's daemon, and what it fetches for both.

use std::sync::Arc;

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    actors::{BAIT, REDIRECTING_PORT, address_of},
    chart,
    gateway::{Answer, GatewayClient},
    hostile::{Tenants, merge},
    kubectl_output,
    source::tar_of,
    step::{Tenant, log_of},
};

/// What only the victim may read.
const SECRET: &str = "the-secret-of-the-victim";

/// Builds a Dockerfile with further members of the configuration.
async fn build_with(gateway: &GatewayClient, tenant: &Tenant, dockerfile: &str, more: Value) -> Answer {
    let mut config = json!({ "image": tenant.image("built"), "noCache": true });
    merge(&mut config, more);
    gateway
        .build_with_key(tenant.key.as_bytes(), tar_of(&config, dockerfile, &[]))
        .await
}

/// Asserts that a build was rejected by a rule of the policy, whose name the answer has, before anything was built.
fn assert_rejected_by(answer: &Answer, rule: &str) {
    assert!(
        matches!(answer.status, 400..=422) && answer.body.contains(rule),
        "no rejection by {rule}: {answer:?}"
    );
    assert!(!answer.body.contains(SECRET), "{answer:?}");
}

/// Asserts that a build succeeded and that its steps printed a text.
fn assert_prints(answer: &Answer, text: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        output_of_steps(answer).contains(text),
        "{text} is missing: {answer:?}"
    );
}

/// Returns the lines of a build's log that its steps printed.
fn output_of_steps(answer: &Answer) -> String {
    let log = log_of(answer);
    let lines = log.lines().filter_map(|line| line.strip_prefix("l: "));
    lines.map(|line| format!("{line}\n")).collect()
}

pub(crate) async fn a_tenant_neither_reads_nor_overwrites_what_another_has(
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
    tenants: &Tenants,
) {
    let Tenants { victim, mallory } = tenants;
    let private = victim.image("private");
    let image = json!({ "image": private });
    let pushed = build_with(
        gateway,
        victim,
        &victim.dockerfile(&format!("RUN echo {SECRET} >/secret")),
        image.clone(),
    )
    .await;
    assert_eq!(pushed.status, 200, "{pushed:?}");
    let digest = pushed.json()["digest"].clone();
    assert!(
        digest
            .as_str()
            .is_some_and(|digest| digest.starts_with("sha256:")),
        "{pushed:?}"
    );

    for reading in [
        format!("COPY --from={private} /secret /read\nRUN cat /read"),
        format!("RUN --mount=type=bind,from={private},target=/from cat /from/secret"),
    ] {
        // The victim may do what the attacker tries.
        let read = build_with(gateway, victim, &victim.dockerfile(&reading), json!({})).await;
        assert_prints(&read, SECRET);
        let read = build_with(gateway, mallory, &mallory.dockerfile(&reading), json!({})).await;
        assert!(read.status != 200 && !read.body.contains(SECRET), "{read:?}");
        assert!(read.body.contains("read.images"), "{read:?}");
    }

    let overwriting = mallory.dockerfile("RUN echo of-mallory >/secret");
    assert_rejected_by(&build_with(gateway, mallory, &overwriting, image).await, "push");
    let cache = json!({ "cacheTo": [format!("type=registry,ref={private},mode=max")], "skipPush": true });
    assert_rejected_by(&build_with(gateway, mallory, &overwriting, cache).await, "push");
    assert_eq!(digest_in_registry(cluster, victim, "private"), digest);
    // The registry itself would have taken it: it knows no tenants.
    let own = build_with(gateway, mallory, &overwriting, json!({})).await;
    assert_eq!(
        own.json()["digest"],
        digest_in_registry(cluster, mallory, "built")
    );

    // One id of a cache mount is a mount for each tenant. With `noCache`, a mount would be empty each time.
    let run = async |tenant: &Tenant, number: u32, command: &str| {
        let dockerfile = format!("RUN --mount=type=cache,id=shared,target=/cache : {number}; {command}");
        build_with(
            gateway,
            tenant,
            &tenant.dockerfile(&dockerfile),
            json!({ "noCache": false }),
        )
        .await
    };
    let reading = "cat /cache/file || echo empty";
    let written = run(victim, 1, &format!("echo {SECRET} >/cache/file")).await;
    assert_eq!(written.status, 200, "{written:?}");
    let read = run(mallory, 2, reading).await;
    assert_prints(&read, " empty");
    assert!(!output_of_steps(&read).contains(SECRET), "{read:?}");
    let written = run(mallory, 3, "echo poison >/cache/file").await;
    assert_eq!(written.status, 200, "{written:?}");
    assert_prints(&run(mallory, 4, reading).await, " poison");
    let read = run(victim, 5, reading).await;
    assert_prints(&read, SECRET);
    assert!(!output_of_steps(&read).contains(" poison"), "{read:?}");
}

/// Returns the digest that the registry has for an image of a tenant.
fn digest_in_registry(cluster: &Cluster, tenant: &Tenant, name: &str) -> Value {
    let url = format!("http://{}/v2/{}/{name}/manifests/1", tenant.registry, tenant.name);
    let types = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
    let exec = ["exec", "outsider", "--", "curl", "--silent", "--fail", "--head"];
    let headers = kubectl_output(cluster, &[&exec[..], &["--header", types, &url]].concat(), "");
    let digest = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("docker-content-digest")
            .then(|| value.trim())
    });
    json!(digest.unwrap())
}

/// Builds an `ADD` of each kind that leads to a metadata service. `is_egress_filtered` says whether policies keep the
/// daemon from it: without them, a redirect leads there, which shows that the attack works.
pub(crate) async fn add_from_metadata_services(
    cluster: &Cluster,
    gateway: &GatewayClient,
    tenants: &Tenants,
    is_egress_filtered: bool,
) {
    let mallory = &tenants.mallory;
    let bait = address_of(cluster, BAIT);
    let add = async |url: &str| {
        let dockerfile = mallory.dockerfile(&format!("ADD {url} /added\nRUN cat /added"));
        build_with(gateway, mallory, &dockerfile, json!({ "skipPush": true })).await
    };
    assert_prints(&add(&format!("http://{bait}/index.html")).await, "bait");
    for address in crate::actors::METADATA_ADDRESSES {
        let added = add(&format!("http://{address}/index.html")).await;
        assert!(
            matches!(added.status, 400..=422) && !added.body.contains("bait\""),
            "{address}: {added:?}"
        );
    }
    let redirected = add(&format!("http://{bait}:{REDIRECTING_PORT}/index.html")).await;
    println!(
        "ADD by a redirect, with policies {is_egress_filtered}: {}",
        redirected.status
    );
    if is_egress_filtered {
        assert!(
            redirected.status != 200 && redirected.body.contains("169.254.169.254"),
            "{redirected:?}"
        );
    } else {
        assert_prints(&redirected, "bait");
    }
}

pub(crate) async fn the_steps_of_a_tenant_alone_reach_what_is_opened_for_it(
    cluster: &Cluster,
    gateway: &GatewayClient,
    tenants: &Tenants,
) {
    let bait = address_of(cluster, BAIT);
    let mut values = tenants.values(cluster);
    let opened = json!({ "victim": { "internetToSteps": false, "allowedToSteps": [format!("{bait}/32")] } });
    merge(
        &mut values,
        json!({ "networkPolicy": { "allowedToBuilds": [], "tenants": opened } }),
    );
    chart::upgrade_with(cluster, &values);
    let script = format!("if nc -w 4 {bait} 80 -e /bin/true; then echo reached; else echo closed; fi\n");
    let [victim, mallory] = [&tenants.victim, &tenants.mallory]
        .map(|tenant| async { tenant.run_in_step(gateway, "network", &script).await });
    assert!(victim.await.contains("reached"));
    assert!(mallory.await.contains("closed"));
    // The daemon does not fetch from it for anybody.
    for tenant in [&tenants.victim, &tenants.mallory] {
        let add = tenant.dockerfile(&format!("ADD http://{bait}/index.html /added"));
        let added = build_with(gateway, tenant, &add, json!({ "skipPush": true })).await;
        assert!(
            added.status != 200 && added.body.contains("connection refused"),
            "{added:?}"
        );
    }
}
