//! Checks of the addresses that an HTTP client connects to, after names have been resolved.
//!
//! A name can be resolved to another address each time, so a check before the connection says nothing. The resolver of
//! the connection itself is checked here, and the client connects to nothing else than what it returned.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A function that decides whether an HTTP client may connect to an address. If not, it fails with the kind of the
/// address, such as `a private address`.
pub type AddressCheck = Arc<dyn Fn(IpAddr) -> Result<(), &'static str> + Send + Sync>;

/// The error for a host that is, or was resolved to, an address to which the client may not connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressDenied {
    /// The host: the name that was resolved, or the address itself.
    pub host: String,
    /// The address that was denied.
    pub address: IpAddr,
    /// The kind of the address, as the check named it.
    pub kind: &'static str,
}

/// Fails if the host of `uri` is an IP address that `check` denies. A host name passes: its addresses are checked when
/// it is resolved.
pub(crate) fn check_literal_address(check: &AddressCheck, uri: &http::Uri) -> Result<(), AddressDenied> {
    let host = uri.host().unwrap_or_default();
    let Ok(address) = host.trim_matches(['[', ']']).parse() else {
        return Ok(());
    };
    check(address).map_err(|kind| AddressDenied {
        host: host.to_owned(),
        address,
        kind,
    })
}

impl AddressDenied {
    /// Returns the [`AddressDenied`] in an error: the error itself, or one of its sources.
    pub(crate) fn find_in<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(denied) = error.downcast_ref() {
                return Some(denied);
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Display for AddressDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, address, kind } = self;
        match host.trim_matches(['[', ']']).parse() == Ok(*address) {
            true => write!(f, "{address} is {kind}"),
            false => write!(f, "{host} has the address {address}, which is {kind}"),
        }
    }
}

impl std::error::Error for AddressDenied {}

#[cfg(feature = "tls")]
pub(crate) use resolver::ResolverFailingOnAnyDeniedAddress;

#[cfg(feature = "tls")]
mod resolver {
    use std::future::Future;
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
    use tower_service::Service;

    use super::{AddressCheck, AddressDenied};
    use crate::error_chain::BoxError;

    /// The system's resolver, which fails for a name if any of its addresses is denied.
    ///
    /// A name with a public and a private address is denied as a whole: it would otherwise depend on the order of the
    /// addresses, and on which of them answers, what is reached.
    #[derive(Clone)]
    pub(crate) struct ResolverFailingOnAnyDeniedAddress {
        system: GaiResolver,
        check: Option<AddressCheck>,
    }

    impl ResolverFailingOnAnyDeniedAddress {
        /// Creates the resolver; without `check`, it denies no address.
        pub(crate) fn new(check: Option<AddressCheck>) -> Self {
            Self {
                system: GaiResolver::new(),
                check,
            }
        }
    }

    impl Service<Name> for ResolverFailingOnAnyDeniedAddress {
        type Response = std::vec::IntoIter<SocketAddr>;
        type Error = BoxError;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, name: Name) -> Self::Future {
            let (host, check) = (name.as_str().to_owned(), self.check.clone());
            let resolving = self.system.call(name);
            Box::pin(async move {
                let addresses: Vec<SocketAddr> = resolving.await?.collect();
                if let Some(check) = check {
                    for address in &addresses {
                        check(address.ip()).map_err(|kind| AddressDenied {
                            host: host.clone(),
                            address: address.ip(),
                            kind,
                        })?;
                    }
                }
                Ok(addresses.into_iter())
            })
        }
    }
}
