//! Errors of MSBuild, NuGet and the compilers of .NET: `FILE(LINE,COLUMN): error CODE: MESSAGE [PROJECT]`, or `FILE :
//! error CODE: MESSAGE [PROJECT]`.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// Explains the first error of MSBuild or NuGet; the compilers' errors with a line are left to the rule for compilers.
pub(super) fn explain(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let lines: Vec<&str> = evidence.lines().collect();
    lines.iter().enumerate().find_map(|(at, line)| {
        let error = parse(line.trim())?;
        let following = lines.get(at + 1).map(|line| line.trim()).unwrap_or_default();
        let (kind, next) = kind_and_next_step(error.code)?;
        let message = match error.code {
            "MSB1009" => format!("{} {following}", error.message),
            _ => error.message.to_owned(),
        };
        let hint = Hint::new(kind, format!("{message} ({})", error.code), next);
        let is_file = error.file.contains('.') && !error.file.contains(' ');
        Some(match is_file {
            true => hint.at(
                evidence.without_working_directory_if_in_context(error.file),
                error.line,
            ),
            false => hint,
        })
    })
}

/// An error of MSBuild.
struct MsbuildError<'l> {
    file: &'l str,
    line: Option<u32>,
    code: &'l str,
    message: &'l str,
}

/// Parses a line of output.
fn parse(line: &str) -> Option<MsbuildError<'_>> {
    let (origin, rest) = line.split_once(": error ")?;
    let (code, message) = rest.split_once(": ")?;
    let letters = code.bytes().take_while(u8::is_ascii_uppercase).count();
    let is_code = (2..=7).contains(&letters)
        && code.len() > letters
        && code.bytes().skip(letters).all(|byte| byte.is_ascii_digit());
    is_code.then_some(())?;
    // The project is at the end, in brackets.
    let message = message.rsplit_once(" [").map_or(message, |(message, _)| message);
    let origin = origin.trim_end();
    let (file, line) = match origin
        .strip_suffix(')')
        .and_then(|origin| origin.rsplit_once('('))
    {
        Some((file, numbers)) => (file, numbers.split(',').next().and_then(|line| line.parse().ok())),
        None => (origin, None),
    };
    let message = text::first_part(message, 400);
    Some(MsbuildError {
        file,
        line,
        code,
        message,
    })
}

/// Returns what kind of cause a code stands for, and what to do next; `None` for a code that is a compiler's, or not
/// known.
fn kind_and_next_step(code: &str) -> Option<(HintKind, &'static str)> {
    Some(match code {
        "NU1100" | "NU1101" | "NU1102" | "NU1103" | "NU1104" => (
            HintKind::DependencyMissing,
            "correct the name or the version of the package in the project, or name the source that has it (nuget.config); a private one \
             needs credentials as a build secret",
        ),
        "NU1106" | "NU1107" | "NU1108" | "NU1202" | "NU1213" | "NU1605" | "NU1608" => (
            HintKind::DependencyConflict,
            "choose versions of the packages that fit each other and the project's target framework",
        ),
        "NU1004" => (
            HintKind::LockFileOutdated,
            "run dotnet restore --force-evaluate where the source is, and hand in the new packages.lock.json",
        ),
        "NU1301" | "NU1302" => (
            HintKind::ConnectionFailed,
            "check the address of the source in nuget.config; if it is right, the rules for the network of build steps do not let it \
             through, or it needs credentials",
        ),
        "NU1403" => (
            HintKind::LockFileOutdated,
            "the package is not the one that packages.lock.json has the checksum of: restore it anew where the source is",
        ),
        "NETSDK1045" => (
            HintKind::DependencyConflict,
            "use a base image with the .NET SDK of the target framework (mcr.microsoft.com/dotnet/sdk:VERSION), or lower TargetFramework",
        ),
        "NETSDK1004" | "NETSDK1064" => (
            HintKind::DependencyMissing,
            "run dotnet restore in a step before, and exclude bin and obj by .dockerignore, which otherwise replace its result",
        ),
        "NETSDK1047" => (
            HintKind::DependencyMissing,
            "restore for the same runtime (dotnet restore -r RID), or leave --no-restore out",
        ),
        "NETSDK1147" | "MSB4236" => (
            HintKind::DependencyMissing,
            "install the SDK or workload in a step before (dotnet workload install), or use a base image that has it",
        ),
        "MSB1003" | "MSB1009" | "MSB3202" => (
            HintKind::SourceMissing,
            "copy the project into the working directory of the step before it (COPY, WORKDIR), or name the project file in the command",
        ),
        "MSB1011" | "MSB1008" | "MSB1001" => (
            HintKind::ScriptError,
            "name one project or solution file in the command, and options that it has",
        ),
        "MSB4025" | "MSB4066" | "MSB4067" | "MSB4068" | "MSB4019" => {
            (HintKind::ManifestInvalid, "correct the project file")
        }
        "CS5001" | "CS0016" | "CS2001" | "CS1504" => (
            HintKind::CompileError,
            "correct what the compiler names: a source file or the method Main is not there",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_file_line_code_and_message_without_the_project() {
        for (line, file, number, code, message) in [
            (
                "/src/A.csproj : error NU1101: Unable to find package X. [/src/A.sln]",
                "/src/A.csproj",
                None,
                "NU1101",
                "Unable to find package X.",
            ),
            (
                "/src/A.csproj(5,3): error MSB4025: The project file could not be loaded.",
                "/src/A.csproj",
                Some(5),
                "MSB4025",
                "The project file could not be loaded.",
            ),
            (
                "MSBUILD : error MSB1003: Specify a project",
                "MSBUILD",
                None,
                "MSB1003",
                "Specify a project",
            ),
        ] {
            let error = parse(line).expect("an error");
            assert_eq!(
                (error.file, error.line, error.code, error.message),
                (file, number, code, message)
            );
        }
        for line in [
            "a: error: x",
            "a: error x: y",
            "a : error 12: y",
            "x : warning NU1603: y",
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }
}
