//! The settings of the pages of builds.

use function_host::env::SettingsParser;
use function_host::http::Uri;

use crate::builds::PageSettings;

/// Reads `page_lifetime` and `page_url`.
pub(super) fn read_page_settings(parser: &mut SettingsParser<'_>) -> PageSettings {
    let defaults = PageSettings::default();
    let lifetime = parser.duration("page_lifetime", defaults.lifetime);
    if lifetime.is_zero() {
        parser.add_problem(
            "page_lifetime",
            "should be longer than 0s, so that links can be opened",
        );
    }
    PageSettings {
        lifetime,
        url: parser.parse_or_default("page_url", None, |text| parse_page_url(text).map(Some)),
        ..defaults
    }
}

/// Parses the setting `page_url`.
fn parse_page_url(text: &str) -> Result<String, &'static str> {
    let problem = "should be a URL of http or https, without user, query and fragment, such as \
                   https://gateway.example/function/builder-fn";
    let url: Uri = text.parse().map_err(|_| problem)?;
    let is_web = matches!(url.scheme_str(), Some("http" | "https"));
    let has_user = url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    match is_web && !has_user && url.query().is_none() && !text.contains('#') {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_pages_is_a_url_to_which_a_path_can_be_appended() {
        for (text, url) in [
            (
                "https://gw.example/function/builder-fn/",
                Some("https://gw.example/function/builder-fn"),
            ),
            ("http://127.0.0.1:8080", Some("http://127.0.0.1:8080")),
            ("gw.example", None),
            ("ftp://gw.example/", None),
            ("https://user:password@gw.example/", None),
            ("https://gw.example/?a=b", None),
            ("https://gw.example/#a", None),
            ("", None),
        ] {
            assert_eq!(parse_page_url(text).ok().as_deref(), url, "{text}");
        }
    }
}
