//! The identity of a function, and the name and namespace that a hand-over gives it.

use std::fmt;

/// The identity of a function: its name and its namespace, with the default one filled in.
///
/// Deployments are queued and remembered by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FunctionId {
    name: String,
    namespace: String,
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// The name of a function and its namespace, as the hand-over gives them. Requests are made from it, so that
/// the provider decides which namespace is its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FunctionAddress {
    /// The function's name.
    pub(crate) name: String,
    /// The function's namespace; absent for the provider's default namespace.
    pub(crate) namespace: Option<String>,
}

impl FunctionAddress {
    /// Returns the identity of the function, if functions without a namespace are in `default_namespace`.
    pub(crate) fn identity(&self, default_namespace: &str) -> FunctionId {
        FunctionId {
            name: self.name.clone(),
            namespace: self.namespace.as_deref().unwrap_or(default_namespace).to_owned(),
        }
    }

    /// Returns the path under which the gateway calls the function, `/function/NAME[.NAMESPACE]`.
    pub(crate) fn call_path(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("/function/{}.{namespace}", self.name),
            None => format!("/function/{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_without_a_namespace_is_the_one_in_the_default_namespace() {
        let id = |namespace: Option<&str>| {
            let address = FunctionAddress {
                name: "hello".to_owned(),
                namespace: namespace.map(str::to_owned),
            };
            address.identity("openfaas-fn")
        };
        assert_eq!(id(None), id(Some("openfaas-fn")));
        assert_ne!(id(None), id(Some("team")));
        assert_eq!(id(None).to_string(), "hello.openfaas-fn");
    }
}
