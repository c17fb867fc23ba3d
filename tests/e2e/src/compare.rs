//! Benchmark from context to pushed image: builder-fn against `buildctl`, with the same content and the same
//! daemon, in one run.
//!
//! Both push to the stack's registry with the same compression. Each round has new content, and each client its own
//! repository, so that no layer is in the registry already. The clients take turns in going first. The result is
//! the median of the rounds' ratios.
//!
//! Before each build that is timed alone, pending writes are flushed to the disk, and about as much memory as the
//! build needs is touched and freed. Otherwise a build pays for the writes of the one before it; and in a virtual
//! machine, the first access to a page can cost more than everything that is done with it.

mod folder;

use std::{fmt, fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use self::folder::UniqueContextFolder;
pub(crate) use self::folder::pseudorandom_content_ignoring_lowest_seed_bit;
use crate::{
    blocking_client, builder_process::BuilderProcess, buildkit::BuildkitDaemon, client::sign_body,
    registry::RegistryClient, testbed::Testbed,
};

/// The repository of builder-fn's images. `buildctl` has another: layers are equal, and the second client would
/// find them pushed already.
const BUILDER_FN_REPOSITORY: &str = "e2e/compare/builder-fn";

/// The repository of `buildctl`'s images.
const BUILDCTL_REPOSITORY: &str = "e2e/compare/buildctl";

/// The output options with which `buildctl` pushes the same format as builder-fn.
const BUILDCTL_ZSTD_OPTIONS: &str = ",compression=zstd,oci-mediatypes=true";

/// The shape of a context: a number of files of one size.
#[derive(Debug, Clone, Copy)]
pub struct ContextShape {
    /// The shape's name in the report.
    pub name: &'static str,
    /// The number of files in the context.
    pub files: usize,
    /// The size of each file in bytes.
    pub bytes: usize,
}

/// The shapes that the benchmark measures.
pub const MEASURED_SHAPES: [ContextShape; 3] = [
    ContextShape {
        name: "30 KB",
        files: 6,
        bytes: 5_000,
    },
    ContextShape {
        name: "10,000 x 4 KB",
        files: 10_000,
        bytes: 4_096,
    },
    ContextShape {
        name: "64 x 8 MiB",
        files: 64,
        bytes: 8 << 20,
    },
];

/// Small shapes for the test that the benchmark works.
pub const REDUCED_SHAPES: [ContextShape; 3] = [
    ContextShape {
        name: "30 KB",
        files: 6,
        bytes: 5_000,
    },
    ContextShape {
        name: "200 x 4 KB",
        files: 200,
        bytes: 4_096,
    },
    ContextShape {
        name: "2 x 1 MiB",
        files: 2,
        bytes: 1 << 20,
    },
];

/// The durations of one build by both clients, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct SecondsByClient {
    /// The seconds from sending to builder-fn until its answer, or until the last answer of concurrent builds.
    pub builder_fn: f64,
    /// The seconds that `buildctl` ran, or until the last process of concurrent builds ended.
    pub buildctl: f64,
}

/// The measurements of one shape.
#[derive(Debug, Default)]
pub struct ShapeMeasurements {
    /// The durations of builds with an empty cache.
    pub cold: Vec<SecondsByClient>,
    /// The durations of builds of unchanged content.
    pub warm: Vec<SecondsByClient>,
    /// The durations of builds after one file changed.
    pub changed: Vec<SecondsByClient>,
    /// The seconds that one processor takes to hash the body once.
    pub hash: Vec<f64>,
    /// The peak memory of builder-fn in bytes.
    pub peak: usize,
}

/// A comparison of the build times of builder-fn and `buildctl`, with a daemon of its own and the stack's registry.
pub struct SpeedComparison {
    testbed: Testbed,
    daemon: BuildkitDaemon,
    docker: tempfile::TempDir,
    /// The seed of the contexts' content, different in every run.
    salt: u64,
}

impl SpeedComparison {
    /// Starts a comparison with its own daemon, whose cache is empty.
    pub async fn start() -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let docker = tempfile::tempdir()?;
        let registry = &testbed.stack.registry;
        let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        fs::write(docker.path().join("config.json"), credentials)?;
        let salt = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos() as u64;
        Ok(Self {
            daemon: BuildkitDaemon::start(&testbed, "").await?,
            testbed,
            docker,
            salt,
        })
    }

    /// Measures cold, warm and changed builds of one shape; the clients take turns.
    pub async fn measure_shape(&self, shape: ContextShape, rounds: usize) -> Result<ShapeMeasurements> {
        let builder = self.start_builder().await?;
        let mut all = ShapeMeasurements::default();
        for round in 0..rounds {
            let folder = UniqueContextFolder::of_shape(shape, self.salt ^ ((round as u64) << 32))?;
            let changed = UniqueContextFolder::of_shape(shape, self.salt ^ ((round as u64) << 32))?;
            changed.change_content_and_time_of_one_file()?;
            let (first, second) = (
                folder.tar_for_builder(self, "zstd")?,
                changed.tar_for_builder(self, "zstd")?,
            );
            let begun = Instant::now();
            std::hint::black_box(Sha256::digest(&first));
            all.hash.push(begun.elapsed().as_secs_f64());
            let mut builder_fn = Vec::new();
            let mut buildctl = Vec::new();
            for turn in [round % 2, (round + 1) % 2] {
                self.prune_cache()?;
                let is_ours = turn == 0;
                for (tar, folder) in [(&first, &folder), (&first, &folder), (&second, &changed)] {
                    flush_disk_and_touch_three_times_tar_bytes(tar.len())?;
                    match is_ours {
                        true => builder_fn.push(self.seconds_with_builder(&builder, tar)?),
                        false => buildctl.push(self.seconds_with_buildctl(folder, BUILDCTL_ZSTD_OPTIONS)?),
                    }
                }
            }
            let pair = |at: usize| SecondsByClient {
                builder_fn: builder_fn[at],
                buildctl: buildctl[at],
            };
            all.cold.push(pair(0));
            all.warm.push(pair(1));
            all.changed.push(pair(2));
        }
        all.peak = builder.peak_memory_bytes()?;
        Ok(all)
    }

    /// Measures `builds` concurrent builds; the clients take turns. Returns the durations, and builder-fn's peak memory
    /// in bytes.
    pub async fn measure_concurrent_builds_and_peak_memory(
        &self,
        shape: ContextShape,
        builds: usize,
        rounds: usize,
    ) -> Result<(Vec<SecondsByClient>, usize)> {
        let builder = self.start_builder().await?;
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let salt = |build: usize| self.salt ^ ((1000 + round * builds + build) as u64);
            let folders = (0..builds)
                .map(|build| UniqueContextFolder::of_shape(shape, salt(build)))
                .collect::<Result<Vec<_>>>()?;
            let tars = folders
                .iter()
                .map(|folder| folder.tar_for_builder(self, "zstd"))
                .collect::<Result<Vec<_>>>()?;
            let mut pair = SecondsByClient {
                builder_fn: 0.0,
                buildctl: 0.0,
            };
            for turn in [round % 2, (round + 1) % 2] {
                self.prune_cache()?;
                let begun = Instant::now();
                if turn == 0 {
                    run_concurrently(&tars, |tar| self.seconds_with_builder(&builder, tar))?;
                    pair.builder_fn = begun.elapsed().as_secs_f64();
                } else {
                    run_concurrently(&folders, |folder| {
                        self.seconds_with_buildctl(folder, BUILDCTL_ZSTD_OPTIONS)
                    })?;
                    pair.buildctl = begun.elapsed().as_secs_f64();
                }
            }
            pairs.push(pair);
        }
        Ok((pairs, builder.peak_memory_bytes()?))
    }

    /// Measures cold builds of a local folder; each client uses its default compression. Returns the durations, and
    /// builder-fn's peak memory in bytes.
    pub async fn measure_folder_and_peak_memory(
        &self,
        source: &Path,
        rounds: usize,
    ) -> Result<(Vec<SecondsByClient>, usize)> {
        let builder = self.start_builder().await?;
        let mut pairs = Vec::new();
        for round in 0..rounds {
            let folder = UniqueContextFolder::with_source_in_subfolder(source, self.salt + round as u64)?;
            let tar = folder.tar_for_builder(self, "")?;
            let mut pair = SecondsByClient {
                builder_fn: 0.0,
                buildctl: 0.0,
            };
            for turn in [round % 2, (round + 1) % 2] {
                self.prune_cache()?;
                flush_disk_and_touch_three_times_tar_bytes(tar.len())?;
                match turn {
                    0 => pair.builder_fn = self.seconds_with_builder(&builder, &tar)?,
                    _ => pair.buildctl = self.seconds_with_buildctl(&folder, "")?,
                }
            }
            pairs.push(pair);
        }
        Ok((pairs, builder.peak_memory_bytes()?))
    }

    /// Starts a builder-fn that uses the comparison's daemon and accepts bodies of up to 4 GiB.
    async fn start_builder(&self) -> Result<BuilderProcess> {
        let most = (4u64 << 30).to_string();
        let settings = [
            ("buildkit_url", self.daemon.socket_url()),
            ("max_body", most.clone()),
            ("spool_limit", most),
        ];
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        BuilderProcess::start_with_settings(&self.testbed, &settings).await
    }

    /// Posts a tar to builder-fn; returns the seconds from the first byte sent to the end of the answer.
    /// Signing is not included.
    fn seconds_with_builder(&self, builder: &BuilderProcess, tar: &[u8]) -> Result<f64> {
        let key = fs::read(&self.testbed.stack.payload_secret)?;
        let signature = sign_body(key.trim_ascii(), tar)?;
        let begun = Instant::now();
        blocking_client::post_signed_tar_and_read_whole_answer(builder.url(), &signature, tar)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Builds a folder with `buildctl`; returns the seconds. `more_output_options` is appended to the output option and
    /// starts with a comma.
    fn seconds_with_buildctl(&self, folder: &UniqueContextFolder, more_output_options: &str) -> Result<f64> {
        let local = |name: &str| format!("{name}={}", folder.context_path().display());
        let image = self
            .testbed
            .image_name(BUILDCTL_REPOSITORY, &folder.salt.to_string());
        let begun = Instant::now();
        run_command(
            self.buildctl_command()
                .args(["build", "--progress=plain", "--frontend", "dockerfile.v0"])
                .args([
                    "--local",
                    &local("context"),
                    "--local",
                    &local("dockerfile"),
                    "--output",
                ])
                .arg(format!(
                    "type=image,name={image},push=true,registry.insecure=true{more_output_options}"
                )),
        )?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Removes everything from the daemon's cache.
    fn prune_cache(&self) -> Result<()> {
        run_command(self.buildctl_command().args(["prune", "--all"]))
    }

    fn buildctl_command(&self) -> Command {
        let mut command = Command::new(&self.testbed.stack.tools.buildctl);
        command
            .env("DOCKER_CONFIG", self.docker.path())
            .args(["--addr", &self.daemon.socket_url()]);
        command
    }
}

/// Gives every build the same initial state of the machine: flushes the disk and touches memory for the spooled
/// tar, the daemon's copy of its files and the layer.
pub(crate) fn flush_disk_and_touch_three_times_tar_bytes(tar_bytes: usize) -> Result<()> {
    run_command(&mut Command::new("sync"))?;
    std::hint::black_box(vec![1u8; 3 * tar_bytes]);
    Ok(())
}

/// Runs `build` for all items, each on its own thread.
fn run_concurrently<T: Sync>(all: &[T], build: impl Fn(&T) -> Result<f64> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| build(one))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result.map(drop),
            Err(_) => anyhow::bail!("a build panicked"),
        })
    })
}

/// Runs a command, and fails with its standard error unless it succeeds.
pub(crate) fn run_command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Returns the median, or NaN if there are no numbers.
fn median_or_nan(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => (numbers[count / 2 - 1] + numbers[count / 2]) / 2.0,
    }
}

/// The durations of builds, displayed as the median seconds of both clients and the median of their ratios.
pub struct DisplayedMedians<'a>(pub &'a [SecondsByClient]);

impl fmt::Display for DisplayedMedians<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |number: fn(&SecondsByClient) -> f64| median_or_nan(self.0.iter().map(number).collect());
        let (builder_fn, buildctl) = (of(|pair| pair.builder_fn), of(|pair| pair.buildctl));
        let ratio = of(|pair| pair.builder_fn / pair.buildctl);
        write!(f, "{builder_fn:.3} s / {buildctl:.3} s, ratio {ratio:.2}")
    }
}

impl fmt::Display for ShapeMeasurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  cold     {}", DisplayedMedians(&self.cold))?;
        writeln!(f, "  warm     {}", DisplayedMedians(&self.warm))?;
        let with_hash = self.warm.iter().zip(&self.hash);
        let with_hash = median_or_nan(
            with_hash
                .map(|(pair, hash)| pair.builder_fn / (pair.buildctl + hash))
                .collect(),
        );
        let hash = median_or_nan(self.hash.clone());
        writeln!(
            f,
            "           {with_hash:.2} x (buildctl + {hash:.3} s to hash the body once)"
        )?;
        writeln!(f, "  changed  {}", DisplayedMedians(&self.changed))?;
        write!(f, "  peak     {:.1} MiB", self.peak as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_displayed_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() {
        let pairs = [(1.0, 1.0), (10.0, 5.0), (3.0, 1.0)]
            .map(|(builder_fn, buildctl)| SecondsByClient { builder_fn, buildctl });
        assert_eq!(
            DisplayedMedians(&pairs).to_string(),
            "3.000 s / 1.000 s, ratio 2.00"
        );
        assert_eq!(median_or_nan(vec![4.0, 1.0]), 2.5);
    }
}
