//! Notice of changes in the sources of functions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::failure::Failure;

/// The time for which nothing may change before a change counts: an editor writes several files in a row.
const QUIET_TIME: Duration = Duration::from_millis(150);

/// A watcher of files and folders.
pub(super) struct SourceWatcher {
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    changes: mpsc::Receiver<()>,
    /// Whether something has changed that no call has returned for.
    has_changed: bool,
}

impl SourceWatcher {
    /// Creates a watcher that watches nothing yet.
    ///
    /// # Errors
    /// Fails if the system has no means to watch files left.
    pub(super) fn new() -> Result<Self, Failure> {
        // One change that waits stands for all that came before it is looked at.
        let (sender, changes) = mpsc::channel(1);
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                let _ = sender.try_send(());
            }
        };
        let watcher =
            notify::recommended_watcher(on_event).map_err(|error| unwatchable(Path::new("."), &error))?;
        Ok(Self {
            watcher,
            watched: Vec::new(),
            changes,
            has_changed: false,
        })
    }

    /// Watches these folders and all that is in them, and these single files, and nothing else. Folders that were watched
    /// before are watched anew, because another folder may have taken their place. A change of another file beside a
    /// single one may count too.
    ///
    /// # Errors
    /// Fails if one of them cannot be watched.
    pub(super) fn watch_only(
        &mut self,
        folders: impl IntoIterator<Item = PathBuf>,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<(), Failure> {
        for path in self.watched.drain(..) {
            // Fails for a folder that was removed.
            let _ = self.watcher.unwatch(&path);
        }
        let folders: Vec<_> = folders.into_iter().collect();
        // Editors replace a file by another one, so its folder is watched, unless it is in one that is watched already.
        let parents = files.into_iter().map(|file| match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        });
        let parents = parents.filter(|parent| !folders.iter().any(|folder| is_in_folder(parent, folder)));
        let parents: Vec<_> = parents
            .map(|parent| (parent, RecursiveMode::NonRecursive))
            .collect();
        let folders = folders
            .into_iter()
            .map(|folder| (folder, RecursiveMode::Recursive));
        for (path, mode) in folders.chain(parents) {
            if self.watched.contains(&path) {
                continue;
            }
            self.watcher
                .watch(&path, mode)
                .map_err(|error| unwatchable(&path, &error))?;
            self.watched.push(path);
        }
        Ok(())
    }

    /// Waits for a change since the last call that returned, and until nothing changes any more. A call that is dropped
    /// loses no change.
    pub(super) async fn wait_for_change_and_quiet(&mut self) {
        if !self.has_changed && self.changes.recv().await.is_none() {
            // The sender lives as long as the watcher.
            std::future::pending::<()>().await;
        }
        self.has_changed = true;
        while let Ok(Some(())) = timeout(QUIET_TIME, self.changes.recv()).await {}
        self.has_changed = false;
    }
}

/// Returns whether `path` is `folder` or in it, as the paths are written.
fn is_in_folder(path: &Path, folder: &Path) -> bool {
    let without_dot = |path: &Path| path.strip_prefix(".").unwrap_or(path).to_owned();
    let is_relative = path.is_relative() && folder.is_relative();
    match without_dot(folder) {
        folder if folder.as_os_str().is_empty() => is_relative,
        folder => without_dot(path).starts_with(folder),
    }
}

/// Returns whether an event may have changed a file. Reading one does not, and this command reads them all.
fn is_change(kind: EventKind) -> bool {
    !kind.is_access()
}

fn unwatchable(path: &Path, error: &notify::Error) -> Failure {
    Failure::platform(
        format!("could not watch {}: {error}", path.display()),
        "raise fs.inotify.max_user_watches, or run slipway up after each change",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};

    use super::*;

    #[test]
    fn reading_a_file_is_no_change() {
        for (kind, expected) in [
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), false),
            (EventKind::Create(CreateKind::File), true),
            (EventKind::Modify(ModifyKind::Any), true),
            (EventKind::Remove(RemoveKind::File), true),
            (EventKind::Any, true),
        ] {
            assert_eq!(is_change(kind), expected, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_saved_file_is_a_change_also_in_a_folder_that_was_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let handler = folder.path().join("handler");
        fs::create_dir(&handler).expect("a folder");
        let mut watcher = SourceWatcher::new().expect("a watcher");
        let stack_file = folder.path().join("stack.yaml");
        let watch = |watcher: &mut SourceWatcher| {
            let watched = watcher.watch_only([handler.clone()], [stack_file.clone()]);
            watched.expect("it is watched");
        };
        watch(&mut watcher);
        fs::write(handler.join("file"), "one").expect("a file");
        watcher.wait_for_change_and_quiet().await;
        fs::remove_dir_all(&handler).expect("a folder");
        fs::create_dir(&handler).expect("a folder");
        watcher.wait_for_change_and_quiet().await;
        watch(&mut watcher);
        fs::write(handler.join("file"), "two").expect("a file");
        watcher.wait_for_change_and_quiet().await;
    }

    #[test]
    fn paths_are_compared_with_folders_by_their_parts() {
        for (path, folder, expected) in [
            ("a", "a", true),
            ("./a/b", "a", true),
            ("a/b", "./a", true),
            ("ab", "a", false),
            (".", "a", false),
            ("a", ".", true),
            ("/a", ".", false),
            ("/a/b", "/a", true),
        ] {
            assert_eq!(
                is_in_folder(Path::new(path), Path::new(folder)),
                expected,
                "{path} in {folder}"
            );
        }
    }

    #[tokio::test]
    async fn a_single_file_is_watched_where_it_is_and_also_when_it_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets = folder.path().join("secrets");
        fs::create_dir(&secrets).expect("a folder");
        let file = secrets.join("token");
        fs::write(&file, "one").expect("a file");
        let mut watcher = SourceWatcher::new().expect("a watcher");
        let watched = watcher.watch_only([], [folder.path().join("stack.yaml"), file.clone()]);
        watched.expect("it is watched");
        fs::write(&file, "two").expect("a file");
        watcher.wait_for_change_and_quiet().await;
        let next = secrets.join("next");
        fs::write(&next, "three").expect("a file");
        watcher.wait_for_change_and_quiet().await;
        fs::rename(&next, &file).expect("a file");
        watcher.wait_for_change_and_quiet().await;
    }
}
