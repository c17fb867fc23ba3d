//! The pages of builds in a real browser, as a person sees them: builds that run, that failed and that succeeded,
//! hostile output, a very long log, and the list. Screenshots and measurements are left in `target/pages`.

mod accessibility;
mod deployment;
mod long_log;
mod setting;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::{
    browser::{Browser, DESKTOP, ENTER_KEY, TAB_KEY, TELEPHONE, View},
    build_context::{BuildContext, gated_command},
};

use accessibility::assert_no_accessibility_faults_in_all_views;
use setting::{BuilderBehindPrefixProxy, fresh_id};

/// The most bytes of a page over the wire, with everything that it loads by itself.
const PAGE_BYTES_MAX: u64 = 60_000;

/// Prints what cargo prints about an error, and fails.
const FAILING_CARGO: &str = r#"#!/bin/sh
printf '\033[1m\033[32m   Compiling\033[0m %s\n' 'itoa v1.0.15' 'bytes v1.10.1' 'http v1.3.1' 'function-host v0.1.0' 'shop v0.1.0 (/src)'
printf '\033[1m\033[31merror[E0425]\033[0m\033[1m: cannot find value `pirce` in this scope\033[0m\n'
printf '  \033[1m\033[34m--> \033[0msrc/main.rs:7:18\n   |\n'
printf '7  |     let total = pirce * count;\n'
printf '   |                 \033[1m\033[31m^^^^^ help: a local variable with a similar name exists: `price`\033[0m\n\n'
printf '\033[1m\033[31merror\033[0m: could not compile `shop` (bin "shop") due to 1 previous error\n'
exit 101
"#;

/// Returns a context whose step `cargo build` fails as a real one does.
async fn context_with_failing_cargo_build(setting: &BuilderBehindPrefixProxy) -> Result<BuildContext> {
    let steps = "COPY --chmod=755 cargo /bin/cargo\nWORKDIR /src\nCOPY main.rs src/main.rs\nRUN cargo build --release";
    let context = setting.uncached_context_with_steps(steps).await?;
    Ok(context
        .with_file("cargo", FAILING_CARGO)
        .with_file("main.rs", "fn main() {}\n"))
}

/// Asserts that the browser reported nothing about the page: no error, and nothing that the page's policy blocked.
async fn assert_nothing_reported(browser: &Browser) -> Result<()> {
    let reports = browser.take_reports().await?;
    assert!(reports.is_empty(), "{reports:?}");
    Ok(())
}

/// Returns an expression that says whether the log on the page has a line that matches a regular expression.
fn js_log_has_line_matching(pattern: &str) -> String {
    format!("[...document.querySelectorAll('#lines li')].some((line) => /{pattern}/.test(line.textContent))")
}

/// Waits until the page shows this state of the build.
async fn wait_for_state(browser: &Browser, state: &str) -> Result<()> {
    let expression = format!("document.querySelector('#top .state.{state}') !== null");
    browser.wait_until(&expression).await
}

#[tokio::test]
async fn a_page_follows_a_running_build_to_its_end() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let browser = Browser::start(true).await?;
    let id = fresh_id("page-running")?;
    let gate = format!("gate-of-{id}");
    let steps = format!(
        "RUN echo first step\nRUN printf '\\033[32mgreen\\033[0m and plain\\n'; echo waiting; {}; echo through",
        gated_command(&gate)
    );
    let context = setting.uncached_context_with_steps(&steps).await?;
    let image = setting.image_name("page-running");
    let build = setting.build(&id, &context, &image);
    let following = async {
        setting.testbed.wait_for_step(&gate, true).await?;
        let (status, answer) = setting.builder.ask(&format!("/builds/{id}")).await?;
        assert_eq!(status, 200, "{answer}");
        browser.open(&setting.page_url(&answer)?).await?;
        browser
            .wait_until(&js_log_has_line_matching("\\bwaiting$"))
            .await?;
        wait_for_state(&browser, "running").await?;
        let coloured = "document.querySelector('#lines .a2')?.textContent";
        assert_eq!(browser.evaluate(coloured).await?, "green");
        browser.store_screenshot("running").await?;
        assert_no_accessibility_faults_in_all_views(&browser).await?;
        setting.testbed.open_gate_of_step(&gate)?;
        browser
            .wait_until(&js_log_has_line_matching("\\bthrough$"))
            .await?;
        wait_for_state(&browser, "success").await?;
        browser
            .wait_until("document.getElementById('found').textContent === 'The build has ended: success.'")
            .await
    };
    let (reply, ()) = tokio::try_join!(build, following)?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let text = browser.text().await?;
    let digest = reply.text_field("digest");
    assert!(
        text.contains(&digest) && text.contains("This is the end of the log."),
        "{text}"
    );
    assert_eq!(browser.evaluate("document.title.split(':')[0]").await?, "success");
    assert_eq!(
        browser
            .evaluate("document.querySelectorAll('#later[href], #later ~ a').length")
            .await?,
        0,
        "nothing follows the end"
    );
    let are_in_order =
        "[...document.querySelectorAll('#lines li')].every((line, at) => line.id === 'L' + (at + 1))";
    assert_eq!(
        browser.evaluate(are_in_order).await?,
        true,
        "each line once: {text}"
    );
    assert_no_accessibility_faults_in_all_views(&browser).await?;
    assert_nothing_reported(&browser).await
}

#[tokio::test]
async fn a_cached_step_is_marked_on_the_page_of_a_running_build() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let base = setting.testbed.build_busybox_once_and_get_name().await?;
    let now = fresh_id("page-cached")?;
    let context = |rest: &str| {
        BuildContext::dockerfile(format!("FROM {base}\nCOPY now /now\nRUN echo once\n{rest}"))
            .with_file("now", now.clone())
    };
    let image = setting.image_name("page-cached");
    let first = setting
        .build(&fresh_id("page-first")?, &context(""), &image)
        .await?;
    assert_eq!(first.status, 200, "{}", first.text);
    let browser = Browser::start(true).await?;
    let gate = format!("gate-of-{now}");
    let gated = context(&format!("RUN {}\n", gated_command(&gate)));
    let build = setting.build(&now, &gated, &image);
    let reading = async {
        setting.testbed.wait_for_step(&gate, true).await?;
        let (_, answer) = setting.builder.ask(&format!("/builds/{now}")).await?;
        browser.open(&setting.page_url(&answer)?).await?;
        wait_for_state(&browser, "running").await?;
        let row = |name: &str, class: &str| {
            format!(
                "[...document.querySelectorAll('#top .steps li')].some((row) => \
                 row.textContent.includes('{name}') && row.querySelector('svg.{class}') !== null)"
            )
        };
        browser.wait_until(&row("RUN echo once", "cached")).await?;
        browser.wait_until(&row(&gate, "running")).await?;
        setting.testbed.open_gate_of_step(&gate)
    };
    let (reply, ()) = tokio::try_join!(build, reading)?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    wait_for_state(&browser, "success").await?;
    assert_nothing_reported(&browser).await
}

#[tokio::test]
async fn the_page_of_a_failed_build_says_why_first_and_is_used_with_the_keyboard() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let context = context_with_failing_cargo_build(&setting).await?;
    let image = setting.image_name("shop");
    let reply = setting.build(&fresh_id("page-failed")?, &context, &image).await?;
    assert_eq!(reply.status, 422, "{}", reply.text);
    let browser = Browser::start(true).await?;
    let url = setting.page_url(&reply.json_or_error_text())?;
    browser
        .open_until(&url, &js_log_has_line_matching("could not compile `shop`"))
        .await?;

    let text = browser.text().await?;
    let place = |part: &str| {
        text.find(part)
            .with_context(|| format!("{part:?} is not in {text}"))
    };
    let steps = place("\nSteps\n")?;
    for part in [
        "What failed",
        "cannot find value `pirce`",
        "src/main.rs:7",
        "cargo build --release",
        "exit code: 101",
    ] {
        assert!(place(part)? < steps, "{part:?} is not above the steps: {text}");
    }
    browser.store_screenshot("failed").await?;
    for (name, view) in [
        ("failed-telephone", TELEPHONE),
        (
            "failed-dark",
            View {
                is_dark: true,
                ..DESKTOP
            },
        ),
    ] {
        browser.show_as(view).await?;
        browser.store_screenshot(name).await?;
    }
    assert_no_accessibility_faults_in_all_views(&browser).await?;

    // The first stop leads past everything before the content, and the controls of the log are stops too.
    browser.press(TAB_KEY).await?;
    let focused = "document.activeElement.id || document.activeElement.className";
    assert_eq!(browser.evaluate(focused).await?, "skip");
    browser.press(ENTER_KEY).await?;
    assert_eq!(browser.evaluate(focused).await?, "main");
    for id in ["find", "fold"] {
        let mut stops = 0;
        while browser.evaluate(focused).await? != id {
            stops += 1;
            ensure!(stops < 20, "{id} is not among the first 20 stops");
            browser.press(TAB_KEY).await?;
        }
    }
    let open_steps = "document.querySelectorAll('#lines details[open]').length";
    browser.press(ENTER_KEY).await?;
    assert_eq!(browser.evaluate(open_steps).await?, 0);
    browser.press(ENTER_KEY).await?;
    assert_ne!(browser.evaluate(open_steps).await?, 0);
    browser.type_into("#find", "function-host v0").await?;
    browser.press(ENTER_KEY).await?;
    browser
        .wait_until("document.getElementById('found').textContent === '1 line found.'")
        .await?;
    // What was found is a link to its line, with the focus.
    browser.press(ENTER_KEY).await?;
    browser
        .wait_until(
            "document.querySelector('#lines li:target')?.textContent.includes('function-host v0') === true",
        )
        .await?;
    assert_nothing_reported(&browser).await
}

#[tokio::test]
async fn pages_are_readable_without_scripts() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let failing = context_with_failing_cargo_build(&setting).await?;
    let working = setting
        .uncached_context_with_steps("RUN echo all is well")
        .await?;
    let browser = Browser::start(false).await?;
    for (name, context, status, line, expected) in [
        (
            "failed",
            failing,
            422,
            "could not compile `shop`",
            ["What failed", "cannot find value `pirce`", "src/main.rs:7"],
        ),
        (
            "finished",
            working,
            200,
            "all is well",
            ["success", "all is well", "Image and source"],
        ),
    ] {
        let id = fresh_id("page-without-scripts")?;
        let reply = setting.build(&id, &context, &setting.image_name("shop")).await?;
        assert_eq!(reply.status, status, "{}", reply.text);
        let url = setting.page_url(&reply.json_or_error_text())?;
        // A page that was sent before the log was read is followed by one with the lines.
        let expected_line = format!(
            "document.getElementById('lines')?.textContent.includes({}) === true",
            json!(line)
        );
        browser.open_until(&url, &expected_line).await?;
        let text = browser.text().await?;
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(
            !text.contains("Fold all steps"),
            "controls that need scripts are hidden: {text}"
        );
        browser
            .store_screenshot(&format!("{name}-without-scripts"))
            .await?;
        assert_no_accessibility_faults_in_all_views(&browser).await?;
    }
    assert_nothing_reported(&browser).await
}

#[tokio::test]
async fn hostile_output_and_names_stay_text_on_pages() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[]).await?;
    let browser = Browser::start(true).await?;
    // The name of a step is its command, so that it is hostile too. The second half arrives while the page is open.
    let markup =
        "</script></title></details><img src=x onerror=document.title=1><script>document.title=1</script>";
    let gate = format!("gate-of-{}", fresh_id("page-hostile")?);
    let line = format!(
        "echo '{markup}'; printf '\\033]8;;javascript:alert(1)\\033\\\\link\\033]8;;\\033\\\\ \\342\\200\\256txet \\r hidden\\n'"
    );
    let steps = format!("RUN {line}; {}; {line}; exit 1", gated_command(&gate));
    let id = fresh_id("<b onclick=document.title=1>&amp;\"'")?;
    let path = "/builds/".to_owned() + &percent_encode(&id);
    let context = setting.uncached_context_with_steps(&steps).await?;
    let image = setting.image_name("page-hostile");
    let build = setting.build(&id, &context, &image);
    let following = async {
        setting.testbed.wait_for_step(&gate, true).await?;
        let (_, answer) = setting.builder.ask(&path).await?;
        let url = setting.page_url(&answer)?;
        browser.open(&url).await?;
        browser.wait_until(&js_log_has_line_matching("hidden")).await?;
        setting.testbed.open_gate_of_step(&gate)?;
        wait_for_state(&browser, "failed").await?;
        Ok::<_, anyhow::Error>(url)
    };
    let (reply, url) = tokio::try_join!(build, following)?;
    assert_eq!(reply.status, 422);

    let has_lines = "document.querySelectorAll('#lines li').length > 2";
    for _ in ["as it was followed", "as the builder renders it"] {
        let text = browser.text().await?;
        for part in [markup, "<U+202E>txet", id.as_str()] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        // Its own script is the only one, and the links in the log are those to its lines.
        for (selector, count) in [
            ("script", 1),
            ("img, iframe, b, [onclick], [onerror]", 0),
            ("#lines a:not([href^=\"#L\"])", 0),
        ] {
            let found = format!("document.querySelectorAll({}).length", json!(selector));
            assert_eq!(browser.evaluate(&found).await?, count, "{selector}");
        }
        let title = browser.evaluate("document.title").await?;
        assert!(
            title.as_str().is_some_and(|title| title.starts_with("failed:")),
            "{title}"
        );
        assert_nothing_reported(&browser).await?;
        browser.open_until(&url, has_lines).await?;
    }

    // Names that make the builder reject a request are shown with the reason.
    let rejected_id = fresh_id("page-rejected")?;
    let reply = setting.build(&rejected_id, &context, markup).await?;
    assert_eq!(reply.status, 400, "{}", reply.text);
    let (_, answer) = setting.builder.ask(&format!("/builds/{rejected_id}")).await?;
    browser.open(&setting.page_url(&answer)?).await?;
    let text = browser.text().await?;
    assert!(text.contains("<img src=x"), "{text}");
    assert_eq!(
        browser
            .evaluate("document.querySelectorAll('img, script').length")
            .await?,
        1
    );
    assert_nothing_reported(&browser).await?;

    // If something escaped all the same, the page's policy would not run it.
    let inserted = "(() => { const script = document.createElement('script'); \
                    try { script.textContent = 'document.title = 2'; document.body.append(script); } catch {} \
                    return document.title; })()";
    assert_ne!(browser.evaluate(inserted).await?, "2");
    assert_ne!(browser.take_reports().await?, [""; 0], "the browser reports it");
    Ok(())
}

/// Percent-encodes an ID for a path.
fn percent_encode(id: &str) -> String {
    let encoded = id.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

#[tokio::test]
async fn the_list_leads_to_the_builds_of_a_function_and_back() -> Result<()> {
    let setting = BuilderBehindPrefixProxy::start(&[("log_level", "debug")]).await?;
    let name = "page-shop";
    // The daemon's history has the builds of earlier runs.
    let image = setting.image_name(&fresh_id(name)?);
    let config = json!({"image": image, "deploy": {"service": name}});
    let mut ids = Vec::new();
    for page in ["<h1>Shop</h1>", "<h1>Our shop</h1>"] {
        let now = fresh_id(page)?;
        let base = setting.testbed.build_busybox_once_and_get_name().await?;
        let context = BuildContext::static_page_function(base, &now);
        let id = fresh_id(name)?;
        let reply = setting.build_with_config(&id, &context, &config).await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        ids.push(id);
    }
    let (_, list) = setting.builder.ask("/builds?limit=1").await?;
    let browser = Browser::start(true).await?;
    browser.open(&setting.page_url(&list)?).await?;
    browser.store_screenshot("list").await?;
    assert_no_accessibility_faults_in_all_views(&browser).await?;
    browser.type_into("input[name=image]", &image).await?;
    browser.type_into("input[name=function]", name).await?;
    browser.click(".filter button").await?;
    browser
        .wait_until("document.querySelectorAll('.builds tbody tr').length === 2")
        .await?;
    browser.click(".builds tbody a").await?;
    browser
        .wait_until("document.getElementById('build') !== null")
        .await?;
    let text = browser.text().await?;
    for part in [ids[1].as_str(), "Deployment", "Last builds"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    browser
        .wait_until("document.querySelectorAll('.chart li').length >= 2")
        .await?;
    browser.store_screenshot("finished").await?;
    assert_no_accessibility_faults_in_all_views(&browser).await?;
    browser.click("nav a").await?;
    browser
        .wait_until("document.querySelector('h1').textContent === 'Builds'")
        .await?;
    assert_nothing_reported(&browser).await?;

    // At this level, every request is a line in the builder's log.
    let log = setting.builder.log_text();
    let page = list["page"].as_str().context("no page")?;
    let signature = page.rsplit('.').next().context("no signature")?;
    assert!(log.contains(&format!("/builds/{}", ids[1])), "{log}");
    assert!(!log.contains(signature), "a link is in the log");
    setting.testbed.functions.remove_function(name).await
}
