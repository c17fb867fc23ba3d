//! What is known of a failed build.

use super::files::ContextFiles;

/// What is known of a failed build.
#[derive(Clone, Copy)]
pub struct Failure<'a> {
    /// The text of the error: BuildKit's, or the builder's own.
    pub error: &'a str,
    /// The step that failed; for a build that took too long, the one that ran.
    pub step: Option<FailedStepNameAndOutput<'a>>,
    /// The line of the Dockerfile that BuildKit names for the error, from 1 on.
    pub dockerfile_line: Option<u32>,
    /// The path of the Dockerfile in the context.
    pub dockerfile: &'a str,
    /// The files of the context.
    pub files: &'a dyn ContextFiles,
    /// The credentials of the build for the registry that refused something.
    pub login: Option<LoginStateAtRefusingRegistry<'a>>,
    /// The tenant whose rules give the steps of the build no network.
    pub no_network: Option<&'a str>,
}

/// The failed step and the last output that it wrote.
#[derive(Clone, Copy, Debug)]
pub struct FailedStepNameAndOutput<'a> {
    /// The name of the step, such as `[2/3] RUN make`.
    pub name: &'a str,
    /// The last output of the step, masked.
    pub output: &'a str,
}

/// Whose credentials a build uses for a registry, and whether there are any.
#[derive(Clone, Copy, Debug)]
pub struct LoginStateAtRefusingRegistry<'a> {
    /// Whose credentials they are.
    pub holder: CredentialHolder<'a>,
    /// Whether there are credentials for this registry.
    pub is_given: bool,
    /// Why the credentials could not be read; `None` if they could.
    pub problem: Option<&'a str>,
}

/// The holder of the credentials for a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialHolder<'a> {
    /// The operator of the builder.
    Operator,
    /// The tenant of this name.
    Tenant(&'a str),
}
