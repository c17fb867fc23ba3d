//! Attacks by one tenant on what a daemon that both share has fetched for another: git repositories and files.

use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use slipway_e2e::{
    build_context::BuildContext, buildkit::BuildkitDaemon, client::HttpReply, git_server::GitServer,
    testbed::Testbed,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes},
    world::{AttackWorld, ReadableFileAndGitUrls, Tenant},
};

/// The content of the file in the victim's git repository.
const PRIVATE_GIT_FILE_CONTENT: &str = "what-only-the-victim-commits";
/// The content of the victim's file.
const PRIVATE_FILE_CONTENT: &str = "what-only-the-victim-downloads";

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "git-checkout-by-commit",
        attempts: "names a commit of another tenant's git repository at a repository of the attacker's",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "git-repository-by-commit",
        attempts: "names another tenant's git repository by a commit without its token, with and without a user name",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "file-by-checksum",
        attempts: "names another tenant's file by its checksum at an address of the attacker's",
        stopped_with: &[422],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_gets_what_the_daemon_has_fetched_for_another() -> Result<()> {
    let recorded: Value = serde_json::from_str(include_str!("../../../clients/recorded/secrets.json"))?;
    let text = |name: &str| recorded[name].as_str().with_context(|| name.to_owned());
    let token = recorded["values"]["pip_token"].as_str().context("no token")?;
    // A sealed value does not depend on its name.
    let envelope = text("sealed")?.replace("pip_token:", "GIT_AUTH_TOKEN:");
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    fs::write(&key, text("private_key")?)?;

    let server = GitServer::start_with_token_for_private_files(token).await?;
    let host = server.host();
    let commit = server.add_repository("private/app.git", "secret", PRIVATE_GIT_FILE_CONTENT)?;
    server.add_repository("public/app.git", "other", "public")?;
    server.add_file("victim/secret", PRIVATE_FILE_CONTENT)?;
    server.add_file("mallory/secret", "public")?;

    let testbed = Testbed::find_running_stack()?;
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let settings = [
        ("allowed_sources", host.as_str()),
        ("buildkit_url", &daemon.socket_url()),
        (
            "build_secrets_private_key_path",
            key.to_str().context("the path is not UTF-8")?,
        ),
    ];
    let readable = ReadableFileAndGitUrls {
        victim_http: vec![format!("http://{host}/victim/")],
        mallory_http: vec![format!("http://{host}/mallory/")],
        git: vec![format!("http://{host}/")],
    };
    let world = AttackWorld::start_with_readable_addresses(&settings, &readable).await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "fetched").await?;

    let private = format!("http://{host}/private/app.git");
    let victims_source = format!("ADD {private}#main /got\nADD http://{host}/victim/secret /got/file\n");
    let victims_steps = "RUN cat /got/secret /got/file; : first\n";
    let reply =
        build_sources_as_tenant(&world.victim, &victims_source, victims_steps, Some(&envelope)).await?;
    ensure!(
        reply.text.contains(PRIVATE_GIT_FILE_CONTENT) && reply.text.contains(PRIVATE_FILE_CONTENT),
        "the victim's build: {}",
        reply.text
    );

    let mut outcomes = Outcomes::default();
    let users = user_names_in_git_remotes(&daemon)?;
    let clone = [
        format!("ADD {private}#{commit} /got\n"),
        format!("ADD --keep-git-dir {private}#{commit} /got\n"),
        format!("ADD {private}?ref={commit}&submodules=false /got\n"),
        format!("ADD {private}?ref={commit}&mtime=commit /got\n"),
    ];
    let other = clone
        .clone()
        .map(|source| source.replace("/private/", "/public/"));
    let with_users = users.iter().flat_map(|user| {
        let login = |user: &str| clone[0].replace("http://", &format!("http://{user}@"));
        let encoded = user.replacen('s', "%73", 1);
        [login(user), login(&format!("{user}:")), login(&encoded)]
    });
    let clone: Vec<_> = clone.iter().cloned().chain(with_users).collect();
    outcomes.add_outcome(
        "git-checkout-by-commit",
        build_each_and_look_for_bait(&world.mallory, &other, PRIVATE_GIT_FILE_CONTENT).await?,
    );
    outcomes.add_outcome(
        "git-repository-by-commit",
        build_each_and_look_for_bait(&world.mallory, &clone, PRIVATE_GIT_FILE_CONTENT).await?,
    );
    let checksum = hex::encode(Sha256::digest(PRIVATE_FILE_CONTENT));
    let file = format!("ADD --checksum=sha256:{checksum} http://{host}/mallory/secret /got/secret\n");
    outcomes.add_outcome(
        "file-by-checksum",
        build_each_and_look_for_bait(&world.mallory, &[file], PRIVATE_FILE_CONTENT).await?,
    );

    // The victim's own next builds find both again, and need no token for the commit.
    let pinned = format!(
        "ADD {private}#{commit} /got\nADD --checksum=sha256:{checksum} http://{host}/victim/secret /got/file\n"
    );
    let steps = victims_steps.replace("first", "second");
    let reply = build_sources_as_tenant(&world.victim, &pinned, &steps, Some(&envelope)).await?;
    ensure!(
        reply.text.contains(PRIVATE_GIT_FILE_CONTENT) && reply.text.contains(PRIVATE_FILE_CONTENT),
        "the victim's second build: {}",
        reply.text
    );
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)?;
    ensure!(
        !users.is_empty(),
        "no repository of the daemon has a user name in its address, so the attacks did not try one"
    );
    Ok(())
}

/// Builds these sources and steps as a tenant, with the cache.
async fn build_sources_as_tenant(
    tenant: &Tenant,
    source_instructions: &str,
    step_instructions: &str,
    envelope: Option<&str>,
) -> Result<HttpReply> {
    let testbed = Testbed::find_running_stack()?;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let source = BuildContext::dockerfile(format!("FROM {base}\n{source_instructions}{step_instructions}"));
    let config = json!({ "image": tenant.image("fetched", "1"), "skipPush": true });
    let tar = match envelope {
        Some(envelope) => source.tar_with_secrets(&config, envelope)?,
        None => source.tar_with_config_last(&config)?,
    };
    tenant.client.post_signed(tar).await
}

/// Builds each of these sources as the attacker; the attack succeeded if a step printed `bait`.
async fn build_each_and_look_for_bait(
    mallory: &Tenant,
    source_instructions: &[String],
    bait: &str,
) -> Result<Outcome> {
    let mut outcome = Outcome::before_first_attempt();
    for source in source_instructions {
        // A step that the cache has prints nothing.
        let digest = hex::encode(Sha256::digest(source));
        let steps = format!("RUN cat /got/secret; : {digest}\n");
        let reply = build_sources_as_tenant(mallory, source, &steps, None).await?;
        outcome = outcome.and(Outcome::succeeded_if_reply_contains(&reply, bait));
        if outcome.has_succeeded() {
            break;
        }
    }
    Ok(outcome)
}

/// Returns the user names in the addresses of the git repositories that a daemon has cloned. The daemon may build
/// meanwhile.
fn user_names_in_git_remotes(daemon: &BuildkitDaemon) -> Result<Vec<String>> {
    let mut users = Vec::new();
    let mut folders = vec![daemon.data_folder()];
    while let Some(folder) = folders.pop() {
        for entry in unless_removed(fs::read_dir(&folder))?.into_iter().flatten() {
            let Some(entry) = unless_removed(entry)? else {
                continue;
            };
            let Some(kind) = unless_removed(entry.file_type())? else {
                continue;
            };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name() == "config" {
                let text = unless_removed(fs::read(entry.path()))?.unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let urls = text
                    .lines()
                    .filter_map(|line| line.trim().strip_prefix("url = http://"));
                users.extend(urls.filter_map(|url| Some(url.split_once('@')?.0.to_owned())));
            }
        }
    }
    Ok(users)
}

/// Returns the result of reading a file or folder, or `None` if it has been removed.
fn unless_removed<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
