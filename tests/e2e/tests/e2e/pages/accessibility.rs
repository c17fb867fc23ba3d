//! What a page has to be for everybody: names for all controls, contrast, and no sideways scrolling.

use anyhow::Result;
use serde_json::json;

use slipway_e2e::browser::{Browser, DESKTOP, TELEPHONE, View};

/// An expression that lists what is wrong with the page: controls without a name, headings out of order, text whose
/// contrast to what is behind it is below the 4.5 of WCAG's level AA, and content that is wider than the window.
const FAULTS: &str = r"(() => {
    const faults = [];
    const shown = (element) => element.checkVisibility() && element.textContent.trim() !== '';
    for (const control of document.querySelectorAll('input:not([type=hidden]), select, button')) {
        const name = control.labels?.[0]?.textContent || control.textContent || control.getAttribute('aria-label');
        if (control.checkVisibility() && !name?.trim()) faults.push('no name: ' + control.outerHTML);
    }
    let level = 0;
    for (const heading of document.querySelectorAll('h1, h2, h3')) {
        const own = Number(heading.tagName[1]);
        if (own > level + 1) faults.push('heading out of order: ' + heading.textContent);
        level = own;
    }
    if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1');
    if (!document.documentElement.lang) faults.push('no language');
    for (const section of document.querySelectorAll('section')) {
        if (!document.getElementById(section.getAttribute('aria-labelledby'))) faults.push('section without a name');
    }
    const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = ([red, green, blue]) => [red, green, blue]
        .map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    for (const element of document.querySelectorAll('main *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !shown(element)) continue;
        const pair = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) faults.push('contrast ' + contrast.toFixed(2) + ': ' + element.outerHTML.slice(0, 200));
    }
    const width = document.documentElement.scrollWidth;
    if (width > innerWidth) faults.push('wider than the window: ' + width + ' of ' + innerWidth);
    return faults;
})()";

/// Asserts that the open page has no faults, at both widths, light and dark; leaves it as on a desktop.
pub(super) async fn assert_no_accessibility_faults_in_all_views(browser: &Browser) -> Result<()> {
    for view in [
        TELEPHONE,
        View {
            is_dark: false,
            ..TELEPHONE
        },
        View {
            is_dark: true,
            ..DESKTOP
        },
        DESKTOP,
    ] {
        browser.show_as(view).await?;
        let faults = browser.evaluate(FAULTS).await?;
        assert_eq!(faults, json!([]), "{view:?}");
    }
    Ok(())
}
