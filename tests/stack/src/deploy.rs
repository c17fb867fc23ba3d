//! Slipway on the stack.

use crate::{error::Result, image::Push, progress::Progress, stack::Stack};

pub(crate) async fn deploy(_stack: &Stack, _registry: &Push, _progress: &Progress) -> Result<()> {
    Ok(())
}
