//! Attacks by messages that are published in the queue's NATS Streaming without the gateway: the function, the path, the
//! headers, the body and the callback of such a call are the attacker's choice.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    client::sign_body,
    nats_streaming::{FUNCTION_CALLS_CHANNEL, publish_message},
    network_namespace::NetworkNamespace,
    testbed::Testbed,
};
use slipway_stack::StackPart;

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    daemon::machine_address_on_stack_network,
    world::{AttackWorld, MALLORY_KEY},
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "raw-build-in-nats",
        attempts: "publishes builds in NATS itself: unsigned, and signed with a key that builder-fn does not have",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "raw-hand-over-in-nats",
        attempts: "publishes hand-overs in NATS itself: unsigned, and signed with a key for builds",
        // deployer-fn has one path, and answers 404 at others.
        stopped_with: &[401, 404],
    },
    AttackDescription {
        name: "raw-function-in-nats",
        attempts: "publishes calls in NATS itself whose function and path lead to the gateway's administration",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "raw-callback-in-nats",
        attempts: "publishes calls in NATS itself whose answers are callbacks for deployer-fn, the gateway and the provider",
        stopped_with: &[401],
    },
];

/// The function of the attacker's whose answers are deployments and hand-overs.
const ANSWERING_FUNCTION: &str = "mallory-answers";
/// The function that the attacks try to deploy.
const DEPLOYED_FUNCTION: &str = "mallory-raw";
/// The repository of the image that the attacks try to build.
const BUILT_REPOSITORY: &str = "hostile/forged/raw";

#[tokio::test(flavor = "multi_thread")]
async fn no_message_published_in_nats_itself_builds_or_deploys_without_a_signature() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "queue-messages").await?;
    let testbed = &world.testbed;
    testbed.functions.remove_function(DEPLOYED_FUNCTION).await?;
    let publisher = CallPublisher::of_stack(testbed)?;
    let mut outcomes = Outcomes::default();
    publisher.publish_builds(&mut outcomes).await?;
    publisher.publish_hand_overs(&mut outcomes).await?;
    publisher
        .publish_calls_of_the_administration(&mut outcomes)
        .await?;
    publisher.publish_calls_with_callbacks(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// A call of a function, as the gateway puts it into the queue: `openfaas/faas-provider` `types/queue.go`.
struct QueuedCall<'a> {
    function: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    /// The host and port, the path and the query of the URL that gets the answer.
    callback: (&'a str, &'a str, &'a str),
}

impl QueuedCall<'_> {
    fn message(&self) -> String {
        let headers: serde_json::Map<String, Value> = self
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!([value])))
            .collect();
        let (host, path, query) = self.callback;
        json!({
            "Header": headers, "Host": "gateway", "Body": STANDARD.encode(self.body), "Method": "POST",
            "Path": self.path, "Function": self.function,
            "CallbackUrl": { "Scheme": "http", "Host": host, "Path": path, "RawQuery": query },
        })
        .to_string()
    }
}

/// Publishes calls in the stack's NATS Streaming, from within the stack's network.
struct CallPublisher<'a> {
    testbed: &'a Testbed,
    namespace: NetworkNamespace,
}

impl<'a> CallPublisher<'a> {
    fn of_stack(testbed: &'a Testbed) -> Result<Self> {
        Ok(Self {
            testbed,
            namespace: NetworkNamespace::of_process(testbed.stack.supervisor_pid()?)?,
        })
    }

    fn publish(&self, call: &QueuedCall<'_>) -> Result<()> {
        let stack = &self.testbed.stack;
        publish_message(
            &self.namespace,
            stack.nats_address_in_stack_network(),
            stack.nats_cluster_name(),
            FUNCTION_CALLS_CHANNEL,
            call.message().as_bytes(),
        )
    }

    /// Publishes a call, waits until the queue-worker has delivered its answer, and returns the answer's status.
    async fn publish_and_return_status(
        &self,
        function: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<u16> {
        let server = BaitServer::start((machine_address_on_stack_network(&self.namespace)?, 0))?;
        let host = server.address().to_string();
        self.publish(&QueuedCall {
            function,
            path,
            headers,
            body,
            callback: (&host, "/answer", ""),
        })?;
        let delivered = || Ok(!server.delivered_function_statuses().is_empty());
        self.testbed
            .wait_until_condition("the queue delivers the answer", delivered)
            .await?;
        let statuses = server.delivered_function_statuses();
        statuses.first().copied().context("no status was delivered")
    }

    /// Returns whether the function that the attacks deploy is there.
    async fn has_deployed(&self) -> Result<bool> {
        let status = self.testbed.functions.function_status(DEPLOYED_FUNCTION).await?;
        Ok(status.is_some())
    }

    fn tar_for_image(&self, repository: &str) -> Result<Vec<u8>> {
        BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
            .with_file("a", "a")
            .tar_with_config_last(&json!({ "image": self.testbed.image_name(repository, "1") }))
    }

    async fn is_in_registry(&self, repository: &str) -> Result<bool> {
        let manifest = self.testbed.registry.get_manifest(repository, "1").await?;
        Ok(manifest.is_some())
    }

    async fn publish_builds(&self, outcomes: &mut Outcomes) -> Result<()> {
        let tar = self.tar_for_image(BUILT_REPOSITORY)?;
        let unknown = sign_body(MALLORY_KEY.as_bytes(), &tar)?;
        let mut outcome = Outcome::before_first_attempt();
        for (path, headers) in [
            ("", &[][..]),
            ("/build", &[]),
            ("/build", &[("X-Build-Signature", unknown.as_str())]),
            ("/build", &[("X-Slipway-Tenant", "victim")]),
        ] {
            let status = self
                .publish_and_return_status("builder-fn", path, headers, &tar)
                .await?;
            outcome = outcome.and(Outcome::of_status(false, status, format!("builder-fn: {status}")));
        }
        let is_built = self.is_in_registry(BUILT_REPOSITORY).await?;
        outcomes.add_outcome(
            "raw-build-in-nats",
            outcome.succeeded_too_if(is_built, format!("built: {is_built}")),
        );
        // The same message with the right signature is built.
        let genuine = format!("{BUILT_REPOSITORY}-genuine");
        let tar = self.tar_for_image(&genuine)?;
        let key = std::fs::read(&self.testbed.stack.payload_secret)?;
        let signature = sign_body(key.trim_ascii(), &tar)?;
        let headers = [("X-Build-Signature", signature.as_str())];
        let status = self
            .publish_and_return_status("builder-fn", "/build", &headers, &tar)
            .await?;
        ensure!(
            status == 200 && self.is_in_registry(&genuine).await?,
            "a genuine build that was published in NATS: {status}"
        );
        Ok(())
    }

    /// Returns a well-formed hand-over of the stack's busybox, not yet signed.
    async fn hand_over(&self) -> Result<String> {
        let tag = self.testbed.build_busybox_once_and_get_name().await?;
        let now = Timestamp::now();
        Ok(json!({
            "image": self.image_by_digest().await?, "tag": tag, "callId": "raw", "builtAt": now.to_string(),
            "expiresAt": (now + std::time::Duration::from_secs(600)).to_string(),
            "deploy": { "service": DEPLOYED_FUNCTION },
        })
        .to_string())
    }

    async fn image_by_digest(&self) -> Result<String> {
        let tag = self.testbed.build_busybox_once_and_get_name().await?;
        let (name, tag) = tag.rsplit_once(':').context("no tag")?;
        let (_, repository) = name.split_once('/').context("no registry")?;
        let manifest = self.testbed.registry.get_manifest(repository, tag).await?;
        Ok(format!("{name}@{}", manifest.context("no busybox")?.digest))
    }

    /// Returns the body with which the gateway's administrator deploys a function.
    async fn deployment(&self) -> Result<String> {
        let image = self.testbed.build_busybox_once_and_get_name().await?;
        Ok(json!({ "service": DEPLOYED_FUNCTION, "image": image }).to_string())
    }

    async fn publish_hand_overs(&self, outcomes: &mut Outcomes) -> Result<()> {
        let hand_over = self.hand_over().await?;
        let key = std::fs::read(&self.testbed.stack.payload_secret)?;
        let of_builds = sign_body(key.trim_ascii(), hand_over.as_bytes())?;
        let mut outcome = Outcome::before_first_attempt();
        for (path, headers) in [
            ("", &[][..]),
            ("/deploy", &[]),
            ("/", &[("X-Deploy-Signature", of_builds.as_str())]),
            ("/", &[("X-Build-Signature", of_builds.as_str())]),
        ] {
            let status = self
                .publish_and_return_status("deployer-fn", path, headers, hand_over.as_bytes())
                .await?;
            outcome = outcome.and(Outcome::of_status(
                false,
                status,
                format!("deployer-fn: {status}"),
            ));
        }
        let is_deployed = self.has_deployed().await?;
        outcomes.add_outcome(
            "raw-hand-over-in-nats",
            outcome.succeeded_too_if(is_deployed, format!("deployed: {is_deployed}")),
        );
        Ok(())
    }

    async fn publish_calls_of_the_administration(&self, outcomes: &mut Outcomes) -> Result<()> {
        let deployment = self.deployment().await?;
        let mut outcome = Outcome::before_first_attempt();
        for (function, path) in [
            ("../system/functions", "?"),
            ("deployer-fn/../../system/functions", "?"),
            ("deployer-fn", "/../../system/functions"),
            ("deployer-fn", "/..%2f..%2fsystem%2ffunctions"),
            ("builder-fn", "/%2e%2e/%2e%2e/system/functions"),
        ] {
            let headers = [("Content-Type", "application/json")];
            let status = self
                .publish_and_return_status(function, path, &headers, deployment.as_bytes())
                .await?;
            let evidence = format!("{function}{path}: {status}");
            outcome = outcome.and(Outcome::of_status(false, status, evidence));
        }
        let is_deployed = self.has_deployed().await?;
        outcomes.add_outcome(
            "raw-function-in-nats",
            outcome.succeeded_too_if(is_deployed, format!("deployed: {is_deployed}")),
        );
        Ok(())
    }

    async fn publish_calls_with_callbacks(&self, outcomes: &mut Outcomes) -> Result<()> {
        self.deploy_answering_function().await?;
        let host_of_url = |url: &str| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let gateway = host_of_url(&self.testbed.stack.gateway.url);
        let provider = host_of_url(&self.testbed.stack.provider_url_in_stack_network());
        let mut outcome = Outcome::before_first_attempt();
        for (answer, host, path) in [
            ("/cgi-bin/hand-over", &gateway, "/function/deployer-fn"),
            ("/cgi-bin/deployment", &gateway, "/system/functions"),
            ("/cgi-bin/deployment", &provider, "/system/functions"),
        ] {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
            // The query tells the attempts of several runs apart in the log.
            let query = format!("attempt={now}");
            self.publish(&QueuedCall {
                function: ANSWERING_FUNCTION,
                path: answer,
                headers: &[],
                body: b"",
                callback: (host, path, &query),
            })?;
            let status = self.wait_for_status_of_callback(&query).await?;
            let evidence = format!("{host}{path}: {status}");
            outcome = outcome.and(Outcome::of_status(false, status, evidence));
        }
        let is_deployed = self.has_deployed().await?;
        outcomes.add_outcome(
            "raw-callback-in-nats",
            outcome.succeeded_too_if(is_deployed, format!("deployed: {is_deployed}")),
        );
        self.testbed.functions.remove_function(ANSWERING_FUNCTION).await
    }

    /// Deploys the function that answers with a deployment and a hand-over, and checks that it does.
    async fn deploy_answering_function(&self) -> Result<()> {
        let testbed = self.testbed;
        let base = testbed.build_busybox_once_and_get_name().await?;
        let script = |answer: &str| {
            format!(
                "#!/bin/sh\nprintf 'Content-Type: application/json\\r\\n\\r\\n'; cat <<'END'\n{answer}\nEND\n"
            )
        };
        let (deployment, hand_over) = (self.deployment().await?, self.hand_over().await?);
        let source = BuildContext::static_page_function(base, "answers")
            .with_file_of_mode("www/cgi-bin/deployment", script(&deployment), 0o755)
            .with_file_of_mode("www/cgi-bin/hand-over", script(&hand_over), 0o755);
        let config = json!({
            "image": testbed.image_name("hostile/forged/answers", "1"), "deploy": { "service": ANSWERING_FUNCTION },
        });
        let reply = testbed
            .builder
            .post_signed(source.tar_with_config_last(&config)?)
            .await?;
        ensure!(reply.status == 200, "{}", reply.text);
        for (path, expected) in [
            ("/cgi-bin/deployment", &deployment),
            ("/cgi-bin/hand-over", &hand_over),
        ] {
            let answer = testbed
                .functions
                .post_to_function(ANSWERING_FUNCTION, path, "")
                .await?;
            ensure!(
                answer.0 == 200 && answer.1.trim() == expected,
                "the function does not answer with what the attack needs: {answer:?}"
            );
        }
        Ok(())
    }

    /// Waits until the queue-worker has logged the status that it got for a callback whose URL has this query.
    async fn wait_for_status_of_callback(&self, query: &str) -> Result<u16> {
        /// More lines than other calls add meanwhile.
        const LOG_TAIL_LINES: usize = 2000;
        let find_status = || -> Option<u16> {
            let log = self
                .testbed
                .stack
                .current_part_log_tail_or_empty(StackPart::QueueWorker, LOG_TAIL_LINES);
            let posted = log
                .lines()
                .find_map(|line| Some(line.split_once(&format!("{query}, status: "))?.1.to_owned()))?;
            posted.trim().parse().ok()
        };
        self.testbed
            .wait_until_condition("the queue-worker has posted the callback", || {
                Ok(find_status().is_some())
            })
            .await?;
        find_status().context("the log has no status")
    }
}
