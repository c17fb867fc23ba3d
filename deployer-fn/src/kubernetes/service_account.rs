//! The Kubernetes API as a pod's service account reads it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use function_host::http::header::{AUTHORIZATION, HeaderValue};
use function_host::http::{Request, StatusCode};
use function_host::{BoxError, Bytes, HttpClient, Secret};
use http_body_util::Full;

use super::{KubernetesError, KubernetesReader};

/// The folder in which a pod finds its service account.
const ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A reader of the Kubernetes API with the credentials of a service account.
pub(crate) struct KubernetesReaderAsServiceAccount {
    client: HttpClient,
    /// The API server's address, `https://HOST:PORT`.
    base: String,
    /// The file of the token. It is read for each request, because the platform renews it.
    token: PathBuf,
}

impl KubernetesReaderAsServiceAccount {
    /// Returns the reader of this pod, whose environment has `host` and `port` of the API server; `None` if the pod has
    /// no service account.
    ///
    /// # Errors
    /// Fails if the certificate of the API server is missing or invalid.
    pub(crate) fn of_pod_if_it_has_service_account(
        host: Option<&str>,
        port: Option<&str>,
    ) -> Result<Option<Self>, BoxError> {
        let (Some(host), Some(port)) = (host, port) else {
            return Ok(None);
        };
        let folder = Path::new(ACCOUNT_FOLDER);
        if !folder.join("token").exists() {
            return Ok(None);
        }
        // An IPv6 address has brackets in a URL.
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.to_owned(),
        };
        Self::new(format!("https://{host}:{port}"), folder).map(Some)
    }

    /// Makes a reader of the API at `base` with the files `token` and `ca.crt` in `folder`.
    fn new(base: String, folder: &Path) -> Result<Self, BoxError> {
        let authorities = std::fs::read(folder.join("ca.crt"))?;
        Ok(Self {
            client: HttpClient::trusting_only(&authorities)?,
            base,
            token: folder.join("token"),
        })
    }

    fn authorization(&self) -> Result<HeaderValue, BoxError> {
        let token = Secret::new(std::fs::read(&self.token)?.trim_ascii());
        let text = [b"Bearer ", token.expose()].concat();
        let mut value = HeaderValue::from_maybe_shared(Bytes::from(text))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl KubernetesReader for KubernetesReaderAsServiceAccount {
    fn read<'a>(
        &'a self,
        path: String,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Bytes>, KubernetesError>> + Send + 'a>> {
        Box::pin(async move {
            let authorization = self.authorization().map_err(KubernetesError::Token)?;
            let request = Request::get(format!("{}{path}", self.base)).header(AUTHORIZATION, authorization);
            let request = request.body(Full::new(Bytes::new()));
            let no_response = |source: BoxError| KubernetesError::NoResponse {
                path: path.clone(),
                source,
            };
            let request = request.map_err(|error| no_response(error.into()))?;
            let response = self.client.send_and_receive(request, REQUEST_TIMEOUT).await;
            let response = response.map_err(|error| no_response(error.into()))?;
            match response.status() {
                StatusCode::OK => Ok(Some(response.into_body())),
                StatusCode::NOT_FOUND => Ok(None),
                status => Err(KubernetesError::Status {
                    path,
                    status: status.as_u16(),
                }),
            }
        })
    }
}
