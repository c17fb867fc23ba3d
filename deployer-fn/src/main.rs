//! Wires the deployer to the function host.

use std::process::ExitCode;

use deployer_fn::handler::Deployer;
use deployer_fn::metrics::Metrics;
use deployer_fn::settings::Settings;
use function_host::{App, SetupContext, SetupError};

fn main() -> ExitCode {
    function_host::run_with(async |boot: SetupContext| {
        let mut parser = boot.settings();
        let settings = Settings::read(&mut parser);
        parser.finish()?;
        let deployer = Deployer::new(settings, Metrics::new(boot.registry())?);
        Ok::<_, SetupError>(App::new(deployer).named("deployer-fn"))
    })
}
