//! Secrets as a build has them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::buildkit::SecretStore;
use crate::report::Mask;

/// Opened secrets, by name. Values are overwritten when the last clone goes, and not shown by `Debug`.
#[derive(Clone, Default)]
pub struct BuildSecrets {
    values: Arc<BTreeMap<String, Zeroizing<Vec<u8>>>>,
    mask: Mask,
}

impl BuildSecrets {
    pub(super) fn new(values: BTreeMap<String, Zeroizing<Vec<u8>>>) -> Self {
        Self {
            mask: Mask::of(values.values().map(|value| value.as_slice())),
            values: Arc::new(values),
        }
    }

    /// What hides them where they are not to be seen.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }
}

impl SecretStore for BuildSecrets {
    fn secret(&self, id: &str) -> Option<&[u8]> {
        self.values.get(id).map(|value| value.as_slice())
    }

    fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl fmt::Debug for BuildSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}
