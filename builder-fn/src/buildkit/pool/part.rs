//! Which daemons of a pool build for which platforms, and the parts of a build that go to different ones.
//!
//! A daemon that is bound to platforms builds for these only. One that is bound to none builds for every platform that
//! no bound daemon builds for.

use std::collections::BTreeSet;

use super::{DaemonPool, PoolMember};
use crate::buildkit::Platform;

/// The daemons of a pool that a build may go to: those that are bound to one of these lists of platforms. The empty
/// list stands for the daemons that are bound to none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EligibleDaemons(BTreeSet<Vec<Platform>>);

/// The part of a build whose platforms are built on the same daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildPart {
    /// The platforms of the part, as the config names them; empty for the daemon's own platform.
    pub(crate) platforms: Vec<String>,
    /// The daemons that the part may go to.
    pub(crate) daemons: EligibleDaemons,
}

/// No daemon of a pool builds for a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoDaemonForPlatform {
    /// The platform, as the config names it.
    pub(crate) platform: String,
    /// The platforms that daemons are bound to.
    pub(crate) bound: Vec<Platform>,
}

impl EligibleDaemons {
    /// Returns whether a build may go to this daemon.
    pub(super) fn contain(&self, member: &PoolMember) -> bool {
        self.0.contains(member.daemon.bound_platforms())
    }
}

impl DaemonPool {
    /// Splits a build for `platforms` into parts, each of which goes to one daemon. The order is that of the platforms.
    /// There is always at least one part, and only one if no daemon is bound to a platform.
    ///
    /// # Errors
    /// Fails if every daemon is bound, and none to one of the platforms.
    pub(crate) fn split_by_platform(
        &self,
        platforms: &[String],
    ) -> Result<Vec<BuildPart>, NoDaemonForPlatform> {
        let bindings = self.bindings_in_order();
        if platforms.is_empty() {
            return Ok(vec![BuildPart {
                platforms: Vec::new(),
                daemons: daemons_for_own_platform(&bindings),
            }]);
        }
        let mut parts: Vec<BuildPart> = Vec::new();
        for platform in platforms {
            let daemons = daemons_for_platform(&bindings, platform)?;
            match parts.iter_mut().find(|part| part.daemons == daemons) {
                Some(part) => part.platforms.push(platform.clone()),
                None => parts.push(BuildPart {
                    platforms: vec![platform.clone()],
                    daemons,
                }),
            }
        }
        Ok(parts)
    }

    /// Returns the largest number of parts that a build on this pool can have; 0 if no build can be split.
    pub(crate) fn max_parts_of_split_build(&self) -> u32 {
        let bindings = self.bindings_in_order();
        let bound: BTreeSet<_> = bindings.iter().flatten().collect();
        let unbound = bindings.iter().any(Vec::is_empty);
        match bound.len() + usize::from(unbound) {
            0 | 1 => 0,
            several => u32::try_from(several).unwrap_or(u32::MAX),
        }
    }

    /// Returns the different lists of platforms that daemons are bound to, in the order of the daemons.
    fn bindings_in_order(&self) -> Vec<Vec<Platform>> {
        let mut bindings: Vec<Vec<Platform>> = Vec::new();
        for member in self.0.members.borrow().iter() {
            let bound = member.daemon.bound_platforms();
            if !bindings.iter().any(|known| known == bound) {
                bindings.push(bound.to_vec());
            }
        }
        bindings
    }
}

/// Returns the daemons for a build that names no platform: those that are bound to none, or else those with the first
/// binding.
fn daemons_for_own_platform(bindings: &[Vec<Platform>]) -> EligibleDaemons {
    let unbound = bindings.iter().find(|binding| binding.is_empty());
    EligibleDaemons(unbound.or(bindings.first()).cloned().into_iter().collect())
}

/// Returns the daemons for `platform`: those bound to exactly that, or else to the architecture that it is a variant
/// of, or else those that are bound to none.
fn daemons_for_platform(
    bindings: &[Vec<Platform>],
    platform: &str,
) -> Result<EligibleDaemons, NoDaemonForPlatform> {
    let Some(wanted) = Platform::parse(platform) else {
        // Its architecture is the daemon's own.
        return Ok(daemons_for_own_platform(bindings));
    };
    let bound_to = |accepts: &dyn Fn(&Platform) -> bool| {
        let found = bindings.iter().filter(|binding| binding.iter().any(accepts));
        EligibleDaemons(found.cloned().collect())
    };
    let exact = bound_to(&|bound| *bound == wanted);
    let found = match exact.0.is_empty() {
        true => bound_to(&|bound| bound.includes(&wanted)),
        false => exact,
    };
    if !found.0.is_empty() {
        return Ok(found);
    }
    match bindings.iter().find(|binding| binding.is_empty()) {
        Some(unbound) => Ok(EligibleDaemons([unbound.clone()].into())),
        None => Err(NoDaemonForPlatform {
            platform: platform.to_owned(),
            bound: bindings.iter().flatten().cloned().collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::{Daemon, DaemonAddress};

    /// Creates a pool of daemons with these bindings, which are platforms separated by spaces.
    fn pool(bindings: &[&str]) -> DaemonPool {
        let daemons = bindings.iter().enumerate().map(|(number, platforms)| {
            let daemon = Daemon::at(DaemonAddress::Unix(format!("/{number}").into()));
            let platforms = platforms.split_whitespace().map(Platform::parse);
            daemon.bound_to(platforms.map(|platform| platform.expect("a platform")))
        });
        DaemonPool::of_daemons("pool", daemons).expect("there are daemons")
    }

    /// Returns the parts of a build: their platforms, and the daemons that each may go to.
    fn split(bindings: &[&str], platforms: &[&str]) -> Vec<(String, String)> {
        let pool = pool(bindings);
        let platforms: Vec<_> = platforms.iter().map(ToString::to_string).collect();
        let parts = pool.split_by_platform(&platforms).expect("daemons for all");
        assert!(parts.len() <= pool.max_parts_of_split_build().max(1) as usize);
        let members = pool.0.members.borrow().clone();
        let numbers = |part: &BuildPart| {
            let eligible = members
                .iter()
                .enumerate()
                .filter(|(_, member)| part.daemons.contain(member));
            let numbers: Vec<_> = eligible.map(|(number, _)| number.to_string()).collect();
            numbers.join(" ")
        };
        parts
            .iter()
            .map(|part| (part.platforms.join(" "), numbers(part)))
            .collect()
    }

    #[test]
    fn each_platform_of_a_build_goes_to_the_daemons_that_are_bound_to_it() {
        for (bindings, platforms, expected) in [
            (
                &["", ""][..],
                &["linux/amd64", "linux/arm64"][..],
                &[("linux/amd64 linux/arm64", "0 1")][..],
            ),
            (&["", ""], &[], &[("", "0 1")]),
            (&["", "arm64"], &[], &[("", "0")]),
            (&["", "arm64"], &["linux/arm64/v8"], &[("linux/arm64/v8", "1")]),
            (
                &["", "arm64", "arm64"],
                &["linux/arm64", "linux/amd64", "linux/s390x"],
                &[("linux/arm64", "1 2"), ("linux/amd64 linux/s390x", "0")],
            ),
            (&["amd64", "arm64"], &[], &[("", "0")]),
            (&["amd64", "arm64"], &["linux"], &[("linux", "0")]),
            (
                &["amd64", "arm64"],
                &["linux/amd64/v3"],
                &[("linux/amd64/v3", "0")],
            ),
            (
                &["amd64", "linux/amd64/v3"],
                &["linux/amd64/v3"],
                &[("linux/amd64/v3", "1")],
            ),
            // One daemon for several platforms builds them together, unless another one takes some of them too.
            (
                &["", "arm64 linux/arm/v7"],
                &["linux/arm64", "linux/arm/v7"],
                &[("linux/arm64 linux/arm/v7", "1")],
            ),
            (
                &["", "arm64 linux/arm/v7", "arm64"],
                &["linux/arm64", "linux/arm/v7"],
                &[("linux/arm64", "1 2"), ("linux/arm/v7", "1")],
            ),
        ] {
            let parts = split(bindings, platforms);
            let parts: Vec<_> = parts
                .iter()
                .map(|(platforms, numbers)| (&**platforms, &**numbers))
                .collect();
            assert_eq!(parts, expected, "{bindings:?} {platforms:?}");
        }
    }

    #[test]
    fn a_platform_that_no_daemon_builds_for_is_named_with_those_that_there_are() {
        let error = pool(&["amd64", "arm64"]).split_by_platform(&["linux/s390x".into()]);
        let error = error.expect_err("no daemon");
        assert_eq!(error.platform, "linux/s390x");
        assert_eq!(
            error.bound,
            ["amd64", "arm64"].map(|name| Platform::parse(name).expect(name))
        );
    }
}
