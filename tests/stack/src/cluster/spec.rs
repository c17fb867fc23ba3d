//! Specifications of a cluster's parts: command, configuration files and readiness check.

use std::{path::PathBuf, process::Command};

use serde_json::{Value, json};

use super::{
    address::{
        API_PORT, DNS_SERVICE_ADDRESS, ETCD_PEER_PORT, ETCD_PORT, FIREWALL_HEALTH_PORT, NODE_PODS_SUBNET,
        PODS_SUBNET, PROXY_HEALTH_PORT, SERVICES_SUBNET, registry_host_and_port,
    },
    images::{CNI_PLUGINS_DIRECTORY, SystemImage},
    part::ClusterPart,
    pki::{ADMINISTRATOR, kubeconfig_of, pki_file},
    plan::{ClusterPlan, NODE_NAME},
    supervisor::{CONTAINERD_DATA, ETCD_DATA, KERNEL_SETTINGS_FOR_KUBELET, KUBELET_DATA},
};
use crate::{
    directories::StackDir,
    error::Result,
    supervisor::{
        HttpCommandLogOrRouteCheck, PartSource, PartStartSpec, ProcessReaper, command_with_clean_environment,
        egress_spec,
    },
};

/// The address of containerd's socket; `/run` is the cluster's own.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The text in the logs of the controller manager and the scheduler that shows that they work.
const SERVING_TEXT: &str = "Serving securely";

/// Mounts the files in the directory `$0` over the settings of the kernel at the same paths, and becomes the kubelet.
const KUBELET_START_SCRIPT: &str = r#"
(cd "$0" && for file in */* */*/*; do
    [ ! -f "$file" ] || mount --bind "$file" "/proc/sys/$file" || exit
done) && exec "$@""#;

/// The cluster's directory and plan, from which the specifications of its parts are made.
#[derive(Debug, Clone)]
pub(crate) struct ClusterPartSource {
    pub(crate) dir: StackDir,
    pub(crate) plan: ClusterPlan,
}

impl PartSource for ClusterPartSource {
    type Part = ClusterPart;

    fn spec_of(&self, part: ClusterPart) -> PartStartSpec {
        match part {
            ClusterPart::Egress => egress_spec(self.command("nsenter")),
            ClusterPart::Etcd => self.etcd_spec(),
            ClusterPart::Containerd => self.containerd_spec(),
            ClusterPart::ApiServer => self.api_server_spec(),
            ClusterPart::ControllerManager => self.controller_manager_spec(),
            ClusterPart::Scheduler => self.scheduler_spec(),
            ClusterPart::Kubelet => self.kubelet_spec(),
            ClusterPart::Proxy => self.proxy_spec(),
            ClusterPart::Firewall => self.firewall_spec(),
        }
    }

    fn log_file_of(&self, part: ClusterPart) -> PathBuf {
        self.dir.part_log_file(&part.to_string())
    }

    fn prepare_start_of_all(&self) -> Result<()> {
        Ok(())
    }

    async fn prepare_start_of(&self, _: ClusterPart, _: &ProcessReaper) -> Result<()> {
        Ok(())
    }
}

impl ClusterPartSource {
    fn command(&self, program: impl Into<PathBuf>) -> Command {
        let programs = &self.plan.programs;
        command_with_clean_environment(
            &self.dir,
            program,
            &[
                &programs.containerd.join("containerd"),
                &programs.runc.join("runc"),
            ],
        )
    }

    /// Creates a command for a program of Kubernetes.
    fn kubernetes(&self, program: &str) -> Command {
        self.command(self.plan.programs.kubernetes.join(program))
    }

    /// Creates a command for kubectl with the administrator's kubeconfig.
    fn kubectl(&self) -> Command {
        let mut kubectl = self.command(self.plan.programs.kubectl());
        kubectl.arg(flag("kubeconfig", self.kubeconfig(ADMINISTRATOR)));
        kubectl
    }

    fn kubeconfig(&self, client: &str) -> String {
        kubeconfig_of(&self.dir, client).display().to_string()
    }

    fn pki(&self, name: &str, kind: &str) -> String {
        pki_file(&self.dir, name, kind).display().to_string()
    }

    fn config_file(&self, name: &str) -> PathBuf {
        self.dir.config_directory().join(name)
    }

    fn etcd_spec(&self) -> PartStartSpec {
        let (clients, peers) = (loopback_url(ETCD_PORT), loopback_url(ETCD_PEER_PORT));
        // The module's main package is its root, so the program is named by the module's path.
        let mut command = self.command(self.plan.programs.etcd.join("server"));
        command.args([
            flag("name", NODE_NAME),
            flag("data-dir", ETCD_DATA),
            flag("listen-client-urls", &clients),
            flag("advertise-client-urls", &clients),
            flag("listen-peer-urls", &peers),
            flag("initial-advertise-peer-urls", &peers),
            flag("initial-cluster", format!("{NODE_NAME}={peers}")),
            flag("log-level", "warn"),
        ]);
        // Nothing is kept of a cluster that was stopped, so it need not survive a crash of the machine.
        command.arg("--unsafe-no-fsync");
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Http {
                url: format!("{clients}/health"),
                status: 200,
            },
            files: Vec::new(),
        }
    }

    fn containerd_spec(&self) -> PartStartSpec {
        let path = self.config_file("containerd.toml");
        let mut command = self.command(self.plan.programs.containerd.join("containerd"));
        command.arg("--config").arg(&path);
        let mut ready = self.command(self.plan.programs.ctr());
        ready.args(["--address", CONTAINERD_SOCKET, "version"]);
        let registry = registry_host_and_port();
        let registry_file = self.registries_directory().join(&registry).join("hosts.toml");
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Command(ready),
            files: vec![
                (path, self.containerd_config()),
                (
                    registry_file,
                    format!(
                        "server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n  \
                         capabilities = [\"pull\", \"resolve\"]\n"
                    ),
                ),
                (
                    self.cni_directory().join("10-slipway.conflist"),
                    cni_config().to_string(),
                ),
            ],
        }
    }

    /// Returns the directory with one directory for each registry that is reached without TLS.
    fn registries_directory(&self) -> PathBuf {
        self.config_file("registries")
    }

    fn cni_directory(&self) -> PathBuf {
        self.config_file("cni")
    }

    fn containerd_config(&self) -> String {
        let programs = &self.plan.programs;
        format!(
            "version = 3\nroot = '{CONTAINERD_DATA}'\nstate = '/run/containerd/state'\nimports = []\n\
             [grpc]\n  address = '{CONTAINERD_SOCKET}'\n\
             [plugins.'io.containerd.internal.v1.opt']\n  path = '{CONTAINERD_DATA}/opt'\n\
             [plugins.'io.containerd.nri.v1.nri']\n  disable = true\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = '{pause}'\n\
             [plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '{registries}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\n\
             # A machine's processes may lack CAP_SYS_RESOURCE, which a lower score than their own needs.\n  \
             restrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dirs = ['{CNI_PLUGINS_DIRECTORY}']\n  \
             conf_dir = '{cni}'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  \
             runtime_type = 'io.containerd.runc.v2'\n  runtime_path = '{shim}'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n  \
             BinaryName = '{runc}'\n  Root = '/run/runc'\n  SystemdCgroup = false\n",
            pause = SystemImage::Pause.reference(),
            registries = self.registries_directory().display(),
            cni = self.cni_directory().display(),
            shim = programs.containerd.join("containerd-shim-runc-v2").display(),
            runc = programs.runc.join("runc").display(),
        )
    }

    fn api_server_spec(&self) -> PartStartSpec {
        let mut command = self.kubernetes("kube-apiserver");
        let node = self.plan.node_address();
        command.args([
            flag("etcd-servers", loopback_url(ETCD_PORT)),
            flag("advertise-address", node),
            flag("bind-address", node),
            flag("secure-port", API_PORT),
            flag("service-cluster-ip-range", SERVICES_SUBNET),
            flag("allow-privileged", true),
            flag("authorization-mode", "Node,RBAC"),
            flag("enable-admission-plugins", "NodeRestriction"),
            flag("client-ca-file", self.pki("authority", "crt")),
            flag("tls-cert-file", self.pki("api-server", "crt")),
            flag("tls-private-key-file", self.pki("api-server", "key")),
            flag(
                "kubelet-client-certificate",
                self.pki("api-server-to-kubelet", "crt"),
            ),
            flag("kubelet-client-key", self.pki("api-server-to-kubelet", "key")),
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag(
                "service-account-issuer",
                "https://kubernetes.default.svc.cluster.local",
            ),
            flag("service-account-key-file", self.pki("service-accounts", "pub")),
            flag(
                "service-account-signing-key-file",
                self.pki("service-accounts", "key"),
            ),
        ]);
        let mut ready = self.kubectl();
        ready.args(["get", "--raw", "/readyz"]);
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Command(ready),
            files: Vec::new(),
        }
    }

    fn controller_manager_spec(&self) -> PartStartSpec {
        let mut command = self.kubernetes("kube-controller-manager");
        command.args(self.flags_of_control_loop("controller-manager"));
        command.args([
            flag(
                "service-account-private-key-file",
                self.pki("service-accounts", "key"),
            ),
            flag("root-ca-file", self.pki("authority", "crt")),
            flag("use-service-account-credentials", true),
        ]);
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::LogContains(SERVING_TEXT),
            files: Vec::new(),
        }
    }

    fn scheduler_spec(&self) -> PartStartSpec {
        let mut command = self.kubernetes("kube-scheduler");
        command.args(self.flags_of_control_loop("scheduler"));
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::LogContains(SERVING_TEXT),
            files: Vec::new(),
        }
    }

    /// Returns the flags that the controller manager and the scheduler have in common.
    fn flags_of_control_loop(&self, client: &str) -> Vec<String> {
        let kubeconfig = self.kubeconfig(client);
        vec![
            flag("kubeconfig", &kubeconfig),
            flag("authentication-kubeconfig", &kubeconfig),
            flag("authorization-kubeconfig", &kubeconfig),
            flag("bind-address", "127.0.0.1"),
            flag("leader-elect", false),
        ]
    }

    fn kubelet_spec(&self) -> PartStartSpec {
        let path = self.config_file("kubelet.json");
        // In a mount namespace of its own, because a pod with a user namespace may not mount its /proc where a part of
        // another /proc is covered. What the kubelet mounts for pods is seen outside, as its directory is shared.
        let mut command = self.command("unshare");
        command.args([
            "--mount",
            "--propagation=unchanged",
            "sh",
            "-c",
            KUBELET_START_SCRIPT,
        ]);
        command
            .arg(KERNEL_SETTINGS_FOR_KUBELET)
            .arg(self.plan.programs.kubernetes.join("kubelet"));
        command.args([
            flag("config", path.display()),
            flag("kubeconfig", self.kubeconfig("kubelet")),
            flag("hostname-override", NODE_NAME),
            flag("node-ip", self.plan.node_address()),
            flag("root-dir", KUBELET_DATA),
            flag("cert-dir", format!("{KUBELET_DATA}/pki")),
        ]);
        let mut ready = self.kubectl();
        ready.args(["get", "node", NODE_NAME]);
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Command(ready),
            files: vec![(path, self.kubelet_config().to_string())],
        }
    }

    fn kubelet_config(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // From 1.35 on, the kubelet does not start on a machine with version 1 unless it is told to.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "/",
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "address": self.plan.node_address().to_string(),
            "healthzBindAddress": "127.0.0.1",
            "readOnlyPort": 0,
            "volumePluginDir": format!("{KUBELET_DATA}/volume-plugins"),
            "resolvConf": "/etc/resolv.conf",
            "clusterDNS": [DNS_SERVICE_ADDRESS.to_string()],
            "clusterDomain": "cluster.local",
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.pki("authority", "crt") },
            },
            "authorization": { "mode": "Webhook" },
            // The disk is the machine's, and how full it is is not the cluster's concern.
            "evictionHard": {
                "memory.available": "200Mi",
                "nodefs.available": "2%",
                "imagefs.available": "2%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            // A lower score than its own needs CAP_SYS_RESOURCE.
            "oomScoreAdj": 0,
        })
    }

    fn proxy_spec(&self) -> PartStartSpec {
        let path = self.config_file("proxy.json");
        let mut command = self.kubernetes("kube-proxy");
        command.arg(flag("config", path.display()));
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Http {
                url: format!("{}/healthz", loopback_url(PROXY_HEALTH_PORT)),
                status: 200,
            },
            files: vec![(path, self.proxy_config().to_string())],
        }
    }

    fn proxy_config(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": PODS_SUBNET,
            "hostnameOverride": NODE_NAME,
            "healthzBindAddress": format!("127.0.0.1:{PROXY_HEALTH_PORT}"),
            "metricsBindAddress": "127.0.0.1:10249",
            "clientConnection": { "kubeconfig": self.kubeconfig("proxy") },
            "iptables": { "localhostNodePorts": false, "syncPeriod": "30s", "minSyncPeriod": "200ms" },
            // Zeros leave the kernel's settings alone; the limit of connections is the whole machine's.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "oomScoreAdj": 0,
        })
    }

    fn firewall_spec(&self) -> PartStartSpec {
        let mut command = self.command(self.plan.programs.kube_router.join("kube-router"));
        command.args([
            flag("run-firewall", true),
            flag("run-router", false),
            flag("run-service-proxy", false),
            flag("enable-cni", false),
            flag("enable-ipv6", false),
            flag("kubeconfig", self.kubeconfig(ADMINISTRATOR)),
            flag("hostname-override", NODE_NAME),
            flag("health-port", FIREWALL_HEALTH_PORT),
            flag("service-cluster-ip-range", SERVICES_SUBNET),
        ]);
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Http {
                url: format!(
                    "http://{}:{FIREWALL_HEALTH_PORT}/healthz",
                    self.plan.node_address()
                ),
                status: 200,
            },
            files: Vec::new(),
        }
    }
}

/// Returns the configuration of the pods' network. All its traffic is routed, none bridged, so Services work whatever
/// the machine's setting `bridge-nf-call-iptables` is.
fn cni_config() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "slipway",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": NODE_PODS_SUBNET }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn loopback_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        address::StackNumber,
        cluster::plan::{ClusterProgramDirectories, ClusterProvider},
        part::SupervisedPart as _,
        plan::ProgramFileStamp,
    };

    fn source() -> ClusterPartSource {
        let program = |name: &str| Path::new("/tools").join(name);
        ClusterPartSource {
            dir: StackDir {
                name: "x".into(),
                root: "/clusters/x".into(),
            },
            plan: ClusterPlan {
                number: StackNumber::FIRST_STACK_NUMBER,
                launcher: ProgramFileStamp::read_stamp(Path::new("/proc/self/exe")).unwrap(),
                programs: ClusterProgramDirectories {
                    kubernetes: program("kubernetes"),
                    etcd: program("etcd"),
                    coredns: program("coredns"),
                    kube_router: program("kube-router"),
                    containerd: program("containerd"),
                    runc: program("runc"),
                    helm: program("helm"),
                    openfaas: program("openfaas"),
                    buildkit: program("buildkit"),
                },
                provider: ClusterProvider::Embedded(
                    ProgramFileStamp::read_stamp(Path::new("/proc/self/exe")).unwrap(),
                ),
                images: "/images.tar".into(),
            },
        }
    }

    #[test]
    fn no_part_uses_the_default_directories_of_kubernetes_and_containerd_in_etc_opt_and_var_run() {
        for part in ClusterPart::START_GROUPS.concat() {
            let spec = source().spec_of(part);
            let arguments = spec.command.get_args().map(|argument| argument.to_string_lossy());
            let mut texts = arguments.map(String::from).collect::<Vec<_>>();
            for (path, text) in spec.files {
                assert!(
                    path.starts_with("/clusters/x/config"),
                    "{part}: {}",
                    path.display()
                );
                texts.push(text);
            }
            for text in texts {
                for wrong in [
                    "/etc/cni",
                    "/etc/containerd",
                    "/etc/kubernetes",
                    "/opt/",
                    "/var/run/",
                ] {
                    assert!(!text.contains(wrong), "{part}: {text}");
                }
            }
        }
    }

    #[test]
    fn the_node_pulls_from_the_clusters_registry_without_tls() {
        let files = source().spec_of(ClusterPart::Containerd).files;
        let (_, hosts) = files
            .iter()
            .find(|(path, _)| path.ends_with("registries/10.96.50.50:5000/hosts.toml"))
            .unwrap();
        assert!(hosts.contains("[host.\"http://10.96.50.50:5000\"]"), "{hosts}");
        let (_, config) = &files[0];
        assert!(
            config.contains("config_path = '/clusters/x/config/registries'"),
            "{config}"
        );
    }
}
