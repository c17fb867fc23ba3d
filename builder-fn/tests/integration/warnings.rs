//! Tests of the warnings of builds: each source gives one entry in the result's list and a line in the log, or none.

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, VertexWarning};
use builder_fn::buildkit::BuildReference;
use function_host::signature::sign_body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, HistoryBehaviour};
use crate::gateway::{self, DRY_RUN_ACCEPTED_JSON};
use crate::job::{FixedAnswerManifestLookup, step_output_response};
use crate::setting::{CALL_ID, PAYLOAD_KEY, TestBuilder, hmac_keys, request_tar_with, tar_with_files};

/// A reason for which a build has one warning in its list, or, with `Nothing` and `Lint`, none.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WarningSource {
    Nothing,
    /// A warning of BuildKit's own is in the log only.
    Lint,
    /// A key of the config that builder-fn does not know.
    Key,
    /// The same, and the build fails.
    KeyOfFailedBuild,
    /// A tar entry that is neither the config nor in the context.
    Entry,
    /// A tar without its end.
    EndOfTar,
    /// A log that is longer than its limit.
    Log,
    /// A history of BuildKit's that cannot be read.
    History,
    /// A registry that answers 503.
    Registry,
    /// A dry run of the deployment that fails.
    NoDryRun,
    /// A dry run whose answer has a warning.
    DryRun,
}

impl WarningSource {
    const ALL: [Self; 11] = [
        Self::Nothing,
        Self::Lint,
        Self::Key,
        Self::KeyOfFailedBuild,
        Self::Entry,
        Self::EndOfTar,
        Self::Log,
        Self::History,
        Self::Registry,
        Self::NoDryRun,
        Self::DryRun,
    ];

    fn has_deployment(self) -> bool {
        matches!(self, Self::History | Self::NoDryRun | Self::DryRun)
    }

    fn request_tar(self) -> Vec<u8> {
        let config = br#"{"image": "registry:5000/hello:1"}"#;
        match self {
            Self::Key | Self::KeyOfFailedBuild => request_tar_with(json!({"surprise": 1})),
            Self::Entry => tar_with_files(&[
                ("com.openfaas.docker.config", config),
                ("context/Dockerfile", b"FROM scratch\n"),
                ("elsewhere", b""),
            ]),
            Self::EndOfTar => {
                let mut tar = request_tar_with(json!({}));
                tar.truncate(tar.len() - 1024);
                tar
            }
            _ if self.has_deployment() => request_tar_with(json!({"deploy": {"service": "hello"}})),
            _ => request_tar_with(json!({})),
        }
    }

    /// Returns the answer to a dry run.
    fn dry_run_answer(self) -> (u16, &'static str) {
        match self {
            Self::NoDryRun => (502, ""),
            Self::DryRun => (
                200,
                r#"{"dryRun":true,"status":"accepted","reasons":[],"warnings":["deploy.network is ignored"]}"#,
            ),
            _ => (200, DRY_RUN_ACCEPTED_JSON),
        }
    }

    /// Returns a part of the warning that this source gives; `None` if it gives none.
    fn expected_warning_part(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::Lint => None,
            Self::Key | Self::KeyOfFailedBuild => Some("surprise"),
            Self::Entry => Some("elsewhere"),
            Self::EndOfTar => Some("end"),
            Self::Log => Some("lines left out: a log may have 2000 bytes"),
            Self::History => Some("BuildKit's history could not be read"),
            Self::Registry => Some("the registry answered 503"),
            Self::NoDryRun => Some("could not be checked before the build"),
            Self::DryRun => Some("deploy.network is ignored"),
        }
    }

    /// Answers the calls of the build as BuildKit, in a way that gives this source's warning.
    async fn play_buildkit(self, calls: &mut DaemonCalls) {
        if self == Self::Registry {
            drop(calls.statuses.recv().await.expect("a status"));
            return;
        }
        let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
        let lint = VertexWarning {
            short: b"FromAsCasing".to_vec(),
            ..VertexWarning::default()
        };
        let response = match self {
            Self::Lint => StatusResponse {
                warnings: vec![lint],
                ..StatusResponse::default()
            },
            Self::Log => step_output_response(&"a line\n".repeat(1000)),
            _ => StatusResponse::default(),
        };
        status.events.send(Ok(response)).await.expect("listening");
        drop(status);
        match self {
            Self::KeyOfFailedBuild => solve.answer_with_error(Status::unknown("exit code: 1")),
            _ => solve.answer_with_digest("sha256:12"),
        }
    }
}

/// Starts a build in a task that returns its log, and the answer's body or the terminal record of a streamed one.
fn spawn_build_for_log_and_result(
    setting: TestBuilder,
    tar: Vec<u8>,
    is_streamed: bool,
) -> JoinHandle<(String, Value)> {
    tokio::spawn(async move {
        match is_streamed {
            true => {
                let records = setting.send_streamed_build(tar, "application/x-ndjson").await;
                let (lines, last) = records.read_lines_and_terminal_record().await;
                (lines.join("\n"), last)
            }
            false => {
                let mut body = setting.send_signed_build(tar).await.body;
                (body["log"].take().to_string().replace("\\\"", "\""), body)
            }
        }
    })
}

#[tokio::test]
async fn each_warning_source_gives_its_one_warning_in_the_list_and_the_log_or_none() {
    for source in WarningSource::ALL {
        for is_streamed in [false, true] {
            let (address, mut received) = gateway::start_manual_gateway().await;
            tokio::spawn(async move {
                while let Some(call) = received.recv().await {
                    let (status, answer) = match call.is_dry_run() {
                        true => source.dry_run_answer(),
                        false => (200, r#"{"status":"ready"}"#),
                    };
                    call.answer(status, answer);
                }
            });
            let (daemon, mut calls) = daemon::start_fake_daemon();
            let mut setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
            setting.write_secret("deploy-secret", "deploy key");
            let tar = source.request_tar();
            match source {
                WarningSource::Log => setting = setting.with_max_log_bytes(2000),
                WarningSource::History => calls.history.set_behaviour(HistoryBehaviour::Unimplemented),
                WarningSource::Registry => {
                    setting = setting.with_manifest_lookup(FixedAnswerManifestLookup::Unknown);
                    let signature = sign_body(&hmac_keys(PAYLOAD_KEY), &tar);
                    let reference = BuildReference::for_call_and_signature(CALL_ID, &signature);
                    calls.add_finished_build(&reference.to_string(), Ok("sha256:12"));
                }
                _ => {}
            }

            let answering = spawn_build_for_log_and_result(setting, tar, is_streamed);
            complete_or_panic(source.play_buildkit(&mut calls)).await;
            let (log, result) = complete_or_panic(answering).await.expect("no panic");

            let case = format!("{source:?}, streamed: {is_streamed}: {result}\n{log}");
            let is_failed = source == WarningSource::KeyOfFailedBuild;
            assert_eq!(result["status"] == "failed", is_failed, "{case}");
            match source.expected_warning_part() {
                None => assert_eq!(result.get("warnings"), None, "{case}"),
                Some(expected) => {
                    let warnings = result["warnings"].as_array().expect(&case);
                    assert_eq!(warnings.len(), 1, "{case}");
                    let warning = warnings[0].as_str().expect("text");
                    assert!(warning.contains(expected), "{case}");
                    assert!(
                        log.contains(warning.trim_start_matches("the log is incomplete: ")),
                        "{case}"
                    );
                }
            }
        }
    }
}
