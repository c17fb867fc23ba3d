//! The identity of a function.

/// Name and namespace of a function, as the hand-over gives them.
///
/// Without a namespace the provider's default one is meant. This is the one key by which deployments are queued and
/// remembered, and from which addresses are made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FunctionId {
    /// The function's name.
    pub(crate) name: String,
    /// The namespace; the provider's default if absent.
    pub(crate) namespace: Option<String>,
}

impl FunctionId {
    /// Returns the path under which the gateway calls the function, `/function/NAME[.NAMESPACE]`.
    pub(crate) fn path(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("/function/{}.{namespace}", self.name),
            None => format!("/function/{}", self.name),
        }
    }
}
