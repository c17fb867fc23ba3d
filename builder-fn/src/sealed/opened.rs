//! The opened secrets of a build.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::buildkit::SecretStore;
use crate::redact::SecretMask;

/// The opened secrets of one build, by name. Clones share the values, which are overwritten when the last clone
/// is dropped. `Debug` shows the names only.
#[derive(Clone, Default)]
pub(crate) struct BuildSecrets {
    values: Arc<BTreeMap<String, Zeroizing<Vec<u8>>>>,
    mask: SecretMask,
}

impl BuildSecrets {
    /// Returns the secrets with these names and values, and builds their mask.
    pub(super) fn new(values: BTreeMap<String, Zeroizing<Vec<u8>>>) -> Self {
        Self {
            mask: SecretMask::new(values.values().map(|value| value.as_slice())),
            values: Arc::new(values),
        }
    }

    /// Returns the mask for these secrets in everything that the build reports.
    pub(crate) fn mask(&self) -> &SecretMask {
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
