//! Benchmark of Slipway as people run it: in its containers, with their limits, until the image is pushed or the new
//! version of a function answers.
//!
//! Each [scenario](scenario::Scenario) is measured on several [ways](contender::Contender) and against a reference:
//! `buildctl`, with the same content and the same daemon, followed by `faas-cli deploy` where a version has to answer.
//! In each round the contenders take turns, each with content of its own, so that no layer is pushed already. Before
//! each measurement, pending writes are flushed, and about as much memory as the build needs is touched: see
//! [`compare`](crate::compare).

mod contender;
mod page;
mod report;
mod scenario;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use crate::{
    blocking_client,
    build_context::BuildContext,
    client::sign_body,
    compare::{flush_disk_and_touch_three_times_tar_bytes, run_command},
    flood_benchmark::peak_memory_bytes,
    network_namespace::{NetworkNamespace, find_first_process},
    registry::RegistryClient,
    template_project::TemplateProject,
    testbed::Testbed,
};
pub use contender::Contender;
pub use report::{ScenarioMeasurements, report_as_json};
pub use scenario::{SCENARIOS, Scenario};

/// The benchmark of a running stack's own functions.
pub struct DeployedBenchmark {
    testbed: Testbed,
    runtime: Runtime,
    /// The name of the image that the measured functions are made from.
    base_image: String,
    /// The process of builder-fn in its container.
    builder_pid: u32,
    /// The URL of builder-fn at the address of its container.
    container_url: String,
    /// The folder with faas-cli's login.
    faas_cli_login: PathBuf,
    /// The folder with the Docker `config.json` of `buildctl`.
    docker: tempfile::TempDir,
    project: TemplateProject,
    /// A number that no earlier run had, for content that no cache knows.
    run: u128,
}

/// What one contender builds in one round, prepared before the time is taken.
struct PreparedBuild {
    input: BuildInput,
    image: String,
    /// The function that is deployed, and the page by which its new version is recognised.
    deployed: Option<(String, String)>,
}

/// What a contender is given.
enum BuildInput {
    /// A tar for builder-fn, and its signature.
    Tar { tar: Vec<u8>, signature: String },
    /// A folder for `buildctl`, and a tar to hash, because builder-fn verifies a signature and `buildctl` does not.
    Folder {
        folder: tempfile::TempDir,
        hashed: Option<Vec<u8>>,
    },
}

impl DeployedBenchmark {
    /// Finds the running stack and its builder-fn, and builds the base image.
    pub fn start() -> Result<Self> {
        let runtime = Runtime::new()?;
        let testbed = Testbed::find_running_stack()?;
        let base_image = runtime
            .block_on(testbed.build_busybox_once_and_get_name())?
            .to_owned();
        let faas_cli_login = runtime.block_on(testbed.stack.login_with_faas_cli_and_return_config_dir())?;
        let shim = find_first_process("containerd-shim-runc-v2", "builder-fn.")?;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        let builder_pid = children
            .split_whitespace()
            .next()
            .context("builder-fn does not run")?
            .parse()?;
        let addresses = NetworkNamespace::of_process(builder_pid)?.ipv4_addresses_with_loopback_last()?;
        let address = addresses.first().context("builder-fn has no address")?;
        let container_url = format!("http://{address}:8080");
        let docker = tempfile::tempdir()?;
        let registry = &testbed.stack.registry;
        let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
        fs::write(docker.path().join("config.json"), credentials)?;
        let run = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos();
        Ok(Self {
            project: TemplateProject::new(&testbed.stack)?,
            testbed,
            runtime,
            base_image,
            builder_pid,
            container_url,
            faas_cli_login,
            docker,
            run,
        })
    }

    /// Measures a scenario in `rounds` rounds, after one that is not measured, and removes its functions.
    pub fn measure(&self, scenario: Scenario, rounds: usize) -> Result<ScenarioMeasurements> {
        let contenders = scenario.contenders();
        let mut seconds = BTreeMap::<Contender, Vec<f64>>::new();
        // 5 resets the peak (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{}/clear_refs", self.builder_pid), "5")?;
        // What is the same in each round is prepared once: half a gigabyte takes seconds to make and to sign.
        let mut kept = BTreeMap::new();
        for round in 0..=rounds {
            for turn in 0..contenders.len() {
                let contender = contenders[(turn + round) % contenders.len()];
                let prepared = match kept.remove(&contender) {
                    Some(prepared) => prepared,
                    None => self.prepare(scenario, contender, round)?,
                };
                let taken = self
                    .run_and_time(contender, &prepared)
                    .with_context(|| format!("{}, {}", scenario.title(), contender.title()))?;
                if round > 0 {
                    seconds.entry(contender).or_default().push(taken);
                }
                if scenario.has_new_function_each_round() {
                    self.remove_function_if_deployed(&prepared)?;
                }
                if scenario.is_same_in_each_round() {
                    kept.insert(contender, prepared);
                } else if round == rounds {
                    self.remove_function_if_deployed(&prepared)?;
                }
            }
        }
        Ok(ScenarioMeasurements {
            scenario,
            seconds,
            builder_peak_bytes: peak_memory_bytes(self.builder_pid)?,
        })
    }

    /// Prepares what a contender builds in a round.
    fn prepare(&self, scenario: Scenario, contender: Contender, round: usize) -> Result<PreparedBuild> {
        let suffix = contender.name_part();
        let function = match scenario.has_new_function_each_round() {
            true => format!("bench-{}-{suffix}-{round}", scenario.name_part()),
            false => format!("bench-{}-{suffix}", scenario.name_part()),
        };
        // Longer each time, so that the size of the changed file changes (see `Scenario::context`).
        let page = format!("{} {suffix} {round}{}", self.run, ".".repeat(round));
        let context = match scenario.is_from_template() {
            true => self.context_from_template(&function, &page)?,
            false => scenario.context(&self.base_image, &page),
        };
        let image = self
            .testbed
            .image_name(&format!("bench/{function}"), &format!("r{round}"));
        let deployed = scenario.deploys_built_image().then(|| (function.clone(), page));
        let input = match contender {
            Contender::Reference => {
                let folder = tempfile::tempdir()?;
                context.write_to_folder(folder.path())?;
                let hashed = match scenario.is_same_in_each_round() {
                    true => Some(context.tar_without_config()?),
                    false => None,
                };
                BuildInput::Folder { folder, hashed }
            }
            _ => {
                let tar = context.tar_with_config_last(&self.build_config(scenario, &image, &function))?;
                let key = fs::read(&self.testbed.stack.payload_secret)?;
                let signature = sign_body(key.trim_ascii(), &tar)?;
                BuildInput::Tar { tar, signature }
            }
        };
        Ok(PreparedBuild {
            input,
            image,
            deployed,
        })
    }

    /// Returns the context of a function from the template, whose greeting is `page`.
    fn context_from_template(&self, function: &str, page: &str) -> Result<BuildContext> {
        if !self.project.function_folder(function).exists() {
            self.project.create_function(function)?;
        }
        self.project.write_starter_handler_with_greeting(function, page)?;
        self.project.shrinkwrap_function(function)
    }

    /// Returns the config of a build.
    fn build_config(&self, scenario: Scenario, image: &str, function: &str) -> Value {
        let mut config = json!({ "image": image });
        if scenario.is_from_template() {
            config["buildArgs"] = json!({ "RUST_IMAGE": self.testbed.stack.rust_image() });
        }
        if scenario.deploys_built_image() {
            config["deploy"] = json!({ "service": function });
        }
        config
    }

    /// Builds, and returns the seconds until the image was pushed, or until the new version answered through the
    /// gateway.
    fn run_and_time(&self, contender: Contender, prepared: &PreparedBuild) -> Result<f64> {
        let bytes = match &prepared.input {
            BuildInput::Tar { tar, .. } => tar.len(),
            BuildInput::Folder { hashed, .. } => hashed.as_ref().map_or(0, Vec::len),
        };
        flush_disk_and_touch_three_times_tar_bytes(bytes)?;
        let begun = Instant::now();
        let Some((function, text)) = &prepared.deployed else {
            self.build_and_deploy_if_prepared(contender, prepared)?;
            return Ok(begun.elapsed().as_secs_f64());
        };
        let url = self.testbed.functions.function_url(function);
        let has_failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let polling = scope.spawn(|| page::wait_for_root_page_containing(&url, text, &has_failed));
            let submitted = self.build_and_deploy_if_prepared(contender, prepared);
            has_failed.store(submitted.is_err(), Ordering::Relaxed);
            let answered = polling
                .join()
                .map_err(|_| anyhow::anyhow!("the poller panicked"))?;
            submitted?;
            Ok(answered?.duration_since(begun).as_secs_f64())
        })
    }

    /// Hands the build to the contender, and waits for its answer or its end.
    fn build_and_deploy_if_prepared(&self, contender: Contender, prepared: &PreparedBuild) -> Result<()> {
        match &prepared.input {
            BuildInput::Folder { folder, hashed } => {
                if let Some(hashed) = hashed {
                    std::hint::black_box(Sha256::digest(hashed));
                }
                self.build_with_buildctl(folder.path(), &prepared.image)?;
                match &prepared.deployed {
                    Some((function, _)) => self.deploy_with_faas_cli(function, &prepared.image),
                    None => Ok(()),
                }
            }
            BuildInput::Tar { tar, signature } => {
                let post =
                    |url: &str| blocking_client::post_signed_tar_and_read_whole_answer(url, signature, tar);
                let answer = match contender {
                    Contender::FunctionAddress => {
                        // The container's address can be reached from the stack's network only.
                        let stack = NetworkNamespace::of_process(self.testbed.stack.supervisor_pid()?)?;
                        stack.run_inside(|| post(&self.container_url))?
                    }
                    Contender::BuilderUrl => post(&self.testbed.stack.builder_url)?,
                    Contender::Gateway | Contender::Reference => {
                        post(&self.testbed.functions.function_url("builder-fn"))?
                    }
                };
                ensure!(
                    prepared.deployed.is_none() || answer.contains("\"ready\""),
                    "not deployed: {answer}"
                );
                Ok(())
            }
        }
    }

    /// Builds and pushes a folder with `buildctl`, as its documentation shows it.
    fn build_with_buildctl(&self, folder: &Path, image: &str) -> Result<()> {
        let context = folder.join("context");
        let local = |name: &str| format!("{name}={}", context.display());
        run_command(
            Command::new(&self.testbed.stack.tools.buildctl)
                .env("DOCKER_CONFIG", self.docker.path())
                .args(["--addr", &self.testbed.stack.buildkit_host])
                .args(["build", "--progress=plain", "--frontend", "dockerfile.v0"])
                .args(["--local", &local("context"), "--local", &local("dockerfile")])
                .args([
                    "--output",
                    &format!("type=image,name={image},push=true,registry.insecure=true"),
                ]),
        )
    }

    /// Deploys an image with faas-cli.
    fn deploy_with_faas_cli(&self, function: &str, image: &str) -> Result<()> {
        run_command(
            // In a folder without a stack.yml, whose functions would be deployed too.
            Command::new(&self.testbed.stack.tools.faas_cli)
                .current_dir(self.docker.path())
                .env("OPENFAAS_CONFIG", &self.faas_cli_login)
                .args(["deploy", "--gateway", &self.testbed.stack.gateway.url])
                .args(["--image", image, "--name", function]),
        )
    }

    fn remove_function_if_deployed(&self, prepared: &PreparedBuild) -> Result<()> {
        match &prepared.deployed {
            Some((function, _)) => self
                .runtime
                .block_on(self.testbed.functions.remove_function(function)),
            None => Ok(()),
        }
    }
}
