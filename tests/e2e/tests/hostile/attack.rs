//! Attacks, their outcomes, and the neighbour whose builds they must not harm.

use std::{
    env,
    fs::OpenOptions,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, client::HttpReply};
use tokio::{sync::watch, task::JoinHandle};

use crate::world::{AttackWorld, Tenant};

/// The longest time that an honest build may take beside an attack. Alone, it takes less than a second.
const MAX_HONEST_BUILD_TIME: Duration = Duration::from_secs(20);

/// The variable that names a file to which each outcome is appended, as a row of a Markdown table.
const REPORT_FILE_VARIABLE_NAME: &str = "SLIPWAY_HOSTILE_REPORT";

/// An attack by its name and what it attempts; docs/hostile.md has a row for each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttackDescription {
    pub(crate) name: &'static str,
    pub(crate) attempts: &'static str,
    /// The statuses of the answers by which the attack counts as stopped: an answer with another one, such as that of a
    /// busy or failing platform, proves nothing. Empty for an attack that gets no answer.
    pub(crate) stopped_with: &'static [u16],
}

/// Returns both lists of attacks in one; `N` has to be the sum of their lengths.
pub(crate) const fn concat_attacks<const A: usize, const B: usize, const N: usize>(
    first: &[AttackDescription; A],
    second: &[AttackDescription; B],
) -> [AttackDescription; N] {
    assert!(A + B == N);
    let mut all = [first[0]; N];
    let mut at = 0;
    while at < B {
        all[A + at] = second[at];
        at += 1;
    }
    at = 0;
    while at < A {
        all[at] = first[at];
        at += 1;
    }
    all
}

/// The outcome of an attack, whose attempts have all to be stopped. [`AttackDescription::stopped_with`] decides whether
/// they were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Whether the attacker got what the attack attempts.
    has_succeeded: bool,
    /// The status of the answer to each attempt, `None` for an attempt that gets no answer over HTTP.
    statuses: Vec<Option<u16>>,
    evidence: String,
}

/// What is known about an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The attacker got what the attack attempts.
    Succeeded,
    /// The attacker got nothing, and every attempt had an answer that says so.
    Stopped,
    /// The attacker got nothing, and it is not known whether the attack was stopped: it may not have run at all.
    NotProven,
}

impl Outcome {
    /// Returns the outcome of an attack before its first attempt. It proves nothing.
    pub(crate) fn before_first_attempt() -> Self {
        Self::default()
    }

    /// Returns the outcome of an attempt by a build or a hand-over with this answer.
    pub(crate) fn of_reply(has_succeeded: bool, reply: &HttpReply) -> Self {
        let evidence = describe_reply_status_and_error_or_text(reply);
        Self::of_status(has_succeeded, reply.status, evidence)
    }

    /// Returns the outcome of an attempt whose answer has this status.
    pub(crate) fn of_status(has_succeeded: bool, status: u16, evidence: impl Into<String>) -> Self {
        Self {
            has_succeeded,
            statuses: vec![Some(status)],
            evidence: evidence.into(),
        }
    }

    /// Returns the outcome of an attempt that gets no answer. The caller has to check that it ran.
    pub(crate) fn without_answer(has_succeeded: bool, evidence: impl Into<String>) -> Self {
        Self {
            has_succeeded,
            statuses: vec![None],
            evidence: evidence.into(),
        }
    }

    /// Returns the outcome of an attempt that succeeded, whatever it was answered.
    pub(crate) fn success(evidence: impl Into<String>) -> Self {
        Self::without_answer(true, evidence)
    }

    /// Returns the outcome of an attempt by a build: it succeeded if the answer contains `bait`.
    pub(crate) fn succeeded_if_reply_contains(reply: &HttpReply, bait: &str) -> Self {
        Self::of_reply(reply.text.contains(bait), reply)
    }

    /// Returns the outcome of an attack in several attempts, of which this one and `next` are two. The evidence is that
    /// of the attempt that succeeded, or else of the last one.
    #[must_use]
    pub(crate) fn and(self, next: Self) -> Self {
        let evidence = match self.has_succeeded {
            true => self.evidence,
            false => next.evidence,
        };
        Self {
            has_succeeded: self.has_succeeded || next.has_succeeded,
            statuses: [self.statuses, next.statuses].concat(),
            evidence,
        }
    }

    /// Returns the same outcome, succeeded if `has_effect` is true: what the attempts were answered, they had an effect.
    #[must_use]
    pub(crate) fn succeeded_too_if(self, has_effect: bool, effect: impl std::fmt::Display) -> Self {
        Self {
            has_succeeded: self.has_succeeded || has_effect,
            evidence: format!("{}; {effect}", self.evidence),
            ..self
        }
    }

    /// Returns whether the attacker got what the attack attempts.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.has_succeeded
    }

    fn verdict(&self, stopped_with: &[u16]) -> Verdict {
        let is_stopped = |status: &Option<u16>| match status {
            Some(status) => stopped_with.contains(status),
            None => stopped_with.is_empty(),
        };
        if self.has_succeeded {
            Verdict::Succeeded
        } else if !self.statuses.is_empty() && self.statuses.iter().all(is_stopped) {
            Verdict::Stopped
        } else {
            Verdict::NotProven
        }
    }

    /// Returns the evidence on one line, cut to what a row of a table holds, with the statuses of all answers if they
    /// differ.
    fn evidence_for_table(&self) -> String {
        let mut statuses: Vec<_> = self.statuses.iter().flatten().collect();
        statuses.sort_unstable();
        statuses.dedup();
        let mut text = self.evidence.split_whitespace().collect::<Vec<_>>().join(" ");
        if statuses.len() > 1 {
            text = format!("{statuses:?}, {text}");
        }
        text.chars().take(200).collect::<String>().replace('|', "/")
    }
}

/// Returns the HTTP status of an answer with its error, or its build's status, or its whole text.
pub(crate) fn describe_reply_status_and_error_or_text(reply: &HttpReply) -> String {
    let json = reply.json_or_error_text();
    let text = match json["error"].as_str() {
        Some(error) => error.to_owned(),
        None if json["status"].is_string() => json["status"].to_string(),
        None => reply.text.clone(),
    };
    format!("{} {text}", reply.status)
}

/// The outcomes of a group of attacks.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(Vec<(&'static str, Outcome)>);

impl Outcomes {
    /// Adds the outcome of the attack with this name.
    pub(crate) fn add_outcome(&mut self, name: &'static str, outcome: Outcome) {
        self.0.push((name, outcome));
    }

    /// Adds the outcomes of several attacks.
    pub(crate) fn extend(&mut self, outcomes: impl IntoIterator<Item = (&'static str, Outcome)>) {
        self.0.extend(outcomes);
    }

    /// Asserts that every attack of the group ran once and was stopped. Appends all outcomes to the report file, if the
    /// environment names one.
    pub(crate) fn append_to_report_file_and_assert_all_stopped(
        self,
        group: &[AttackDescription],
    ) -> Result<()> {
        let (report, not_stopped) = self.table_rows_and_not_stopped(group)?;
        if let Some(path) = env::var_os(REPORT_FILE_VARIABLE_NAME) {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(report.as_bytes())?;
        }
        assert!(not_stopped.is_empty(), "\n{}\n", not_stopped.join("\n"));
        Ok(())
    }

    /// Returns a row for each attack of the group, and a sentence for each that was not stopped. Fails if an attack did
    /// not run, or ran twice.
    fn table_rows_and_not_stopped(&self, group: &[AttackDescription]) -> Result<(String, Vec<String>)> {
        let Self(outcomes) = self;
        let mut not_stopped = Vec::new();
        let mut report = String::new();
        for AttackDescription {
            name,
            attempts,
            stopped_with,
        } in group
        {
            let mut own = outcomes.iter().filter(|(of, _)| of == name);
            let (_, outcome) = own.next().with_context(|| format!("{name} did not run"))?;
            ensure!(own.next().is_none(), "{name} ran twice");
            let verdict = outcome.verdict(stopped_with);
            let word = match verdict {
                Verdict::Succeeded => "succeeded",
                Verdict::Stopped => "stopped",
                Verdict::NotProven => "not proven to be stopped",
            };
            let evidence = outcome.evidence_for_table();
            report.push_str(&format!("| {name} | {attempts} | {word}: {evidence} |\n"));
            if verdict != Verdict::Stopped {
                not_stopped.push(format!(
                    "{name}, which {attempts}: {word}, which answers {stopped_with:?} show: {evidence}"
                ));
            }
        }
        let unknown = outcomes
            .iter()
            .find(|(of, _)| !group.iter().any(|attack| attack.name == *of));
        ensure!(unknown.is_none(), "not in the group: {unknown:?}");
        Ok((report, not_stopped))
    }
}

/// An honest tenant who builds again and again beside a group of attacks.
#[derive(Debug)]
pub(crate) struct HonestNeighbour {
    stop: watch::Sender<bool>,
    building: JoinHandle<Result<Vec<Duration>>>,
}

impl HonestNeighbour {
    /// Starts to build as the victim of this world; `group` distinguishes the images.
    pub(crate) async fn start_building_repeatedly(world: &AttackWorld, group: &'static str) -> Result<Self> {
        let victim = world.victim.clone();
        let base = world.testbed.build_busybox_once_and_get_name().await?;
        let (stop, stopped) = watch::channel(false);
        let building = tokio::spawn(async move {
            let mut durations = Vec::new();
            while !*stopped.borrow() || durations.is_empty() {
                durations.push(time_honest_build(&victim, base, group, durations.len()).await?);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(durations)
        });
        Ok(Self { stop, building })
    }

    /// Ends the builds, and asserts that each was correct and on time.
    pub(crate) async fn stop_and_assert_builds_correct_and_on_time(self) -> Result<()> {
        self.stop.send_replace(true);
        let durations = self.building.await??;
        let longest = durations.iter().max().copied().unwrap_or_default();
        assert!(
            longest <= MAX_HONEST_BUILD_TIME,
            "the longest of {} honest builds beside the attacks took {longest:?}",
            durations.len()
        );
        Ok(())
    }
}

/// Builds an image that shows whether its content is right, and returns the duration.
async fn time_honest_build(victim: &Tenant, base: &str, group: &str, round: usize) -> Result<Duration> {
    let page = format!("{group} {round} {:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nARG TEXT\nCOPY page /page\nRUN [ \"$(cat /page)\" = \"$TEXT\" ] && echo \"right: $TEXT\"\n"
    ))
    .with_file("page", page.clone())
    .with_file("more", vec![round as u8; 30 << 10]);
    let config = json!({
        "image": victim.image(&format!("neighbour-{group}"), "1"), "buildArgs": { "TEXT": page },
    });
    let started = Instant::now();
    let reply = victim
        .client
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;
    ensure!(
        reply.status == 200 && reply.text.contains(&format!("right: {page}")),
        "the honest build {round} beside {group}: {} {}",
        reply.status,
        reply.text
    );
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP_OF_ONE_ATTACK: [AttackDescription; 1] = [AttackDescription {
        name: "an-attack",
        attempts: "attempts something",
        stopped_with: &[403],
    }];

    fn reply_with_status(status: u16) -> HttpReply {
        HttpReply {
            status,
            call_id: None,
            retry_after: None,
            text: "the answer".to_owned(),
        }
    }

    #[test]
    fn only_an_answer_with_an_expected_status_proves_that_an_attack_was_stopped() {
        for (status, expected) in [
            (403, Verdict::Stopped),
            (422, Verdict::Stopped),
            (200, Verdict::NotProven),
            (400, Verdict::NotProven),
            (429, Verdict::NotProven),
            (500, Verdict::NotProven),
            (502, Verdict::NotProven),
            (503, Verdict::NotProven),
        ] {
            let outcome = Outcome::succeeded_if_reply_contains(&reply_with_status(status), "bait");
            assert_eq!(outcome.verdict(&[403, 422]), expected, "{outcome:?}");
            let outcome = Outcome::succeeded_if_reply_contains(&reply_with_status(status), "answer");
            assert_eq!(outcome.verdict(&[403, 422]), Verdict::Succeeded, "{outcome:?}");
        }
    }

    #[test]
    fn an_attack_is_stopped_only_if_all_its_attempts_are() {
        let stopped = || Outcome::of_status(false, 403, "");
        let failed = || Outcome::of_status(false, 502, "");
        let succeeded = || Outcome::of_status(true, 200, "");
        for (outcome, expected) in [
            (Outcome::before_first_attempt(), Verdict::NotProven),
            (stopped().and(stopped()), Verdict::Stopped),
            (stopped().and(failed()), Verdict::NotProven),
            (failed().and(stopped()), Verdict::NotProven),
            (failed().and(succeeded()), Verdict::Succeeded),
            (succeeded().and(stopped()), Verdict::Succeeded),
            (stopped().succeeded_too_if(true, "an effect"), Verdict::Succeeded),
            (failed().succeeded_too_if(false, "no effect"), Verdict::NotProven),
        ] {
            assert_eq!(outcome.verdict(&[403]), expected, "{outcome:?}");
        }
    }

    #[test]
    fn an_attempt_without_an_answer_proves_nothing_about_an_attack_that_is_answered() {
        let outcome = Outcome::without_answer(false, "");
        assert_eq!(outcome.verdict(&[]), Verdict::Stopped);
        assert_eq!(outcome.verdict(&[403]), Verdict::NotProven);
        assert_eq!(
            Outcome::of_status(false, 502, "").verdict(&[]),
            Verdict::NotProven
        );
    }

    #[test]
    fn only_a_group_whose_attacks_all_ran_and_were_stopped_passes() {
        let passes = |outcomes: Outcomes| {
            let summary = outcomes.table_rows_and_not_stopped(&GROUP_OF_ONE_ATTACK);
            summary.is_ok_and(|(_, not_stopped)| not_stopped.is_empty())
        };
        let with_status = |has_succeeded: bool, status: u16| {
            Outcomes(vec![("an-attack", Outcome::of_status(has_succeeded, status, ""))])
        };
        assert!(passes(with_status(false, 403)));
        assert!(!passes(with_status(true, 403)));
        assert!(!passes(with_status(false, 502)));
        assert!(!passes(Outcomes::default()));
    }
}
