//! The OCI runtime specification of a function's container, built from the deployment and the image's
//! configuration, without side effects.
//!
//! It is faasd's specification, which is containerd's default with one capability, with these differences:
//! the network namespace is created beforehand, a read-only root is supported (with a `/tmp` on disk), and
//! there is no own limit on open files. There is no seccomp profile, and no `oom_score_adj`, because setting
//! one needs a privilege that the machine may lack.

pub(crate) mod user;

use std::path::{Path, PathBuf};

use oci_spec::{
    image::Config,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
        LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, ProcessBuilder, RootBuilder,
        Spec, SpecBuilder, User, get_default_maskedpaths, get_default_mounts, get_default_readonly_paths,
    },
};

use crate::{
    error::ProviderError,
    model::{FunctionDeployment, NameValueMap},
    quantity,
};

/// The directory of secrets inside a function's container.
pub(crate) const SECRETS_MOUNT_PATH: &str = "/var/openfaas/secrets";

/// The variable `PATH` of a function whose image has none.
const DEFAULT_PATH_VARIABLE: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The input for the runtime specification of a container.
#[derive(Debug)]
pub(crate) struct SpecInput<'a> {
    pub(crate) deployment: &'a FunctionDeployment,
    pub(crate) config: &'a Config,
    pub(crate) user: User,
    /// The file on which the container's network namespace is mounted.
    pub(crate) network: &'a Path,
    pub(crate) cgroup: String,
    pub(crate) resolv_conf: &'a Path,
    pub(crate) hosts: &'a Path,
    /// The directory with the secrets of the function's namespace.
    pub(crate) secrets: &'a Path,
    /// The directory to mount at `/tmp`, if the container's root is read-only.
    pub(crate) scratch: Option<&'a Path>,
}

/// Parses the memory limit of a deployment, in bytes; `None` if it has no limit.
pub(crate) fn memory_limit_bytes(deployment: &FunctionDeployment) -> Result<Option<i64>, ProviderError> {
    let memory = deployment
        .limits
        .as_ref()
        .map_or("", |limits| limits.memory.as_str());
    match (memory, quantity::parse_quantity_up_to_1_pib_as_bytes(memory)) {
        ("", _) => Ok(None),
        (_, Some(bytes)) => Ok(Some(bytes)),
        (_, None) => Err(ProviderError::Invalid(format!(
            "limits.memory: {memory:?} is not a quantity; use one like 128Mi"
        ))),
    }
}

/// Builds the runtime specification of a function's container.
pub(crate) fn build_spec(input: SpecInput<'_>) -> Result<Spec, ProviderError> {
    let memory = memory_limit_bytes(input.deployment)?;
    let args = entrypoint_and_command(input.config);
    if args.is_empty() {
        return Err(ProviderError::Image {
            image: input.deployment.image.clone(),
            reason: "neither an entrypoint nor a command".to_owned(),
        });
    }
    let mounts = function_mounts(&input);
    let mut env = input.config.env().clone().unwrap_or_default();
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH_VARIABLE.to_owned());
    }
    for (name, value) in deployment_env(input.deployment) {
        env.retain(|pair| pair.split('=').next() != Some(&name));
        env.push(format!("{name}={value}"));
    }
    let cwd = input
        .config
        .working_dir()
        .as_deref()
        .filter(|dir| !dir.is_empty())
        .unwrap_or("/");
    assemble_spec(args, env, cwd, mounts, memory, input).map_err(ProviderError::Spec)
}

/// Puts the computed parts together to a specification, with the fixed limits on the process.
fn assemble_spec(
    args: Vec<String>,
    env: Vec<String>,
    cwd: &str,
    mounts: Vec<Mount>,
    memory: Option<i64>,
    input: SpecInput<'_>,
) -> Result<Spec, oci_spec::OciSpecError> {
    let capabilities = [Capability::NetRaw];
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities)
        .effective(capabilities)
        .permitted(capabilities)
        .inheritable([])
        .ambient([])
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(input.user)
        .args(args)
        .env(env)
        .cwd(cwd)
        .capabilities(capabilities)
        .rlimits([])
        .no_new_privileges(true)
        .build()?;

    let mut namespaces = Vec::new();
    for kind in [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ] {
        namespaces.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    let network = LinuxNamespaceBuilder::default()
        .typ(LinuxNamespaceType::Network)
        .path(input.network);
    namespaces.push(network.build()?);

    let no_device = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    let mut resources = LinuxResourcesBuilder::default().devices([no_device]);
    if let Some(limit) = memory {
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources.build()?)
        .cgroups_path(PathBuf::from(input.cgroup))
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths())
        .build()?;

    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(input.deployment.read_only_root_filesystem);
    SpecBuilder::default()
        .version("1.1.0")
        .hostname(&input.deployment.service)
        .process(process)
        .root(root.build()?)
        .mounts(mounts)
        .linux(linux)
        .build()
}

/// Returns the image's entrypoint followed by its command.
fn entrypoint_and_command(config: &Config) -> Vec<String> {
    let entrypoint = config.entrypoint().iter().flatten();
    entrypoint.chain(config.cmd().iter().flatten()).cloned().collect()
}

/// Returns the variables that a deployment adds to the image's environment. `envProcess` is the classic
/// watchdog's `fprocess`, unless that variable is given.
fn deployment_env(deployment: &FunctionDeployment) -> NameValueMap {
    let mut env = deployment.env_vars.clone();
    if !deployment.env_process.is_empty() {
        env.entry("fprocess".to_owned())
            .or_insert_with(|| deployment.env_process.clone());
    }
    env
}

/// Returns the environment for a function's status, without `PATH` and `fprocess`, and the value of `fprocess`.
pub(crate) fn status_env_and_fprocess(
    config: &Config,
    deployment: &FunctionDeployment,
) -> (NameValueMap, String) {
    let from_image = config
        .env()
        .iter()
        .flatten()
        .filter_map(|pair| pair.split_once('='));
    let mut env: NameValueMap = from_image
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(deployment_env(deployment));
    env.remove("PATH");
    let process = env.remove("fprocess").unwrap_or_default();
    (env, process)
}

/// Returns the mounts of a function: the defaults without the control groups, `/run`, `/tmp` if the root is read-only,
/// the resolver's files, and the secrets.
fn function_mounts(input: &SpecInput<'_>) -> Vec<Mount> {
    let mut mounts = get_default_mounts();
    mounts.retain(|mount| mount.destination() != Path::new("/sys/fs/cgroup"));
    mounts.push(tmpfs_mount("/run", "mode=755"));
    if let Some(scratch) = input.scratch {
        mounts.push(bind_mount(scratch, "/tmp".into(), &["rbind", "nosuid", "nodev"]));
    }
    mounts.push(read_only_bind_mount(input.resolv_conf, "/etc/resolv.conf".into()));
    mounts.push(read_only_bind_mount(input.hosts, "/etc/hosts".into()));
    for name in &input.deployment.secrets {
        mounts.push(read_only_bind_mount(
            &input.secrets.join(name),
            Path::new(SECRETS_MOUNT_PATH).join(name),
        ));
    }
    mounts
}

fn read_only_bind_mount(source: &Path, destination: PathBuf) -> Mount {
    bind_mount(source, destination, &["rbind", "ro"])
}

fn bind_mount(source: &Path, destination: PathBuf, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination)
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

fn tmpfs_mount(destination: &str, mode_option: &str) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some("tmpfs".to_owned()))
        .set_source(Some("tmpfs".into()))
        .set_options(Some(["nosuid", "nodev", mode_option].map(str::to_owned).to_vec()));
    mount
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::FunctionResources;

    fn test_deployment() -> FunctionDeployment {
        FunctionDeployment {
            service: "hello".into(),
            image: "hello".into(),
            ..Default::default()
        }
    }

    fn spec_of_deployment(deployment: &FunctionDeployment) -> Result<Value, ProviderError> {
        let config = ConfigBuilder::default()
            .env(["PATH=/bin".to_owned(), "A=image".to_owned()])
            .entrypoint(["/app".to_owned()])
            .cmd(["serve".to_owned()])
            .working_dir("/work")
            .build()
            .unwrap();
        let input = SpecInput {
            deployment,
            config: &config,
            user: user::user_with_ids(1000, 1000),
            network: Path::new("/state/netns/hello.1"),
            cgroup: "/slipway-dev/hello.1".into(),
            resolv_conf: Path::new("/state/resolv.conf"),
            hosts: Path::new("/state/hosts"),
            secrets: Path::new("/secrets/openfaas-fn"),
            scratch: deployment
                .read_only_root_filesystem
                .then_some(Path::new("/state/tmp/hello.1")),
        };
        Ok(serde_json::to_value(build_spec(input)?).unwrap())
    }

    #[test]
    fn the_process_is_the_images_with_the_deployments_variables() {
        let mut deployment = test_deployment();
        deployment.env_process = "cat".into();
        deployment.env_vars = NameValueMap::from([("A".into(), "mine".into()), ("B".into(), "x=y".into())]);
        let process = &spec_of_deployment(&deployment).unwrap()["process"];
        assert_eq!(process["args"], json!(["/app", "serve"]));
        assert_eq!(
            process["env"],
            json!(["PATH=/bin", "A=mine", "B=x=y", "fprocess=cat"])
        );
        assert_eq!(process["cwd"], "/work");
        assert_eq!(process["user"], json!({"uid": 1000, "gid": 1000}));
        assert_eq!(process["noNewPrivileges"], true);
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_NET_RAW"]));
        assert_eq!(process["capabilities"]["ambient"], json!([]));
        assert_eq!(process["oomScoreAdj"], Value::Null);
    }

    #[test]
    fn only_the_named_secrets_are_mounted_and_read_only() {
        let mut deployment = test_deployment();
        deployment.secrets = vec!["key".into()];
        let spec = spec_of_deployment(&deployment).unwrap();
        let mounts = spec["mounts"].as_array().unwrap().iter();
        let secrets: Vec<_> = mounts
            .filter(|m| m["destination"].as_str().unwrap().starts_with(SECRETS_MOUNT_PATH))
            .collect();
        assert_eq!(
            secrets,
            [
                &json!({"destination": "/var/openfaas/secrets/key", "type": "bind",
                     "source": "/secrets/openfaas-fn/key", "options": ["rbind", "ro"]})
            ]
        );
    }

    #[test]
    fn the_network_namespace_is_joined_and_the_others_are_new() {
        let spec = spec_of_deployment(&test_deployment()).unwrap();
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                   {"type": "network", "path": "/state/netns/hello.1"}])
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/slipway-dev/hello.1");
        assert_eq!(
            spec["linux"]["resources"],
            json!({"devices": [{"allow": false, "access": "rwm"}]})
        );
    }

    #[test]
    fn a_memory_limit_is_in_bytes_and_an_invalid_one_is_rejected() {
        let mut deployment = test_deployment();
        deployment.limits = Some(FunctionResources {
            memory: "64Mi".into(),
            ..Default::default()
        });
        let spec = spec_of_deployment(&deployment).unwrap();
        assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 67_108_864}));
        deployment.limits = Some(FunctionResources {
            memory: "much".into(),
            ..Default::default()
        });
        assert_eq!(
            spec_of_deployment(&deployment).unwrap_err().to_string(),
            r#"limits.memory: "much" is not a quantity; use one like 128Mi"#
        );
    }

    #[test]
    fn a_read_only_root_has_a_mount_at_tmp() {
        let mut deployment = test_deployment();
        assert_eq!(
            spec_of_deployment(&deployment).unwrap()["root"],
            json!({"path": "rootfs", "readonly": false})
        );
        deployment.read_only_root_filesystem = true;
        let spec = spec_of_deployment(&deployment).unwrap();
        assert_eq!(spec["root"]["readonly"], true);
        assert!(
            spec["mounts"]
                .as_array()
                .unwrap()
                .iter()
                .any(|mount| mount["destination"] == "/tmp")
        );
    }

    #[test]
    fn a_status_shows_the_environment_without_the_path() {
        let config = ConfigBuilder::default()
            .env(["PATH=/bin".to_owned(), "A=1".to_owned()])
            .build()
            .unwrap();
        let mut deployment = test_deployment();
        deployment.env_process = "cat".into();
        deployment.env_vars = NameValueMap::from([("B".into(), "2".into())]);
        let (env, process) = status_env_and_fprocess(&config, &deployment);
        assert_eq!(
            env,
            NameValueMap::from([("A".into(), "1".into()), ("B".into(), "2".into())])
        );
        assert_eq!(process, "cat");
    }
}
