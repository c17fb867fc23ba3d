//! The metadata of a file-sync request: BuildKit `session/filesync/filesync.go`.

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::context::ViewFilter;

/// The folder that a file-sync request asks for, and the patterns that select a part of it.
#[derive(Clone, Debug, Default)]
pub(super) struct FolderRequest {
    pub(super) name: String,
    pub(super) filter: ViewFilter,
}

/// The names of the folders that the Dockerfile frontend requests: of the source, and of the Dockerfile. Here both are
/// the context.
const SERVED_FOLDERS: [&str; 2] = ["context", "dockerfile"];

impl FolderRequest {
    /// Parses the gRPC metadata of a file-sync request; fails if it asks for a folder that is not the context.
    pub(super) fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        let name = decoded_metadata_values(metadata, "dir-name")?
            .into_iter()
            .next()
            .unwrap_or_default();
        if !SERVED_FOLDERS.contains(&name.as_str()) {
            // A Dockerfile can name any local folder (`# syntax=` frontends, named contexts); no other is shared.
            return Err(Status::not_found(format!(
                "folder {name:?}: not shared with the build; only its context is"
            )));
        }
        let filter = ViewFilter {
            include: decoded_metadata_values(metadata, "include-patterns")?,
            exclude: decoded_metadata_values(metadata, "exclude-patterns")?,
            follow: decoded_metadata_values(metadata, "followpaths")?,
        };
        Ok(Self { name, filter })
    }
}

/// Returns all metadata values of `key`, decoded, in order. If one of them is not ASCII, BuildKit URL-encodes all and
/// sets `KEY-encoded`.
fn decoded_metadata_values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let invalid = || Status::invalid_argument(format!("metadata {key}: not UTF-8"));
    let marker = metadata.get(format!("{key}-encoded"));
    let encoded = marker.is_some_and(|value| matches!(value.as_bytes(), b"1" | b"t" | b"T" | b"true"));
    metadata
        .get_all(key)
        .iter()
        .map(|value| {
            let text = std::str::from_utf8(value.as_bytes()).map_err(|_| invalid())?;
            match encoded {
                // Go's QueryEscape writes a space as `+`, and a plus sign as `%2B`.
                true => percent_encoding::percent_decode_str(&text.replace('+', " "))
                    .decode_utf8()
                    .map(String::from)
                    .map_err(|_| invalid()),
                false => Ok(text.to_owned()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata_of_pairs(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.append(*key, value.parse().expect("ascii"));
        }
        map
    }

    #[test]
    fn the_patterns_of_a_folder_request_keep_their_order() {
        let request = FolderRequest::from_metadata(&metadata_of_pairs(&[
            ("dir-name", "context"),
            ("exclude-patterns", "target"),
            ("exclude-patterns", "!target/keep me"),
            ("followpaths", "src"),
        ]))
        .expect("a request");

        assert_eq!(request.name, "context");
        assert_eq!(request.filter.exclude, ["target", "!target/keep me"]);
        assert_eq!(request.filter.follow, ["src"]);
        assert_eq!(request.filter.include, [""; 0]);
    }

    #[test]
    fn url_encoded_patterns_of_a_folder_request_are_decoded() {
        let request = FolderRequest::from_metadata(&metadata_of_pairs(&[
            ("dir-name", "dockerfile"),
            ("include-patterns", "gr%C3%B6%C3%9Fe+1%2B1"),
            ("include-patterns-encoded", "1"),
            ("followpaths", "100%+a"),
        ]))
        .expect("a request");

        assert_eq!(request.filter.include, ["größe 1+1"]);
        assert_eq!(
            request.filter.follow,
            ["100%+a"],
            "nothing is decoded without the marker"
        );
    }

    #[test]
    fn only_the_folders_context_and_dockerfile_are_served() {
        for name in ["", "etc", "context/.."] {
            let error =
                FolderRequest::from_metadata(&metadata_of_pairs(&[("dir-name", name)])).expect_err(name);
            assert_eq!(error.code(), tonic::Code::NotFound);
        }
    }
}
