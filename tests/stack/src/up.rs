//! Starts a stack: makes what is missing and leaves running parts alone.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    address::Number,
    cgroup::Groups,
    control::{Command, Conversation, Event},
    credentials::Credentials,
    deploy, down,
    error::{At as _, Error, Result},
    external, http,
    image::{BaseImages, Push},
    packages,
    places::{self, Places, StackDir, write_private},
    plan::{Options, Plan, Provider, Running, Stamped},
    programs,
    progress::Progress,
    stack::{Stack, log_tail, succeeded},
    tools::Tools,
};

/// The longest time for the supervisor to accept connections.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(20);

/// The interval between checks of something that has no event.
const BETWEEN: Duration = Duration::from_millis(20);

impl Stack {
    /// Starts the stack or its missing parts, and deploys Slipway on it if the options say so.
    ///
    /// A stack that does not start is stopped again; so is one whose start is dropped before it is done.
    ///
    /// For an external stack (the name `external`) nothing is started; the credentials are checked.
    pub async fn up(options: &Options, progress: &Progress) -> Result<Self> {
        if options.name == external::NAME {
            return external::check(progress).await;
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Machine(
                "only root can start a stack: it needs namespaces and mounts".into(),
            ));
        }
        let places = Places::from_env()?;
        let place = places.stack(&options.name)?;
        packages::install_missing(progress).await?;
        let (mut plan, images) = prepare(options, &places, progress).await?;
        let _one = place.lock().await?;
        plan.number = number(&places, &place)?;
        let stack = launch(&place, plan, progress).await?;
        let push = Push::new(
            http::client()?,
            stack.registry.host.clone(),
            stack.credentials()?.registry,
        );
        if let Some(images) = images {
            images.push(&push, progress).await?;
        }
        if options.deploy {
            deploy::deploy(&stack, &push, progress).await?;
        }
        Ok(stack)
    }
}

/// Builds programs and images concurrently, and makes the plan.
async fn prepare(
    options: &Options,
    places: &Places,
    progress: &Progress,
) -> Result<(Plan, Option<BaseImages>)> {
    let own = async {
        // With one command, because cargo would rebuild shared dependencies with other features for each
        // package.
        let [provider, builder] = programs::build(["slipway-dev-provider", "builder-fn"]).await?;
        progress.step("programs", "provider and builder-fn built");
        Ok((provider, builder))
    };
    let images = async {
        match options.images || options.deploy {
            true => BaseImages::make(places, progress).await.map(Some),
            false => Ok(None),
        }
    };
    let (mut tools, registry, images, (provider, builder)) = tokio::try_join!(
        Tools::build(places, progress),
        packages::registry(places, progress),
        images,
        own,
    )?;
    let provider = match &options.faasd {
        Some(faasd) => Provider::Faasd(Stamped::of(&absolute(faasd)?)?),
        None => Provider::Embedded(Stamped::of(&provider)?),
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
        number: Number::FIRST,
        launcher: Stamped::of(&programs::launcher()?)?,
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

/// Returns the stack's earlier number, or one that no other stack has.
fn number(places: &Places, place: &StackDir) -> Result<Number> {
    let _one = places::lock(&places.stacks.join(".lock"))?;
    if let Some(plan) = Plan::earlier(place) {
        return Ok(plan.number);
    }
    let mut taken = HashSet::new();
    for entry in fs::read_dir(&places.stacks).at("read", &places.stacks)?.flatten() {
        if let Ok(other) = places.stack(&entry.file_name().to_string_lossy())
            && let Some(plan) = Plan::earlier(&other)
        {
            taken.insert(plan.number);
        }
    }
    let free = Number::free(|number| taken.contains(&number) || down::interface(number).exists());
    free.ok_or_else(|| Error::Machine("there are 254 stacks on this machine already".into()))
}

/// Starts the supervisor and the parts, or the parts that do not run.
async fn launch(place: &StackDir, plan: Plan, progress: &Progress) -> Result<Stack> {
    place.create()?;
    let alive = Running::read(place)?.is_some_and(|running| running.alive());
    let same = Plan::earlier(place).as_ref() == Some(&plan);
    if alive && same {
        let stack = Stack::of(place.clone(), plan)?;
        begin(&stack, progress).await?;
        return Ok(stack);
    }
    if alive {
        progress.step(
            "stack",
            "its programs have changed; it is stopped and started anew",
        );
    }
    down::stop(place, progress).await?;
    write_configuration(place, &plan).await?;
    plan.write(place)?;
    let stack = Stack::of(place.clone(), plan)?;
    let holder = Holder::start(&stack)?;
    holder.supervisor(place).await?;
    if let Err(error) = begin(&stack, progress).await {
        // The error is the reason for the failed start, whatever the clean-up returns; its failure would show
        // at the next start.
        let _ = down::stop(place, progress).await;
        return Err(error);
    }
    holder.keep();
    Ok(stack)
}

/// Writes the credentials, and links the programs for a user's `PATH`.
async fn write_configuration(place: &StackDir, plan: &Plan) -> Result<()> {
    let credentials = Credentials::ensure(place, &plan.registry_host(), plan.provider.closed_registry())?;
    if let Some(login) = &credentials.registry {
        write_private(
            &place.config().join("htpasswd"),
            &Credentials::htpasswd(login).await?,
        )?;
    }
    for (name, program) in [
        ("faas-cli", &plan.tools.faas_cli),
        ("buildctl", &plan.tools.buildctl),
    ] {
        let link = place.bin().join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).at("create", &link)?;
    }
    Ok(())
}

/// Starts the parts that do not run and prints their progress.
async fn begin(stack: &Stack, progress: &Progress) -> Result<()> {
    let mut conversation = Conversation::open(&stack.place().control()).await?;
    let mut started = 0;
    let tell = |event| match event {
        Event::Starting { part } => progress.step(part, "starting"),
        Event::Ready { part, seconds } => {
            started += 1;
            progress.step(part, format_args!("ready after {seconds:.1} s"));
        }
        _ => {}
    };
    let answer = conversation.ask(Command::Begin, tell).await?;
    succeeded(stack.place(), answer)?;
    if started == 0 {
        progress.step("stack", "every part runs");
    }
    Ok(())
}

/// A holder that was just started. Dropping it kills the holder, and with it the stack, unless
/// [`Holder::keep`] was called.
#[derive(Debug)]
struct Holder {
    child: Option<std::process::Child>,
}

impl Holder {
    fn start(stack: &Stack) -> Result<Self> {
        let (place, program) = (stack.place(), &stack.plan()?.launcher.program);
        let log = place.log("supervisor");
        let output = File::create(&log).at("write", &log)?;
        let errors = output.try_clone().at("write", &log)?;
        let mut command = std::process::Command::new(program);
        command
            .args(["hold", "--name", &place.name])
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

    /// Waits until the supervisor accepts connections.
    async fn supervisor(&self, place: &StackDir) -> Result<()> {
        let holder = self
            .child
            .as_ref()
            .map(std::process::Child::id)
            .unwrap_or_default();
        let end = Instant::now() + SUPERVISOR_WITHIN;
        while Conversation::open(&place.control()).await.is_err() {
            let failed = |reason: String| {
                let log = place.log("supervisor");
                Err(Error::Supervisor {
                    reason,
                    tail: log_tail(&log, 30),
                    log,
                })
            };
            if crate::plan::started(holder).is_none() {
                return failed("ended".into());
            }
            if Instant::now() > end {
                return failed(format!("did not answer within {} s", SUPERVISOR_WITHIN.as_secs()));
            }
            tokio::time::sleep(BETWEEN).await;
        }
        let running = Running::read(place)?;
        Groups::at(running.map(|running| running.groups).unwrap_or_default()).set_aside(holder)
    }

    /// Lets the stack outlive this process. As long as this process runs, a thread reaps the holder when it
    /// ends.
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
