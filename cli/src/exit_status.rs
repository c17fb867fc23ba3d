//! The exit status of the command.

use std::process::ExitCode;

/// The exit status of the command, whose numbers are part of its interface: `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExitStatus {
    /// The command did what it was asked for: of `up`, the functions run.
    Success,
    /// The build failed, or a policy rejects a request.
    Failed,
    /// The command line, a file or the key is wrong, or the builder rejects the request for what it contains.
    Usage,
    /// The image was built, or would have been, and is not deployed.
    NotDeployed,
    /// The builder, the gateway or something behind them failed.
    PlatformFailed,
    /// A newer build took the place of this one, or it was cancelled.
    Replaced,
    /// Ctrl-C ended the command; a build that was already sent goes on.
    Interrupted,
}

impl ExitStatus {
    /// Returns the number of the status.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotDeployed => 3,
            Self::PlatformFailed => 4,
            Self::Replaced => 5,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}
