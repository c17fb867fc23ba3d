//! What the rules read: the failure with its texts cut and cleaned, and taken apart once.

use std::borrow::Cow;
use std::cell::OnceCell;

use super::copied::CopiedFolders;
use super::dockerfile::{self, Instruction};
use super::failure::Failure;
use super::{Hint, HintStep, MAX_NAME_OR_LINE_BYTES, MAX_SENTENCE_BYTES, text};

/// The length after which the rest of an error is not read, in bytes.
const ERROR_READ_BYTES: usize = 16 << 10;

/// The length of the end of a step's output that is read, in bytes.
const OUTPUT_READ_BYTES: usize = 48 << 10;

/// The length after which the rest of a line of output is not read, in bytes.
const LINE_READ_BYTES: usize = 2 << 10;

/// The words between the command and the reason in BuildKit's error for a process that failed:
/// `solver/llbsolver/ops/exec.go`.
const PROCESS_FAILED_WORDS: &str = "\" did not complete successfully: ";

/// A failure with its texts cut and cleaned.
pub(super) struct Evidence<'a> {
    /// What is known of the failure.
    pub(super) failure: &'a Failure<'a>,
    /// The text of the error, cut after [`ERROR_READ_BYTES`].
    pub(super) error: Cow<'a, str>,
    /// The end of the output of the failed step.
    output: String,
    instructions: OnceCell<Vec<Instruction>>,
}

impl<'a> Evidence<'a> {
    /// Cuts and cleans the texts of a failure.
    pub(super) fn new(failure: &'a Failure<'a>) -> Self {
        let output = failure.step.map(|step| step.output).unwrap_or_default();
        Self {
            failure,
            error: Cow::Borrowed(text::first_part(failure.error, ERROR_READ_BYTES)),
            output: text::without_terminal_codes(text::last_whole_lines(output, OUTPUT_READ_BYTES)),
            instructions: OnceCell::new(),
        }
    }

    /// Returns the lines of the end of the step's output, each cut.
    pub(super) fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        let lines = self.output.lines();
        lines.map(|line| text::first_part(line, LINE_READ_BYTES).trim_end())
    }

    /// Returns the instructions of the Dockerfile; none if it cannot be read.
    pub(super) fn instructions(&self) -> &[Instruction] {
        self.instructions.get_or_init(|| {
            let read = self
                .failure
                .files
                .read_beginning(self.failure.dockerfile, dockerfile::MAX_BYTES_READ_OF_FILE);
            dockerfile::parse_instructions_without_heredocs(&String::from_utf8_lossy(
                &read.unwrap_or_default(),
            ))
        })
    }

    /// Returns the name of the failed step, if it is one of the Dockerfile's.
    pub(super) fn dockerfile_step_name(&self) -> Option<&'a str> {
        let name = self.failure.step?.name;
        let number = name.strip_prefix('[')?.split_once("] ")?.0;
        (number != "internal" && number != "context" && number != "auth").then_some(name)
    }

    /// Returns the instruction of the failed step: at the line that BuildKit names, or the only one with the step's
    /// text.
    pub(super) fn instruction(&self) -> Option<&Instruction> {
        if let Some(line) = self.failure.dockerfile_line {
            let mut all = self.instructions().iter();
            return all.find(|instruction| (instruction.line..=instruction.last_line).contains(&line));
        }
        dockerfile::only_instruction_of_step(self.instructions(), self.dockerfile_step_name()?)
    }

    /// Returns the image or the stage that the stage of the failed instruction begins from.
    pub(super) fn base_image_or_stage(&self) -> Option<&str> {
        dockerfile::base_of_stage(self.instructions(), self.instruction()?)
    }

    /// Returns a path that a program named, without the working directory of the step, if the context has the rest.
    pub(super) fn without_working_directory_if_in_context<'p>(&self, path: &'p str) -> &'p str {
        let relative = self.instruction().and_then(|step| {
            let folders = CopiedFolders::copied_before_step(self.instructions(), step);
            path.strip_prefix(folders.working_directory_unless_command_may_change_it()?)?
                .strip_prefix('/')
        });
        relative
            .filter(|relative| self.failure.files.has(relative))
            .unwrap_or(path)
    }

    /// Returns the path in the context of the file that a program of the step named with its path in the image; `None`
    /// if the instructions of the step's stage copied no such file of the context there, or more than one.
    fn only_context_path_of_image_path(&self, path: &str) -> Option<String> {
        let folders = CopiedFolders::copied_before_step(self.instructions(), self.instruction()?);
        let mut found = folders.possible_context_paths_for_image_path(path);
        found.extend(folders.possible_files_copied_to(path));
        found.retain(|path| self.failure.files.has(path));
        found.sort();
        found.dedup();
        match found.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    }

    /// Returns the hint with a file of the context in place of its path in the image.
    fn with_context_path(&self, hint: Hint) -> Hint {
        let Some(in_image) = hint.file.as_deref().filter(|file| file.starts_with('/')) else {
            return hint;
        };
        let in_context = self
            .only_context_path_of_image_path(in_image)
            .filter(|path| text::is_safe_in_shell_advice(path));
        let Some(in_context) = in_context else { return hint };
        let renamed = |sentence: &str| {
            let sentence = text::replace_whole_path(sentence, in_image, &in_context);
            text::one_line_cut_with_ellipsis(&sentence, MAX_SENTENCE_BYTES)
        };
        Hint {
            cause: renamed(&hint.cause),
            next: renamed(&hint.next),
            file: Some(in_context),
            ..hint
        }
    }

    /// Returns `function/NAME` if the context has the manifest or lock file only there, and otherwise the name itself.
    pub(super) fn path_in_function_folder_if_only_there(&self, name: &str) -> String {
        let in_function = format!("function/{name}");
        let files = self.failure.files;
        match !files.has(name) && files.has(&in_function) {
            true => in_function,
            false => name.to_owned(),
        }
    }

    /// Returns the line of the Dockerfile at which the failed instruction begins.
    pub(super) fn dockerfile_line(&self) -> Option<u32> {
        self.instruction()
            .map(|instruction| instruction.line)
            .or(self.failure.dockerfile_line)
    }

    /// Returns the reason why the process of a step failed, such as `exit code: 1`; `None` for other failures.
    pub(super) fn process_failure_reason(&self) -> Option<&str> {
        let (before, reason) = self.error.rsplit_once(PROCESS_FAILED_WORDS)?;
        before.contains("process \"").then_some(reason)
    }

    /// Returns whether the command of the failed step, as BuildKit names it, has `word`.
    pub(super) fn command_has_word(&self, word: &str) -> bool {
        let before = self
            .error
            .rsplit_once(PROCESS_FAILED_WORDS)
            .map_or("", |(before, _)| before);
        let is_word =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
        before
            .split(|character| !is_word(character))
            .any(|found| found == word)
    }

    /// Returns the exit code of the failed step.
    pub(super) fn exit_code(&self) -> Option<u32> {
        let code = self.process_failure_reason()?.strip_prefix("exit code: ")?;
        let digits = code.bytes().take_while(u8::is_ascii_digit).count();
        code.get(..digits)?.parse().ok()
    }

    /// Returns the first line of a file of the context for which `is_wanted` is true, with the file's path. The file is
    /// looked for in the context and in its folder `function`, where templates of functions have the handler.
    pub(super) fn find_line_in_file(
        &self,
        name: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Option<(String, u32)> {
        const MAX_BYTES_READ_OF_FILE: usize = 64 << 10;
        for path in [name.to_owned(), format!("function/{name}")] {
            let Some(read) = self.failure.files.read_beginning(&path, MAX_BYTES_READ_OF_FILE) else {
                continue;
            };
            let content = String::from_utf8_lossy(&read);
            let mut lines = (1..).zip(content.lines());
            if let Some((line, _)) = lines.find(|(_, line)| is_wanted(line)) {
                return Some((path, line));
            }
        }
        None
    }

    /// Returns whether the file of the context that a program of the step named as `image_path` contains `word`. It is
    /// the file at the longest end of the path that the context has, or else in its folder `function`.
    pub(super) fn context_file_contains(&self, image_path: &str, word: &str) -> bool {
        const MAX_PATH_ENDS_TRIED: usize = 16;
        const MAX_BYTES_READ_OF_FILE: usize = 64 << 10;
        let whole = image_path.trim_start_matches("./").trim_start_matches('/');
        let ends = std::iter::successors(Some(whole), |image_path| Some(image_path.split_once('/')?.1));
        let read = ends.take(MAX_PATH_ENDS_TRIED).find_map(|image_path| {
            self.failure
                .files
                .read_beginning(image_path, MAX_BYTES_READ_OF_FILE)
        });
        let read = read.or_else(|| {
            self.failure
                .files
                .read_beginning(&format!("function/{whole}"), MAX_BYTES_READ_OF_FILE)
        });
        read.is_some_and(|read| String::from_utf8_lossy(&read).contains(word))
    }

    /// Completes a hint: adds the failed step, names a file as the context does, and adds the Dockerfile's line as the
    /// place if the rule knows no closer one.
    pub(super) fn complete_with_step_and_place(&self, hint: Hint) -> Hint {
        let hint = self.with_context_path(hint);
        let line = self.dockerfile_line();
        // What BuildKit does for an instruction before it runs, such as to look up its image, has a name of its own.
        let name = self
            .dockerfile_step_name()
            .or_else(|| Some(&*self.instruction()?.text));
        let step = name.map(|name| HintStep {
            name: text::one_line_cut_with_ellipsis(name, MAX_NAME_OR_LINE_BYTES),
            file: line
                .map(|_| text::one_line_cut_with_ellipsis(self.failure.dockerfile, MAX_NAME_OR_LINE_BYTES)),
            line,
        });
        let hint = match (&hint.file, line) {
            (None, Some(line)) => hint.at(self.failure.dockerfile, Some(line)),
            _ => hint,
        };
        Hint { step, ..hint }
    }
}
