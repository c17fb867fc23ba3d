//! A context that the daemon reads from a git repository, and the commit that it has.
//!
//! The commit is looked up before the build, so that the image can be labelled with it and every attempt builds the
//! same one. BuildKit offers the lookup to clients that build by its gateway API: a solve without a frontend waits for
//! the calls of such a client (BuildKit `control/gateway/gateway.go`). The daemon's question about the source comes
//! first, so a daemon that does not ask is noticed before it builds anything.
//!
//! A repository that is read with a token of the operator is checked out by the same solve, whose session has the
//! token. The build finds the checkout by its commit, and asks for no token.

use std::pin::pin;

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceMetaRequest, SolveRequest as BridgeSolveRequest,
};
use bollard_buildkit_proto::pb::{Definition, Input, Op, SourceOp, op};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::job::{JobError, is_connection_loss};
use super::session::{Session, SessionServices};
use super::status::EventReader;
use super::{BuildFailure, Connection, FaultyParty};

/// The header that names the solve that a call of the gateway API belongs to: BuildKit `client/buildid/metadata.go`.
const BUILD_ID_HEADER: &str = "buildkit-controlapi-buildid";

/// The largest number of attempts to look up a commit while the daemon does not know the solve of the lookup yet. In
/// each, the daemon waits 3 s for the solve.
const COMMIT_LOOKUP_ATTEMPTS_MAX: u32 = 5;

/// The characters that are percent-encoded in a value of the query of a context's URL.
const ESCAPED_IN_QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'/');

/// A git repository, and the part of it that is the context. The parts have been checked: none has characters with a
/// meaning for git or BuildKit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitContextSource {
    /// The URL of the repository, without user information and query.
    pub url: String,
    /// The branch, tag or commit; `None` for the default branch.
    pub reference: Option<String>,
    /// The folder in the repository that is the context; `None` for the whole repository.
    pub subdir: Option<String>,
}

/// What is read from a git repository before its build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitHashOnlyOrWithCheckout {
    /// Only the hash of the commit that the source has now.
    HashOnly,
    /// The hash of the commit, and a checkout of the context at the daemon, which the build finds again.
    HashAndCheckout,
}

impl GitContextSource {
    /// Returns the same part of the repository at a commit, which the daemon finds without a question to the server if
    /// it has read it before.
    #[must_use]
    pub fn at_commit(&self, commit: &str) -> Self {
        Self {
            reference: Some(commit.to_owned()),
            ..self.clone()
        }
    }

    /// Returns the attribute `context` of the Dockerfile frontend for this source at a commit: BuildKit
    /// `frontend/dockerfile/dfgitutil/git_ref.go`.
    pub(super) fn context_url_at_commit(&self, commit: &str) -> String {
        let mut text = format!("{}?checksum={commit}", self.url);
        for (name, value) in [("ref", &self.reference), ("subdir", &self.subdir)] {
            if let Some(value) = value {
                text.push_str(&format!(
                    "&{name}={}",
                    utf8_percent_encode(value, ESCAPED_IN_QUERY_VALUE)
                ));
            }
        }
        text
    }

    /// Returns the operation that reads the repository, without its subdir, as the Dockerfile frontend makes it:
    /// BuildKit `client/llb/source.go`.
    fn to_source_op(&self) -> SourceOp {
        let without_scheme = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let fragment = self.reference.as_ref().map(|reference| format!("#{reference}"));
        let attributes = [
            ("git.fullurl", self.url.as_str()),
            ("git.authheadersecret", "GIT_AUTH_HEADER"),
            ("git.authtokensecret", "GIT_AUTH_TOKEN"),
        ];
        SourceOp {
            identifier: format!("git://{without_scheme}{}", fragment.unwrap_or_default()),
            attrs: attributes
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        }
    }

    /// Returns the definition of a build that is this source alone, as the Dockerfile frontend makes it.
    fn to_definition(&self) -> Definition {
        let mut source = self.to_source_op();
        if let Some(subdir) = &self.subdir {
            let separator = if self.reference.is_some() { ":" } else { "#:" };
            source.identifier.push_str(&format!("{separator}{subdir}"));
        }
        let source = Op {
            op: Some(op::Op::Source(source)),
            ..Op::default()
        };
        let source = source.encode_to_vec();
        let result = Op {
            inputs: vec![Input {
                digest: format!("sha256:{}", hex::encode(Sha256::digest(&source))),
                index: 0,
            }],
            ..Op::default()
        };
        Definition {
            def: vec![source, result.encode_to_vec()],
            ..Definition::default()
        }
    }

    /// Looks up the commit that the source has now, and checks it out if `lookup` says so. `services` answer the
    /// daemon's questions: whether the build may read the source, and for the token that the repository wants.
    ///
    /// Dropping the future ends the lookup at the daemon.
    ///
    /// # Errors
    /// Fails if the build may not read the repository, the repository cannot be read or has no such branch, tag or
    /// commit, the daemon is lost, or it does not ask whether the build may read the repository.
    pub async fn resolve_commit(
        &self,
        connection: &Connection,
        services: SessionServices,
        lookup: CommitHashOnlyOrWithCheckout,
    ) -> Result<String, JobError> {
        let session = Session::new(uuid::Uuid::new_v4().simple().to_string(), services.clone());
        let reference = uuid::Uuid::new_v4().simple().to_string();
        let request = SolveRequest {
            session: session.id().to_owned(),
            source_policy_session: session.id().to_owned(),
            r#ref: reference.clone(),
            // Without a record in the history.
            internal: true,
            ..SolveRequest::default()
        };
        let mut control = connection.control_client();
        let mut solving = pin!(async move { control.solve(request).await });
        let mut session = pin!(session.open_and_serve(connection));
        let mut looking_up = pin!(async {
            let commit = self.request_commit(connection, &reference).await?;
            if lookup == CommitHashOnlyOrWithCheckout::HashAndCheckout {
                let source = self.at_commit(&commit);
                source.check_out_for_build_to_find(connection, &reference).await?;
            }
            Ok(commit)
        });
        let resolved = tokio::select! {
            biased;
            resolved = &mut looking_up => resolved,
            Err(error) = &mut session => return Err(JobError::Lost(error.into())),
            solved = &mut solving => match solved {
                Err(status) => Err(status),
                Ok(_) => return Err(JobError::Lost("BuildKit ended the lookup of a commit".into())),
            },
        };
        match resolved {
            Err(status) if is_connection_loss(&status) => Err(JobError::Lost(status.into())),
            Err(status) => Err(JobError::Failed(
                match services.denial_that_error_is_about(status.message()) {
                    Some(denial) => BuildFailure::denied(&denial),
                    None => git_failure(&status),
                },
            )),
            Ok(_) if !services.was_asked_about_sources() => {
                Err(JobError::Failed(BuildFailure::of_unchecked_sources()))
            }
            Ok(commit) => Ok(commit),
        }
    }

    /// Has the daemon check the source out, as a client of the solve `solve_reference`.
    async fn check_out_for_build_to_find(
        &self,
        connection: &Connection,
        solve_reference: &str,
    ) -> Result<(), Status> {
        let mut request = Request::new(BridgeSolveRequest {
            definition: Some(self.to_definition()),
            evaluate: true,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..BridgeSolveRequest::default()
        });
        set_solve_header(&mut request, solve_reference)?;
        connection.bridge_client().solve(request).await?;
        Ok(())
    }

    /// Requests the commit as a client of the solve `solve_reference`.
    async fn request_commit(&self, connection: &Connection, solve_reference: &str) -> Result<String, Status> {
        let mut bridge = connection.bridge_client();
        let mut lookup = 1;
        loop {
            let mut request = Request::new(ResolveSourceMetaRequest {
                source: Some(self.to_source_op()),
                log_name: "[context] look up the commit".to_owned(),
                ..ResolveSourceMetaRequest::default()
            });
            set_solve_header(&mut request, solve_reference)?;
            match bridge.resolve_source_meta(request).await {
                Ok(response) => {
                    let git = response.into_inner().git.unwrap_or_default();
                    // A tag has a checksum of its own besides that of its commit.
                    let commit = match git.commit_checksum.is_empty() {
                        true => git.checksum,
                        false => git.commit_checksum,
                    };
                    return match is_full_commit_hash(&commit) {
                        true => Ok(commit),
                        false => Err(Status::internal(
                            "BuildKit reports no commit of the git repository",
                        )),
                    };
                }
                Err(status) if lookup < COMMIT_LOOKUP_ATTEMPTS_MAX && is_unknown_job(&status) => lookup += 1,
                Err(status) => return Err(status),
            }
        }
    }
}

/// Sets the header of a call of the gateway API that names the solve which the call belongs to.
fn set_solve_header<T>(request: &mut Request<T>, solve_reference: &str) -> Result<(), Status> {
    let id = MetadataValue::try_from(solve_reference);
    let id = id.map_err(|_| Status::internal("the reference of a solve is not ASCII"))?;
    request.metadata_mut().insert(BUILD_ID_HEADER, id);
    Ok(())
}

/// The texts of git's errors about a server that cannot be reached or fails, so that a later attempt may succeed.
const TRANSIENT_GIT_ERRORS: [&str; 9] = [
    "Could not resolve host",
    "Failed to connect",
    "Couldn't connect",
    "Connection reset",
    "timed out",
    "returned error: 5",
    "returned error: 429",
    "early EOF",
    "unexpected disconnect",
];

/// Returns the failure that the daemon reported for a lookup, with a hint about tokens if git could not authenticate.
fn git_failure(status: &Status) -> BuildFailure {
    let mut failure = BuildFailure::new(status, &EventReader::default());
    if TRANSIENT_GIT_ERRORS
        .iter()
        .any(|text| failure.message.contains(text))
    {
        failure.fault = FaultyParty::Platform;
    }
    if ["terminal prompts disabled", "Authentication failed"]
        .iter()
        .any(|text| failure.message.contains(text))
    {
        let hint = "; a private repository needs its token among the sealed secrets, as GIT_AUTH_TOKEN or GIT_AUTH_TOKEN.HOST, \
                    or from the operator (git_tokens)";
        failure.message.truncate(failure.message.trim_end().len());
        failure.message.push_str(hint);
    }
    failure
}

/// Returns whether the text is the full hash of a commit.
fn is_full_commit_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns whether a status says that the daemon does not know the solve of a call: BuildKit `solver/errdefs/jobs.go`.
fn is_unknown_job(status: &Status) -> bool {
    status.message().contains("no such job") || status.message().contains("unknown job")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(reference: Option<&str>, subdir: Option<&str>) -> GitContextSource {
        GitContextSource {
            url: "https://git.example:8443/team/app.git".into(),
            reference: reference.map(str::to_owned),
            subdir: subdir.map(str::to_owned),
        }
    }

    #[test]
    fn a_context_url_has_the_commit_as_checksum_and_an_escaped_ref_and_subdir() {
        let commit = "0123456789012345678901234567890123456789";
        for (reference, subdir, expected) in [
            (None, None, ""),
            (Some("v1.0+build&x=1"), None, "&ref=v1.0%2Bbuild%26x%3D1"),
            (
                Some("release/1"),
                Some("fn/a b"),
                "&ref=release/1&subdir=fn/a%20b",
            ),
        ] {
            assert_eq!(
                source(reference, subdir).context_url_at_commit(commit),
                format!("https://git.example:8443/team/app.git?checksum={commit}{expected}")
            );
        }
    }

    #[test]
    fn the_definition_of_a_checkout_reads_the_repository_at_its_commit_and_subdir() {
        let commit = "0123456789012345678901234567890123456789";
        let of_definition = |subdir| {
            let source = source(Some("main"), subdir).at_commit(commit);
            let definition = source.to_definition();
            let [read, result] = &definition.def[..] else {
                panic!("{definition:?}");
            };
            let digest = format!("sha256:{}", hex::encode(Sha256::digest(read)));
            assert_eq!(Op::decode(&result[..]).unwrap().inputs[0].digest, digest);
            match Op::decode(&read[..]).unwrap().op {
                Some(op::Op::Source(source)) => source,
                other => panic!("{other:?}"),
            }
        };
        let whole = of_definition(None);
        let repository = "git://git.example:8443/team/app.git";
        assert_eq!(whole.identifier, format!("{repository}#{commit}"));
        let folder = of_definition(Some("fn/a"));
        assert_eq!(folder.identifier, format!("{repository}#{commit}:fn/a"));
    }

    #[test]
    fn the_source_op_of_a_lookup_has_reference_url_and_token_secret_but_no_subdir() {
        let source = source(Some("main"), Some("fn")).to_source_op();
        assert_eq!(source.identifier, "git://git.example:8443/team/app.git#main");
        assert_eq!(
            source.attrs["git.fullurl"],
            "https://git.example:8443/team/app.git"
        );
        assert_eq!(source.attrs["git.authtokensecret"], "GIT_AUTH_TOKEN");
    }
}
