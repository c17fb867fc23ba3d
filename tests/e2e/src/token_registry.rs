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

/// An account at the token server. It gets tokens for its own repositories, and for nothing else.
#[derive(Debug, Clone)]
pub struct RegistryAccount {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
    /// The prefixes of the names of the repositories that the account may pull from and push to; an empty prefix allows
    /// all.
    pub repository_prefixes: Vec<String>,
}

impl RegistryAccount {
    fn may_use(&self, repository: &str) -> bool {
        let mut prefixes = self.repository_prefixes.iter();
        prefixes.any(|prefix| repository.starts_with(prefix.as_str()))
    }

    /// Returns the value of the header `Authorization` with the account's user name and password.
    fn basic_authorization(&self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

/// A running registry and its token server; both stop on drop.
pub struct TokenRegistry {
    process: LoggedProcess,
    _token_proxy: Option<TlsProxy>,
    dir: tempfile::TempDir,
    tokens: Arc<TokenSignerWithIssuedLog>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    /// The registry's host and port, as in image references.
    pub host: String,
}

/// The signer of tokens, the accounts that get them, and a description of each issued token.
struct TokenSignerWithIssuedLog {
    signer: EcdsaKeyPair,
    certificate: String,
    accounts: Vec<RegistryAccount>,
    issued: Mutex<Vec<String>>,
    /// The scopes that were not granted, each with the user who asked for it.
    refused: Mutex<Vec<(String, String)>>,
}

impl TokenRegistry {
    /// Starts the registry and its token server on the loopback address. The token server has no TLS, and one account,
    /// [`TOKEN_USER`], which may use all repositories.
    pub async fn start(testbed: &Testbed, authority: &CertificateAuthority) -> Result<Self> {
        Self::start_with_token_proxy(testbed, authority, false, vec![account_with_all_repositories()]).await
    }

    /// Starts the registry on the loopback address, and its token server, which has TLS, at `localhost`, with these
    /// accounts.
    pub async fn start_with_accounts(
        testbed: &Testbed,
        authority: &CertificateAuthority,
        accounts: Vec<RegistryAccount>,
    ) -> Result<Self> {
        Self::start_with_token_proxy(testbed, authority, true, accounts).await
    }

    /// Starts the registry on the loopback address, and its token server, which has TLS, at `localhost`.
    pub async fn start_with_tls_for_tokens(
        testbed: &Testbed,
        authority: &CertificateAuthority,
    ) -> Result<Self> {
        Self::start_with_token_proxy(testbed, authority, true, vec![account_with_all_repositories()]).await
    }

    async fn start_with_token_proxy(
        testbed: &Testbed,
        authority: &CertificateAuthority,
        token_server_has_tls: bool,
        accounts: Vec<RegistryAccount>,
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
        let tokens = Arc::new(TokenSignerWithIssuedLog::new(&signing, accounts)?);
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
            process,
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

    /// Takes the list of scopes that were not granted since the last call, each with the user who asked for it.
    pub fn take_users_and_refused_scopes(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.tokens.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the number of requests so far that the registry itself rejected because their token is not for the
    /// repository.
    pub fn requests_rejected_for_scope(&self) -> usize {
        let log = self.process.log_text();
        log.lines()
            .filter(|line| line.contains("insufficient scope"))
            .count()
    }

    /// Returns the digest that a tag names; `None` if the registry has no such tag.
    pub fn digest_of_tag(&self, repository: &str, tag: &str) -> Result<Option<String>> {
        let link =
            format!("data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link");
        match fs::read_to_string(self.dir.path().join(link)) {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn account_with_all_repositories() -> RegistryAccount {
    RegistryAccount {
        user: TOKEN_USER.to_owned(),
        password: TOKEN_USER_PASSWORD.to_owned(),
        repository_prefixes: vec![String::new()],
    }
}

impl Drop for TokenRegistry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TokenSignerWithIssuedLog {
    fn new(signing: &CertificateWithKey, accounts: Vec<RegistryAccount>) -> Result<Self> {
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
            accounts,
            issued: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// Returns the scopes among `scopes` that an account may use, separated by spaces, and records the others. Like a
    /// registry's own token server, it issues a token for the rest instead of an error.
    fn record_refused_and_return_granted_scopes(&self, account: &RegistryAccount, scopes: &[&str]) -> String {
        let is_granted = |scope: &&str| {
            let name_and_actions = scope.strip_prefix("repository:");
            let name = name_and_actions.and_then(|rest| Some(rest.rsplit_once(':')?.0));
            name.is_some_and(|name| account.may_use(name))
        };
        let scopes = scopes.iter().flat_map(|scopes| scopes.split_whitespace());
        let (granted, refused): (Vec<&str>, Vec<&str>) = scopes.partition(is_granted);
        let refused = refused
            .into_iter()
            .map(|scope| (account.user.clone(), scope.to_owned()));
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(refused);
        granted.join(" ")
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

/// Answers `GET /token`: issues a token to an account with the right password, for those of the scopes that it may use,
/// else 401.
async fn issue_token_for_password(
    State(tokens): State<Arc<TokenSignerWithIssuedLog>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> (StatusCode, Json<Value>) {
    let given = headers.get("authorization").map(|given| given.as_bytes());
    let account = tokens
        .accounts
        .iter()
        .find(|account| given == Some(account.basic_authorization().as_bytes()));
    let Some(account) = account else {
        return unauthorized_response();
    };
    let scopes: Vec<&str> = query
        .iter()
        .filter(|(name, _)| name == "scope")
        .map(|(_, scope)| scope.as_str())
        .collect();
    let granted = tokens.record_refused_and_return_granted_scopes(account, &scopes);
    tokens.record_and_issue_token(&account.user, "password", &granted)
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
