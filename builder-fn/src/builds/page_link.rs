//! Links to the pages of builds. A link lets anyone read what it names, without a key, until it expires.
//!
//! The parameter `link` of a URL is `KIND.EXPIRES.TENANT.SIGNATURE`. KIND is `build` or `builds`, EXPIRES a time in
//! seconds since 1970, TENANT is empty without a policy, and SIGNATURE the hex HMAC-SHA256 of the scope and the other
//! parts. Its key is derived from a key that signs build requests, so a link ends with the rotation of that key, and no
//! link is the signature of a request or the other way round.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use function_host::policy::{Tenant, TenantName};
use function_host::signature::{HmacKeys, sign_body};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::request::{SignatureCheck, VerifiedSignature};

/// The name of the parameter with the link in the query of a URL.
const LINK_PARAMETER: &str = "link";

/// The purpose of the keys that links are signed with.
const LINK_KEY_PURPOSE: &str = "slipway: key for links to the pages of builds";

/// The prefix of a signature's digits where requests have it, and links do not.
const SIGNATURE_PREFIX: &str = "sha256=";

/// How far the clocks of two builders may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The characters of an ID that are encoded in a path: all but those that no URL parser treats in a special way.
const ENCODED_IN_PATHS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Settings of the pages about builds, and of the links to them.
#[derive(Clone, Debug)]
pub struct PageSettings {
    /// The time for which a link is valid.
    pub lifetime: Duration,
    /// The URL at which browsers reach the builder, without a slash at its end; `None` if links are to be relative to
    /// it.
    pub url: Option<String>,
    /// The longest time that the answer with a page waits for the log of its build.
    pub log_wait: Duration,
}

impl Default for PageSettings {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(24 * 3600),
            url: None,
            log_wait: Duration::from_millis(600),
        }
    }
}

/// The scope of a link: what its holder may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkScope<'a> {
    /// One build, and its log.
    Build(&'a str),
    /// The list of a tenant's builds, and each of them.
    Builds,
}

impl LinkScope<'_> {
    /// Returns the word for the scope in a link.
    fn kind(self) -> &'static str {
        match self {
            Self::Build(_) => "build",
            Self::Builds => "builds",
        }
    }
}

/// Signs links for those who have a key.
#[derive(Clone, Debug)]
pub(crate) struct LinkSigner {
    /// The key that a request was signed with; `None` if signatures are disabled. A link ends with it.
    key: Option<HmacKeys>,
    tenant: Option<String>,
    settings: PageSettings,
}

impl LinkSigner {
    /// Creates a signer for the sender of a request with this signature; `None` stands for disabled signatures.
    pub(crate) fn new(signature: Option<&VerifiedSignature>, settings: &PageSettings) -> Self {
        Self {
            key: signature.map(|signature| signature.own_key().derive(LINK_KEY_PURPOSE)),
            tenant: signature
                .and_then(VerifiedSignature::tenant)
                .map(|tenant| tenant.name().to_string()),
            settings: settings.clone(),
        }
    }

    /// Returns the address of the page of the build `id`, with a link to this build only.
    pub(crate) fn address_of_build_page(&self, id: &str, now: SystemTime) -> String {
        let path = format!("/builds/{}", encode_id(id));
        self.address_with_link_unless_signatures_disabled(&path, LinkScope::Build(id), now)
    }

    /// Returns the address of the list of builds, with a link to all builds of the tenant.
    pub(crate) fn address_of_list_page(&self, now: SystemTime) -> String {
        self.address_with_link_unless_signatures_disabled("/builds", LinkScope::Builds, now)
    }

    fn address_with_link_unless_signatures_disabled(
        &self,
        path: &str,
        scope: LinkScope<'_>,
        now: SystemTime,
    ) -> String {
        let base = self.settings.url.as_deref().unwrap_or_default();
        match &self.key {
            None => format!("{base}{path}"),
            Some(key) => {
                let tenant = self.tenant.as_deref().unwrap_or_default();
                let expires = seconds_since_1970(now + self.settings.lifetime);
                let signed = sign_body(key, signed_text(scope, expires, tenant).as_bytes());
                let digits = signed.strip_prefix(SIGNATURE_PREFIX).unwrap_or_default();
                format!(
                    "{base}{path}?{LINK_PARAMETER}={}.{expires}.{tenant}.{digits}",
                    scope.kind()
                )
            }
        }
    }
}

/// The reason why a link is rejected. The texts are for its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RejectedLink {
    /// The link is malformed, is for something else, was changed, or its key is not one of the builder's any more.
    #[error(
        "this link is not valid here: it was cut or changed, is for another build, or its key was replaced"
    )]
    Invalid,
    /// The link has expired.
    #[error("this link has expired")]
    Expired,
}

/// A link from the query of a request, which may be forged until it is
/// [verified](Self::verify_unless_signatures_disabled). It is for one build, or for all builds of a tenant. `Debug`
/// does not show its signature.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ReceivedBuildsLink {
    text: String,
    is_for_all_builds: bool,
    expires: u64,
    tenant: Option<TenantName>,
    signature: String,
}

impl ReceivedBuildsLink {
    /// Returns the link in a query; `None` if it has none.
    ///
    /// # Errors
    /// Fails if the link is malformed, or there are two.
    pub(crate) fn from_query(query: Option<&str>) -> Option<Result<Self, RejectedLink>> {
        let mut links = query
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.strip_prefix(LINK_PARAMETER)?.strip_prefix('='));
        let link = links.next()?;
        Some(match links.next() {
            None => Self::parse(link).ok_or(RejectedLink::Invalid),
            Some(_) => Err(RejectedLink::Invalid),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (kind, expires, tenant, digits) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_number = !expires.is_empty() && expires.bytes().all(|byte| byte.is_ascii_digit());
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if parts.next().is_some() || !is_number || digits.len() != 64 || !digits.bytes().all(is_hex) {
            return None;
        }
        Some(Self {
            text: text.to_owned(),
            is_for_all_builds: match kind {
                "builds" => true,
                "build" => false,
                _ => return None,
            },
            expires: expires.parse().ok()?,
            tenant: match tenant {
                "" => None,
                name => Some(name.parse().ok()?),
            },
            signature: format!("{SIGNATURE_PREFIX}{digits}"),
        })
    }

    /// Returns the tenant that the link names.
    pub(crate) fn tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    /// Returns whether the link is for all builds of its tenant.
    pub(crate) fn is_for_all_builds(&self) -> bool {
        self.is_for_all_builds
    }

    /// Returns the link as the parameter of a query, `link=…`, for further requests of its holder.
    pub(crate) fn as_parameter(&self) -> String {
        format!("{LINK_PARAMETER}={}", self.text)
    }

    /// Returns the text of the link, which is the value of the parameter `link`.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the time for which the link is still valid.
    pub(crate) fn time_left(&self, now: SystemTime) -> Duration {
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Valid to the end of this second.
        Duration::from_secs(self.expires.saturating_add(1)).saturating_sub(since_1970)
    }

    /// Verifies that the link lets its holder read what a request asks for: the build `id`, or with `None` the list.
    /// Returns the tenant whose builds these are; `None` without a policy, or if signatures are disabled and nothing is
    /// verified.
    ///
    /// # Errors
    /// Fails if the link is for something else, if no key of `check` signed it, or if it is not valid now.
    pub(crate) fn verify_unless_signatures_disabled(
        &self,
        check: &SignatureCheck,
        id: Option<&str>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Option<Arc<Tenant>>, RejectedLink> {
        let SignatureCheck::Required(keys) = check else {
            return Ok(None);
        };
        let scope = match (self.is_for_all_builds, id) {
            (true, _) => LinkScope::Builds,
            (false, Some(id)) => LinkScope::Build(id),
            (false, None) => return Err(RejectedLink::Invalid),
        };
        let named = self.tenant.as_ref().map(TenantName::as_str);
        let text = signed_text(scope, self.expires, named.unwrap_or_default());
        let verified = keys
            .derive(LINK_KEY_PURPOSE)
            .verify_text(text.as_bytes(), &self.signature)
            .ok_or(RejectedLink::Invalid)?;
        let tenant = verified.tenant().cloned();
        if tenant.as_ref().map(|tenant| tenant.name().as_str()) != named {
            return Err(RejectedLink::Invalid);
        }
        // A shorter lifetime holds for links that were signed before it was set, too.
        let latest = seconds_since_1970(now + lifetime + CLOCK_TOLERANCE);
        match (seconds_since_1970(now)..=latest).contains(&self.expires) {
            true => Ok(tenant),
            false => Err(RejectedLink::Expired),
        }
    }
}

impl fmt::Debug for ReceivedBuildsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedBuildsLink")
            .field("is_for_all_builds", &self.is_for_all_builds)
            .field("expires", &self.expires)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

/// Returns a query without its link; `None` if nothing else is in it.
pub(crate) fn query_without_link(query: &str) -> Option<String> {
    let is_link = |pair: &&str| {
        pair.strip_prefix(LINK_PARAMETER)
            .is_some_and(|rest| rest.starts_with('='))
    };
    let pairs: Vec<_> = query.split('&').filter(|pair| !is_link(pair)).collect();
    let query = pairs.join("&");
    (!query.is_empty()).then_some(query)
}

/// Encodes an ID for the path of a URL, so that it is one segment and no scheme.
pub(crate) fn encode_id(id: &str) -> String {
    utf8_percent_encode(id, ENCODED_IN_PATHS).to_string()
}

/// Returns the text that the signature of a link signs. The ID comes last: it is the only part that may contain a
/// newline.
fn signed_text(scope: LinkScope<'_>, expires: u64, tenant: &str) -> String {
    let id = match scope {
        LinkScope::Build(id) => id,
        LinkScope::Builds => "",
    };
    format!("{}\n{expires}\n{tenant}\n{id}", scope.kind())
}

fn seconds_since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use function_host::Secret;
    use function_host::policy::Policy;
    use proptest::prelude::*;

    use super::*;
    use crate::request::SignatureKeys;

    const TIME_OF_SIGNING: SystemTime = SystemTime::UNIX_EPOCH;

    fn check_with(secret: &str) -> SignatureCheck {
        SignatureCheck::Required(SignatureKeys::new(&Secret::new(secret), true).expect("a key"))
    }

    fn signer_with(key: &str) -> LinkSigner {
        LinkSigner {
            key: Some(
                HmacKeys::new(&Secret::new(key))
                    .expect("a key")
                    .derive(LINK_KEY_PURPOSE),
            ),
            tenant: None,
            settings: PageSettings::default(),
        }
    }

    fn link_in(address: &str) -> ReceivedBuildsLink {
        let (_, query) = address.split_once('?').expect("a query");
        ReceivedBuildsLink::from_query(Some(query))
            .expect("a link")
            .expect("a valid form")
    }

    fn verify_after_seconds(
        link: &ReceivedBuildsLink,
        secret: &str,
        id: Option<&str>,
        after: u64,
    ) -> Result<(), RejectedLink> {
        let lifetime = PageSettings::default().lifetime;
        link.verify_unless_signatures_disabled(
            &check_with(secret),
            id,
            lifetime,
            TIME_OF_SIGNING + Duration::from_secs(after),
        )
        .map(|_| ())
    }

    #[test]
    fn a_link_is_for_one_build_or_for_all_and_for_nothing_else() {
        let signer = signer_with("key");
        let one = link_in(&signer.address_of_build_page("a/b", TIME_OF_SIGNING));
        let all = link_in(&signer.address_of_list_page(TIME_OF_SIGNING));
        for (link, id, is_valid) in [
            (&one, Some("a/b"), true),
            (&one, Some("a"), false),
            (&one, Some("a/b\n"), false),
            (&one, Some(""), false),
            (&one, None, false),
            (&all, None, true),
            (&all, Some("a/b"), true),
        ] {
            assert_eq!(
                verify_after_seconds(link, "key", id, 0).is_ok(),
                is_valid,
                "{link:?} {id:?}"
            );
        }
        // No change makes a link to one build a link to all builds.
        let changed = one.text.replacen("build.", "builds.", 1);
        let changed = ReceivedBuildsLink::parse(&changed).expect("the form is right");
        assert_eq!(
            verify_after_seconds(&changed, "key", None, 0),
            Err(RejectedLink::Invalid)
        );
        let empty = link_in(&signer.address_of_build_page("", TIME_OF_SIGNING));
        let changed =
            ReceivedBuildsLink::parse(&empty.text.replacen("build.", "builds.", 1)).expect("a form");
        assert_eq!(
            verify_after_seconds(&changed, "key", None, 0),
            Err(RejectedLink::Invalid)
        );
    }

    #[test]
    fn a_link_expires_and_its_time_cannot_be_changed() {
        let link = link_in(&signer_with("key").address_of_build_page("a", TIME_OF_SIGNING));
        assert_eq!(link.expires, 86_400);
        assert_eq!(verify_after_seconds(&link, "key", Some("a"), 86_400), Ok(()));
        assert_eq!(
            verify_after_seconds(&link, "key", Some("a"), 86_401),
            Err(RejectedLink::Expired)
        );
        let later = ReceivedBuildsLink::parse(&link.text.replacen("86400", "96400", 1)).expect("a form");
        assert_eq!(
            verify_after_seconds(&later, "key", Some("a"), 86_401),
            Err(RejectedLink::Invalid)
        );
        let shorter = link.verify_unless_signatures_disabled(
            &check_with("key"),
            Some("a"),
            Duration::from_secs(60),
            TIME_OF_SIGNING,
        );
        assert_eq!(
            shorter.map(|_| ()),
            Err(RejectedLink::Expired),
            "the setting holds for old links"
        );
    }

    #[test]
    fn a_link_lives_as_long_as_its_key_and_is_no_signature_of_a_request() {
        let signer = signer_with("old");
        let link = link_in(&signer.address_of_build_page("a", TIME_OF_SIGNING));
        assert_eq!(verify_after_seconds(&link, "new\nold", Some("a"), 0), Ok(()));
        assert_eq!(
            verify_after_seconds(&link, "new", Some("a"), 0),
            Err(RejectedLink::Invalid)
        );
        let SignatureCheck::Required(keys) = check_with("old") else {
            panic!("keys are required");
        };
        let text = signed_text(LinkScope::Build("a"), link.expires, "");
        assert!(keys.verify_text(text.as_bytes(), &link.signature).is_none());
        let own = HmacKeys::new(&Secret::new("old")).expect("a key");
        let signed = sign_body(&own, text.as_bytes());
        let forged = ReceivedBuildsLink {
            signature: signed,
            ..link
        };
        assert_eq!(
            verify_after_seconds(&forged, "old", Some("a"), 0),
            Err(RejectedLink::Invalid)
        );
    }

    #[test]
    fn a_link_of_one_tenant_shows_nothing_of_another() {
        let policy = r#"{"tenants": {"acme": {"keys": ["a"]}, "globex": {"keys": ["g"]}}}"#;
        let policy = Policy::parse(policy).expect("a policy");
        let secrets = ["acme", "globex"].map(|name| {
            let tenant = policy.tenant(name).expect("a tenant").clone();
            (tenant, Secret::new(format!("the key of {name}")))
        });
        let check = SignatureCheck::Required(SignatureKeys::of_tenants(secrets, true));
        let signer = LinkSigner {
            tenant: Some("acme".to_owned()),
            ..signer_with("the key of acme")
        };
        let link = link_in(&signer.address_of_list_page(TIME_OF_SIGNING));
        let lifetime = PageSettings::default().lifetime;
        let tenant = link
            .verify_unless_signatures_disabled(&check, None, lifetime, TIME_OF_SIGNING)
            .expect("a valid link");
        assert_eq!(tenant.expect("a tenant").name().as_str(), "acme");

        for changed in [
            link.text.replace(".acme.", ".globex."),
            link.text.replace(".acme.", ".."),
        ] {
            let changed = ReceivedBuildsLink::parse(&changed).expect("a form");
            assert!(
                changed
                    .verify_unless_signatures_disabled(&check, None, lifetime, TIME_OF_SIGNING)
                    .is_err(),
                "{changed:?}"
            );
        }
        // A tenant signs whatever it likes with its own key, and names another tenant.
        let signer = LinkSigner {
            tenant: Some("globex".to_owned()),
            ..signer
        };
        let forged = link_in(&signer.address_of_list_page(TIME_OF_SIGNING));
        assert!(
            forged
                .verify_unless_signatures_disabled(&check, None, lifetime, TIME_OF_SIGNING)
                .is_err()
        );
    }

    #[test]
    fn a_malformed_or_repeated_link_is_rejected_and_a_query_may_have_none() {
        let good = link_in(&signer_with("key").address_of_list_page(TIME_OF_SIGNING)).text;
        for query in [
            "link=".to_owned(),
            format!("link={good}&link={good}"),
            format!("link={good}."),
            format!("link={}", good.to_uppercase()),
            format!("link=+{good}"),
            format!("link={}", good.replacen("86400", "+86400", 1)),
            format!("link={}", good.replacen("86400", "99999999999999999999", 1)),
            format!("link={}", good.replacen("..", ".A.", 1)),
            format!("link={}", good.replacen("builds", "all", 1)),
        ] {
            let link = ReceivedBuildsLink::from_query(Some(&query));
            assert_eq!(link, Some(Err(RejectedLink::Invalid)), "{query}");
        }
        assert_eq!(ReceivedBuildsLink::from_query(Some("links=x&from=3")), None);
        assert_eq!(ReceivedBuildsLink::from_query(None), None);
        assert_eq!(
            query_without_link(&format!("state=failed&link={good}&limit=3")).as_deref(),
            Some("state=failed&limit=3")
        );
        assert_eq!(query_without_link(&format!("link={good}")), None);
    }

    #[test]
    fn a_link_ends_with_the_key_that_signed_the_request_for_it() {
        let SignatureCheck::Required(during_rotation) = check_with("new\nold") else {
            panic!("keys");
        };
        for (own, other) in [("old", "new"), ("new", "old")] {
            let signed = sign_body(&HmacKeys::new(&Secret::new(own)).expect("a key"), b"question");
            let signature = during_rotation
                .verify_text(b"question", &signed)
                .expect("a valid signature");
            let signer = LinkSigner::new(Some(&signature), &PageSettings::default());
            for address in [
                signer.address_of_list_page(TIME_OF_SIGNING),
                signer.address_of_build_page("a", TIME_OF_SIGNING),
            ] {
                let link = link_in(&address);
                assert_eq!(verify_after_seconds(&link, "new\nold", Some("a"), 0), Ok(()));
                assert_eq!(verify_after_seconds(&link, own, Some("a"), 0), Ok(()));
                assert_eq!(
                    verify_after_seconds(&link, other, Some("a"), 0),
                    Err(RejectedLink::Invalid)
                );
            }
        }
    }

    #[test]
    fn no_signature_of_a_link_is_in_its_debug_text() {
        let link = link_in(&signer_with("key").address_of_list_page(TIME_OF_SIGNING));
        let digits = link.signature.strip_prefix(SIGNATURE_PREFIX).expect("digits");
        assert!(!format!("{link:?}").contains(digits));
    }

    proptest! {
        #[test]
        fn an_encoded_id_is_one_segment_and_no_scheme(id in "\\PC*") {
            let encoded = encode_id(&id);
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"%-_".contains(&byte)));
            prop_assert_eq!(percent_encoding::percent_decode_str(&encoded).decode_utf8().expect("UTF-8"), id);
        }
    }
}
