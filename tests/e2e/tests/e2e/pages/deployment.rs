//! The page of a build that deploys, and what it says once the deployment has ended.

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{
    browser::{Browser, ENTER_KEY},
    build_context::{BuildContext, gated_command},
    pausing_proxy::{PausePoint, PausingProxy, RequestSelector},
    testbed::Testbed,
};

use super::setting::{BuilderBehindPrefixProxy, fresh_id};
use super::{assert_no_accessibility_faults_in_all_views, assert_nothing_reported, wait_for_state};

/// An expression that says whether the page has a row of a deployment that runs.
const HAS_RUNNING_DEPLOYMENT: &str = "[...document.querySelectorAll('#top .steps li')].some((row) => \
     row.querySelector('.name').textContent === 'deployment' && row.querySelector('svg.running') !== null)";

/// Returns an expression that says whether the row of this name in a list of facts has this text.
fn fact_is(name: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#rest dt')].some((term) => term.textContent === {} && \
         term.nextElementSibling.textContent === {})",
        json!(name),
        json!(text)
    )
}

#[tokio::test]
async fn a_deployment_is_a_running_row_until_it_ends_and_the_page_then_says_what_ran_afterwards() -> Result<()>
{
    let gateway = PausingProxy::start_to_gateway(&Testbed::find_running_stack()?.stack.gateway.url).await?;
    let setting = BuilderBehindPrefixProxy::start(&[("gateway_url", gateway.url())]).await?;
    let name = "page-deploying";
    setting.testbed.functions.remove_function(name).await?;
    let base = setting.testbed.build_busybox_once_and_get_name().await?;
    let id = fresh_id(name)?;
    let gate = format!("gate-of-{id}");
    let dockerfile = format!(
        "FROM {base}\nCOPY index.html /www/index.html\nRUN mkdir -p /www/_ && echo OK > /www/_/health && cp /www/_/health \
         /www/_/ready\nRUN {}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n",
        gated_command(&gate)
    );
    let context = BuildContext::dockerfile(dockerfile).with_file("index.html", id.as_str());
    let image = setting.image_name(name);
    // The key that nobody knows is a warning.
    let config = json!({"image": image, "deploy": {"service": name}, "unknownKey": 1});
    let browser = Browser::start(true).await?;
    let build = setting.build_with_config(&id, &context, &config);
    let following = async {
        setting.testbed.wait_for_step(&gate, true).await?;
        let (_, answer) = setting.builder.ask(&format!("/builds/{id}")).await?;
        let url = setting.page_url(&answer)?;
        browser.open(&url).await?;
        wait_for_state(&browser, "running").await?;
        assert_eq!(browser.evaluate(HAS_RUNNING_DEPLOYMENT).await?, false);
        // A search of a build that runs covers what is on the page, and says so.
        browser.type_into("#find", "httpd-is-in-no-line").await?;
        browser.press(ENTER_KEY).await?;
        browser
            .wait_until(
                "document.getElementById('found').textContent === \
                 '0 lines found on this page. A build that has ended is searched whole.'",
            )
            .await?;

        gateway.reset_and_release_and_pause_at(
            RequestSelector::NextWithMethod("POST"),
            PausePoint::BeforeForwarding,
        );
        setting.testbed.open_gate_of_step(&gate)?;
        gateway.wait_until_paused().await?;
        // The page that was opened before goes on to it, and one that is opened now has it from the beginning.
        for is_opened_again in [false, true] {
            if is_opened_again {
                browser.open(&url).await?;
            }
            wait_for_state(&browser, "deploying").await?;
            browser.wait_until(HAS_RUNNING_DEPLOYMENT).await?;
        }
        browser.store_screenshot("deploying").await?;
        assert_no_accessibility_faults_in_all_views(&browser).await?;
        gateway.reset_and_forward_again();
        wait_for_state(&browser, "success").await
    };
    let (reply, ()) = tokio::try_join!(build, following)?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let outcome = reply.json_or_error_text();
    let deployed = outcome["deployment"]["image"].as_str().context("no image")?;
    assert_eq!(
        outcome["deployment"]["running"],
        json!({"image": deployed, "availableReplicas": 1})
    );
    let state = format!("{deployed}, available replicas: 1");
    browser.wait_until(&fact_is("Ran afterwards", &state)).await?;
    assert_eq!(browser.evaluate(HAS_RUNNING_DEPLOYMENT).await?, false);
    let text = browser.text().await?;
    for part in [
        "deployment: watch and probe",
        "sent to BuildKit",
        "layers, ",
        "Warnings",
        "unknownKey",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_nothing_reported(&browser).await?;
    setting.testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn the_list_shows_the_builds_in_the_chosen_state_only() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let image = setting.image_name(&fresh_id("page-states")?);
    for (step, status) in [("RUN true", 200), ("RUN exit 3", 422)] {
        let context = setting.uncached_context_with_steps(step).await?;
        let reply = setting.build(&fresh_id("page-states")?, &context, &image).await?;
        assert_eq!(reply.status, status, "{}", reply.text);
    }
    let (_, list) = setting.builder.ask("/builds?limit=1").await?;
    let browser = Browser::start(true).await?;
    browser.open(&setting.page_url(&list)?).await?;
    browser.type_into("input[name=image]", &image).await?;
    for state in ["success", "failed", "cancelled"] {
        let choose = format!("document.querySelector('select[name=state]').value = '{state}'");
        browser.evaluate(&choose).await?;
        browser.click(".filter button").await?;
        // The filter is in the address, and the chosen state stays chosen.
        browser
            .wait_until(&format!(
                "new URLSearchParams(location.search).get('state') === '{state}' && document.readyState === 'complete'"
            ))
            .await?;
        assert_eq!(
            browser
                .evaluate("document.querySelector('select[name=state]').value")
                .await?,
            state
        );
        let states =
            "[...document.querySelectorAll('.builds tbody .state')].map((badge) => badge.textContent)";
        let expected = match state {
            "cancelled" => json!([]),
            state => json!([state]),
        };
        assert_eq!(browser.evaluate(states).await?, expected, "{state}");
    }
    assert_nothing_reported(&browser).await
}
