//! A body on its way in: spooled and indexed piece by piece. All of it blocks.

use std::sync::Arc;
use std::time::SystemTime;

use super::frontend::LOOKED_AT;
use super::unpack::Unpacker;
use super::{AllowedFrontends, BuildConfig, BuildRequest, Frontend, Limits, RequestError};
use crate::context::{ArchiveReader, Kind, SourceContext, Spool};

/// What has been received of a body so far.
pub(super) struct Intake {
    received: u64,
    /// Nothing while a piece is being taken.
    unpacker: Option<Unpacker>,
    /// What is wrong with the tar, for its sender to hear if the signature holds.
    refused: Option<RequestError>,
    frontends: AllowedFrontends,
}

impl Intake {
    pub(super) fn new(limits: &Limits) -> Self {
        let unpacker = Unpacker::new(
            Spool::new(limits.spool.clone()),
            ArchiveReader::new(limits.archive.clone()),
            limits.archive.body,
        );
        Self {
            received: 0,
            unpacker: Some(unpacker),
            refused: None,
            frontends: limits.frontends.clone(),
        }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// When it cannot be kept. A tar that turns out to be none is no error yet: who sent it is not known. Its rest
    /// is not kept.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.received += piece.len() as u64;
        let Some(unpacker) = self.unpacker.take() else {
            return Ok(());
        };
        match unpacker.take(piece) {
            Ok(unpacker) => self.unpacker = Some(unpacker),
            Err(error @ RequestError::Archive(_)) => self.refused = Some(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Looks at what was received: only once the signature has turned out to be right.
    ///
    /// # Errors
    /// When it is not as it should be.
    pub(super) fn finish(self) -> Result<BuildRequest, RequestError> {
        let Self {
            received,
            unpacker,
            refused,
            frontends,
        } = self;
        let unpacker = match (unpacker, refused) {
            (_, Some(error)) => return Err(error),
            (Some(unpacker), None) => unpacker,
            (None, None) => return Err(RequestError::Interrupted),
        };
        let (spool, reader) = unpacker.finish()?;
        let contents = reader.finish()?;
        let config = BuildConfig::parse(&contents.config.ok_or(RequestError::NoConfig)?)?;
        check_age(config.not_after, SystemTime::now())?;
        let context = SourceContext::new(contents.entries, spool);
        check_dockerfile(&context, config.dockerfile.as_deref())?;
        let frontend = choose_frontend(&context, config.dockerfile.as_deref(), &frontends)?;

        let mut warnings = contents.warnings;
        let unknown = config.unknown.iter().take(20);
        warnings.extend(unknown.map(|key| format!("key {key:?} in com.openfaas.docker.config is ignored")));
        Ok(BuildRequest {
            config,
            frontend,
            context: Arc::new(context),
            sealed_secrets: contents.secrets.map(Into::into),
            warnings,
            received,
        })
    }
}

fn check_age(not_after: Option<SystemTime>, now: SystemTime) -> Result<(), RequestError> {
    match not_after {
        Some(end) if end < now => Err(RequestError::Expired {
            not_after: humantime::format_rfc3339_seconds(end).to_string(),
        }),
        _ => Ok(()),
    }
}

/// A Dockerfile that is missing is told here, sooner and in clearer words than by BuildKit. One that can only be
/// reached through a link is left to BuildKit.
fn check_dockerfile(context: &SourceContext, given: Option<&str>) -> Result<(), RequestError> {
    // BuildKit tries both by itself.
    let candidates = given
        .as_ref()
        .map_or(&["Dockerfile", "dockerfile"][..], std::slice::from_ref);
    let may_be_there = |path: &str| {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let is_link = |path: &str| {
            context
                .get(path)
                .is_some_and(|entry| matches!(entry.kind, Kind::Symlink { .. }))
        };
        context.get(path).is_some_and(|entry| !entry.is_directory()) || above.into_iter().any(is_link)
    };
    match candidates.iter().any(|path| may_be_there(path)) {
        true => Ok(()),
        false => Err(RequestError::NoDockerfile {
            path: candidates[0].to_owned(),
        }),
    }
}

/// A Dockerfile that can only be reached through a link is not looked at, and read by the built-in frontend.
fn choose_frontend(
    context: &SourceContext,
    given: Option<&str>,
    allowed: &AllowedFrontends,
) -> Result<Frontend, RequestError> {
    let path = match given {
        Some(path) => path,
        None if context.get("Dockerfile").is_some() => "Dockerfile",
        None => "dockerfile",
    };
    let mut start = vec![0; LOOKED_AT];
    let mut length = 0;
    if let Some(entry) = context
        .get(path)
        .filter(|entry| matches!(entry.kind, Kind::File { .. }))
    {
        while length < LOOKED_AT {
            let read = context.read(entry, length as u64, &mut start[length..]);
            match read.map_err(RequestError::Reread)? {
                0 => break,
                more => length += more,
            }
        }
    }
    Ok(allowed.choose(&start[..length])?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_good_until_the_time_it_says() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert!(check_age(None, end).is_ok());
        assert!(check_age(Some(end), end).is_ok());
        let error = check_age(Some(end), end + Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("2001-09-09T01:46:40Z"), "{error}");
    }

    #[test]
    fn the_dockerfile_that_buildkit_will_read_chooses_the_frontend() {
        let evil = b"# syntax=evil/frontend\n";
        let context = |files: &[(&str, &[u8])]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, content) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, format!("context/{path}"), *content)
                    .unwrap();
            }
            SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap()
        };
        let none = AllowedFrontends::default();
        for (files, given, refused) in [
            (&[("Dockerfile", &evil[..])][..], None, true),
            (&[("dockerfile", evil)], None, true),
            (&[("build/My", evil)], Some("build/My"), true),
            (&[("Dockerfile", b"FROM x"), ("dockerfile", evil)], None, false),
            (
                &[("Dockerfile", evil), ("other", b"FROM x")],
                Some("other"),
                false,
            ),
        ] {
            let chosen = choose_frontend(&context(files), given, &none);
            assert_eq!(chosen.is_err(), refused, "{files:?}");
        }
        let context = context(&[("Dockerfile", evil)]);
        let allowed = "evil/frontend".parse().unwrap();
        assert_eq!(
            choose_frontend(&context, None, &allowed).unwrap(),
            Frontend::Named
        );
    }

    #[test]
    fn a_missing_dockerfile_is_told_unless_a_link_may_lead_to_it() {
        let context = |files: &[(&str, Option<&str>)]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, target) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                let path = format!("context/{path}");
                match target {
                    Some(target) => {
                        header.set_entry_type(tar::EntryType::Symlink);
                        tar.append_link(&mut header, path, target).unwrap();
                    }
                    None => tar.append_data(&mut header, path, &[][..]).unwrap(),
                }
            }
            SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap()
        };
        for (files, given, expected) in [
            (&[("Dockerfile", None)][..], None, true),
            (&[("dockerfile", None)], None, true),
            (&[("Dockerfile", Some("elsewhere"))], None, true),
            (&[("other", None)], None, false),
            (&[("Dockerfile/x", None)], None, false),
            (&[("build/Dockerfile", None)], Some("build/Dockerfile"), true),
            (&[("build", Some("real"))], Some("build/Dockerfile"), true),
            (&[("dockerfile", None)], Some("Dockerfile"), false),
            (&[("build/x", None)], Some("build"), false),
        ] {
            assert_eq!(
                check_dockerfile(&context(files), given).is_ok(),
                expected,
                "{files:?}, {given:?}"
            );
        }
    }
}
