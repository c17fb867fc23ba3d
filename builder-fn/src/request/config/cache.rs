//! `cacheFrom` and `cacheTo`: images of a registry that steps of builds are kept in.
//!
//! Each is the image's name, or what `buildctl --import-cache` and `--export-cache` take: `type=registry,ref=NAME`, with
//! `mode=max` (the steps of all stages, not of the result alone) and `ignore-error=true` for the latter.

use super::{ConfigError, ImageRef, wrong};

/// An image to leave the cache in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTo {
    /// Its name.
    pub image: ImageRef,
    /// Whether the steps of all stages are kept, and not only those of the result.
    pub max: bool,
    /// Whether the build goes well when this does not.
    pub ignore_error: bool,
}

pub(super) fn cache_from(given: Vec<String>) -> Result<Vec<ImageRef>, ConfigError> {
    let mut images = Vec::new();
    for (at, text) in present(given) {
        let cache = parse(&format!("cacheFrom[{at}]"), &text, &["type", "ref"])?;
        if !images.contains(&cache.image) {
            images.push(cache.image);
        }
    }
    Ok(images)
}

pub(super) fn cache_to(given: Vec<String>) -> Result<Vec<CacheTo>, ConfigError> {
    let mut caches: Vec<CacheTo> = Vec::new();
    for (at, text) in present(given) {
        let key = format!("cacheTo[{at}]");
        let cache = parse(&key, &text, &["type", "ref", "mode", "ignore-error"])?;
        // BuildKit refuses it too, but only once it runs.
        if caches.iter().any(|other| other.image == cache.image) {
            return Err(wrong(key, "another image than those before it"));
        }
        caches.push(cache);
    }
    Ok(caches)
}

/// Blank ones are left out: clients split an empty option into a list of one empty string.
fn present(given: Vec<String>) -> impl Iterator<Item = (usize, String)> {
    let trimmed = given.into_iter().map(|text| text.trim().to_owned()).enumerate();
    trimmed.filter(|(_, text)| !text.is_empty())
}

fn parse(key: &str, text: &str, known: &[&str]) -> Result<CacheTo, ConfigError> {
    let image = |name: &str| {
        ImageRef::parse(name).map_err(|reason| ConfigError::Image {
            key: key.to_owned(),
            reason,
        })
    };
    if !text.contains('=') {
        return Ok(CacheTo {
            image: image(text)?,
            max: false,
            ignore_error: false,
        });
    }
    let (mut name, mut max, mut ignore_error) = (None, false, false);
    for field in text.split(',') {
        let (field, value) = field.split_once('=').unwrap_or((field, ""));
        match (field.trim(), value.trim()) {
            (field, _) if !known.contains(&field) => {
                return Err(wrong(
                    key,
                    format!("an image, or of these fields: {}", known.join(", ")),
                ));
            }
            ("type", "registry") => {}
            ("type", _) => return Err(wrong(key, "of type=registry: other caches are out of reach here")),
            ("ref", value) => name = Some(image(value)?),
            ("mode", "min") => max = false,
            ("mode", "max") => max = true,
            ("mode", _) => return Err(wrong(key, "of mode=min or mode=max")),
            (_, "true") => ignore_error = true,
            (_, "false") => ignore_error = false,
            _ => return Err(wrong(key, "with ignore-error=true or ignore-error=false")),
        }
    }
    Ok(CacheTo {
        image: name.ok_or_else(|| {
            wrong(
                key,
                "with the image's name, as in type=registry,ref=r.example/name:cache",
            )
        })?,
        max,
        ignore_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_or_buildctls_fields_will_do() {
        let to = |text: &str| cache_to(texts(&[text])).unwrap().remove(0);
        let plain = to("r.example/a:cache");
        assert_eq!(plain.image.to_string(), "r.example/a:cache");
        assert!(!plain.max && !plain.ignore_error);
        let most = to(" type=registry,ref=r.example/a:cache,mode=max,ignore-error=true ");
        assert_eq!(most.image, plain.image);
        assert!(most.max && most.ignore_error);
        assert_eq!(to("ref=r.example/a:cache,mode=min"), plain);

        let from = cache_from(texts(&[
            "r.example/a:cache",
            "",
            "type=registry,ref=r.example/a:cache",
            "b",
        ]))
        .unwrap();
        let names: Vec<_> = from.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["r.example/a:cache", "docker.io/library/b:latest"]);
    }

    #[test]
    fn what_cannot_be_is_told_with_its_place() {
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
            let error = cache_to(texts(&["r.example/x", given])).unwrap_err().to_string();
            assert!(
                error.contains("cacheTo[1]") && error.contains(hint),
                "{given}: {error}"
            );
        }
        let error = cache_from(texts(&["ref=r.example/a,mode=max"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cacheFrom[0]") && error.contains("type, ref"),
            "{error}"
        );
        let error = cache_to(texts(&["r.example/a", "ref=r.example/a"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cacheTo[1]") && error.contains("another image"),
            "{error}"
        );
    }
}
