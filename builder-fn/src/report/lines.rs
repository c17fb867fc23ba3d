//! Events of a build as lines of its log.
//!
//! `v: TIME NAME` when a step begins and `v: TIME NAME 1.23s` when it ends, `s: TIME ID CURRENT` when part of one moves
//! on, `l: TIME TEXT` for what it writes. Times are RFC 3339 in whole seconds. Of what moves on steadily there is a line
//! when it begins, one a second, and one when it is done.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::Mask;
use crate::buildkit::Event;

/// Bytes of text in one line; longer ones are split. Clients stop reading at 64 KiB, and JSON may write a byte as six.
pub const MAX_LINE: usize = 8 << 10;

/// Steps whose state is remembered; beyond that, a line may be repeated.
const MAX_STEPS: usize = 10_000;

/// Between two lines about the same progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Makes lines of events, in order.
#[derive(Debug, Default)]
pub struct Lines {
    steps: HashMap<String, (Option<SystemTime>, Option<SystemTime>)>,
    progress: HashMap<String, Told>,
    mask: Mask,
    unfinished: HashMap<(String, i64), Unfinished>,
}

/// What was last told of something that moves on.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: SystemTime,
    current: i64,
    done: bool,
}

/// Output whose line has no end yet.
#[derive(Debug)]
struct Unfinished {
    at: SystemTime,
    text: Vec<u8>,
}

impl Lines {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// None yet, of a build whose secrets `mask` hides.
    pub fn masked(mask: Mask) -> Self {
        Self {
            mask,
            ..Self::default()
        }
    }

    /// The lines that `event` completes.
    pub fn of(&mut self, event: Event) -> Vec<String> {
        match event {
            Event::Step {
                digest,
                name,
                started,
                completed,
                ..
            } => self.step(digest, &name, started, completed),
            Event::Progress {
                id,
                current,
                at,
                done,
            } => self.progress(id, Told { at, current, done }),
            Event::Output {
                step,
                stream,
                at,
                text,
            } => self.output(step, stream, at, &text),
            Event::Warning { text } => vec![Self::warning(&self.mask.text(&text))],
        }
    }

    /// What was written without an end of line, once there is no more to come.
    pub fn rest(&mut self) -> Vec<String> {
        let mut rest: Vec<_> = self
            .unfinished
            .drain()
            .map(|(_, unfinished)| unfinished)
            .collect();
        rest.sort_by_key(|unfinished| unfinished.at);
        rest.iter()
            .flat_map(|unfinished| output_lines(&self.mask, unfinished.at, &unfinished.text))
            .collect()
    }

    /// A line about something that works, but better were otherwise.
    pub fn warning(text: &str) -> String {
        remark(&format!("warning: {text}"))
    }

    /// A line about a step of ours that begins.
    pub fn begin(name: &str) -> String {
        format!("v: {} {}", time(SystemTime::now()), one_line(name))
    }

    /// A line about a step of ours that has ended.
    pub fn end(name: &str, took: Duration) -> String {
        format!("{} {:.2}s", Self::begin(name), took.as_secs_f64())
    }

    fn progress(&mut self, id: String, now: Told) -> Vec<String> {
        if let Some(told) = self.progress.get(&id) {
            let again = told.done && !now.done;
            let soon = now
                .at
                .duration_since(told.at)
                .is_ok_and(|since| since < PROGRESS_INTERVAL);
            let nothing_new = match (told.done, now.done) {
                (true, true) => true,
                (_, true) => false,
                _ => soon || told.current == now.current,
            };
            if nothing_new && !again {
                return Vec::new();
            }
        }
        let line = format!(
            "s: {} {} {}",
            time(now.at),
            one_line(&self.mask.text(&id)),
            now.current
        );
        if self.progress.len() < MAX_STEPS || self.progress.contains_key(&id) {
            self.progress.insert(id, now);
        }
        vec![line]
    }

    fn step(
        &mut self,
        digest: String,
        name: &str,
        started: Option<SystemTime>,
        completed: Option<SystemTime>,
    ) -> Vec<String> {
        // The daemon repeats itself, and reports steps that merely wait.
        if self.steps.get(&digest) == Some(&(started, completed)) {
            return Vec::new();
        }
        let name = one_line(&self.mask.text(name));
        let line = match (started, completed) {
            (None, _) => return Vec::new(),
            (Some(started), None) => format!("v: {} {name}", time(started)),
            (Some(started), Some(completed)) => {
                let took = completed.duration_since(started).unwrap_or(Duration::ZERO);
                format!("v: {} {name} {:.2}s", time(completed), took.as_secs_f64())
            }
        };
        let mut lines: Vec<_> = match completed {
            // What the step wrote last belongs before its end.
            Some(_) => [1, 2]
                .into_iter()
                .filter_map(|stream| self.unfinished.remove(&(digest.clone(), stream)))
                .flat_map(|unfinished| output_lines(&self.mask, unfinished.at, &unfinished.text))
                .collect(),
            None => Vec::new(),
        };
        lines.push(line);
        if self.steps.len() < MAX_STEPS {
            self.steps.insert(digest, (started, completed));
        }
        lines
    }

    fn output(&mut self, step: String, stream: i64, at: SystemTime, text: &[u8]) -> Vec<String> {
        let key = (step, stream);
        let mut pending = self
            .unfinished
            .remove(&key)
            .map(|unfinished| unfinished.text)
            .unwrap_or_default();
        pending.extend_from_slice(text);
        let mut lines = Vec::new();
        if let Some(newline) = pending.iter().rposition(|byte| *byte == b'\n') {
            lines = output_lines(&self.mask, at, &pending[..=newline]);
            pending.drain(..=newline);
        }
        // A line without end is told in pieces. What is left over waits for the rest of it.
        while pending.len() >= MAX_LINE + self.mask.reach() {
            let end = self.mask.cut(&pending, floor_char_boundary(&pending, MAX_LINE));
            lines.extend(output_lines(&self.mask, at, &pending[..end]));
            pending.drain(..end);
        }
        if !pending.is_empty() {
            self.unfinished.insert(key, Unfinished { at, text: pending });
        }
        lines
    }
}

/// A line that is none of the build's.
pub(super) fn remark(text: &str) -> String {
    format!("l: {} {}", time(SystemTime::now()), one_line(text))
}

fn output_lines(mask: &Mask, at: SystemTime, text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    let at = time(at);
    // No text that is hidden has an end of line in it.
    let text = mask.bytes(text);
    let text = String::from_utf8_lossy(&text);
    text.split('\n')
        .flat_map(|line| pieces(line.trim_end_matches('\r')))
        .map(|piece| format!("l: {at} {piece}"))
        .collect()
}

/// The last place up to `end` that is not within a character. In what is no text every place is.
fn floor_char_boundary(text: &[u8], end: usize) -> usize {
    let begins = |back: &usize| (text[end - back] & 0b1100_0000) != 0b1000_0000;
    match (1..=3.min(end)).find(begins) {
        Some(back) => {
            let length = match text[end - back] {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => 1,
            };
            if length > back { end - back } else { end }
        }
        None => end,
    }
}

/// `line` in pieces of at most [`MAX_LINE`] bytes, between characters. An empty line is one empty piece.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = line.floor_char_boundary(MAX_LINE);
        rest = (end < line.len()).then(|| &line[end..]);
        Some(&line[..end])
    })
}

/// Names are one line each, and no longer than others: a `RUN` with a here-document has its whole text as its name.
fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_LINE);
    text[..end].replace(['\n', '\r'], " ")
}

fn time(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        // 2026-01-02T03:04:05Z
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045) + Duration::from_millis(milliseconds)
    }

    fn step(started: Option<u64>, completed: Option<u64>) -> Event {
        Event::Step {
            digest: "sha256:1".into(),
            name: "[2/3] RUN make".into(),
            started: started.map(at),
            completed: completed.map(at),
            cached: false,
            error: String::new(),
        }
    }

    fn output(stream: i64, milliseconds: u64, text: &str) -> Event {
        Event::Output {
            step: "sha256:1".into(),
            stream,
            at: at(milliseconds),
            text: text.into(),
        }
    }

    fn progress(milliseconds: u64, current: i64, done: bool) -> Event {
        Event::Progress {
            id: "exporting layers".into(),
            current,
            at: at(milliseconds),
            done,
        }
    }

    #[test]
    fn a_step_is_told_when_it_begins_and_with_its_time_when_it_ends() {
        let mut lines = Lines::new();

        assert_eq!(lines.of(step(None, None)), [""; 0]);
        assert_eq!(
            lines.of(step(Some(0), None)),
            ["v: 2026-01-02T03:04:05Z [2/3] RUN make"]
        );
        assert_eq!(
            lines.of(step(Some(0), Some(2340))),
            ["v: 2026-01-02T03:04:07Z [2/3] RUN make 2.34s"]
        );
    }

    #[test]
    fn what_the_daemon_repeats_is_told_once() {
        let mut lines = Lines::new();

        assert_eq!(lines.of(step(Some(0), Some(10))).len(), 1);
        assert_eq!(lines.of(step(Some(0), Some(10))), [""; 0]);
        assert_eq!(lines.of(step(Some(20), None)).len(), 1, "it began again");
    }

    #[test]
    fn progress_says_what_and_how_far() {
        assert_eq!(
            Lines::new().of(progress(0, 0, false)),
            ["s: 2026-01-02T03:04:05Z exporting layers 0"]
        );
    }

    #[test]
    fn steady_progress_is_told_when_it_begins_each_second_and_when_it_is_done() {
        let mut lines = Lines::new();
        let events = (0..=30).map(|tenth| progress(tenth * 100, tenth as i64, tenth == 30));
        let told: Vec<_> = events.flat_map(|event| lines.of(event)).collect();

        assert_eq!(
            told,
            [
                "s: 2026-01-02T03:04:05Z exporting layers 0",
                "s: 2026-01-02T03:04:06Z exporting layers 10",
                "s: 2026-01-02T03:04:07Z exporting layers 20",
                "s: 2026-01-02T03:04:08Z exporting layers 30",
            ]
        );
        assert_eq!(lines.of(progress(3000, 30, true)), [""; 0], "once");
        assert_eq!(lines.of(progress(3000, 0, false)).len(), 1, "it begins again");
        assert_eq!(lines.of(progress(9000, 0, false)), [""; 0], "nothing moved");
        assert_eq!(lines.of(progress(9001, 0, true)).len(), 1);
    }

    #[test]
    fn output_comes_in_whole_lines_however_it_was_cut() {
        let mut lines = Lines::new();

        assert_eq!(
            lines.of(output(1, 0, "one\r\ntw")),
            ["l: 2026-01-02T03:04:05Z one"]
        );
        assert_eq!(
            lines.of(output(2, 0, "error\n")),
            ["l: 2026-01-02T03:04:05Z error"],
            "streams do not mix"
        );
        assert_eq!(
            lines.of(output(1, 1000, "o\n\nthree")),
            ["l: 2026-01-02T03:04:06Z two", "l: 2026-01-02T03:04:06Z "]
        );
        assert_eq!(
            lines.of(step(Some(0), Some(1000))),
            [
                "l: 2026-01-02T03:04:06Z three",
                "v: 2026-01-02T03:04:06Z [2/3] RUN make 1.00s"
            ]
        );
        assert_eq!(lines.rest(), [""; 0]);
    }

    #[test]
    fn output_that_is_never_ended_is_told_at_the_end() {
        let mut lines = Lines::new();
        lines.of(output(1, 0, "no newline"));

        assert_eq!(lines.rest(), ["l: 2026-01-02T03:04:05Z no newline"]);
        assert_eq!(lines.rest(), [""; 0]);
    }

    #[test]
    fn long_lines_are_split_between_characters_and_nothing_is_lost() {
        let text = "äöü€".repeat(MAX_LINE);
        let mut told = Lines::new().of(output(1, 0, &format!("{text}\n")));
        let prefix = "l: 2026-01-02T03:04:05Z ";

        assert!(told.iter().all(|line| line.len() <= MAX_LINE + prefix.len()));
        let whole: String = told
            .drain(..)
            .map(|line| line[prefix.len()..].to_owned())
            .collect();
        assert_eq!(whole, text);
    }

    #[test]
    fn steps_of_ours_are_told_like_those_of_the_build() {
        let begin = Lines::begin("[deploy] hello");
        let end = Lines::end("[deploy] hello", Duration::from_millis(2340));

        assert!(
            begin.starts_with("v: 20") && begin.ends_with("Z [deploy] hello"),
            "{begin}"
        );
        assert!(
            end.starts_with("v: 20") && end.ends_with("Z [deploy] hello 2.34s"),
            "{end}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn however_output_is_cut_its_text_comes_whole_and_its_lines_are_short(
            text in "([a-zäü€😀]{0,40}|\n){0,12}",
            stretch in prop::sample::select(vec![1usize, 300]),
            cuts in prop::collection::vec(1..9000usize, 1..20),
        ) {
            let text: String = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
                Some(line) => line.repeat(stretch) + "\n",
                None => line.repeat(stretch),
            }).collect();
            let prefix = "l: 2026-01-02T03:04:05Z ";
            let mut lines = Lines::new();
            let mut told = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (piece, further) = rest.split_at(rest.len().min(*cut));
                rest = further;
                let at = at(0);
                told.extend(lines.of(Event::Output { step: "s".into(), stream: 1, at, text: piece.to_vec() }));
                if rest.is_empty() {
                    break;
                }
            }
            told.extend(lines.rest());

            prop_assert!(told.iter().all(|line| line.starts_with(prefix) && line.len() <= prefix.len() + MAX_LINE));
            let whole: String = told.iter().map(|line| &line[prefix.len()..]).collect();
            prop_assert_eq!(whole, text.replace('\n', ""));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_secret_is_hidden_however_its_line_is_cut_and_however_long_that_is(
            before in 0..20_000usize,
            secret in "[A-Z0-9]{4,300}",
            after in 0..20_000usize,
            cut in 1..9000usize,
        ) {
            let mut lines = Lines::masked(Mask::of([secret.as_bytes()].into_iter()));
            let text = "x".repeat(before) + &secret + &"y".repeat(after);
            let mut told = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                told.extend(lines.of(Event::Output { step: "s".into(), stream: 1, at: at(0), text: piece.to_vec() }));
            }
            told.extend(lines.rest());

            let shown: String = told.iter().map(|line| &line["l: 2026-01-02T03:04:05Z ".len()..]).collect();
            let left = secret.len() % 256;
            if left == 0 || left >= 4 {
                let marks = shown.trim_start_matches('x').trim_end_matches('y');
                prop_assert!(marks == "***" || marks == "******", "{}", marks);
            }
            prop_assert!(!shown.contains(&secret[..4]), "{}", shown);
        }
    }

    #[test]
    fn a_line_without_end_does_not_grow_in_memory() {
        let mut lines = Lines::new();
        let told: usize = (0..100)
            .map(|_| lines.of(output(1, 0, &"x".repeat(1000))).len())
            .sum();

        assert!(told >= 11, "{told}");
    }

    #[test]
    fn bytes_that_are_no_text_and_names_of_several_lines_do_no_harm() {
        let mut lines = Lines::new();
        let event = Event::Output {
            step: "x".into(),
            stream: 1,
            at: at(0),
            text: b"\xff\xfe\n".to_vec(),
        };
        assert_eq!(lines.of(event), ["l: 2026-01-02T03:04:05Z \u{fffd}\u{fffd}"]);

        let event = Event::Progress {
            id: "a\nb".into(),
            current: 1,
            at: at(0),
            done: true,
        };
        assert_eq!(lines.of(event), ["s: 2026-01-02T03:04:05Z a b 1"]);
    }
}
