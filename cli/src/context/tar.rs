//! Packs the tar of a request and compresses it with zstd. The same files become the same bytes on every machine.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;

use super::Layout;
use super::layout::LayoutEntry;
use crate::failure::Failure;

/// The name of the configuration in a request's tar.
const CONFIG_NAME: &str = "com.openfaas.docker.config";

/// The name of the sealed secrets in a request's tar.
const SECRETS_NAME: &str = "com.openfaas.secrets";

/// The folder of the context in a request's tar.
const CONTEXT_FOLDER: &str = "context";

/// The modification time of all entries: 2 January 1980. Programs that make ZIP archives reject earlier times.
const MODIFICATION_SECONDS: u64 = 315_619_200;

/// The compression level: fast, with a window of 2 MiB, of which builder-fn accepts 8.
const COMPRESSION_LEVEL: i32 = 3;

/// The entries of a context, packed as part of a tar.
pub(crate) struct PackedContext {
    /// The entries of the tar without its end, not compressed.
    entries: Vec<u8>,
    /// The number of files.
    pub(crate) files: usize,
    /// The number of files and folders that the ignore file excludes.
    pub(crate) ignored: usize,
}

/// The body of a request: a compressed tar.
#[derive(Clone, Debug)]
pub(crate) struct RequestTar(pub(crate) Bytes);

impl PackedContext {
    /// Reads the files of a layout, and packs them.
    ///
    /// # Errors
    /// Fails if a file cannot be read, or changes while it is read.
    pub(crate) fn pack(layout: &Layout) -> Result<Self, Failure> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in layout.entries() {
            let name = format!("{CONTEXT_FOLDER}/{path}");
            match entry {
                LayoutEntry::Folder => append(
                    &mut tar,
                    &format!("{name}/"),
                    0o755,
                    &[],
                    tar::EntryType::Directory,
                ),
                LayoutEntry::File(source) => append_file(&mut tar, &name, source),
            }
            .map_err(|error| {
                let source = match entry {
                    LayoutEntry::Folder => Path::new(path),
                    LayoutEntry::File(source) => source,
                };
                Failure::usage(
                    format!("could not pack {}: {error}", source.display()),
                    "correct the file or its permissions, and run the command again",
                )
            })?;
        }
        Ok(Self {
            // Without `finish`, the tar has no end, and more can be appended.
            entries: std::mem::take(tar.get_mut()),
            files: layout.files(),
            ignored: layout.ignored(),
        })
    }

    /// Returns the number of bytes of the files and their names, before compression.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.len()
    }

    /// Returns a hash of the files, to compare two packed contexts of the same process.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.entries.hash(&mut hasher);
        hasher.finish()
    }

    /// Returns the body of a request that is only stored: the context alone.
    ///
    /// # Errors
    /// Fails if there is no memory for it.
    pub(crate) fn to_context_tar(&self) -> Result<RequestTar, Failure> {
        self.to_tar(&[])
    }

    /// Returns the body of a build request, with its configuration and sealed secrets.
    ///
    /// # Errors
    /// Fails if there is no memory for it.
    pub(crate) fn to_request_tar(&self, config: &[u8], secrets: Option<&str>) -> Result<RequestTar, Failure> {
        let secrets = secrets.map(|secrets| (SECRETS_NAME, secrets.as_bytes()));
        let files: Vec<_> = [(CONFIG_NAME, config)].into_iter().chain(secrets).collect();
        self.to_tar(&files)
    }

    /// Returns a compressed tar with the context and these files beside it.
    fn to_tar(&self, files: &[(&str, &[u8])]) -> Result<RequestTar, Failure> {
        let packed = || -> io::Result<Vec<u8>> {
            let mut tail = tar::Builder::new(Vec::new());
            for (name, content) in files {
                append(&mut tail, name, 0o600, content, tar::EntryType::Regular)?;
            }
            let tail = tail.into_inner()?;
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
            io::Write::write_all(&mut encoder, &self.entries)?;
            io::Write::write_all(&mut encoder, &tail)?;
            encoder.finish()
        };
        match packed() {
            Ok(body) => Ok(RequestTar(body.into())),
            Err(error) => Err(Failure::usage(
                format!("could not compress the context: {error}"),
                "free memory on this machine, and run the command again",
            )),
        }
    }
}

/// Appends a file, with 0755 as its mode if its owner may execute it, and 0644 otherwise.
fn append_file(tar: &mut tar::Builder<Vec<u8>>, name: &str, source: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let file = File::open(source)?;
    let metadata = file.metadata()?;
    let mode = match metadata.permissions().mode() & 0o100 {
        0 => 0o644,
        _ => 0o755,
    };
    let mut content = Vec::new();
    file.take(u64::MAX).read_to_end(&mut content)?;
    append(tar, name, mode, &content, tar::EntryType::Regular)
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    content: &[u8],
    entry_type: tar::EntryType,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(MODIFICATION_SECONDS);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, content)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::function::Function;

    fn function(handler: &Path) -> Function {
        Function {
            name: "fn".into(),
            namespace: None,
            image: "r.example/fn:1".into(),
            template: None,
            handler: handler.to_owned(),
            copied_paths: Vec::new(),
            build_args: BTreeMap::new(),
            platforms: Vec::new(),
            build_secrets: BTreeMap::new(),
            deploy: serde_json::Value::Null,
        }
    }

    /// Writes a handler whose files have these permissions and the current time.
    fn handler(mode: u32, executable: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode) in [("Dockerfile", mode), ("run.sh", executable)] {
            let path = folder.path().join(name);
            fs::write(&path, name).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        }
        let long = folder.path().join("a".repeat(120));
        fs::create_dir(&long).expect("a folder");
        fs::write(long.join("b".repeat(120)), "long").expect("a file");
        folder
    }

    fn pack(folder: &tempfile::TempDir) -> PackedContext {
        let layout = Layout::of_function(&function(folder.path())).expect("a layout");
        PackedContext::pack(&layout).expect("a context")
    }

    #[test]
    fn the_same_files_are_the_same_bytes_whatever_their_times_and_permission_bits() {
        let (one, other) = (handler(0o644, 0o755), handler(0o600, 0o700));
        File::open(other.path().join("run.sh"))
            .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
            .expect("a time");
        let tar = |folder: &tempfile::TempDir| pack(folder).to_request_tar(b"{}", None).expect("a tar").0;
        assert_eq!(tar(&one), tar(&other));
    }

    #[test]
    fn a_request_has_the_context_below_its_folder_and_the_configuration_beside_it() {
        let packed = pack(&handler(0o644, 0o755));
        let body = packed
            .to_request_tar(b"{\"image\":\"x\"}", Some("sealed"))
            .expect("a tar");
        let plain = zstd::stream::decode_all(&body.0[..]).expect("zstd");
        let mut archive = tar::Archive::new(&plain[..]);
        let entries: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let name = entry.path().expect("a path").to_string_lossy().into_owned();
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                (name, entry.header().mode().expect("a mode"), text)
            })
            .collect();
        let long = format!("context/{}/", "a".repeat(120));
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        let long_file = format!("{long}{}", "b".repeat(120));
        assert_eq!(
            names,
            [
                "context/Dockerfile",
                &long,
                &long_file,
                "context/run.sh",
                CONFIG_NAME,
                SECRETS_NAME
            ]
        );
        assert_eq!(entries[3].1, 0o755);
        assert_eq!(
            (entries[4].2.as_str(), entries[5].2.as_str()),
            ("{\"image\":\"x\"}", "sealed")
        );
        assert_eq!(packed.files, 3);
    }
}
