//! The identity of a function: its name, its namespace and its tenant.

use std::fmt;
use std::str::FromStr;

use function_host::policy::TenantName;
use serde_json::{Map, Value};

/// The identity of a function: its name, its namespace and, with a policy, its tenant. Functions of two tenants are
/// two, whatever their names, so that no tenant's build ends another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId {
    tenant: Option<String>,
    name: String,
    namespace: String,
}

/// The error for a text that is not of the form `NAME.NAMESPACE` or `TENANT/NAME.NAMESPACE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("should be NAME.NAMESPACE or TENANT/NAME.NAMESPACE")]
pub struct NotFunctionId;

impl FunctionId {
    /// Creates the identity of the function `name` in `namespace`, which belongs to no tenant.
    pub fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            tenant: None,
            name: name.into(),
            namespace: namespace.into(),
        }
    }

    /// Returns the identity of the function of this name and namespace that belongs to `tenant`.
    #[must_use]
    pub fn of_tenant(self, tenant: &TenantName) -> Self {
        Self {
            tenant: Some(tenant.to_string()),
            ..self
        }
    }

    /// Returns the name of the tenant, if there is one.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Returns the name and the namespace, `NAME.NAMESPACE`.
    pub(crate) fn without_tenant(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// Returns the identity of the function in a config's `deploy`, without a tenant, or `None` if it names no
    /// function. A missing namespace becomes the default one, so that both forms of a function's name are one identity.
    /// Rejects a name with a slash: no provider has such functions, and the slash separates the tenant in the
    /// identity's text.
    pub fn from_deploy_config(deploy: &Map<String, Value>, default_namespace: &str) -> Option<Self> {
        let name = non_empty_text_in_any_case(deploy, "service").filter(|name| !name.contains('/'))?;
        let namespace = non_empty_text_in_any_case(deploy, "namespace").unwrap_or(default_namespace);
        Some(Self::new(name, namespace))
    }
}

/// Returns the text of `key`, unless it is empty. A key in another case counts if none is spelled exactly so, as in
/// Go's own JSON reader.
fn non_empty_text_in_any_case<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    let value = map.get(key).or_else(|| {
        let mut values = map.iter();
        values
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    });
    value?.as_str().filter(|text| !text.is_empty())
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tenant) = &self.tenant {
            write!(f, "{tenant}/")?;
        }
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FromStr for FunctionId {
    type Err = NotFunctionId;

    /// Parses a function's identity from `NAME.NAMESPACE` or `TENANT/NAME.NAMESPACE`. A namespace contains no dot.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tenant, function) = match text.split_once('/') {
            Some((tenant, function)) => (Some(tenant), function),
            None => (None, text),
        };
        let (name, namespace) = function.rsplit_once('.').ok_or(NotFunctionId)?;
        if name.is_empty() || namespace.is_empty() || tenant.is_some_and(str::is_empty) {
            return Err(NotFunctionId);
        }
        Ok(Self {
            tenant: tenant.map(str::to_owned),
            ..Self::new(name, namespace)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the text of the identity in a config's `deploy`, with the default namespace `openfaas-fn`.
    fn text_of_deployed(deploy: Value) -> Option<String> {
        let id = FunctionId::from_deploy_config(deploy.as_object().expect("an object"), "openfaas-fn");
        id.map(|id| id.to_string())
    }

    #[test]
    fn a_function_without_a_namespace_is_the_one_in_the_default_namespace() {
        for deploy in [
            json!({"service": "hello"}),
            json!({"service": "hello", "namespace": ""}),
            json!({"service": "hello", "namespace": null}),
            json!({"service": "hello", "namespace": "openfaas-fn"}),
            json!({"Service": "hello", "Namespace": "openfaas-fn"}),
        ] {
            assert_eq!(text_of_deployed(deploy).as_deref(), Some("hello.openfaas-fn"));
        }
        assert_eq!(
            text_of_deployed(json!({"service": "hello", "namespace": "dev"})).as_deref(),
            Some("hello.dev")
        );
        for deploy in [
            json!({}),
            json!({"service": ""}),
            json!({"service": 1}),
            json!({"service": "acme/hello"}),
        ] {
            assert_eq!(text_of_deployed(deploy), None);
        }
    }

    #[test]
    fn functions_of_one_name_in_two_tenants_have_different_identities() {
        let hello = FunctionId::new("hello", "openfaas-fn");
        let tenants =
            ["acme", "globex"].map(|name| hello.clone().of_tenant(&name.parse().expect("a tenant's name")));
        assert_ne!(tenants[0], tenants[1]);
        assert_ne!(tenants[0], hello);
    }

    #[test]
    fn a_text_is_parsed_to_the_identity_that_it_was_made_of() {
        for (name, namespace) in [("hello", "openfaas-fn"), ("hello.v2", "dev")] {
            let id = FunctionId::new(name, namespace);
            assert_eq!(id.to_string().parse(), Ok(id.clone()));
            let of_acme = id.of_tenant(&"acme".parse().expect("a tenant's name"));
            assert_eq!(of_acme.to_string(), format!("acme/{name}.{namespace}"));
            assert_eq!(of_acme.to_string().parse(), Ok(of_acme));
        }
        for text in [
            "",
            "hello",
            ".dev",
            "hello.",
            "/hello.dev",
            "acme/hello",
            "acme/.dev",
        ] {
            assert_eq!(text.parse::<FunctionId>(), Err(NotFunctionId), "{text:?}");
        }
    }
}
