//! Rollbacks: the versions of a function that are kept, and the deployment of one of them again.
//!
//! A rollback is a hand-over with the image and the specification of an earlier version, and with the time at which the
//! rollback was requested: builds that were handed in before it do not replace it, and later ones do. It has an ID, a
//! record and a log like a build.
//!
//! The caller chooses the ID, and signs it. Therefore a copy of a request changes nothing, even if another party sends
//! it: the version to go back to is chosen before the ID is looked up, and the ID is recorded before anything is
//! deployed. So a copy whose ID is not recorded yet has chosen among the same versions as the first request. It counts
//! as handed in when it was signed, so that a copy of a request that was refused undoes nothing that came after it.

mod error;
mod permit;
mod request;
mod route;
mod run;

pub use permit::RollbackPermits;
pub(crate) use request::FunctionRoute;
