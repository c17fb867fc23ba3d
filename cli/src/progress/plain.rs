//! Events as lines, for logs and for terminals that cannot do more.

use super::Event;
use crate::builder::BuildFacts;
use crate::output::printable;

/// The longest name of a step in a line, in characters. A `RUN` instruction can be a whole script.
const STEP_NAME_CHARS_SHOWN: usize = 100;

/// Returns the lines that show an event; none for one that only a live display shows.
pub(super) fn lines_of(event: &Event<'_>) -> Vec<String> {
    match event {
        Event::Packed {
            files,
            ignored,
            bytes,
            compressed,
        } => {
            let ignored = match ignored {
                0 => String::new(),
                ignored => format!(", without {ignored} files and folders that the ignore file excludes"),
            };
            vec![format!(
                "packed {files} files, {} ({} compressed){ignored}",
                format_bytes(*bytes),
                format_bytes(*compressed)
            )]
        }
        Event::Sent { .. } | Event::StepProgress { .. } => Vec::new(),
        Event::Submitted { id, route } => vec![format!("sent through the {route} as build {id}")],
        Event::RollbackStarted { id, to, options } => vec![format!(
            "rollback {id} to {}; it goes on without this command: slipway logs {id} -f{options}",
            printable(to)
        )],
        Event::State { state } => vec![(*state).to_owned()],
        Event::StepStarted { name } => vec![format!("=> {}", shorten_step_name(name))],
        Event::StepEnded {
            name, cached: true, ..
        } => vec![format!("=> CACHED {}", shorten_step_name(name))],
        // BuildKit reports some of its own steps twice, first as done at once.
        Event::StepEnded { name, seconds, .. } if *seconds < 0.005 && name.starts_with("[internal]") => {
            Vec::new()
        }
        Event::StepEnded { name, seconds, .. } => {
            vec![format!("=> {} {seconds:.1} s", shorten_step_name(name))]
        }
        Event::Output { text } => vec![format!("   {}", printable(text))],
        Event::Note { text } | Event::Notice { text } => text.lines().map(printable).collect(),
        Event::Warning { text } => vec![format!("warning: {}", printable(text))],
        Event::Running {
            summary,
            url,
            image,
            facts,
        } => {
            let mut lines = lines_of_facts(facts);
            lines.push(printable(&format!("{summary}: {url} ({image})")));
            lines
        }
        Event::Failed {
            summary,
            explanation,
            next,
            facts,
            ..
        } => {
            let mut lines = facts.map(lines_of_facts).unwrap_or_default();
            let error = summary.lines().map(printable).enumerate();
            lines.extend(error.map(|(index, line)| match index {
                0 => format!("error: {line}"),
                _ => line,
            }));
            lines.extend(explanation.iter().map(|line| printable(line)));
            lines.push(format!("next: {}", printable(next)));
            lines
        }
    }
}

/// Returns the lines about the steps, the push and the parts of the deployment.
fn lines_of_facts(facts: &BuildFacts) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(steps) = facts.steps {
        let unfinished = match steps.unfinished {
            0 => String::new(),
            unfinished => format!(", {unfinished} not finished"),
        };
        lines.push(format!(
            "steps: {} cached, {} run{unfinished}",
            steps.cached, steps.run
        ));
    }
    if let Some(pushed) = &facts.pushed {
        let took = pushed.seconds.map_or_else(String::new, |seconds| {
            format!(", exported and sent in {seconds:.1} s")
        });
        lines.push(format!("pushed: {}{took}", printable(&pushed.digest)));
    }
    let parts = facts.deployment_parts().into_iter();
    lines.extend(parts.map(|(part, seconds)| format!("deployment: {} {seconds:.2} s", printable(part))));
    lines
}

/// Returns the name of a step in one line, without repeated spaces, and cut where it is long.
fn shorten_step_name(name: &str) -> String {
    let name = printable(&name.split_whitespace().collect::<Vec<_>>().join(" "));
    match name.char_indices().nth(STEP_NAME_CHARS_SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// Formats a number of bytes with a decimal unit.
pub(super) fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_with_the_next_step_and_hostile_text_is_made_harmless() {
        let event = Event::Failed {
            summary: "a\u{1b}[2Jb\nc",
            explanation: &["cause: \u{1b}[2Jd".to_owned()],
            next: "do it",
            code: 1,
            facts: None,
        };
        assert_eq!(lines_of(&event), ["error: ab", "c", "cause: d", "next: do it"]);
    }

    fn failed_event(facts: &BuildFacts) -> Event<'_> {
        Event::Failed {
            summary: "a",
            explanation: &[],
            next: "do it",
            code: 1,
            facts: Some(facts),
        }
    }

    #[test]
    fn the_facts_about_a_build_are_before_its_end() {
        let mut facts = BuildFacts::of_answer(&serde_json::json!({
            "steps": {"total": 13, "completed": 12, "cached": 9}, "digest": "sha256:ab",
            "deployment": {"durations": {"apply": 0.25, "check": 0.125, "total": 0.375}},
        }));
        let mut expected = [
            "steps: 9 cached, 3 run, 1 not finished",
            "pushed: sha256:ab",
            "deployment: check 0.12 s",
            "deployment: apply 0.25 s",
            "error: a",
            "next: do it",
        ];
        assert_eq!(lines_of(&failed_event(&facts)), expected);
        if let Some(pushed) = &mut facts.pushed {
            pushed.seconds = Some(1.25);
        }
        expected[1] = "pushed: sha256:ab, exported and sent in 1.2 s";
        assert_eq!(lines_of(&failed_event(&facts)), expected);
    }

    #[test]
    fn an_internal_step_that_is_done_at_once_is_not_shown_and_a_cached_step_is_marked() {
        let ended = |name, cached| {
            lines_of(&Event::StepEnded {
                name,
                seconds: 0.0,
                cached,
            })
        };
        assert!(ended("[internal] load .dockerignore", false).is_empty());
        assert_eq!(ended("[2/3] COPY a b", false), ["=> [2/3] COPY a b 0.0 s"]);
        assert_eq!(ended("[2/3] COPY a b", true), ["=> CACHED [2/3] COPY a b"]);
    }

    #[test]
    fn a_long_step_is_cut_and_in_one_line() {
        let script = format!("[1/1] RUN set -e;\n     {}", "ä".repeat(200));
        let lines = lines_of(&Event::StepStarted { name: &script });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("=> [1/1] RUN set -e; ää"), "{line}");
        assert_eq!(line.chars().count(), "=> ".len() + STEP_NAME_CHARS_SHOWN + 1);
        assert!(line.ends_with('…'), "{line}");
    }

    #[test]
    fn sizes_have_a_unit() {
        for (bytes, expected) in [(999, "999 B"), (1_500, "1.5 kB"), (2_560_000, "2.6 MB")] {
            assert_eq!(format_bytes(bytes), expected);
        }
    }
}
