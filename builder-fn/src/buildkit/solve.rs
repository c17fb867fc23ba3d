//! The description of a build, and its conversion to a `SolveRequest`.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, CacheOptionsEntry, Exporter, SolveRequest};
use bytes::Bytes;
use serde_json::json;

use super::{BuildReference, GitContextSource, SolveAttributes};
use crate::compression::LayerCompression;

/// The name of the build argument that makes an image independent of the time of its build.
pub const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The attribute of the Dockerfile frontend with the namespace of cache mounts, joined with a mount's id by `/`.
const CACHE_MOUNT_NAMESPACE_ATTRIBUTE: &str = "build-arg:BUILDKIT_CACHE_MOUNT_NS";

/// The period in which steps get their share of CPU time, in microseconds: that of the kernel and of Docker.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;

/// The attribute of the exporter with the sealed secrets of a build, in base64.
///
/// Whoever reads the build's log from the history needs them to mask their values. The exporter ignores attributes that
/// it does not know. Those of the frontend would be part of the image's provenance.
pub(super) const SEALED_SECRETS_ATTRIBUTE: &str = "slipway.sealed-secrets";

/// The value of [`SEALED_SECRETS_ATTRIBUTE`] for secrets that are too long for the history. It is not base64.
pub(super) const OMITTED_SEALED_SECRETS_VALUE: &str = "(omitted)";

/// The limit on the sealed secrets in a history record, in bytes before base64. Longer ones are omitted.
const SEALED_SECRETS_MAX_BYTES: usize = 64 << 10;

/// The name of the Dockerfile frontend that is built into BuildKit.
const DOCKERFILE_FRONTEND: &str = "dockerfile.v0";

/// A description of a build of an image from a Dockerfile.
#[derive(Clone, Debug, Default)]
pub struct SolveOptions {
    /// The reference of the build at the daemon: the same for each delivery of a signed call, random without signature.
    pub reference: BuildReference,
    /// The attributes of the request behind the build, for all builders of the daemon.
    pub attributes: Option<SolveAttributes>,
    /// The full names of the image, each with registry and tag.
    pub names: Vec<String>,
    /// Whether the image is pushed to the registries in `names`.
    pub push: bool,
    /// Whether the image is a part of an index that is made of several images later: it is an index itself, and pushed
    /// without a tag.
    pub is_part_of_index: bool,
    /// Whether the registries of pushed images and caches are accessed over plain HTTP. For base images, the daemon's
    /// own configuration decides.
    pub insecure: bool,
    /// Whether the solve exports caches only, and no image.
    pub exports_only_cache: bool,
    /// The path of the Dockerfile in the context; `Dockerfile` by default.
    pub dockerfile: Option<String>,
    /// The Dockerfile stage to build; the last one by default.
    pub target: Option<String>,
    /// The build arguments, by name.
    pub build_args: BTreeMap<String, String>,
    /// The labels of the image, by name.
    pub labels: BTreeMap<String, String>,
    /// The platforms to build the image for; the daemon's own if empty.
    pub platforms: Vec<String>,
    /// Whether every build step runs, even if its result is cached.
    pub no_cache: bool,
    /// The names of the images to import cached steps from.
    pub cache_from: Vec<String>,
    /// The images to export cached steps to, with options.
    pub cache_to: Vec<CacheExport>,
    /// Whether the Dockerfile may name another frontend (`# syntax=`) to be used instead of the built-in one.
    pub named_frontend: bool,
    /// The level of detail of the provenance attestation: `min` or `max`; `None` if none is asked for.
    pub provenance: Option<&'static str>,
    /// The image of the generator that makes the SBOM; `None` for a build without an SBOM.
    pub sbom_generator: Option<String>,
    /// The compression of the image layers that this build makes.
    pub compression: LayerCompression,
    /// The sealed secrets of the build, as the caller sent them.
    pub sealed_secrets: Option<Bytes>,
    /// The name of the tenant whose build this is. Other tenants share neither its cache mounts nor the results of its
    /// `RUN` steps.
    pub tenant: Option<String>,
    /// The git repository, at a commit, that is the context; `None` for the files of the session.
    pub git_context: Option<(GitContextSource, String)>,
    /// Whether steps have no network.
    pub no_network: bool,
    /// The limits on what one step may use.
    pub step_limits: StepLimits,
}

/// Limits on what one step of a build may use. BuildKit has them since 0.31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// The memory that one step may use, in bytes; `None` for no limit.
    pub memory: Option<NonZeroU64>,
    /// The CPU time that one step may use, in thousandths of a core; `None` for no limit.
    pub millicpus: Option<NonZeroU64>,
}

/// A cache export: an image to export cached steps to.
#[derive(Clone, Debug, Default)]
pub struct CacheExport {
    /// The full name of the image that cached steps are exported to.
    pub name: String,
    /// Whether the cache export contains the steps of all stages.
    pub max: bool,
    /// Whether the build succeeds even if this cache export fails.
    pub ignore_error: bool,
}

impl SolveOptions {
    /// Returns the `SolveRequest` for this build. The names of its attributes are those of BuildKit
    /// `frontend/dockerui/config.go` and `exporter/containerimage/exptypes/keys.go`.
    pub(super) fn to_request(&self, reference: &str, session: &str) -> SolveRequest {
        let exporter = Exporter {
            r#type: "image".into(),
            attrs: self.exporter_attrs(),
        };
        SolveRequest {
            session: session.to_owned(),
            frontend: DOCKERFILE_FRONTEND.into(),
            frontend_attrs: self.frontend_attrs(),
            exporters: match self.exports_only_cache {
                true => Vec::new(),
                false => vec![exporter],
            },
            cache: Some(CacheOptions {
                imports: self.cache_import_entries().collect(),
                exports: self.cache_export_entries().collect(),
                ..CacheOptions::default()
            }),
            r#ref: reference.to_owned(),
            // Without a record in the history.
            internal: self.exports_only_cache,
            ..SolveRequest::default()
        }
    }

    /// Returns the caches to import cached steps from. The names of their attributes are those of BuildKit
    /// `cache/remotecache/registry/registry.go`.
    fn cache_import_entries(&self) -> impl Iterator<Item = CacheOptionsEntry> {
        self.cache_from.iter().map(|name| self.registry_cache_entry(name))
    }

    /// Returns the caches to export cached steps to.
    fn cache_export_entries(&self) -> impl Iterator<Item = CacheOptionsEntry> {
        self.cache_to.iter().map(|cache| {
            let mut entry = self.registry_cache_entry(&cache.name);
            let mut set = |name: &str, value: &str| entry.attrs.insert(name.to_owned(), value.to_owned());
            set("mode", if cache.max { "max" } else { "min" });
            if cache.ignore_error {
                set("ignore-error", "true");
            }
            if self.exports_only_cache {
                // The layers that the image has already are not compressed again.
                set("compression", &self.compression.format.to_string());
            }
            entry
        })
    }

    /// Returns the entry for the cache that a registry has as `image`.
    fn registry_cache_entry(&self, image: &str) -> CacheOptionsEntry {
        let mut attrs = HashMap::from([("ref".to_owned(), image.to_owned())]);
        if self.insecure {
            attrs.insert("registry.insecure".into(), "true".into());
        }
        CacheOptionsEntry {
            r#type: "registry".into(),
            attrs,
        }
    }

    /// Returns the attributes for the Dockerfile frontend.
    fn frontend_attrs(&self) -> HashMap<String, String> {
        let arguments = self
            .build_args
            .iter()
            .map(|(name, value)| (format!("build-arg:{name}"), value.clone()));
        let labels = self
            .labels
            .iter()
            .map(|(name, value)| (format!("label:{name}"), value.clone()));
        let attributes = self
            .attributes
            .iter()
            .flat_map(SolveAttributes::to_name_value_pairs);
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        let mut attrs: HashMap<_, _> = arguments.chain(labels).chain(attributes).collect();
        let mut set = |name: &str, value: String| attrs.insert(name.to_owned(), value);
        set(
            "filename",
            self.dockerfile.clone().unwrap_or_else(|| "Dockerfile".into()),
        );
        if let Some(target) = &self.target {
            set("target", target.clone());
        }
        if !self.platforms.is_empty() {
            set("platform", self.platforms.join(","));
        }
        if self.is_part_of_index {
            // The result is an index even for one platform, and the names of steps have the platform.
            set("multi-platform", "true".into());
        }
        if self.no_cache {
            // An empty value stands for all stages; another one would name some.
            set("no-cache", String::new());
        }
        if !self.named_frontend {
            // With this attribute, the built-in frontend takes itself for the named one and does not look for another:
            // `frontend/dockerfile/builder/build.go`.
            set("cmdline", DOCKERFILE_FRONTEND.into());
        }
        if !self.cache_from.is_empty() {
            // The frontend needs the caches too: it imports them with each of its own solves.
            let imports = self
                .cache_import_entries()
                .map(|entry| json!({"Type": entry.r#type, "Attrs": entry.attrs}));
            set(
                "cache-imports",
                imports.collect::<serde_json::Value>().to_string(),
            );
        }
        if let Some(mode) = self.provenance {
            set("attest:provenance", format!("mode={mode}"));
        }
        if let Some(generator) = &self.sbom_generator {
            set("attest:sbom", format!("generator={generator}"));
        }
        if let Some(tenant) = &self.tenant {
            set(CACHE_MOUNT_NAMESPACE_ATTRIBUTE, tenant.clone());
            // What a step does may depend on more than its cache key: on proxies among the build arguments, on secrets
            // and on cache mounts. The host name is part of the key, so that no tenant gets a result that another one
            // chose.
            set("hostname", tenant.clone());
        }
        if let Some((source, commit)) = &self.git_context {
            set("context", source.context_url_at_commit(commit));
        }
        if self.no_network {
            set("force-network-mode", "none".into());
        }
        // The names of BuildKit `frontend/dockerui/attr.go`. They are no part of a step's cache key.
        if let Some(memory) = self.step_limits.memory {
            set("memory", memory.to_string());
        }
        if let Some(millicpus) = self.step_limits.millicpus {
            set("cpuperiod", CPU_PERIOD_MICROSECONDS.to_string());
            set(
                "cpuquota",
                (millicpus.get().saturating_mul(CPU_PERIOD_MICROSECONDS / 1000)).to_string(),
            );
        }
        attrs
    }

    /// Returns the attributes for the image exporter.
    fn exporter_attrs(&self) -> HashMap<String, String> {
        let mut attrs = HashMap::new();
        let mut set = |name: &str, value: String| attrs.insert(name.to_owned(), value);
        set("name", self.names.join(","));
        if self.push {
            set("push", "true".into());
            if self.is_part_of_index {
                set("push-by-digest", "true".into());
            }
            if self.insecure {
                set("registry.insecure", "true".into());
            }
        }
        // Existing layers keep their compression: to compress those of base images again would cost more than it saves.
        set("compression", self.compression.format.to_string());
        if let Some(level) = self.compression.level {
            set("compression-level", level.to_string());
        }
        // Docker's own media types do not include zstd.
        set("oci-mediatypes", "true".into());
        // The daemon passes the build argument to its exporter, which sets the image's own times from it. This
        // attribute asks for the times of the files in the layers.
        if self.build_args.contains_key(SOURCE_DATE_EPOCH) {
            set("rewrite-timestamp", "true".into());
        }
        if let Some(secrets) = &self.sealed_secrets {
            let is_short = secrets.len() <= SEALED_SECRETS_MAX_BYTES;
            let value = is_short.then(|| STANDARD.encode(secrets));
            set(
                SEALED_SECRETS_ATTRIBUTE,
                value.unwrap_or_else(|| OMITTED_SEALED_SECRETS_VALUE.into()),
            );
        }
        attrs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::CompressionFormat;

    fn string_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn a_build_without_options_is_solved_with_the_default_attributes_only() {
        let solve = SolveOptions {
            names: vec!["registry:5000/hello:1".into()],
            push: true,
            ..SolveOptions::default()
        };

        let request = solve.to_request("ref", "session");

        assert_eq!(
            (request.r#ref.as_str(), request.frontend.as_str()),
            ("ref", "dockerfile.v0")
        );
        assert_eq!(request.session, "session");
        assert_eq!(
            request.frontend_attrs,
            string_map(&[("filename", "Dockerfile"), ("cmdline", "dockerfile.v0")])
        );
        assert_eq!(request.cache, Some(CacheOptions::default()));
        assert_eq!(request.exporters.len(), 1);
        assert_eq!(request.exporters[0].r#type, "image");
        assert_eq!(
            request.exporters[0].attrs,
            string_map(&[
                ("name", "registry:5000/hello:1"),
                ("push", "true"),
                ("compression", "zstd"),
                ("oci-mediatypes", "true"),
            ])
        );
    }

    #[test]
    fn build_options_become_attributes_of_the_frontend_or_the_exporter() {
        let pair = |name: &str, value: &str| BTreeMap::from([(name.to_string(), value.to_string())]);
        let solve = SolveOptions {
            names: vec!["r/a:1".into(), "r/a:2".into()],
            push: true,
            insecure: true,
            dockerfile: Some("docker/Release".into()),
            target: Some("release".into()),
            build_args: pair("SOURCE_DATE_EPOCH", "0"),
            labels: pair("org.example", "x"),
            platforms: vec!["linux/amd64".into(), "linux/arm64".into()],
            no_cache: true,
            named_frontend: true,
            provenance: Some("max"),
            sbom_generator: Some("r/scan:1".into()),
            compression: LayerCompression::new(CompressionFormat::Gzip, Some(6)).expect("a valid level"),
            tenant: Some("acme".into()),
            git_context: Some((
                GitContextSource {
                    url: "https://git.example/app.git".into(),
                    reference: Some("main".into()),
                    subdir: None,
                },
                "c0ffee".into(),
            )),
            no_network: true,
            step_limits: StepLimits {
                memory: NonZeroU64::new(512 << 20),
                millicpus: NonZeroU64::new(1500),
            },
            ..SolveOptions::default()
        };

        let frontend = [
            ("filename", "docker/Release"),
            ("target", "release"),
            ("build-arg:SOURCE_DATE_EPOCH", "0"),
            ("label:org.example", "x"),
            ("platform", "linux/amd64,linux/arm64"),
            ("no-cache", ""),
            ("attest:provenance", "mode=max"),
            ("attest:sbom", "generator=r/scan:1"),
            ("build-arg:BUILDKIT_CACHE_MOUNT_NS", "acme"),
            ("hostname", "acme"),
            ("context", "https://git.example/app.git?checksum=c0ffee&ref=main"),
            ("force-network-mode", "none"),
            ("memory", "536870912"),
            ("cpuperiod", "100000"),
            ("cpuquota", "150000"),
        ];
        assert_eq!(solve.frontend_attrs(), string_map(&frontend));
        let exporter = [
            ("name", "r/a:1,r/a:2"),
            ("push", "true"),
            ("registry.insecure", "true"),
            ("rewrite-timestamp", "true"),
            ("compression", "gzip"),
            ("compression-level", "6"),
            ("oci-mediatypes", "true"),
        ];
        assert_eq!(solve.exporter_attrs(), string_map(&exporter));
    }

    #[test]
    fn a_part_of_an_index_is_an_index_itself_and_pushed_without_a_tag() {
        let solve = SolveOptions {
            names: vec!["r/a".into(), "r/b".into()],
            push: true,
            is_part_of_index: true,
            platforms: vec!["linux/arm64".into()],
            ..SolveOptions::default()
        };
        assert_eq!(solve.frontend_attrs()["multi-platform"], "true");
        assert_eq!(solve.frontend_attrs()["platform"], "linux/arm64");
        assert_eq!(solve.exporter_attrs()["push-by-digest"], "true");
        assert_eq!(solve.exporter_attrs()["name"], "r/a,r/b");
    }

    #[test]
    fn a_solve_that_exports_only_a_cache_has_no_image_exporter() {
        let solve = SolveOptions {
            exports_only_cache: true,
            cache_to: vec![CacheExport {
                name: "r/caches/a:cache".into(),
                max: true,
                ignore_error: false,
            }],
            ..SolveOptions::default()
        };
        let request = solve.to_request("ref", "session");
        assert!(request.exporters.is_empty());
        let exports = request.cache.expect("caches").exports;
        assert_eq!(
            exports[0].attrs,
            string_map(&[
                ("ref", "r/caches/a:cache"),
                ("mode", "max"),
                ("compression", "zstd")
            ])
        );
    }

    #[test]
    fn a_default_solve_request_has_no_entitlements_and_no_definition() {
        let request = SolveOptions::default().to_request("ref", "session");
        assert_eq!(request.entitlements, Vec::<String>::new());
        assert_eq!(request.definition, None);
        assert!(request.frontend_inputs.is_empty());
    }

    #[test]
    fn cache_imports_and_exports_are_in_the_solve_request_and_imports_in_the_frontend_attributes_too() {
        let cache = |name: &str, max, ignore_error| CacheExport {
            name: name.into(),
            max,
            ignore_error,
        };
        let solve = SolveOptions {
            cache_from: vec!["r/a:cache".into()],
            cache_to: vec![cache("r/a:cache", true, false), cache("r/b:cache", false, true)],
            ..SolveOptions::default()
        };
        let entry = |pairs: &[(&str, &str)]| CacheOptionsEntry {
            r#type: "registry".into(),
            attrs: string_map(pairs),
        };

        let request = solve.to_request("ref", "session");

        let cache = request.cache.expect("cache");
        assert_eq!(cache.imports, [entry(&[("ref", "r/a:cache")])]);
        assert_eq!(
            cache.exports,
            [
                entry(&[("ref", "r/a:cache"), ("mode", "max")]),
                entry(&[("ref", "r/b:cache"), ("mode", "min"), ("ignore-error", "true")]),
            ]
        );
        assert_eq!(
            request.frontend_attrs["cache-imports"],
            r#"[{"Attrs":{"ref":"r/a:cache"},"Type":"registry"}]"#
        );
        let plain = SolveOptions {
            insecure: true,
            ..solve
        };
        for entry in plain.cache_import_entries().chain(plain.cache_export_entries()) {
            assert_eq!(entry.attrs["registry.insecure"], "true");
        }
    }

    #[test]
    fn the_exporter_of_an_image_that_is_not_pushed_has_no_registry_attributes() {
        let solve = SolveOptions {
            names: vec!["r/a:1".into()],
            insecure: true,
            ..SolveOptions::default()
        };

        let exporter = [
            ("name", "r/a:1"),
            ("compression", "zstd"),
            ("oci-mediatypes", "true"),
        ];
        assert_eq!(solve.exporter_attrs(), string_map(&exporter));
    }
}
