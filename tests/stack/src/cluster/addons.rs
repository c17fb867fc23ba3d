//! What runs on every cluster: CoreDNS, a registry, volumes and OpenFaaS. The manifests are in `tests/stack/cluster`.

use super::{
    Cluster,
    address::{DNS_SERVICE_ADDRESS, GATEWAY_NODE_PORT, REGISTRY_PORT, REGISTRY_SERVICE_ADDRESS},
    images::SystemImage,
    plan::{ClusterProvider, NODE_NAME},
    spec::CONTAINERD_SOCKET,
    supervisor::VOLUMES_DATA,
};
use crate::{
    command::{new_command, run_program, run_program_with_input},
    control,
    credentials::Login,
    error::Result,
    progress::ProgressSink,
};

/// The number of the cluster's volumes. There is no provisioner: a claim is bound to one of these.
const VOLUMES: usize = 24;

/// The longest time until a Deployment of the cluster is available, in the notation of kubectl.
const ROLLOUT_TIMEOUT: &str = "--timeout=180s";

/// The Deployments that a start waits for, with their namespaces.
const DEPLOYMENTS: [(&str, &str); 5] = [
    ("kube-system", "coredns"),
    ("registry", "registry"),
    ("openfaas", "nats"),
    ("openfaas", "gateway"),
    ("openfaas", "queue-worker"),
];

/// The timeout of a call in the gateway and the provider; a build is one call (docs/pitfalls.md#upstream-timeout).
const CALL_TIMEOUT_SETTING: &str = "35m";

/// Imports the images, creates or updates the objects of every cluster, and waits until its node and its Deployments
/// are ready.
pub(crate) async fn import_images_apply_manifests_and_wait(
    cluster: &Cluster,
    progress: &ProgressSink,
) -> Result<()> {
    let programs = &cluster.plan.programs;
    // The socket is in the cluster's own /run.
    let supervisor = control::supervisor_pid(&cluster.dir.control_socket())?;
    let socket = format!("/proc/{supervisor}/root{CONTAINERD_SOCKET}");
    let ctr_images = || {
        let mut ctr = new_command(programs.ctr());
        ctr.args(["--address", &socket, "--namespace", "k8s.io", "images"]);
        ctr
    };
    let imported = run_program(ctr_images().args(["list", "--quiet"])).await?;
    // A cluster with another archive is replaced by an empty one, so that images that are there are those of the
    // archive.
    if SystemImage::ALL
        .iter()
        .any(|image| !lists_image(&imported, *image))
    {
        run_program(ctr_images().arg("import").arg(&cluster.plan.images)).await?;
        progress.emit_progress_line("images", "imported");
    }
    let kubectl = || {
        let mut kubectl = new_command(programs.kubectl());
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig());
        kubectl
    };
    let manifests = manifests(&cluster.plan.provider, &cluster.gateway_login()?);
    run_program_with_input(kubectl().args(["apply", "--filename=-"]), manifests.as_bytes()).await?;
    let node = format!("node/{NODE_NAME}");
    run_program(kubectl().args(["wait", "--for=condition=Ready", &node, ROLLOUT_TIMEOUT])).await?;
    progress.emit_progress_line("node", "ready");
    for (namespace, name) in DEPLOYMENTS {
        let deployment = format!("deployment/{name}");
        let mut wait = kubectl();
        wait.args([
            "--namespace",
            namespace,
            "rollout",
            "status",
            &deployment,
            ROLLOUT_TIMEOUT,
        ]);
        run_program(&mut wait).await?;
        progress.emit_progress_line(name, "ready");
    }
    Ok(())
}

/// Returns whether a list of references, one on each line, has that of an image.
fn lists_image(list: &[u8], image: SystemImage) -> bool {
    let list = String::from_utf8_lossy(list);
    list.lines().any(|line| line == image.reference())
}

/// Returns the names of the volumes, which are also the names of their directories.
pub(crate) fn volume_names() -> impl Iterator<Item = String> {
    (1..=VOLUMES).map(|number| format!("volume-{number}"))
}

/// Returns the manifests of the objects of every cluster.
fn manifests(provider: &ClusterProvider, gateway: &Login) -> String {
    let mut all = [
        include_str!("../../cluster/coredns.yaml"),
        include_str!("../../cluster/registry.yaml"),
        include_str!("../../cluster/storage-class.yaml"),
        include_str!("../../cluster/openfaas.yaml"),
    ]
    .map(str::to_owned)
    .to_vec();
    for name in volume_names() {
        let path = format!("{VOLUMES_DATA}/{name}");
        let volume = include_str!("../../cluster/volume.yaml");
        all.push(volume.replace("@NAME@", &name).replace("@PATH@", &path));
    }
    let values = [
        ("@COREDNS_IMAGE@", SystemImage::Coredns.reference()),
        ("@REGISTRY_IMAGE@", SystemImage::Registry.reference()),
        ("@GATEWAY_IMAGE@", SystemImage::Gateway.reference()),
        ("@PROVIDER_IMAGE@", SystemImage::Provider.reference()),
        ("@NATS_IMAGE@", SystemImage::Nats.reference()),
        ("@QUEUE_WORKER_IMAGE@", SystemImage::QueueWorker.reference()),
        ("@PROVIDER_ARGUMENTS@", provider.arguments().to_owned()),
        ("@GATEWAY_USER@", gateway.user.clone()),
        ("@GATEWAY_PASSWORD@", gateway.password.clone()),
        ("@GATEWAY_NODE_PORT@", GATEWAY_NODE_PORT.to_string()),
        ("@CALL_TIMEOUT@", CALL_TIMEOUT_SETTING.to_owned()),
        ("@DNS_ADDRESS@", DNS_SERVICE_ADDRESS.to_string()),
        ("@REGISTRY_ADDRESS@", REGISTRY_SERVICE_ADDRESS.to_string()),
        ("@REGISTRY_PORT@", REGISTRY_PORT.to_string()),
    ];
    let fill = |text: String, (name, value): &(&str, String)| text.replace(name, value);
    values.iter().fold(all.join("---\n"), fill)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::ProgramFileStamp;

    #[test]
    fn no_manifest_has_a_placeholder_left_and_every_image_is_imported_not_pulled() {
        let provider =
            ClusterProvider::Embedded(ProgramFileStamp::read_stamp(Path::new("/proc/self/exe")).unwrap());
        let gateway = Login {
            user: "admin".into(),
            password: "p".into(),
        };
        let manifests = manifests(&provider, &gateway);
        assert!(!manifests.contains('@'), "{manifests}");
        let images = manifests.matches(" image: ").count();
        assert_eq!(images, 6);
        assert_eq!(manifests.matches("imagePullPolicy: Never").count(), images);
        assert_eq!(manifests.matches("kind: PersistentVolume\n").count(), VOLUMES);
    }
}
