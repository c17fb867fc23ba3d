//! The gateway of the cluster, as a client of Slipway uses it.

use std::{fs, time::Duration};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use slipway_stack::Cluster;

/// The timeout of one request; a build is one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest time until a queued build has changed its function.
const QUEUED_BUILD_TIMEOUT: Duration = Duration::from_secs(180);

/// The pause between two looks at a function that changes soon.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A client of the gateway with the administrator's password and the keys of builds and hand-overs.
pub(crate) struct GatewayClient {
    url: String,
    user: String,
    password: String,
    build_key: Vec<u8>,
    hand_over_key: Vec<u8>,
    http: reqwest::Client,
}

/// An answer of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> Value {
        let json = serde_json::from_str(&self.body);
        assert!(json.is_ok(), "{self:?}");
        json.unwrap()
    }
}

/// Returns the value of one of the cluster's environment variables.
pub(crate) fn cluster_variable(cluster: &Cluster, name: &str) -> String {
    let variables = cluster.environment_variables().unwrap();
    let found = variables.into_iter().find(|(variable, _)| *variable == name);
    found.unwrap().1
}

/// Returns the signature of a body for the headers of builder-fn and deployer-fn.
fn signature(key: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

impl GatewayClient {
    /// Returns a client of the cluster's gateway.
    pub(crate) fn of_cluster(cluster: &Cluster) -> Self {
        let read_key = |name| {
            let key = fs::read(cluster_variable(cluster, name)).unwrap();
            key.trim_ascii().to_vec()
        };
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).no_proxy();
        Self {
            url: cluster_variable(cluster, "OPENFAAS_URL"),
            user: cluster_variable(cluster, "OPENFAAS_USER"),
            password: cluster_variable(cluster, "OPENFAAS_PASSWORD"),
            build_key: read_key("PAYLOAD_SECRET"),
            hand_over_key: read_key("DEPLOY_SECRET"),
            http: http.build().unwrap(),
        }
    }

    /// Builds a tar, and waits for the result.
    pub(crate) async fn build(&self, tar: Vec<u8>) -> Answer {
        self.build_with_key(&self.build_key, tar).await
    }

    /// Builds a tar at a builder of another name, and waits for the result.
    pub(crate) async fn build_at(&self, builder: &str, tar: Vec<u8>) -> Answer {
        let path = format!("function/{builder}/build");
        self.post_signed(&path, "X-Build-Signature", &self.build_key, tar)
            .await
    }

    /// Builds a tar that a tenant's key signs, and waits for the result.
    pub(crate) async fn build_with_key(&self, key: &[u8], tar: Vec<u8>) -> Answer {
        self.post_signed("function/builder-fn/build", "X-Build-Signature", key, tar)
            .await
    }

    /// Puts the build of a tar into the queue.
    pub(crate) async fn queue_build(&self, tar: Vec<u8>) -> Answer {
        let path = "async-function/builder-fn/build";
        self.post_signed(path, "X-Build-Signature", &self.build_key, tar)
            .await
    }

    /// Hands an image over to deployer-fn, and waits for the outcome.
    pub(crate) async fn hand_over(&self, hand_over: &Value) -> Answer {
        let body = hand_over.to_string().into_bytes();
        let key = &self.hand_over_key;
        self.post_signed("function/deployer-fn", "X-Deploy-Signature", key, body)
            .await
    }

    async fn post_signed(&self, path: &str, header: &str, key: &[u8], body: Vec<u8>) -> Answer {
        let request = self.http.post(format!("{}/{path}", self.url));
        let request = request.header(header, signature(key, &body)).body(body);
        send(request).await.unwrap()
    }

    /// Calls a function.
    pub(crate) async fn call(&self, function: &str) -> Result<Answer, reqwest::Error> {
        send(self.http.get(format!("{}/function/{function}", self.url))).await
    }

    /// Waits until a function answers with this text, which a queued build is to bring about.
    pub(crate) async fn wait_for_answer(&self, function: &str, text: &str) {
        let mut last = None;
        let answers = async {
            loop {
                let answer = self.call(function).await.unwrap();
                if answer.status == 200 && answer.body == text {
                    return;
                }
                last = Some(answer);
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let waited = tokio::time::timeout(QUEUED_BUILD_TIMEOUT, answers).await;
        assert!(
            waited.is_ok(),
            "{function} does not answer with {text:?}: {last:?}"
        );
    }

    /// Returns the image that the specification of a function has.
    pub(crate) async fn image_of(&self, function: &str) -> String {
        let request = self.http.get(format!("{}/system/function/{function}", self.url));
        let answer = send(request.basic_auth(&self.user, Some(&self.password))).await;
        let status = answer.unwrap().json();
        status["image"].as_str().unwrap().to_owned()
    }

    /// Deletes a function.
    pub(crate) async fn delete_function(&self, function: &str) {
        let request = self.http.delete(format!("{}/system/functions", self.url));
        let request = request.basic_auth(&self.user, Some(&self.password));
        let body = json!({ "functionName": function });
        let answer = send(request.body(body.to_string())).await.unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
}

async fn send(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        body: response.text().await?,
    })
}
