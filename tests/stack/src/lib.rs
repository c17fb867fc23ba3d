//! The launcher of the real stack: BuildKit, a registry, containerd, the OpenFaaS gateway with its queue, and
//! a provider, as child processes in namespaces of their own.
//!
//! [`Stack::up`] starts a stack or its missing parts; [`Stack::load`] finds a running one. All processes of a
//! stack are in one PID namespace, whose first process is the supervisor. The supervisor is killed with the
//! holder, so a stack ends as a whole. `ARCHITECTURE.md` has a picture.

mod address;
mod cgroup;
mod command;
mod control;
mod credentials;
mod deploy;
mod directories;
mod down;
mod error;
mod hold;
mod http;
mod image;
mod packages;
mod part;
mod plan;
mod programs;
mod progress;
mod stack;
mod supervisor;
mod tools;
mod up;

pub use self::{
    control::{PartStatus, State},
    directories::{Directories, StackDir},
    down::down,
    error::{Error, Result},
    hold::hold,
    packages::{ensure_promtool, install_missing, install_missing_for_tests},
    part::Part,
    plan::Options,
    progress::Progress,
    stack::{Gateway, Registry, Stack, part_log_tail as log_tail},
    supervisor::run_supervisor as supervise,
    tools::{Tools, build as build_tool},
};
