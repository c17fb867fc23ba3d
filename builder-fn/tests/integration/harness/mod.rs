//! What has to hold for any bytes from outside. The ordinary tests run it on what they make up, `fuzz/` on what a fuzzer does.
//!
//! Nothing here knows the rest of the tests: `fuzz/` takes this folder alone.

mod index;
mod peer;
mod request;

use builder_fn::context::{Entry, Index};

pub(crate) use index::{index, put_checksums_right};
pub(crate) use peer::peer;
pub(crate) use request::request;

/// Paths and entries, in order.
fn listed(index: &Index) -> Vec<(String, Entry<'_>)> {
    let mut listed = Vec::new();
    let mut walk = index.walk();
    while let Some((at, path)) = walk.step() {
        listed.push((path.to_owned(), index.entry(at)));
    }
    listed
}
