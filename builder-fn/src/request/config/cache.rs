//! Reads the keys `cacheFrom` and `cacheTo`: images in a registry that hold cached steps.
//!
//! Each is an image reference, or the value of `buildctl --import-cache` or `--export-cache`: `type=registry,ref=NAME`.
//! `cacheTo` also accepts `mode=max` (the steps of all stages, not only those of the result) and `ignore-error=true`.

use super::ImageRef;
use super::fields::ConfigFields;

/// An image to export cached steps to, with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheToItem {
    /// The image that cached steps are exported to.
    pub image: ImageRef,
    /// Whether the steps of all stages are exported, and not only those of the result.
    pub max: bool,
    /// Whether the build succeeds even if the export of the cache fails.
    pub ignore_error: bool,
}

/// Reads the config's key `cacheFrom`. Images that are given twice are imported once.
pub(super) fn read_cache_from(fields: &mut ConfigFields) -> Vec<ImageRef> {
    let mut images = Vec::new();
    for (at, text) in trimmed_without_blank_items(fields.read_strings("cacheFrom")) {
        match parse_cache_item(&text, &["type", "ref"]) {
            Ok(cache) if images.contains(&cache.image) => {}
            Ok(cache) => images.push(cache.image),
            Err(problem) => fields.record_wrong_key(format_args!("cacheFrom[{at}]"), problem),
        }
    }
    images
}

/// Reads the config's key `cacheTo`. An image that is given twice is an error.
pub(super) fn read_cache_to(fields: &mut ConfigFields) -> Vec<CacheToItem> {
    let mut caches: Vec<CacheToItem> = Vec::new();
    for (at, text) in trimmed_without_blank_items(fields.read_strings("cacheTo")) {
        let problem = match parse_cache_item(&text, &["type", "ref", "mode", "ignore-error"]) {
            // BuildKit rejects this too, but only once the build runs.
            Ok(cache) if caches.iter().any(|other| other.image == cache.image) => {
                "should be another image than those before it".to_owned()
            }
            Ok(cache) => {
                caches.push(cache);
                continue;
            }
            Err(problem) => problem,
        };
        fields.record_wrong_key(format_args!("cacheTo[{at}]"), problem);
    }
    caches
}

/// Leaves out the blank items of a list, and trims the others: clients split an empty option into a list of one empty
/// string.
fn trimmed_without_blank_items(indexed_items: Vec<(usize, String)>) -> impl Iterator<Item = (usize, String)> {
    let trimmed = indexed_items
        .into_iter()
        .map(|(at, text)| (at, text.trim().to_owned()));
    trimmed.filter(|(_, text)| !text.is_empty())
}

/// Parses a cache's image reference, or a list of `known_fields` such as `ref=…`.
///
/// # Errors
/// With the problem, which follows the key in the error's text.
fn parse_cache_item(text: &str, known_fields: &[&str]) -> Result<CacheToItem, String> {
    let image =
        |name: &str| ImageRef::parse(name).map_err(|error| format!("is not an image reference: {error}"));
    if !text.contains('=') {
        return Ok(CacheToItem {
            image: image(text)?,
            max: false,
            ignore_error: false,
        });
    }
    let (mut name, mut max, mut ignore_error) = (None, false, false);
    for field in text.split(',') {
        let (field, value) = field.split_once('=').unwrap_or((field, ""));
        match (field.trim(), value.trim()) {
            (field, _) if !known_fields.contains(&field) => {
                return Err(format!(
                    "should be an image, or have only these fields: {}",
                    known_fields.join(", ")
                ));
            }
            ("type", "registry") => {}
            ("type", _) => return Err("should have type=registry: no other cache can be reached".to_owned()),
            ("ref", value) => name = Some(image(value)?),
            ("mode", "min") => max = false,
            ("mode", "max") => max = true,
            ("mode", _) => return Err("should have mode=min or mode=max".to_owned()),
            (_, "true") => ignore_error = true,
            (_, "false") => ignore_error = false,
            _ => return Err("should have ignore-error=true or ignore-error=false".to_owned()),
        }
    }
    let name = name.ok_or_else(|| {
        "should have the image's name, as in type=registry,ref=r.example/name:cache".to_owned()
    });
    Ok(CacheToItem {
        image: name?,
        max,
        ignore_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_cache_key<T>(key: &str, items: &[&str], read: fn(&mut ConfigFields) -> T) -> Result<T, String> {
        let map = serde_json::json!({ key: items });
        let mut fields = ConfigFields::new(map.as_object().unwrap().clone());
        let value = read(&mut fields);
        fields
            .into_unread_and_respelled_keys()
            .map_err(|error| error.to_string())?;
        Ok(value)
    }

    fn parse_cache_to_items(items: &[&str]) -> Result<Vec<CacheToItem>, String> {
        read_cache_key("cacheTo", items, read_cache_to)
    }

    fn parse_cache_from_items(items: &[&str]) -> Result<Vec<ImageRef>, String> {
        read_cache_key("cacheFrom", items, read_cache_from)
    }

    #[test]
    fn a_cache_is_given_as_an_image_reference_or_as_comma_separated_fields_like_in_buildctl() {
        let one = |text: &str| parse_cache_to_items(&[text]).unwrap().remove(0);
        let plain = one("r.example/a:cache");
        assert_eq!(plain.image.to_string(), "r.example/a:cache");
        assert!(!plain.max && !plain.ignore_error);
        let full = one(" type=registry,ref=r.example/a:cache,mode=max,ignore-error=true ");
        assert_eq!(full.image, plain.image);
        assert!(full.max && full.ignore_error);
        assert_eq!(one("ref=r.example/a:cache,mode=min"), plain);

        let images = parse_cache_from_items(&[
            "r.example/a:cache",
            "",
            "type=registry,ref=r.example/a:cache",
            "b",
        ]);
        let names: Vec<_> = images.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["r.example/a:cache", "docker.io/library/b:latest"]);
    }

    #[test]
    fn an_invalid_cache_item_is_rejected_with_its_index_in_the_list() {
        for (given, hint) in [
            ("type=local,dest=/var", "type=registry"),
            ("dest=/var", "type, ref"),
            ("type=gha", "type=registry"),
            ("type=inline", "type=registry"),
            ("mode=max", "name"),
            ("ref=r.example/a,mode=most", "mode=min or mode=max"),
            ("ref=r.example/a,ignore-error=yes", "ignore-error=true"),
            ("ref=A", "lowercase"),
            ("A", "lowercase"),
            ("ref=r.example/a,registry.insecure=true", "type, ref"),
        ] {
            let error = parse_cache_to_items(&["r.example/x", given]).unwrap_err();
            assert!(
                error.contains("cacheTo[1]") && error.contains(hint),
                "{given}: {error}"
            );
        }
        let error = parse_cache_from_items(&["ref=r.example/a,mode=max"]).unwrap_err();
        assert!(
            error.contains("cacheFrom[0]") && error.contains("type, ref"),
            "{error}"
        );
        let error = parse_cache_to_items(&["r.example/a", "ref=r.example/a"]).unwrap_err();
        assert!(
            error.contains("cacheTo[1]") && error.contains("another image"),
            "{error}"
        );
    }
}
