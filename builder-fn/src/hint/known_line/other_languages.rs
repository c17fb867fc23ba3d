//! Errors of Ruby's, PHP's, .NET's, Elixir's and Perl's package managers and runtimes.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "Gemfile",
        next: "correct the name or the version in the Gemfile, and install the gems in a step before (bundle install); a private source needs \
               credentials",
        lines: "
            Could not find gem '{}' in {} => the source of gems has no {0}
            Could not find {} in locally installed gems => the gem {0} is not installed
            Could not find {} in any of the sources => no source of the Gemfile has the gem {0}
            ERROR: Could not find a valid gem '{}' ({}) => the source of gems has no {0} ({1})
            ERROR:  Could not find a valid gem '{}' ({}) => the source of gems has no {0} ({1})
            bundler: command not found: {} => no gem of the bundle has the command {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "Gemfile",
        next: "use a base image with the version of Ruby or Bundler that is wanted (FROM ruby:VERSION), or change the Gemfile",
        lines: "
            Your Ruby version is {}, but your Gemfile specified {} => the Gemfile wants Ruby {1}, and the image has {0}
            *{w} requires Ruby version {}. The current ruby version is {} => a gem requires Ruby {1}, and the image has {2}
            *requires ruby version {}, which is incompatible with the current version, {} => a gem requires Ruby {0}, and the image has {1}
            Could not find '{}' ({}) required by your {} => {2} wants {0} {1}, which the image does not have
            *Could not find '{}' ({}) required by {} => {2} wants {0} {1}, which the image does not have
            Bundler could not find compatible versions for gem \"{}\" => the versions of {0} that the gems want exclude each other
            Could not find compatible versions => the versions that the gems want exclude each other: {next}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "Gemfile.lock",
        next: "run bundle lock where the source is (with --add-platform x86_64-linux if the platform is missing), and hand in the new \
               Gemfile.lock",
        lines: "
            *but the lockfile can't be updated because frozen mode is set => Gemfile.lock does not fit the Gemfile
            *You are trying to install in deployment mode after changing => Gemfile.lock does not fit the Gemfile
            Your bundle only supports platforms {} but your local platform is {} => Gemfile.lock is for {0}, and the build is for {1}
            Cannot write a changed lockfile while frozen => Gemfile.lock does not fit the Gemfile
        ",
    },
    KnownErrors {
        kind: Kind::LockFileMissing,
        file: "",
        next: "run bundle lock where the source is, hand in Gemfile.lock, and copy it before the step",
        lines: "
            The deployment setting requires a lockfile => the command needs a Gemfile.lock, and there is none where it runs
            The frozen setting requires a lockfile => the command needs a Gemfile.lock, and there is none where it runs
            The --deployment flag requires a {} => the command needs a {0}, and there is none where it runs
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file into the working directory of the step before it (COPY, WORKDIR), or correct its path",
        lines: "
            Could not locate Gemfile => the step finds no Gemfile where it runs
            *Composer could not find a composer.json file in {} => the step finds no composer.json in {0}
            Could not open input file: {} => PHP finds no {0}
            No Rakefile found (looking for: {}) => the step finds no Rakefile where it runs
            *(Mix) Could not find a Mix.Project => the step finds no mix.exs where it runs
            Can't open perl script \"{}\" => Perl finds no {0}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: "Gemfile",
        next: "correct the Gemfile",
        lines: "
            *There was an error parsing `Gemfile`: {} => Bundler cannot read the Gemfile: {0}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: "composer.json",
        next: "correct composer.json: JSON has no comments and no comma before a closing bracket",
        lines: "
            \"{}composer.json\" does not contain valid JSON => composer.json is no JSON: {next}
            \"{}composer.json\" does not match the expected JSON schema => composer.json is malformed: {next}
        ",
    },
    KnownErrors {
        kind: Kind::ScriptMissing,
        file: "",
        next: "correct the name of the task in the step, or add the task",
        lines: "
            *Don't know how to build task '{}' => the Rakefile has no task {0}
            Command \"{}\" is not defined. => the program has no command {0}
            *(Mix) The task \"{}\" could not be found => mix has no task {0}
            Unrecognized command \"{}\" => the program has no command {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: "install it in a step before, or correct its name",
        lines: "
            *Failed opening required '{}vendor/autoload.php' => PHP does not find vendor/autoload.php: composer install did not run before, or its result is not in the image
            error: /usr/src/php/ext/{} does not exist => docker-php-ext-install knows no extension {0}
            No releases available for package \"pecl.php.net/{}\" => PECL has no extension {0} for this PHP
            Can't locate {} in @INC => Perl does not find the module {0}
            *there is no package called {} => R has no package {0}
            *(Mix) Could not find an SCM for dependency {} => mix does not know where {0} comes from
            *No package with name {} => the package registry has no {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "global.json",
        next: "use a base image of .NET with the version that is wanted (mcr.microsoft.com/dotnet/sdk:VERSION), or change global.json or the \
               target framework",
        lines: "
            A compatible .NET SDK was not found => the image does not have the .NET SDK that global.json wants: {next}
            *You must install or update .NET to run this application => the image does not have the .NET runtime that the program is for
            *It was not possible to find any compatible framework version => the image does not have the .NET runtime that the program is for: {next}
        ",
    },
    KnownErrors {
        kind: Kind::SecretMissing,
        file: "",
        next: "set SECRET_KEY_BASE_DUMMY=1 for this step (Rails 7.1 and later), or give SECRET_KEY_BASE as a build secret",
        lines: "
            *Missing `secret_key_base` for '{}' environment => Rails has no secret_key_base for the environment {0}
        ",
    },
    KnownErrors {
        kind: Kind::OutOfMemory,
        file: "",
        next: "raise PHP's memory_limit for this step (php -d memory_limit=-1, COMPOSER_MEMORY_LIMIT=-1)",
        lines: "
            *Allowed memory size of {} bytes exhausted => PHP had no memory left: its limit is {0} bytes
        ",
    },
];

pub(super) const TOLERABLE_ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "see what the build of the gem writes above; most often it needs a compiler (build-essential, build-base) or the development \
               package of a library",
        lines: "
            An error occurred while installing {} ({}), and Bundler cannot continue => the gem {0} {1} cannot be installed
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "see what the script writes above; a step that only installs packages can leave scripts out (composer install --no-scripts)",
        lines: "
            Script {} handling the {} event returned with error code {} => the script {0} of composer.json ended with the exit code {2}
        ",
    },
];
