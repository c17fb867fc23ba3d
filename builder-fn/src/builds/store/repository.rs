//! The requests of the record store to its registry.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use function_host::ErrorChain;
use function_host::http::header::LINK;
use function_host::http::{Method, StatusCode, Uri};
use function_host::registry::{RegistryClient, RepositoryClient};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use tokio::time::Instant;

use super::document::{ArtifactManifest, digest_of};
use super::{RecordStoreAccess, StoreError, lock};
use crate::registry::{
    EMPTY_CONFIG, MANIFEST_MEDIA_TYPE, RESPONSE_TIMEOUT, bytes_body, empty_body, put_manifest, rejection,
    request_to, upload_blob_if_missing,
};

/// How long a handle with its token is used. Tokens are valid for at least a minute.
const HANDLE_AGE_MAX: Duration = Duration::from_secs(45);

/// The time for which a registry is not asked again whether it lists tags after one that does not exist. It may have
/// answered 404 only because the repository was created at that moment.
const LISTS_AFTER_MISSING_TAG_RECHECK_TIME: Duration = Duration::from_secs(600);

/// The number of tags that are requested at once.
const TAGS_PER_PAGE: usize = 1000;

/// The limit on the pages of tags.
const TAG_PAGES_MAX: usize = 50;

/// The limit on one page of tags, in bytes.
const TAG_PAGE_BYTES_MAX: usize = 1 << 20;

/// The repositories of the records, one for each tenant.
pub(super) struct RecordRepository {
    access: RecordStoreAccess,
    /// Handles of the tenants' repositories, whose tokens were fetched a moment ago.
    handles: Mutex<HashMap<Option<String>, (Instant, RepositoryClient)>>,
    /// The tenants whose repositories have the configuration that all manifests refer to.
    prepared: Mutex<HashSet<Option<String>>>,
    /// The tenants for whose repositories the registry has refused a deletion.
    without_deletion: Mutex<HashSet<Option<String>>>,
    /// The tenants whose registry lists tags only after one that exists, as zot does, and when that was seen.
    listing_only_after_existing_tags: Mutex<HashMap<Option<String>, Instant>>,
}

/// A page of a repository's tags.
struct TagsPage {
    tags: Vec<String>,
    /// Whether the registry has more tags behind them.
    has_more: bool,
}

impl RecordRepository {
    pub(super) fn new(access: RecordStoreAccess) -> Self {
        Self {
            access,
            handles: Mutex::default(),
            prepared: Mutex::default(),
            without_deletion: Mutex::default(),
            listing_only_after_existing_tags: Mutex::default(),
        }
    }

    /// Returns the manifest that has the tag, if there is one.
    pub(super) async fn get(&self, tenant: &Option<String>, tag: &str) -> Result<Option<Bytes>, StoreError> {
        let mut repository = self.cached_or_new_handle(tenant).await?;
        let manifest = repository.fetch_unverified_manifest(tag).await?;
        self.keep_token(tenant, repository);
        Ok(manifest)
    }

    /// Stores a manifest under a tag, in place of the one that has the tag.
    pub(super) async fn put(
        &self,
        tenant: &Option<String>,
        tag: &str,
        manifest: &ArtifactManifest,
    ) -> Result<(), StoreError> {
        let mut repository = self.cached_or_new_handle(tenant).await?;
        let is_prepared = lock(&self.prepared).contains(tenant);
        if !is_prepared {
            let length = EMPTY_CONFIG.len() as u64;
            let body = || bytes_body(EMPTY_CONFIG.into());
            upload_blob_if_missing(&mut repository, &digest_of(EMPTY_CONFIG), length, body).await?;
            lock(&self.prepared).insert(tenant.clone());
        }
        let put = put_manifest(
            &mut repository,
            tag,
            manifest.as_str().to_owned(),
            MANIFEST_MEDIA_TYPE,
        )
        .await;
        if put.is_err() {
            // The registry may have collected the configuration as garbage.
            lock(&self.prepared).remove(tenant);
        }
        put?;
        self.keep_token(tenant, repository);
        Ok(())
    }

    /// Returns the manifest with this digest, if the repository has it.
    pub(super) async fn get_by_digest(
        &self,
        tenant: &Option<String>,
        digest: &str,
    ) -> Result<Option<Bytes>, StoreError> {
        let manifest = self.get(tenant, digest).await?;
        Ok(manifest.filter(|manifest| digest_of(manifest) == digest))
    }

    /// Returns the digest of the manifest that has the tag, if there is one.
    pub(super) async fn digest_of_tag(
        &self,
        tenant: &Option<String>,
        tag: &str,
    ) -> Result<Option<String>, StoreError> {
        let manifest = self.get(tenant, tag).await?;
        Ok(manifest.map(|manifest| digest_of(&manifest)))
    }

    /// Deletes the manifest with this digest, and returns whether it is gone. A failure is logged: the registry's
    /// garbage collection deletes it then.
    pub(super) async fn delete(&self, tenant: &Option<String>, digest: &str) -> bool {
        if self.refuses_deletion(tenant) {
            return false;
        }
        let status = match self.request_deletion(tenant, digest).await {
            Ok(status) => status,
            Err(error) => {
                tracing::debug!(error = %ErrorChain(&error), "could not delete a record of a build");
                return false;
            }
        };
        match status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => return true,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                if lock(&self.without_deletion).insert(tenant.clone()) {
                    tracing::warn!(
                        tenant = tenant.as_deref().unwrap_or_default(),
                        status = status.as_u16(),
                        "the registry does not delete records of builds; they accumulate until it collects them itself"
                    );
                }
            }
            status => tracing::debug!(status = status.as_u16(), "could not delete a record of a build"),
        }
        false
    }

    /// Returns whether the registry has refused to delete a record of the tenant.
    pub(super) fn refuses_deletion(&self, tenant: &Option<String>) -> bool {
        lock(&self.without_deletion).contains(tenant)
    }

    async fn request_deletion(
        &self,
        tenant: &Option<String>,
        digest: &str,
    ) -> Result<StatusCode, StoreError> {
        let handle = self.create_handle(tenant).await?;
        let mut repository = handle.with_token_actions("delete,pull");
        let address = repository.uri_in_repository_api(&format!("manifests/{digest}"))?;
        let request = || request_to(Method::DELETE, &address, empty_body());
        Ok(repository.send(request, RESPONSE_TIMEOUT).await?.status())
    }

    /// Lists the tags of a tenant's repository that begin with `prefix`, by name, and come after the tag `after`.
    ///
    /// A registry that has its tags in another order returns others as well, and all of these if there are not too
    /// many. One that lists only after tags that exist returns tags before `after` as well.
    pub(super) async fn list_tags_after_and_maybe_earlier(
        &self,
        tenant: &Option<String>,
        prefix: &str,
        after: &str,
    ) -> Result<Vec<String>, StoreError> {
        let mut repository = self.cached_or_new_handle(tenant).await?;
        let mut entries: Vec<String> = Vec::new();
        let lists_after_missing_tags = lock(&self.listing_only_after_existing_tags)
            .get(tenant)
            .is_none_or(|seen| seen.elapsed() > LISTS_AFTER_MISSING_TAG_RECHECK_TIME);
        let mut last = lists_after_missing_tags.then(|| after.to_owned());
        for _ in 0..TAG_PAGES_MAX {
            let Some(page) = request_tags_unless_not_found(&mut repository, last.as_deref()).await? else {
                match last.take() {
                    // A repository exists from its first manifest on.
                    None => break,
                    // No tag has this name, or none any more: a new list from the beginning.
                    Some(_) => entries.clear(),
                }
                continue;
            };
            if last.is_none() && lists_after_missing_tags {
                lock(&self.listing_only_after_existing_tags).insert(tenant.clone(), Instant::now());
            }
            let next = page.tags.last().filter(|next| last.as_ref() != Some(*next));
            let next = next.filter(|_| page.has_more).cloned();
            let before = entries.len();
            let found = page.tags.into_iter().filter(|tag| tag.starts_with(prefix));
            entries.extend(found);
            // Behind them come others.
            let is_through = |next: &String| entries.len() == before && next.as_str() > prefix;
            match next {
                Some(next) if !is_through(&next) => last = Some(next),
                _ => break,
            }
        }
        self.keep_token(tenant, repository);
        Ok(entries)
    }

    /// Returns a handle of a tenant's repository, with the token of an earlier request if there is one.
    async fn cached_or_new_handle(&self, tenant: &Option<String>) -> Result<RepositoryClient, StoreError> {
        if let Some((since, repository)) = lock(&self.handles).get(tenant)
            && since.elapsed() < HANDLE_AGE_MAX
        {
            return Ok(repository.clone());
        }
        let handle = self.create_handle(tenant).await?;
        let repository = handle.with_token_actions("pull,push");
        lock(&self.handles).insert(tenant.clone(), (Instant::now(), repository.clone()));
        Ok(repository)
    }

    async fn create_handle(&self, tenant: &Option<String>) -> Result<RepositoryClient, StoreError> {
        let access = &self.access;
        let image = access.repository.of_tenant(tenant.as_deref());
        let image = image.ok_or_else(|| StoreError::Tenant {
            tenant: tenant.clone().unwrap_or_default(),
        })?;
        let credentials = access.credentials.credentials_or_empty(image.registry()).await;
        let client = RegistryClient::new(&access.secrets, access.insecure, access.token_realms.clone())?;
        Ok(client.repository(image.registry(), image.repository(), credentials))
    }

    /// Keeps the token of a handle for the next request.
    fn keep_token(&self, tenant: &Option<String>, repository: RepositoryClient) {
        if let Some((_, kept)) = lock(&self.handles).get_mut(tenant) {
            *kept = repository;
        }
    }
}

/// Requests the tags of a repository after the tag `last`; `None` if the registry knows no such repository, or no such
/// tag.
async fn request_tags_unless_not_found(
    repository: &mut RepositoryClient,
    last: Option<&str>,
) -> Result<Option<TagsPage>, StoreError> {
    #[derive(Deserialize)]
    struct Page {
        /// The tags; `null` if the repository had tags and has none any more.
        tags: Option<Vec<String>>,
    }
    let after = last.map(|last| format!("&last={last}")).unwrap_or_default();
    let address: Uri = repository.uri_in_repository_api(&format!("tags/list?n={TAGS_PER_PAGE}{after}"))?;
    let request = || request_to(Method::GET, &address, empty_body());
    let response = repository.send(request, RESPONSE_TIMEOUT).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        status => return Err(rejection(repository, status).into()),
    }
    let has_more = response.headers().contains_key(LINK);
    let body = Limited::new(response.into_body(), TAG_PAGE_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|_| StoreError::Malformed)?.to_bytes();
    let page: Page = serde_json::from_slice(&body).map_err(|_| StoreError::Malformed)?;
    let tags = page.tags.unwrap_or_default();
    Ok(Some(TagsPage { tags, has_more }))
}

impl fmt::Debug for RecordRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RecordRepository")
            .field(&self.access.repository)
            .finish()
    }
}
