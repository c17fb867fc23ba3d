//! The command `slipway dev`: brings every saved change live.

mod watch;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use clap::Args;

use crate::builder::BuilderClient;
use crate::context::PackedContext;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::function::Function;
use crate::interrupt::Interrupts;
use crate::progress::{Event, Progress, ProgressForm, show_failure, show_failure_if_json};
use crate::up::{
    BuildEnd, BuildOptions, FunctionBuild, Project, SourceArguments, pack_unless_key_is_in_context,
};
use watch::SourceWatcher;

/// The arguments of `slipway dev`.
#[derive(Args)]
pub(crate) struct DevArguments {
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    build: BuildOptions,
}

/// What becomes of a build under way.
enum BuildFate {
    /// It ended.
    Ended(Result<BuildEnd, Failure>),
    /// The function has changed since.
    Outdated,
    /// Ctrl-C ends the command.
    Interrupted,
}

/// Builds and deploys the functions whenever their sources change, until Ctrl-C.
///
/// # Errors
/// Fails if there is no stack file or no key at the beginning, or the files cannot be watched. With `--progress json`,
/// the error is an event, and only its exit status is returned.
pub(crate) async fn run(arguments: &DevArguments) -> Result<ExitStatus, Failure> {
    show_failure_if_json(
        arguments.build.progress,
        build_changes_until_interrupted(arguments).await,
    )
}

async fn build_changes_until_interrupted(arguments: &DevArguments) -> Result<ExitStatus, Failure> {
    let project = Project::read_stopping_at_first_faulty_function(&arguments.source)?;
    let client = BuilderClient::new(arguments.build.connection.resolve(project.gateway())?)?;
    let form = arguments.build.progress;
    let progress = Progress::new(form, "slipway");
    for text in project.warnings() {
        progress.show(&Event::Warning { text: &text });
    }
    // The functions have displays of their own.
    drop(progress);
    let interrupts = Interrupts::receive()?;
    let mut session = DevSession {
        arguments,
        interrupts: &interrupts,
        client,
        watcher: SourceWatcher::new()?,
        sent: HashMap::new(),
        has_changed: false,
    };
    let mut project = Ok(project);
    loop {
        match &project {
            Ok(project) => {
                if session.build_changed_unless_interrupted(project).await?.is_none() {
                    return Ok(ExitStatus::Success);
                }
            }
            Err(failure) => show_failure(form, "", failure),
        }
        if !std::mem::take(&mut session.has_changed) {
            Progress::new(form, "slipway").note("watching for changes; Ctrl-C ends");
            tokio::select! {
                () = session.watcher.wait_for_change_and_quiet() => {}
                () = interrupts.wait_for_press_not_reported_yet() => return Ok(ExitStatus::Success),
            }
        }
        project = Project::read_stopping_at_first_faulty_function(&arguments.source);
    }
}

/// The state of the command between two changes.
struct DevSession<'a> {
    arguments: &'a DevArguments,
    interrupts: &'a Interrupts,
    client: BuilderClient,
    watcher: SourceWatcher,
    /// The fingerprints of what was sent last, by function.
    sent: HashMap<String, u64>,
    /// Whether something changed that was not looked at yet.
    has_changed: bool,
}

impl DevSession<'_> {
    /// Returns the form of the progress.
    fn form(&self) -> ProgressForm {
        self.arguments.build.progress
    }

    /// Builds the functions that differ from what was sent last, until one of them changes meanwhile; returns `None`
    /// after Ctrl-C.
    async fn build_changed_unless_interrupted(&mut self, project: &Project) -> Result<Option<()>, Failure> {
        let functions = project.functions().iter();
        let folders = functions.clone().flat_map(Project::watched_folders_of);
        self.watcher.watch_only(
            folders,
            functions.flat_map(|function| project.watched_files_of(function)),
        )?;
        for function in project.functions() {
            let packed = match pack_unless_key_is_in_context(function, &self.client.settings().key) {
                Ok(packed) => packed,
                Err(failure) => {
                    show_failure(self.form(), &function.name, &failure);
                    continue;
                }
            };
            let fingerprint = fingerprint(function, &packed);
            if self.sent.insert(function.name.clone(), fingerprint) == Some(fingerprint) {
                continue;
            }
            match self.build_unless_it_changes(function, &packed, fingerprint).await {
                BuildFate::Ended(Ok(BuildEnd::Ended { verdict, .. })) => {
                    // The same source may succeed later.
                    if verdict.status == ExitStatus::PlatformFailed {
                        self.sent.remove(&function.name);
                    }
                }
                BuildFate::Ended(Ok(BuildEnd::Detached(_))) => {}
                BuildFate::Ended(Err(failure)) => {
                    show_failure(self.form(), &function.name, &failure);
                    self.sent.remove(&function.name);
                }
                BuildFate::Outdated => {
                    Progress::new(self.form(), &function.name)
                        .note("changed; a new build replaces the one under way");
                    self.sent.remove(&function.name);
                    self.has_changed = true;
                    return Ok(Some(()));
                }
                BuildFate::Interrupted => return Ok(None),
            }
        }
        Ok(Some(()))
    }

    /// Builds a function, unless it changes meanwhile.
    async fn build_unless_it_changes(
        &mut self,
        function: &Function,
        packed: &PackedContext,
        fingerprint_sent: u64,
    ) -> BuildFate {
        let build = FunctionBuild::new(&self.client, function, &self.arguments.build, false);
        let mut end = std::pin::pin!(build.send_packed_and_follow(packed));
        loop {
            tokio::select! {
                end = &mut end => {
                    if let Ok(end) = &end {
                        build.show_end_and_return_exit_status(end);
                    }
                    return BuildFate::Ended(end);
                }
                () = self.watcher.wait_for_change_and_quiet() => {
                    self.has_changed = true;
                    // A file that cannot be read now is one that is being written.
                    if pack_unless_key_is_in_context(function, &self.client.settings().key).is_ok_and(|packed| fingerprint(function, &packed) != fingerprint_sent) {
                        build.cancel_because_replaced().await;
                        return BuildFate::Outdated;
                    }
                }
                () = self.interrupts.wait_for_press_not_reported_yet() => return BuildFate::Interrupted,
            }
        }
    }
}

/// Returns a hash of what a build of a function sends: its context, its configuration and its secrets.
fn fingerprint(function: &Function, packed: &PackedContext) -> u64 {
    let mut hasher = DefaultHasher::new();
    packed.fingerprint().hash(&mut hasher);
    function.image.hash(&mut hasher);
    function.build_args.hash(&mut hasher);
    function.platforms.hash(&mut hasher);
    function.deploy.to_string().hash(&mut hasher);
    for (name, path) in &function.build_secrets {
        name.hash(&mut hasher);
        // A file that cannot be read is reported when it is sealed.
        std::fs::read(path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}
