//! The provider's promises, tried on a running one. Ignored unless asked for, because it needs a provider with
//! containerd and a registry beneath it:
//!
//! `PROVIDER_URL=http://10.62.0.1:8081 PROVIDER_USER=… PROVIDER_PASSWORD=… PROVIDER_IMAGES=first,second
//! cargo test -p slipway-dev-provider --test live -- --ignored`
//!
//! The images are of functions that answer `GET /` with 200 at once. Good manners are expected.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// A provider, and the images to try it with.
#[derive(Clone)]
struct Provider {
    client: Client,
    url: String,
    user: String,
    password: String,
    images: Vec<String>,
}

impl Provider {
    fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let images = var("PROVIDER_IMAGES").split(',').map(str::to_owned).collect();
        Self {
            client: Client::new(),
            url: var("PROVIDER_URL"),
            user: var("PROVIDER_USER"),
            password: var("PROVIDER_PASSWORD"),
            images,
        }
    }

    async fn api(&self, method: Method, path: &str, body: &Value) -> StatusCode {
        let request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .body(body.to_string());
        request
            .basic_auth(&self.user, Some(&self.password))
            .send()
            .await
            .unwrap()
            .status()
    }

    async fn status(&self, name: &str) -> Value {
        let request = self.client.get(format!("{}/system/function/{name}", self.url));
        let answer = request
            .basic_auth(&self.user, Some(&self.password))
            .send()
            .await
            .unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null)
    }

    async fn call(&self, name: &str) -> StatusCode {
        match self
            .client
            .get(format!("{}/function/{name}", self.url))
            .send()
            .await
        {
            Ok(answer) => answer.status(),
            Err(error) => panic!("a call got no answer: {error}"),
        }
    }

    async fn available(&self, name: &str) {
        let mut tick = interval(Duration::from_millis(100));
        for _ in 0..300 {
            tick.tick().await;
            if self.status(name).await["availableReplicas"] == 1 {
                return;
            }
        }
        panic!("{name} is not available after 30 s");
    }

    async fn create(&self, name: &str) {
        self.api(
            Method::DELETE,
            "/system/functions",
            &json!({"functionName": name}),
        )
        .await;
        let deployment = json!({"service": name, "image": self.images[0]});
        assert_eq!(
            self.api(Method::POST, "/system/functions", &deployment).await,
            200
        );
        self.available(name).await;
    }

    async fn delete(&self, name: &str) {
        let request = json!({"functionName": name});
        assert_eq!(self.api(Method::DELETE, "/system/functions", &request).await, 200);
        assert_eq!(self.status(name).await, Value::Null);
    }

    /// Calls a function 200 times a second until told to stop; returns the statuses.
    async fn load(self: Arc<Self>, name: &'static str, stop: watch::Receiver<bool>) -> Vec<StatusCode> {
        let mut calls = JoinSet::new();
        let mut tick = interval(Duration::from_millis(5));
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !*stop.borrow() {
            tick.tick().await;
            let provider = Arc::clone(&self);
            calls.spawn(async move { provider.call(name).await });
        }
        calls.join_all().await
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a running provider: see the head of the file"]
async fn no_call_fails_while_a_function_is_updated_and_a_failed_update_changes_nothing() {
    let provider = Arc::new(Provider::from_env());
    let name = "live-update";
    provider.create(name).await;
    let (stop, stopped) = watch::channel(false);
    let load = tokio::spawn(Arc::clone(&provider).load(name, stopped));

    for round in 0..4 {
        let image = &provider.images[(round + 1) % 2];
        let deployment = json!({"service": name, "image": image});
        assert_eq!(
            provider.api(Method::PUT, "/system/functions", &deployment).await,
            200
        );
        assert_eq!(provider.status(name).await["image"], **image);
    }
    let image = provider.status(name).await["image"].clone();
    let without_image = json!({"service": name, "image": format!("{}-not-there", provider.images[0])});
    assert_eq!(
        provider
            .api(Method::PUT, "/system/functions", &without_image)
            .await,
        500
    );
    let without_secret = json!({"service": name, "image": image, "secrets": ["not-there"]});
    assert_eq!(
        provider
            .api(Method::PUT, "/system/functions", &without_secret)
            .await,
        400
    );
    assert_eq!(provider.status(name).await["image"], image);

    stop.send(true).unwrap();
    let statuses = load.await.unwrap();
    let failed: Vec<_> = statuses
        .iter()
        .filter(|status| **status != StatusCode::OK)
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} calls failed: {failed:?}",
        failed.len(),
        statuses.len()
    );
    provider.delete(name).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a running provider: see the head of the file"]
async fn a_function_is_created_once_scaled_to_nothing_and_back_and_deleted() {
    let provider = Provider::from_env();
    let name = "live-life";
    provider.create(name).await;
    let deployment = json!({"service": name, "image": provider.images[0]});
    assert_eq!(
        provider.api(Method::POST, "/system/functions", &deployment).await,
        400
    );
    assert_eq!(provider.call(name).await, 200);

    let path = format!("/system/scale-function/{name}");
    let scale = |replicas: u64| json!({"serviceName": name, "replicas": replicas});
    assert_eq!(provider.api(Method::POST, &path, &scale(0)).await, 200);
    assert_eq!(provider.call(name).await, 500);
    assert_eq!(provider.api(Method::POST, &path, &scale(1)).await, 200);
    provider.available(name).await;
    assert_eq!(provider.call(name).await, 200);

    provider.delete(name).await;
    assert_eq!(provider.call(name).await, 503);
    let update = provider.api(Method::PUT, "/system/functions", &deployment).await;
    assert_eq!(update, 404);
}
