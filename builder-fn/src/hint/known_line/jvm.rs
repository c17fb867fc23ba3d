//! Errors of Maven, Gradle and the Java launcher.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

const JDK_ADVICE: &str = "use a base image with the JDK that the build wants, or set its release and source level to one that the \
                          image's JDK has";

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "",
        next: JDK_ADVICE,
        lines: "
            *error: release version {} not supported => the build is for Java {0}, and the image's JDK is older
            *error: invalid target release: {} => the build is for Java {0}, and the image's JDK is older
            *error: invalid source release: {} => the build is for Java {0}, and the image's JDK is older
            *Unsupported class file major version {w} => the image's Java is too new for this Gradle or plugin (class file version {0})
            *has been compiled by a more recent version of the Java Runtime (class file version {}) => a class was compiled for a newer Java than the image's (class file version {0})
            *No matching toolchains found for requested specification: {} => the image does not have the JDK that the build wants: {0}
            *Cannot find a Java installation on your machine {} => the image does not have the JDK that the build wants: {0}
            *Detected JDK {}is not in the allowed range {} => the build wants a JDK in the range {1}, and the image has {0}
            *Detected Maven Version: {} is not in the allowed range {} => the build wants a Maven in the range {1}, and the image has {0}
            Gradle requires JVM {} or later to run. Your build is currently configured to use JVM {} => Gradle wants Java {0} or later, and the image has {1}
            *Dependency requires at least JVM runtime version {}. This build uses a Java {} JVM => a plugin wants Java {0}, and the image has Java {1}
            Inconsistent JVM-target compatibility detected for tasks '{}' ({}) and '{}' ({}) => Java and Kotlin are compiled for different versions: {1} and {3}
        ",
    },
    KnownErrors {
        kind: Kind::CommandNotFound,
        file: "",
        next: "use a base image with a JDK (not only a JRE), or install one in a step before",
        lines: "
            *No compiler is provided in this environment. Perhaps you are running on a JRE => the image has a JRE, and the build needs a JDK with javac
            *does not provide the required capabilities: [JAVA_COMPILER] => the image has a JRE, and the build needs a JDK with javac
            ERROR: JAVA_HOME is not set and no 'java' command could be found => the image has no Java
            ERROR: JAVA_HOME is set to an invalid directory: {} => JAVA_HOME is {0}, where the image has no Java
            *JAVA_HOME environment variable is not defined correctly => JAVA_HOME names no folder with Java
        ",
    },
    KnownErrors {
        kind: Kind::SourceMissing,
        file: "",
        next: "copy the file or folder into the working directory of the step before it (COPY, WORKDIR), unless an ignore pattern \
               excludes it",
        lines: "
            The goal you specified requires a project to execute but there is no POM in this directory ({}) => Maven finds no pom.xml in {0}
            *Child module {} of {} does not exist => pom.xml names the module {0}, which is not in the image
            *Could not find the selected project in the reactor: {} => Maven finds no module {0}
            *Could not find or load main class org.gradle.wrapper.GradleWrapperMain => the image does not have gradle/wrapper/gradle-wrapper.jar
            *Could not find or load main class org.apache.maven.wrapper.MavenWrapperMain => the image does not have .mvn/wrapper/maven-wrapper.jar
            Error: Unable to access jarfile {} => Java finds no {0}
            Directory '{}' does not contain a Gradle build => Gradle finds no build.gradle or settings.gradle in {0}
            *Project directory '{}' is not part of the build defined by settings file => settings.gradle does not include {0}
            Configuring project '{}' without an existing directory is not allowed. The configured projectDirectory '{}' does not exist => settings.gradle includes {0}, and the image has no folder {1}
        ",
    },
    KnownErrors {
        kind: Kind::ManifestInvalid,
        file: "pom.xml",
        next: "correct pom.xml",
        lines: "
            *Non-parseable POM {}: {} => Maven cannot read {0}: {1}
            *Non-readable POM {}: {} => Maven cannot read {0}: {1}
            'dependencies.dependency.version' for {} is missing => a dependency in pom.xml has no version: {0}
            Malformed POM {}: {} => Maven cannot read {0}: {1}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "pom.xml",
        next: "correct the name or the version in pom.xml, or name the repository that has it; a private one needs credentials \
               (settings.xml as a build secret)",
        lines: "
            *Non-resolvable parent POM for {}: {} => Maven does not find the parent of {0}: {1}
            Plugin {} or one of its dependencies could not be resolved => Maven does not find the plugin {0} or one of its dependencies
            No plugin found for prefix '{}' in the current project => Maven knows no plugin {0}
            *Could not find goal '{}' in plugin {} => the plugin {1} has no goal {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyMissing,
        file: "build.gradle",
        next: "correct the name or the version, or name the repository that has it (pluginManagement in settings.gradle); a private one \
               needs credentials",
        lines: "
            *Plugin [id: '{}'{}] was not found in any of the following sources => no repository of plugins has {0}
            Plugin with id '{}' not found => Gradle knows no plugin {0}
            *Could not find any version that matches {}. => no repository of the build has a version that fits {0}
        ",
    },
    KnownErrors {
        kind: Kind::DependencyConflict,
        file: "",
        next: "choose versions that accept each other, or let Gradle decide (resolutionStrategy)",
        lines: "
            *Could not resolve all {} for configuration '{}'. Conflict => the dependencies of {1} exclude each other: {next}
        ",
    },
    KnownErrors {
        kind: Kind::LockFileOutdated,
        file: "gradle.lockfile",
        next: "run gradle dependencies --write-locks where the source is, and hand in the new lock file",
        lines: "
            *Resolved '{}' which is not part of the dependency lock state => Gradle's lock file does not have {0}
            *Did not resolve '{}' which is part of the dependency lock state => Gradle's lock file has {0}, which the build does not use
        ",
    },
    KnownErrors {
        kind: Kind::ScriptMissing,
        file: "",
        next: "correct the name of the task or phase in the step (gradle tasks lists the tasks)",
        lines: "
            Task '{}' not found in root project => the Gradle build has no task {0}
            Cannot locate tasks that match '{}' => the Gradle build has no task {0}
            Unknown lifecycle phase \"{}\" => Maven has no phase {0}
        ",
    },
    KnownErrors {
        kind: Kind::OutOfMemory,
        file: "",
        next: "let the build use less memory (org.gradle.jvmargs, fewer workers); if it needs it, the operator can raise the memory of \
               build steps",
        lines: "
            *Gradle build daemon disappeared unexpectedly => Gradle's daemon was ended, as the kernel does when the step's memory is used up
            *There is insufficient memory for the Java Runtime Environment to continue => Java had no memory left
            *Not enough memory to run compilation => the compiler had no memory left
        ",
    },
];
