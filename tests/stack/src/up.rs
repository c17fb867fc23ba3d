//! The start of a stack: builds what is missing and leaves running parts alone.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    address::StackNumber,
    cgroup::ControlGroups,
    control::{Command, ControlClient, Event},
    credentials::Credentials,
    deploy,
    directories::{self, Directories, StackDir, write_private},
    down,
    error::{Error, IoResultExt as _, Result},
    http,
    image::{BaseImages, RegistryClient},
    packages,
    plan::{Options, Plan, ProgramFile, Provider, RunningStack, start_time},
    programs,
    progress::Progress,
    stack::{Stack, check_answer, external, log_tail},
    tools::Tools,
};

/// The longest time until the stack's supervisor accepts connections.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(20);

/// The interval between checks of a condition that has no event.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Stack {
    /// Starts a stack or its missing parts, and deploys Slipway on the stack if the options say so.
    ///
    /// A stack that does not start is stopped again; so is one whose start is dropped before it is done.
    ///
    /// For an external stack (the name `external`) nothing is started; the credentials are checked.
    pub async fn up(options: &Options, progress: &Progress) -> Result<Self> {
        if options.name == external::NAME {
            return external::check(progress).await;
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Environment(
                "starting a stack needs root, for namespaces and mounts; run the command as root".into(),
            ));
        }
        let directories = Directories::from_env()?;
        let dir = directories.stack(&options.name)?;
        packages::install_missing(progress).await?;
        let (mut plan, images) = prepare(options, &directories, progress).await?;
        let _one = dir.lock().await?;
        plan.number = choose_number(&directories, &dir)?;
        let stack = launch(&dir, plan, progress).await?;
        let registry = RegistryClient::new(
            http::client()?,
            stack.registry.host.clone(),
            stack.credentials()?.registry,
        );
        if let Some(images) = images {
            images.push(&registry, progress).await?;
        }
        if options.deploy {
            deploy::deploy(&stack, &registry, progress).await?;
        }
        Ok(stack)
    }
}

/// Builds the programs and images of a stack concurrently, and makes its plan.
async fn prepare(
    options: &Options,
    directories: &Directories,
    progress: &Progress,
) -> Result<(Plan, Option<BaseImages>)> {
    let programs = async {
        // With one command, because cargo would rebuild shared dependencies with other features for each
        // package.
        let [provider, builder] = programs::build(["slipway-dev-provider", "builder-fn"]).await?;
        progress.step("programs", "built slipway-dev-provider and builder-fn");
        Ok((provider, builder))
    };
    let images = async {
        match options.images || options.deploy {
            true => BaseImages::load_or_make(directories, progress).await.map(Some),
            false => Ok(None),
        }
    };
    let (mut tools, registry, images, (provider, builder)) = tokio::try_join!(
        Tools::build(directories, progress),
        packages::ensure_registry(directories, progress),
        images,
        programs,
    )?;
    let provider = match &options.faasd {
        Some(faasd) => Provider::Faasd(ProgramFile::read(&absolute(faasd)?)?),
        None => Provider::Embedded(ProgramFile::read(&provider)?),
    };
    if let Some(gateway) = &options.gateway {
        tools.gateway = absolute(gateway)?;
    }
    if let Some(faas_cli) = &options.faas_cli {
        tools.faas_cli = absolute(faas_cli)?;
    }
    let ack_wait_seconds = options.ack_wait.as_secs();
    // A placeholder: the number is chosen once the stack is locked.
    let plan = Plan {
        number: StackNumber::FIRST,
        launcher: ProgramFile::read(&programs::launcher()?)?,
        tools,
        registry,
        provider,
        builder,
        ack_wait_seconds,
    };
    Ok((plan, images))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).at("find", path)
}

/// Returns the stack's number from an earlier start, or a number that no other stack has.
fn choose_number(directories: &Directories, dir: &StackDir) -> Result<StackNumber> {
    let _one = directories::lock(&directories.stacks.join(".lock"))?;
    if let Some(plan) = Plan::read_compatible(dir) {
        return Ok(plan.number);
    }
    let mut taken = HashSet::new();
    for entry in fs::read_dir(&directories.stacks)
        .at("read", &directories.stacks)?
        .flatten()
    {
        if let Ok(other) = directories.stack(&entry.file_name().to_string_lossy())
            && let Some(plan) = Plan::read_compatible(&other)
        {
            taken.insert(plan.number);
        }
    }
    let free =
        StackNumber::lowest_free(|number| taken.contains(&number) || down::interface_path(number).exists());
    free.ok_or_else(|| {
        Error::Environment(
            "all 254 stack numbers are taken; `slipway-stack down --purge --name NAME` frees one".into(),
        )
    })
}

/// Starts the stack's supervisor, unless it runs, and the parts that do not run.
async fn launch(dir: &StackDir, plan: Plan, progress: &Progress) -> Result<Stack> {
    dir.create()?;
    let alive = RunningStack::read(dir)?.is_some_and(|running| running.is_alive());
    let unchanged = Plan::read_compatible(dir).as_ref() == Some(&plan);
    if alive && unchanged {
        let stack = Stack::from_plan(dir.clone(), plan)?;
        start_parts(&stack, progress).await?;
        return Ok(stack);
    }
    if alive {
        progress.step("stack", "its programs have changed; restarting");
    }
    down::stop(dir, progress).await?;
    write_configuration(dir, &plan).await?;
    plan.write(dir)?;
    let stack = Stack::from_plan(dir.clone(), plan)?;
    let holder = Holder::start(&stack)?;
    holder.wait_for_supervisor(dir).await?;
    if let Err(error) = start_parts(&stack, progress).await {
        // The error is the reason for the failed start, whatever the clean-up returns; its failure would show
        // at the next start.
        let _ = down::stop(dir, progress).await;
        return Err(error);
    }
    holder.keep();
    Ok(stack)
}

/// Writes the stack's credentials, and links its programs for a user's `PATH`.
async fn write_configuration(dir: &StackDir, plan: &Plan) -> Result<()> {
    let credentials = Credentials::read_or_generate(
        dir,
        &plan.registry_host(),
        plan.provider.registry_requires_password(),
    )?;
    if let Some(login) = &credentials.registry {
        write_private(
            &dir.config().join("htpasswd"),
            &Credentials::htpasswd(login).await?,
        )?;
    }
    for (name, program) in [
        ("faas-cli", &plan.tools.faas_cli),
        ("buildctl", &plan.tools.buildctl),
    ] {
        let link = dir.bin().join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).at("create", &link)?;
    }
    Ok(())
}

/// Starts the parts of the stack that do not run, and emits their progress.
async fn start_parts(stack: &Stack, progress: &Progress) -> Result<()> {
    let mut supervisor = ControlClient::connect(&stack.dir.control()).await?;
    let mut started = 0;
    let on_event = |event| match event {
        Event::Starting { part } => progress.step(part, "starting"),
        Event::Ready { part, seconds } => {
            started += 1;
            progress.step(part, format_args!("ready after {seconds:.1} s"));
        }
        _ => {}
    };
    let answer = supervisor.send(Command::StartAll, on_event).await?;
    check_answer(&stack.dir, answer)?;
    if started == 0 {
        progress.step("stack", "all parts are running");
    }
    Ok(())
}

/// The holder of a stack that was just started. Dropping it kills the holder, and with it the stack, unless
/// [`Holder::keep`] was called.
#[derive(Debug)]
struct Holder {
    child: Option<std::process::Child>,
}

impl Holder {
    fn start(stack: &Stack) -> Result<Self> {
        let (dir, program) = (&stack.dir, &stack.plan()?.launcher.program);
        let log = dir.log("supervisor");
        let output = File::create(&log).at("write", &log)?;
        let errors = output.try_clone().at("write", &log)?;
        let mut command = std::process::Command::new(program);
        command
            .args(["hold", "--name", &dir.name])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = command.spawn();
        let child = child.map_err(|source| Error::Spawn {
            program: program.display().to_string(),
            source,
        })?;
        Ok(Self { child: Some(child) })
    }

    /// Waits until the stack's supervisor accepts connections.
    async fn wait_for_supervisor(&self, dir: &StackDir) -> Result<()> {
        let holder = self
            .child
            .as_ref()
            .map(std::process::Child::id)
            .unwrap_or_default();
        let end = Instant::now() + SUPERVISOR_TIMEOUT;
        while ControlClient::connect(&dir.control()).await.is_err() {
            let failed = |reason: String| {
                let log = dir.log("supervisor");
                Err(Error::Supervisor {
                    reason,
                    tail: log_tail(&log, 30),
                    log,
                })
            };
            if start_time(holder).is_none() {
                return failed("ended".into());
            }
            if Instant::now() > end {
                return failed(format!(
                    "did not answer within {} s",
                    SUPERVISOR_TIMEOUT.as_secs()
                ));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let running = RunningStack::read(dir)?;
        ControlGroups::from_dirs(running.map(|running| running.groups).unwrap_or_default())
            .move_holder_aside(holder)
    }

    /// Keeps the stack running after this process ends. As long as this process runs, a thread reaps the holder
    /// when it ends.
    fn keep(mut self) {
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
