//! The order of paths in which BuildKit wants them: per component, a folder directly before what is in it.
//!
//! That is the order of bytes once `/` counts as lower than any other. It differs from the order of strings:
//! `a/b` comes before `a.txt` here.

use std::cmp::Ordering;

/// `/` as the byte below all that may be in a name. Names hold no NUL.
pub(super) const SEPARATOR: char = '\0';

/// Compares two relative paths without `.` and empty components.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    left.bytes().map(lowered).cmp(right.bytes().map(lowered))
}

/// A string whose plain order is that of [`compare`]; [`path`] turns it back. It has no room for more: there is one for each
/// file of a context.
pub(super) fn key(path: &str) -> String {
    swapped(path.to_owned(), b'/', SEPARATOR as u8)
}

/// The path of a [`key`], in the same memory.
pub(super) fn path(key: String) -> String {
    swapped(key, SEPARATOR as u8, b'/')
}

/// Both are ASCII, so that what was UTF-8 still is.
fn swapped(text: String, from: u8, to: u8) -> String {
    let mut bytes = text.into_bytes();
    for byte in bytes.iter_mut().filter(|byte| **byte == from) {
        *byte = to;
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Whether `path` is in `folder`, at any depth.
pub(super) fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn lowered(byte: u8) -> u8 {
    if byte == b'/' { 0 } else { byte }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_folder_comes_before_its_longer_named_siblings() {
        let sorted = ["a", "a/b", "a/b/c", "a/b-c", "a!", "a-b", "a.txt", "a0", "b"];
        let mut shuffled = sorted;
        shuffled.reverse();
        shuffled.sort_by(|left, right| compare(left, right));
        assert_eq!(shuffled, sorted);
    }

    #[test]
    fn keys_sort_as_paths_compare() {
        let paths = ["a", "a/b", "a!", "a-b/c", "a.txt", "ä", "a/ü", "z/z/z"];
        for left in paths {
            for right in paths {
                assert_eq!(
                    key(left).cmp(&key(right)),
                    compare(left, right),
                    "{left} and {right}"
                );
            }
            assert_eq!(path(key(left)), left);
        }
    }
}
