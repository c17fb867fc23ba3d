//! Reads the secrets with the keys of tenants, so that one unusable secret locks out its own tenant only.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error_chain::ErrorChain;
use crate::secret::{Secret, Secrets};
use crate::signature;

/// A reader of secrets with keys, which logs an unusable secret once until it is usable again. Clones share what was
/// logged.
#[derive(Clone, Debug, Default)]
pub struct KeySecretReader {
    unusable: Arc<Mutex<BTreeSet<String>>>,
}

impl KeySecretReader {
    /// Reads a secret with keys, one on each line; `None` if it cannot be read, or is not fit for signatures.
    pub fn read_usable_key_secret_or_log(&self, secrets: &Secrets, name: &str) -> Option<Secret> {
        let problem = match secrets.read_secret(name) {
            Ok(secret) => match signature::check_key_lines(&secret) {
                Ok(()) => {
                    self.lock_unusable_names().remove(name);
                    return Some(secret);
                }
                Err(weak) => weak.to_string(),
            },
            Err(error) => ErrorChain(&error).to_string(),
        };
        if self.lock_unusable_names().insert(name.to_owned()) {
            tracing::error!(
                secret = name,
                error = problem,
                "a tenant's key cannot be used; what is signed with it is rejected"
            );
        }
        None
    }

    fn lock_unusable_names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unusable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
