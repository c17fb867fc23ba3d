//! Errors of linkers, loaders, make, CMake, configure scripts and pkg-config.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

const LIBRARY_ADVICE: &str = "install the library's package in a step before (its development package, NAME-dev or NAME-devel, to compile and \
                              link), or use a base image that has it";

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "",
        next: LIBRARY_ADVICE,
        lines: "
            *ld: cannot find -l{w} => the linker does not find the library {0} (lib{0})
            *ld: error: unable to find library -l{w} => the linker does not find the library {0} (lib{0})
            *library not found for -l{w} => the linker does not find the library {0} (lib{0})
            *could not find native static library `{}` => the linker does not find the library {0}
            *error while loading shared libraries: {}: cannot open shared object file => a program of the step needs the library {0}, which the image does not have: {line}
            *Error loading shared library {}: No such file or directory (needed by {}) => {1} needs the library {0}, which the image does not have
            *Error: {w}: cannot open shared object file => Python needs the library {0}, which the image does not have
            Package '{}', required by 'virtual:world', not found => pkg-config finds no library {0}
            Package {w} was not found in the pkg-config search path => pkg-config finds no library {0}
            No package '{}' found => pkg-config finds no library {0}
            configure: error: Package requirements ({}) were not met => configure does not find the library {0}
            *mkmf.rb can't find header files for ruby => the image does not have the headers of Ruby (ruby-dev)
            *ERROR: Dependency \"{}\" not found => Meson does not find the library {0}
            Exception: Can not find valid pkg-config name => the image does not have the development files of MariaDB or MySQL (libmariadb-dev, mariadb-dev)
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "",
        next: "build the program in an image with the same or an older version of the C library than the one that runs it (the same \
               distribution in all stages), or link it statically",
        lines: "
            *version `GLIBC_{}' not found (required by {}) => {1} needs glibc {0}, and the image's is older
            *version `GLIBCXX_{}' not found (required by {}) => {1} needs a newer libstdc++ than the image's (GLIBCXX_{0})
            *Error relocating {}: {}: symbol not found => {0} is not for this image's C library, musl: it needs {1}
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "install a C compiler and its tools in a step before (build-essential on Debian, build-base on Alpine)",
        lines: "
            *no acceptable C compiler found in $PATH => the image has no C compiler
            *C compiler cannot create executables => the image's C compiler makes no programs, as it does without the headers of the C library
            No CMAKE_{}_COMPILER could be found => the image has no compiler for {0}
            *CMAKE_{}_COMPILER not set, after EnableLanguage => the image has no compiler for {0}
            *You have to install development tools first => the image has no C compiler, which a gem is built with
            *Cannot find `phpize`. Please => the image has no PHP development files
            Cannot find autoconf. Please check your autoconf installation => the image has no autoconf ($PHPIZE_DEPS)
            gyp ERR! find Python{}You need to install => the image has no Python, which node-gyp runs
            *Could not find any Python installation to use => the image has no Python, which node-gyp runs
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "CMakeLists.txt",
        next: "use a base image with a newer CMake, or lower cmake_minimum_required",
        lines: "
            CMake {} or higher is required. You are running version {} => the build wants CMake {0}, and the image has {1}
            CMake {} or higher is required.  You are running version {} => the build wants CMake {0}, and the image has {1}
            Compatibility with CMake < {} has been removed from CMake => the image's CMake is too new for this project, which is made for one before {0}
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file into the working directory of the step before it (COPY, WORKDIR), or correct its path",
        lines: "
            CMake Error: The source directory \"{}\" does not appear to contain CMakeLists.txt => CMake finds no CMakeLists.txt in {0}
            CMake Error: The source directory \"{}\" does not exist => CMake finds no folder {0}
            *No targets specified and no makefile found. => make finds no Makefile where the step runs
            *make: *** {}: No such file or directory => make finds no folder {0}
            *No rule to make target '{}', needed by '{}'. => make finds no {0}, which {1} needs, and no rule makes it
            ninja: error: loading 'build.ninja': No such file => ninja finds no build.ninja where the step runs
            ninja: error: '{}', needed by '{}', missing => ninja finds no {0}, which {1} needs
            *cc1: fatal error: {}: No such file => the compiler finds no {0}
            gcc: error: {}: No such file => the compiler finds no {0}
            g++: error: {}: No such file => the compiler finds no {0}
            cc: error: {}: No such file => the compiler finds no {0}
            clang: error: no such file or directory: '{}' => the compiler finds no {0}
            error: file not found: {} => the compiler finds no {0}
        ",
    },
    KnownErrors {
        kind: Kind::ScriptMissing,
        file: "Makefile",
        next: "correct the name of the target in the step, or add the target to the Makefile",
        lines: "
            *No rule to make target '{}'. => the Makefile has no target {0}
        ",
    },
    KnownErrors {
        kind: Kind::WrongArchitecture,
        file: "",
        next: "use a program and libraries for the platform of the build",
        lines: "
            *rosetta error: failed to open elf at {} => a program of the step is for x86-64, and the image is for another processor
            *Could not open '/lib{}ld-linux{}': No such file => a program of the step is for another processor than the image
            *wrong ELF class: {} => a library is for another processor: {line}
            *file in wrong format => a library or object file is for another processor: {line}
            *package architecture ({}) does not match system ({}) => the package is for {0}, and the image for {1}
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "install the interpreter or the C library that the program is for (a program for glibc does not run on Alpine), or link it \
               statically",
        lines: "
            *: cannot execute: required file not found => the interpreter or loader of a program is not in the image: {line}
        ",
    },
    KnownErrors {
        kind: Kind::OutOfMemory,
        file: "",
        next: "let the step use less memory, such as fewer jobs at the same time (make -j1); if it needs it, the operator can raise the memory \
               of build steps",
        lines: "
            *internal compiler error: Killed (program {}) => the compiler was killed, as the kernel does when the step's memory is used up ({0})
            *Killed signal terminated program {} => the compiler was killed, as the kernel does when the step's memory is used up ({0})
        ",
    },
];

pub(super) const TOLERABLE_ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::CompileError,
        file: "",
        next: "link the library or object file that has the symbol, in the right order, or define it",
        lines: "
            *undefined reference to {} => the linker finds no {0}: {line}
            *ld: error: undefined symbol: {} => the linker finds no {0}
            *multiple definition of {}; => a symbol is defined more than once: {0}
        ",
    },
    KnownErrors {
        kind: Kind::StepFailed,
        file: "",
        next: "see what configure checks above (config.log has the details); most often a library or a program is not in the image",
        lines: "
            configure: error: {} => configure stops: {0}
        ",
    },
];
