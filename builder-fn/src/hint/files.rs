//! The files of a context, as the rules ask for them.

/// The files of a context. Paths are relative to it, without `./` and without a slash at the end.
pub trait ContextFiles {
    /// Returns whether the context has a file, a folder or a link at `path`.
    fn has(&self, path: &str) -> bool;

    /// Returns the entry directly in `folder` (empty for the context itself) whose name is `name` in another case, if
    /// exactly one is.
    fn find_only_name_in_other_case(&self, folder: &str, name: &str) -> Option<String>;

    /// Returns up to `limit` bytes from the beginning of the file at `path`; `None` if it is missing or cannot be read.
    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>>;
}

/// The context of a build whose files are not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl ContextFiles for NoFiles {
    fn has(&self, _: &str) -> bool {
        false
    }

    fn find_only_name_in_other_case(&self, _: &str, _: &str) -> Option<String> {
        None
    }

    fn read_beginning(&self, _: &str, _: usize) -> Option<Vec<u8>> {
        None
    }
}
