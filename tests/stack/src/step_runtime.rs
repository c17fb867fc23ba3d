//! The OCI runtime of build steps: adds limits to the container's configuration and becomes runc.
//!
//! BuildKit limits a step only if the client of the build asks for it, and it has no limit on processes. It also
//! mounts its own socket for traces into each step, where a step could send spans for the traces of other builds.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    error::{IoResultExt as _, LauncherError, Result},
    limits::StepResourceLimits,
};

/// The name of the runtime's program: the launcher under another name, in the stack's configuration.
pub(crate) const STEP_RUNTIME_PROGRAM_NAME: &str = "slipway-step-runtime";

/// The name of the runtime's configuration file, beside its program.
pub(crate) const STEP_RUNTIME_CONFIGURATION_FILE: &str = "slipway-step-runtime.json";

/// The socket for traces that BuildKit mounts into each step.
const TRACE_SOCKET: &str = "/dev/otel-grpc.sock";

/// The beginning of the environment variables that BuildKit adds to each step for its traces.
const TRACE_VARIABLE_PREFIX: &str = "OTEL_";

/// How much earlier than other processes the kernel ends a step if the machine has no memory left, from 0 to 1000.
const STEP_OOM_SCORE_ADJUSTMENT: i64 = 500;

/// The period in which a step uses its share of CPU time, in microseconds.
const CPU_PERIOD_MICROSECONDS: f64 = 100_000.0;

/// The configuration of the runtime of build steps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepRuntimeConfiguration {
    /// The path of runc, which runs the steps.
    pub(crate) runc: PathBuf,
    /// The limits that are written into the configuration of each step's container.
    pub(crate) limits: StepResourceLimits,
}

/// Returns whether this process was started as the runtime of build steps.
pub fn was_started_as_step_runtime() -> bool {
    let program = env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name() == Some(OsStr::new(STEP_RUNTIME_PROGRAM_NAME))
}

/// Adds limits to the configuration of the step, if runc's arguments create one, and becomes runc; returns only if that
/// fails.
pub fn limit_step_and_become_runc() -> Result<()> {
    let mut arguments = env::args_os();
    let program = PathBuf::from(arguments.next().unwrap_or_default());
    let arguments = arguments.collect::<Vec<_>>();
    let path = program.with_file_name(STEP_RUNTIME_CONFIGURATION_FILE);
    let runtime: StepRuntimeConfiguration = read_json_file(&path)?;
    if let Some(bundle) = bundle_of_created_container(&arguments) {
        let path = bundle.join("config.json");
        let mut spec: Value = read_json_file(&path)?;
        add_limits_and_remove_trace_socket(&mut spec, &runtime.limits);
        fs::write(&path, spec.to_string()).with_operation("write", path)?;
    }
    Err(LauncherError::Spawn {
        program: runtime.runc.display().to_string(),
        source: Command::new(&runtime.runc).args(arguments).exec(),
    })
}

fn read_json_file<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_operation("read", path)?;
    serde_json::from_slice(&text).map_err(|source| LauncherError::InvalidFile {
        path: path.to_owned(),
        source,
    })
}

/// Returns the bundle of the container that runc's arguments create, or `None` if they create none.
fn bundle_of_created_container(arguments: &[OsString]) -> Option<PathBuf> {
    let creates = |argument: &OsString| argument == "run" || argument == "create";
    let at = arguments.iter().position(creates)?;
    let mut rest = arguments.iter().skip(at);
    rest.find(|argument| *argument == "--bundle")?;
    rest.next().map(PathBuf::from)
}

/// Adds limits to a container's configuration (OCI runtime specification), and removes BuildKit's socket for traces
/// with its variables. Lower limits of memory and processes stay, and so does every quota of processor time.
fn add_limits_and_remove_trace_socket(spec: &mut Value, limits: &StepResourceLimits) {
    let resources = &mut spec["linux"]["resources"];
    set_limit_unless_lower(&mut resources["pids"]["limit"], limits.processes);
    set_limit_unless_lower(&mut resources["memory"]["limit"], limits.memory);
    // Memory and swap together: a step that used up its memory does not go on in swap.
    let memory = resources["memory"]["limit"].as_u64().unwrap_or(limits.memory);
    set_limit_unless_lower(&mut resources["memory"]["swap"], memory);
    if resources["cpu"]["quota"].is_null() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a float becomes the nearest integer"
        )]
        let quota = (limits.cpus * CPU_PERIOD_MICROSECONDS) as i64;
        resources["cpu"]["quota"] = json!(quota);
        resources["cpu"]["period"] = json!(CPU_PERIOD_MICROSECONDS as u64);
    }
    let process = &mut spec["process"];
    process["oomScoreAdj"] = json!(STEP_OOM_SCORE_ADJUSTMENT);
    if let Some(environment) = process["env"].as_array_mut()
        && environment
            .iter()
            .any(|variable| variable.as_str().is_some_and(|text| text.ends_with(TRACE_SOCKET)))
    {
        environment.retain(|variable| {
            !variable
                .as_str()
                .is_some_and(|text| text.starts_with(TRACE_VARIABLE_PREFIX))
        });
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != TRACE_SOCKET);
    }
}

/// Sets `value` to `limit` unless it is a lower limit already; an absent value and −1 mean that there is no limit.
fn set_limit_unless_lower(value: &mut Value, limit: u64) {
    let current = value.as_u64().unwrap_or(u64::MAX);
    *value = json!(current.min(limit));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_STEP_LIMITS: StepResourceLimits = StepResourceLimits {
        memory: 1 << 30,
        total_memory: 2 << 30,
        cpus: 1.5,
        processes: 100,
        disk: 1 << 30,
    };

    #[test]
    fn a_step_gets_every_limit_and_keeps_lower_ones() {
        let mut spec = json!({ "process": {}, "linux": {} });
        add_limits_and_remove_trace_socket(&mut spec, &TEST_STEP_LIMITS);
        let expected = json!({
            "pids": { "limit": 100 },
            "memory": { "limit": 1 << 30, "swap": 1 << 30 },
            "cpu": { "quota": 150_000, "period": 100_000 },
        });
        assert_eq!(spec["linux"]["resources"], expected);
        assert_eq!(spec["process"]["oomScoreAdj"], 500);

        let mut spec = json!({ "linux": { "resources": {
            "pids": { "limit": -1 },
            "memory": { "limit": 4096, "swap": -1 },
            "cpu": { "quota": 50_000, "period": 200_000 },
        } } });
        add_limits_and_remove_trace_socket(&mut spec, &TEST_STEP_LIMITS);
        let expected = json!({
            "pids": { "limit": 100 },
            "memory": { "limit": 4096, "swap": 4096 },
            "cpu": { "quota": 50_000, "period": 200_000 },
        });
        assert_eq!(spec["linux"]["resources"], expected);
    }

    #[test]
    fn the_daemons_trace_socket_is_not_mounted_and_the_builds_own_variables_stay() {
        let mut spec = json!({
            "process": { "env": [
                "PATH=/bin",
                "OTEL_TRACES_EXPORTER=otlp",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix:///dev/otel-grpc.sock",
            ] },
            "mounts": [{ "destination": "/proc" }, { "destination": "/dev/otel-grpc.sock" }],
        });
        add_limits_and_remove_trace_socket(&mut spec, &TEST_STEP_LIMITS);
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin"]));
        assert_eq!(spec["mounts"], json!([{ "destination": "/proc" }]));

        let own = json!(["OTEL_SERVICE_NAME=mine"]);
        let mut spec = json!({ "process": { "env": own } });
        add_limits_and_remove_trace_socket(&mut spec, &TEST_STEP_LIMITS);
        assert_eq!(spec["process"]["env"], own);
    }

    #[test]
    fn a_container_bundle_is_found_only_in_runc_commands_that_create_a_container() {
        let bundle = |words: &str| {
            let words = words.split(' ').map(OsString::from).collect::<Vec<_>>();
            bundle_of_created_container(&words)
        };
        let expected = Some(PathBuf::from("/b"));
        assert_eq!(
            bundle("--log /l --log-format json run --bundle /b --keep id"),
            expected
        );
        assert_eq!(bundle("create --bundle /b id"), expected);
        assert_eq!(bundle("--log /l delete id"), None);
        assert_eq!(bundle("exec --process /p id"), None);
    }
}
