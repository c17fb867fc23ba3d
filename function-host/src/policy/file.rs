//! The file with the policy, which is read again when it changes.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::IntGauge;

use super::Policy;
use super::error::PolicyFileError;
use crate::error_chain::ErrorChain;
use crate::secret::FileVersion;

/// The size of the largest policy, in bytes: what a Kubernetes ConfigMap may hold.
const MAX_POLICY_BYTES: u64 = 1024 * 1024;

/// A handle of the file with the operator's policy, which is read again when it changes.
///
/// A changed file that cannot be used leaves the last good policy in force, and is logged once. Clones
/// share the policy.
#[derive(Clone)]
pub struct PolicyFile(Arc<SharedPolicyFile>);

/// The path of the policy's file, with the state that clones of a [`PolicyFile`] share.
struct SharedPolicyFile {
    path: PathBuf,
    state: Mutex<PolicyFileState>,
    is_valid: OnceLock<IntGauge>,
}

/// The policy that is in force, with the version of the file.
struct PolicyFileState {
    /// The version of the file that was looked at last, whether it could be used or not; `None` if there was no file.
    version: Option<FileVersion>,
    policy: Arc<Policy>,
}

impl PolicyFile {
    /// Reads the policy in the file at `path`.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or has no valid policy.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PolicyFileError> {
        let path = path.into();
        let (version, text) = read_policy_text(&path)?;
        let policy = parse(&path, &text)?;
        Ok(Self(Arc::new(SharedPolicyFile {
            path,
            state: Mutex::new(PolicyFileState {
                version: Some(version),
                policy: Arc::new(policy),
            }),
            is_valid: OnceLock::new(),
        })))
    }

    /// Sets a gauge to 1 while the file has the policy that is in force, and to 0 after a change that cannot be used.
    pub fn show_validity_in(&self, gauge: IntGauge) {
        gauge.set(1);
        // A second gauge is not shown: a function has one.
        let _ = self.0.is_valid.set(gauge);
    }

    /// Returns the policy that is in force. Takes one `stat` call if the file has not changed.
    pub fn reload_if_changed(&self) -> Arc<Policy> {
        let version = std::fs::metadata(&self.0.path)
            .ok()
            .as_ref()
            .map(FileVersion::from_metadata);
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version != version {
            self.0.reload_policy(&mut state, version);
        }
        Arc::clone(&state.policy)
    }
}

impl SharedPolicyFile {
    /// Reads the changed file. A valid policy is in force from then on; otherwise the last one stays, and the error is
    /// logged.
    fn reload_policy(&self, state: &mut PolicyFileState, version: Option<FileVersion>) {
        // A file that is replaced while it is read is read again: its version is not the one recorded here.
        state.version = version;
        let path = self.path.display();
        let loaded =
            read_policy_text(&self.path).and_then(|(version, text)| Ok((version, parse(&self.path, &text)?)));
        let is_valid = match loaded {
            Ok((version, policy)) => {
                state.version = Some(version);
                if *state.policy != policy {
                    tracing::info!(%path, tenants = policy.tenants().count(), "the policy has changed");
                    state.policy = Arc::new(policy);
                }
                true
            }
            Err(error) => {
                tracing::error!(%path, error = %ErrorChain(&error), "could not use the changed policy; the last one stays in force");
                false
            }
        };
        if let Some(gauge) = self.is_valid.get() {
            gauge.set(is_valid.into());
        }
    }
}

impl fmt::Debug for PolicyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyFile")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

/// Reads the file, and returns its content with the version that was read.
fn read_policy_text(path: &Path) -> Result<(FileVersion, String), PolicyFileError> {
    let failed = |source| PolicyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let version = FileVersion::from_metadata(&file.metadata().map_err(failed)?);
    let mut text = String::new();
    file.take(MAX_POLICY_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_POLICY_BYTES {
        return Err(PolicyFileError::TooLarge {
            path: path.to_owned(),
            limit: MAX_POLICY_BYTES,
        });
    }
    Ok((version, text))
}

/// Parses the text of the policy's file at `path`.
fn parse(path: &Path, text: &str) -> Result<Policy, PolicyFileError> {
    Policy::parse(text).map_err(|source| PolicyFileError::Invalid {
        path: path.to_owned(),
        source,
    })
}
