//! What one file-sync request wants, as BuildKit `session/filesync/filesync.go` puts it into metadata.

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::context::Filter;

/// The name of the folder and what of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) folder: String,
    pub(super) filter: Filter,
}

/// The folders that the Dockerfile frontend asks for: the source, and where the Dockerfile is. Ours is one tree.
const FOLDERS: [&str; 2] = ["context", "dockerfile"];

impl Wanted {
    pub(super) fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        let folder = values(metadata, "dir-name")?
            .into_iter()
            .next()
            .unwrap_or_default();
        if !FOLDERS.contains(&folder.as_str()) {
            // A Dockerfile can name any local folder (`# syntax=` frontends, named contexts): there is no other.
            return Err(Status::not_found(format!("no folder {folder:?} is shared")));
        }
        let filter = Filter {
            include: values(metadata, "include-patterns")?,
            exclude: values(metadata, "exclude-patterns")?,
            follow: values(metadata, "followpaths")?,
        };
        Ok(Self { folder, filter })
    }
}

/// All values of `key`, in order. When one of them is not ASCII, all are URL-encoded and `KEY-encoded` says so.
fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let bad = || Status::invalid_argument(format!("the metadata {key} cannot be read"));
    let marker = metadata.get(format!("{key}-encoded"));
    let encoded = marker.is_some_and(|value| matches!(value.as_bytes(), b"1" | b"t" | b"T" | b"true"));
    metadata
        .get_all(key)
        .iter()
        .map(|value| {
            let text = std::str::from_utf8(value.as_bytes()).map_err(|_| bad())?;
            match encoded {
                // Go's QueryEscape writes a space as `+`, and a plus sign as `%2B`.
                true => percent_encoding::percent_decode_str(&text.replace('+', " "))
                    .decode_utf8()
                    .map(String::from)
                    .map_err(|_| bad()),
                false => Ok(text.to_owned()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.append(*key, value.parse().expect("ascii"));
        }
        map
    }

    #[test]
    fn patterns_keep_their_order() {
        let wanted = Wanted::from_metadata(&metadata(&[
            ("dir-name", "context"),
            ("exclude-patterns", "target"),
            ("exclude-patterns", "!target/keep me"),
            ("followpaths", "src"),
        ]))
        .expect("wanted");

        assert_eq!(wanted.folder, "context");
        assert_eq!(wanted.filter.exclude, ["target", "!target/keep me"]);
        assert_eq!(wanted.filter.follow, ["src"]);
        assert_eq!(wanted.filter.include, [""; 0]);
    }

    #[test]
    fn names_beyond_ascii_arrive_url_encoded_and_are_decoded() {
        let wanted = Wanted::from_metadata(&metadata(&[
            ("dir-name", "dockerfile"),
            ("include-patterns", "gr%C3%B6%C3%9Fe+1%2B1"),
            ("include-patterns-encoded", "1"),
            ("followpaths", "100%+a"),
        ]))
        .expect("wanted");

        assert_eq!(wanted.filter.include, ["größe 1+1"]);
        assert_eq!(
            wanted.filter.follow,
            ["100%+a"],
            "without the marker nothing is decoded"
        );
    }

    #[test]
    fn only_the_context_is_shared() {
        for name in ["", "etc", "context/.."] {
            let error = Wanted::from_metadata(&metadata(&[("dir-name", name)])).expect_err(name);
            assert_eq!(error.code(), tonic::Code::NotFound);
        }
    }
}
