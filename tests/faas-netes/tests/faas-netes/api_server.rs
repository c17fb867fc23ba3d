//! An etcd and a kube-apiserver on loopback, without controllers.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use function_host::http::Request;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// The variable with the directories of the two programs, separated as in `PATH`.
const PROGRAMS_VARIABLE: &str = "SLIPWAY_KUBERNETES_BIN";

/// The time for the API server, and for the provider, to become ready.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(300);

/// The pause between two questions whether the API server is ready.
const START_POLL_INTERVAL: Duration = Duration::from_millis(200);

const ADMIN_TOKEN: &str = "token-of-the-administrator";
const PROVIDER_TOKEN: &str = "token-of-the-provider";

/// A running API server with its etcd; both end, and their data goes, when this is dropped.
pub(crate) struct ApiServer {
    directory: TempDir,
    client: Client,
    _programs: [Child; 2],
}

impl ApiServer {
    /// Starts both programs, and gives the provider the rights that it has in the chart of OpenFaaS.
    pub(crate) async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let root = directory.path();
        write_keys_and_tokens(root)?;

        let etcd_url = format!("http://127.0.0.1:{}", free_port()?);
        let peer_url = format!("http://127.0.0.1:{}", free_port()?);
        let etcd = quiet_command(
            find_program_in_kubernetes_bin(&["etcd", "server"])?,
            &root.join("etcd.log"),
        )?
        .args(["--name", "test", "--unsafe-no-fsync", "--log-level", "warn"])
        .arg("--data-dir")
        .arg(root.join("etcd"))
        .args([
            "--listen-client-urls",
            &etcd_url,
            "--advertise-client-urls",
            &etcd_url,
        ])
        .args([
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
        ])
        .args(["--initial-cluster", &format!("test={peer_url}")])
        .spawn()
        .context("start etcd")?;
        let port = free_port()?;
        let flag = |name: &str, file: &str| format!("--{name}={}", root.join(file).display());
        let mut api_server = quiet_command(
            find_program_in_kubernetes_bin(&["kube-apiserver"])?,
            &root.join("kube-apiserver.log"),
        )?
        .arg(format!("--etcd-servers={etcd_url}"))
        .args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")])
        .args([
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
        ])
        // Nothing makes service accounts or keeps the endpoints of the API server here.
        .args([
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
        ])
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .args([
            flag("cert-dir", "certificates"),
            flag("token-auth-file", "tokens.csv"),
        ])
        .args([
            flag("service-account-key-file", "accounts.pub"),
            flag("service-account-signing-key-file", "accounts.key"),
        ])
        .spawn()
        .context("start kube-apiserver")?;
        let admin = write_kubeconfig(&root.join("admin.kubeconfig"), port, ADMIN_TOKEN)?;
        write_kubeconfig(&root.join("provider.kubeconfig"), port, PROVIDER_TOKEN)?;
        let config = Config::from_custom_kubeconfig(admin, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        wait_until_ready(&client, &mut api_server, root).await?;
        grant_rights_of_provider(&client).await?;
        Ok(Self {
            directory,
            client,
            _programs: [api_server, etcd],
        })
    }

    /// Returns a directory that goes with the server.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns a client with all rights.
    pub(crate) fn admin_client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the path of the kubeconfig with the rights of the provider.
    pub(crate) fn provider_kubeconfig(&self) -> PathBuf {
        self.directory.path().join("provider.kubeconfig")
    }
}

/// Returns the command that runs a program with its output in a file. It ends with this process.
pub(crate) fn quiet_command(program: impl AsRef<OsStr>, log: &Path) -> Result<Command> {
    let log = File::create(log)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

/// Returns the path of the program with one of these names in the directories that the variable names. Go names etcd's
/// program after its folder, `server`.
fn find_program_in_kubernetes_bin(names: &[&str]) -> Result<PathBuf> {
    let directories = std::env::var_os(PROGRAMS_VARIABLE).with_context(|| {
        format!("{PROGRAMS_VARIABLE} must name the directories of etcd and kube-apiserver")
    })?;
    std::env::split_paths(&directories)
        .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
        .find(|path| path.is_file())
        .with_context(|| format!("{PROGRAMS_VARIABLE}: no {names:?} in {}", directories.display()))
}

/// Returns a port of loopback that is free now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn write_keys_and_tokens(root: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    fs::write(root.join("accounts.key"), key.serialize_pem())?;
    fs::write(root.join("accounts.pub"), key.public_key_pem())?;
    let tokens = format!("{ADMIN_TOKEN},admin,1,system:masters\n{PROVIDER_TOKEN},provider,2\n");
    fs::write(root.join("tokens.csv"), tokens)?;
    Ok(())
}

/// Writes a kubeconfig. The certificate of the server, which it has made itself, is not verified: the connection does
/// not leave the machine.
fn write_kubeconfig(path: &Path, port: u16, token: &str) -> Result<Kubeconfig> {
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "insecure-skip-tls-verify": true,
        }}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        "current-context": "test",
    })
    .to_string();
    fs::write(path, &text)?;
    Ok(Kubeconfig::from_yaml(&text)?)
}

async fn wait_until_ready(client: &Client, api_server: &mut Child, root: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        // The default roles, of which there are many, are not needed: the administrator's group has all rights.
        let request = Request::get("/readyz?exclude=poststarthook/rbac/bootstrap-roles").body(Vec::new())?;
        let ready = client.request_text(request).await;
        let Err(error) = ready else { return Ok(()) };
        if let Some(status) = api_server.try_wait()? {
            let log = fs::read_to_string(root.join("kube-apiserver.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(10).collect();
            bail!("kube-apiserver ended ({status}): {last:?}");
        }
        ensure!(
            Instant::now() < deadline,
            "kube-apiserver is not ready: {error:#}"
        );
        tokio::time::sleep(START_POLL_INTERVAL).await;
    }
}

/// Gives the provider the rights of faas-netes Community in the chart of OpenFaaS, and no others.
async fn grant_rights_of_provider(client: &Client) -> Result<()> {
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": "provider"},
        "rules": [
            {"apiGroups": [""], "resources": ["services"],
             "verbs": ["get", "list", "watch", "create", "delete", "update"]},
            {"apiGroups": ["apps"], "resources": ["deployments"],
             "verbs": ["get", "list", "watch", "create", "delete", "update"]},
            {"apiGroups": [""], "resources": ["secrets"],
             "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]},
            {"apiGroups": [""], "resources": ["pods", "pods/log", "namespaces", "endpoints"],
             "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["openfaas.com"], "resources": ["profiles"], "verbs": ["get", "list", "watch"]},
        ],
    }))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "provider"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "provider"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "provider"}],
    }))?;
    let (roles, bindings): (Api<ClusterRole>, Api<ClusterRoleBinding>) =
        (Api::all(client.clone()), Api::all(client.clone()));
    roles.create(&PostParams::default(), &role).await?;
    bindings.create(&PostParams::default(), &binding).await?;
    Ok(())
}
