//! The choice of the way to the builder.

use super::Via;
use crate::builder::{BuilderClient, RequestError, Route};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;

/// The ways to the builder that a build may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteChoice {
    /// The way that is taken.
    pub(super) route: Route,
    /// The way for questions and for contexts that the queue does not take.
    pub(super) questions: Route,
    /// The way of a request that is too large for the queue, if the builder stores no contexts.
    pub(super) fallback: Option<Route>,
}

impl RouteChoice {
    /// Finds the way that the command line names, or one that leads to a builder.
    ///
    /// # Errors
    /// Fails if there is no builder where the command line says, or nowhere.
    pub(super) async fn find(client: &BuilderClient, via: Via, is_detached: bool) -> Result<Self, Failure> {
        let has_builder = client.settings().builder.is_some();
        let only = |route| Self {
            route,
            questions: route,
            fallback: None,
        };
        match via {
            Via::Builder | Via::Gateway if is_detached => Err(Failure::usage(
                "--detach needs the queue: a build by another way ends with the connection",
                "leave --via out, or say --via queue",
            )),
            Via::Builder if !has_builder => Err(Failure::usage(
                "--via builder needs the builder's address",
                "give it with --builder URL, or in SLIPWAY_BUILDER_URL",
            )),
            Via::Builder => {
                probe(client, Route::Builder).await?;
                Ok(only(Route::Builder))
            }
            Via::Gateway => {
                probe(client, Route::Gateway).await?;
                Ok(only(Route::Gateway))
            }
            Via::Queue => {
                probe(client, Route::Gateway).await?;
                Ok(Self {
                    route: Route::Queue,
                    questions: Route::Gateway,
                    fallback: None,
                })
            }
            Via::Auto => {
                let Err(no_gateway) = client.probe(Route::Gateway).await else {
                    let fallback = match has_builder && client.probe(Route::Builder).await.is_ok() {
                        true => Route::Builder,
                        false => Route::Gateway,
                    };
                    return Ok(Self {
                        route: Route::Queue,
                        questions: Route::Gateway,
                        fallback: (!is_detached).then_some(fallback),
                    });
                };
                if !has_builder || is_detached {
                    return Err(unreachable(client, Route::Gateway, &no_gateway));
                }
                match client.probe(Route::Builder).await {
                    Ok(()) => Ok(only(Route::Builder)),
                    Err(no_builder) => {
                        let mut failure = unreachable(client, Route::Gateway, &no_gateway);
                        let other = unreachable(client, Route::Builder, &no_builder);
                        failure.message = format!("{}\n{}", failure.message, other.message);
                        Err(failure)
                    }
                }
            }
        }
    }
}

/// Fails unless a builder answers by this route.
async fn probe(client: &BuilderClient, route: Route) -> Result<(), Failure> {
    let found = client.probe(route).await;
    found.map_err(|error| unreachable(client, route, &error))
}

/// Creates the error for a builder that is not where it should be.
fn unreachable(client: &BuilderClient, route: Route, error: &RequestError) -> Failure {
    let settings = client.settings();
    let name = &settings.builder_function;
    let next = match (route, error) {
        (Route::Builder, _) => "start the builder, or correct --builder URL".to_owned(),
        (_, RequestError::Refused(refusal)) if refusal.status == 404 => format!(
            "deploy {name} at this gateway (README, \"In a cluster\"), or name another gateway with --gateway URL"
        ),
        (_, RequestError::Refused(refusal)) if (300..400).contains(&refusal.status) => {
            "the gateway redirects: name the address that it redirects to, such as one with https, with --gateway URL".to_owned()
        }
        (_, RequestError::Refused(_)) => {
            format!("see why {name} does not answer (faas-cli describe {name}), and run the command again")
        }
        _ => "start OpenFaaS (the local stack: make up, then eval \"$(make env)\"), or name its gateway with --gateway URL or \
              OPENFAAS_URL"
            .to_owned(),
    };
    let what = match route {
        Route::Builder => "the builder",
        Route::Gateway | Route::Queue => "the gateway",
    };
    Failure::new(
        ExitStatus::PlatformFailed,
        format!("{what} does not answer: {error}"),
        next,
    )
}
