//! The life of the process: settings, setup, serving, draining, exit code.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::boot::{App, Boot, Failure, SetupErrors};
use crate::context::Platform;
use crate::duration;
use crate::env::{Parser, Problem, Process, Strings};
use crate::error::Chain;
use crate::gateway::Gateway;
use crate::handler::Handler;
use crate::log;
use crate::secret::Secrets;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::{Shutdown, Trigger};

/// A setting is wrong (`EX_CONFIG` of sysexits.h): starting again will not help.
const WRONG_SETTINGS: u8 = 78;

/// What a shell tells of a process that SIGTERM ended.
const ENDED_AT_ONCE: u8 = 128 + 15;

/// Serves `handler` until SIGTERM. The whole `main` of a simple function.
pub fn run(handler: impl Handler) -> ExitCode {
    run_with(async |_boot| Ok(App::new(handler)))
}

/// Sets a function up and serves it until SIGTERM.
///
/// SIGTERM (or SIGINT) ends the process with 0, in this order: `/_/ready` fails, and requests are served as before for
/// `healthcheck_interval`, so that balancers notice; then the port is closed and what runs may finish, for the longer
/// of `write_timeout` and `exec_timeout`; what still runs is dropped. A second signal ends the process at once.
///
/// A wrong setting ends it with 78, any other failure to start with 1.
pub fn run_with<H: Handler>(setup: impl AsyncFnOnce(Boot) -> Result<App<H>, SetupErrors>) -> ExitCode {
    let strings: Arc<dyn Strings> = Arc::new(Process);
    let mut parser = Parser::new(&*strings);
    log::start(&log::Settings::read(&mut parser));
    let settings = Settings::read(&mut parser);
    let problems = parser.into_problems();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed("could not start the runtime", &error),
    };
    let code = runtime.block_on(live(strings, settings, problems, setup));
    // Blocking work that a handler left behind does not hold up the exit.
    runtime.shutdown_background();
    code
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

async fn live<H: Handler>(
    strings: Arc<dyn Strings>,
    settings: Settings,
    mut problems: Vec<Problem>,
    setup: impl AsyncFnOnce(Boot) -> Result<App<H>, SetupErrors>,
) -> ExitCode {
    // From here on, so that a signal during the setup is not lost: as process 1 there is no default action.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed("could not listen for signals", &error),
    };
    let secrets = Secrets::from_env(&*strings);
    let gateway = match Gateway::from_env(&*strings, secrets.clone()) {
        Ok(gateway) => gateway,
        Err(error) => {
            problems.push(Problem {
                name: "gateway_url".to_owned(),
                what: error.to_string(),
            });
            return wrong_settings(&problems);
        }
    };
    let (trigger, shutdown) = Shutdown::new();
    let boot = Boot {
        strings,
        problems: problems.clone(),
        secrets: secrets.clone(),
        gateway: gateway.clone(),
        registry: prometheus::Registry::new(),
        shutdown: shutdown.clone(),
    };
    let registry = boot.registry.clone();
    let set_up = tokio::select! {
        set_up = setup(boot) => set_up,
        () = signals.next() => return ExitCode::SUCCESS,
    };
    let app = match set_up {
        Err(SetupErrors(Failure::Settings(all))) => return wrong_settings(&all.0),
        _ if !problems.is_empty() => return wrong_settings(&problems),
        Err(SetupErrors(Failure::Other(error))) => {
            return failed("could not set the function up", error.as_ref());
        }
        Ok(app) => app,
    };
    let platform = Arc::new(Platform {
        secrets,
        gateway,
        shutdown,
    });
    serve(settings, app, platform, registry, &trigger, &mut signals).await
}

async fn serve<H: Handler>(
    settings: Settings,
    app: App<H>,
    platform: Arc<Platform>,
    registry: prometheus::Registry,
    trigger: &Trigger,
    signals: &mut Signals,
) -> ExitCode {
    let listeners = tokio::try_join!(
        TcpListener::bind(("0.0.0.0", settings.port)),
        TcpListener::bind(("0.0.0.0", settings.metrics_port)),
    );
    let (listener, metrics_listener) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return failed("could not listen", &error),
    };
    // Of the listeners, not of the settings: 0 asks for any port.
    let (port, metrics_port) = match (listener.local_addr(), metrics_listener.local_addr()) {
        (Ok(address), Ok(metrics_address)) => (address.port(), metrics_address.port()),
        (Err(error), _) | (_, Err(error)) => return failed("could not listen", &error),
    };
    let bound = settings
        .write_timeout
        .max(settings.exec_timeout.unwrap_or_default());
    let grace = settings.healthcheck_interval;
    let server = match Server::new(&settings, app, platform, registry) {
        Ok(server) => server,
        Err(error) => return failed("could not register the metrics", &error),
    };
    let metrics = server.serve_metrics(metrics_listener);
    tracing::info!(port, metrics_port, "listening");
    let mut serving = server.serve(listener);

    signals.next().await;
    let stop_listening = Instant::now() + grace;
    let deadline = stop_listening + bound;
    trigger.begin(deadline);
    tracing::info!(
        grace = duration::format(grace),
        "asked to end, not ready any more"
    );
    tokio::select! {
        () = tokio::time::sleep_until(stop_listening) => {}
        () = signals.next() => return ExitCode::from(ENDED_AT_ONCE),
    }
    tracing::info!(
        running = server.running(),
        bound = duration::format(bound),
        "not listening any more"
    );
    serving.stop();
    let code = tokio::select! {
        () = serving.done() => ExitCode::SUCCESS,
        () = tokio::time::sleep_until(deadline) => {
            tracing::warn!(running = server.running(), "out of time, ending what still runs");
            ExitCode::SUCCESS
        }
        () = signals.next() => ExitCode::from(ENDED_AT_ONCE),
    };
    drop((serving, metrics));
    tracing::info!("ended");
    code
}

/// SIGTERM, which providers send, and SIGINT, which a terminal sends.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> ExitCode {
    tracing::error!(error = %Chain(error), "{what}");
    ExitCode::FAILURE
}

fn wrong_settings(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        tracing::error!(setting = problem.name, "wrong setting: {problem}");
    }
    ExitCode::from(WRONG_SETTINGS)
}
