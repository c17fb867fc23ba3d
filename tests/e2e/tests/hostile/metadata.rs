//! Attacks that try to reach metadata services and private addresses: by address, by name, by redirect, and by names
//! whose address changes.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::{
    bait_server::{BAIT_TEXT, BaitServer},
    build_context::BuildContext,
    changing_dns::{ChangingDns, ChangingName},
    crafted_layer::CraftedLayerBuilder,
    network_namespace::{NetworkNamespace, find_first_process},
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes, concat_attacks},
    probe::{self, ScriptAttack},
    world::AttackWorld,
};

/// The metadata addresses of clouds; [`AWS_METADATA_ADDRESS`] first.
const METADATA_ADDRESSES: [&str; 6] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "168.63.129.16",
    "100.100.100.200",
    "fd00:ec2::254",
];

const AWS_METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The loopback address of the test's resolver in the daemon's network.
const RESOLVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

/// An address for documentation (RFC 5737), which this machine has during the test: a public server of the attacker's.
const PUBLIC_TEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

/// The name whose address changes from one that the attacker may read to that of a metadata service.
const REBINDING_NAME: &str = "files.hostile.test";
/// The name that has the address of a metadata service from the beginning.
const METADATA_ALIAS_NAME: &str = "pointed.hostile.test";

const PROBES: [ScriptAttack; 8] = [
    ScriptAttack::with_script(
        "metadata-in-a-step",
        "reads the metadata service at 169.254.169.254 in a step",
        "http 169.254.169.254 80 /latest/meta-data/ | grep bait",
    ),
    ScriptAttack::with_script(
        "metadata-of-tasks-in-a-step",
        "reads the credentials of tasks and pods at 169.254.170.2 and 169.254.170.23 in a step",
        "for at in 169.254.170.2 169.254.170.23; do http $at 80 /v1/credentials | grep bait && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "metadata-of-azure-in-a-step",
        "reads Azure's service at 168.63.129.16 in a step",
        "http 168.63.129.16 80 /machine | grep bait",
    ),
    ScriptAttack::with_script(
        "metadata-of-alibaba-in-a-step",
        "reads Alibaba's service at 100.100.100.200 in a step",
        "http 100.100.100.200 80 /latest/meta-data/ | grep bait",
    ),
    ScriptAttack::with_script(
        "metadata-by-ipv6-in-a-step",
        "reads the metadata service at fd00:ec2::254 in a step",
        "http fd00:ec2::254 80 /latest/meta-data/ | grep bait",
    ),
    ScriptAttack::with_script(
        "metadata-by-name-in-a-step",
        "reads metadata.google.internal in a step",
        "at=$(nslookup metadata.google.internal | awk '/^Address/ && !/:53$/ { at = $NF } END { print at }')\n\
         http ${at:-169.254.169.254} 80 /computeMetadata/v1/ | grep bait",
    ),
    ScriptAttack::with_script(
        "metadata-by-redirect-in-a-step",
        "follows a redirect of a server of the attacker's to the metadata service in a step",
        "to=$(http ${SERVER%:*} ${SERVER#*:} /redirect/169.254.169.254/latest | tr -d '\\r' | awk -F/ 'tolower($1) ~ /^location/ { print $3 }')\n\
         http ${to:-169.254.169.254} 80 /latest | grep bait",
    ),
    ScriptAttack::with_script(
        "private-network-in-a-step",
        "reaches a server in a private network in a step",
        "http ${PRIVATE%:*} ${PRIVATE#*:} / | grep bait",
    ),
];

const PROBE_ATTACKS: [AttackDescription; 8] = probe::attacks_of_probes(&PROBES);

const SOURCE_ATTACKS: [AttackDescription; 11] = [
    AttackDescription {
        name: "add-from-nats",
        attempts: "fetches NATS's page by `ADD http://127.0.0.1:8222/varz`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-from-localhost",
        attempts: "fetches the same page from the names localhost and LOCALHOST",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-from-metadata",
        attempts: "fetches each metadata service with `ADD`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-from-metadata-by-spelling",
        attempts: "spells 169.254.169.254 as one number, in hexadecimal, in octal, as IPv6, with a dot, with a user",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-from-metadata-by-name",
        attempts: "fetches metadata.google.internal, and a name of the attacker's with the same address",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-by-redirect",
        attempts: "fetches an allowed address that redirects to a metadata service",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "add-by-changing-dns",
        attempts: "fetches an allowed name whose address is allowed at first, and a metadata service's later",
        stopped_with: &[200, 422],
    },
    AttackDescription {
        name: "git-from-metadata",
        attempts: "clones a repository from a metadata service and from loopback",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "image-from-metadata",
        attempts: "names an image at a metadata service in `FROM`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "cache-from-metadata",
        attempts: "names an image at a metadata service in `cacheFrom`",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "add-by-onbuild",
        attempts: "fetches a metadata service by an `ONBUILD` instruction of a base image",
        stopped_with: &[422],
    },
];

const ALL_ATTACKS: [AttackDescription; 19] = concat_attacks(&PROBE_ATTACKS, &SOURCE_ATTACKS);

pub(crate) const ATTACKS: &[AttackDescription] = &ALL_ATTACKS;

/// A guard of the daemon's replaced nameservers; dropping it restores them.
struct ReplacedNameservers {
    path: PathBuf,
    before: String,
}

impl ReplacedNameservers {
    /// Makes `server` the first nameserver of the process with this id.
    fn prepend_nameserver(pid: u32, server: Ipv4Addr) -> Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/root/etc/resolv.conf"));
        let text = fs::read_to_string(&path)?;
        // An earlier run that was killed may have left its line.
        let kept = text.lines().filter(|line| !line.contains(&server.to_string()));
        let before: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(&path, format!("nameserver {server}\n{before}"))?;
        Ok(Self { path, before })
    }
}

impl Drop for ReplacedNameservers {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_build_reaches_a_metadata_service_or_a_private_address() -> Result<()> {
    let testbed = slipway_e2e::testbed::Testbed::find_running_stack()?;
    let stack = &testbed.stack;
    let own = NetworkNamespace::of_process(stack.supervisor_pid()?)?;
    let addresses: Vec<IpAddr> = METADATA_ADDRESSES
        .iter()
        .map(|at| Ok(at.parse()?))
        .collect::<Result<_>>()?;
    let extra = own.with_addresses(&addresses)?;
    let metadata: Vec<BaitServer> = addresses
        .iter()
        .map(|at| BaitServer::start_in_namespace(extra.namespace(), (*at, 80)))
        .collect::<Result<_>>()?;
    let inner: Ipv4Addr = stack
        .registry
        .host
        .split(':')
        .next()
        .unwrap_or_default()
        .parse()?;
    let private = BaitServer::start_in_namespace(extra.namespace(), (inner, 80))?;
    let public = NetworkNamespace::of_process(std::process::id())?
        .with_addresses(&[IpAddr::from(PUBLIC_TEST_ADDRESS)])?;
    let server = BaitServer::start_in_namespace(public.namespace(), (PUBLIC_TEST_ADDRESS, 80))?;
    // The operator opens this server, whose address is one for special purposes, and the policy allows it and the name.
    let opened = PUBLIC_TEST_ADDRESS.to_string();
    let readable = [
        format!("http://{PUBLIC_TEST_ADDRESS}/"),
        format!("http://{REBINDING_NAME}/"),
    ];
    let world = AttackWorld::start_with_settings(&[("allowed_sources", &opened)], &readable).await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "metadata").await?;

    let daemon = find_first_process("buildkitd", &world.testbed.stack.dir.root.to_string_lossy())?;
    let name = |name, first, answers, then| ChangingName {
        name,
        first,
        answers,
        then,
    };
    let names = [
        name(
            "metadata.google.internal",
            AWS_METADATA_ADDRESS,
            0,
            AWS_METADATA_ADDRESS,
        ),
        name(METADATA_ALIAS_NAME, AWS_METADATA_ADDRESS, 0, AWS_METADATA_ADDRESS),
        name(REBINDING_NAME, PUBLIC_TEST_ADDRESS, 1, AWS_METADATA_ADDRESS),
    ];
    let of_daemon = NetworkNamespace::of_process(daemon)?;
    let _dns = ChangingDns::start_in_namespace(&of_daemon, RESOLVER_ADDRESS, &names)?;
    let _nameservers = ReplacedNameservers::prepend_nameserver(daemon, RESOLVER_ADDRESS)?;
    // Go's resolver reads resolv.conf at most every five seconds, and gives no sign when it does.
    tokio::time::sleep(Duration::from_secs(6)).await;

    let mut outcomes = Outcomes::default();
    let variables = BTreeMap::from([
        ("SERVER", server.address().to_string()),
        ("PRIVATE", format!("{inner}:80")),
    ]);
    // The servers answer where they may be reached.
    for (namespace, at) in metadata
        .iter()
        .chain([&private])
        .map(|bait| (extra.namespace(), bait.address()))
        .chain([(public.namespace(), server.address())])
    {
        namespace
            .run_inside(|| Ok(TcpStream::connect_timeout(&at, Duration::from_secs(5))?))
            .with_context(|| format!("no bait at {at}"))?;
    }
    outcomes.extend(
        probe::run_probes_and_controls(&world, "metadata", BuildContext::new(), &variables, &[], &PROBES)
            .await?,
    );
    let attacks = SourceAttacks {
        world: &world,
        metadata: &metadata,
    };
    attacks.run_attacks(&mut outcomes, &server).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Attacks by sources that the daemon fetches.
struct SourceAttacks<'a> {
    world: &'a AttackWorld,
    metadata: &'a [BaitServer],
}

impl SourceAttacks<'_> {
    async fn run_attacks(&self, outcomes: &mut Outcomes, redirecting_server: &BaitServer) -> Result<()> {
        let fetch = async |urls: &[String]| self.add_each_url_in_its_own_build(urls).await;
        let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        outcomes.add_outcome(
            "add-from-nats",
            fetch(&urls(&["http://127.0.0.1:8222/varz"])).await?,
        );
        let localhost = urls(&["http://localhost:8222/varz", "http://LOCALHOST:8222/varz"]);
        outcomes.add_outcome("add-from-localhost", fetch(&localhost).await?);
        let all: Vec<_> = self
            .metadata
            .iter()
            .map(|at| format!("http://{}/latest", at.address()))
            .collect();
        outcomes.add_outcome("add-from-metadata", fetch(&all).await?);
        let spellings = urls(&[
            "http://2852039166/latest",
            "http://0xA9FEA9FE/latest",
            "http://0251.0376.0251.0376/latest",
            "http://169.254.43518/latest",
            "http://[::ffff:169.254.169.254]/latest",
            "http://[::ffff:a9fe:a9fe]/latest",
            "http://169.254.169.254./latest",
            "http://files@169.254.169.254/latest",
            "HTTP://169.254.169.254/latest",
        ]);
        outcomes.add_outcome("add-from-metadata-by-spelling", fetch(&spellings).await?);
        let names = [
            "http://metadata.google.internal/latest".to_owned(),
            format!("http://{METADATA_ALIAS_NAME}/latest"),
        ];
        outcomes.add_outcome("add-from-metadata-by-name", fetch(&names).await?);
        let host = &self.world.testbed.stack.registry.host;
        let inner = host.split(':').next().unwrap_or_default();
        let redirects = [
            "169.254.169.254/latest".to_owned(),
            "127.0.0.1:8222/varz".to_owned(),
            format!("{inner}:8080/healthz"),
            "10.62.0.1:8081/healthz".to_owned(),
        ];
        let redirects = redirects.map(|to| format!("http://{PUBLIC_TEST_ADDRESS}/redirect/{to}"));
        let outcome = fetch(&redirects).await?;
        ensure!(
            !redirecting_server.request_paths().is_empty(),
            "the daemon did not follow the first redirect: {outcome:?}"
        );
        outcomes.add_outcome("add-by-redirect", outcome);
        // Each attempt has more answers behind it.
        let rebound: Vec<_> = (0..3)
            .map(|round| format!("http://{REBINDING_NAME}/{round}"))
            .collect();
        outcomes.add_outcome("add-by-changing-dns", fetch(&rebound).await?);
        let git = urls(&[
            "http://169.254.169.254/a.git",
            "http://169.254.169.254/a.git#main",
            "git://127.0.0.1:4222/a.git",
        ]);
        outcomes.add_outcome("git-from-metadata", fetch(&git).await?);

        let before = self.metadata_request_count_of_path("/v2/");
        let from = self
            .world
            .mallory
            .build_dockerfile_without_push_or_cache("metadata", "FROM 169.254.169.254:80/a/b:1\n")
            .await?;
        outcomes.add_outcome("image-from-metadata", {
            // The daemon speaks TLS with registries that it does not know.
            let was_reached = from.text.contains("server gave HTTP response to HTTPS client");
            Outcome::of_reply(
                was_reached || self.metadata_request_count_of_path("/v2/") > before,
                &from,
            )
        });
        let before = self.metadata_request_count_of_path("/v2/");
        let config = json!({
            "image": self.world.mallory.image("metadata", "1"), "skipPush": true,
            "cacheFrom": ["169.254.170.2:80/a/b:1"],
        });
        let cached = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a");
        let cached = self.world.mallory.build(&cached, &config).await?;
        outcomes.add_outcome(
            "cache-from-metadata",
            Outcome::of_reply(self.metadata_request_count_of_path("/v2/") > before, &cached),
        );

        let onbuild =
            json!({ "OnBuild": ["ADD http://169.254.169.254/onbuild /got", "RUN [\"/bin/true\"]"] });
        let registry = &self.world.testbed.registry;
        let layer = CraftedLayerBuilder::new().with_file("etc/base", 0o644, b"base")?;
        registry
            .push_image("hostile/base/onbuild-add", "1", layer, onbuild)
            .await?;
        let image = self.world.testbed.image_name("hostile/base/onbuild-add", "1");
        let reply = self
            .world
            .mallory
            .build_dockerfile_without_push_or_cache("metadata", format!("FROM {image}\n"))
            .await?;
        outcomes.add_outcome(
            "add-by-onbuild",
            Outcome::of_reply(self.metadata_request_count_of_path("/onbuild") > 0, &reply),
        );
        Ok(())
    }

    /// Fetches each of these addresses in a build of its own; the attack succeeded if a metadata service got a request.
    async fn add_each_url_in_its_own_build(&self, urls: &[String]) -> Result<Outcome> {
        let base = self.world.testbed.build_busybox_once_and_get_name().await?;
        ensure!(!urls.is_empty(), "no address");
        let mut outcome = Outcome::before_first_attempt();
        for url in urls {
            let before: usize = self.metadata_request_count();
            let dockerfile = format!("FROM {base}\nADD {url} /got\nRUN head -c 200 /got\n");
            let reply = self
                .world
                .mallory
                .build_dockerfile_without_push_or_cache("metadata", dockerfile)
                .await?;
            // The allowed server answers as the metadata services do; under the name, only those may not.
            let is_bait = !url.contains(REBINDING_NAME) && reply.text.contains(BAIT_TEXT);
            let was_read =
                is_bait || reply.text.contains("server_id") || self.metadata_request_count() > before;
            let is_redirect = url.contains("/redirect/");
            let succeeded = was_read || (is_redirect && reply.status == 200);
            outcome = outcome.and(Outcome::of_reply(succeeded, &reply));
            if outcome.has_succeeded() {
                break;
            }
        }
        Ok(outcome)
    }

    fn metadata_request_count(&self) -> usize {
        self.metadata
            .iter()
            .map(|server| server.request_paths().len())
            .sum()
    }

    /// Returns how many requests for paths that start with this the metadata services got.
    fn metadata_request_count_of_path(&self, path_prefix: &str) -> usize {
        let requests = self.metadata.iter().flat_map(BaitServer::request_paths);
        requests
            .filter(|request| request.starts_with(path_prefix))
            .count()
    }
}
