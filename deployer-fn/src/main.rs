//! Runs the deployer in the function host.

use std::process::ExitCode;

use deployer_fn::{Deployer, DeploymentMetrics, Settings};
use function_host::{App, SetupContext, SetupError};

fn main() -> ExitCode {
    function_host::run_with(async |context: SetupContext| {
        let mut parser = context.settings_parser_with_host_problems();
        let settings = Settings::read(&mut parser);
        settings.report_unfit_signing_keys(&mut parser, context.secrets());
        parser.fail_if_problems()?;
        let senders = settings.unverified.senders;
        let deployer = Deployer::new(settings, DeploymentMetrics::new(context.metrics_registry())?);
        Ok::<_, SetupError>(
            App::new(deployer)
                .with_name_in_traces("deployer-fn")
                .handler_verifies_requests(senders),
        )
    })
}
