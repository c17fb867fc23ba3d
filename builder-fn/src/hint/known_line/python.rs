//! Errors of pip, poetry, uv, pipenv, conda and Python's build backends.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

const MANIFEST: &str = "pyproject.toml";

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: MANIFEST,
        next: "correct the name or the version of the requirement; a private package needs its index, and credentials as a build secret",
        lines: "
            Because {} depends on {} which doesn't match any versions => the package index has no version that fits {1}, which {0} depends on
            Because {} was not found in the package registry => the package index has no {0}
            Because there is no version of {} and  => the package index has no {0}
            Because there are no versions of {} and  => the package index has no version that fits {0}
            Because only {} is available and {}, we can conclude => the package index has only {0}, and {1}
            PackagesNotFoundError: {} => conda's channels do not have {next}
            ResolvePackageNotFound: => conda's channels do not have {next}
            Package {w} not found => the package index has no {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: "add the package that has the module to the requirements, and install them in a step before, for the same Python",
        lines: "
            */python{}: No module named {w} => Python does not find the module {1}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "use a base image with the version of Python that is wanted (FROM python:VERSION), or versions of the packages that \
               accept the image's",
        lines: "
            ERROR: Package '{}' requires a different Python: {} not in '{}' => {0} wants Python {2}, and the image has {1}
            The currently activated Python version {} is not supported by the project ({}) => pyproject.toml wants Python {1}, and the image has {0}
            The current project's supported Python range ({}) is not compatible => a package does not accept all versions of Python that pyproject.toml allows ({0}): {next}
            error: The requested interpreter resolved to Python {}, which is incompatible with the project's Python requirement: `{}` => pyproject.toml wants Python {1}, and the image has {0}
            error: The Python request from `{}` resolved to Python {}, which is incompatible => {0} names Python {1}, which pyproject.toml does not accept
            error: No interpreter found for Python {} in => the image has no Python {0}
            Because the requested Python version ({}) does not satisfy Python{} and => the project accepts Python {0}, and a package wants Python {1}
            Because the current Python version ({}) does not satisfy Python{} and => the image has Python {0}, and a package wants Python {1}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "requirements.txt",
        next: "make the file with the checksums anew (pip-compile --generate-hashes), and hand it in",
        lines: "
            ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE => a package is not the one that the requirements have the checksum of: {next}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "Pipfile.lock",
        next: "run pipenv lock where the source is, and hand in the new Pipfile.lock",
        lines: "
            Your Pipfile.lock ({}) is out of date => Pipfile.lock does not fit Pipfile
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "poetry.lock",
        next: "run poetry lock where the source is, and hand in the new poetry.lock",
        lines: "
            *poetry.lock is not consistent with pyproject.toml => poetry.lock does not fit pyproject.toml
            *The lock file is not compatible with the current version of Poetry => poetry.lock was made by another version of Poetry
        ",
    },
    KnownErrors {
        kind: Kind::LockFileMissing,
        file: "",
        next: "run uv lock where the source is, hand in uv.lock, and copy it before the step",
        lines: "
            error: Unable to find lockfile at `{}` => the command needs {0}, which is not where it runs
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "uv.lock",
        next: "run uv lock where the source is, and hand in the new uv.lock",
        lines: "
            error: Failed to parse `uv.lock` => uv cannot read uv.lock: {next}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: "requirements.txt",
        next: "write each requirement as NAME==VERSION, with its --hash if one has one",
        lines: "
            ERROR: Hashes are required in --require-hashes mode => a requirement has no checksum, and others have one
            ERROR: In --require-hashes mode, all requirements must have their versions pinned => a requirement has no exact version, and others have a checksum: {next}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: MANIFEST,
        next: "correct pyproject.toml",
        lines: "
            The Poetry configuration is invalid: => Poetry cannot read pyproject.toml: {next}
            error: Failed to parse: `{}` => uv cannot read {0}: {next}
            *TOMLDecodeError: {} => pyproject.toml is malformed: {0}
            ValueError: invalid pyproject.toml config: `{}` => pyproject.toml is malformed at {0}: {next}
            Invalid TOML file {}: {} => {0} is malformed: {1}
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file before the step (COPY), or correct its path; a step that only installs the dependencies needs no source \
               (poetry install --no-root, uv sync --no-install-project)",
        lines: "
            ERROR: Directory '{}' is not installable. Neither 'setup.py' nor 'pyproject.toml' found => the folder {0} has neither setup.py nor pyproject.toml
            error: No `pyproject.toml` found in {} => the step finds no pyproject.toml in {0}
            Poetry could not find a pyproject.toml file in {} => the step finds no pyproject.toml in {0}
            *: can't open file '{}': [Errno 2] No such file => Python finds no {0}
            Error: The current project could not be installed: {} => the project cannot be installed: {0}
            The current project could not be installed: {} => the project cannot be installed: {0}
            OSError: Readme file does not exist: {} => the project names the file {0}, which is not in the image
            LookupError: setuptools-scm was unable to detect version for {} => the project takes its version from git, and {0} has no .git; set SETUPTOOLS_SCM_PRETEND_VERSION or copy .git
            error: package directory '{}' does not exist => the project names the folder {0}, which is not in the image
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "install the program in a step before (rustc and cargo, gcc, git), or use a version of the package that has a wheel for \
               this platform",
        lines: "
            Cargo, the Rust package manager, is not installed => a Python package is built with Rust, and the image has no cargo
            error: can't find Rust compiler => a Python package is built with Rust, and the image has no rustc
            ERROR: Cannot find command 'git' => a requirement comes from git, and the image has no git
            Git executable not found => a requirement comes from git, and the image has no git
            RuntimeError: Unsupported compiler => a Python package is built with a C compiler that the image does not have
        ",
    },
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "install into a virtual environment (python3 -m venv), use an image of Python (FROM python:VERSION), or give pip \
               --break-system-packages",
        lines: "
            error: externally-managed-environment => the distribution does not let pip change its own Python (externally-managed-environment)
        ",
    },
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "run the step as a user that may (USER root before it), or change the owner of the files (COPY --chown, chown)",
        lines: "
            *PermissionError: [Errno {}] {}: '{}' => the user of the step may not use {2}: {1}
            ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '{}' => the user of the step may not write {0}
            OSError: [Errno 30] Read-only file system: '{}' => the step cannot write {0}, which is read-only
        ",
    },
];

pub(super) const TOLERABLE_ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: MANIFEST,
        next: "choose versions that accept each other, or leave a version out",
        lines: "
            No solution found when resolving dependencies => the requirements exclude each other: {next}
            *version solving failed. => the requirements exclude each other: {line}
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "see what the build of the package writes above; a version of it with a wheel for this Python and platform needs no build",
        lines: "
            ERROR: Failed building wheel for {w} => the Python package {0} has no wheel for this image, and its build from source fails
            ERROR: Failed to build {} => a Python package cannot be built: {0}
            Failed to build `{}` => the Python package {0} cannot be built: {next}
        ",
    },
];
