//! The part of the gateway's REST API that the launcher uses.

use std::{collections::HashMap, time::Duration};

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::{
    command::last_lines_each_cut,
    error::{LauncherError, Result},
    http::{expect_status, send_request},
    stack::Stack,
};

/// The timeout of a request to the gateway.
const GATEWAY_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A client for the gateway with the administrator's credentials.
#[derive(Debug)]
pub(super) struct GatewayClient {
    client: Client,
    stack: Stack,
}

/// The gateway's status of a function.
#[derive(Debug, Deserialize)]
pub(super) struct FunctionImageAndAnnotations {
    /// The image that the function runs.
    pub(super) image: String,
    annotations: Option<HashMap<String, String>>,
}

impl FunctionImageAndAnnotations {
    /// Returns the value of an annotation of the function.
    pub(super) fn annotation(&self, name: &str) -> Option<&String> {
        self.annotations.as_ref()?.get(name)
    }
}

#[derive(Deserialize)]
struct SecretName {
    name: String,
}

impl GatewayClient {
    /// Creates a client for a stack's gateway.
    pub(super) fn new(client: Client, stack: &Stack) -> Self {
        Self {
            client,
            stack: stack.clone(),
        }
    }

    /// Returns the names of all secrets that the gateway lists.
    pub(super) async fn secret_names(&self) -> Result<Vec<String>> {
        let response = expect_status(
            send_request(self.system_request(Method::GET, "secrets")).await?,
            &[StatusCode::OK],
        )
        .await?;
        let request = response.url().to_string();
        // The gateway sends an empty list as `null`.
        let secrets: Option<Vec<SecretName>> = response
            .json()
            .await
            .map_err(|source| LauncherError::NoAnswer { request, source })?;
        Ok(secrets.into_iter().flatten().map(|secret| secret.name).collect())
    }

    /// Creates a secret through the gateway, or updates it if `exists`.
    pub(super) async fn put_secret(&self, name: &str, value: &str, exists: bool) -> Result<()> {
        let method = if exists { Method::PUT } else { Method::POST };
        let request = self
            .system_request(method, "secrets")
            .json(&json!({ "name": name, "value": value }));
        let expected = [StatusCode::OK, StatusCode::CREATED, StatusCode::ACCEPTED];
        expect_status(send_request(request).await?, &expected)
            .await
            .map(drop)
    }

    /// Asks the gateway for the status of a function; returns `None` if the function does not exist.
    pub(super) async fn function_status(&self, name: &str) -> Result<Option<FunctionImageAndAnnotations>> {
        let response = send_request(self.system_request(Method::GET, &format!("function/{name}"))).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = expect_status(response, &[StatusCode::OK]).await?;
        let request = response.url().to_string();
        response
            .json()
            .await
            .map(Some)
            .map_err(|source| LauncherError::NoAnswer { request, source })
    }

    /// Removes a function through the gateway.
    pub(super) async fn remove_existing_function(&self, name: &str) -> Result<()> {
        let request = self
            .system_request(Method::DELETE, "functions")
            .json(&json!({ "functionName": name }));
        expect_status(
            send_request(request).await?,
            &[StatusCode::OK, StatusCode::ACCEPTED],
        )
        .await
        .map(drop)
    }

    /// Calls a function's readiness probe through the gateway, and returns whether it succeeds.
    pub(super) async fn readiness_probe_succeeds(&self, name: &str) -> bool {
        let request = self
            .client
            .get(format!("{}/_/ready", self.function_url(name)))
            .timeout(GATEWAY_REQUEST_TIMEOUT);
        request
            .send()
            .await
            .is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Calls a function through the gateway and returns the body of its answer, or `None` unless the call succeeds.
    pub(super) async fn call_function(&self, name: &str, body: &str) -> Option<String> {
        let request = self
            .client
            .post(self.function_url(name))
            .timeout(GATEWAY_REQUEST_TIMEOUT)
            .body(body.to_owned());
        request
            .send()
            .await
            .ok()?
            .error_for_status()
            .ok()?
            .text()
            .await
            .ok()
    }

    /// Asks the gateway for the last lines of a function's log; returns an empty string if the log cannot be
    /// read.
    pub(super) async fn function_log_tail_or_empty(&self, name: &str) -> String {
        #[derive(Deserialize)]
        struct LogLine {
            text: String,
        }
        let request = self.system_request(Method::GET, &format!("logs?name={name}&follow=false&tail=40"));
        let Ok(answer) = send_request(request).await else {
            return String::new();
        };
        let text = answer.text().await.unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
        last_lines_each_cut(&lines.map(|line| line.text).collect::<Vec<_>>().join("\n"), 40)
    }

    /// Returns the gateway's URL of a function.
    pub(super) fn function_url(&self, name: &str) -> String {
        format!("{}/function/{name}", self.stack.gateway.url)
    }

    /// Creates a request that calls a function through the gateway's queue.
    pub(super) fn queued_call_request(&self, name: &str) -> RequestBuilder {
        self.client
            .post(format!("{}/async-function/{name}", self.stack.gateway.url))
            .timeout(GATEWAY_REQUEST_TIMEOUT)
    }

    /// Creates a request to `/system/PATH` of the gateway, with the administrator's credentials.
    fn system_request(&self, method: Method, path: &str) -> RequestBuilder {
        let gateway = &self.stack.gateway;
        let request = self
            .client
            .request(method, format!("{}/system/{path}", gateway.url));
        request
            .basic_auth(&gateway.user, Some(&gateway.password))
            .timeout(GATEWAY_REQUEST_TIMEOUT)
    }
}
