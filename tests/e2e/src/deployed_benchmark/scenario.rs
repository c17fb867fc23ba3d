//! What is built, and how far.

use super::Contender;
use crate::{build_context::BuildContext, compare::pseudorandom_content_ignoring_lowest_seed_bit};

/// The scenarios of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// 512 MiB in 64 files, unchanged since the last build.
    LargeUnchanged,
    /// Ten small files, one of them changed; until the image is pushed.
    SmallPushed,
    /// Ten small files, one of them changed; until the new version answers.
    SmallDeployed,
    /// 41 MB in 10,000 files, one of them changed; until the new version answers.
    ManyFilesDeployed,
    /// One line of a function from the template; until the new version answers.
    HandlerLine,
    /// A new function from the template, on a daemon that has built one before; until it answers.
    NewFunction,
}

/// All scenarios, in the order of the table.
pub const SCENARIOS: [Scenario; 6] = [
    Scenario::LargeUnchanged,
    Scenario::SmallPushed,
    Scenario::SmallDeployed,
    Scenario::ManyFilesDeployed,
    Scenario::HandlerLine,
    Scenario::NewFunction,
];

impl Scenario {
    /// Returns the scenario's name in the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::LargeUnchanged => "512 MiB in 64 files, unchanged",
            Self::SmallPushed => "10 small files, one changed, until pushed",
            Self::SmallDeployed => "10 small files, one changed, until the new version answers",
            Self::ManyFilesDeployed => "41 MB in 10,000 files, one changed, until the new version answers",
            Self::HandlerLine => "one line of a Rust handler, until the new version answers",
            Self::NewFunction => "a new function from the template, until it answers",
        }
    }

    /// Returns the scenario's part of the names of functions and images, by which it can be selected.
    pub fn name_part(self) -> &'static str {
        match self {
            Self::LargeUnchanged => "large",
            Self::SmallPushed => "small-pushed",
            Self::SmallDeployed => "small-deployed",
            Self::ManyFilesDeployed => "many-files",
            Self::HandlerLine => "handler-line",
            Self::NewFunction => "new-function",
        }
    }

    /// Returns the contenders. What compiles Rust has no reference: nearly all of its time is the compiler's.
    pub(super) fn contenders(self) -> &'static [Contender] {
        match self {
            Self::LargeUnchanged | Self::SmallPushed => &[
                Contender::FunctionAddress,
                Contender::BuilderUrl,
                Contender::Gateway,
                Contender::Reference,
            ],
            Self::SmallDeployed | Self::ManyFilesDeployed => {
                &[Contender::BuilderUrl, Contender::Gateway, Contender::Reference]
            }
            Self::HandlerLine | Self::NewFunction => &[Contender::BuilderUrl],
        }
    }

    pub(super) fn deploys_built_image(self) -> bool {
        !matches!(self, Self::LargeUnchanged | Self::SmallPushed)
    }

    pub(super) fn is_from_template(self) -> bool {
        matches!(self, Self::HandlerLine | Self::NewFunction)
    }

    pub(super) fn has_new_function_each_round(self) -> bool {
        self == Self::NewFunction
    }

    pub(super) fn is_same_in_each_round(self) -> bool {
        self == Self::LargeUnchanged
    }

    /// Returns a context whose only change from that of another round is in the page. The size of the changed file
    /// changes with it: `buildctl` does not send a file again that has the size and the time of the one before.
    pub(super) fn context(self, busybox_image: &str, page: &str) -> BuildContext {
        let served = BuildContext::static_page_function(busybox_image, page);
        match self {
            Self::LargeUnchanged => (0..64).fold(
                BuildContext::dockerfile("FROM scratch\nCOPY . /\n"),
                |context, number| {
                    context.with_file(
                        &number.to_string(),
                        pseudorandom_content_ignoring_lowest_seed_bit(8 << 20, number << 8),
                    )
                },
            ),
            Self::ManyFilesDeployed => {
                let dockerfile = format!(
                    "FROM {busybox_image}\nCOPY data /data\nCOPY www /www\nUSER 1000\nEXPOSE 8080\n\
                     CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
                );
                (0..10_000).fold(served.with_dockerfile(&dockerfile), |context, number| {
                    let path = format!("data/{}/{number}", number % 100);
                    context.with_file(
                        &path,
                        pseudorandom_content_ignoring_lowest_seed_bit(4_096, number << 8),
                    )
                })
            }
            _ => (0..7).fold(served, |context, number| {
                context.with_file(
                    &format!("www/{number}"),
                    pseudorandom_content_ignoring_lowest_seed_bit(3_000, number << 8),
                )
            }),
        }
    }
}
