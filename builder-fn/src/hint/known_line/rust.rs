//! Errors of cargo, rustup, and the build scripts of crates.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

const MANIFEST: &str = "Cargo.toml";

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "use a base image with a newer Rust (FROM rust:VERSION), or versions of the crates that accept the image's \
               (cargo update --precise)",
        lines: "
            error: package `{}` cannot be built because it requires rustc {} or newer => {0} wants rustc {1} or newer, and the image's is older
            error: rustc {} is not supported by the following package => the image has rustc {0}, and a crate wants a newer one: {next}
            error: cannot install package `{}`, it requires rustc {} or newer => {0} wants rustc {1} or newer, and the image's is older
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "Cargo.lock",
        next: "use a base image with a newer Rust (FROM rust:VERSION), or make Cargo.lock with the image's cargo",
        lines: "
            *lock file version{}was found, but this version of Cargo does not understand => Cargo.lock was written by a newer cargo than the image's
            *lock file version{}requires `-Znext-lockfile-bump` => Cargo.lock was written by a newer cargo than the image's
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: MANIFEST,
        next: "correct the name of the crate in Cargo.toml, or name its registry",
        lines: "
            searched package name: `{}` => the registry has no crate {0}
            error: could not find `{}` in registry => the registry has no crate {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: "add it in a step before (rustup target add, rustup toolchain install, rustup component add), or use a base image that \
               has it",
        lines: "
            *the `{}` target may not be installed => the image's Rust has no standard library for the target {0}
            error: toolchain '{}' is not installed => the image does not have the Rust toolchain {0}
            error: rustup could not choose a version of {} => rustup has no toolchain in the image
            error: '{}' is not installed for the toolchain '{}' => the Rust toolchain {1} of the image has no {0}
            error: no such command: `{}` => the image's cargo has no command {0}
            error: no such subcommand: `{}` => the image's cargo has no command {0}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: MANIFEST,
        next: "name a target or feature in the step that Cargo.toml has, or add it there, and copy its source",
        lines: "
            error: no bin target named `{}` => the package has no binary {0}
            error: no example target named `{}` => the package has no example {0}
            error: a bin target must be available for `cargo run` => the package has no binary
            error: the package '{}' does not contain this feature: {} => the package {0} has no feature {1}
            error: none of the selected packages contains this feature: {} => no package has the feature {0}
            error: package ID specification `{}` did not match any packages => the workspace has no package {0}
            no targets specified in the manifest => cargo finds no source file: neither src/lib.rs, src/main.rs, a [lib] section nor a [[bin]] section is there
            can't find `{}` bin at `{}` => Cargo.toml names the binary {0}, and its source is not in the image ({1})
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the folder of the crate that Cargo.toml names (path dependency or workspace member) before the step",
        lines: "
            failed to read `{}Cargo.toml` => cargo finds no {0}Cargo.toml
            error: failed to load manifest for workspace member `{}` => cargo cannot read the workspace member {0}: {next}
        ",
    },
    KnownErrors {
        kind: Kind::SecretMissing,
        file: "",
        next: "give the login as a build secret, mount it in the step (RUN --mount=type=secret), and let cargo use git for it \
               (net.git-fetch-with-cli)",
        lines: "
            failed to authenticate when downloading repository => a git dependency wants a login, and the step has none that it accepts: {next}
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "install the program in a step before: protobuf-compiler, cmake, pkg-config, gcc and make (build-essential, build-base)",
        lines: "
            protoc-gen-{w}: program not found or is not executable => the image has no protoc-gen-{0}, which protoc runs
            *Could not find `protoc` => the image has no protoc (protobuf-compiler), which a build script runs
            *is `cmake` not installed? => the image has no cmake, which a build script runs
            *failed to find tool \"{}\" => the image has no {0}, which a build script runs
            *Failed to find tool. Is `{}` installed? => the image has no {0}, which a build script runs
            *The pkg-config command could not be found => the image has no pkg-config, which a build script runs
            *Could not run `{}pkg-config => the image has no pkg-config, which a build script runs
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: "install the development package of the library in a step before (such as libssl-dev and pkg-config on Debian, \
               openssl-dev and pkgconf on Alpine)",
        lines: "
            Could not find directory of OpenSSL installation => the image does not have the headers of OpenSSL (libssl-dev on Debian, openssl-dev on Alpine)
            *The system library `{}` required by crate `{}` was not found => the image does not have the library {0}, which the crate {1} needs
            *Unable to find libclang: {} => the image does not have libclang (libclang-dev on Debian, clang-dev on Alpine), which bindgen needs
        ",
    },
    KnownErrors {
        kind: Kind::OutOfMemory,
        file: "",
        next: "let the step use less memory, such as fewer jobs at the same time (cargo build -j 1); if it needs it, the operator can \
               raise the memory of build steps",
        lines: "
            *LLVM ERROR: out of memory => the compiler had no memory left
            memory allocation of {w} bytes failed => a process of the step had no memory left
        ",
    },
];

pub(super) const TOLERABLE_ERRORS: &[KnownErrors] = &[KnownErrors {
    kind: Kind::StepFailed,
    file: "",
    next: "see what the build script writes below the error; most often it needs a library or a program that the image does not have",
    lines: "
            error: failed to run custom build command for `{}` => the build script of the crate {0} fails
        ",
}];
