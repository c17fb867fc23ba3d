//! Errors of the go command beside those of its compiler.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "go.mod",
        next: "use a base image with the version of Go that is wanted (FROM golang:VERSION), or lower it in go.mod (or the version of the \
               module)",
        lines: "
            go: {} requires go >= {} (running go {w} => {0} requires Go {1}, and the image has {2}
            *note: module requires Go {w} => the source or a module requires Go {0}, and the image's is older
            go: download go{} for {}: toolchain not available => the image's Go is older than go.mod requires ({0}), and the newer one cannot be downloaded
            go: cannot load {}: module requires Go {w} => {0} requires Go {1}, and the image's is older
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "go.sum",
        next: "correct go.sum where the source is (go mod tidy after deleting the line), and hand it in; a module whose tag was moved needs \
               another version",
        lines: "
            *verifying {}: checksum mismatch => the module {0} is not the one that go.sum has the checksum of
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the files or the folder before the step (COPY), or correct the path",
        lines: "
            *replacement directory {} does not exist => go.mod replaces a module by {0}, which is not in the image
            no Go files in {} => go finds no Go files in {0}
            *(replaced by {}): reading {}: open {}: no such file => go.mod replaces a module by {0}, and the image has no {2}
            go: cannot load module {} listed in go.work file: open {}: no such file => go.work names {0}, which is not in the image
            stat {}: directory not found => go finds no folder {0}
            *pattern {}: no matching files found => no file fits the pattern {0} of a go:embed
            *directory prefix {} does not contain main module or its selected dependencies => go finds no module in {0}
            *go.work file requires {}: open {}: no such file => go.work names {0}, which is not in the image
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "go.mod",
        next: "correct the import, or add the module that has the package to go.mod (go get, go mod tidy), and hand in go.mod and go.sum",
        lines: "
            package {} is not in std => no module of go.mod has the package {0}
            *no required module provides package {w} => no module of go.mod has the package {0}
            *cannot find module providing package {w} => no module of go.mod has the package {0}
            *does not contain package {w} => the module that go.mod requires does not contain the package {0}
            *module declares its path as: {w} => a module has another path than go.mod requires it by: {0}
        ",
    },
    KnownErrors {
        kind: Kind::CompileError,
        file: "",
        next: "build for the platform that the files are for, or set CGO_ENABLED=1 and have a C compiler if they need cgo",
        lines: "
            *build constraints exclude all Go files in {} => no Go file in {0} is for this platform or these build tags
        ",
    },
    KnownErrors {
        kind: Kind::CompileError,
        file: "",
        next: "give all Go files of the folder the same package, or move those of another package into a folder of their own",
        lines: "
            found packages {} and {} in {} => the folder {2} has Go files of two packages: {0} and {1}
        ",
    },
    KnownErrors {
        kind: Kind::CompileError,
        file: "",
        next: "take one of the imports out of the circle",
        lines: "
            *import cycle not allowed => packages import each other in a circle
        ",
    },
];
