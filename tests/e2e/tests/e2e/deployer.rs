//! deployer-fn on the real gateway and provider: what the provider does well, and what it does badly.
//!
//! Each case is run twice. The embedded provider treats the functions of `good` well: a failed update changes nothing. It
//! treats those of `faasd` as faasd 0.19 does: an update deletes first, and a failed update leaves nothing. faasd itself
//! treats both alike.

mod kills;
mod outcomes;
mod restarts;
mod secured;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    cable::Cable, client::Reply, deployer::PlainDeployer, shared::Bench, source::Source, turnstile::Turnstile,
};
use slipway_stack::Part;
use tokio::sync::{OnceCell, RwLockReadGuard, RwLockWriteGuard};

/// The annotation by which the embedded provider has other manners for one function.
const MANNERS: &str = "dev.slipway.manners";

/// Makes a test of each function, in both manners.
macro_rules! in_both_manners {
    ($($case:ident),* $(,)?) => {
        mod good {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                super::$case("good").await
            })*
        }
        mod faasd {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                super::$case("faasd").await
            })*
        }
    };
}
use in_both_manners;

/// What may be asked to run, by digest.
#[derive(Debug)]
struct Images {
    /// Answers with its name.
    first: String,
    /// Answers with its name.
    second: String,
    /// Ends at once, with an error.
    crash: String,
    /// Runs, and never listens.
    silent: String,
    /// Is not in the registry.
    absent: String,
}

static IMAGES: OnceCell<Images> = OnceCell::const_new();

impl Images {
    async fn build(bench: &Bench) -> Result<Self> {
        let base = bench.busybox().await?;
        let runs = |command: &str| {
            Source::dockerfile(format!(
                "FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"{command}\"]\n"
            ))
        };
        let repository = |name: &str| format!("{}/e2e/deployed/{name}", bench.stack.registry.host);
        let pushed = async |name: &str, source: Source| {
            let tar = source.tar(&json!({ "image": format!("{}:1", repository(name)) }))?;
            let reply = bench.builder.post(tar).await?;
            anyhow::ensure!(reply.status == 200, "{name}: {} {}", reply.status, reply.text);
            anyhow::Ok(format!("{}@{}", repository(name), reply.field("digest")))
        };
        Ok(Self {
            first: pushed("first", Source::pages(base, "first")).await?,
            second: pushed("second", Source::pages(base, "second")).await?,
            crash: pushed("crash", runs("exit 3")).await?,
            silent: pushed("silent", runs("trap 'exit 0' TERM; sleep 3600 & wait")).await?,
            absent: format!("{}@sha256:{}", repository("first"), "0".repeat(64)),
        })
    }
}

/// One function to be, with a deployer of its own whose gateway is behind a door.
struct Site {
    bench: Bench,
    images: &'static Images,
    door: Turnstile,
    /// Between the door and the gateway, where the stack's parts are somebody else's.
    cable: Option<Cable>,
    deployer: PlainDeployer,
    settings: Vec<Setting>,
    name: String,
    manners: &'static str,
    _parts: Parts,
}

/// What keeps other tests from stopping parts, or from needing them.
enum Parts {
    Shared { _held: RwLockReadGuard<'static, ()> },
    Alone { _held: RwLockWriteGuard<'static, ()> },
}

type Setting = (&'static str, &'static str);

impl Site {
    /// There is no such function at first.
    async fn open(case: &str, manners: &'static str, settings: &[Setting]) -> Result<Self> {
        let bench = Bench::find()?;
        let parts = Parts::Shared {
            _held: bench.undisturbed().await,
        };
        Self::open_with(bench, parts, case, manners, settings).await
    }

    /// As [`open`](Self::open), for a test that stops parts.
    async fn open_alone(case: &str, manners: &'static str, settings: &[Setting]) -> Result<Self> {
        let bench = Bench::find()?;
        let parts = Parts::Alone {
            _held: bench.alone().await,
        };
        Self::open_with(bench, parts, case, manners, settings).await
    }

    async fn open_with(
        bench: Bench,
        parts: Parts,
        case: &str,
        manners: &'static str,
        settings: &[Setting],
    ) -> Result<Self> {
        let images = IMAGES.get_or_try_init(|| Images::build(&bench)).await?;
        let name = format!("{case}-{manners}");
        bench.functions.remove(&name).await?;
        let cable = match bench.stack.has_parts() {
            true => None,
            false => Some(Cable::to(&bench.stack.gateway.url).await?),
        };
        let gateway = cable
            .as_ref()
            .map_or(bench.stack.gateway.url.as_str(), Cable::url);
        let door = Turnstile::before(gateway).await?;
        let deployer = PlainDeployer::start(&bench, door.url(), settings).await?;
        Ok(Self {
            bench,
            images,
            door,
            cable,
            deployer,
            settings: settings.to_vec(),
            name,
            manners,
            _parts: parts,
        })
    }

    /// Takes the provider away: to the deployer, one that is somebody else's is where no call gets through to it.
    async fn take_the_provider(&self) -> Result<()> {
        match &self.cable {
            None => Ok(self.bench.stack.stop(Part::Provider).await?),
            Some(cable) => {
                cable.cut();
                Ok(())
            }
        }
    }

    /// Gives it back.
    async fn give_the_provider_back(&self) -> Result<()> {
        match &self.cable {
            None => Ok(self.bench.stack.start(Part::Provider).await?),
            Some(cable) => {
                cable.mend();
                Ok(())
            }
        }
    }

    /// What the builder would hand over. Of two, the one with the greater number is the newer build.
    fn hand_over(&self, image: &str, number: usize) -> Value {
        json!({
            "image": image,
            "callId": format!("{}-{number}", self.name),
            "builtAt": format!("2026-01-01T00:{:02}:{:02}Z", number / 60, number % 60),
            "deploy": {
                "service": self.name,
                "envVars": { "NUMBER": number.to_string() },
                "annotations": { MANNERS: self.manners },
            },
        })
    }

    /// Has this image deployed as the build of this number.
    async fn deploy(&self, image: &str, number: usize) -> Result<Reply> {
        self.deployer.deploy(&self.hand_over(image, number)).await
    }

    /// As [`deploy`](Self::deploy), and it has to be ready.
    async fn ready(&self, image: &str, number: usize) -> Result<Value> {
        let reply = self.deploy(image, number).await?;
        anyhow::ensure!(reply.status == 200, "{number}: {} {}", reply.status, reply.text);
        let report = reply.json();
        assert_eq!(report["status"], "ready", "{report:#}");
        assert_eq!(report["image"], image, "{report:#}");
        assert_eq!(report["running"]["image"], image, "{report:#}");
        self.runs(image, number).await?;
        Ok(report)
    }

    /// The build of this number is what the provider names and what answers.
    async fn runs(&self, image: &str, number: usize) -> Result<()> {
        let status = self.status().await?;
        assert_eq!(status["image"], image, "{status:#}");
        assert_eq!(status["envVars"]["NUMBER"], number.to_string(), "{status:#}");
        let page = match image {
            image if image == self.images.first => "first",
            _ => "second",
        };
        let answer = self.bench.functions.page(&self.name).await?;
        assert_eq!(answer, (200, page.to_owned()));
        Ok(())
    }

    async fn status(&self) -> Result<Value> {
        let status = self.bench.functions.status(&self.name).await?;
        status.with_context(|| format!("there is no function {}", self.name))
    }

    async fn is_absent(&self) -> Result<bool> {
        Ok(self.bench.functions.status(&self.name).await?.is_none())
    }

    /// Another deployer, with nothing in its memory.
    async fn restart_deployer(mut self) -> Result<Self> {
        let deployer = PlainDeployer::start(&self.bench, self.door.url(), &self.settings).await?;
        std::mem::replace(&mut self.deployer, deployer).kill()?;
        Ok(self)
    }

    async fn close(self) -> Result<()> {
        self.bench.functions.remove(&self.name).await
    }
}

/// A build was not brought to run, and what was there before runs. The embedded provider in its good manners sees by itself
/// that a version does not start: it refuses the update, and nothing is changed.
fn assert_not_taken(reply: &Reply, before: &str) {
    let report = reply.json();
    assert_eq!(reply.status, 422, "{report:#}");
    let status = match report["changed"].as_bool() {
        Some(true) => "rolled_back",
        _ => report["status"].as_str().unwrap_or_default(),
    };
    assert!(matches!(status, "rolled_back" | "refused"), "{report:#}");
    assert_eq!(report["status"], status, "{report:#}");
    assert_eq!(report["running"]["image"], before, "{report:#}");
}

/// The reasons of a report, in one text.
fn reasons(report: &Value) -> String {
    let reasons = report["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}
