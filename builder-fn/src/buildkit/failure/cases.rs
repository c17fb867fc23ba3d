//! Failed solves in the words of buildkitd 0.34.2, and the party that is to blame for each.

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};
use tonic::{Code, Status};

use super::{BuildFailure, FaultyParty};
use crate::buildkit::status::EventReader;

/// A failed solve: its gRPC code, the name of the failed step (empty if no step failed), and its message.
type FailedSolve = (Code, &'static str, &'static str);

/// Returns the party that is blamed for a failed solve.
fn party_blamed_for((code, step, message): FailedSolve) -> FaultyParty {
    let mut events = EventReader::default();
    let step_error = step_error_in_solve_message(message);
    let failed = [("[2/9] RUN slow", "context canceled"), (step, step_error)];
    let vertexes = failed.into_iter().filter(|(name, _)| !name.is_empty());
    let vertexes = vertexes.map(|(name, error)| Vertex {
        name: name.into(),
        error: error.into(),
        ..Vertex::default()
    });
    events.read_new_events(StatusResponse {
        vertexes: vertexes.collect(),
        ..StatusResponse::default()
    });
    BuildFailure::new(&Status::new(code, message), &events).fault
}

/// Returns the error of the failed step, which is the end of the solve's message.
fn step_error_in_solve_message(message: &str) -> &str {
    for prefix in ["failed to compute cache key: ", "failed to load cache key: "] {
        if let Some(rest) = message.strip_prefix(prefix) {
            return rest;
        }
    }
    match message.split_once(": failed to resolve source metadata for ") {
        Some((_, rest)) => rest.split_once(": ").map_or(rest, |(_, rest)| rest),
        None => message,
    }
}

const CONTEXT_STEP_NAME: &str = "[internal] load build context";
const EXPORT_STEP_NAME: &str = "exporting to image";

/// The failed solves for which the caller is to blame: only another Dockerfile, context or config helps. Messages about
/// parsing, ignore patterns, sources of `COPY` and commands of `RUN` were recorded from the daemon; the others follow
/// its sources and reports of users.
const CALLER_FAULT_SOLVES: &[FailedSolve] = &[
    // The Dockerfile cannot be parsed, or makes no sense.
    (
        Code::Unknown,
        "",
        "dockerfile parse error on line 2: unknown instruction: WHAT",
    ),
    (
        Code::Unknown,
        "",
        "dockerfile parse error on line 2: unknown flag: --what",
    ),
    (
        Code::Unknown,
        "",
        "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
    ),
    (
        Code::Unknown,
        "",
        "dockerfile parse error on line 2: LABEL requires at least one argument",
    ),
    (
        Code::Unknown,
        "",
        "dockerfile parse error on line 2: time: invalid duration \"x\"",
    ),
    (Code::Unknown, "", "the Dockerfile cannot be empty"),
    (Code::Unknown, "", "dockerfile contains no stages to build"),
    (Code::Unknown, "", "no build stage in current context"),
    (Code::Unknown, "", "unterminated heredoc"),
    (Code::Unknown, "", "invalid stage index 7"),
    (Code::Unknown, "", "circular dependency detected on stage: a"),
    (Code::Unknown, "", "target stage \"nothere\" could not be found"),
    (Code::Unknown, "", "base name ($X) should not be blank"),
    (
        Code::Unknown,
        "",
        "failed to parse stage name \"UPPER/Case\": invalid reference format: repository name (Case) must be lowercase",
    ),
    (
        Code::Unknown,
        "",
        "failed to parse platform what: \"what\": unknown operating system or architecture: invalid argument",
    ),
    (
        Code::Unknown,
        "",
        "failed to parse target platform a/b/c/d: \"a/b/c/d\": cannot parse platform specifier: invalid argument",
    ),
    (
        Code::Unknown,
        "",
        "invalid chmod parameter: '9'. it should be octal string and between 0 and 07777",
    ),
    (
        Code::Unknown,
        "",
        "Syntax error - can't find = in \"be\". Must be of the form: name=value",
    ),
    (Code::Unknown, "", "unsupported mount type \"what\""),
    (Code::Unknown, "", "invalid containerPort: x"),
    (Code::Unknown, "", "invalid signal: WHAT"),
    (Code::Unknown, "", "invalid checksum digest length"),
    (
        Code::Unknown,
        "",
        "failed to read dockerfile: open other: no such file or directory",
    ),
    // What the daemon does not allow.
    (
        Code::Unknown,
        "",
        "failed to load LLB: security.insecure is not allowed",
    ),
    (
        Code::Unknown,
        "",
        "failed to load LLB: network.host is not allowed",
    ),
    // The config.
    (Code::Unknown, "", "invalid SOURCE_DATE_EPOCH: x"),
    // Patterns and paths.
    (Code::Unknown, "", "syntax error in pattern"),
    (
        Code::Unknown,
        CONTEXT_STEP_NAME,
        "rpc error: code = Unknown desc = invalid includepatterns: [[a-]: syntax error in pattern",
    ),
    (
        Code::Unknown,
        CONTEXT_STEP_NAME,
        "error from sender: invalid pattern \"[z-a]\": it is not a valid expression, or is too complex",
    ),
    (
        Code::Internal,
        CONTEXT_STEP_NAME,
        "rpc error: code = Internal desc = rpc error: code = Internal desc = header key \"followpaths\" contains value \
         with non-printable ASCII characters",
    ),
    (
        Code::Internal,
        CONTEXT_STEP_NAME,
        "rpc error: code = Internal desc = rpc error: code = Internal desc = header key \"exclude-patterns\" contains \
         value with non-printable ASCII characters",
    ),
    (
        Code::ResourceExhausted,
        "",
        "grpc: trying to send message larger than max (24191211 vs. 16777216)",
    ),
    (
        Code::Unknown,
        "[1/1] COPY nothere /",
        "failed to compute cache key: failed to calculate checksum of ref x::y: \"/nothere\": not found",
    ),
    (
        Code::Unknown,
        "[1/1] COPY --exclude=[a- a /",
        "failed to compute cache key: failed to calculate checksum of ref x::y: invalid excludepatterns: [[a-]: syntax \
         error in pattern",
    ),
    (
        Code::Unknown,
        "[stage-0 1/1] COPY --from=scratch /x /",
        "lstat /x: no such file or directory",
    ),
    (
        Code::Unknown,
        "[stage-1 2/2] WORKDIR /a",
        "mkdir /a: not a directory",
    ),
    // Processes.
    (
        Code::Unknown,
        "[3/3] RUN exit 3",
        "process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3",
    ),
    (
        Code::Unknown,
        "[stage-1 1/1] RUN true",
        "process \"/bin/sh -c true\" did not complete successfully: unable to find user nobodyhere: no matching entries \
         in passwd file",
    ),
    (
        Code::Unknown,
        "[2/2] RUN curl",
        "process \"/bin/sh -c curl failed to do request: no space left on device\" did not complete successfully: exit \
         code: 6",
    ),
    (
        Code::Unknown,
        "[1/1] RUN --mount=type=secret,id=x,required=true true",
        "secret x: not found",
    ),
    (
        Code::Unknown,
        "[1/1] RUN --mount=type=ssh,required=true true",
        "no SSH key \"\" forwarded from the client",
    ),
    // Addresses that the Dockerfile names.
    (
        Code::Unknown,
        "[1/1] ADD http://127.0.0.1:1/x /",
        "failed to load cache key: Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused",
    ),
    (
        Code::Unknown,
        "[1/1] ADD https://nothere.invalid/x.git /",
        "failed to load cache key: error fetching default branch for repository https://nothere.invalid/x.git: git \
         stderr:\nfatal: unable to access 'https://nothere.invalid/x.git/': Could not resolve host: nothere.invalid\n: \
         exit status 128",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for registry:5000/nothere:1",
        "registry:5000/nothere:1: failed to resolve source metadata for registry:5000/nothere:1: \
         registry:5000/nothere:1: not found",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for docker.io/library/nothere:1",
        "nothere:1: failed to resolve source metadata for docker.io/library/nothere:1: pull access denied, repository \
         does not exist or may require authorization",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for registry:5000/base:1",
        "registry:5000/base:1: failed to resolve source metadata for registry:5000/base:1: unexpected status from HEAD \
         request to http://registry:5000/v2/base/manifests/1: 403 Forbidden",
    ),
    // A tag that the registry does not allow to be replaced.
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push r/x:1: unexpected status from PUT request to https://r/v2/x/manifests/1: 412 Precondition Failed",
    ),
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push r/x:1: unexpected status from PUT request to https://r/v2/x/manifests/1: 400 Bad Request\n\
         TAG_INVALID: The image tag '1' already exists in the 'x' repository and cannot be overwritten because the tag is \
         immutable.",
    ),
    // A repository that does not exist, and that the registry does not create.
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push r/x:1: unknown: The repository with name 'x' does not exist in the registry with id '123456789012'",
    ),
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push r/x:1: unknown: repository name not known to registry",
    ),
    // A layer that is too large for the registry or for a proxy in front of it.
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push r/x:1: unexpected status from PUT request to https://r/v2/x/blobs/uploads/1?digest=sha256%3A12: 413 \
         Request Entity Too Large",
    ),
];

/// The failed solves for which the platform is to blame: a retry of the same build may succeed. That of an unreachable
/// registry was recorded from the daemon; the others follow its sources and reports of users.
const PLATFORM_FAULT_SOLVES: &[FailedSolve] = &[
    // Registries during a pull, whichever step needs the image.
    (
        Code::Unknown,
        "[internal] load metadata for 127.0.0.1:1/x:1",
        "127.0.0.1:1/x:1: failed to resolve source metadata for 127.0.0.1:1/x:1: failed to do request: Head \
         \"http://127.0.0.1:1/v2/x/manifests/1\": dial tcp 127.0.0.1:1: connect: connection refused",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for docker.io/library/b:latest",
        "b: failed to resolve source metadata for docker.io/library/b:latest: failed to do request: Head \
         \"https://registry-1.docker.io/v2/library/b/manifests/latest\": dial tcp: lookup registry-1.docker.io on \
         10.0.2.3:53: no such host",
    ),
    (
        Code::Unknown,
        "resolve image config for docker-image://registry:5000/frontend:1",
        "registry:5000/frontend:1: failed to resolve source metadata for registry:5000/frontend:1: unexpected status from \
         HEAD request to http://registry:5000/v2/frontend/manifests/1: 401 Unauthorized",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for registry:5000/base:1",
        "registry:5000/base:1: failed to resolve source metadata for registry:5000/base:1: unexpected status from GET \
         request to https://registry:5000/v2/base/manifests/1: 503 Service Unavailable",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for docker.io/library/alpine:3",
        "alpine:3: failed to resolve source metadata for docker.io/library/alpine:3: failed to copy: httpReadSeeker: failed \
         open: unexpected status code https://registry-1.docker.io/v2/library/alpine/manifests/sha256:12: 429 Too Many \
         Requests - Server message: toomanyrequests: You have reached your unauthenticated pull rate limit.",
    ),
    (
        Code::Unknown,
        "[internal] load metadata for docker.io/library/alpine:3",
        "alpine:3: failed to resolve source metadata for docker.io/library/alpine:3: failed to authorize: failed to fetch \
         anonymous token: Get \"https://auth.docker.io/token?scope=x\": dial tcp: i/o timeout",
    ),
    (
        Code::Unknown,
        "[2/3] RUN true",
        "failed to copy: httpReadSeeker: failed open: unexpected status code \
         https://registry:5000/v2/base/blobs/sha256:12: 502 Bad Gateway",
    ),
    (
        Code::Unknown,
        "[1/2] FROM registry:5000/base:1",
        "failed commit on ref \"layer-sha256:12\": unexpected commit digest sha256:34, expected sha256:12: failed precondition",
    ),
    // Registries during a push.
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push 127.0.0.1:1/x:1: failed to do request: Head \"http://127.0.0.1:1/v2/x/blobs/sha256:fb7e\": dial tcp \
         127.0.0.1:1: connect: connection refused",
    ),
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push registry:5000/x:1: unexpected status from HEAD request to \
         http://registry:5000/v2/x/blobs/sha256:8ba7: 401 Unauthorized",
    ),
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push registry:5000/x:1: unexpected status from PUT request to \
         http://registry:5000/v2/x/manifests/1: 429 Too Many Requests",
    ),
    (
        Code::Unknown,
        EXPORT_STEP_NAME,
        "failed to push registry:5000/x:1: unexpected status from PUT request to \
         http://registry:5000/v2/x/blobs/uploads/1?digest=sha256%3A12: 404 Not Found",
    ),
    (
        Code::Unknown,
        "exporting cache to registry",
        "error writing layer blob: failed to do request: Head \"http://127.0.0.1:1/v2/x/blobs/sha256:c645\": dial tcp \
         127.0.0.1:1: connect: connection refused",
    ),
    // The operator's generator.
    (
        Code::Unknown,
        "[linux/amd64] generating sbom using r/scan:1",
        "process \"scan\" did not complete successfully: exit code: 1",
    ),
    // The daemon.
    (Code::Internal, "", "history db is closed"),
    (Code::DeadlineExceeded, "", "context deadline exceeded"),
    (
        Code::ResourceExhausted,
        CONTEXT_STEP_NAME,
        "grpc: received message larger than max (24191211 vs. 16777216)",
    ),
    (
        Code::Unknown,
        "",
        "no active session for m3uzs4f6: context deadline exceeded",
    ),
    (
        Code::Unknown,
        CONTEXT_STEP_NAME,
        "error from sender: builder-fn could not read the context",
    ),
    (
        Code::Unknown,
        CONTEXT_STEP_NAME,
        "error from sender: builder-fn could not list the context",
    ),
    (
        Code::Unknown,
        "[2/2] COPY a /",
        "failed to copy files: copy file range failed: no space left on device",
    ),
    (
        Code::Unknown,
        CONTEXT_STEP_NAME,
        "rpc error: code = Unknown desc = write /var/lib/buildkit/x: no space left on device",
    ),
    (
        Code::Unknown,
        "[2/2] COPY a /",
        "failed to prepare x as y: parent snapshot sha256:12 does not exist: not found",
    ),
];

#[test]
fn a_failed_solve_is_blamed_on_the_platform_only_if_a_retry_can_succeed() {
    assert!(CALLER_FAULT_SOLVES.len() + PLATFORM_FAULT_SOLVES.len() >= 30);
    for (cases, expected) in [
        (CALLER_FAULT_SOLVES, FaultyParty::Caller),
        (PLATFORM_FAULT_SOLVES, FaultyParty::Platform),
    ] {
        for case in cases {
            assert_eq!(party_blamed_for(*case), expected, "{case:?}");
        }
    }
}

#[test]
fn the_grpc_header_with_a_control_character_is_parsed_from_the_failure() {
    let message = |header: &str| {
        format!(
            "rpc error: code = Internal desc = rpc error: code = Internal desc = header key \"{header}\" contains value with \
             non-printable ASCII characters"
        )
    };
    for header in ["followpaths", "exclude-patterns"] {
        let failure = BuildFailure::new(&Status::internal(message(header)), &EventReader::default());
        assert_eq!(failure.untransferable_header(), Some(header));
    }
    let failure = BuildFailure::new(&Status::unknown("exit code: 3"), &EventReader::default());
    assert_eq!(failure.untransferable_header(), None);
}
