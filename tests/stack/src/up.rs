//! The start of a stack: builds what is missing and leaves running parts alone.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    address::StackNumber,
    buildkit_disk, certificates,
    credentials::GatewayAndRegistryLogins,
    deploy,
    directories::{self, LauncherDirectories, StackDir, write_private_file},
    down, egress,
    error::{IoResultExt as _, LauncherError, Result},
    holder_process::{HolderProcess, start_missing_parts_and_wait},
    http,
    image::{BaseImageLayers, RegistryClient},
    limits::StepResourceLimits,
    packages,
    part::StackPart,
    plan::{ProgramFileStamp, ProviderChoice, RunningStackState, StackOptions, StackPlan},
    programs,
    progress::ProgressSink,
    stack::{Stack, external},
    step_address,
    step_runtime::{self, StepRuntimeConfiguration},
    tools::ToolPaths,
};

impl Stack {
    /// Starts a stack or its missing parts, and deploys Slipway on the stack if the options say so.
    ///
    /// A running stack whose programs, certificates or settings have changed is restarted. If a part of a newly started
    /// stack fails, or this future is dropped before all parts are ready, the stack is stopped again. It runs on if a
    /// later step fails, such as the deployment.
    ///
    /// For an external stack (the name `external`) nothing is started; the credentials are checked.
    pub async fn start_stack(options: &StackOptions, progress: &ProgressSink) -> Result<Self> {
        if options.name == external::EXTERNAL_STACK_NAME {
            return external::build_clients_and_check_login(progress).await;
        }
        if !rustix::process::geteuid().is_root() {
            return Err(LauncherError::Environment(
                "starting a stack needs root, for namespaces and mounts; run the command as root".into(),
            ));
        }
        let directories = LauncherDirectories::from_env()?;
        let dir = directories.stack_directory(&options.name)?;
        packages::install_missing_packages(progress).await?;
        let (mut plan, images) =
            build_programs_and_make_plan_with_placeholder_number(options, &directories, progress).await?;
        let _one = dir.lock_stack_and_create_its_directory().await?;
        plan.number = earlier_or_lowest_free_stack_number(&directories, &dir)?;
        dir.create_directories()?;
        plan.certificates_expire = certificates::ensure_certificates_and_read_expiry_seconds(&dir)?;
        let stack = start_missing_parts_or_restart_if_changed(&dir, plan, progress).await?;
        let registry = RegistryClient::new(
            http::http_client_without_proxy()?,
            stack.registry.host.clone(),
            stack.credentials()?.registry,
        );
        if let Some(images) = images {
            images.push_missing(&registry, progress).await?;
        }
        if options.deploy {
            deploy::deploy_functions_and_call_sample(&stack, &registry, progress).await?;
        }
        Ok(stack)
    }
}

/// Builds a stack's programs and, if the options ask for them, the layers of its base images, and makes its plan; the
/// plan's number and the expiry of its certificates are placeholders.
async fn build_programs_and_make_plan_with_placeholder_number(
    options: &StackOptions,
    directories: &LauncherDirectories,
    progress: &ProgressSink,
) -> Result<(StackPlan, Option<BaseImageLayers>)> {
    let programs = async {
        // With one command, because cargo would rebuild shared dependencies with other features for each
        // package.
        let built = progress.show_while("programs: building slipway-dev-provider and builder-fn", |_| {
            programs::build_programs(["slipway-dev-provider", "builder-fn"])
        });
        let [provider, builder] = built.await?;
        progress.emit_progress_line("programs", "built slipway-dev-provider and builder-fn");
        Ok((provider, builder))
    };
    let images = async {
        match options.images || options.deploy {
            true => BaseImageLayers::load_or_make(directories, progress)
                .await
                .map(Some),
            false => Ok(None),
        }
    };
    let (mut tools, registry, images, (provider, builder), allowed, tenants) = tokio::try_join!(
        ToolPaths::build_missing_tools(directories, progress),
        packages::unpack_registry_program_if_missing(directories, progress),
        images,
        programs,
        egress::resolve_allowed_entries_to_ipv4_networks(&options.allowed),
        egress::resolve_tenant_rules(&options.tenant_networks),
    )?;
    let provider = match &options.faasd {
        Some(faasd) => ProviderChoice::Faasd(ProgramFileStamp::read_stamp(
            &canonical_path_of_existing_file(faasd)?,
        )?),
        None => ProviderChoice::Embedded(ProgramFileStamp::read_stamp(&provider)?),
    };
    if let Some(gateway) = &options.gateway {
        tools.gateway = canonical_path_of_existing_file(gateway)?;
    }
    if let Some(faas_cli) = &options.faas_cli {
        tools.faas_cli = canonical_path_of_existing_file(faas_cli)?;
    }
    let ack_wait_seconds = options.ack_wait.as_secs();
    // A placeholder: the number is chosen once the stack is locked.
    let plan = StackPlan {
        number: StackNumber::FIRST_STACK_NUMBER,
        launcher: ProgramFileStamp::read_stamp(&programs::path_of_slipway_stack_program()?)?,
        tools,
        registry,
        provider,
        builder,
        ack_wait_seconds,
        allowed,
        public: options.public,
        tenants,
        limits: Some(
            options
                .limits
                .map_or_else(StepResourceLimits::for_this_machine, Ok)?,
        ),
        certificates_expire: 0,
    };
    Ok((plan, images))
}

/// Returns the absolute path of an existing file, with symbolic links resolved.
fn canonical_path_of_existing_file(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_operation("find", path)
}

/// Returns the stack's number from an earlier start, or a number that no other stack has.
fn earlier_or_lowest_free_stack_number(
    directories: &LauncherDirectories,
    dir: &StackDir,
) -> Result<StackNumber> {
    if let Some(plan) = StackPlan::read_earlier_plan_if_parsable(dir) {
        return Ok(plan.number);
    }
    lowest_free_stack_number(directories)
}

/// Returns the lowest number that no stack has and that no running cluster uses.
pub(crate) fn lowest_free_stack_number(directories: &LauncherDirectories) -> Result<StackNumber> {
    directories::create_private_directory_if_missing(&directories.stacks)?;
    let _one = directories::truncate_and_lock_file(&directories.stacks.join(".lock"))?;
    let mut taken = HashSet::new();
    for entry in fs::read_dir(&directories.stacks)
        .with_operation("read", &directories.stacks)?
        .flatten()
    {
        if let Ok(other) = directories.stack_directory(&entry.file_name().to_string_lossy())
            && let Some(plan) = StackPlan::read_earlier_plan_if_parsable(&other)
        {
            taken.insert(plan.number);
        }
    }
    let free = StackNumber::lowest_free_number(|number| {
        taken.contains(&number) || down::sysfs_interface_path(number).exists()
    });
    free.ok_or_else(|| {
        LauncherError::Environment(
            "all 254 stack numbers are taken; `slipway-stack down --purge --name NAME` frees one".into(),
        )
    })
}

/// Starts the missing parts of a stack that runs with this plan; otherwise stops what runs, and starts the whole stack
/// with this plan.
async fn start_missing_parts_or_restart_if_changed(
    dir: &StackDir,
    plan: StackPlan,
    progress: &ProgressSink,
) -> Result<Stack> {
    let alive = RunningStackState::read_state_if_running_or_killed(dir)?
        .is_some_and(|running| running.holder_is_alive());
    let unchanged = StackPlan::read_earlier_plan_if_parsable(dir).as_ref() == Some(&plan);
    if alive && unchanged {
        let stack = Stack::from_plan(dir.clone(), plan)?;
        start_missing_parts_and_wait::<StackPart>(&stack.dir, progress).await?;
        return Ok(stack);
    }
    if alive {
        progress.emit_progress_line(
            "stack",
            "its programs, certificates or settings have changed; restarting",
        );
    }
    down::stop_and_remove_cgroups_and_state_files::<StackPart>(dir, progress).await?;
    write_credentials_program_links_and_step_plugins(dir, &plan).await?;
    plan.write_plan(dir)?;
    // Before the supervisor starts, because this can take longer than a supervisor's start.
    buildkit_disk::make_disk_image_or_repair_existing(
        dir,
        plan.step_limits_or_this_machines()?.disk,
        progress,
    )
    .await?;
    let stack = Stack::from_plan(dir.clone(), plan)?;
    let holder = HolderProcess::start_holder(dir, &stack.plan()?.launcher.program, &["hold"])?;
    holder.wait_for_supervisor_and_move_holder(dir).await?;
    if let Err(error) = start_missing_parts_and_wait::<StackPart>(&stack.dir, progress).await {
        // The error is the reason for the failed start, whatever the clean-up returns; its failure would show
        // at the next start.
        let _ = down::stop_and_remove_cgroups_and_state_files::<StackPart>(dir, progress).await;
        return Err(error);
    }
    holder.keep_running();
    Ok(stack)
}

/// Writes the stack's credentials, links its programs for a user's `PATH`, and writes the runtime and the CNI plugins
/// of build steps.
async fn write_credentials_program_links_and_step_plugins(dir: &StackDir, plan: &StackPlan) -> Result<()> {
    let credentials = GatewayAndRegistryLogins::read_or_generate_also_signing_keys(
        dir,
        &plan.registry_host_and_port(),
        plan.provider.registry_requires_password(),
    )?;
    if let Some(login) = &credentials.registry {
        write_private_file(
            &dir.config_directory().join("htpasswd"),
            &GatewayAndRegistryLogins::generate_htpasswd(login).await?,
        )?;
    }
    for (name, program) in [
        ("faas-cli", &plan.tools.faas_cli),
        ("buildctl", &plan.tools.buildctl),
    ] {
        let link = dir.programs_directory().join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).with_operation("create", &link)?;
    }
    write_step_runtime(dir, plan)?;
    step_address::write_cni_plugin_directory(dir, plan)
}

/// Links or copies the plan's launcher to another name, under which BuildKit starts it.
///
/// The file is not a symbolic link, because a newer build of the launcher replaces the launcher's own file while steps
/// run.
pub(crate) fn write_launcher_as(program: &Path, plan: &StackPlan) -> Result<()> {
    let _ = fs::remove_file(program);
    let launcher = &plan.launcher.program;
    // Another file system needs a copy.
    if fs::hard_link(launcher, program).is_err() {
        fs::copy(launcher, program).with_operation("write", program)?;
    }
    Ok(())
}

/// Writes the runtime of build steps, which is this launcher, and its configuration.
fn write_step_runtime(dir: &StackDir, plan: &StackPlan) -> Result<()> {
    write_launcher_as(
        &dir.config_directory()
            .join(step_runtime::STEP_RUNTIME_PROGRAM_NAME),
        plan,
    )?;
    let runtime = StepRuntimeConfiguration {
        runc: plan.tools.runc.clone(),
        limits: plan.step_limits_or_this_machines()?,
    };
    let path = dir
        .config_directory()
        .join(step_runtime::STEP_RUNTIME_CONFIGURATION_FILE);
    let text = serde_json::to_vec(&runtime).map_err(|source| LauncherError::InvalidFile {
        path: path.clone(),
        source,
    })?;
    write_private_file(&path, &text)
}
