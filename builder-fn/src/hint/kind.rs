//! The kinds of causes.

use serde::Serialize;

/// Declares the kinds with their words and the table of all kinds.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// The kind of a failure's cause. Its word is part of the API and does not change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        pub enum HintKind {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $name,)+
        }

        impl HintKind {
            /// All kinds, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns the word for the kind in the API.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// A pattern of an ignore file excludes what an instruction copies or a step uses.
    SourceIgnored = "source-ignored",
    /// The context has the copied path in another case only.
    SourceWrongCase = "source-wrong-case",
    /// Neither the context nor the named stage has the copied path.
    SourceMissing = "source-missing",
    /// The Dockerfile, or a text that it is read with, is malformed.
    DockerfileInvalid = "dockerfile-invalid",
    /// The context has no Dockerfile of this name.
    DockerfileMissing = "dockerfile-missing",
    /// The target, or the source of `COPY --from`, is no stage of the Dockerfile.
    StageMissing = "stage-missing",
    /// The registry does not have the image.
    ImageMissing = "image-missing",
    /// The registry does not give the image to this build.
    ImagePrivate = "image-private",
    /// The image is for other platforms.
    ImagePlatform = "image-platform",
    /// The registry does not answer.
    RegistryUnreachable = "registry-unreachable",
    /// The registry limits how often images are pulled.
    RegistryRateLimit = "registry-rate-limit",
    /// The registry answers with an error of its own.
    RegistryFailing = "registry-failing",
    /// The registry refuses the push.
    PushDenied = "push-denied",
    /// The registry does not create the repository of the push.
    RepositoryMissing = "repository-missing",
    /// The registry does not let the tag be replaced.
    TagImmutable = "tag-immutable",
    /// The program that has the credentials for the registry cannot be run.
    CredentialHelperMissing = "credential-helper-missing",
    /// The rules of the builder deny a source of the build.
    SourceDenied = "source-denied",
    /// `ADD` cannot download its source.
    DownloadFailed = "download-failed",
    /// The build does not have a secret, a key or a login that a step uses.
    SecretMissing = "secret-missing",
    /// A file of the source does not compile.
    CompileError = "compile-error",
    /// A test of the source fails.
    TestFailed = "test-failed",
    /// A script, or a program in an interpreted language, stops at an error.
    ScriptError = "script-error",
    /// The package manager has no script of this name.
    ScriptMissing = "script-missing",
    /// A file that lists dependencies is malformed.
    ManifestInvalid = "manifest-invalid",
    /// A package, module or version does not exist, or is not installed.
    DependencyMissing = "dependency-missing",
    /// The versions that the dependencies want exclude each other.
    DependencyConflict = "dependency-conflict",
    /// The lock file does not fit the file that lists the dependencies.
    LockFileOutdated = "lock-file-outdated",
    /// There is no lock file, and the command needs one.
    LockFileMissing = "lock-file-missing",
    /// The image does not have a program that a step runs.
    CommandNotFound = "command-not-found",
    /// A program that a step runs may not be executed.
    NotExecutable = "not-executable",
    /// A program is for another processor or operating system.
    WrongArchitecture = "wrong-architecture",
    /// The user of a step may not do what the step does.
    PermissionDenied = "permission-denied",
    /// The image does not have the user of a step.
    UserMissing = "user-missing",
    /// A process was killed, or had no memory left.
    OutOfMemory = "out-of-memory",
    /// There is no room left on a disk.
    DiskFull = "disk-full",
    /// The build took longer than it may.
    TimeLimit = "time-limit",
    /// The name of a host cannot be resolved.
    NameResolution = "name-resolution",
    /// The rules give the steps of the build no network, or a proxy refuses the host.
    NetworkDenied = "network-denied",
    /// A host does not accept the connection, or does not answer.
    ConnectionFailed = "connection-failed",
    /// The certificate of a host is not trusted.
    CertificateUntrusted = "certificate-untrusted",
    /// A step failed, and no rule knows why; the cause quotes the line of its output that says most.
    StepFailed = "step-failed",
    /// The function runs and does not listen on the port for requests.
    FunctionNotListening = "function-not-listening",
    /// The function exits.
    FunctionExits = "function-exits",
    /// The function does not run, and the provider does not say why.
    FunctionNotRunning = "function-not-running",
    /// The function answers its probe with an error.
    ProbeFailed = "probe-failed",
    /// The provider cannot pull the image of the function.
    ImageNotPulled = "image-not-pulled",
    /// A secret that the function uses does not exist at the provider.
    FunctionSecretMissing = "function-secret-missing",
}
