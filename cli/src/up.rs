//! The command `slipway up`: from the folder to the answering function.

mod cancellation;
mod configuration;
mod follow;
mod project;
mod route;
mod submit;

use std::cell::RefCell;
use std::time::Duration;

use clap::{Args, ValueEnum};
use function_host::http::Method;

use crate::builder::{BuildFacts, BuilderClient, Route, Verdict, build_path};
use crate::context::{Layout, PackedContext};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::function::Function;
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::{Event, Progress, ProgressForm, show_failure_if_json};
use crate::settings::{ConnectionArguments, SigningKey};
pub(crate) use cancellation::cancel_build_and_wait_up_to_a_minute;
pub(crate) use follow::{FollowedBuild, LogForm, follow_log};
pub(crate) use project::{Project, SourceArguments};
use route::RouteChoice;

/// The longest time for which a build's record is asked for once the build has ended.
const RECORD_WAIT: Duration = Duration::from_secs(3);

/// The arguments of `slipway up`.
#[derive(Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    pub(crate) source: SourceArguments,
    #[command(flatten)]
    pub(crate) build: BuildOptions,
    /// Hand the builds in, and do not wait for them. Needs the queue.
    #[arg(long)]
    detach: bool,
}

/// The choices about how functions are built and watched.
#[derive(Args, Clone, Debug)]
pub(crate) struct BuildOptions {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// The way to the builder. `auto`: the queue if there is a gateway with a builder, and the builder's own address
    /// otherwise.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) via: Via,
    /// The form of the progress on the standard error.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) progress: ProgressForm,
    /// Count a version of which nothing proves that it is the one that answers as not deployed.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Run every step of the build again.
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// How long a build may wait in the queue before a builder accepts it, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub(crate) queue_timeout: u64,
}

/// The way to the builder, as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// By what is reachable.
    #[default]
    Auto,
    /// The builder's own address, with a streamed answer.
    Builder,
    /// The gateway, with a streamed answer.
    Gateway,
    /// The gateway's queue. The build goes on whatever becomes of this command.
    Queue,
}

/// The end of following a build.
#[derive(Debug)]
pub(crate) enum BuildEnd {
    /// The build ended.
    Ended {
        /// What its outcome means.
        verdict: Verdict,
        /// The image, with its digest if it is known.
        image: String,
        /// The facts about the build, boxed because the other ends of a build are small.
        facts: Box<BuildFacts>,
    },
    /// The command no longer follows the build, which goes on if it was sent.
    Detached(ExitStatus),
}

/// A build of one function: what is needed from its files to its end.
pub(crate) struct FunctionBuild<'a> {
    pub(crate) client: &'a BuilderClient,
    pub(crate) function: &'a Function,
    pub(crate) options: &'a BuildOptions,
    pub(crate) progress: Progress,
    /// Whether the build is left alone as soon as it is queued.
    pub(crate) is_detached: bool,
    /// The build, once a builder or the queue has it.
    handed: RefCell<Option<SentBuild>>,
}

/// A build that a builder or the queue has.
#[derive(Clone, Debug)]
struct SentBuild {
    route: Route,
    id: String,
}

impl BuildOptions {
    fn queue_timeout(&self) -> Duration {
        Duration::from_secs(self.queue_timeout)
    }
}

/// Builds and deploys the functions, one after the other.
///
/// # Errors
/// Fails if a function cannot be read, or no builder takes it. With `--progress json`, the error is an event, too, and
/// only its exit status is returned.
pub(crate) async fn run(arguments: &UpArguments) -> Result<ExitStatus, Failure> {
    show_failure_if_json(
        arguments.build.progress,
        bring_up_and_return_first_failure_status(arguments).await,
    )
}

async fn bring_up_and_return_first_failure_status(arguments: &UpArguments) -> Result<ExitStatus, Failure> {
    let project = Project::read_stopping_at_first_faulty_function(&arguments.source)?;
    let settings = arguments.build.connection.resolve(project.gateway())?;
    let progress = Progress::new(arguments.build.progress, "slipway");
    for text in project.warnings() {
        progress.show(&Event::Warning { text: &text });
    }
    // The functions have displays of their own.
    drop(progress);
    let client = BuilderClient::new(settings)?;
    let interrupts = Interrupts::receive()?;
    let mut status = ExitStatus::Success;
    for function in project.functions() {
        let build = FunctionBuild::new(&client, function, &arguments.build, arguments.detach);
        let end = build.run(&interrupts).await?;
        let ended = build.show_end_and_return_exit_status(&end);
        if status == ExitStatus::Success {
            status = ended;
        }
        if ended == ExitStatus::Interrupted {
            break;
        }
    }
    Ok(status)
}

/// Packs the files of a function.
///
/// # Errors
/// Fails if a file cannot be read or laid out, or the key would be sent.
pub(crate) fn pack_unless_key_is_in_context(
    function: &Function,
    key: &SigningKey,
) -> Result<PackedContext, Failure> {
    let layout = Layout::of_function(function)?;
    if let Some(file) = &key.file
        && let Some(path) = layout.context_path_of(file)
    {
        return Err(Failure::usage(
            format!(
                "the key that signs requests, {}, would be sent in the context as {path}",
                key.place
            ),
            "name the file in .dockerignore, or move it out of the function's folder",
        ));
    }
    PackedContext::pack(&layout)
}

impl<'a> FunctionBuild<'a> {
    /// Creates the build of a function, which has not been sent yet.
    pub(crate) fn new(
        client: &'a BuilderClient,
        function: &'a Function,
        options: &'a BuildOptions,
        is_detached: bool,
    ) -> Self {
        Self {
            client,
            function,
            options,
            progress: Progress::new(options.progress, &function.name),
            is_detached,
            handed: RefCell::new(None),
        }
    }

    /// Packs the function, sends it and follows its build, or does what Ctrl-C asks for.
    ///
    /// # Errors
    /// Fails if the function cannot be packed, or no builder takes it.
    pub(crate) async fn run(&self, interrupts: &Interrupts) -> Result<BuildEnd, Failure> {
        let mut work = std::pin::pin!(async {
            self.send_packed_and_follow(&pack_unless_key_is_in_context(
                self.function,
                &self.client.settings().key,
            )?)
            .await
        });
        loop {
            tokio::select! {
                end = &mut work => return end,
                () = interrupts.wait_for_press_not_reported_yet() => {
                    let handed = self.handed.borrow().clone();
                    if let Some(end) = self.detach_or_cancel_or_none_to_keep_following(interrupts, handed).await? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Sends the packed function and follows its build.
    ///
    /// # Errors
    /// Fails if no builder takes the function.
    pub(crate) async fn send_packed_and_follow(&self, packed: &PackedContext) -> Result<BuildEnd, Failure> {
        let routes = RouteChoice::find(self.client, self.options.via, self.is_detached).await?;
        let end = self.submit_and_follow(packed, &routes).await?;
        Ok(self.with_recorded_facts(end).await)
    }

    /// Returns the end of a build with what the builder's record of it says besides. Waits for that only a moment, and
    /// without an answer the facts stay unknown.
    async fn with_recorded_facts(&self, mut end: BuildEnd) -> BuildEnd {
        let handed = self.handed.borrow().clone();
        if let (BuildEnd::Ended { facts, .. }, Some(SentBuild { route, id })) = (&mut end, handed)
            && !self.progress.is_quiet()
        {
            let route = match route {
                Route::Queue => Route::Gateway,
                route => route,
            };
            let path = build_path(&id);
            let question = self.client.ask(route, Method::GET, &path);
            if let Ok(Ok(record)) = tokio::time::timeout(RECORD_WAIT, question).await {
                **facts = std::mem::take(&mut **facts).or(BuildFacts::of_answer(&record));
            }
            if let Some(pushed) = &mut facts.pushed {
                pushed.seconds = self.progress.export_seconds();
            }
        }
        end
    }

    /// Shows the end of the build, prints the URL of a function that runs, and returns the exit status.
    pub(crate) fn show_end_and_return_exit_status(&self, end: &BuildEnd) -> ExitStatus {
        let (verdict, image, facts) = match end {
            BuildEnd::Ended {
                verdict,
                image,
                facts,
            } => (verdict, image, facts),
            BuildEnd::Detached(status) => return *status,
        };
        for text in &verdict.warnings {
            self.progress.show(&Event::Warning { text });
        }
        let summary = &verdict.summary;
        match &verdict.next {
            Some(next) => self.progress.show(&Event::Failed {
                summary,
                explanation: &verdict.explanation,
                next,
                code: verdict.status.code(),
                facts: (!self.progress.is_quiet()).then_some(facts),
            }),
            None => {
                let url = format!(
                    "{}{}",
                    self.client.settings().gateway,
                    self.function.path_at_gateway()
                );
                self.progress.show(&Event::Running {
                    summary,
                    url: &url,
                    image,
                    facts,
                });
                output::print_result_or_exit_if_unread(&url);
            }
        }
        verdict.status
    }
}
