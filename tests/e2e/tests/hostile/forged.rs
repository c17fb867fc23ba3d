//! Attacks by forged and repeated messages: in the queue, as hand-overs, as callbacks.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::{SigningClient, sign_body},
    network_namespace::NetworkNamespace,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    daemon::machine_address_on_stack_network,
    world::{AttackWorld, MALLORY_KEY},
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "forged-build-in-the-queue",
        attempts: "puts an unsigned build, and one with a signature of another body, into the queue for builder-fn",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "forged-hand-over-in-the-queue",
        attempts: "puts a hand-over that is signed with a key for builds into the queue for deployer-fn",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "forged-hand-over-by-callback",
        attempts: "sends deployer-fn an unsigned hand-over, as a callback of another function would",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "forged-tenant",
        attempts: "sends deployer-fn a hand-over of its own that names another tenant",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "changed-callback",
        attempts: "changes the function in the signed answer of a builder whose hand-over is a callback",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "hand-over-in-the-log",
        attempts: "prints a hand-over in a step, so that the signed answer contains it",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "replayed-build",
        attempts: "sends a recorded, signed build again",
        stopped_with: &[409],
    },
    AttackDescription {
        name: "replayed-hand-over",
        attempts: "sends a recorded hand-over again after a newer one, to restore an old version",
        stopped_with: &[409],
    },
];

/// The timeout of a request, and of the wait for a page; longer than a build takes on a busy machine.
const HTTP_TIMEOUT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_or_repeated_message_builds_or_deploys() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "forged").await?;
    let mut outcomes = Outcomes::default();
    let attacks = ForgedMessageAttacks {
        http: reqwest::Client::builder()
            .no_proxy()
            .timeout(HTTP_TIMEOUT)
            .build()?,
        world: &world,
    };
    attacks.attack_through_queue(&mut outcomes).await?;
    attacks.forge_hand_overs(&mut outcomes).await?;
    attacks.forge_callback_and_print_hand_over(&mut outcomes).await?;
    attacks.replay_messages(&mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Attacks by messages that a tenant did not sign, or that were sent before.
struct ForgedMessageAttacks<'a> {
    world: &'a AttackWorld,
    http: reqwest::Client,
}

impl ForgedMessageAttacks<'_> {
    /// Returns a well-formed hand-over of an image that no registry has, not yet signed.
    fn unsigned_hand_over_of_absent_image(&self, service: &str) -> Result<Value> {
        let image = self.world.testbed.image_name("hostile/mallory/forged", "1");
        let now = Timestamp::now();
        Ok(json!({
            "image": format!("{image}@sha256:{}", "0".repeat(64)), "tag": image, "callId": "forged",
            "builtAt": now.to_string(), "expiresAt": (now + Duration::from_secs(600)).to_string(),
            "deploy": { "service": service },
        }))
    }

    /// Sends a message through the queue, waits for its outcome, and returns the function's status.
    async fn send_through_queue_and_return_function_status(
        &self,
        function: &str,
        body: Vec<u8>,
        header: Option<(&str, String)>,
    ) -> Result<u16> {
        let callback = self.start_callback_server()?;
        let url = self.world.testbed.functions.queued_call_url(function);
        let mut request = self.http.post(url).body(body);
        request = request.header("X-Callback-Url", format!("http://{}/outcome", callback.address()));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let status = request.send().await?.status();
        ensure!(status.as_u16() == 202, "the queue: {status}");
        self.wait_for_delivered_function_status(&callback).await
    }

    /// Starts a server that the queue-worker reaches, for callbacks.
    fn start_callback_server(&self) -> Result<BaitServer> {
        let namespace = NetworkNamespace::of_process(self.world.testbed.stack.supervisor_pid()?)?;
        BaitServer::start((machine_address_on_stack_network(&namespace)?, 0))
    }

    /// Waits until the queue-worker has delivered the answer of a function, and returns its status.
    async fn wait_for_delivered_function_status(&self, callback: &BaitServer) -> Result<u16> {
        let arrived = || Ok(!callback.delivered_function_statuses().is_empty());
        self.world
            .testbed
            .wait_until_condition("the queue delivers the outcome", arrived)
            .await?;
        let statuses = callback.delivered_function_statuses();
        statuses.first().copied().context("no status was delivered")
    }

    /// Sends forged builds and hand-overs through the queue.
    async fn attack_through_queue(&self, outcomes: &mut Outcomes) -> Result<()> {
        let testbed = &self.world.testbed;
        let image = testbed.image_name("hostile/forged/queued", "1");
        let tar = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
            .with_file("a", "a")
            .tar_with_config_last(&json!({ "image": image }))?;
        let other = sign_body(MALLORY_KEY.as_bytes(), b"another body")?;
        let mut outcome = Outcome::before_first_attempt();
        for signature in [None, Some(("X-Build-Signature", other))] {
            let status = self
                .send_through_queue_and_return_function_status("builder-fn", tar.clone(), signature)
                .await?;
            outcome = outcome.and(Outcome::of_status(
                false,
                status,
                format!("the function: {status}"),
            ));
        }
        let is_in_registry = async |repository: &str| -> Result<bool> {
            Ok(testbed.registry.get_manifest(repository, "1").await?.is_some())
        };
        let built = is_in_registry("hostile/forged/queued").await?;
        outcomes.add_outcome(
            "forged-build-in-the-queue",
            outcome.succeeded_too_if(built, format!("built: {built}")),
        );
        let payload_key = std::fs::read(&testbed.stack.payload_secret)?;
        // With the right signature, the queue has it built.
        let image = testbed.image_name("hostile/forged/genuine", "1");
        let tar = BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
            .with_file("a", "a")
            .tar_with_config_last(&json!({ "image": image }))?;
        let signed = sign_body(payload_key.trim_ascii(), &tar)?;
        let status = self
            .send_through_queue_and_return_function_status(
                "builder-fn",
                tar,
                Some(("X-Build-Signature", signed)),
            )
            .await?;
        ensure!(
            is_in_registry("hostile/forged/genuine").await?,
            "a genuine build through the queue: {status}"
        );

        let hand_over = self
            .unsigned_hand_over_of_absent_image("mallory-forged")?
            .to_string()
            .into_bytes();
        let signed = sign_body(payload_key.trim_ascii(), &hand_over)?;
        let status = self
            .send_through_queue_and_return_function_status(
                "deployer-fn",
                hand_over,
                Some(("X-Deploy-Signature", signed)),
            )
            .await?;
        let deployed = testbed
            .functions
            .function_status("mallory-forged")
            .await?
            .is_some();
        outcomes.add_outcome(
            "forged-hand-over-in-the-queue",
            Outcome::of_status(deployed, status, format!("the function: {status}")),
        );
        Ok(())
    }

    /// Posts a JSON body to a URL, with a signature if one is given; returns the answer's status and text.
    async fn post_json(
        &self,
        url: &str,
        body: String,
        deploy_signature: Option<String>,
    ) -> Result<(u16, String)> {
        let mut request = self.http.post(url).body(body);
        if let Some(deploy_signature) = deploy_signature {
            request = request.header("X-Deploy-Signature", deploy_signature);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Sends deployers a hand-over without a signature, and one that a tenant's key signed.
    async fn forge_hand_overs(&self, outcomes: &mut Outcomes) -> Result<()> {
        let world = self.world;
        let unsigned = self
            .unsigned_hand_over_of_absent_image("mallory-forged")?
            .to_string();
        let url = world.testbed.functions.function_url("deployer-fn");
        let mut outcome = Outcome::before_first_attempt();
        for body in [unsigned, String::new()] {
            let (status, text) = self.post_json(&url, body, None).await?;
            outcome = outcome.and(Outcome::of_status(false, status, format!("{status} {text}")));
        }
        let function = world.testbed.functions.function_status("mallory-forged").await?;
        outcomes.add_outcome(
            "forged-hand-over-by-callback",
            outcome.succeeded_too_if(function.is_some(), format!("the function: {function:?}")),
        );

        world.gateway.clear_requests();
        let mut hand_over = self.unsigned_hand_over_of_absent_image("victim-forged")?;
        hand_over["tenant"] = json!("victim");
        let body = hand_over.to_string();
        let signed = sign_body(MALLORY_KEY.as_bytes(), body.as_bytes())?;
        let genuine = world
            .deployer
            .send_hand_over_and_get_status_and_text(
                &self.unsigned_hand_over_of_absent_image("mallory-forged")?,
            )
            .await?;
        ensure!(
            genuine.status != 401,
            "the deployer rejects its own key: {}",
            genuine.text
        );
        world.gateway.clear_requests();
        let (status, text) = self.post_json(world.deployer.url(), body, Some(signed)).await?;
        let changes = world.gateway.changing_system_requests();
        outcomes.add_outcome(
            "forged-tenant",
            Outcome::of_status(!changes.is_empty(), status, format!("{status} {text}")),
        );
        Ok(())
    }

    /// Changes a builder's signed answer, and has a step print a hand-over into it.
    async fn forge_callback_and_print_hand_over(&self, outcomes: &mut Outcomes) -> Result<()> {
        let testbed = &self.world.testbed;
        let deployer =
            slipway_e2e::deployer_process::DeployerProcess::start(testbed, &testbed.stack.gateway.url, &[])
                .await?;
        let builder = BuilderProcess::start_with_settings(testbed, &[("deploy_via", "callback")]).await?;
        let base = testbed.build_busybox_once_and_get_name().await?;
        let printed = json!({ "deployment": { "handOver": self.unsigned_hand_over_of_absent_image("mallory-printed")? } }).to_string();
        let source = BuildContext::static_page_function(base, "called back").with_file("printed", printed);
        let dockerfile = format!(
            "FROM {base}\nCOPY . /\nRUN cat /printed; echo; cat /printed >&2\nUSER 1000\n\
             CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
        );
        let source = source.with_dockerfile(&dockerfile);
        let config = json!({
            "image": testbed.image_name("hostile/forged/callback", "1"), "deploy": { "service": "mallory-callback" },
        });
        let tar = source.tar_with_config_last(&config)?;
        let key = std::fs::read(&testbed.stack.payload_secret)?;
        let request = self.http.post(format!("{}/build", builder.url()));
        let request = request
            .header("X-Build-Signature", sign_body(key.trim_ascii(), &tar)?)
            .body(tar);
        let answer = request.send().await?;
        let signed = answer.headers().get("X-Deploy-Signature").cloned();
        let text = answer.text().await?;
        let signed = signed
            .with_context(|| format!("no signature: {text}"))?
            .to_str()?
            .to_owned();

        let changed = text.replace("mallory-callback", "mallory-changed");
        let (status, answer) = self
            .post_json(deployer.url(), changed, Some(signed.clone()))
            .await?;
        let deployed = testbed
            .functions
            .function_status("mallory-changed")
            .await?
            .is_some();
        outcomes.add_outcome(
            "changed-callback",
            Outcome::of_status(deployed, status, format!("{status} {answer}")),
        );
        // The answer itself is genuine: only its own function may be deployed.
        let (status, answer) = self.post_json(deployer.url(), text, Some(signed)).await?;
        let own = testbed.functions.function_status("mallory-callback").await?;
        ensure!(
            status == 200 && own.is_some(),
            "the genuine answer deployed nothing: {status} {answer}"
        );
        let deployed = testbed
            .functions
            .function_status("mallory-printed")
            .await?
            .is_some();
        outcomes.add_outcome(
            "hand-over-in-the-log",
            Outcome::of_status(
                deployed,
                status,
                format!("{status}, and only the answer's own function"),
            ),
        );
        for name in ["mallory-callback", "mallory-changed", "mallory-printed"] {
            testbed.functions.remove_function(name).await?;
        }
        Ok(())
    }

    /// Sends a recorded build and a recorded hand-over again.
    async fn replay_messages(&self, outcomes: &mut Outcomes) -> Result<()> {
        let world =
            AttackWorld::start_with_settings(&[("max_age", "5m"), ("require_fresh", "true")], &[]).await?;
        let base = world.testbed.build_busybox_once_and_get_name().await?;
        let functions = &world.testbed.functions;
        let build = |page: &str, seconds: u64| -> Result<Vec<u8>> {
            let submitted = Timestamp::now() - Duration::from_secs(60 - seconds);
            BuildContext::static_page_function(base, page).tar_with_config_last(&json!({
                "image": world.victim.image("replayed", page), "submittedAt": submitted.to_string(),
                "deploy": { "service": "victim-replayed" },
            }))
        };
        functions.remove_function("victim-replayed").await?;
        let (old, new) = (build("old", 0)?, build("new", 10)?);
        let reply = world.victim.client.post_signed(old.clone()).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        let recorded = world.route.recorded_hand_overs().pop().context("no hand-over")?;
        let reply = world.victim.client.post_signed(new).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        functions
            .wait_until_page_equals("victim-replayed", "new", HTTP_TIMEOUT)
            .await?;

        // The recorded request, as it was, from anybody.
        let anybody = SigningClient::new(format!("{}/build", world.builder.url()), b"no key")?;
        let signed = sign_body(b"the key of the victim", &old)?;
        let reply = anybody.post_with_signature(old, Some(&signed), &[]).await?;
        outcomes.add_outcome("replayed-build", Outcome::of_reply(reply.status == 200, &reply));
        let reply = world
            .deployer
            .send_hand_over_and_get_status_and_text(&recorded)
            .await?;
        ensure!(
            reply.status != 401,
            "the hand-over was not recorded as it was: {}",
            reply.text
        );
        let page = functions
            .get_path_retrying_5xx("victim-replayed", "/", HTTP_TIMEOUT)
            .await?;
        outcomes.add_outcome("replayed-hand-over", Outcome::of_reply(page.1 != "new", &reply));
        functions.remove_function("victim-replayed").await
    }
}
