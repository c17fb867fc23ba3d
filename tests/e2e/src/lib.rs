//! What the end-to-end tests are written in: a tar as a client makes it, a client that signs and posts it, and the
//! registry and the functions of the stack seen from outside.
//!
//! Nothing here uses Slipway's own code for signing, packing or parsing: a mistake made on both sides would not show.

pub mod away;
pub mod buildkit;
pub mod cable;
pub mod certificates;
pub mod client;
pub mod collector;
pub mod compare;
pub mod deployer;
pub mod functions;
pub mod plain;
pub mod programs;
pub mod recorded;
pub mod records;
pub mod registry;
pub mod sender;
pub mod shared;
pub mod source;
pub mod tls;
pub mod token_registry;
pub mod tree;
pub mod turnstile;
