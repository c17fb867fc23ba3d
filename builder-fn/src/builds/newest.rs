//! The newest builds in the histories of daemons, kept in memory for lists that follow each other.
//!
//! BuildKit decodes all of its records for each question to its history, whatever is asked: about 50 µs each, so that a
//! list took a second with 10,000 records. The first list of a daemon subscribes to its history and reads it once.
//! Later ones are answered from memory, which events of the history keep up to date, until nobody has asked for some
//! time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use function_host::ErrorChain;
use futures_util::TryStreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::buildkit::{
    BuildState, Cancellation, Daemon, HistoryChange, HistoryListing, ListedBuild, SealedSecrets,
};

/// The number of ended builds of one daemon to which the kept ones are reduced, once a quarter more are kept.
const ENDED_BUILDS_KEPT_BY_CLEANUP: u16 = 1000;

/// The limit on the requests to cancel builds of one daemon that are kept. At the limit, all are forgotten.
const CANCELLATIONS_MAX: usize = 10_000;

/// The time after the last list at which a history is not followed any more.
const UNASKED_TIME_MAX: Duration = Duration::from_secs(30);

/// The time for which a failure answers further lists, before the daemon is asked again.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The longest wait for a daemon's whole answer to the first question.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The newest builds in the histories of daemons. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct NewestBuilds(Arc<Mutex<HashMap<String, Follower>>>);

/// A daemon's history that is followed.
#[derive(Clone, Debug)]
struct Follower {
    state: Arc<Mutex<KeptBuilds>>,
    progress: watch::Receiver<ReadingProgress>,
}

/// How far a history has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadingProgress {
    /// The builds before the subscription are being read.
    Reading,
    /// The builds before the subscription have been read, and changes are followed.
    Complete,
    /// The history could not be read.
    Failed(String),
}

/// The builds of one daemon.
#[derive(Debug)]
struct KeptBuilds {
    /// The builds by the names of their attempts.
    builds: HashMap<String, ListedBuild>,
    cancellations: HashSet<Cancellation>,
    /// The time of the last list.
    asked: Instant,
}

impl NewestBuilds {
    /// Lists the builds of a tenant that run on a daemon, and the newest that have ended, without their sealed secrets.
    /// With `gives_up_connecting_soon`, fails sooner if the daemon's host does not answer.
    ///
    /// # Errors
    /// Fails with the reason if the daemon's history cannot be read.
    pub(super) async fn list(
        &self,
        daemon: &Daemon,
        tenant: &Option<String>,
        gives_up_connecting_soon: bool,
    ) -> Result<HistoryListing, String> {
        let follower = self.running_or_new_follower(daemon, gives_up_connecting_soon);
        let mut progress = follower.progress;
        let read = progress
            .wait_for(|progress| *progress != ReadingProgress::Reading)
            .await;
        match read.map(|progress| progress.clone()) {
            Ok(ReadingProgress::Complete) => {}
            Ok(ReadingProgress::Failed(error)) => return Err(error),
            Ok(ReadingProgress::Reading) | Err(_) => {
                return Err("BuildKit's history could not be read".to_owned());
            }
        }
        let mut kept = lock(&follower.state);
        kept.asked = Instant::now();
        let builds = kept.builds.values();
        let builds = builds.filter(|build| build.attributes.tenant == *tenant);
        let cancellations = kept.cancellations.iter();
        let cancellations = cancellations.filter(|cancellation| cancellation.tenant == *tenant);
        Ok(HistoryListing {
            builds: builds.cloned().collect(),
            cancellations: cancellations.cloned().collect(),
        })
    }

    /// Returns the follower of a daemon's history, and begins to follow it unless that goes on already.
    fn running_or_new_follower(&self, daemon: &Daemon, gives_up_connecting_soon: bool) -> Follower {
        let name = daemon.address_for_messages().to_owned();
        let mut followers = lock(&self.0);
        followers
            .entry(name.clone())
            .or_insert_with(|| {
                let (sender, progress) = watch::channel(ReadingProgress::Reading);
                let follower = Follower {
                    state: Arc::new(Mutex::new(KeptBuilds::new())),
                    progress,
                };
                let (all, state, daemon) = (self.clone(), follower.state.clone(), daemon.clone());
                tokio::spawn(async move {
                    if let Err(error) =
                        read_and_follow_until_idle(&daemon, gives_up_connecting_soon, &state, &sender).await
                    {
                        tracing::warn!(error, "could not follow BuildKit's history for lists of builds");
                        let failed = sender.send_if_modified(|progress| {
                            // What was read is still an answer to who has asked already.
                            let is_unanswered = *progress == ReadingProgress::Reading;
                            if is_unanswered {
                                *progress = ReadingProgress::Failed(error);
                            }
                            is_unanswered
                        });
                        if failed {
                            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                        }
                    }
                    // The next list begins anew.
                    lock(&all.0).remove(&name);
                });
                follower
            })
            .clone()
    }
}

/// Reads the history of a daemon and follows it, until nobody has asked for some time. Fails with the reason if it
/// cannot.
async fn read_and_follow_until_idle(
    daemon: &Daemon,
    gives_up_connecting_soon: bool,
    state: &Mutex<KeptBuilds>,
    progress: &watch::Sender<ReadingProgress>,
) -> Result<(), String> {
    let name = daemon.address_for_messages();
    let text = |status: tonic::Status| format!("{name}: {}", ErrorChain(&status));
    let reading = async {
        let connection = match gives_up_connecting_soon {
            true => daemon.connect_if_host_accepts_quickly().await,
            false => daemon.connect().await,
        };
        let connection = connection.map_err(|error| ErrorChain(&error).to_string())?;
        // Before the list, so that nothing is missed between the two.
        let changes = connection.watch_history().await.map_err(text)?;
        let listing = connection
            .list_builds(ENDED_BUILDS_KEPT_BY_CLEANUP)
            .await
            .map_err(text)?;
        Ok((connection, changes, listing))
    };
    let read = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, reading).await;
    let (_connection, mut changes, listing) =
        read.unwrap_or_else(|_| Err(format!("{name} does not answer in time")))?;
    {
        let mut kept = lock(state);
        listing
            .builds
            .into_iter()
            .for_each(|build| kept.insert_unless_running_after_end(build));
        kept.cancellations = listing.cancellations;
    }
    progress.send_replace(ReadingProgress::Complete);
    loop {
        let idle_at = lock(state).asked + UNASKED_TIME_MAX;
        tokio::select! {
            change = changes.try_next() => match change.map_err(text)? {
                Some(change) => lock(state).apply(change),
                None => return Err("BuildKit ended the stream of its history".to_owned()),
            },
            () = tokio::time::sleep_until(idle_at) => {
                if lock(state).asked.elapsed() >= UNASKED_TIME_MAX {
                    return Ok(());
                }
            }
        }
    }
}

impl KeptBuilds {
    fn new() -> Self {
        Self {
            builds: HashMap::new(),
            cancellations: HashSet::new(),
            asked: Instant::now(),
        }
    }

    fn apply(&mut self, change: HistoryChange) {
        match change {
            HistoryChange::Build(build) => self.insert_unless_running_after_end(*build),
            HistoryChange::Deleted(reference) => {
                if self.builds.remove(&reference).is_none() {
                    self.cancellations
                        .retain(|cancellation| cancellation.reference_of_marker() != reference);
                }
            }
            HistoryChange::Cancellation(cancellation) => {
                if self.cancellations.len() >= CANCELLATIONS_MAX {
                    self.cancellations.clear();
                }
                self.cancellations.insert(cancellation);
            }
        }
    }

    /// Keeps a build. One that has ended does not run again under the same name, whatever event comes last.
    fn insert_unless_running_after_end(&mut self, mut build: ListedBuild) {
        let known = self.builds.get(&build.reference);
        if build.state == BuildState::Running && known.is_some_and(|known| known.state != BuildState::Running)
        {
            return;
        }
        // They may be large, and a list shows no log that they would mask.
        if let SealedSecrets::Envelope(_) = build.secrets {
            build.secrets = SealedSecrets::Omitted;
        }
        self.builds.insert(build.reference.clone(), build);
        // A quarter more than the limit, so that the oldest are not searched for with each build.
        if self.builds.len() > usize::from(ENDED_BUILDS_KEPT_BY_CLEANUP) * 5 / 4 {
            self.forget_oldest_ended();
        }
    }

    fn forget_oldest_ended(&mut self) {
        let ended = self
            .builds
            .values()
            .filter(|build| build.state != BuildState::Running);
        let mut times: Vec<_> = ended.map(|build| build.started_at).collect();
        times.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(oldest) = times.get(usize::from(ENDED_BUILDS_KEPT_BY_CLEANUP)).copied() {
            self.builds
                .retain(|_, build| build.state == BuildState::Running || build.started_at > oldest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::buildkit::{SolveAttributes, StepCounts};

    fn build(number: u64, state: BuildState) -> ListedBuild {
        ListedBuild {
            daemon: Daemon::at("unix:///run/buildkitd.sock".parse().expect("address")),
            reference: number.to_string(),
            attributes: SolveAttributes {
                call_id: number.to_string(),
                signature: None,
                tenant: None,
                submitted_at: SystemTime::UNIX_EPOCH,
                function: None,
                supersede: true,
                commit: None,
                attempt: None,
            },
            image: None,
            state,
            is_cancelled: false,
            error: None,
            digest: None,
            started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(number)),
            ended_at: None,
            steps: StepCounts::default(),
            secrets: SealedSecrets::Envelope(vec![0; 100]),
        }
    }

    #[test]
    fn the_newest_and_the_running_builds_are_kept_with_their_sealed_secrets_omitted() {
        let mut kept = KeptBuilds::new();
        kept.insert_unless_running_after_end(build(0, BuildState::Running));
        for number in 1..=2000 {
            kept.insert_unless_running_after_end(build(number, BuildState::Succeeded));
        }
        assert!(kept.builds.len() <= usize::from(ENDED_BUILDS_KEPT_BY_CLEANUP) * 5 / 4);
        assert!(kept.builds.contains_key("0") && !kept.builds.contains_key("1"));
        assert!(
            (2000 - u64::from(ENDED_BUILDS_KEPT_BY_CLEANUP) + 1..=2000)
                .all(|number| kept.builds.contains_key(&number.to_string()))
        );
        assert!(
            kept.builds
                .values()
                .all(|build| build.secrets == SealedSecrets::Omitted)
        );
    }

    #[test]
    fn an_event_of_a_start_that_comes_late_does_not_hide_the_end() {
        let mut kept = KeptBuilds::new();
        for state in [BuildState::Running, BuildState::Failed, BuildState::Running] {
            kept.apply(HistoryChange::Build(Box::new(build(1, state))));
        }
        assert_eq!(kept.builds["1"].state, BuildState::Failed);
        kept.apply(HistoryChange::Deleted("1".into()));
        assert!(kept.builds.is_empty());
    }

    #[test]
    fn a_cancellation_is_forgotten_when_its_markers_record_is_deleted_from_the_history() {
        let mut kept = KeptBuilds::new();
        let cancellation = Cancellation {
            tenant: None,
            call_id: "call-1".into(),
        };
        kept.apply(HistoryChange::Cancellation(cancellation.clone()));
        kept.apply(HistoryChange::Deleted("another".into()));
        assert!(kept.cancellations.contains(&cancellation));
        kept.apply(HistoryChange::Deleted(cancellation.reference_of_marker()));
        assert!(kept.cancellations.is_empty());
    }
}
