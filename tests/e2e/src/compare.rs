//! Source to pushed image by builder-fn and by `buildctl`, on the same content, the same daemon and in the same run.
//!
//! Both push to the stack's registry with the same compression. Each round has content of its own, and each of the two a
//! repository of its own, so that no layer is there already; and they take turns in being first. What is compared is the median
//! of the rounds' ratios.
//!
//! Before each build that is compared alone, what was written before it goes to the disk, and memory is touched and given back, about as much as
//! the build takes. Otherwise a build pays for the one before it; and in a virtual machine the first touch of a page can cost
//! more than all that is done with it.

mod folder;

use std::{fmt, fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use self::folder::Folder;
use crate::{
    buildkit::Buildkit, client::signature, plain::PlainBuilder, registry::Registry, sender, shared::Bench,
};

/// Where builder-fn pushes to. Not where `buildctl` does: layers are equal, and the second to push one would find it there.
const OURS: &str = "e2e/compare/builder-fn";

/// Where `buildctl` pushes to.
const THEIRS: &str = "e2e/compare/buildctl";

/// What makes `buildctl` push what builder-fn does.
const ZSTD: &str = ",compression=zstd,oci-mediatypes=true";

/// A context to build from: so many files of such a size.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    /// Files.
    pub files: usize,
    /// Bytes in each.
    pub bytes: usize,
}

/// What the issue of speed is judged by.
pub const SHAPES: [Shape; 3] = [
    Shape {
        name: "30 KB",
        files: 6,
        bytes: 5_000,
    },
    Shape {
        name: "10,000 x 4 KB",
        files: 10_000,
        bytes: 4_096,
    },
    Shape {
        name: "64 x 8 MiB",
        files: 64,
        bytes: 8 << 20,
    },
];

/// The same in small, which shows that the comparison works.
pub const REDUCED: [Shape; 3] = [
    Shape {
        name: "30 KB",
        files: 6,
        bytes: 5_000,
    },
    Shape {
        name: "200 x 4 KB",
        files: 200,
        bytes: 4_096,
    },
    Shape {
        name: "2 x 1 MiB",
        files: 2,
        bytes: 1 << 20,
    },
];

/// Seconds that one build took.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// By builder-fn.
    pub ours: f64,
    /// By `buildctl`.
    pub theirs: f64,
}

/// The rounds of one shape.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Nothing is in the daemon's cache.
    pub cold: Vec<Pair>,
    /// Nothing has changed.
    pub warm: Vec<Pair>,
    /// One file has.
    pub changed: Vec<Pair>,
    /// Seconds to hash the body once, on one processor.
    pub hash: Vec<f64>,
    /// The most memory that builder-fn had, in bytes.
    pub peak: usize,
}

/// The daemon, the two clients and the registry.
pub struct Comparison {
    bench: Bench,
    daemon: Buildkit,
    docker: tempfile::TempDir,
    /// Makes the content of every run another one.
    salt: u64,
}

impl Comparison {
    /// With a daemon of its own, whose cache is empty.
    pub async fn start() -> Result<Self> {
        let bench = Bench::find()?;
        let docker = tempfile::tempdir()?;
        let registry = &bench.stack.registry;
        let credentials = Registry::docker_config(&registry.host, &registry.user, &registry.password);
        fs::write(docker.path().join("config.json"), credentials)?;
        let salt = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos() as u64;
        Ok(Self {
            daemon: Buildkit::start(&bench, "").await?,
            bench,
            docker,
            salt,
        })
    }

    /// Cold, warm and with one file changed, by both in turns.
    pub async fn rounds(&self, shape: Shape, rounds: usize) -> Result<Rounds> {
        let builder = self.builder().await?;
        let mut all = Rounds::default();
        for round in 0..rounds {
            let folder = Folder::new(shape, self.salt ^ ((round as u64) << 32))?;
            let changed = Folder::new(shape, self.salt ^ ((round as u64) << 32))?;
            changed.change()?;
            let (first, second) = (folder.tar(self, "zstd")?, changed.tar(self, "zstd")?);
            let begun = Instant::now();
            std::hint::black_box(Sha256::digest(&first));
            all.hash.push(begun.elapsed().as_secs_f64());
            let mut ours = Vec::new();
            let mut theirs = Vec::new();
            for turn in [round % 2, (round + 1) % 2] {
                self.prune()?;
                let is_ours = turn == 0;
                for (tar, folder) in [(&first, &folder), (&first, &folder), (&second, &changed)] {
                    settle(tar.len())?;
                    match is_ours {
                        true => ours.push(self.post(&builder, tar)?),
                        false => theirs.push(self.buildctl(folder, ZSTD)?),
                    }
                }
            }
            let pair = |at: usize| Pair {
                ours: ours[at],
                theirs: theirs[at],
            };
            all.cold.push(pair(0));
            all.warm.push(pair(1));
            all.changed.push(pair(2));
        }
        all.peak = builder.peak_memory()?;
        Ok(all)
    }

    /// So many builds at once, by both in turns.
    pub async fn at_once(&self, shape: Shape, builds: usize, rounds: usize) -> Result<(Vec<Pair>, usize)> {
        let builder = self.builder().await?;
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let salt = |build: usize| self.salt ^ ((1000 + round * builds + build) as u64);
            let folders = (0..builds)
                .map(|build| Folder::new(shape, salt(build)))
                .collect::<Result<Vec<_>>>()?;
            let tars = folders
                .iter()
                .map(|folder| folder.tar(self, "zstd"))
                .collect::<Result<Vec<_>>>()?;
            let mut pair = Pair {
                ours: 0.0,
                theirs: 0.0,
            };
            for turn in [round % 2, (round + 1) % 2] {
                self.prune()?;
                let begun = Instant::now();
                if turn == 0 {
                    all_at_once(&tars, |tar| self.post(&builder, tar))?;
                    pair.ours = begun.elapsed().as_secs_f64();
                } else {
                    all_at_once(&folders, |folder| self.buildctl(folder, ZSTD))?;
                    pair.theirs = begun.elapsed().as_secs_f64();
                }
            }
            pairs.push(pair);
        }
        Ok((pairs, builder.peak_memory()?))
    }

    /// A folder of this machine, cold: builder-fn and `buildctl` each with its own default compression.
    pub async fn folder(&self, source: &Path, rounds: usize) -> Result<(Vec<Pair>, usize)> {
        let builder = self.builder().await?;
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let folder = Folder::copy(source, self.salt + round as u64)?;
            let tar = folder.tar(self, "")?;
            let mut pair = Pair {
                ours: 0.0,
                theirs: 0.0,
            };
            for turn in [round % 2, (round + 1) % 2] {
                self.prune()?;
                settle(tar.len())?;
                match turn {
                    0 => pair.ours = self.post(&builder, &tar)?,
                    _ => pair.theirs = self.buildctl(&folder, "")?,
                }
            }
            pairs.push(pair);
        }
        Ok((pairs, builder.peak_memory()?))
    }

    async fn builder(&self) -> Result<PlainBuilder> {
        let most = (4u64 << 30).to_string();
        let settings = [
            ("buildkit_url", self.daemon.url()),
            ("max_body", most.clone()),
            ("spool_limit", most),
        ];
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        PlainBuilder::with_settings(&self.bench, &settings).await
    }

    /// From the first byte sent to the answer. The signature is made before.
    fn post(&self, builder: &PlainBuilder, tar: &[u8]) -> Result<f64> {
        let key = fs::read(&self.bench.stack.payload_secret)?;
        let signature = signature(key.trim_ascii(), tar)?;
        let begun = Instant::now();
        sender::post(builder.url(), &signature, tar)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// `more` goes with the output as it is, and so has a comma before it.
    fn buildctl(&self, folder: &Folder, more: &str) -> Result<f64> {
        let local = |name: &str| format!("{name}={}", folder.path().display());
        let image = self.bench.image(THEIRS, &folder.salt.to_string());
        let begun = Instant::now();
        run(self
            .command()
            .args(["build", "--progress=plain", "--frontend", "dockerfile.v0"])
            .args([
                "--local",
                &local("context"),
                "--local",
                &local("dockerfile"),
                "--output",
            ])
            .arg(format!(
                "type=image,name={image},push=true,registry.insecure=true{more}"
            )))?;
        Ok(begun.elapsed().as_secs_f64())
    }

    fn prune(&self) -> Result<()> {
        run(self.command().args(["prune", "--all"]))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.bench.stack.tools.buildctl);
        command
            .env("DOCKER_CONFIG", self.docker.path())
            .args(["--addr", &self.daemon.url()]);
        command
    }
}

/// Puts the machine into the same state for every build. The memory is that for a spooled tar, for the daemon's copy of its
/// files, and for the layer.
fn settle(tar: usize) -> Result<()> {
    run(&mut Command::new("sync"))?;
    std::hint::black_box(vec![1u8; 3 * tar]);
    Ok(())
}

/// Does the same with all of them, each on a thread of its own.
fn all_at_once<T: Sync>(all: &[T], build: impl Fn(&T) -> Result<f64> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| build(one))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result.map(drop),
            Err(_) => anyhow::bail!("a build panicked"),
        })
    })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => (numbers[count / 2 - 1] + numbers[count / 2]) / 2.0,
    }
}

/// Median seconds of both, and the median of their ratios.
pub struct Medians<'a>(pub &'a [Pair]);

impl fmt::Display for Medians<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |number: fn(&Pair) -> f64| median(self.0.iter().map(number).collect());
        let (ours, theirs) = (of(|pair| pair.ours), of(|pair| pair.theirs));
        let ratio = of(|pair| pair.ours / pair.theirs);
        write!(f, "{ours:.3} s / {theirs:.3} s, ratio {ratio:.2}")
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  cold     {}", Medians(&self.cold))?;
        writeln!(f, "  warm     {}", Medians(&self.warm))?;
        let with_hash = self.warm.iter().zip(&self.hash);
        let with_hash = median(
            with_hash
                .map(|(pair, hash)| pair.ours / (pair.theirs + hash))
                .collect(),
        );
        let hash = median(self.hash.clone());
        writeln!(
            f,
            "           {with_hash:.2} x (buildctl + {hash:.3} s to hash the body once)"
        )?;
        writeln!(f, "  changed  {}", Medians(&self.changed))?;
        write!(f, "  peak     {:.1} MiB", self.peak as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_ratios_and_not_ratios_of_medians() {
        let pairs = [(1.0, 1.0), (10.0, 5.0), (3.0, 1.0)].map(|(ours, theirs)| Pair { ours, theirs });
        assert_eq!(Medians(&pairs).to_string(), "3.000 s / 1.000 s, ratio 2.00");
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }
}
