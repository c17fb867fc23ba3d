//! The wait for a change of files in a directory.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::unix::AsyncFd;

use crate::error::ProviderError;

/// A watch for changes of the files in a directory.
pub(super) struct DirectoryWatch {
    events: AsyncFd<OwnedFd>,
}

impl DirectoryWatch {
    /// Starts to watch a directory, which must exist, for new and changed files.
    pub(super) fn new(directory: &Path) -> Result<Self, ProviderError> {
        let failed = || ProviderError::io_error("watch", directory);
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| failed()(e.into()))?;
        let what = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVED_TO;
        add_watch(&events, directory, what).map_err(|e| failed()(e.into()))?;
        #[expect(
            deprecated,
            reason = "the replacement is unsafe, and an OwnedFd already guarantees what it requires"
        )]
        let events = AsyncFd::new(events).map_err(failed())?;
        Ok(Self { events })
    }

    /// Waits for a change of the directory's files since the last call, or since the watch was created.
    pub(super) async fn wait_for_change_since_last_call(&mut self) -> Result<(), ProviderError> {
        let failed = || ProviderError::io_error("watch", "logs");
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.events.readable().await.map_err(failed())?;
            // The kind of change does not matter, because the reader reads all files.
            let read = ready
                .try_io(|events| rustix::io::read(events.get_ref(), &mut buffer).map_err(io::Error::from));
            match read {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(failed()(error)),
                Err(_would_block) => {}
            }
        }
    }
}
