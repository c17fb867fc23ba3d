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

/// The outcome of an attack, with the evidence for it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The attacker got what the attack attempts.
    Succeeded(String),
    /// The attacker got nothing.
    Stopped(String),
    /// The attacker got nothing, and it is not known whether the attack was stopped: it may not have run at all.
    NotProven(String),
}

impl Outcome {
    /// Returns the outcome `Succeeded` if `succeeded` is true, and `Stopped` otherwise.
    pub(crate) fn succeeded_or_stopped(succeeded: bool, evidence: impl Into<String>) -> Self {
        match succeeded {
            true => Self::Succeeded(evidence.into()),
            false => Self::Stopped(evidence.into()),
        }
    }

    /// Returns the outcome of an attack by a build: the attack succeeded if the answer contains `bait`.
    pub(crate) fn succeeded_if_reply_contains(reply: &HttpReply, bait: &str) -> Self {
        Self::succeeded_stopped_or_not_proven(reply.text.contains(bait), reply)
    }

    /// Returns the outcome of an attack by a build with this answer: `Succeeded` if `succeeded` is true. Otherwise the
    /// attack was stopped only if the answer is about the request: a busy or failing platform stops every request.
    pub(crate) fn succeeded_stopped_or_not_proven(succeeded: bool, reply: &HttpReply) -> Self {
        let evidence = describe_reply_status_and_error_or_text(reply);
        match reply.status {
            _ if succeeded => Self::Succeeded(evidence),
            429 | 500.. => Self::NotProven(evidence),
            _ => Self::Stopped(evidence),
        }
    }

    /// Returns the outcome of an attack in several attempts, of which this one and `next` are two: it was stopped only
    /// if both were.
    #[must_use]
    pub(crate) fn or_worse(self, next: Self) -> Self {
        match (self, next) {
            (Self::Succeeded(evidence), _) | (_, Self::Succeeded(evidence)) => Self::Succeeded(evidence),
            (Self::NotProven(evidence), _) | (_, Self::NotProven(evidence)) => Self::NotProven(evidence),
            (Self::Stopped(_), Self::Stopped(evidence)) => Self::Stopped(evidence),
        }
    }

    /// Returns whether the attacker got what the attack attempts.
    pub(crate) fn has_succeeded(&self) -> bool {
        matches!(self, Self::Succeeded(_))
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
        for AttackDescription { name, attempts } in group {
            let mut own = outcomes.iter().filter(|(of, _)| of == name);
            let (_, outcome) = own.next().with_context(|| format!("{name} did not run"))?;
            ensure!(own.next().is_none(), "{name} ran twice");
            let (word, evidence) = match outcome {
                Outcome::Succeeded(evidence) => ("succeeded", evidence),
                Outcome::Stopped(evidence) => ("stopped", evidence),
                Outcome::NotProven(evidence) => ("not proven to be stopped", evidence),
            };
            let evidence: String = evidence.split_whitespace().collect::<Vec<_>>().join(" ");
            let evidence: String = evidence.chars().take(200).collect();
            let evidence = evidence.replace('|', "/");
            report.push_str(&format!("| {name} | {attempts} | {word}: {evidence} |\n"));
            if !matches!(outcome, Outcome::Stopped(_)) {
                not_stopped.push(format!("{name}, which {attempts}: {word}: {evidence}"));
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
    fn an_answer_of_a_busy_or_failing_platform_does_not_prove_that_an_attack_was_stopped() {
        for (status, is_stopped) in [
            (200, true),
            (403, true),
            (422, true),
            (429, false),
            (500, false),
            (502, false),
            (503, false),
        ] {
            let outcome = Outcome::succeeded_if_reply_contains(&reply_with_status(status), "bait");
            assert_eq!(matches!(outcome, Outcome::Stopped(_)), is_stopped, "{outcome:?}");
            let outcome = Outcome::succeeded_if_reply_contains(&reply_with_status(status), "answer");
            assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
        }
    }

    #[test]
    fn an_attack_is_stopped_only_if_all_its_attempts_are() {
        let [stopped, succeeded, unknown] = [Outcome::Stopped, Outcome::Succeeded, Outcome::NotProven]
            .map(|outcome| move || outcome(String::new()));
        assert!(matches!(stopped().or_worse(stopped()), Outcome::Stopped(_)));
        for outcome in [stopped().or_worse(unknown()), unknown().or_worse(stopped())] {
            assert!(matches!(outcome, Outcome::NotProven(_)));
        }
        for outcome in [unknown().or_worse(succeeded()), succeeded().or_worse(stopped())] {
            assert!(outcome.has_succeeded());
        }
    }

    #[test]
    fn only_a_group_whose_attacks_all_ran_and_were_stopped_passes() {
        let passes = |outcomes: Outcomes| {
            let summary = outcomes.table_rows_and_not_stopped(&GROUP_OF_ONE_ATTACK);
            summary.is_ok_and(|(_, not_stopped)| not_stopped.is_empty())
        };
        let with_outcome = |outcome: Outcome| Outcomes(vec![("an-attack", outcome)]);
        assert!(passes(with_outcome(Outcome::Stopped(String::new()))));
        assert!(!passes(with_outcome(Outcome::Succeeded(String::new()))));
        assert!(!passes(with_outcome(Outcome::NotProven(String::new()))));
        assert!(!passes(Outcomes::default()));
    }
}
