//! Drives Chromium through chromedriver, in the WebDriver protocol, as a person would use the browser.
//!
//! Driver and browser are Debian's packages. They run in a process namespace of their own, so that none of their
//! processes survives a test, however it ends.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{logged_process::LoggedProcess, work_dir::path_in_repository};

/// The longest time until a condition holds on a page; a test that passes does not wait this long.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(600);

/// The time after which a page that does not change by itself is opened again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// The most attempts to start Chromium.
const START_ATTEMPTS: u32 = 3;

/// The longest time that the browser loads a page, in milliseconds.
const LOAD_TIMEOUT_MILLISECONDS: u64 = 180_000;

/// The name of an element's reference in answers of the driver, as the protocol has it.
const ELEMENT_KEY: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The Tab key, as the protocol has it.
pub const TAB_KEY: char = '\u{e004}';

/// The Enter key, as the protocol has it.
pub const ENTER_KEY: char = '\u{e007}';

/// The window and the colours that pages are shown with.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The width of the window in pixels.
    pub width: u32,
    /// The height of the window in pixels.
    pub height: u32,
    /// Whether the user prefers dark pages.
    pub is_dark: bool,
}

/// A window of a desktop, with light pages.
pub const DESKTOP: View = View {
    width: 1100,
    height: 900,
    is_dark: false,
};

/// A window of a telephone, with dark pages.
pub const TELEPHONE: View = View {
    width: 360,
    height: 740,
    is_dark: true,
};

/// A running browser with one window and a profile of its own. Its processes end when it is dropped.
pub struct Browser {
    http: reqwest::Client,
    /// The URL of the browser's session at the driver.
    session_url: String,
    _driver: LoggedProcess,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser that runs the scripts of pages, or none of them, with the view [`DESKTOP`].
    ///
    /// # Errors
    /// Fails with the name of the package if the browser or its driver is not installed.
    pub async fn start(runs_scripts: bool) -> Result<Self> {
        let driver = find_program("chromedriver", "chromium-driver")?;
        let chromium = find_program("chromium", "chromium")?;
        let profile = tempfile::tempdir()?;
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        // Port 0: the driver chooses one, and reports it.
        command.arg(driver).arg("--port=0").env("TMPDIR", profile.path());
        let mut driver = LoggedProcess::spawn(command)?;
        let port = driver
            .wait_for_line_in_whole_output(find_port)
            .await
            .context("starting chromedriver")?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-proxy-server",
            "--hide-scrollbars",
        ];
        let javascript = if runs_scripts { 1 } else { 2 };
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "timeouts": {"pageLoad": LOAD_TIMEOUT_MILLISECONDS},
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "binary": chromium,
                "args": arguments,
                "prefs": {"profile.managed_default_content_settings.javascript": javascript},
            },
        }}});
        let root = format!("http://127.0.0.1:{port}/session");
        // chromedriver gives Chromium a minute to start, which a busy machine may not suffice for.
        let mut attempts = 0;
        let session = loop {
            attempts += 1;
            match value_of(http.post(&root).json(&capabilities)).await {
                Ok(session) => break session,
                Err(error) if attempts == START_ATTEMPTS => {
                    let (chromium, log) = (chromium.display(), driver.log_text());
                    return Err(error.context(format!("starting {chromium}; chromedriver: {log}")));
                }
                Err(_) => {}
            }
        };
        let id = session["sessionId"].as_str().context("a session without an ID")?;
        let browser = Self {
            http,
            session_url: format!("{root}/{id}"),
            _driver: driver,
            _profile: profile,
        };
        browser.show_as(DESKTOP).await?;
        Ok(browser)
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let url = format!("{}/{path}", self.session_url);
        value_of(self.http.post(url).json(&body))
            .await
            .with_context(|| format!("{path} {body:.300}"))
    }

    async fn send_to_devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        let body = json!({"cmd": command, "params": parameters});
        self.post("goog/cdp/execute", body).await
    }

    /// Shows pages in this view from now on.
    pub async fn show_as(&self, view: View) -> Result<()> {
        let size = json!({
            "width": view.width,
            "height": view.height,
            "deviceScaleFactor": 1,
            "mobile": view.width < DESKTOP.width,
        });
        self.send_to_devtools("Emulation.setDeviceMetricsOverride", size)
            .await?;
        let scheme = if view.is_dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.send_to_devtools("Emulation.setEmulatedMedia", features)
            .await?;
        Ok(())
    }

    /// Opens an address, and waits until its page is loaded.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("url", json!({ "url": url })).await?;
        Ok(())
    }

    /// Returns the value of a JavaScript expression on the page, also if the page may run no scripts.
    pub async fn evaluate(&self, expression: &str) -> Result<Value> {
        let script = format!("return ({expression});");
        self.post("execute/sync", json!({"script": script, "args": []}))
            .await
    }

    /// Waits until a JavaScript expression is true on the page. It is asked again and again, because the page reports
    /// no changes.
    pub async fn wait_until(&self, expression: &str) -> Result<()> {
        let end = Instant::now() + CONDITION_TIMEOUT;
        loop {
            // Read the clock first: the last answer counts, however late it is.
            let is_last = Instant::now() > end;
            if self.evaluate(expression).await? == json!(true) {
                return Ok(());
            }
            ensure!(
                !is_last,
                "after {CONDITION_TIMEOUT:?}, this is still not true: {expression}; the page: {}",
                self.text().await?
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Opens an address again and again until a JavaScript expression is true on its page: a busy builder may
    /// answer before it has read the log of a build.
    pub async fn open_until(&self, url: &str, expression: &str) -> Result<()> {
        let end = Instant::now() + CONDITION_TIMEOUT;
        loop {
            // Read the clock first: the last answer counts, however late it is.
            let is_last = Instant::now() > end;
            self.open(url).await?;
            let attempt_end = Instant::now() + ATTEMPT_TIMEOUT;
            while Instant::now() < attempt_end {
                if self.evaluate(expression).await? == json!(true) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ensure!(
                !is_last,
                "after {CONDITION_TIMEOUT:?}, this is still not true: {expression}; the page: {}",
                self.text().await?
            );
        }
    }

    /// Returns the text of the page as it is shown.
    pub async fn text(&self) -> Result<String> {
        let text = self.evaluate("document.body.innerText").await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Returns what the browser has reported about the page since the last call: errors of scripts, what the page's
    /// policy blocked, and requests that failed.
    pub async fn take_reports(&self) -> Result<Vec<String>> {
        let entries = self.post("se/log", json!({"type": "browser"})).await?;
        let entries = entries.as_array().context("the driver's log is no list")?;
        Ok(entries.iter().map(ToString::to_string).collect())
    }

    async fn find_element(&self, selector: &str) -> Result<String> {
        let query = json!({"using": "css selector", "value": selector});
        let element = self.post("element", query).await?;
        let reference = element[ELEMENT_KEY].as_str();
        Ok(reference.context("an element without a reference")?.to_owned())
    }

    /// Types a text into the element that a CSS selector selects.
    pub async fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.find_element(selector).await?;
        self.post(&format!("element/{element}/value"), json!({ "text": text }))
            .await?;
        Ok(())
    }

    /// Clicks the element that a CSS selector selects.
    pub async fn click(&self, selector: &str) -> Result<()> {
        let element = self.find_element(selector).await?;
        self.post(&format!("element/{element}/click"), json!({})).await?;
        Ok(())
    }

    /// Presses a key, wherever the focus is.
    pub async fn press(&self, key: char) -> Result<()> {
        let key = key.to_string();
        let actions = json!({"actions": [{
            "type": "key",
            "id": "keyboard",
            "actions": [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}],
        }]});
        self.post("actions", actions).await?;
        Ok(())
    }

    /// Stores a screenshot of the window as `target/pages/NAME.png`.
    pub async fn store_screenshot(&self, name: &str) -> Result<()> {
        let shot = value_of(self.http.get(format!("{}/screenshot", self.session_url))).await?;
        let png = STANDARD.decode(shot.as_str().context("a screenshot that is no text")?)?;
        let path = artefact_folder()?.join(format!("{name}.png"));
        std::fs::write(&path, png).with_context(|| format!("writing {}", path.display()))
    }
}

/// Creates the folder for what tests of pages leave behind, `target/pages`, unless it exists, and returns its path.
pub fn artefact_folder() -> Result<PathBuf> {
    let folder = path_in_repository("target/pages");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// Sends a command to the driver, and returns the value of its answer.
async fn value_of(command: reqwest::RequestBuilder) -> Result<Value> {
    let mut answer: Value = command.send().await?.json().await?;
    let value = answer["value"].take();
    match (value["error"].as_str(), value["message"].as_str()) {
        (Some(error), Some(message)) => bail!("{error}: {message}"),
        _ => Ok(value),
    }
}

/// Returns the port if this line of the driver's output reports it.
fn find_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_once("started successfully on port ")?;
    port.trim_end().trim_end_matches('.').parse().ok()
}

/// Finds a program in the folders of `PATH`.
fn find_program(name: &str, package: &str) -> Result<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let mut paths = env::split_paths(&folders).map(|folder| folder.join(name));
    let found = paths.find(|path| Path::is_file(path));
    found.with_context(|| {
        format!(
            "{name} is not installed: the tests of pages need the Debian package {package}, which `make e2e` installs"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        let error = find_program("no-such-browser", "no-such-package")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no-such-browser is not installed") && error.contains("package no-such-package"),
            "{error}"
        );
        assert!(find_program("sh", "dash").is_ok());
    }

    #[test]
    fn the_port_is_found_in_the_drivers_own_words() {
        let line = "ChromeDriver was started successfully on port 38215.";
        assert_eq!(find_port(line), Some(38215));
        assert_eq!(find_port("Starting ChromeDriver 156.0 on port 0"), None);
    }
}
