//! builder-fn, wired: settings, daemon, credentials, routes.

use std::process::ExitCode;
use std::sync::Arc;

use builder_fn::build::Builder;
use builder_fn::buildkit::{EventTimeouts, SharedKeys};
use builder_fn::chain::Chain;
use builder_fn::context::SpoolQuota;
use builder_fn::docker_config::{DockerConfig, Helpers};
use builder_fn::handler::Api;
use builder_fn::metrics::Metrics;
use builder_fn::settings::Settings;
use builder_fn::{ready, request};
use function_host::{App, SetupContext, SetupError};
use tokio::sync::watch;

fn main() -> ExitCode {
    function_host::run_with(setup)
}

async fn setup(boot: SetupContext) -> Result<App<Api>, SetupError> {
    let mut parser = boot.settings();
    let settings = Settings::read(&mut parser, boot.secrets(), boot.max_inflight());
    parser.finish()?;

    let daemon = settings.daemon;
    if settings.is_exposed {
        tracing::warn!(
            daemon = daemon.name(),
            "BuildKit is reached in plain text over the network: whoever can reach it too can build, and read and change \
             what is built; secure it with certificates (buildkit_ca, buildkit_cert, buildkit_key)"
        );
    }
    let (sender, ready) = watch::channel(false);
    tokio::spawn(ready::watch(daemon.clone(), sender));
    let chain = Chain {
        gateway: boot.gateway().clone(),
        secrets: boot.secrets().clone(),
        deployer: settings.deployer,
        via: settings.deploy_via,
        timeout: settings.deploy_timeout,
    };
    let metrics = Metrics::register(boot.registry())?;
    let credentials = DockerConfig::at(settings.registry_config).with_helpers(Helpers {
        folder: settings.credential_helpers,
        ..Helpers::default()
    });
    let builder = Builder {
        daemon,
        credentials: Arc::new(credentials),
        insecure: settings.insecure,
        sbom_generator: settings.sbom_generator,
        compression: settings.compression,
        keys: SharedKeys::new(metrics.sent_bytes()),
        chain,
        timeouts: EventTimeouts::default(),
        places: settings.places.clone(),
        metrics: metrics.clone(),
    };
    let quota = SpoolQuota::new(settings.spool_limit, metrics.spool_bytes());
    let mut limits = request::RequestLimits::new(settings.max_body, settings.spool_dir, quota);
    limits.frontends = settings.allowed_frontends;
    limits.archive.set_entries(settings.max_entries);
    limits.archive.small_file = settings.max_config;
    let api = Api {
        builder,
        limits,
        disable_hmac: settings.disable_hmac,
        accept_sha1: settings.accept_sha1,
        max_log: settings.max_log,
        seal: settings.seal,
        metrics,
    };
    let app = match settings.limits_itself {
        true => App::new(api).limits_itself(),
        false => App::new(api),
    };
    let places = settings.places;
    Ok(app
        .named("builder-fn")
        .ready_while(ready)
        .ready_if(move || !places.full())
        .health_at("/healthz")
        .ready_at("/ready"))
}
