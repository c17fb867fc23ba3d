//! Errors of shells and of tools for files.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::ScriptError,
        file: "",
        next: "run it with bash: SHELL [\"/bin/bash\", \"-c\"] in the Dockerfile before the step, or #!/bin/bash in the script; /bin/sh is \
               another shell",
        lines: "
            *set: Illegal option -{} => /bin/sh does not know the option {0} of bash
            *set: illegal option -{} => /bin/sh does not know the option {0} of bash
            *sh: {}Bad substitution => /bin/sh does not know a substitution of bash: {line}
            *sh: {}bad substitution => /bin/sh does not know a substitution of bash: {line}
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "use what every shell has (. in place of source, [ in place of [[), or run it with bash: SHELL [\"/bin/bash\", \"-c\"] before \
               the step",
        lines: "
            *: source: not found => /bin/sh does not have bash's command source
            *: [[: not found => /bin/sh does not have bash's command [[
            *: pushd: not found => /bin/sh does not have bash's command pushd
            *: shopt: not found => /bin/sh does not have bash's command shopt
        ",
    },
];

pub(super) const TOLERABLE_ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::ScriptError,
        file: "",
        next: "set the variable (ENV, ARG and the config's \"buildArgs\"), or give it a default (${NAME:-value})",
        lines: "
            *: unbound variable => a variable is not set: {line}
            *: parameter not set => a variable is not set: {line}
        ",
    },
    KnownErrors {
        kind: Kind::DownloadFailed,
        file: "",
        next: "correct the checksum if the file was replaced on purpose, or download the file that it is for",
        lines: "
            sha256sum: {}computed checksum{}did NOT match => a file does not have the checksum that the step expects
            sha512sum: {}computed checksum{}did NOT match => a file does not have the checksum that the step expects
            md5sum: {}computed checksum{}did NOT match => a file does not have the checksum that the step expects
            sha1sum: {}computed checksum{}did NOT match => a file does not have the checksum that the step expects
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file or folder into the image before the step (COPY, WORKDIR), let an earlier command make it, or correct its path",
        lines: "
            cp: cannot stat {}: No such file => the step finds no {0}
            cp: can't stat {}: No such file => the step finds no {0}
            mv: cannot stat {}: No such file => the step finds no {0}
            mv: can't rename {}: No such file => the step finds no {0}
            install: cannot stat {}: No such file => the step finds no {0}
            cat: can't open {}: No such file => the step finds no {0}
            cat: {}: No such file => the step finds no {0}
            chmod: cannot access {}: No such file => the step finds no {0}
            chown: cannot access {}: No such file => the step finds no {0}
            chmod: {}: No such file => the step finds no {0}
            chown: {}: No such file => the step finds no {0}
            ls: cannot access {}: No such file => the step finds no {0}
            ls: {}: No such file => the step finds no {0}
            sed: can't read {}: No such file => the step finds no {0}
            sed: {}: No such file => the step finds no {0}
            grep: {}: No such file => the step finds no {0}
            rm: cannot remove {}: No such file => the step finds no {0}
            rm: can't remove {}: No such file => the step finds no {0}
            tar: {}: Cannot open: No such file => the step finds no {0}
            tar: {}: Cannot stat: No such file => the step finds no {0}
            tar: can't open {}: No such file => the step finds no {0}
            unzip: cannot find or open {}, => the step finds no {0}
            unzip:  cannot find or open {}, => the step finds no {0}
            *sh: {}cd: can't cd to {w} => the step finds no folder {1}
            *sh: {}cd: {}: No such file => the step finds no folder {1}
            *sh: {}cannot open {}: No such file => the step finds no {1}
            *sh: {}cannot create {}: Directory nonexistent => the step finds no folder for {1}
            *sh: can't open '{}': No such file => the step finds no {0}
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "take the version from a build argument in place of git, or let the context have .git: hand it in, and do not exclude it by \
               .dockerignore",
        lines: "
            fatal: not a git repository => the step runs git where there is no repository: the image has no .git
            fatal: No names found, cannot describe anything => git has no tag to name the version after
            fatal: No tags can describe {} => git has no tag to name the version after
        ",
    },
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "run the step as a user that may (USER root before it), or change the owner of the files (COPY --chown, chown)",
        lines: "
            *: permission denied => the user of the step may not do this: {line}
            *Access to the path '{}' is denied => the user of the step may not use {0}
            *java.nio.file.AccessDeniedException: {} => the user of the step may not use {0}
            There was an error while trying to write to `{}` => the user of the step may not write {0}
            *: Read-only file system => the step writes to what is read-only, such as a mount: {line}
        ",
    },
];
