//! The page of a build with a very long log.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    browser::{Browser, ENTER_KEY, artefact_folder},
    buildkit::BuildkitDaemon,
};

use super::setting::{BuilderBehindPrefixProxy, fresh_id};
use super::{PAGE_BYTES_MAX, assert_nothing_reported, js_log_has_line_matching};

/// The goal for the first paint of a page is a second. The limit leaves room for a machine that is busy with other
/// tests.
const FIRST_PAINT_MILLISECONDS_MAX: f64 = 10_000.0;

/// Returns the time from the navigation to the first paint of the open page.
async fn first_paint_milliseconds(browser: &Browser) -> Result<f64> {
    browser
        .wait_until("performance.getEntriesByName('first-contentful-paint').length === 1")
        .await?;
    let paint = browser
        .evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        .await?;
    paint.as_f64().context("no time of a first paint")
}

#[tokio::test]
async fn a_log_of_50_megabytes_is_shown_in_parts_and_searched() -> Result<()> {
    const LINES_WRITTEN_BY_STEP: u64 = 500_000;
    let testbed = slipway_e2e::testbed::Testbed::find_running_stack()?;
    // The stack's own daemon would keep the log in its history.
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let url = daemon.socket_url();
    let setting = BuilderBehindPrefixProxy::start(&[("buildkit_url", &url)]).await?;
    let filler = "x".repeat(88);
    let steps = format!("RUN seq 1 {LINES_WRITTEN_BY_STEP} | sed 's/.*/line & {filler}/'");
    let context = setting.uncached_context_with_steps(&steps).await?;
    let image = setting.image_name("page-long");
    let reply = setting.build(&fresh_id("page-long")?, &context, &image).await?;
    assert_eq!(reply.status, 200, "{:.1000}", reply.text);
    let browser = Browser::start(true).await?;
    let url = setting.page_url(&reply.json_or_error_text())?;
    // The builder has not read the log yet.
    browser.open(&url).await?;
    let first_load_paint = first_paint_milliseconds(&browser).await?;
    browser
        .open_until(&url, &js_log_has_line_matching("\\bline 1 x"))
        .await?;
    let count = browser
        .evaluate("document.querySelectorAll('#lines li').length")
        .await?;
    assert!(count.as_u64().is_some_and(|count| count < 1000), "{count}");
    let paint = first_paint_milliseconds(&browser).await?;
    let mut figures = browser
        .evaluate(
            "({pageBytes: performance.getEntriesByType('navigation')[0].transferSize, \
             laterBytes: performance.getEntriesByType('resource').map((entry) => entry.transferSize), \
             styleBytes: document.querySelector('style').textContent.length, \
             scriptBytes: document.querySelector('script').textContent.length})",
        )
        .await?;
    figures["firstPaintMilliseconds"] = json!(paint);
    figures["firstPaintOfFirstLoadMilliseconds"] = json!(first_load_paint);
    fs::write(artefact_folder()?.join("long-log.json"), format!("{figures:#}\n"))?;
    // A page that was sent before the log was read loads the lines, and nothing else.
    let later = figures["laterBytes"].as_array().context("no list")?;
    let page = figures["pageBytes"].as_u64().context("no size")?;
    let visit = later.iter().filter_map(Value::as_u64).sum::<u64>() + page;
    assert!(later.len() <= 1 && visit <= PAGE_BYTES_MAX, "{figures}");
    assert!(
        paint.max(first_load_paint) < FIRST_PAINT_MILLISECONDS_MAX,
        "{figures}"
    );
    browser.store_screenshot("long-log").await?;

    browser.click("#later").await?;
    browser
        .wait_until("document.querySelectorAll('#lines li').length > 1000")
        .await?;
    for line in [LINES_WRITTEN_BY_STEP, 123_456] {
        browser
            .evaluate("void (document.getElementById('find').value = '')")
            .await?;
        browser.type_into("#find", &format!("line {line} ")).await?;
        browser.press(ENTER_KEY).await?;
        let is_found = format!(
            "document.getElementById('found').textContent === '1 line found.' && \
             document.getElementById('hits').textContent.includes('line {line} ')"
        );
        browser.wait_until(&is_found).await?;
    }
    browser.click("#hits a").await?;
    let hit_is = "(() => { const hit = document.querySelector('#lines li.hit'); \
                  return hit?.id === location.hash.slice(1) && /\\bline 123456 x/.test(hit.textContent); })()";
    browser.wait_until(hit_is).await?;
    assert_nothing_reported(&browser).await
}
