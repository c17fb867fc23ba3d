//! The start and the stop of a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Cluster, ClusterPart, addons,
    address::registry_host_and_port,
    images::{self, ImageSources},
    pki::write_certificates_and_kubeconfigs,
    plan::{ClusterPlan, ClusterProgramDirectories, ClusterProvider},
    supervisor::DATA_DIRECTORIES,
};
use crate::{
    address::StackNumber,
    credentials::GatewayAndRegistryLogins,
    directories::{LauncherDirectories, StackDir, create_private_directory_if_missing},
    down::{rename_and_remove_directory, stop_and_remove_cgroups_and_state_files},
    error::{IoResultExt as _, LauncherError, Result},
    holder_process::{HolderProcess, start_missing_parts_and_wait},
    packages,
    plan::{ProgramFileStamp, RunningStackState},
    programs,
    progress::ProgressSink,
    up::lowest_free_stack_number,
};

impl Cluster {
    /// Starts the cluster with this name, or its missing parts, and waits until what runs on it is ready.
    ///
    /// `faas_netes` is a program to use as the provider, in place of the embedded one.
    ///
    /// A running cluster whose programs or images have changed is replaced by an empty one. If a part of a newly
    /// started cluster fails, or this future is dropped before all parts are ready, the cluster is stopped again.
    pub async fn start_complete_or_replace_changed_cluster(
        name: &str,
        faas_netes: Option<&Path>,
        progress: &ProgressSink,
    ) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(LauncherError::Environment(
                "starting a cluster needs root, for namespaces and mounts; run the command as root".into(),
            ));
        }
        let directories = LauncherDirectories::from_env()?;
        let dir = directories.cluster_directory(name)?;
        packages::install_missing_packages_for_clusters(progress).await?;
        let (programs, registry, [provider, builder, deployer]) = tokio::try_join!(
            ClusterProgramDirectories::build_missing(&directories, progress),
            packages::unpack_registry_program_if_missing(&directories, progress),
            build_workspace_programs(progress),
        )?;
        let provider = match faas_netes {
            Some(program) => {
                let program = fs::canonicalize(program).with_operation("find", program)?;
                ClusterProvider::FaasNetes(ProgramFileStamp::read_stamp(&program)?)
            }
            None => ClusterProvider::Embedded(ProgramFileStamp::read_stamp(&provider)?),
        };
        let sources = ImageSources {
            programs: &programs,
            provider: &provider,
            registry,
            builder,
            deployer,
        };
        let images = images::load_or_make_archive(&directories, &sources, progress).await?;
        let _one = dir.lock_stack_and_create_its_directory().await?;
        let mut plan = ClusterPlan {
            // A placeholder until it is known whether the cluster runs.
            number: StackNumber::FIRST_STACK_NUMBER,
            launcher: ProgramFileStamp::read_stamp(&programs::path_of_slipway_stack_program()?)?,
            programs,
            provider,
            images,
        };
        let running = RunningStackState::read_state_if_running_or_killed(&dir)?
            .filter(RunningStackState::holder_is_alive);
        let earlier = ClusterPlan::read_plan(&dir).ok().flatten();
        if let (Some(running), Some(earlier)) = (running, earlier) {
            plan.number = running.number;
            if plan == earlier {
                let cluster = Self { dir, plan };
                start_missing_parts_and_wait::<ClusterPart>(&cluster.dir, progress).await?;
                addons::import_images_apply_manifests_and_wait(&cluster, progress).await?;
                return Ok(cluster);
            }
            progress.emit_progress_line(
                "cluster",
                "its programs or images have changed; starting an empty one",
            );
        }
        stop_and_remove_cgroups_and_state_files::<ClusterPart>(&dir, progress).await?;
        plan.number = lowest_free_stack_number(&directories)?;
        let cluster = Self { dir, plan };
        cluster.start_empty(progress).await?;
        Ok(cluster)
    }

    /// Starts the cluster, which does not run, without the data of an earlier one.
    async fn start_empty(&self, progress: &ProgressSink) -> Result<()> {
        let Self { dir, plan } = self;
        remove_everything_but_lock_file(&dir.root)?;
        create_directories(dir)?;
        GatewayAndRegistryLogins::read_or_generate_also_signing_keys(dir, &registry_host_and_port(), false)?;
        write_certificates_and_kubeconfigs(dir, plan.node_address())?;
        for (name, program) in [
            ("kubectl", plan.programs.kubectl()),
            ("helm", plan.programs.helm.join("helm")),
        ] {
            let link = dir.programs_directory().join(name);
            std::os::unix::fs::symlink(program, &link).with_operation("create", &link)?;
        }
        plan.write_plan(dir)?;
        let holder = HolderProcess::start_holder(dir, &plan.launcher.program, &["cluster", "hold"])?;
        holder.wait_for_supervisor_and_move_holder(dir).await?;
        let started = async {
            start_missing_parts_and_wait::<ClusterPart>(dir, progress).await?;
            addons::import_images_apply_manifests_and_wait(self, progress).await
        };
        if let Err(error) = started.await {
            // The error is the reason for the failed start, whatever the clean-up returns; its failure would show at
            // the next start.
            let _ = stop_and_remove_cgroups_and_state_files::<ClusterPart>(dir, progress).await;
            return Err(error);
        }
        holder.keep_running();
        Ok(())
    }
}

/// Builds the embedded provider, builder-fn and deployer-fn, and returns their paths.
async fn build_workspace_programs(progress: &ProgressSink) -> Result<[PathBuf; 3]> {
    // With one command, because cargo would rebuild shared dependencies with other features for each package.
    let building = progress.show_while(
        "programs: building the provider, builder-fn and deployer-fn",
        |_| programs::build_programs(["slipway-dev-provider", "builder-fn", "deployer-fn"]),
    );
    building.await
}

/// Stops the named cluster, whatever state it is in, and removes its data.
pub async fn stop_cluster(name: &str, progress: &ProgressSink) -> Result<()> {
    let dir = LauncherDirectories::from_env()?.cluster_directory(name)?;
    if !dir.root.exists() {
        progress.emit_progress_line(
            "cluster",
            format_args!("no cluster has the name {name}; nothing to stop"),
        );
        return Ok(());
    }
    let _one = dir.lock_stack_and_create_its_directory().await?;
    stop_and_remove_cgroups_and_state_files::<ClusterPart>(&dir, progress).await?;
    rename_and_remove_directory(&dir.root)
}

/// Removes everything in a cluster's directory except the lock, which this process holds.
fn remove_everything_but_lock_file(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).with_operation("read", root)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_operation("remove", &path)?;
        } else if entry.file_name() != "lock" {
            fs::remove_file(&path).with_operation("remove", &path)?;
        }
    }
    Ok(())
}

/// Creates the directories of a cluster. Others than their owner pass those with data, because the users of a pod with
/// a user namespace are others.
fn create_directories(dir: &StackDir) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    create_private_directory_if_missing(&dir.root)?;
    for path in [
        dir.config_directory(),
        dir.programs_directory(),
        dir.home_of_parts(),
        dir.secrets_directory(),
        dir.root.join("log"),
    ] {
        fs::create_dir_all(&path).with_operation("create", &path)?;
    }
    for (_, data) in DATA_DIRECTORIES {
        let path = dir.part_data_directory(data);
        fs::create_dir_all(&path).with_operation("create", &path)?;
        let mode = if data == "etcd" { 0o700 } else { 0o755 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_operation("set the mode of", &path)?;
    }
    for name in addons::volume_names() {
        let path = dir.part_data_directory("volumes").join(name);
        fs::create_dir_all(&path).with_operation("create", &path)?;
        // The kubelet does not give such a volume to a pod's group, so every user may write to it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
            .with_operation("set the mode of", &path)?;
    }
    Ok(())
}
