//! Calls and changes the stack's functions through the gateway.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use reqwest::Method;
use serde_json::{Value, json};
use slipway_stack::Stack;

/// A client of the gateway with the administrator's credentials.
#[derive(Debug, Clone)]
pub struct FunctionsClient {
    url: String,
    user: String,
    password: String,
    http: reqwest::Client,
}

impl FunctionsClient {
    /// Returns a client of this stack's gateway.
    pub fn for_stack(stack: &Stack) -> Result<Self> {
        let gateway = &stack.gateway;
        Ok(Self {
            url: gateway.url.trim_end_matches('/').to_owned(),
            user: gateway.user.clone(),
            password: gateway.password.clone(),
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(60))
                .no_proxy()
                .build()?,
        })
    }

    /// Returns the URL of a function at the gateway, without a trailing slash.
    pub fn function_url(&self, name: &str) -> String {
        format!("{}/function/{name}", self.url)
    }

    /// Returns the URL that calls a function through the queue.
    pub fn queued_call_url(&self, name: &str) -> String {
        format!("{}/async-function/{name}", self.url)
    }

    /// Asks the gateway for the status of a function; returns `None` if there is no such function.
    pub async fn function_status(&self, name: &str) -> Result<Option<Value>> {
        let url = format!("{}/system/function/{name}", self.url);
        let response = self
            .http
            .get(&url)
            .basic_auth(&self.user, Some(&self.password))
            .send()
            .await?;
        match response.status().as_u16() {
            200 => Ok(Some(response.json().await?)),
            404 => Ok(None),
            other => bail!("GET {url}: {other} {}", response.text().await?),
        }
    }

    /// Polls a function's `/_/ready` until it answers with 200. Fails after `limit`.
    pub async fn wait_until_ready(&self, name: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let last = self.get_path(name, "/_/ready").await;
            if matches!(&last, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{name} was not ready within {limit:?}; last answer: {last:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Polls the gateway until it reports an available replica of a function. Fails after `limit`.
    pub async fn wait_until_available_unless_gateway_fails(&self, name: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let status = self.function_status(name).await?.unwrap_or_default();
            if status["availableReplicas"].as_u64() > Some(0) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{name} had no available replica within {limit:?}; last status: {status}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Posts a body to a path of a function; returns status and text.
    pub async fn post_to_function(&self, name: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.function_url(name));
        let response = self
            .http
            .post(&url)
            .body(body.to_owned())
            .send()
            .await
            .with_context(|| url.clone())?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Gets a function's page `/`; returns status and text.
    pub async fn get_function_page(&self, name: &str) -> Result<(u16, String)> {
        self.get_path(name, "/").await
    }

    /// Gets a path of a function; returns status and text.
    pub async fn get_path(&self, name: &str, path: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.function_url(name));
        let response = self.http.get(&url).send().await.with_context(|| url.clone())?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Gets a path of a function that has just been deployed, and retries on 5xx until `limit` is over.
    /// Returns the last status and text.
    pub async fn get_path_retrying_5xx(
        &self,
        name: &str,
        path: &str,
        limit: Duration,
    ) -> Result<(u16, String)> {
        let end = Instant::now() + limit;
        loop {
            let is_last = Instant::now() > end;
            match self.get_path(name, path).await? {
                (500..=599, _) if !is_last => tokio::time::sleep(Duration::from_millis(100)).await,
                answer => return Ok(answer),
            }
        }
    }

    /// Polls a function's page `/` until it is 200 with this text. Fails after `limit`. A caller has no other sign that
    /// the queue's work is done.
    pub async fn wait_until_page_equals(&self, name: &str, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let last = self.get_function_page(name).await;
            if matches!(&last, Ok((200, page)) if page == text) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the page of {name} was not {text:?} within {limit:?}; last answer: {last:?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Asks the gateway to create a function; returns the status.
    pub async fn create_function(&self, deployment: &Value) -> Result<u16> {
        self.call_system_api(Method::POST, "/system/functions", deployment)
            .await
    }

    /// Asks the gateway to update a function; returns the status.
    pub async fn update_function(&self, deployment: &Value) -> Result<u16> {
        self.call_system_api(Method::PUT, "/system/functions", deployment)
            .await
    }

    /// Removes a function if it exists.
    pub async fn remove_function(&self, name: &str) -> Result<()> {
        let body = json!({ "functionName": name });
        let status = self
            .call_system_api(Method::DELETE, "/system/functions", &body)
            .await?;
        anyhow::ensure!(status < 300 || status == 404, "removing {name}: {status}");
        Ok(())
    }

    /// Removes a secret for functions.
    pub async fn remove_existing_secret(&self, name: &str) -> Result<()> {
        let body = json!({ "name": name });
        let status = self
            .call_system_api(Method::DELETE, "/system/secrets", &body)
            .await?;
        anyhow::ensure!(status < 300, "removing the secret {name}: {status}");
        Ok(())
    }

    /// Creates a secret for functions, or replaces its value.
    pub async fn put_secret(&self, name: &str, value: &str) -> Result<()> {
        let body = json!({ "name": name, "value": value });
        let status = match self
            .call_system_api(Method::POST, "/system/secrets", &body)
            .await?
        {
            200..300 => return Ok(()),
            _ => {
                self.call_system_api(Method::PUT, "/system/secrets", &body)
                    .await?
            }
        };
        anyhow::ensure!(status < 300, "storing the secret {name}: {status}");
        Ok(())
    }

    /// Sends a JSON request with the administrator's credentials, and returns the status.
    async fn call_system_api(&self, method: Method, path: &str, body: &Value) -> Result<u16> {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .basic_auth(&self.user, Some(&self.password))
            .json(body);
        Ok(request.send().await?.status().as_u16())
    }
}
