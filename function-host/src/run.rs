//! A function's `main`: settings, setup, serving, exit code.

use std::num::NonZero;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use prometheus::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use crate::app::App;
use crate::context::SharedContextParts;
use crate::env::{Environment, ProcessEnvironment, SettingProblem, SettingsParser};
use crate::error_chain::ErrorChain;
use crate::gateway::{self, Gateway, GatewayError};
use crate::handler::Handler;
use crate::lifecycle::{self, ExitReason, StopSignals};
use crate::log;
use crate::secret::Secrets;
use crate::server::Server;
use crate::settings::Settings;
use crate::setup::{SetupContext, SetupError, SetupFailureCause};
use crate::shutdown::Shutdown;
use crate::trace;

/// The exit code for wrong settings (`EX_CONFIG` of sysexits.h): starting again does not help.
const WRONG_SETTINGS_EXIT_CODE: u8 = 78;

/// The exit code that a shell reports for a process killed by SIGTERM.
const TERMINATED_EXIT_CODE: u8 = 128 + 15;

/// The exit code of a Rust process whose main thread panics.
const PANICKED_EXIT_CODE: u8 = 101;

/// Serves `handler` as a function until SIGTERM. This is the whole `main` of a simple function; see
/// [`run_with`] for settings and details.
pub fn run(handler: impl Handler) -> ExitCode {
    run_with(async |_setup| Ok(App::new(handler)))
}

/// Sets up a function and serves it until SIGTERM.
///
/// # Settings
///
/// All settings are environment variables; durations are in Go's format (`1m30s`) or whole seconds. A variable with
/// an empty value counts as not set.
///
/// | variable | default | meaning |
/// | --- | --- | --- |
/// | `port` | 8080 | the port of the function |
/// | `metrics_port` | 8081 | the port of `/metrics` |
/// | `read_timeout` | `10s` | the time for the head of a request, and between two chunks of its body |
/// | `write_timeout` | `10s` | the time in which the client must read a chunk of the response |
/// | `exec_timeout` | `0s` | the time from the head of the request to the last byte of the response; 0: no limit |
/// | `healthcheck_interval` | `5s` | how long requests are still accepted after SIGTERM |
/// | `max_inflight` | 0 | the number of requests at a time; 0: no limit |
/// | `max_headers` | 256 | the number of headers of a request |
/// | `max_header_bytes` | 65536 | the size of the head of a request |
/// | `max_connections` | 2048 | the number of connections that wait for a request |
/// | `slipway_version` | | the version of the function, sent in the header `X-Slipway-Version`; set by deployer-fn |
/// | `secret_mount_path` | `/var/openfaas/secrets` | the directory of secrets |
/// | `gateway_url` | `http://gateway.openfaas:8080` | the gateway |
/// | `log_format` | `json` | `json` or `text` |
/// | `log_level` | `info` | `off`, `error`, `warn`, `info`, `debug` or `trace`; also by target: `info,hyper=debug` |
///
/// The feature `traces` adds the settings listed in the module `trace`.
///
/// # Shutdown
///
/// SIGTERM or SIGINT ends the process with exit code 0, in these steps:
///
/// 1. `/_/ready` fails, and requests are still accepted for `healthcheck_interval`, until load balancers have noticed.
/// 2. The port is closed, and running requests and [background work](Shutdown::begin_background_work) may finish, within
///    the longer of `write_timeout` and `exec_timeout`.
/// 3. The remaining requests are dropped, and background work is not waited for any longer.
/// 4. With the feature `traces`, the queued spans are exported, within 2 s.
///
/// Handlers see the deadline of step 3 in [`Shutdown`]. The provider's grace period must be longer than the sum of
/// these times; otherwise it kills the process earlier.
///
/// A second signal ends the process at once, with exit code 143. Before serving, wrong settings end it with 78, a
/// panic in the setup with 101, and any other failure with 1.
///
/// # Threads
///
/// There is one thread for each processor that the function may use. A handler that blocks a thread can block all
/// other requests and the probes; blocking work belongs in `tokio::task::spawn_blocking`. The shutdown ends in time
/// even then.
pub fn run_with<S>(setup: S) -> ExitCode
where
    S: AsyncFnOnce(SetupContext) -> Result<App, SetupError> + Send + 'static,
{
    run_erased(Box::new(|context| Box::pin(async move { setup(context).await })))
}

/// The setup of a function without its type, so that the code that runs it is compiled once and not for each function.
type ErasedSetup =
    Box<dyn FnOnce(SetupContext) -> Pin<Box<dyn Future<Output = Result<App, SetupError>>>> + Send>;

/// Sets up a function and serves it until SIGTERM, as documented at [`run_with`].
fn run_erased(setup: ErasedSetup) -> ExitCode {
    let environment: Arc<dyn Environment> = Arc::new(ProcessEnvironment);
    let mut parser = SettingsParser::new(&*environment);
    let host = HostSettings::read(&mut parser, &*environment);
    log::start_logging_events_and_panics(&host.log);
    let gateway = match host.gateway {
        Ok(gateway) => gateway,
        Err(error) => {
            log_start_failure("could not create the client of the gateway", &error);
            return ExitCode::FAILURE;
        }
    };
    let (settings, secrets, traces) = (host.server, host.secrets, host.traces);
    let flush_timeout = traces.flush_timeout();
    let problems = parser.into_problems();
    let thread = ServingThreadInput {
        environment,
        settings: settings.clone(),
        secrets,
        gateway,
        traces,
        problems,
    };
    match run_in_supervised_thread(&settings, flush_timeout, move |stop| {
        thread.run_until_stopped(setup, stop)
    }) {
        Ok(ExitReason::Clean | ExitReason::Blocked) => ExitCode::SUCCESS,
        Ok(ExitReason::WrongSettings) => ExitCode::from(WRONG_SETTINGS_EXIT_CODE),
        Ok(ExitReason::Failed) => ExitCode::FAILURE,
        Ok(ExitReason::Panicked) => ExitCode::from(PANICKED_EXIT_CODE),
        Ok(ExitReason::Forced) => ExitCode::from(TERMINATED_EXIT_CODE),
        Err(error) => {
            log_start_failure("could not start the serving thread", &error);
            ExitCode::FAILURE
        }
    }
}

/// Checks the settings that [`run_with`] reads, without starting anything.
///
/// # Errors
/// Fails if a setting is wrong, or if the certificates for the gateway cannot be read.
pub fn check_settings(environment: &dyn Environment) -> Result<(), SetupError> {
    let mut parser = SettingsParser::new(environment);
    HostSettings::read(&mut parser, environment).gateway?;
    Ok(parser.fail_if_problems()?)
}

/// All settings that the host reads from the environment.
struct HostSettings {
    log: log::Settings,
    server: Settings,
    secrets: Secrets,
    gateway: Result<Gateway, GatewayError>,
    traces: trace::Settings,
}

impl HostSettings {
    /// Reads all settings of the host; problems are added to `parser`.
    fn read(parser: &mut SettingsParser<'_>, environment: &dyn Environment) -> Self {
        let secrets = Secrets::from_env(environment);
        Self {
            log: log::Settings::read(parser),
            server: Settings::read(parser),
            gateway: gateway::gateway_from_setting_or_default(parser, &secrets),
            traces: trace::Settings::read(parser, &secrets),
            secrets,
        }
    }
}

/// Runs `serve` in a new thread while this one waits for stop signals, which it forwards; returns the reason for the
/// process's exit.
fn run_in_supervised_thread(
    settings: &Settings,
    flush_timeout: Duration,
    serve: impl FnOnce(watch::Receiver<bool>) -> ExitReason + Send + 'static,
) -> std::io::Result<ExitReason> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            // Before the setup, so that no signal is lost: process 1 of a container has no default action for signals.
            let signals = StopSignals::new()?;
            let (stop, stop_receiver) = watch::channel(false);
            let (exit, serving) = oneshot::channel();
            let serve = move || {
                let _ = exit.send(serve(stop_receiver));
            };
            std::thread::Builder::new()
                .name("serving".to_owned())
                .spawn(serve)?;
            Ok(
                lifecycle::forward_stop_and_wait_for_exit(signals, stop, serving, settings, flush_timeout)
                    .await,
            )
        })
}

/// Creates the function's async runtime with a thread for each processor that the function may use.
///
/// With one processor, a single thread does everything: a request then costs about 5 % less than on the multi-threaded
/// scheduler (`tests/bench-host`).
fn create_runtime() -> std::io::Result<Runtime> {
    let processors = available_parallelism().map_or(1, NonZero::get);
    let mut builder = match processors {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// The settings and resources that the serving thread starts with.
struct ServingThreadInput {
    environment: Arc<dyn Environment>,
    settings: Settings,
    secrets: Secrets,
    gateway: Gateway,
    traces: trace::Settings,
    problems: Vec<SettingProblem>,
}

impl ServingThreadInput {
    /// Sets up the function and serves it until it stops; returns the reason for the exit.
    fn run_until_stopped(self, setup: ErasedSetup, stop: watch::Receiver<bool>) -> ExitReason {
        let runtime = match create_runtime() {
            Ok(runtime) => runtime,
            Err(error) => return log_start_failure("could not start the runtime", &error),
        };
        let exit = runtime.block_on(self.set_up_and_serve(setup, stop));
        // Does not wait for blocking work that handlers left behind.
        runtime.shutdown_background();
        exit
    }

    /// Runs `setup`, starts the export of traces, and serves the function until it stops; returns the reason for the
    /// exit.
    async fn set_up_and_serve(self, setup: ErasedSetup, mut stop: watch::Receiver<bool>) -> ExitReason {
        let Self {
            environment,
            settings,
            secrets,
            gateway,
            traces,
            problems,
        } = self;
        let (trigger, shutdown) = Shutdown::new();
        let registry = Registry::new();
        let context = SetupContext {
            environment,
            problems: problems.clone(),
            secrets: secrets.clone(),
            gateway: gateway.clone(),
            registry: registry.clone(),
            shutdown: shutdown.clone(),
            max_inflight: settings.max_inflight,
        };
        let set_up = tokio::select! {
            set_up = setup(context) => set_up,
            () = lifecycle::wait_for_stop_request(&mut stop) => return ExitReason::Clean,
        };
        let app = match set_up {
            Err(SetupError(SetupFailureCause::Settings(all))) => return log_wrong_settings(&all.0),
            _ if !problems.is_empty() => return log_wrong_settings(&problems),
            Err(SetupError(SetupFailureCause::Other(error))) => {
                return log_start_failure("could not set up the function", error.as_ref());
            }
            Ok(app) => app,
        };
        let shared = Arc::new(SharedContextParts {
            secrets,
            gateway,
            shutdown,
        });
        let tracer = match traces.start_export_if_enabled(app.name) {
            Ok(tracer) => tracer,
            Err(error) => return log_start_failure("could not start the export of traces", error.as_ref()),
        };
        let server = match Server::new(&settings, app, shared, registry, tracer.clone()) {
            Ok(server) => server,
            Err(error) => return log_start_failure("could not register the metrics", &error),
        };
        let served = lifecycle::serve_until_stopped(&server, &settings, &trigger, &mut stop).await;
        tracer.flush_and_stop_export().await;
        match served {
            Ok(()) => ExitReason::Clean,
            Err(error) => log_start_failure("could not listen for requests and metrics", &error),
        }
    }
}

/// Logs why the function could not start, and returns [`ExitReason::Failed`].
fn log_start_failure(message: &'static str, error: &(dyn std::error::Error + 'static)) -> ExitReason {
    tracing::error!(error = %ErrorChain(error), "{message}");
    ExitReason::Failed
}

/// Logs each problem of the settings, and returns [`ExitReason::WrongSettings`].
fn log_wrong_settings(problems: &[SettingProblem]) -> ExitReason {
    for SettingProblem { name, what } in problems {
        tracing::error!(setting = name, problem = what, "wrong setting");
    }
    ExitReason::WrongSettings
}
