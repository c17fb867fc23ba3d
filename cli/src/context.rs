//! The build context of a function: its files, laid out as faas-cli does, the tar with them, and the sealed secrets.

mod layout;
mod seal;
mod tar;

pub(crate) use layout::Layout;
pub(crate) use seal::{parse_public_key, seal_secrets};
pub(crate) use tar::PackedContext;
