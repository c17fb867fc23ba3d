//! Secrets as a build has them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

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

    /// The value of one.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(|value| value.as_slice())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What hides them where they are not to be seen.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }
}

impl fmt::Debug for BuildSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}
