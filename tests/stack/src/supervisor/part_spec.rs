//! Specifications of the stack's parts: command, configuration files and readiness check.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    address::{
        BRIDGE_ADDRESS, EGRESS_INTERFACE, NATS_MONITOR_PORT, NATS_PORT, PLAIN_BUILDER_METRICS_PORT,
        PLAIN_BUILDER_PORT, PROVIDER_PORT, REGISTRY_PORT,
    },
    cgroup,
    directories::StackDir,
    error::Result,
    part::StackPart,
    plan::{ProviderChoice, StackPlan},
    supervisor::{
        disk, faasd, mounts, network, parts::PartSource, ready::HttpCommandLogOrRouteCheck,
        reaper::ProcessReaper,
    },
    tools::ToolPaths,
};

/// The timeout of a call in the gateway, the provider and builder-fn; a build is one call
/// (docs/pitfalls.md#upstream-timeout).
const CALL_TIMEOUT_SETTING: &str = "35m";

/// The name of the NATS Streaming cluster.
pub(crate) const NATS_CLUSTER_NAME: &str = "faas-cluster";

/// The text in a queue-worker's log that shows that it receives calls.
const QUEUE_WORKER_READY_TEXT: &str = "Listening on [";

/// The specification of one part.
#[derive(Debug)]
pub(crate) struct PartStartSpec {
    /// The command that starts the part.
    pub(crate) command: Command,
    /// The check whether the part is ready.
    pub(crate) ready: HttpCommandLogOrRouteCheck,
    /// The part's configuration files, which are written before its start.
    pub(crate) files: Vec<(PathBuf, String)>,
}

/// The stack's directory and plan, from which the specifications of its parts are made.
#[derive(Debug, Clone)]
pub(crate) struct StackDirAndPlan {
    pub(crate) dir: StackDir,
    pub(crate) plan: StackPlan,
}

impl PartSource for StackDirAndPlan {
    type Part = StackPart;

    fn spec_of(&self, part: StackPart) -> PartStartSpec {
        match part {
            StackPart::Egress => egress_spec(self.command_with_part_environment("nsenter")),
            StackPart::Registry => self.registry_spec(),
            StackPart::Buildkit => self.buildkit_spec(),
            StackPart::Containerd => self.containerd_spec(),
            StackPart::Nats => self.nats_spec(),
            StackPart::Provider => self.provider_spec(),
            StackPart::Gateway => self.gateway_spec(),
            StackPart::QueueWorker => self.queue_worker_spec(),
            StackPart::Builder => self.builder_spec(),
        }
    }

    fn log_file_of(&self, part: StackPart) -> PathBuf {
        self.dir.part_log_file(part.name())
    }

    fn prepare_start_of_all(&self) -> Result<()> {
        cgroup::create_steps_group_with_limits(&self.plan.step_limits_or_this_machines()?)
    }

    async fn prepare_start_of(&self, part: StackPart, reaper: &ProcessReaper) -> Result<()> {
        match part {
            StackPart::Buildkit => disk::repair_and_remount_unwritable_disk(&self.dir, reaper).await,
            _ => Ok(()),
        }
    }
}

impl StackDirAndPlan {
    /// Returns the path of BuildKit's socket for clients on the machine.
    pub(crate) fn buildkit_socket_path(&self) -> PathBuf {
        self.dir.sockets_directory().join("buildkitd.sock")
    }

    /// Returns the path of containerd's socket for clients on the machine.
    pub(crate) fn containerd_socket_path(&self) -> PathBuf {
        self.dir.sockets_directory().join("containerd.sock")
    }

    /// Creates a command with the environment of every part ([`command_with_clean_environment`]).
    pub(crate) fn command_with_part_environment(&self, program: impl Into<PathBuf>) -> Command {
        let ToolPaths { containerd, runc, .. } = &self.plan.tools;
        command_with_clean_environment(&self.dir, program, &[containerd.as_path(), runc.as_path()])
    }

    fn registry_spec(&self) -> PartStartSpec {
        let config = self.dir.config_directory().join("registry.yml");
        let with_password = self.plan.provider.registry_requires_password();
        let passwords = self.dir.config_directory().join("htpasswd");
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: slipway\n    path: {}\n",
            passwords.display()
        );
        let text = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: true\n  level: warn\nstorage:\n  filesystem:\n    \
             rootdirectory: {data}\n  delete:\n    enabled: true\nhttp:\n  addr: {addr}\n{auth}",
            data = self.dir.part_data_directory("registry").display(),
            // On every address of the stack, because faasd uses a loopback address.
            addr = format_args!(":{REGISTRY_PORT}"),
            auth = if with_password { auth.as_str() } else { "" },
        );
        let mut command = self.command_with_part_environment(&self.plan.registry);
        command.arg("serve").arg(&config);
        PartStartSpec {
            command,
            // A registry that requires a password answers a request without one with 401, which shows that it
            // works.
            ready: HttpCommandLogOrRouteCheck::Http {
                url: format!("http://{}/v2/", self.plan.number.registry_address()),
                status: if with_password { 401 } else { 200 },
            },
            files: vec![(config, text)],
        }
    }

    fn containerd_spec(&self) -> PartStartSpec {
        let config = self.dir.config_directory().join("containerd.toml");
        let socket = self.containerd_socket_path();
        let text = format!(
            "version = 3\nroot = \"{root}\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\"]\n\n[grpc]\n  address = \"{socket}\"\n\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{root}/opt\"\n",
            root = self.dir.part_data_directory("containerd").display(),
            socket = socket.display(),
        );
        let mut command = self.command_with_part_environment(&self.plan.tools.containerd);
        command.arg("--config").arg(&config);
        let mut ready = self.command_with_part_environment(&self.plan.tools.ctr);
        ready.arg("--address").arg(&socket).arg("version");
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Command(ready),
            files: vec![(config, text)],
        }
    }

    fn nats_spec(&self) -> PartStartSpec {
        let mut command = self.command_with_part_environment(&self.plan.tools.nats);
        command.args([
            "-a",
            "127.0.0.1",
            "-p",
            &NATS_PORT.to_string(),
            "-m",
            &NATS_MONITOR_PORT.to_string(),
        ]);
        command
            .args(["-cid", NATS_CLUSTER_NAME, "-store", "file", "-dir"])
            .arg(self.dir.part_data_directory("nats"));
        let url = format!("http://127.0.0.1:{NATS_MONITOR_PORT}/streaming/serverz");
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Http { url, status: 200 },
            files: Vec::new(),
        }
    }

    fn provider_spec(&self) -> PartStartSpec {
        match &self.plan.provider {
            ProviderChoice::Embedded(provider) => self.embedded_provider_spec(&provider.program),
            ProviderChoice::Faasd(_) => self.faasd_provider_spec(),
        }
    }

    fn embedded_provider_spec(&self, program: &Path) -> PartStartSpec {
        let mut command = self.command_with_part_environment(program);
        command.args([
            "serve",
            "--listen-address",
            &format!("{BRIDGE_ADDRESS}:{PROVIDER_PORT}"),
        ]);
        command.arg("--sock").arg(self.containerd_socket_path());
        command
            .arg("--state-dir")
            .arg(self.dir.part_data_directory("provider"));
        command
            .arg("--secret-mount-path")
            .arg(self.dir.secrets_directory());
        command
            .arg("--registry-config")
            .arg(self.dir.secrets_directory().join("registry-config"));
        command.args(["--plain-http-registries", &self.plan.registry_host_and_port()]);
        command.args(["--service-timeout", CALL_TIMEOUT_SETTING]);
        command.args(["--extra-hosts", &format!("gateway.openfaas={BRIDGE_ADDRESS}")]);
        PartStartSpec {
            command,
            ready: provider_ready_check(),
            files: Vec::new(),
        }
    }

    fn faasd_provider_spec(&self) -> PartStartSpec {
        let mut command = self.command_with_part_environment(faasd::FAASD_PATH);
        let work = self.dir.part_data_directory("faasd").join("provider");
        command.arg("provider").current_dir(&work);
        command
            .env("hosts_dir", &work)
            .env("secret_mount_path", self.dir.secrets_directory());
        command
            .env("basic_auth", "true")
            .env("service_timeout", CALL_TIMEOUT_SETTING);
        PartStartSpec {
            command,
            ready: provider_ready_check(),
            files: vec![(work.join("hosts"), String::new())],
        }
    }

    fn gateway_spec(&self) -> PartStartSpec {
        let url = format!("{}/healthz", self.plan.number.gateway_url());
        PartStartSpec {
            command: self.gateway_command(&format!("http://{BRIDGE_ADDRESS}:{PROVIDER_PORT}/")),
            ready: HttpCommandLogOrRouteCheck::Http { url, status: 200 },
            files: Vec::new(),
        }
    }

    /// Returns the command of the gateway, with the provider at this URL.
    pub(crate) fn gateway_command(&self, provider_url: &str) -> Command {
        let mut command = self.command_with_part_environment(&self.plan.tools.gateway);
        command.env("functions_provider_url", provider_url);
        command
            .env("basic_auth", "true")
            .env("secret_mount_path", self.dir.secrets_directory());
        command
            .env("faas_nats_address", "127.0.0.1")
            .env("faas_nats_port", NATS_PORT.to_string());
        command.env("faas_nats_cluster_name", NATS_CLUSTER_NAME);
        // The gateway fails to list functions if its Prometheus query gets no answer; the provider answers it
        // with an empty result.
        command
            .env("faas_prometheus_host", BRIDGE_ADDRESS.to_string())
            .env("faas_prometheus_port", PROVIDER_PORT.to_string());
        for limit in ["read_timeout", "write_timeout", "upstream_timeout"] {
            command.env(limit, CALL_TIMEOUT_SETTING);
        }
        command
    }

    fn queue_worker_spec(&self) -> PartStartSpec {
        PartStartSpec {
            command: self.queue_worker_command(self.plan.ack_wait_seconds),
            ready: HttpCommandLogOrRouteCheck::LogContains(QUEUE_WORKER_READY_TEXT),
            files: Vec::new(),
        }
    }

    /// Returns the command of a queue-worker whose calls are delivered again after this time.
    pub(crate) fn queue_worker_command(&self, ack_wait_seconds: u64) -> Command {
        let mut command = self.command_with_part_environment(&self.plan.tools.queue_worker);
        command
            .env("faas_nats_address", "127.0.0.1")
            .env("faas_nats_port", NATS_PORT.to_string());
        command.env("faas_nats_cluster_name", NATS_CLUSTER_NAME);
        command
            .env("faas_gateway_address", "127.0.0.1")
            .env("gateway_invoke", "true");
        command
            .env("basic_auth", "true")
            .env("secret_mount_path", self.dir.secrets_directory());
        command
            .env("max_inflight", "1")
            .env("ack_wait", format!("{ack_wait_seconds}s"));
        command
    }

    fn builder_spec(&self) -> PartStartSpec {
        let mut command = self.command_with_part_environment(&self.plan.builder);
        command.env("port", PLAIN_BUILDER_PORT.to_string());
        command.env("metrics_port", PLAIN_BUILDER_METRICS_PORT.to_string());
        command.env(
            "buildkit_url",
            format!("unix://{}", self.buildkit_socket_path().display()),
        );
        command.env("gateway_url", format!("{}/", self.plan.number.gateway_url()));
        command.env("secret_mount_path", self.dir.secrets_directory());
        command.env("insecure", "true").env("log_format", "text");
        command.env("exec_timeout", CALL_TIMEOUT_SETTING);
        let url = format!("{}/_/ready", self.plan.number.builder_process_url());
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Http { url, status: 200 },
            files: Vec::new(),
        }
    }
}

/// Creates a command with the environment of every part: of the launcher's own, only `LANG` and the variables that
/// locate the machine's certificates. The directories of `tools` are the first ones in its `PATH`.
pub(crate) fn command_with_clean_environment(
    dir: &StackDir,
    program: impl Into<PathBuf>,
    tools: &[&Path],
) -> Command {
    let mut command = Command::new(program.into());
    command
        .env_clear()
        .current_dir(&dir.root)
        .env("HOME", dir.home_of_parts());
    let tools = tools
        .iter()
        .filter_map(|program| program.parent())
        .map(|dir| format!("{}:", dir.display()))
        .collect::<String>();
    command.env(
        "PATH",
        format!("{tools}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    );
    for name in ["LANG", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Returns the specification of slirp4netns, which runs in the machine's network namespace and serves the namespace of
/// the stack or cluster. It uses the resolver in `/etc/resolv.conf`, which has to be the machine's. `nsenter` is a
/// command for this program without arguments.
pub(crate) fn egress_spec(nsenter: Command) -> PartStartSpec {
    let mut command = nsenter;
    command.arg(format!("--net={}", network::MACHINE_NAMESPACE_FILE));
    command.args(["unshare", "--mount", "sh", "-c"]);
    command
        .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
        .arg(mounts::MACHINE_RESOLV_CONF_PATH);
    command.args([
        "slirp4netns",
        "--configure",
        "--mtu=65520",
        "--disable-host-loopback",
        "--netns-type=path",
    ]);
    command.args([network::STACK_NAMESPACE_FILE, EGRESS_INTERFACE]);
    PartStartSpec {
        command,
        ready: HttpCommandLogOrRouteCheck::DefaultRoute(EGRESS_INTERFACE),
        files: Vec::new(),
    }
}

/// Returns the readiness check of a provider: its health endpoint, which the embedded provider and faasd
/// have.
fn provider_ready_check() -> HttpCommandLogOrRouteCheck {
    HttpCommandLogOrRouteCheck::Http {
        url: format!("http://{BRIDGE_ADDRESS}:{PROVIDER_PORT}/healthz"),
        status: 200,
    }
}
