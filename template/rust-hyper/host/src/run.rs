//! A function's `main`: settings, setup, serving, exit code.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use prometheus::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use crate::boot::{App, Failure, SetupContext, SetupError};
use crate::context::Platform;
use crate::env::{Environment, Parser, Problem, ProcessEnvironment};
use crate::error::ErrorChain;
use crate::gateway::{self, Gateway, GatewayError};
use crate::handler::Handler;
use crate::life::{self, End, Signals, Told};
use crate::log;
use crate::secret::Secrets;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::trace;

/// A setting is wrong (`EX_CONFIG` of sysexits.h): starting again will not help.
const WRONG_SETTINGS: u8 = 78;

/// What a shell tells of a process that SIGTERM ended.
const ENDED_AT_ONCE: u8 = 128 + 15;

/// What Rust ends a process with whose main thread panics.
const PANICKED: u8 = 101;

/// Serves `handler` until SIGTERM. The whole `main` of a simple function; see [`run_with`] for the rest.
pub fn run(handler: impl Handler) -> ExitCode {
    run_with(async |_boot| Ok(App::new(handler)))
}

/// Sets a function up and serves it until SIGTERM.
///
/// # Settings
///
/// All are environment variables, durations as Go writes them (`1m30s`) or in whole seconds. A variable that is set to
/// nothing counts as not set.
///
/// | variable | default | what |
/// | --- | --- | --- |
/// | `port` | 8080 | where the function is served |
/// | `metrics_port` | 8081 | where `/metrics` is |
/// | `read_timeout` | `10s` | how long a client may take for a request's head, and between two pieces of its body |
/// | `write_timeout` | `10s` | how long a client may take nothing of an answer |
/// | `exec_timeout` | `0s` | how long an answer may take in all, from the request's head to its own last byte; 0: no limit |
/// | `healthcheck_interval` | `5s` | how long requests are taken after SIGTERM |
/// | `max_inflight` | 0 | requests at a time; 0: no limit |
/// | `slipway_version` | | told with every answer, in the header `X-Slipway-Version`; deployer-fn sets it |
/// | `secret_mount_path` | `/var/openfaas/secrets` | the directory of secrets |
/// | `gateway_url` | `http://gateway.openfaas:8080` | the gateway |
/// | `log_format` | `json` | `json` or `text` |
/// | `log_level` | `info` | `off`, `error`, `warn`, `info`, `debug` or `trace`; also by target: `info,hyper=debug` |
///
/// With the feature `traces`, those of `trace`, too.
///
/// # The end
///
/// SIGTERM, or SIGINT, ends the process with 0, in this order: `/_/ready` fails, and requests are taken as before for
/// `healthcheck_interval`, so that balancers notice; then the port is closed, and what runs may finish, for the longer of
/// `write_timeout` and `exec_timeout`; then what still runs is dropped; then, where there are traces, up to 2 s for the last. [`Shutdown`] tells handlers how long they have. A
/// provider that kills earlier than this sum has to be given smaller settings, or a longer grace period.
///
/// A second signal ends the process at once, with 143. A wrong setting ends it with 78 before it has begun, any other
/// failure to start with 1.
///
/// # Threads
///
/// There is a thread for each processor that the function may use. What blocks in a handler can block all other requests,
/// and the probes too: such work belongs into `tokio::task::spawn_blocking`. The end comes in time nevertheless.
pub fn run_with<H, S>(setup: S) -> ExitCode
where
    H: Handler,
    S: AsyncFnOnce(SetupContext) -> Result<App<H>, SetupError> + Send + 'static,
{
    let strings: Arc<dyn Environment> = Arc::new(ProcessEnvironment);
    let mut parser = Parser::new(&*strings);
    let host = HostSettings::read(&mut parser, &*strings);
    log::start(&host.log);
    let gateway = match host.gateway {
        Ok(gateway) => gateway,
        Err(error) => {
            failed("could not prepare for the gateway", &error);
            return ExitCode::FAILURE;
        }
    };
    let (settings, secrets, traces) = (host.server, host.secrets, host.traces);
    let flushing = traces.flushing();
    let problems = parser.into_problems();
    let start = Start {
        strings,
        settings: settings.clone(),
        secrets,
        gateway,
        traces,
        problems,
    };
    match supervise(&settings, flushing, move |ask| start.serve(setup, ask)) {
        Ok(End::Told(Told::InOrder) | End::Blocked) => ExitCode::SUCCESS,
        Ok(End::Told(Told::WrongSettings)) => ExitCode::from(WRONG_SETTINGS),
        Ok(End::Told(Told::Failed)) => ExitCode::FAILURE,
        Ok(End::Panicked) => ExitCode::from(PANICKED),
        Ok(End::AtOnce) => ExitCode::from(ENDED_AT_ONCE),
        Err(error) => {
            failed("could not start a thread", &error);
            ExitCode::FAILURE
        }
    }
}

/// Checks the settings that [`run_with`] reads, without starting anything.
///
/// # Errors
/// If a setting is wrong, or if the certificates for the gateway cannot be read.
pub fn check_settings(environment: &dyn Environment) -> Result<(), SetupError> {
    let mut parser = Parser::new(environment);
    HostSettings::read(&mut parser, environment).gateway?;
    Ok(parser.finish()?)
}

/// Everything that the host reads from the environment.
struct HostSettings {
    log: log::Settings,
    server: Settings,
    secrets: Secrets,
    gateway: Result<Gateway, GatewayError>,
    traces: trace::Settings,
}

impl HostSettings {
    /// Reads the settings; `parser` collects what is wrong with them.
    fn read(parser: &mut Parser<'_>, environment: &dyn Environment) -> Self {
        let secrets = Secrets::from_env(environment);
        Self {
            log: log::Settings::read(parser),
            server: Settings::read(parser),
            gateway: gateway::read(parser, &secrets),
            traces: trace::Settings::read(parser, &secrets),
            secrets,
        }
    }
}

/// Runs `serve` in a thread of its own, and watches over it in this one.
fn supervise(
    settings: &Settings,
    flushing: Duration,
    serve: impl FnOnce(watch::Receiver<bool>) -> Told + Send + 'static,
) -> std::io::Result<End> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            // Before anything else, so that a signal during the setup is not lost: as process 1 there is no default action.
            let signals = Signals::new()?;
            let (ask, asked) = watch::channel(false);
            let (tell, told) = oneshot::channel();
            let serve = move || {
                let _ = tell.send(serve(asked));
            };
            std::thread::Builder::new()
                .name("serving".to_owned())
                .spawn(serve)?;
            Ok(life::watch_over(signals, ask, told, settings, flushing).await)
        })
}

/// A thread for each processor the function may use. With one processor, one thread does all: a request then costs about
/// a twentieth less than on a scheduler for many (`tests/bench-host`).
fn runtime() -> std::io::Result<Runtime> {
    let processors = available_parallelism().map_or(1, NonZero::get);
    let mut builder = match processors {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// What a function starts with.
struct Start {
    strings: Arc<dyn Environment>,
    settings: Settings,
    secrets: Secrets,
    gateway: Gateway,
    traces: trace::Settings,
    problems: Vec<Problem>,
}

impl Start {
    /// Sets up and serves, to the end.
    fn serve<H, S>(self, setup: S, ask: watch::Receiver<bool>) -> Told
    where
        H: Handler,
        S: AsyncFnOnce(SetupContext) -> Result<App<H>, SetupError>,
    {
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(error) => return failed("could not start the runtime", &error),
        };
        let told = runtime.block_on(self.set_up_and_serve(setup, ask));
        // Blocking work that a handler left behind does not hold up the exit.
        runtime.shutdown_background();
        told
    }

    async fn set_up_and_serve<H, S>(self, setup: S, mut ask: watch::Receiver<bool>) -> Told
    where
        H: Handler,
        S: AsyncFnOnce(SetupContext) -> Result<App<H>, SetupError>,
    {
        let Self {
            strings,
            settings,
            secrets,
            gateway,
            traces,
            problems,
        } = self;
        let (trigger, shutdown) = Shutdown::new();
        let registry = Registry::new();
        let boot = SetupContext {
            strings,
            problems: problems.clone(),
            secrets: secrets.clone(),
            gateway: gateway.clone(),
            registry: registry.clone(),
            shutdown: shutdown.clone(),
            max_inflight: settings.max_inflight,
        };
        let set_up = tokio::select! {
            set_up = setup(boot) => set_up,
            () = life::asked(&mut ask) => return Told::InOrder,
        };
        let app = match set_up {
            Err(SetupError(Failure::Settings(all))) => return wrong_settings(&all.0),
            _ if !problems.is_empty() => return wrong_settings(&problems),
            Err(SetupError(Failure::Other(error))) => {
                return failed("could not set the function up", error.as_ref());
            }
            Ok(app) => app,
        };
        let platform = Arc::new(Platform {
            secrets,
            gateway,
            shutdown,
        });
        let traces = match traces.start(app.name) {
            Ok(traces) => traces,
            Err(error) => return failed("could not begin to trace", error.as_ref()),
        };
        let server = match Server::new(&settings, app, platform, registry, traces.clone()) {
            Ok(server) => server,
            Err(error) => return failed("could not register the metrics", &error),
        };
        let served = life::serve(&server, &settings, &trigger, &mut ask).await;
        traces.flush().await;
        match served {
            Ok(()) => Told::InOrder,
            Err(error) => failed("could not listen", &error),
        }
    }
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Told {
    tracing::error!(error = %ErrorChain(error), "{what}");
    Told::Failed
}

fn wrong_settings(problems: &[Problem]) -> Told {
    for problem in problems {
        tracing::error!(setting = problem.name, "wrong setting: {problem}");
    }
    Told::WrongSettings
}
