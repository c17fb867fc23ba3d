//! A fake registry on loopback, which can fail in ways that a real one cannot be made to.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use function_host::http::header::{AUTHORIZATION, LINK, LOCATION, WWW_AUTHENTICATE};
use function_host::http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A registry that keeps blobs and manifests in memory. Clones share them.
#[derive(Clone)]
pub(crate) struct FakeRegistry {
    /// The registry's host and port, as image names have it.
    pub(crate) host: String,
    state: Arc<Mutex<RegistryState>>,
}

#[derive(Default)]
struct RegistryState {
    /// The number of changes of the behaviour.
    changes: watch::Sender<usize>,
    /// Blobs and manifests by `REPOSITORY@DIGEST`.
    contents: HashMap<String, Bytes>,
    /// The digests of tags by `REPOSITORY@TAG`.
    tags: BTreeMap<String, String>,
    /// The lines of all requests, such as `GET /v2/…`.
    requests: Vec<String>,
    behaviour: RegistryBehaviour,
}

/// The way in which the registry answers.
#[derive(Clone, Debug, Default)]
pub(crate) enum RegistryBehaviour {
    /// Every request is answered as a registry without users does.
    #[default]
    Open,
    /// Requests without the header `Authorization` are answered with 401.
    Locked,
    /// Requests whose line contains the text are answered with the status.
    Failing(&'static str, u16),
    /// GET requests for blobs are redirected to the same path at this scheme and host.
    Redirecting(String),
    /// The blobs have other bytes than their digests say.
    Lying,
    /// Requests whose line contains the text are not answered until another behaviour is set.
    Stalling(&'static str),
    /// Tags are listed only after one that exists, if there are more than a page of them: as zot does.
    ListingAfterExistingTags,
}

impl RegistryState {
    /// Returns whether the repository has all that a manifest refers to.
    fn has_parts_of(&self, repository: &str, manifest: &[u8]) -> bool {
        let manifest: Value = serde_json::from_slice(manifest).expect("a manifest");
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let mut parts = layers
            .chain([&manifest["config"]])
            .filter_map(|part| part["digest"].as_str());
        parts.all(|digest| self.contents.contains_key(&format!("{repository}@{digest}")))
    }
}

/// Returns the digest of `bytes`, as registries have it.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl FakeRegistry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let registry = Self {
            host: listener.local_addr().expect("address").to_string(),
            state: Arc::default(),
        };
        let shared = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = shared.clone();
                let service = service_fn(move |request| {
                    let registry = registry.clone();
                    async move { Ok::<_, Infallible>(registry.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, RegistryState> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn set_behaviour(&self, behaviour: RegistryBehaviour) {
        let mut state = self.state();
        state.behaviour = behaviour;
        state.changes.send_modify(|changes| *changes += 1);
    }

    /// Gives the repository `count` tags that begin with `tag_prefix` and name no manifest.
    pub(crate) fn add_tags_without_manifests(&self, repository: &str, tag_prefix: &str, count: usize) {
        let mut state = self.state();
        for number in 0..count {
            let tag = format!("{repository}@{tag_prefix}{number:05}");
            state.tags.insert(tag, digest_of(b"none"));
        }
    }

    /// Returns the lines of all requests so far.
    pub(crate) fn request_lines(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Returns the number of blobs and manifests.
    pub(crate) fn content_count(&self) -> usize {
        self.state().contents.len()
    }

    /// Returns all blobs and manifests, with their keys.
    pub(crate) fn contents(&self) -> Vec<(String, Bytes)> {
        let state = self.state();
        let contents = state.contents.iter();
        contents
            .map(|(key, content)| (key.clone(), content.clone()))
            .collect()
    }

    /// Stores a manifest, whatever it refers to, and returns its digest.
    pub(crate) fn store_manifest(&self, repository: &str, manifest: &str) -> String {
        let digest = digest_of(manifest.as_bytes());
        let key = format!("{repository}@{digest}");
        self.state().contents.insert(key, manifest.to_owned().into());
        digest
    }

    /// Stores a manifest under a tag, whatever it refers to.
    pub(crate) fn tag_manifest(&self, repository: &str, tag: &str, manifest: &str) {
        let digest = self.store_manifest(repository, manifest);
        self.state().tags.insert(format!("{repository}@{tag}"), digest);
    }

    /// Returns the manifest with a tag, if the repository has one.
    pub(crate) fn tagged_manifest(&self, repository: &str, tag: &str) -> Option<Bytes> {
        let state = self.state();
        let digest = state.tags.get(&format!("{repository}@{tag}"))?;
        state.contents.get(&format!("{repository}@{digest}")).cloned()
    }

    /// Deletes the manifest with this digest, and its tags.
    pub(crate) fn delete_manifest(&self, repository: &str, digest: &str) {
        let mut state = self.state();
        state.tags.retain(|_, tagged| tagged != digest);
        state.contents.remove(&format!("{repository}@{digest}"));
    }

    /// Deletes the manifest with the first tag of a repository that begins with `tag_prefix`.
    pub(crate) fn delete_first_manifest_with_tag_prefix(&self, repository: &str, tag_prefix: &str) {
        let mut state = self.state();
        let beginning = format!("{repository}@{tag_prefix}");
        let tags = state.tags.iter();
        let mut found = tags.filter(|(tag, _)| tag.starts_with(&beginning));
        let (tag, digest) = found.next().expect("a tag");
        let (tag, key) = (tag.clone(), format!("{repository}@{digest}"));
        state.tags.remove(&tag);
        state.contents.remove(&key);
    }

    /// Deletes the manifest of the newest record of a repository, with all its tags.
    pub(crate) fn delete_last_record(&self, repository: &str) {
        let mut state = self.state();
        let beginning = format!("{repository}@i-");
        let tags = state.tags.iter();
        let found = tags.filter(|(tag, _)| tag.starts_with(&beginning)).max();
        let digest = found.expect("a record").1.clone();
        state.tags.retain(|_, other| *other != digest);
        state.contents.remove(&format!("{repository}@{digest}"));
    }

    /// Returns the tags of a repository.
    pub(crate) fn tags(&self, repository: &str) -> Vec<String> {
        let state = self.state();
        let tags = state
            .tags
            .keys()
            .filter_map(|key| key.strip_prefix(&format!("{repository}@")));
        tags.map(str::to_owned).collect()
    }

    /// Stores an artifact with these layers, and returns its full name with its digest.
    pub(crate) fn push_artifact_and_get_reference(&self, repository: &str, layers: &[&[u8]]) -> String {
        let mut state = self.state();
        let mut described = Vec::new();
        for layer in layers {
            let digest = digest_of(layer);
            described.push(json!({"mediaType": "x/tar", "digest": digest, "size": layer.len()}));
            let key = format!("{repository}@{digest}");
            state.contents.insert(key, Bytes::copy_from_slice(layer));
        }
        let manifest = json!({"schemaVersion": 2, "layers": described}).to_string();
        let digest = digest_of(manifest.as_bytes());
        let key = format!("{repository}@{digest}");
        state.contents.insert(key, manifest.into());
        format!("{}/{repository}@{digest}", self.host)
    }

    /// Answers with a page of tags, in their order by name.
    fn list_tags(&self, repository: &str, query: &str) -> Response<Full<Bytes>> {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
        let last = value("last=").unwrap_or_default();
        let count = value("n=")
            .and_then(|count| count.parse().ok())
            .unwrap_or(usize::MAX);
        let mut tags = self.tags(repository);
        let is_place = last.is_empty() || tags.len() <= count || tags.iter().any(|tag| tag == last);
        let knows_places = !matches!(
            self.state().behaviour,
            RegistryBehaviour::ListingAfterExistingTags
        );
        let exists = !tags.is_empty() && (is_place || knows_places);
        tags.retain(|tag| tag.as_str() > last);
        let has_more = tags.len() > count;
        tags.truncate(count);
        let mut response = Response::new(Full::new(json!({"tags": tags}).to_string().into()));
        if !exists {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        if has_more {
            let next = format!("</v2/{repository}/tags/list?n={count}>; rel=\"next\"");
            response.headers_mut().insert(LINK, next.parse().expect("header"));
        }
        response
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let line = format!("{} {}", head.method, head.uri);
        let (behaviour, mut changes) = {
            let mut state = self.state();
            state.requests.push(line.clone());
            (state.behaviour.clone(), state.changes.subscribe())
        };
        if let RegistryBehaviour::Stalling(part) = &behaviour
            && line.contains(part)
        {
            changes.changed().await.ok();
        }
        let respond = |status: u16, body: Bytes| {
            let mut response = Response::new(Full::new(body));
            *response.status_mut() = StatusCode::from_u16(status).expect("status");
            response
        };
        let path = head.uri.path();
        let reference = path.rsplit('/').next().unwrap_or_default().to_owned();
        let repository = path.strip_prefix("/v2/").unwrap_or_default();
        let repository = repository.split("/blobs/").next().unwrap_or_default();
        let repository = repository
            .split("/manifests/")
            .next()
            .unwrap_or_default()
            .to_owned();
        let key = format!("{repository}@{reference}");
        let tagged = self.state().tags.get(&key).cloned();
        let key = tagged.map_or(key, |digest| format!("{repository}@{digest}"));
        match &behaviour {
            RegistryBehaviour::Failing(part, status) if line.contains(part) => {
                return respond(*status, Bytes::new());
            }
            RegistryBehaviour::Locked if !head.headers.contains_key(AUTHORIZATION) => {
                let mut response = respond(401, Bytes::new());
                let challenge = "Basic realm=\"x\"".parse().expect("header");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                return response;
            }
            RegistryBehaviour::Redirecting(to) if head.method == Method::GET && path.contains("/blobs/") => {
                let mut response = respond(307, Bytes::new());
                let to = format!("{to}{path}").parse().expect("header");
                response.headers_mut().insert(LOCATION, to);
                return response;
            }
            _ => {}
        }
        match head.method {
            Method::POST => {
                let mut response = respond(202, Bytes::new());
                let location = format!("{path}upload-1?state=x").parse().expect("header");
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Method::PUT => {
                let Ok(content) = body.collect().await else {
                    return respond(400, Bytes::new());
                };
                let content = content.to_bytes();
                let digest = digest_of(&content);
                let is_tag = path.contains("/manifests/") && !reference.contains(':');
                let is_right = is_tag
                    || reference == digest
                    || head.uri.query().is_some_and(|query| query.ends_with(&digest));
                if !is_right {
                    return respond(400, Bytes::new());
                }
                let mut state = self.state();
                if path.contains("/manifests/") && !state.has_parts_of(&repository, &content) {
                    return respond(404, Bytes::new());
                }
                if is_tag {
                    state
                        .tags
                        .insert(format!("{repository}@{reference}"), digest.clone());
                }
                let key = format!("{repository}@{digest}");
                state.contents.insert(key, content);
                respond(201, Bytes::new())
            }
            Method::DELETE => {
                let mut state = self.state();
                let is_own = format!("{repository}@");
                state
                    .tags
                    .retain(|name, digest| !name.starts_with(&is_own) || *digest != reference);
                match state.contents.remove(&key) {
                    Some(_) => respond(202, Bytes::new()),
                    None => respond(404, Bytes::new()),
                }
            }
            _ if path.ends_with("/tags/list") => {
                let repository = repository.strip_suffix("/tags/list").unwrap_or_default();
                self.list_tags(repository, head.uri.query().unwrap_or_default())
            }
            _ => match self.state().contents.get(&key).cloned() {
                Some(content)
                    if matches!(behaviour, RegistryBehaviour::Lying) && path.contains("/blobs/") =>
                {
                    respond(200, content.iter().map(|byte| byte ^ 1).collect())
                }
                Some(content) => respond(200, content),
                None => respond(404, Bytes::new()),
            },
        }
    }
}
