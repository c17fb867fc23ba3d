//! `slipway open` and the page that it names, through the gateway of the stack.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;
use slipway_e2e::{
    browser::Browser, build_context::gated_command, slipway_command::SlipwayProgram, testbed::Testbed,
};

use super::slipway_command::create_project;

/// The headers of a page that keep a browser from loading or sending anything else.
const PROTECTING_HEADERS: [&str; 3] = [
    "content-security-policy",
    "referrer-policy",
    "x-content-type-options",
];

/// A command that writes more than the Community Edition's gateway holds back of a stream: about 6 KB, until more
/// comes.
const WRITE_MORE_THAN_GATEWAY_HOLDS: &str =
    "seq 1 200 | sed 's/$/ of some lines that fill the buffers of the gateway/'";

/// What a browser says of a header that has no effect without TLS at another address than the browser's own machine.
const REPORT_OF_MISSING_TLS: &str = "Cross-Origin-Opener-Policy header has been ignored";

/// Returns an expression that says whether the log on the page has this line.
fn has_line(text: &str) -> String {
    format!("[...document.querySelectorAll('#lines li')].some((line) => /\\b{text}$/.test(line.textContent))")
}

#[tokio::test]
async fn the_page_that_open_names_follows_a_queued_build_through_the_gateway_with_its_policy_unchanged()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-open";
    let folder = create_project(&testbed, name, &format!("{:?}", std::time::SystemTime::now())).await?;
    let gates = ["gate-cmd-open-first", "gate-cmd-open-second"];
    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    let step = format!(
        "RUN echo waiting; {WRITE_MORE_THAN_GATEWAY_HOLDS}; {}; echo through; {WRITE_MORE_THAN_GATEWAY_HOLDS}\nRUN {}; echo at the end\nUSER 1000",
        gated_command(gates[0]),
        gated_command(gates[1])
    );
    folder.write_file(
        "template/small/Dockerfile",
        dockerfile.replace("USER 1000", &step),
    )?;
    // Without the builder's own address, everything goes through the gateway.
    let slipway = SlipwayProgram::for_testbed(&testbed)
        .await?
        .with_variable("SLIPWAY_BUILDER_URL", "");
    let mut up = slipway.start(folder.path(), &["up", "--via", "queue", "--progress", "json"])?;
    let printed = up.read_stderr_lines_until_one_contains("\"submitted\"").await?;
    let submitted: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    let id = submitted["id"].as_str().context("no ID")?;
    testbed.wait_for_step(gates[0], true).await?;

    let opened = slipway.run(folder.path(), &["open", id]).await?;

    assert_eq!((opened.code, opened.stdout.lines().count()), (0, 1), "{opened:?}");
    let url = opened.stdout.trim_end();
    let gateway = testbed.stack.gateway.url.trim_end_matches('/');
    let path = url.strip_prefix(&format!("{gateway}/function/builder-fn"));
    let path = path.with_context(|| format!("not at the gateway: {opened:?}"))?;
    assert!(path.starts_with(&format!("/builds/{id}?")), "{path}");

    let http = reqwest::Client::builder().no_proxy().build()?;
    let get = async |url: &str| {
        let response = http.get(url).header("Accept", "text/html").send().await?;
        let headers = PROTECTING_HEADERS.map(|header| response.headers().get(header).cloned());
        Ok::<_, anyhow::Error>((response.status(), headers))
    };
    let direct = format!("{}{path}", testbed.stack.builder_url.trim_end_matches('/'));
    let (status, headers) = get(url).await?;
    assert_eq!((status.as_u16(), &headers), (200, &get(&direct).await?.1));
    let policy = headers[0].as_ref().context("no policy")?.to_str()?;
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let (changed, _) = get(&url.replace("link=build.", "link=builds.")).await?;
    assert_eq!(changed.as_u16(), 401, "the link is checked behind the gateway");

    let browser = Browser::start(true).await?;
    browser.open(url).await?;
    browser.wait_until(&has_line("waiting")).await?;
    browser
        .wait_until("document.querySelector('#top .state.running') !== null")
        .await?;
    // A style that the policy blocked has no rules.
    assert_eq!(
        browser
            .evaluate("document.styleSheets.length === 1 && document.styleSheets[0].cssRules.length > 10")
            .await?,
        true
    );
    // Only the script hides it at the end, and shows the lines that come meanwhile.
    assert_eq!(
        browser
            .evaluate("document.getElementById('following').hidden")
            .await?,
        false
    );
    testbed.open_gate_of_step(gates[0])?;
    // The line comes while the build runs: nobody has opened the second gate.
    browser.wait_until(&has_line("through")).await?;
    testbed.wait_for_step(gates[1], true).await?;
    testbed.open_gate_of_step(gates[1])?;
    browser.wait_until(&has_line("at the end")).await?;
    browser
        .wait_until("document.getElementById('found').textContent === 'The build has ended: success.'")
        .await?;
    let mut reports = browser.take_reports().await?;
    reports.retain(|report| !report.contains(REPORT_OF_MISSING_TLS));
    assert!(reports.is_empty(), "{reports:?}");
    let output = up.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!(output.code, 0, "{output:?}");
    testbed.functions.remove_function(name).await
}
