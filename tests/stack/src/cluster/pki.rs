//! The certificates of a cluster and the kubeconfigs that contain them, made at each start.
//!
//! The authority's key is not kept, so nobody can issue another certificate.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::json;

use super::{
    address::{API_PORT, API_SERVICE_ADDRESS},
    plan::NODE_NAME,
};
use crate::{
    directories::{StackDir, write_private_file},
    error::{LauncherError, Result},
};

/// The time from the making of a certificate until it expires.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time by which a certificate begins earlier than it is made, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// The name of the administrator's kubeconfig.
pub(crate) const ADMINISTRATOR: &str = "admin";

/// A client of the API server: the name of its kubeconfig or certificate, its user and its group. A certificate's
/// common name is the user, and its organization the group (Kubernetes, "Authenticating", X.509 client certificates).
struct ApiClient {
    name: &'static str,
    user: String,
    group: Option<&'static str>,
}

/// Returns the clients that have a kubeconfig.
fn administrator_and_components_with_kubeconfig() -> [ApiClient; 5] {
    let client = |name, user: &str, group| ApiClient {
        name,
        user: user.to_owned(),
        group,
    };
    [
        client(ADMINISTRATOR, "admin", Some("system:masters")),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("proxy", "system:kube-proxy", None),
        client(
            "kubelet",
            &format!("system:node:{NODE_NAME}"),
            Some("system:nodes"),
        ),
    ]
}

/// Returns the path of a kubeconfig.
pub(crate) fn kubeconfig_of(dir: &StackDir, client: &str) -> PathBuf {
    dir.config_directory().join(format!("{client}.kubeconfig"))
}

/// Returns the path of a file with a certificate (`crt`), a key (`key`) or a public key (`pub`).
pub(crate) fn pki_file(dir: &StackDir, name: &str, kind: &str) -> PathBuf {
    dir.config_directory().join(format!("{name}.{kind}"))
}

/// Makes and writes all certificates, keys and kubeconfigs of a cluster whose API server has this address.
pub(crate) fn write_certificates_and_kubeconfigs(dir: &StackDir, node: Ipv4Addr) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let authority = Authority::create_valid_from_an_hour_before(now)?;
    let write = |name: &str, (certificate, key): &(String, String)| {
        write_private_file(&pki_file(dir, name, "crt"), certificate.as_bytes())?;
        write_private_file(&pki_file(dir, name, "key"), key.as_bytes())
    };
    write_private_file(
        &pki_file(dir, "authority", "crt"),
        authority.certificate().as_bytes(),
    )?;
    let mut names = ["localhost", "kubernetes"].map(str::to_owned).to_vec();
    names.extend(
        ["default", "default.svc", "default.svc.cluster.local"].map(|scope| format!("kubernetes.{scope}")),
    );
    names.extend([Ipv4Addr::LOCALHOST, API_SERVICE_ADDRESS, node].map(|address| address.to_string()));
    let server = authority.issue("kube-apiserver", None, names, ExtendedKeyUsagePurpose::ServerAuth)?;
    write("api-server", &server)?;
    let issue_client = |client: &ApiClient| {
        authority.issue(
            &client.user,
            client.group,
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    };
    let kubelet_client = ApiClient {
        name: "api-server-to-kubelet",
        user: "kube-apiserver-kubelet-client".to_owned(),
        group: Some("system:masters"),
    };
    write(kubelet_client.name, &issue_client(&kubelet_client)?)?;
    // Signs the tokens of service accounts.
    let key = KeyPair::generate().map_err(rcgen_failed)?;
    for (kind, text) in [("key", key.serialize_pem()), ("pub", key.public_key_pem())] {
        write_private_file(&pki_file(dir, "service-accounts", kind), text.as_bytes())?;
    }
    for client in administrator_and_components_with_kubeconfig() {
        let text = kubeconfig(
            node,
            &authority.certificate(),
            &client.user,
            &issue_client(&client)?,
        );
        write_private_file(&kubeconfig_of(dir, client.name), text.as_bytes())?;
    }
    Ok(())
}

/// Returns a kubeconfig. It is JSON, which every reader of YAML understands.
fn kubeconfig(node: Ipv4Addr, authority: &str, user: &str, (certificate, key): &(String, String)) -> String {
    let cluster = json!({
        "server": format!("https://{node}:{API_PORT}"),
        "certificate-authority-data": STANDARD.encode(authority),
    });
    let credentials = json!({
        "client-certificate-data": STANDARD.encode(certificate),
        "client-key-data": STANDARD.encode(key),
    });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "slipway", "cluster": cluster }],
        "users": [{ "name": user, "user": credentials }],
        "contexts": [{ "name": "slipway", "context": { "cluster": "slipway", "user": user } }],
        "current-context": "slipway",
    })
    .to_string()
}

/// The authority of a cluster's certificates.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    now_since_epoch: Duration,
}

impl Authority {
    fn create_valid_from_an_hour_before(now_since_epoch: Duration) -> Result<Self> {
        let mut params = certificate_params("slipway-cluster", None, Vec::new(), now_since_epoch)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(rcgen_failed)?;
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, key).map_err(rcgen_failed)?,
            now_since_epoch,
        })
    }

    fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate, and returns it with its key.
    fn issue(
        &self,
        name: &str,
        organization: Option<&str>,
        subjects: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        let mut params = certificate_params(name, organization, subjects, self.now_since_epoch)?;
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(rcgen_failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(rcgen_failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn certificate_params(
    name: &str,
    organization: Option<&str>,
    subjects: Vec<String>,
    now_since_epoch: Duration,
) -> Result<CertificateParams> {
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::new(subjects).map_err(rcgen_failed)?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    params.not_before = epoch + now_since_epoch.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now_since_epoch + CERTIFICATE_LIFE;
    Ok(params)
}

fn rcgen_failed(error: rcgen::Error) -> LauncherError {
    LauncherError::Environment(format!("cannot make the cluster's certificates: {error}"))
}
