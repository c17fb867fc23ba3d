//! The chart on the cluster: installed as its README says, it turns source into a function that answers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use slipway_stack::Cluster;

use crate::{kubectl_output, run};

/// The values that differ from the chart's: the cluster's own images and registry, and a small machine.
const VALUES_FILE: &str = "tests/stack/tests/cluster/values.yaml";

/// The answer of the function that the test builds.
const ANSWER: &str = "made from source\n";

fn repository_root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap().to_owned()
}

fn variable(cluster: &Cluster, name: &str) -> String {
    let variables = cluster.environment_variables().unwrap();
    let found = variables.into_iter().find(|(variable, _)| *variable == name);
    found.unwrap().1
}

pub(crate) fn the_chart_turns_source_into_a_function_that_answers(cluster: &Cluster) {
    create_secrets(cluster);
    install_chart(cluster);
    let body = tar_of_function(&variable(cluster, "REGISTRY"));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &body).unwrap();
    let key = fs::read(variable(cluster, "PAYLOAD_SECRET")).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(key.trim_ascii()).unwrap();
    mac.update(&body);
    let signature = hex::encode(mac.finalize().into_bytes());
    let gateway = variable(cluster, "OPENFAAS_URL");
    let mut build = Command::new("curl");
    build.args([
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--max-time",
        "600",
    ]);
    build.args(["--header", &format!("X-Build-Signature: sha256={signature}")]);
    build.args(["--data-binary", &format!("@{}", file.path().display())]);
    let answer = run(build.arg(format!("{gateway}/function/builder-fn/build")), "");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    assert_eq!(answer["deployment"]["status"], "ready", "{answer}");
    let mut call = Command::new("curl");
    call.args(["--silent", "--show-error", "--fail"]);
    assert_eq!(run(call.arg(format!("{gateway}/function/hello")), ""), ANSWER);
}

/// Creates the secrets that the chart's README names.
fn create_secrets(cluster: &Cluster) {
    let read = |name: &str| fs::read_to_string(variable(cluster, name)).unwrap();
    let secret = |name: &str, values: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "namespace": "openfaas-fn" },
            "stringData": values,
        })
    };
    let secrets = [
        secret(
            "payload-secret",
            json!({ "payload-secret": read("PAYLOAD_SECRET") }),
        ),
        secret("deploy-secret", json!({ "deploy-secret": read("DEPLOY_SECRET") })),
        secret("registry-config", json!({ "registry-config": "{\"auths\":{}}" })),
        secret(
            "basic-auth",
            json!({
                "basic-auth-user": variable(cluster, "OPENFAAS_USER"),
                "basic-auth-password": variable(cluster, "OPENFAAS_PASSWORD"),
            }),
        ),
    ];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": secrets });
    kubectl_output(cluster, &["apply", "--filename=-"], &list.to_string());
}

fn install_chart(cluster: &Cluster) {
    let mut helm = Command::new(cluster.programs_directory().join("helm"));
    helm.current_dir(repository_root())
        .env("KUBECONFIG", cluster.kubeconfig());
    helm.args([
        "upgrade",
        "--install",
        "slipway",
        "chart/slipway",
        "--namespace",
        "openfaas",
    ]);
    helm.args(["--values", VALUES_FILE, "--wait", "--timeout", "10m"]);
    run(&mut helm, "");
}

/// Returns the tar of a request that builds and deploys a function: a static web server with one page.
fn tar_of_function(registry: &str) -> Vec<u8> {
    let config = json!({ "image": format!("{registry}/test/hello:1"), "deploy": { "service": "hello" } });
    let dockerfile = "FROM scratch\nCOPY busybox /busybox\nCOPY www /www\nUSER 1000\n\
                      ENTRYPOINT [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";
    let files = [
        (
            "com.openfaas.docker.config",
            0o644,
            config.to_string().into_bytes(),
        ),
        ("context/Dockerfile", 0o644, dockerfile.into()),
        ("context/busybox", 0o755, fs::read("/bin/busybox").unwrap()),
        ("context/www/index.html", 0o644, ANSWER.into()),
        // The provider's readiness probe.
        ("context/www/_/health", 0o644, b"OK".to_vec()),
    ];
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}
