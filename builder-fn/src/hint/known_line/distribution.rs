//! Errors of the package managers and user tools of distributions.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "run the step as root (USER root before it, and the other user after it)",
        lines: "
            E: Could not open lock file {} - open (13: Permission denied) => only root may install packages, and the step runs as another user: it may not open {0}
            E: Unable to acquire the dpkg frontend lock ({}), are you root => only root may install packages, and the step runs as another user: it may not open {0}
            E: List directory {} is missing. - Acquire (13: Permission denied) => only root may install packages, and the step runs as another user: it may not write {0}
            dpkg: error: requested operation requires superuser privilege => only root may install packages, and the step runs as another user
            ERROR: Unable to lock database: Permission denied => only root may install packages, and the step runs as another user
            Error: This command has to be run with superuser privileges => only root may install packages, and the step runs as another user
            *This command has to be run under the root user => only root may install packages, and the step runs as another user
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: "correct the name or the version of the package, or add the repository that has it (a newer base image, EPEL, apk's community)",
        lines: "
            Error: Unable to find a match: {} => the distribution's repositories have no package {0}
            No match for argument: {} => the distribution's repositories have no package {0}
            Error: Failed to resolve the transaction => the distribution's package manager cannot install this: {next}
            No package {w} available. => the distribution's repositories have no package {0}
            error: No package matches '{}' => the distribution's repositories have no package {0}
            Package '{}' not found. => the distribution's repositories have no package {0}
            No provider of '{}' found. => the distribution's repositories have no package {0}
            error: target not found: {} => the distribution's repositories have no package {0}
            breaks: world[{}] => the distribution has another version of the package than {0}
            E: Couldn't find any package by glob '{}' => the distribution's repositories have no package {0}
            E: Couldn't find any package by regex '{}' => the distribution's repositories have no package {0}
            E: Release '{}' for '{}' was not found => the distribution has no {0} with the package {1}
            E: Unsupported file {} given on commandline => apt does not find the package file {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "",
        next: "install versions that fit each other: packages of one release of the distribution only, after apt-get update in the same RUN",
        lines: "
            The following packages have unmet dependencies: => packages of the distribution want others in versions that there are not: {next}
            dpkg: dependency problems prevent configuration of {}: => the package {0} needs others that are not installed: {next}
            E: Unable to correct problems, you have held broken packages => packages of the distribution exclude each other
        ",
    },
    KnownErrors {
        kind: Kind::DownloadFailed,
        file: "",
        next: "use a newer base image; one whose release is no longer supported finds its packages only in the distribution's archive",
        lines: "
            E: The repository '{}' does not have a Release file => the server has no packages of this release any more: {0}
            E: The repository '{}' no longer has a Release file => the server has no packages of this release any more: {0}
            *Cannot prepare internal mirrorlist: {} => no server has the packages of this release: {0}
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "install the repository's current key before (apt: signed-by; apk: /etc/apk/keys), or use a newer base image, whose keys are \
               current",
        lines: "
            E: The repository '{}' is not signed => the image does not have the key with which the repository {0} is signed
            ERROR: {}: UNTRUSTED signature => the image does not have the key with which {0} is signed
            ERROR: {}: BAD signature => the signature of {0} is wrong
            *GPG check FAILED => the signature of a package is not one that the image trusts
            E: Release file for {} is not valid yet => the builder's clock is behind, or the package list of {0} is of the future
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "let the program ask nothing: apt-get install -y, dnf install -y, DEBIAN_FRONTEND=noninteractive, npm's --yes",
        lines: "
            *Do you want to continue? [Y/n] Abort => the package manager asks whether to go on, and nobody answers in a build
            *Is this ok [y/N]: Operation aborted => the package manager asks whether to go on, and nobody answers in a build
            *[y/d/N]: Exiting on user command => the package manager asks whether to go on, and nobody answers in a build
        ",
    },
    KnownErrors {
        kind: Kind::UserMissing,
        file: "",
        next: "create the user or group in a step before (useradd, adduser, groupadd), or name one that the image has",
        lines: "
            chown: invalid user: {} => the image has no user or group {0}
            chown: invalid group: {} => the image has no group {0}
            chown: unknown user/group {} => the image has no user or group {0}
            chown: unknown user {} => the image has no user {0}
            chown: unknown group {} => the image has no group {0}
            chgrp: invalid group: {} => the image has no group {0}
            chgrp: unknown group {} => the image has no group {0}
            useradd: group '{}' does not exist => the image has no group {0}
            useradd: invalid user name '{}' => {0} may not be the name of a user
            usermod: user '{}' does not exist => the image has no user {0}
            su: user {} does not exist => the image has no user {0}
            su: unknown user {} => the image has no user {0}
            adduser: unknown group {} => the image has no group {0}
            install: invalid user {} => the image has no user {0}
            install: invalid group {} => the image has no group {0}
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "leave the command out, or use another name or number: the base image has this one already",
        lines: "
            useradd: user '{}' already exists => the image has the user {0} already
            groupadd: group '{}' already exists => the image has the group {0} already
            groupadd: GID '{}' already exists => the image has a group with the number {0} already
            useradd: UID {w} is not unique => the image has a user with the number {0} already
            adduser: user '{}' in use => the image has the user {0} already
            adduser: uid '{}' in use => the image has a user with the number {0} already
            addgroup: group '{}' in use => the image has the group {0} already
            addgroup: gid '{}' in use => the image has a group with the number {0} already
        ",
    },
];
