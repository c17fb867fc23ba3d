//! Packs the tar of a request and compresses it with zstd, into a temporary file: memory does not depend on the size of
//! a context. The same files become the same bytes on every machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use ring::digest;

use super::Layout;
use super::layout::LayoutEntry;
use crate::builder::RequestBody;
use crate::failure::Failure;

/// The name of the configuration in a request's tar.
const CONFIG_NAME: &str = "com.openfaas.docker.config";

/// The name of the sealed secrets in a request's tar.
const SECRETS_NAME: &str = "com.openfaas.secrets";

/// The folder of the context in a request's tar.
const CONTEXT_FOLDER: &str = "context";

/// The modification time of all entries: 2 January 1980. Programs that make ZIP archives reject earlier times.
const MODIFICATION_SECONDS: u64 = 315_619_200;

/// The compression level: fast, with a window of 2 MiB; builder-fn accepts windows of up to 8 MiB.
const COMPRESSION_LEVEL: i32 = 3;

/// The entries of a context, packed as part of a tar.
pub(crate) struct PackedContext {
    /// The entries of the tar without its end, compressed: the first frame of a request. The file has no name.
    file: Arc<File>,
    /// The number of bytes in the file.
    compressed: u64,
    /// The SHA-256 of the entries.
    fingerprint: digest::Digest,
    /// The number of bytes of the entries with their headers, before compression.
    pub(crate) bytes: u64,
    /// The number of files.
    pub(crate) files: usize,
    /// The number of files and folders that the ignore file excludes.
    pub(crate) ignored: usize,
}

impl PackedContext {
    /// Reads the files of a layout, and packs them. Blocks.
    ///
    /// # Errors
    /// Fails if a file cannot be read, or changes while it is read, or the temporary file cannot be written.
    pub(crate) fn pack(layout: &Layout) -> Result<Self, Failure> {
        let file = Arc::new(tempfile::tempfile().map_err(|error| unusable_temporary_file(&error))?);
        let mut tar = tar::Builder::new(
            CompressingHashWriter::new(file.clone()).map_err(|error| unusable_temporary_file(&error))?,
        );
        for (path, entry) in layout.entries() {
            let name = format!("{CONTEXT_FOLDER}/{path}");
            let appended = match entry {
                LayoutEntry::Folder => append_with_fixed_time_and_owner(
                    &mut tar,
                    &format!("{name}/"),
                    0o755,
                    0,
                    io::empty(),
                    tar::EntryType::Directory,
                ),
                LayoutEntry::File(source) => append_file(&mut tar, &name, source),
            };
            let source = match entry {
                LayoutEntry::Folder => Path::new(path),
                LayoutEntry::File(source) => source,
            };
            appended.map_err(|error| match tar.get_ref().has_failed {
                true => unusable_temporary_file(&error),
                false => Failure::usage(
                    format!("could not pack {}: {error}", source.display()),
                    "correct the file or its permissions, and run the command again",
                ),
            })?;
        }
        // Without `finish`, the tar has no end, and more can be appended.
        let packed = tar
            .get_mut()
            .close_and_return_hash_and_uncompressed_bytes()
            .map_err(|error| unusable_temporary_file(&error))?;
        let compressed = file
            .metadata()
            .map_err(|error| unusable_temporary_file(&error))?
            .len();
        Ok(Self {
            file,
            compressed,
            fingerprint: packed.0,
            bytes: packed.1,
            files: layout.file_count(),
            ignored: layout.ignored_count(),
        })
    }

    /// Returns the SHA-256 of the entries, as they are before compression.
    pub(crate) fn fingerprint(&self) -> &[u8] {
        self.fingerprint.as_ref()
    }

    /// Returns the body of a request that stores the context: a tar of the context alone.
    ///
    /// # Errors
    /// Fails if there is no memory for its end.
    pub(crate) fn to_context_body(&self) -> Result<RequestBody, Failure> {
        self.to_body(&[])
    }

    /// Returns the body of a build request, with its configuration and sealed secrets.
    ///
    /// # Errors
    /// Fails if there is no memory for the configuration.
    pub(crate) fn to_request_body(
        &self,
        config: &[u8],
        secrets: Option<&str>,
    ) -> Result<RequestBody, Failure> {
        let secrets = secrets.map(|secrets| (SECRETS_NAME, secrets.as_bytes()));
        let files: Vec<_> = [(CONFIG_NAME, config)].into_iter().chain(secrets).collect();
        self.to_body(&files)
    }

    /// Returns a compressed tar with the context and these files beside it, which are its second frame.
    fn to_body(&self, files: &[(&str, &[u8])]) -> Result<RequestBody, Failure> {
        let packed = || -> io::Result<Vec<u8>> {
            let mut tail = tar::Builder::new(Vec::new());
            for (name, content) in files {
                let size = content.len() as u64;
                append_with_fixed_time_and_owner(
                    &mut tail,
                    name,
                    0o600,
                    size,
                    *content,
                    tar::EntryType::Regular,
                )?;
            }
            zstd::stream::encode_all(&tail.into_inner()?[..], COMPRESSION_LEVEL)
        };
        match packed() {
            Ok(tail) => Ok(RequestBody::with_start_of_file(
                self.file.clone(),
                self.compressed,
                tail,
            )),
            Err(error) => Err(Failure::usage(
                format!("could not compress the configuration: {error}"),
                "free memory on this machine, and run the command again",
            )),
        }
    }
}

/// Compresses, hashes and counts what is written to it, until it is closed. Then it discards the end that a tar writes.
struct CompressingHashWriter {
    encoder: Option<zstd::stream::write::Encoder<'static, Arc<File>>>,
    hash: digest::Context,
    bytes: u64,
    /// Whether the compressed bytes could not be written.
    has_failed: bool,
}

impl CompressingHashWriter {
    fn new(file: Arc<File>) -> io::Result<Self> {
        Ok(Self {
            encoder: Some(zstd::stream::write::Encoder::new(file, COMPRESSION_LEVEL)?),
            hash: digest::Context::new(&digest::SHA256),
            bytes: 0,
            has_failed: false,
        })
    }

    /// Ends the compressed frame, and returns the hash and the number of the bytes that were written.
    fn close_and_return_hash_and_uncompressed_bytes(&mut self) -> io::Result<(digest::Digest, u64)> {
        if let Some(encoder) = self.encoder.take() {
            encoder.finish()?;
        }
        Ok((self.hash.clone().finish(), self.bytes))
    }
}

impl Write for CompressingHashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(encoder) = &mut self.encoder {
            encoder.write_all(bytes).inspect_err(|_| self.has_failed = true)?;
            self.hash.update(bytes);
            self.bytes += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of a known length, whose reader fails if the length changes.
struct LengthCheckedFile {
    file: File,
    /// The bytes that were not read yet.
    left: u64,
}

impl Read for LengthCheckedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return match self.file.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::other("it became longer while it was read")),
            };
        }
        let wanted = usize::try_from(self.left)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let count = self.file.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Appends a file, with 0755 as its mode if its owner may execute it, and 0644 otherwise.
fn append_file<W: Write>(tar: &mut tar::Builder<W>, name: &str, source: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let file = File::open(source)?;
    let metadata = file.metadata()?;
    let mode = match metadata.permissions().mode() & 0o100 {
        0 => 0o644,
        _ => 0o755,
    };
    let left = metadata.len();
    append_with_fixed_time_and_owner(
        tar,
        name,
        mode,
        left,
        LengthCheckedFile { file, left },
        tar::EntryType::Regular,
    )
}

fn append_with_fixed_time_and_owner<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    size: u64,
    content: impl Read,
    entry_type: tar::EntryType,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(MODIFICATION_SECONDS);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, content)
}

fn unusable_temporary_file(error: &io::Error) -> Failure {
    Failure::usage(
        format!(
            "could not write the packed context to a temporary file in {}: {error}",
            std::env::temp_dir().display()
        ),
        "free space there, or name another folder in TMPDIR",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use http_body_util::BodyExt as _;

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
    fn handler(dockerfile_mode: u32, script_mode: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode) in [("Dockerfile", dockerfile_mode), ("run.sh", script_mode)] {
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

    /// Returns the bytes of a body.
    fn read_compressed_body(body: Result<RequestBody, Failure>) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let body = body.expect("a body").into_upload(|_| ());
        runtime
            .block_on(body.collect())
            .expect("bytes")
            .to_bytes()
            .to_vec()
    }

    #[test]
    fn a_file_whose_length_changes_while_it_is_read_is_an_error() {
        for (announced, problem) in [(2, "became longer"), (4, "became shorter")] {
            let mut file = tempfile::tempfile().expect("a file");
            Write::write_all(&mut file, b"abc").expect("it is written");
            io::Seek::rewind(&mut file).expect("its beginning");
            let read = io::read_to_string(LengthCheckedFile {
                file,
                left: announced,
            });
            assert!(
                read.expect_err("an error").to_string().contains(problem),
                "{announced}"
            );
        }
    }

    #[test]
    fn the_same_files_are_the_same_bytes_whatever_their_times_and_permission_bits() {
        let (one, other) = (handler(0o644, 0o755), handler(0o600, 0o700));
        File::open(other.path().join("run.sh"))
            .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
            .expect("a time");
        let (one, other) = (pack(&one), pack(&other));
        let tar = |packed: &PackedContext| read_compressed_body(packed.to_request_body(b"{}", None));
        assert!(tar(&one) == tar(&other));
        assert_eq!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_request_has_the_context_below_its_folder_and_the_configuration_beside_it() {
        let packed = pack(&handler(0o644, 0o755));
        let body = read_compressed_body(packed.to_request_body(b"{\"image\":\"x\"}", Some("sealed")));
        let plain = zstd::stream::decode_all(&body[..]).expect("zstd");
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
