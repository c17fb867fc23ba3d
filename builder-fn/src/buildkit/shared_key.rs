//! Shared keys: the keys under which the daemon keeps transferred folders, to reuse them for later builds.
//!
//! BuildKit keeps the folder that it was last sent under (name, hint, shared key). The next time it requests only the
//! files that differ from it in size, time, mode, owner or link name, and never those that differ in content alone. So
//! the key decides which other builds' files a build can receive. Therefore:
//!
//! - This process makes each key at random. One build uses it at a time, and only builds of one image use it.
//! - Everything that was announced under a key is remembered, with a hash of its content ([`announcements`]), which is
//!   computed while the content is sent ([`sent_contents`]), and for large files with a hash of the blocks of the body in
//!   which they arrived, so that an unchanged one need not be read.
//! - A file whose place in the daemon may hold an older content is announced with a bit in its mode that makes the
//!   daemon request it, whatever it has (`session/filesync/stat`): it is a *forced* file.
//! - A key is discarded if a transfer under it, or the build, was broken off: the daemon's checksums may then not
//!   be those of its files. It is also discarded if a folder has changed, whose checksum BuildKit does not renew.
//! - If nothing is remembered (another image, a restart, no memory left), the key is new, so the transfer is cold and
//!   correct. Memory is reserved before it is used, and the least recently used keys are evicted for it, so that the
//!   total is bounded at all times.
//!
//! If the daemon prunes a folder, cannot use it because it is in use, or is another daemon behind the same address, the
//! transfer is colder, not wrong: all that a daemon has, it has from a transfer that is remembered.

mod announcements;
mod entry_set;
mod lease;
mod pool;
mod sent_contents;

pub use lease::KeyLease;
pub(super) use lease::TransferGuard;
pub use pool::SharedKeyPool;
pub(super) use sent_contents::SentPiece;

#[cfg(test)]
mod tests;
