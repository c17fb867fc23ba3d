//! Notice of changes in the sources of functions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify_debouncer_mini::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_mini::{DebounceEventResult, Debouncer, new_debouncer};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// The time for which nothing may change before a change counts: an editor writes several files in a row.
const QUIET_TIME: Duration = Duration::from_millis(150);

/// A watcher of files and folders.
pub(super) struct SourceWatcher {
    debouncer: Debouncer<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
}

impl SourceWatcher {
    /// Creates a watcher that watches nothing yet.
    ///
    /// # Errors
    /// Fails if the system has no means to watch files left.
    pub(super) fn new() -> Result<Self, Failure> {
        // One change that waits stands for all that came before it is looked at.
        let (sender, changes) = mpsc::channel(1);
        let on_change = move |_: DebounceEventResult| {
            let _ = sender.try_send(());
        };
        let debouncer =
            new_debouncer(QUIET_TIME, on_change).map_err(|error| unwatchable(Path::new("."), &error))?;
        Ok(Self {
            debouncer,
            watched: BTreeSet::new(),
            changes,
        })
    }

    /// Watches these folders and all that is in them, and the stack file, in addition to what is watched.
    ///
    /// # Errors
    /// Fails if one of them cannot be watched.
    pub(super) fn watch(
        &mut self,
        folders: impl Iterator<Item = PathBuf>,
        stack_file: &Path,
    ) -> Result<(), Failure> {
        // Editors replace a file by another one, so its folder is watched.
        let parent = stack_file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).to_owned();
        let folders = folders.map(|folder| (folder, RecursiveMode::Recursive));
        for (path, mode) in folders.chain([(parent, RecursiveMode::NonRecursive)]) {
            if self.watched.contains(&path) {
                continue;
            }
            self.debouncer
                .watcher()
                .watch(&path, mode)
                .map_err(|error| unwatchable(&path, &error))?;
            self.watched.insert(path);
        }
        Ok(())
    }

    /// Waits for a change since the last call.
    pub(super) async fn wait_for_change(&mut self) {
        if self.changes.recv().await.is_none() {
            // The sender lives as long as the watcher.
            std::future::pending::<()>().await;
        }
    }
}

fn unwatchable(path: &Path, error: &notify_debouncer_mini::notify::Error) -> Failure {
    Failure::platform(
        format!("could not watch {}: {error}", path.display()),
        "raise fs.inotify.max_user_watches, or run slipway up after each change",
    )
}
