//! The launcher of the real stack.
