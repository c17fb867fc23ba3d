//! A registry with bearer tokens, behind TLS from a private authority, and its token server.
//!
//! The protocol: `distribution/distribution` `docs/content/spec/auth/token.md` and `oauth.md`. The registry is a
//! real one; the token server is part of the test, so that a test can see which tokens were requested.

use std::{
    collections::HashMap,
    fs,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use axum::{
    Form, Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};

use crate::{
    certificates::{CertificateAuthority, CertificateWithKey},
    logged_process::LoggedProcess,
    testbed::Testbed,
    tls_proxy::TlsProxy,
};

/// The name of the registry as the audience of tokens.
const TOKEN_SERVICE: &str = "e2e";
/// The issuer of tokens that the registry trusts.
const TOKEN_ISSUER: &str = "e2e-tokens";

/// The name of the user who gets tokens for [`TOKEN_USER_PASSWORD`].
pub const TOKEN_USER: &str = "ann";
/// The password of [`TOKEN_USER`].
pub const TOKEN_USER_PASSWORD: &str = "the password of ann";
/// The identity token that gets tokens without a user name.
pub const IDENTITY_TOKEN: &str = "the identity token";

/// A running registry and its token server; both stop on drop.
pub struct TokenRegistry {
    _process: LoggedProcess,
    _token_proxy: Option<TlsProxy>,
    dir: tempfile::TempDir,
    tokens: Arc<TokenSignerWithIssuedLog>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    /// The registry's host and port, as in image references.
    pub host: String,
}

/// The signer of tokens, and a description of each issued one.
struct TokenSignerWithIssuedLog {
    signer: EcdsaKeyPair,
    certificate: String,
    issued: Mutex<Vec<String>>,
}

impl TokenRegistry {
    /// Starts the registry and its token server on the loopback address. The token server has no TLS.
    pub async fn start(testbed: &Testbed, authority: &CertificateAuthority) -> Result<Self> {
        Self::start_with_token_proxy(testbed, authority, false).await
    }

    /// Starts the registry on the loopback address, and its token server, which has TLS, at `localhost`.
    pub async fn start_with_tls_for_tokens(
        testbed: &Testbed,
        authority: &CertificateAuthority,
    ) -> Result<Self> {
        Self::start_with_token_proxy(testbed, authority, true).await
    }

    async fn start_with_token_proxy(
        testbed: &Testbed,
        authority: &CertificateAuthority,
        token_server_has_tls: bool,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity = authority.issue_certificate("127.0.0.1")?;
        let signing = CertificateAuthority::self_signed_for_tokens("tokens")?;
        for (name, content) in [
            ("cert.pem", &identity.certificate),
            ("key.pem", &identity.key),
            ("tokens.pem", &signing.certificate),
        ] {
            fs::write(dir.path().join(name), content)?;
        }
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let proxy = match token_server_has_tls {
            true => Some(TlsProxy::start_to(&url, &authority.issue_certificate("localhost")?).await?),
            false => None,
        };
        let realm = format!("{}/token", proxy.as_ref().map_or(url.as_str(), TlsProxy::url));
        let tokens = Arc::new(TokenSignerWithIssuedLog::new(&signing)?);
        let app = Router::new()
            .route(
                "/token",
                get(issue_token_for_password).post(issue_token_for_identity_token),
            )
            .with_state(tokens.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });

        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {at}/data\n\
             http:\n  addr: 127.0.0.1:0\n  tls:\n    certificate: {at}/cert.pem\n    key: {at}/key.pem\n\
             auth:\n  token:\n    realm: {realm}\n    service: {TOKEN_SERVICE}\n    issuer: {TOKEN_ISSUER}\n    \
             rootcertbundle: {at}/tokens.pem\n"
        );
        fs::write(dir.path().join("registry.yml"), config)?;
        let mut command = Command::new(testbed.stack.registry_program_path_or_name());
        command.arg("serve").arg(dir.path().join("registry.yml"));
        let mut process = LoggedProcess::spawn(command)?;
        let host = process
            .wait_for_line_in_whole_output(|line| {
                let (_, address) = line.split_once("listening on ")?;
                Some(address.split_once(',')?.0.to_owned())
            })
            .await?;
        Ok(Self {
            _process: process,
            _token_proxy: proxy,
            dir,
            tokens,
            serving,
            host,
        })
    }

    /// Returns whether the registry has this tag.
    pub fn has_tag(&self, repository: &str, tag: &str) -> bool {
        let tags = format!("data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}");
        self.dir.path().join(tags).exists()
    }

    /// Takes the list of tokens issued since the last call, each as `SUBJECT by METHOD for SCOPE`.
    pub fn take_issued_token_descriptions(&self) -> Vec<String> {
        std::mem::take(&mut self.tokens.issued.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for TokenRegistry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TokenSignerWithIssuedLog {
    fn new(signing: &CertificateWithKey) -> Result<Self> {
        let der = |pem: &str| -> Result<Vec<u8>> {
            let lines: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            Ok(STANDARD.decode(lines)?)
        };
        let signer = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &der(&signing.key)?,
            &SystemRandom::new(),
        );
        Ok(Self {
            signer: signer.map_err(|error| anyhow::anyhow!("reading the token key: {error}"))?,
            certificate: STANDARD.encode(der(&signing.certificate)?),
            issued: Mutex::default(),
        })
    }

    /// Signs a token for the scopes, and records who got it, how, and for which scopes.
    fn record_and_issue_token(&self, who: &str, how: &str, scope: &str) -> (StatusCode, Json<Value>) {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.push(format!("{who} by {how} for {scope}"));
        match self.signed_token(who, scope) {
            Ok(token) => (
                StatusCode::OK,
                Json(json!({ "token": token, "access_token": token, "expires_in": 300 })),
            ),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                Json(json!({ "error": error.to_string() })),
            ),
        }
    }

    /// Returns a token for the scopes, each `repository:NAME:ACTIONS`, separated by spaces.
    fn signed_token(&self, who: &str, scope: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let access: Vec<Value> = scope
            .split_whitespace()
            .filter_map(|one| {
                let (kind, rest) = one.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({ "type": kind, "name": name, "actions": actions }))
            })
            .collect();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": TOKEN_ISSUER, "sub": who, "aud": TOKEN_SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now,
            "jti": now.to_string(), "access": access,
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self.signer.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|error| anyhow::anyhow!("signing a token: {error}"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn unauthorized_response() -> (StatusCode, Json<Value>) {
    (StatusCode::UNAUTHORIZED, Json(json!({ "error": "no" })))
}

/// Answers `GET /token`: issues a token for the scopes to [`TOKEN_USER`] with the right password, else 401.
async fn issue_token_for_password(
    State(tokens): State<Arc<TokenSignerWithIssuedLog>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let expected = format!(
        "Basic {}",
        STANDARD.encode(format!("{TOKEN_USER}:{TOKEN_USER_PASSWORD}"))
    );
    let is_good = headers
        .get("authorization")
        .is_some_and(|given| given.as_bytes() == expected.as_bytes());
    if !is_good {
        return unauthorized_response();
    }
    let scopes: Vec<&str> = query
        .iter()
        .filter(|(name, _)| name == "scope")
        .map(|(_, scope)| scope.as_str())
        .collect();
    tokens.record_and_issue_token(TOKEN_USER, "password", &scopes.join(" "))
}

/// Answers `POST /token`: issues a token for the scope to whoever has [`IDENTITY_TOKEN`], else 401.
async fn issue_token_for_identity_token(
    State(tokens): State<Arc<TokenSignerWithIssuedLog>>,
    Form(form): Form<HashMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    match (field("grant_type"), field("refresh_token")) {
        ("refresh_token", IDENTITY_TOKEN) => {
            tokens.record_and_issue_token("anonymous", "identity token", field("scope"))
        }
        _ => unauthorized_response(),
    }
}
