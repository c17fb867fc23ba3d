//! The routes, and the way of a request through the rest.

use function_host::http::{Method, header::HeaderMap};
use function_host::secret::SecretError;
use function_host::{Context, Error as HostError, ErrorChain, Handler, Request, Response, trace};
use tokio::time::Instant;

use crate::accept;
use crate::answer::{self, Answer, Known};
use crate::build::{self, Builder, Call};
use crate::chain::Via;
use crate::error::{Error, Kind};
use crate::metrics::Metrics;
use crate::places::Admitted;
use crate::report::{Feed, Format, Log, Mask, Sink, live};
use crate::request::{
    self, BuildRequest, RequestLimits, SIGNATURE_HEADER, SignatureCheck, SignatureKeys, VerifiedSignature,
};
use crate::sealed::{BuildSecrets, SealKey};
use crate::settings::PAYLOAD_SECRET;
use crate::trace::Cover;

/// The builder's HTTP interface, but for probes and metrics, which are the host's.
#[derive(Clone, Debug)]
pub struct Api {
    /// What builds.
    pub builder: Builder,
    /// How much a request may bring along.
    pub limits: RequestLimits,
    /// Whether requests need no signature.
    pub disable_hmac: bool,
    /// Whether `sha1=` signatures are good too.
    pub accept_sha1: bool,
    /// How much of a build's log is told, in bytes.
    pub max_log: usize,
    /// The key that callers seal secrets to.
    pub seal: Option<SealKey>,
    /// What can be seen of it.
    pub metrics: Metrics,
}

impl Handler for Api {
    async fn call(&self, request: Request, context: Context) -> Result<Response, HostError> {
        let (served, route) = match request.uri().path() {
            // The gateway strips the function's own path; faas-cli appends /build to a host.
            "/" => (Method::POST, "/"),
            "/build" => (Method::POST, "/build"),
            "/publickey" => (Method::GET, "/publickey"),
            _ => {
                return Ok(answer::not_found(
                    "nothing is here; builds are sent to POST /build",
                ));
            }
        };
        if request.method() != served {
            return Ok(answer::wrong_method(&served));
        }
        trace::set_route(route);
        Ok(match served {
            Method::POST => self.build(request, &context).await,
            _ => self.public_key(),
        })
    }
}

impl Api {
    fn public_key(&self) -> Response {
        let Some(key) = &self.seal else {
            return answer::not_found(
                "this builder has no key for sealed secrets (build_secrets_private_key_path)",
            );
        };
        match key.public() {
            Ok(key) => answer::public_key(&key),
            Err(error) => {
                let error = Error::from(error);
                tracing::error!(error = %ErrorChain(&error), "no public key");
                Answer::failed(&error, Known::default()).into_response()
            }
        }
    }

    fn open(&self, sealed: Option<&[u8]>) -> Result<BuildSecrets, Error> {
        match (sealed, &self.seal) {
            (None, _) => Ok(BuildSecrets::default()),
            (Some(_), None) => Err(Error::SealedSecrets),
            (Some(sealed), Some(key)) => Ok(key.open(sealed)?),
        }
    }

    async fn build(&self, request: Request, context: &Context) -> Response {
        let begun = Instant::now();
        if context.shutdown().begun() {
            return Answer::failed(&Error::Draining, Known::default()).into_response();
        }
        // Before the body: whom there is no room for is not to send it.
        let admitted = match self.builder.places.admit() {
            Ok(admitted) => admitted,
            Err(full) => return Answer::failed(&full.into(), Known::default()).into_response(),
        };
        let (head, body) = request.into_parts();
        let signature = signature(&head.headers);
        let receiving = trace::span("receive");
        let received = match self.signature_check(context) {
            Ok(check) => receiving
                .run(request::receive(body, signature, &check, &self.limits))
                .await
                .map_err(Error::from),
            Err(error) => Err(error),
        };
        match &received {
            Ok(request) => receiving.set(
                "slipway.request.bytes",
                i64::try_from(request.body_bytes).unwrap_or(i64::MAX),
            ),
            Err(error) => crate::trace::failed(&receiving, error),
        }
        drop(receiving);
        let streamed = accept::streamed(&head.headers);
        match (received, streamed) {
            (Ok(request), None) => {
                let mut log = Log::new(self.max_log);
                let mut answer = self.run(&request, context, begun, &mut log).await;
                answer.report.log = Some(log.into_lines());
                answer.into_response()
            }
            (Ok(request), Some(format))
                if request.config.deploy.is_some() && self.builder.chain.via == Via::Callback =>
            {
                let image = request.config.image_as_given.as_str();
                record(image, &Error::StreamedHandOver, begun, &Mask::default());
                let known = Known {
                    image: Some(image),
                    seconds: begun.elapsed().as_secs_f64(),
                };
                Answer::failed(&Error::StreamedHandOver, known).into_stream(format)
            }
            (Ok(request), Some(format)) => self.stream(format, request, context, begun, admitted),
            (Err(error), _) => {
                record("", &error, begun, &Mask::default());
                let known = Known {
                    seconds: begun.elapsed().as_secs_f64(),
                    ..Known::default()
                };
                let answer = Answer::failed(&error, known);
                match streamed.filter(|_| error.is_told_to_the_sender()) {
                    Some(format) => answer.into_stream(format),
                    None => answer.into_response(),
                }
            }
        }
    }

    /// Answers at once, and builds while the answer is read.
    fn stream(
        &self,
        format: Format,
        request: BuildRequest,
        context: &Context,
        begun: Instant,
        admitted: Admitted,
    ) -> Response {
        let panicked = answer::panicked(context.call_id(), &request.config.image_as_given);
        let feed = Feed::new(self.max_log);
        let (api, context, mut log) = (self.clone(), context.clone(), feed.clone());
        let build = async move {
            let _admitted = admitted;
            let answer = api.run(&request, &context, begun, &mut log);
            answer.await.report
        };
        answer::stream(format, live(format, feed, begun, build, panicked))
    }

    /// Builds what can be trusted, and says how it went.
    async fn run(
        &self,
        request: &BuildRequest,
        context: &Context,
        begun: Instant,
        log: &mut dyn Sink,
    ) -> Answer {
        let image = request.config.image_as_given.as_str();
        let signature = request.signature.as_ref().map(VerifiedSignature::as_str);
        let (secrets, unopened) = match self.open(request.sealed_secrets.as_deref()) {
            Ok(secrets) => (secrets, None),
            Err(error) => (BuildSecrets::default(), Some(error)),
        };
        let mask = secrets.mask().clone();
        let call = Call {
            id: context.call_id(),
            reference: build::reference(context.call_id(), signature),
            deadline: context.deadline(),
            shutdown: context.shutdown(),
            secrets,
        };
        tracing::info!(
            image,
            reference = call.reference,
            bytes = request.body_bytes,
            "building"
        );
        let running = self.metrics.begin(request.body_bytes);
        let span = trace::span("build");
        span.set("slipway.image", image.to_owned());
        span.set("slipway.reference", call.reference.clone());
        let result = match unopened {
            None => span.run(self.builder.build(request, &call, log)).await,
            Some(error) => Err(error),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let known = Known {
            image: Some(image),
            seconds,
        };
        match result {
            Ok(built) => {
                let digest = built.digest.as_deref().unwrap_or_default();
                let deployment = built
                    .deployment
                    .as_ref()
                    .map(|deployment| format!("{:?}", deployment.ending));
                tracing::info!(image, digest, deployment, seconds, "built");
                running.end("success");
                span.set("slipway.digest", digest.to_owned());
                Answer::built(built, known).masked(&mask)
            }
            Err(error) => {
                record(image, &error, begun, &mask);
                running.end(outcome(error.kind()));
                span.set("error.type", outcome(error.kind()));
                if span.is_recording() {
                    let cover = Cover::new(mask.clone(), &request.config.build_args);
                    span.mark_failed(cover.text(&ErrorChain(&error).to_string()));
                }
                Answer::failed(&error, known).masked(&mask)
            }
        }
    }

    /// Read anew for each request: a secret that was rotated is used at once.
    fn signature_check(&self, context: &Context) -> Result<SignatureCheck, Error> {
        if self.disable_hmac {
            return Ok(SignatureCheck::Disabled);
        }
        let secret = context
            .secrets()
            .read(PAYLOAD_SECRET)
            .map_err(Error::PayloadSecret)?;
        let empty = || SecretError::Empty {
            name: PAYLOAD_SECRET.to_owned(),
        };
        Ok(SignatureCheck::Required(
            SignatureKeys::new(&secret, self.accept_sha1).ok_or_else(|| Error::PayloadSecret(empty()))?,
        ))
    }
}

/// One that is no text is none, and refused as such.
fn signature(headers: &HeaderMap) -> Option<&str> {
    headers.get(SIGNATURE_HEADER)?.to_str().ok()
}

fn outcome(kind: Kind) -> &'static str {
    match kind {
        Kind::Unauthorized | Kind::Refused | Kind::TooLarge => "refused",
        Kind::BuildFailed => "failed",
        Kind::Busy { .. } | Kind::Draining => "busy",
        Kind::NoSpace | Kind::Platform => "platform",
    }
}

/// The caller is told the error; the log has its causes too.
fn record(image: &str, error: &Error, begun: Instant, mask: &Mask) {
    let text = ErrorChain(error).to_string();
    let text = mask.text(&text);
    let seconds = begun.elapsed().as_secs_f64();
    let outcome = outcome(error.kind());
    match error.kind() {
        Kind::NoSpace | Kind::Platform => {
            tracing::error!(image, outcome, seconds, error = %text, "not built");
        }
        _ => tracing::info!(image, outcome, seconds, error = %text, "not built"),
    }
}
