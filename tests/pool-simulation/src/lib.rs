//! A simulation of a pool of BuildKit daemons, which places builds with the builder's own code.
//!
//! A crate of its own, so that its loops are optimised in tests too: the functions of builder-fn that they call are
//! inline.

use std::fmt;
use std::ops::Range;

use builder_fn::buildkit::{DaemonHashAndBuildCount, PlacementHash, busy_threshold, choose_daemon};

/// A pool and the functions that are built on it.
#[derive(Debug)]
pub struct Simulation {
    daemons: Vec<DaemonHashAndBuildCount>,
    functions: Vec<PlacementHash>,
}

/// How functions are spread over the daemons of an idle pool.
#[derive(Clone, Copy, Debug)]
pub struct FunctionsPerDaemon {
    /// The fewest functions of one daemon.
    pub least: usize,
    /// The most functions of one daemon.
    pub most: usize,
    /// The mean number of functions of one daemon.
    pub mean: f64,
}

/// What a further daemon changes.
#[derive(Clone, Copy, Debug)]
pub struct FractionsOfFunctionsMoved {
    /// The part of the functions that move to the further daemon.
    pub to_added: f64,
    /// The part of the functions that move between the others.
    pub between_others: f64,
}

impl Simulation {
    /// Creates a pool of `daemons` daemons, and `functions` functions.
    pub fn new(daemons: usize, functions: usize) -> Self {
        Self {
            daemons: (0..daemons).map(idle_daemon).collect(),
            functions: (0..functions)
                .map(|number| PlacementHash::of(&["", &format!("registry.example/team/function-{number}")]))
                .collect(),
        }
    }

    /// Returns the daemon of each function in an idle pool.
    pub fn place_on_idle_pool(&self) -> Vec<usize> {
        place_all(&self.daemons, &self.functions)
    }

    /// Returns how `placed`, the daemons of the functions, are spread.
    pub fn balance(&self, placed: &[usize]) -> FunctionsPerDaemon {
        let mut counts = vec![0; self.daemons.len()];
        for daemon in placed {
            counts[*daemon] += 1;
        }
        FunctionsPerDaemon {
            least: counts.iter().copied().min().unwrap_or_default(),
            most: counts.iter().copied().max().unwrap_or_default(),
            mean: placed.len() as f64 / self.daemons.len() as f64,
        }
    }

    /// Returns what a further daemon would change in `placed`, the daemons of the functions. The pool itself stays the
    /// same.
    pub fn fractions_moved_if_daemon_were_added(&self, placed: &[usize]) -> FractionsOfFunctionsMoved {
        let mut daemons = self.daemons.clone();
        let added = daemons.len();
        daemons.push(idle_daemon(added));
        let after = place_all(&daemons, &self.functions);
        let moved = || {
            placed
                .iter()
                .zip(&after)
                .filter(|(before, after)| before != after)
        };
        let to_added = moved().filter(|(_, after)| **after == added).count();
        let part = |count: usize| count as f64 / placed.len() as f64;
        FractionsOfFunctionsMoved {
            to_added: part(to_added),
            between_others: part(moved().count() - to_added),
        }
    }

    /// Builds `builds` functions once more, in another order, while `in_flight` builds run at a time, and returns the
    /// part of the builds that land on the daemon in `placed`, whose cache is warm.
    pub fn warm_fraction_of_rebuilds(&self, placed: &[usize], builds: usize, in_flight: usize) -> f64 {
        let mut daemons = self.daemons.clone();
        let mut running = std::collections::VecDeque::with_capacity(in_flight + 1);
        let limit = busy_threshold(in_flight, daemons.len());
        let mut hits = 0;
        for number in 0..builds {
            // A permutation: the factor is a prime number.
            let number = number.wrapping_mul(618_033_989).wrapping_add(17) % self.functions.len();
            let placement = choose_daemon(&daemons, self.functions[number], limit);
            let chosen = placement.map_or(0, |placement| placement.chosen);
            hits += usize::from(chosen == placed[number]);
            daemons[chosen].running += 1;
            running.push_back(chosen);
            if running.len() > in_flight
                && let Some(ended) = running.pop_front()
            {
                daemons[ended].running -= 1;
            }
        }
        hits as f64 / builds as f64
    }
}

fn idle_daemon(number: usize) -> DaemonHashAndBuildCount {
    DaemonHashAndBuildCount {
        hash: PlacementHash::of(&[&format!("tcp://buildkit-{number}.buildkit.openfaas:1234")]),
        running: 0,
    }
}

/// Returns the daemon of each function, computed by as many threads as there are processors.
fn place_all(daemons: &[DaemonHashAndBuildCount], functions: &[PlacementHash]) -> Vec<usize> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = functions.len().div_ceil(threads).max(1);
    let limit = busy_threshold(0, daemons.len());
    let place_part = |range: Range<usize>| -> Vec<usize> {
        functions[range]
            .iter()
            .map(|function| choose_daemon(daemons, *function, limit).map_or(0, |placement| placement.chosen))
            .collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..functions.len())
            .step_by(part)
            .map(|start| scope.spawn(move || place_part(start..(start + part).min(functions.len()))))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_default())
            .collect()
    })
}

impl fmt::Display for FunctionsPerDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, mean } = self;
        write!(f, "{least} to {most} functions a daemon, {mean:.0} on average")
    }
}

impl fmt::Display for FractionsOfFunctionsMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (added, others) = (self.to_added * 100.0, self.between_others * 100.0);
        write!(
            f,
            "{added:.3} % of the functions move to it, {others:.3} % between the others"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_daemons_and_a_million_functions_are_balanced_move_little_and_stay_warm() {
        let simulation = Simulation::new(1000, 1_000_000);
        let placed = simulation.place_on_idle_pool();

        let balance = simulation.balance(&placed);
        println!("idle pool: {balance}");
        // Five standard deviations of a binomial distribution with the mean 1,000.
        assert!(balance.least > 840 && balance.most < 1160, "{balance}");

        let movement = simulation.fractions_moved_if_daemon_were_added(&placed);
        println!("a further daemon: {movement}");
        assert!(movement.to_added < 1.2 / 1001.0, "{movement}");
        assert!(movement.between_others == 0.0, "{movement}");

        for (in_flight, expected) in [(500, 0.99), (1000, 0.97)] {
            let hits = simulation.warm_fraction_of_rebuilds(&placed, 100_000, in_flight);
            println!("{in_flight} builds at a time: {:.2} % warm", hits * 100.0);
            assert!(hits > expected, "{hits} with {in_flight} builds at a time");
        }
    }
}
