//! Errors of yarn, pnpm, npm, bun, corepack, and of Node's bundlers.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

const MANIFEST: &str = "package.json";

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: MANIFEST,
        next: "correct the name or the version of the package in package.json; a private package needs credentials (.npmrc as a \
               build secret)",
        lines: "
            error Couldn't find package \"{}\" => the registry has no package {0}, or does not give it to this build
            error Couldn't find any versions for \"{}\" that matches \"{}\" => the registry has no version of {0} that fits {1}
            error An unexpected error occurred: \"{}: Not found => the registry does not have {0}
            error Error: {}: Not found => the registry does not have {0}
            *ERR_PNPM_FETCH_404{}GET {}: Not Found => the registry does not have {1}, or does not give it to this build
            *ERR_PNPM_NO_MATCHING_VERSION{}No matching version found for {} => the registry has no version {1}
            *ERR_PNPM_WORKSPACE_PKG_NOT_FOUND{}In : \"{}\" => the workspace does not have {1}
            YN0035: {}: Package not found => the registry has no package {0}
            YN0082: {}: No candidates found => the registry has no version that fits {0}
            error: No version matching \"{}\" found for specifier \"{}\" => the registry has no version of {1} that fits {0}
            error: GET {} - 404 => the registry does not have {0}
            *Rollup failed to resolve import \"{}\" from \"{}\" => the bundler does not find {0}, which {1} imports
            Could not resolve \"{}\" from \"{}\" => the bundler does not find {0}, which {1} imports
            *Failed to resolve import \"{}\" from \"{}\" => the bundler does not find {0}, which {1} imports
            Module not found: Error: Can't resolve '{}' in '{}' => the bundler does not find {0}, which a file in {1} imports
            Module not found: Can't resolve '{}' => the bundler does not find {0}
            *[ERR_MODULE_NOT_FOUND]: Cannot find package '{}' imported from {} => Node.js does not find the package {0}, which {1} imports
            *Cannot find module '{}' from '{}' => the test runner does not find {0}, which {1} imports
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "use a base image with the version of Node.js that is wanted (FROM node:VERSION), or versions of the packages that \
               accept the image's",
        lines: "
            error {}: The engine \"{}\" is incompatible with this module. Expected version \"{}\". Got \"{}\" => {0} wants {1} in version {2}, and the image has {3}
            notsup Required: {} => a package wants versions that the image does not have: {0}
            *ERR_PNPM_UNSUPPORTED_ENGINE{}Unsupported {} => a package does not accept the image's version of Node.js or pnpm: unsupported {1}
            *error:0308010C:digital envelope routines::unsupported => the bundler is too old for the image's Node.js, whose OpenSSL does not have its hash any more
            You are using Node.js {}. {} requires Node.js => the image has Node.js {0}: {line}
            *requires Node.js {}. Please upgrade => the image's Node.js is too old: {line}
            For Next.js, Node.js version \"{}\" is required => the image's Node.js is too old: {line}
            *The Angular CLI requires a minimum Node.js version of {} => the image's Node.js is too old: {line}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "run corepack enable in a step before (or install the package manager in the version that package.json names)",
        lines: "
            error This project's package.json defines \"packageManager\": \"{}\". However the current global version of Yarn is {}. => package.json wants the package manager {0}, and the image has yarn {1}
            *This project is configured to use {} => the image's package manager is another one than package.json wants: {line}
            *ERR_PNPM_BAD_PM_VERSION{}This project is configured to use {} => the image has another pnpm than package.json wants: {1}
            *Error: Cannot find matching keyid => the image's corepack is too old to check the signature of the package manager
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "choose versions in package.json that fit each other",
        lines: "
            *ERR_PNPM_PEER_DEP_ISSUES{} => the dependencies want other versions of each other: {next}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "package-lock.json",
        next: "delete package-lock.json and node_modules where the source is, run npm install, and hand in the new lock file",
        lines: "
            *Cannot find module @rollup/rollup-{}. npm has a bug => package-lock.json was made on another platform, and does not have the native package @rollup/rollup-{0}
            code EINTEGRITY => a package is not the one that package-lock.json has the checksum of: {next}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "yarn.lock",
        next: "run yarn install where the source is, and hand in the new yarn.lock",
        lines: "
            error Integrity check failed for \"{}\" => the package {0} is not the one that yarn.lock has the checksum of
            YN0018: {}: The remote archive doesn't match the expected checksum => the package {0} is not the one that yarn.lock has the checksum of
            YN0028: {}The lockfile would have been  => yarn.lock does not fit package.json
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "pnpm-lock.yaml",
        next: "run pnpm install where the source is with the same version of pnpm, and hand in the new pnpm-lock.yaml",
        lines: "
            *ERR_PNPM_LOCKFILE_CONFIG_MISMATCH{} => pnpm-lock.yaml was made with other settings than package.json has
            *ERR_PNPM_BROKEN_LOCKFILE{} => pnpm cannot read pnpm-lock.yaml: {line}
            *ERR_PNPM_FROZEN_LOCKFILE_WITH_OUTDATED_LOCKFILE{} => pnpm-lock.yaml does not fit package.json
            *ERR_PNPM_TARBALL_INTEGRITY{} => a package is not the one that pnpm-lock.yaml has the checksum of: {line}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "bun.lock",
        next: "run bun install where the source is, and hand in the new lock file",
        lines: "
            error: lockfile had changes, but lockfile is frozen => bun's lock file does not fit package.json
        ",
    },
    KnownErrors {
        kind: Kind::LockFileMissing,
        file: "",
        next: "run bun install where the source is, and hand in the lock file",
        lines: "
            error: lockfile not found, but lockfile is frozen => the command needs bun's lock file, and there is none
        ",
    },
    KnownErrors {
        kind: Kind::ScriptMissing,
        file: MANIFEST,
        next: "add the script to the scripts of package.json (or the package that has the command to its dependencies), or run one \
               that it has",
        lines: "
            error Command \"{}\" not found. => package.json has no script {0}, and no dependency has a command of this name
            *ERR_PNPM_NO_SCRIPT{}Missing script: {} => package.json has no script {1}
            *ERR_PNPM_RECURSIVE_EXEC_FIRST_FAIL{}Command \"{}\" not found => no dependency of package.json has the command {1}
            *ERR_PNPM_RECURSIVE_RUN_NO_SCRIPT{} => no package of the workspace has the script: {line}
            Usage Error: Couldn't find a script named \"{}\" => package.json has no script {0}
            Usage Error: Couldn't find a script name \"{}\" => package.json has no script {0}
            error: Script not found \"{}\" => package.json has no script {0}
            error: Task not found: {} => deno.json has no task {0}
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file into the working directory of the step before it (COPY, WORKDIR), or correct its path",
        lines: "
            *ERR_PNPM_NO_PKG_MANIFEST{}No package.json found in {} => the step finds no package.json in {1}
            error Couldn't find a package.json file in \"{}\" => the step finds no package.json in {0}
            error: Bun could not find a package.json file => the step finds no package.json where it runs
            enoent Could not read package.json => the step finds no package.json where it runs
            error TS5058: The specified path does not exist: '{}' => the TypeScript compiler finds no {0}
            error TS18003: No inputs were found in config file '{}' => the TypeScript compiler finds no source file for {0}
            error TS5083: Cannot read file '{}' => the TypeScript compiler finds no {0}
            error TS6053: File '{}' not found => the TypeScript compiler finds no {0}
            *Could not resolve entry module \"{}\" => the bundler finds no entry {0}
            *Could not find Prisma Schema that is required for this command => Prisma finds no schema (prisma/schema.prisma) where the step runs
            *Couldn't find any `pages` or `app` directory => Next.js finds no folder pages or app where the step runs
            error: Module not found \"{}\" => the step finds no {0}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: MANIFEST,
        next: "correct package.json",
        lines: "
            code EUNSUPPORTEDPROTOCOL => npm does not know a protocol that package.json uses: {next}
            code EINVALIDPACKAGENAME => npm does not accept a name in package.json: {next}
            code EINVALIDTAGNAME => npm does not accept a version in package.json: {next}
            code EOVERRIDE => package.json overrides a dependency that it has itself: {next}
            *ERR_PNPM_JSON_PARSE{} => pnpm cannot read package.json: {line}
        ",
    },
    KnownErrors {
        kind: Kind::WrongArchitecture,
        file: "",
        next: "install the packages in a step of the build, and exclude node_modules of other machines by .dockerignore",
        lines: "
            notsup Unsupported platform for {}: wanted {} (current: {}) => the package {0} is for {1}, and the build is for {2}
            *You installed esbuild for another platform than the one you're currently using => the installed esbuild is for another platform, so that node_modules comes from another machine or image
            *invalid ELF header => a native module is for another operating system, so that node_modules comes from another machine: {line}
            *Could not load the \"sharp\" module using the {} runtime => the installed package sharp is not for {0}
        ",
    },
    KnownErrors {
        kind: Kind::OutOfMemory,
        file: "",
        next: "let the step use less memory, such as fewer jobs at the same time; if it needs it, the operator can raise the memory of \
               build steps",
        lines: "
            The build failed because the process exited too early => the process of the step was killed, as the kernel does when the step's memory is used up
            error Command failed with signal \"SIGKILL\" => a process of the step was killed, as the kernel does when the step's memory is used up
            signal SIGKILL => a process of the step was killed, as the kernel does when the step's memory is used up
            *ERR_WORKER_OUT_OF_MEMORY => a worker of Node.js had no memory left
        ",
    },
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "run the step as a user that may (USER root before it), or change the owner of the files (COPY --chown, chown)",
        lines: "
            *EACCES: permission denied, {} => the user of the step may not do this: {0}
        ",
    },
];
