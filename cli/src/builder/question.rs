//! Errors of questions and commands about builds and versions, which have no body, and what to do next about them.

use super::RequestError;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output::printable;
use crate::settings::{ConnectionSettings, quote_for_shell};

/// A question or a command about builds, in the words of the command line.
#[derive(Clone, Debug)]
pub(crate) struct AskedCommand {
    /// The command that asks it again, with the options that lead to the same builder.
    again: String,
    /// The command whose help describes the options: `slipway status`.
    name: String,
    /// The build that it is about, quoted for a shell; `None` if it is not about one.
    id: Option<String>,
}

impl AskedCommand {
    /// Creates the question `slipway NAME ARGUMENTS…`, which is about the build `id`, if it is about one.
    pub(crate) fn new(
        settings: &ConnectionSettings,
        name: &str,
        arguments: &[&str],
        id: Option<&str>,
    ) -> Self {
        let arguments = arguments.iter().map(|argument| quote_for_shell(argument));
        let words: Vec<_> = [format!("slipway {name}")].into_iter().chain(arguments).collect();
        Self {
            again: format!("{}{}", words.join(" "), settings.options),
            name: format!("slipway {name}"),
            id: id.map(quote_for_shell),
        }
    }

    /// Creates the error for this question, which was refused or lost.
    pub(crate) fn failure(&self, settings: &ConnectionSettings, error: &RequestError) -> Failure {
        let Self { again, name, id } = self;
        let ConnectionSettings {
            options,
            builder_function,
            ..
        } = settings;
        let (status, next) = match error {
            RequestError::Connect { .. } => (
                ExitStatus::PlatformFailed,
                "name the gateway with --gateway URL or OPENFAAS_URL, or the builder with --builder URL"
                    .to_owned(),
            ),
            RequestError::Lost { .. } => (
                ExitStatus::PlatformFailed,
                format!(
                    "ask again: {again}; if that fails, see whether the builder runs (faas-cli describe {builder_function})"
                ),
            ),
            RequestError::Refused(refusal) => match (refusal.status, id) {
                (300..400, _) => (
                    ExitStatus::PlatformFailed,
                    "name the address that this one redirects to, such as one with https, with --gateway URL"
                        .to_owned(),
                ),
                (400, _) => (
                    ExitStatus::Usage,
                    format!("correct what the error names; {name} --help describes the options"),
                ),
                (401, _) => (
                    ExitStatus::Usage,
                    format!(
                        "give the key that the builder has as its secret payload-secret (this one is from {}), and check \
                         this machine's clock",
                        settings.key.place
                    ),
                ),
                (403, _) => (
                    ExitStatus::Usage,
                    "give the key of the tenant whose build or function it is, or ask the operator"
                        .to_owned(),
                ),
                (404, _) if !refusal.is_builders => (
                    ExitStatus::Usage,
                    format!(
                        "deploy {builder_function} there (README, \"In a cluster\"), or name another gateway with --gateway \
                         URL"
                    ),
                ),
                (404, Some(_)) => (ExitStatus::Usage, format!("find its ID: slipway builds{options}")),
                (404, None) => (
                    ExitStatus::Usage,
                    format!("update {builder_function}, which does not know this question"),
                ),
                (409, Some(id)) => (
                    ExitStatus::Failed,
                    format!("see what became of it: slipway status {id}{options}"),
                ),
                (429, _) => (
                    ExitStatus::PlatformFailed,
                    format!("the builder is busy: ask again in a moment: {again}"),
                ),
                (501, _) => (
                    ExitStatus::Usage,
                    "have the operator set up what the error names".to_owned(),
                ),
                _ => (
                    ExitStatus::PlatformFailed,
                    format!(
                        "ask again: {again}; if that fails, the operator finds the reason in the log of {builder_function}"
                    ),
                ),
            },
        };
        Failure::new(status, printable(&error.to_string()), next)
    }
}

#[cfg(test)]
mod tests {
    use function_host::Secret;
    use function_host::http::StatusCode;
    use function_host::signature::HmacKeys;

    use super::*;
    use crate::builder::Refusal;
    use crate::settings::SigningKey;

    #[test]
    fn every_error_of_a_question_leads_on_to_the_same_builder_and_never_to_a_build() {
        let settings = ConnectionSettings {
            gateway: "http://g.example".into(),
            builder: None,
            builder_function: "builder-fn".into(),
            key: SigningKey {
                keys: HmacKeys::new(&Secret::new("payload key")).expect("a key"),
                place: "the test".into(),
                file: None,
            },
            tenant: None,
            options: " --gateway http://g.example".into(),
        };
        let of_build = AskedCommand::new(&settings, "status", &["a b"], Some("a b"));
        let of_list = AskedCommand::new(&settings, "builds", &[], None);
        let refused = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            RequestError::Refused(Refusal::from_answer("u".into(), status, body.as_bytes()))
        };
        let own = r#"{"status": "failed", "error": "no"}"#;
        let lost = RequestError::Lost {
            url: "u".into(),
            reason: "nothing came within 30 s".into(),
        };
        for (question, error, status, next) in [
            (&of_list, refused(400, own), 2, "slipway builds --help"),
            (&of_build, refused(401, own), 2, "this one is from the test"),
            (&of_build, refused(403, own), 2, "the key of the tenant"),
            (
                &of_build,
                refused(404, own),
                2,
                "slipway builds --gateway http://g.example",
            ),
            (
                &of_build,
                refused(404, "not found"),
                2,
                "another gateway with --gateway",
            ),
            (&of_list, refused(404, own), 2, "update builder-fn"),
            (
                &of_build,
                refused(409, own),
                1,
                "slipway status 'a b' --gateway http://g.example",
            ),
            (&of_build, refused(429, own), 4, "slipway status 'a b' --gateway"),
            (&of_build, refused(301, ""), 4, "redirects"),
            (&of_build, refused(501, own), 2, "the operator"),
            (
                &of_list,
                refused(502, own),
                4,
                "slipway builds --gateway http://g.example",
            ),
            (&of_build, lost, 4, "slipway status 'a b' --gateway"),
        ] {
            let failure = question.failure(&settings, &error);
            assert_eq!(failure.status.code(), status, "{failure:?}");
            assert!(failure.next.contains(next), "{next}: {failure:?}");
            assert!(!failure.next.contains("slipway up"), "{failure:?}");
        }
    }
}
