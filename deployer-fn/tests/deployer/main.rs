//! The deployer against a gateway that follows a script: every call has to be expected, in its order, and answered as
//! the providers answer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod fake;
mod faults;
mod function;
mod model;
mod providers;
mod rollout;
mod script;
mod stories;
