//! Attacks by one tenant on another tenant's images, tags, caches, functions, secrets and builds.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    client::HttpReply,
    crafted_layer::CraftedLayerBuilder,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    world::{AttackWorld, Tenant},
};

/// The content of the victim's private image.
const PRIVATE_CONTENT: &str = "what-only-the-victim-knows";

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "copy-from-a-private-image",
        attempts: "reads another tenant's image by `COPY --from`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "from-a-private-image",
        attempts: "reads another tenant's image by `FROM`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "mount-of-a-private-image",
        attempts: "reads another tenant's image by `RUN --mount=type=bind,from=` and by `type=cache,from=`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "private-image-by-onbuild",
        attempts: "reads another tenant's image by an `ONBUILD` instruction of a base image",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "private-image-by-argument",
        attempts: "names another tenant's image in a build argument of `FROM` and `COPY --from`",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "private-image-by-digest",
        attempts: "names another tenant's image by its digest, with and without a tag of the attacker's",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "private-cache",
        attempts: "reads another tenant's steps by `cacheFrom`",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "overwritten-image",
        attempts: "pushes over another tenant's tag by `image`",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "overwritten-by-tags",
        attempts: "pushes to another tenant's repository by `tags`",
        stopped_with: &[200, 400, 403],
    },
    AttackDescription {
        name: "overwritten-by-cache",
        attempts: "writes over another tenant's tag by `cacheTo`, with `skipPush`",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "overwritten-by-spelling",
        attempts: "spells another tenant's repository with `..`, `//`, and an encoded slash",
        stopped_with: &[400, 403],
    },
    AttackDescription {
        name: "cache-mount-read",
        attempts: "reads another tenant's cache mount of the same id",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "cache-mount-poisoned",
        attempts: "writes to another tenant's cache mount, which its next build uses",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "cache-mount-by-namespace",
        attempts: "names another tenant's namespace in the id of a cache mount, and by `BUILDKIT_CACHE_MOUNT_NS`",
        stopped_with: &[200, 400],
    },
    AttackDescription {
        name: "function-of-another-tenant",
        attempts: "deploys an image of the attacker's over another tenant's function",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "secret-of-another-tenant",
        attempts: "deploys a function with a secret of another tenant's functions",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "superseded-build",
        attempts: "ends another tenant's running build by a newer build of the same function",
        stopped_with: &[403],
    },
    AttackDescription {
        name: "result-by-call-id",
        attempts: "sends the call id of another tenant's build, to receive its result",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "key-of-another-tenant",
        attempts: "signs with its own key and names another tenant in `X-Slipway-Tenant`",
        stopped_with: &[401],
    },
    AttackDescription {
        name: "slots-of-another-tenant",
        attempts: "queues builds, so that another tenant's build waits for more than the one that runs",
        stopped_with: &[200],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_reads_or_changes_what_is_anothers() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "tenants").await?;
    let mut outcomes = Outcomes::default();
    read_from_victim(&world, &mut outcomes).await?;
    write_to_victim(&world, &mut outcomes).await?;
    share_cache_mounts(&world, &mut outcomes).await?;
    replace_victims_function_and_read_its_secret(&world, &mut outcomes).await?;
    imitate_builds(&world, &mut outcomes).await?;
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.add_outcome(
        "slots-of-another-tenant",
        queue_many_builds_before_one_of_the_victim().await?,
    );
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Builds and pushes the victim's private image with a cache, and returns its digest.
async fn push_private_image_and_return_digest(world: &AttackWorld) -> Result<String> {
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nCOPY private /private\nRUN cat /private > /step\n"
    ));
    let config = json!({
        "image": world.victim.image("private", "1"),
        "cacheTo": [format!("type=registry,ref={},mode=max", world.victim.image("private", "cache"))],
    });
    let reply = world
        .victim
        .build(&source.with_file("private", PRIVATE_CONTENT), &config)
        .await?;
    ensure!(reply.status == 200, "{}", reply.text);
    Ok(reply.text_field("digest"))
}

/// Builds with the victim's private image or cache as the attacker, and looks for its content in the answers.
async fn read_from_victim(world: &AttackWorld, outcomes: &mut Outcomes) -> Result<()> {
    let digest = push_private_image_and_return_digest(world).await?;
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let private = world.victim.image("private", "1");
    let repository = private.trim_end_matches(":1");
    let mallory = &world.mallory;
    let read = async |dockerfiles: &[String]| -> Result<Outcome> {
        let mut outcome = Outcome::before_first_attempt();
        let mut is_read_by_victim = false;
        for dockerfile in dockerfiles {
            let reply = mallory
                .build_dockerfile_without_push_or_cache("reads", dockerfile)
                .await?;
            // The output of a step, not the text of the Dockerfile.
            outcome = outcome.and(Outcome::succeeded_if_reply_contains(&reply, PRIVATE_CONTENT));
            if outcome.has_succeeded() {
                break;
            }
            if !is_read_by_victim {
                let reply = world
                    .victim
                    .build_dockerfile_without_push_or_cache("reads", dockerfile)
                    .await?;
                is_read_by_victim = reply.text.contains(PRIVATE_CONTENT);
            }
        }
        ensure!(
            outcome.has_succeeded() || is_read_by_victim,
            "the victim cannot read its image so either: {dockerfiles:#?}"
        );
        Ok(outcome)
    };
    let copy = |from: &str| format!("FROM {base}\nCOPY --from={from} /private /got\nRUN cat /got\n");
    outcomes.add_outcome("copy-from-a-private-image", read(&[copy(&private)]).await?);
    outcomes.add_outcome(
        "from-a-private-image",
        read(&[format!("FROM {private}\nRUN cat /private\n")]).await?,
    );
    outcomes.add_outcome(
        "mount-of-a-private-image",
        read(&[
            format!("FROM {base}\nRUN --mount=type=bind,from={private},target=/x cat /x/private\n"),
            format!("FROM {base}\nRUN --mount=type=cache,from={private},id=hostile-from,target=/x cat /x/private\n"),
        ])
        .await?,
    );
    let onbuild = json!({ "OnBuild": [format!("COPY --from={private} /private /got")] });
    let layer = CraftedLayerBuilder::new().with_file("etc/base", 0o644, b"base")?;
    let registry = &world.testbed.registry;
    registry
        .push_image("hostile/base/onbuild-copy", "1", layer, onbuild)
        .await?;
    let onbuild = world.testbed.image_name("hostile/base/onbuild-copy", "1");
    let through = format!("FROM {onbuild} AS got\nFROM {base}\nCOPY --from=got /got /got\nRUN cat /got\n");
    outcomes.add_outcome("private-image-by-onbuild", read(&[through]).await?);
    let (start, end) = private.split_at(private.len() / 2);
    outcomes.add_outcome(
        "private-image-by-argument",
        read(&[
            format!("ARG A={start}\nARG B={end}\nFROM ${{A}}${{B}}\nRUN cat /private\n"),
            format!(
                "ARG A={private}\nFROM $A AS got\nFROM {base}\nCOPY --from=got /private /got\nRUN cat /got\n"
            ),
        ])
        .await?,
    );
    outcomes.add_outcome(
        "private-image-by-digest",
        read(&[
            copy(&format!("{repository}@{digest}")),
            copy(&format!("{repository}:other@{digest}")),
            copy(&format!("{}@{digest}", mallory.image("private", "1"))),
        ])
        .await?,
    );

    // The same steps as the victim's, without the file; only the cache could have it.
    let config = json!({
        "image": mallory.image("cached", "1"), "skipPush": true,
        "cacheFrom": [format!("type=registry,ref={}", world.victim.image("private", "cache"))],
    });
    let source = BuildContext::dockerfile(format!("FROM {base}\nCOPY a /a\n")).with_file("a", "a");
    let reply = mallory.build(&source, &config).await?;
    outcomes.add_outcome("private-cache", Outcome::of_reply(reply.status == 200, &reply));
    let config = json!({
        "image": world.victim.image("cached", "1"), "skipPush": true, "cacheFrom": config["cacheFrom"],
    });
    let reply = world.victim.build(&source, &config).await?;
    ensure!(reply.status == 200, "the victim's own cache: {}", reply.text);
    Ok(())
}

/// Tries to push over the victim's private image as the attacker: by `image`, tags, cache exports and spellings.
async fn write_to_victim(world: &AttackWorld, outcomes: &mut Outcomes) -> Result<()> {
    let (victim, mallory) = (&world.victim, &world.mallory);
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let host = &world.testbed.stack.registry.host;
    let source = BuildContext::dockerfile(format!("FROM {base}\nCOPY a /a\n")).with_file("a", "overwritten");
    let digest = async |repository: &str, tag: &str| -> Result<Option<String>> {
        let manifest = world.testbed.registry.get_manifest(repository, tag).await?;
        Ok(manifest.map(|manifest| manifest.digest))
    };
    let before = digest("hostile/victim/private", "1").await?;
    let mut attempt = async |name: &'static str, configs: &[Value]| -> Result<()> {
        let mut outcome = Outcome::before_first_attempt();
        for config in configs {
            let reply = mallory.build(&source, config).await?;
            outcome = outcome.and(Outcome::of_reply(false, &reply));
        }
        let changed = digest("hostile/victim/private", "1").await? != before
            || digest("hostile/victim/private", "added").await?.is_some();
        outcomes.add_outcome(
            name,
            outcome.succeeded_too_if(changed, format!("the victim's repository has changed: {changed}")),
        );
        if changed {
            push_private_image_and_return_digest(world).await?;
            if let Some(added) = digest("hostile/victim/private", "added").await? {
                world
                    .testbed
                    .registry
                    .delete_manifest_and_its_tags("hostile/victim/private", &added)
                    .await?;
            }
        }
        Ok(())
    };
    let own = mallory.image("own", "1");
    attempt(
        "overwritten-image",
        &[json!({ "image": victim.image("private", "1") })],
    )
    .await?;
    let tags = ["1", "../../victim/private:1", &victim.image("private", "1")]
        .map(|tag| json!({ "image": own, "tags": [tag] }));
    // Tags are for the same repository, so the victim's repository has to be the image's.
    let through_image = json!({ "image": victim.image("private", "added"), "tags": ["1"] });
    attempt("overwritten-by-tags", &[&tags[..], &[through_image]].concat()).await?;
    attempt(
        "overwritten-by-cache",
        &[json!({
            "image": own, "skipPush": true,
            "cacheTo": [format!("type=registry,ref={},mode=max", victim.image("private", "1"))],
        })],
    )
    .await?;
    let spellings = [
        format!("{host}/hostile/mallory/../victim/private:1"),
        format!("{host}/hostile//victim/private:1"),
        format!("{host}/hostile/mallory%2f..%2fvictim/private:1"),
        format!("{host}/hostile/mallory/.%2e/victim/private:1"),
        format!("http://{host}/hostile/victim/private:1"),
        format!("{host}/hostile/victim/private"),
    ];
    attempt(
        "overwritten-by-spelling",
        &spellings.map(|image| json!({ "image": image, "tags": ["1"] })),
    )
    .await
}

/// Reads and writes the victim's cache mount in steps of the attacker.
async fn share_cache_mounts(world: &AttackWorld, outcomes: &mut Outcomes) -> Result<()> {
    let (victim, mallory) = (&world.victim, &world.mallory);
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_nanos();
    let id = format!("hostile-{now}");
    let mount = |id: &str, script: &str| {
        format!("FROM {base}\nRUN --mount=type=cache,id={id},target=/cache {script}; : {now}\n")
    };
    // Not with `noCache`, which gives a step a new cache mount.
    let build = async |tenant: &Tenant, dockerfile: String| {
        let config = json!({ "image": tenant.image("cache-mount", "1"), "skipPush": true });
        tenant.build(&BuildContext::dockerfile(dockerfile), &config).await
    };
    let write = mount(&id, &format!("echo {PRIVATE_CONTENT} > /cache/private"));
    let reply = build(victim, write).await?;
    ensure!(reply.status == 200, "{}", reply.text);

    let own = build(victim, mount(&id, "cat /cache/private; : again")).await?;
    ensure!(
        own.text.contains(PRIVATE_CONTENT),
        "the victim's mount is empty: {}",
        own.text
    );
    // The text of the script is in the log too, so what is written there must not be the bait.
    let read = build(mallory, mount(&id, "cat /cache/private")).await?;
    outcomes.add_outcome(
        "cache-mount-read",
        Outcome::succeeded_if_reply_contains(&read, PRIVATE_CONTENT),
    );

    build(mallory, mount(&id, "echo poi''soned > /cache/tool")).await?;
    let own = build(mallory, mount(&id, "cat /cache/tool")).await?;
    ensure!(
        own.text.contains("poisoned"),
        "the attacker has written nothing: {}",
        own.text
    );
    let next = build(victim, mount(&id, "cat /cache/tool || true")).await?;
    outcomes.add_outcome(
        "cache-mount-poisoned",
        Outcome::succeeded_if_reply_contains(&next, "poisoned"),
    );

    let mut outcome = Outcome::before_first_attempt();
    for id in [
        format!("victim/{id}"),
        format!("/victim/{id}"),
        format!("../victim/{id}"),
    ] {
        let reply = build(mallory, mount(&id, "cat /cache/private")).await?;
        outcome = outcome.and(Outcome::succeeded_if_reply_contains(&reply, PRIVATE_CONTENT));
    }
    // Another step than the one before, which failed without the argument.
    let source = BuildContext::dockerfile(mount(&id, "cat /cache/private; : by the argument"));
    let config = json!({
        "image": mallory.image("cache-mount", "1"), "skipPush": true,
        "buildArgs": { "BUILDKIT_CACHE_MOUNT_NS": "victim" },
    });
    let reply = mallory.build(&source, &config).await?;
    outcomes.add_outcome(
        "cache-mount-by-namespace",
        outcome.and(Outcome::succeeded_if_reply_contains(&reply, PRIVATE_CONTENT)),
    );
    Ok(())
}

/// Deploys over the victim's function, and a function with a secret of the victim's functions, as the attacker.
async fn replace_victims_function_and_read_its_secret(
    world: &AttackWorld,
    outcomes: &mut Outcomes,
) -> Result<()> {
    let functions = &world.testbed.functions;
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let shop = |text: &str| BuildContext::static_page_function(base, text);
    let limit = Duration::from_secs(60);
    functions.remove_function("victim-shop").await?;
    let config = json!({ "image": world.victim.image("shop", "1"), "deploy": { "service": "victim-shop" } });
    let reply = world.victim.build(&shop("the victim's shop"), &config).await?;
    ensure!(reply.status == 200, "{}", reply.text);
    functions
        .wait_until_page_equals("victim-shop", "the victim's shop", limit)
        .await?;

    let mut outcome = Outcome::before_first_attempt();
    for deploy in [
        json!({ "service": "victim-shop" }),
        json!({ "SERVICE": "victim-shop", "namespace": "openfaas-fn" }),
    ] {
        let config = json!({ "image": world.mallory.image("shop", "1"), "deploy": deploy });
        let reply = world.mallory.build(&shop("mallory's shop"), &config).await?;
        outcome = outcome.and(Outcome::of_reply(false, &reply));
    }
    let page = functions.get_path_retrying_5xx("victim-shop", "/", limit).await?;
    outcomes.add_outcome(
        "function-of-another-tenant",
        outcome.succeeded_too_if(page.1 != "the victim's shop", format!("the page is {page:?}")),
    );

    functions.put_secret("victim-token", PRIVATE_CONTENT).await?;
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'; cat /var/openfaas/secrets/*\n";
    let source = shop("reader").with_file_of_mode("www/cgi-bin/secrets", script, 0o755);
    let reader = |tenant: &Tenant, service: &str| {
        json!({
            "image": tenant.image("reader", "1"), "deploy": { "service": service, "secrets": ["victim-token"] },
        })
    };
    let config = reader(&world.mallory, "mallory-reader");
    let reply = world.mallory.build(&source, &config).await?;
    let answer = functions.get_path("mallory-reader", "/cgi-bin/secrets").await?;
    outcomes.add_outcome(
        "secret-of-another-tenant",
        Outcome::of_reply(answer.1.contains(PRIVATE_CONTENT), &reply),
    );
    // The same function of the victim's own reads the secret.
    let config = reader(&world.victim, "victim-reader");
    let reply = world.victim.build(&source, &config).await?;
    let answer = functions
        .get_path_retrying_5xx("victim-reader", "/cgi-bin/secrets", limit)
        .await?;
    ensure!(
        answer.1.contains(PRIVATE_CONTENT),
        "the victim's function does not read the secret: {answer:?}, {}",
        reply.text
    );
    functions.remove_function("victim-reader").await?;
    functions.remove_function("mallory-reader").await?;
    functions.remove_function("victim-shop").await
}

/// Sends builds of the attacker with the function, the call id and the tenant of the victim's builds.
async fn imitate_builds(world: &AttackWorld, outcomes: &mut Outcomes) -> Result<()> {
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let gate = "gate-of-the-superseded";
    let call = format!(
        "hostile-{:?}",
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos()
    );
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nRUN {}; echo {PRIVATE_CONTENT}\n",
        gated_command(gate)
    ));
    let config =
        |image: String| -> Value { json!({ "image": image, "deploy": { "service": "victim-shop" } }) };
    let tar = source.tar_with_config_last(&config(world.victim.image("superseded", "1")))?;
    let client = world.victim.client.clone();
    let headers = call.clone();
    let mut running = tokio::spawn(async move {
        client
            .post_signed_with_headers(tar, &[("X-Call-Id", &headers)])
            .await
    });
    tokio::select! {
        started = world.testbed.wait_for_step(gate, true) => started?,
        ended = &mut running => anyhow::bail!("the victim's build ended early: {}", ended??.text),
    }

    let newer = BuildContext::dockerfile(format!("FROM {base}\nRUN true\n"));
    let reply = world
        .mallory
        .build(&newer, &config(world.mallory.image("superseded", "1")))
        .await?;
    // The victim's build either runs still, or has ended with 409.
    if !running.is_finished() {
        world.testbed.open_gate_of_step(gate).ok();
    }
    let victims = running.await??;
    outcomes.add_outcome(
        "superseded-build",
        Outcome::of_reply(false, &reply).succeeded_too_if(
            victims.status == 409,
            format!("the victim's build: {}", victims.status),
        ),
    );

    let other = BuildContext::dockerfile(format!("FROM {base}\nRUN false\n"));
    let config = json!({ "image": world.mallory.image("called", "1"), "skipPush": true });
    let reply = world
        .mallory
        .client
        .post_signed_with_headers(other.tar_with_config_last(&config)?, &[("X-Call-Id", &call)])
        .await?;
    ensure!(
        victims.status == 409 || victims.text.contains(PRIVATE_CONTENT),
        "the victim's own result has nothing to be found: {} {}",
        victims.status,
        victims.text
    );
    outcomes.add_outcome(
        "result-by-call-id",
        Outcome::succeeded_if_reply_contains(&reply, PRIVATE_CONTENT),
    );

    let tar = BuildContext::dockerfile(format!("FROM {base}\nCOPY a /a\n"))
        .with_file("a", "a")
        .tar_with_config_last(&json!({ "image": world.victim.image("claimed", "1") }))?;
    let reply = world
        .mallory
        .client
        .post_signed_with_headers(tar, &[("X-Slipway-Tenant", "victim")])
        .await?;
    let image = world
        .testbed
        .registry
        .get_manifest("hostile/victim/claimed", "1")
        .await?;
    outcomes.add_outcome(
        "key-of-another-tenant",
        Outcome::of_reply(image.is_some(), &reply),
    );
    if let Some(image) = image {
        world
            .testbed
            .registry
            .delete_manifest_and_its_tags("hostile/victim/claimed", &image.digest)
            .await?;
    }
    Ok(())
}

/// Queues builds of the attacker at a builder with one slot, whose first one runs until the victim's is queued too. The
/// attack succeeded if another one of the attacker's ran before the victim's.
async fn queue_many_builds_before_one_of_the_victim() -> Result<Outcome> {
    /// As many as the policy lets a tenant have at the same time.
    const FLOOD_BUILD_COUNT: usize = 4;
    let settings = [("max_inflight", "1"), ("queue_wait", "10m")];
    let world = AttackWorld::start_with_settings(&settings, &[]).await?;
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let gate = "gate-of-the-flood";
    let spawn_build = |tenant: &Tenant, name: String, before: &str| -> Result<_> {
        let step = format!("FROM {base}\nRUN {before}sed 's/^/started at /' /proc/uptime\n");
        let config = json!({ "image": tenant.image(&name, "1"), "skipPush": true, "noCache": true });
        let tar = BuildContext::dockerfile(step).tar_with_config_last(&config)?;
        let client = tenant.client.clone();
        Ok(tokio::spawn(async move { client.post_signed(tar).await }))
    };
    let wait_until_in_flight = async |count: usize| {
        let is_reached = async || {
            let in_flight = world.builder.metric_value("slipway_builds_in_flight").await?;
            Ok(in_flight >= count as f64)
        };
        world
            .testbed
            .wait_until_async_condition(&format!("{count} builds run or wait"), is_reached)
            .await
    };
    let running = spawn_build(
        &world.mallory,
        "flood-running".to_owned(),
        &format!("{}; ", gated_command(gate)),
    )?;
    world.testbed.wait_for_step(gate, true).await?;
    let mut waiting = Vec::new();
    for number in 1..FLOOD_BUILD_COUNT {
        waiting.push(spawn_build(&world.mallory, format!("flood-{number}"), "")?);
    }
    wait_until_in_flight(FLOOD_BUILD_COUNT).await?;
    let victims = spawn_build(&world.victim, "slots".to_owned(), "")?;
    wait_until_in_flight(FLOOD_BUILD_COUNT + 1).await?;
    world.testbed.open_gate_of_step(gate)?;

    let victims = victims.await??;
    let started = start_of_step_in_seconds(&victims)?;
    running.await??;
    let mut before = 0;
    for build in waiting {
        before += usize::from(start_of_step_in_seconds(&build.await??)? <= started);
    }
    // The order shows it, on a busy machine too; the time would not.
    let evidence = format!("{before} of {} waiting builds ran before", FLOOD_BUILD_COUNT - 1);
    Ok(Outcome::of_status(before > 0, victims.status, evidence))
}

/// Returns when the step of a build began, by the machine's time since its start, which the step prints.
fn start_of_step_in_seconds(reply: &HttpReply) -> Result<f64> {
    // The name of the step has the same text, without a number after it.
    let mut printed = reply.text.split("started at ").skip(1);
    let seconds = printed.find_map(|rest| rest.split_whitespace().next()?.parse().ok());
    seconds.with_context(|| format!("the step has not run: {} {}", reply.status, reply.text))
}
