//! The placement of a build: the daemon that has it already, or else the one that it prefers among those that answer.

use std::sync::Arc;
use std::time::Duration;

use function_host::ErrorChain;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::member::{CountedBuildGuard, PoolMember};
use super::metrics::Diversion;
use super::question::{
    DaemonAnswer, HostAcceptTimeout, KnownAttempt, ask_about_build_retrying_if_short_timeout,
    is_known_to_run_build,
};
use super::{
    DaemonHashAndBuildCount, DaemonPool, EligibleDaemons, Members, PlacementHash, busy_threshold,
    choose_daemon,
};
use crate::buildkit::connection::{DAEMON_RESTART_GRACE, PAUSE_BETWEEN_RECONNECTS};
use crate::buildkit::{BuildReference, BuildState, Cancellation, ConnectError, Connection};

/// The limit on the daemons that are asked about a build: those that its image scores highest. Builds overflow to
/// these, and a daemon that is added moves an image down by one place.
const ASKED_DAEMONS_MAX: usize = 16;

/// The pauses between looks at the other daemons, from the start of a build on. Another builder that sees other daemons
/// may have begun the same build in the moment between question and start, or later, if it has fetched the context in
/// between.
const PAUSES_BETWEEN_LOOKS_FOR_SAME_BUILD: [Duration; 5] = [
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_secs(2),
    Duration::from_secs(6),
    Duration::from_secs(18),
];

/// A build that needs a daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuildToPlace<'a> {
    /// The hash of the tenant and the image, whose earlier builds a daemon's cache has.
    pub(crate) image: PlacementHash,
    /// The reference of the build.
    pub(crate) reference: &'a BuildReference,
    /// The tenant and the call of the build, as a request to cancel it would name them.
    pub(crate) call: &'a Cancellation,
    /// The daemons that the build may go to.
    pub(crate) daemons: &'a EligibleDaemons,
}

/// A build with its daemon. The build counts as running there until this is dropped.
pub(crate) struct PlacedBuildMaybeCancelled {
    /// The connection to the daemon.
    pub(crate) connection: Connection,
    /// The connections to the other daemons that answered.
    pub(crate) others: Vec<Connection>,
    /// The number of the first attempt that the daemon may know or may begin: earlier ones failed at other daemons.
    pub(crate) first_attempt: u32,
    /// Whether somebody asked to cancel the build.
    pub(crate) is_cancelled: bool,
    pool: DaemonPool,
    /// Counts the build as running on its daemon.
    _counted: CountedBuildGuard,
}

impl DaemonPool {
    /// Connects to the daemon that has the build, or else to the one that the build is to begin on, among those that it
    /// may go to. While no daemon
    /// answers and one refuses connections, tries again for 15 s.
    ///
    /// # Errors
    /// Fails with the error of the preferred daemon if none answers.
    pub(crate) async fn place_build(
        &self,
        build: BuildToPlace<'_>,
    ) -> Result<PlacedBuildMaybeCancelled, ConnectError> {
        let members = self.eligible_members(build.daemons).await;
        if let [only] = &*members {
            return self.place_on_only_daemon(only, build).await;
        }
        let deadline = Instant::now() + DAEMON_RESTART_GRACE;
        let mut accept_timeout = HostAcceptTimeout::Short;
        loop {
            let members = self.eligible_members(build.daemons).await;
            let asked = highest_scored_daemons_to_ask(&members, build.image, accept_timeout);
            let asking = asked.iter().map(|member| {
                ask_about_build_retrying_if_short_timeout(
                    (*member).clone(),
                    build.reference,
                    build.call,
                    accept_timeout,
                )
            });
            let mut answers = Vec::new();
            let mut errors = Vec::new();
            for (member, answer) in asked.iter().zip(join_all(asking).await) {
                match answer {
                    Ok(answer) => {
                        member.readmit();
                        answers.push(answer);
                    }
                    Err(error) => {
                        if !member.is_left_out() {
                            let error = ErrorChain(&error);
                            tracing::warn!(%error, "a BuildKit daemon does not answer and is left out");
                        }
                        member.leave_out();
                        errors.push(error);
                    }
                }
            }
            if !errors.is_empty() {
                self.make_lookup_due().await;
            }
            // A call that is delivered again. The daemons read all their records for it.
            let is_known = |answer: &DaemonAnswer| answer.is_recorded || !answer.attempts.is_empty();
            if answers.iter().any(is_known) {
                let reading = answers.iter_mut();
                join_all(reading.map(|answer| answer.read_attempts(build.reference, build.call))).await;
            }
            if let Some(placed) = self.choose_among(&members, answers, build) {
                return Ok(placed);
            }
            let is_restarting = errors.iter().any(ConnectError::is_refusal) && Instant::now() < deadline;
            match errors.into_iter().next() {
                Some(error) if accept_timeout == HostAcceptTimeout::Long && !is_restarting => {
                    return Err(error);
                }
                _ => {}
            }
            accept_timeout = HostAcceptTimeout::Long;
            tokio::time::sleep(PAUSE_BETWEEN_RECONNECTS).await;
        }
    }

    /// Returns the daemons of the pool that a build may go to; all of them if there are none of these any more.
    async fn eligible_members(&self, daemons: &EligibleDaemons) -> Members {
        let members = self.current_members().await;
        let eligible: Members = members
            .iter()
            .filter(|member| daemons.contain(member))
            .cloned()
            .collect();
        match eligible.is_empty() {
            true => members,
            false => eligible,
        }
    }

    /// Connects to the only daemon that a build may go to. It finds out itself whether it has the build.
    async fn place_on_only_daemon(
        &self,
        only: &Arc<PoolMember>,
        build: BuildToPlace<'_>,
    ) -> Result<PlacedBuildMaybeCancelled, ConnectError> {
        let connection = only.daemon.connect_despite_restart().await?;
        let is_cancelled = connection.is_cancellation_known_to_be_requested(build.call).await;
        if let Some(metrics) = self.0.metrics.get() {
            metrics.count_attempt_on_daemon(only.name(), None);
        }
        Ok(PlacedBuildMaybeCancelled {
            connection,
            others: Vec::new(),
            first_attempt: 1,
            is_cancelled,
            pool: self.clone(),
            _counted: only.count_build(),
        })
    }

    /// Chooses the daemon for a build among those that answered; `None` if none did.
    fn choose_among(
        &self,
        members: &Members,
        mut answers: Vec<DaemonAnswer>,
        build: BuildToPlace<'_>,
    ) -> Option<PlacedBuildMaybeCancelled> {
        let loads: Vec<_> = answers.iter().map(load_of).collect();
        let running = loads.iter().map(|load| load.running).sum();
        let placement = choose_daemon(&loads, build.image, busy_threshold(running, loads.len()))?;
        let holder = find_holder_index_and_attempt(&answers, build.reference);
        let (number, first_attempt) = match holder {
            Some((number, attempt)) => (number, attempt),
            None => (
                placement.chosen,
                attempt_after_those_on_other_daemons(&answers, placement.chosen),
            ),
        };
        let is_cancelled = answers.iter().any(|answer| answer.is_cancelled);
        let chosen = answers.swap_remove(number);
        if let Some(metrics) = self.0.metrics.get() {
            let diversion = match holder {
                Some(_) => None,
                None if placement.chosen != placement.preferred => Some(Diversion::Busy),
                None if prefers_another(members, &chosen.member, build.image) => Some(Diversion::Unreachable),
                None => None,
            };
            metrics.count_attempt_on_daemon(chosen.member.name(), diversion);
        }
        Some(PlacedBuildMaybeCancelled {
            _counted: chosen.member.count_build(),
            connection: chosen.connection,
            others: answers.into_iter().map(|answer| answer.connection).collect(),
            first_attempt,
            is_cancelled,
            pool: self.clone(),
        })
    }
}

impl PlacedBuildMaybeCancelled {
    /// Makes the next use of the pool look its daemons up, because the build was lost. If the daemon was lost, the next
    /// question finds that out; if only the connection was, it still runs other builds.
    pub(crate) async fn make_daemon_lookup_due_after_loss(&self) {
        self.pool.make_lookup_due().await;
    }

    /// Waits until a daemon that the reference scores higher is found to run the same build, and returns the daemon's
    /// name: this build is to give way. Waits for ever if none is found in half a minute. The other builder does not
    /// see it the other way round, so that one build is left.
    pub(crate) async fn wait_until_run_by_daemon_with_precedence(
        &self,
        reference: &BuildReference,
    ) -> String {
        let build = PlacementHash::of(&[&reference.to_string()]);
        let score = |connection: &Connection| {
            let name = connection.daemon().address_for_messages();
            PlacementHash::of(&[name]).score(build)
        };
        let own = score(&self.connection);
        for pause in PAUSES_BETWEEN_LOOKS_FOR_SAME_BUILD {
            tokio::time::sleep(pause).await;
            let better = self.others.iter().filter(|other| score(other) > own);
            let mut looking: FuturesUnordered<_> = better
                .map(|other| async move { is_known_to_run_build(other, reference).await.then_some(other) })
                .collect();
            while let Some(found) = looking.next().await {
                if let Some(other) = found {
                    return other.daemon().address_for_messages().to_owned();
                }
            }
        }
        std::future::pending().await
    }
}

/// Returns up to 16 daemons to ask about a build, the preferred one first. Those that are left out are asked only if
/// all are, or with [`HostAcceptTimeout::Long`].
fn highest_scored_daemons_to_ask(
    members: &Members,
    image: PlacementHash,
    accept_timeout: HostAcceptTimeout,
) -> Vec<Arc<PoolMember>> {
    let mut ranked: Vec<_> = members.to_vec();
    ranked.sort_by_key(|member| std::cmp::Reverse(member.hash.score(image)));
    let mut asked: Vec<_> = ranked
        .iter()
        .filter(|member| accept_timeout == HostAcceptTimeout::Long || !member.is_left_out())
        .take(ASKED_DAEMONS_MAX)
        .cloned()
        .collect();
    if asked.is_empty() {
        asked = ranked;
        asked.truncate(ASKED_DAEMONS_MAX);
    }
    asked
}

/// Returns the load of a daemon: the builds that it reports, or those of this process on it if these are more.
fn load_of(answer: &DaemonAnswer) -> DaemonHashAndBuildCount {
    DaemonHashAndBuildCount {
        hash: answer.member.hash,
        running: answer.running.max(answer.member.builds_of_this_process()),
    }
}

/// Returns the position among `answers` of the daemon that has the build, and the number of its attempt there: one that
/// runs, or else one that succeeded. If only one call may build the signature of the reference, any attempt counts,
/// because it may be another call's.
fn find_holder_index_and_attempt(
    answers: &[DaemonAnswer],
    reference: &BuildReference,
) -> Option<(usize, u32)> {
    let attempts = || {
        let attempts = answers.iter().enumerate();
        attempts.flat_map(|(number, answer)| answer.attempts.iter().map(move |attempt| (number, *attempt)))
    };
    let in_state = |state: BuildState| attempts().filter(move |(_, attempt)| attempt.state == state);
    // Of two that run, the one that the reference scores lower gives way, and is still listed for a moment.
    let build = PlacementHash::of(&[&reference.to_string()]);
    let score = |number: usize| answers.get(number).map(|answer| answer.member.hash.score(build));
    let running =
        in_state(BuildState::Running).max_by_key(|(number, attempt)| (score(*number), attempt.number));
    let found = running.or_else(|| in_state(BuildState::Succeeded).max_by_key(|(_, attempt)| attempt.number));
    let found = found.or_else(|| match reference.is_for_signature_alone() {
        // From the first one on, so that the job compares its call.
        true => attempts().min_by_key(|(_, attempt)| attempt.number),
        false => None,
    });
    found.map(|(number, attempt)| (number, attempt.number))
}

/// Returns the number of the attempt that may begin on the daemon `chosen`: the next one after all that failed on
/// others.
fn attempt_after_those_on_other_daemons(answers: &[DaemonAnswer], chosen: usize) -> u32 {
    let others = answers.iter().enumerate().filter(|(number, _)| *number != chosen);
    let failed = others.flat_map(|(_, answer)| &answer.attempts);
    let last = failed.map(|KnownAttempt { number, .. }| *number).max();
    last.map_or(1, |last| last + 1)
}

/// Returns whether the image prefers another daemon than `chosen`.
fn prefers_another(members: &Members, chosen: &PoolMember, image: PlacementHash) -> bool {
    let own = chosen.hash.score(image);
    members.iter().any(|member| member.hash.score(image) > own)
}
