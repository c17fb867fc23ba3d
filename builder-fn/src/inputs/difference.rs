//! Compares what two builds were made from.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::{BuildInputs, EndedStepRecord};
use crate::context::ChangedAddedAndRemovedPaths;

/// The most paths of each kind in a comparison.
const MAX_PATHS_OF_EACH_KIND: usize = 100;

/// A step of a Dockerfile, taken from the name that BuildKit gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DockerfileStep<'a> {
    /// The stage and the position, such as `builder 2/5`.
    place: &'a str,
    /// The instruction with its arguments.
    text: &'a str,
}

/// A base image of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BaseImage<'a> {
    name: &'a str,
    digest: &'a str,
}

/// Compares what two builds were made from, and returns the fields of the answer.
pub(crate) fn compare_inputs(older: &BuildInputs, newer: &BuildInputs) -> Map<String, Value> {
    let are_comparable = older.key == newer.key;
    let files = match (&older.files, &newer.files) {
        (Some(old), Some(new)) if are_comparable => Some(old.compare_with(new, MAX_PATHS_OF_EACH_KIND)),
        _ => None,
    };
    let mut notes = Vec::new();
    if !are_comparable {
        notes.push("files and the values of arguments cannot be compared: deploy-secret was changed between the builds, or a builder has none");
    } else if files.is_none() {
        notes.push(
            "the files cannot be compared: one of the builds transferred none, ended before that, or has SOURCE_DATE_EPOCH",
        );
    }
    let is_cut = [&older.files, &newer.files]
        .into_iter()
        .flatten()
        .any(|files| files.is_cut);
    if is_cut {
        notes.push("a context has so many files that whole folders are compared in part of it");
    }
    if older.steps_left_out + newer.steps_left_out > 0 {
        notes.push("a build has so many steps that some are left out");
    }
    let mut answer = Map::new();
    let mut set = |key: &str, value: Value| answer.insert(key.to_owned(), value);
    set(
        "firstMiss",
        json!(explain_first_uncached_step(older, newer, files.as_ref())),
    );
    set(
        "steps",
        json!(list_all_steps_of_both_builds(&older.steps, &newer.steps)),
    );
    set(
        "arguments",
        compare_maps(&older.arguments, &newer.arguments, are_comparable),
    );
    set("options", compare_options(&older.options, &newer.options));
    set(
        "bases",
        json!(list_base_images_of_both_builds(&older.steps, &newer.steps)),
    );
    if let Some(files) = &files {
        let lists = json!({
            "changed": files.changed,
            "added": files.added,
            "removed": files.removed,
            "unknown": files.unknown,
            "cut": is_cut,
        });
        set("files", lists);
    }
    let sizes = |inputs: &BuildInputs| {
        let files = inputs.files.as_ref()?;
        Some(json!({"entries": files.entries, "bytes": files.bytes}))
    };
    set("context", json!({"a": sizes(older), "b": sizes(newer)}));
    set("notes", json!(notes));
    answer
}

impl<'a> DockerfileStep<'a> {
    /// Parses the name of a step; `None` for one that is not an instruction of a Dockerfile.
    fn parse(name: &'a str) -> Option<Self> {
        let (place, text) = name.strip_prefix('[')?.split_once("] ")?;
        let position = place.rsplit(' ').next()?.split_once('/')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(position.0) && is_number(position.1)).then_some(Self { place, text })
    }

    fn keyword(&self) -> &'a str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// Returns the base image of a `FROM` with a digest.
    fn base_image_with_digest(&self) -> Option<BaseImage<'a>> {
        let image = self.text.strip_prefix("FROM ")?.split_whitespace().next()?;
        let (name, digest) = image.split_once('@')?;
        Some(BaseImage { name, digest })
    }

    /// Returns the text without the digest of a base image, which does not belong to the Dockerfile.
    fn text_without_base_digest(&self) -> &'a str {
        match self.base_image_with_digest() {
            Some(base) => self
                .text
                .get(.."FROM ".len() + base.name.len())
                .unwrap_or(self.text),
            None => self.text,
        }
    }

    /// Returns whether the step may read the file or folder `path` of the context.
    fn may_read(&self, path: &str) -> bool {
        let mut words = self.text.split_whitespace();
        match words.next() {
            Some("COPY" | "ADD") => {
                let words: Vec<_> = words.collect();
                let (flags, words): (Vec<&str>, Vec<&str>) =
                    words.into_iter().partition(|word| word.starts_with("--"));
                if flags.iter().any(|flag| flag.starts_with("--from=")) {
                    return false;
                }
                let sources = words.split_last().map_or(&[][..], |(_, sources)| sources);
                sources.iter().any(|source| may_be_in_copy_source(path, source))
            }
            Some("RUN") => {
                let mut mounts = words.filter(|word| word.starts_with("--mount="));
                // A mount without a type is a bind.
                mounts.any(|mount| {
                    (mount.contains("type=bind") || !mount.contains("type=")) && !mount.contains("from=")
                })
            }
            _ => false,
        }
    }

    /// Returns whether the step may depend on the build argument `name`.
    fn is_run_or_names_argument(&self, name: &str) -> bool {
        // Every RUN has all arguments that were declared before it in its environment.
        self.keyword() == "RUN"
            || self.text.contains(&format!("${name}"))
            || self.text.contains(&format!("${{{name}"))
    }
}

/// Returns whether `path` may be in `source`, an argument of `COPY`. Of a pattern, only the part before its first
/// wildcard counts.
fn may_be_in_copy_source(path: &str, source: &str) -> bool {
    let source = source.trim_matches(['[', ']', '"', ',']);
    let source = source.trim_start_matches("./").trim_start_matches('/');
    let literal = source.split(['*', '?', '[', '\\']).next().unwrap_or_default();
    let folder = literal.trim_end_matches('/');
    if matches!(folder, "" | ".") || path == "/" {
        return true;
    }
    let is_pattern = literal.len() < source.len();
    let in_source = path
        .strip_prefix(folder)
        .is_some_and(|rest| is_pattern || rest.is_empty() || rest.starts_with('/'));
    // A folder as a whole may have the source in it.
    in_source || (path.ends_with('/') && folder.starts_with(path))
}

/// Finds the first instruction of the newer build, other than `FROM`, that was not cached, and the differences between
/// the builds that may be the cause.
fn explain_first_uncached_step(
    older: &BuildInputs,
    newer: &BuildInputs,
    files: Option<&ChangedAddedAndRemovedPaths>,
) -> Option<Value> {
    let steps = newer.steps.iter();
    let (record, step) = steps
        .filter_map(|record| Some((record, DockerfileStep::parse(&record.name)?)))
        .find(|(record, step)| !record.cached && step.keyword() != "FROM")?;
    let before: Vec<_> = older
        .steps
        .iter()
        .filter_map(|record| Some((record, DockerfileStep::parse(&record.name)?)))
        .collect();
    let same = before.iter().find(|(_, other)| other.text == step.text);
    let mut causes = Vec::new();
    let bases = list_base_images_of_both_builds(&older.steps, &newer.steps);
    causes.extend(bases.into_iter().filter(|base| base["a"] != base["b"]).map(
        |base| json!({"kind": "base", "image": base["image"], "before": base["a"], "after": base["b"]}),
    ));
    match same {
        None => {
            let there = before.iter().find(|(_, other)| other.place == step.place);
            let there = there.map(|(_, other)| other.text);
            causes.push(json!({"kind": "instruction", "before": there}));
        }
        Some((earlier, _)) if earlier.failed => causes.push(json!({"kind": "failed-before"})),
        Some(_) => {}
    }
    for (change, paths) in files.into_iter().flat_map(|files| {
        [
            ("changed", &files.changed),
            ("added", &files.added),
            ("removed", &files.removed),
        ]
    }) {
        let mut read = paths.iter().filter(|path| step.may_read(path));
        if let Some(path) = read.next() {
            let more = read.count();
            causes.push(json!({"kind": "file", "path": path, "change": change, "more": more}));
        }
    }
    let arguments = compare_maps(&older.arguments, &newer.arguments, older.key == newer.key);
    for change in ["changed", "added", "removed"] {
        let names = arguments[change].as_array().into_iter().flatten();
        let names = names
            .filter_map(Value::as_str)
            .filter(|name| step.is_run_or_names_argument(name));
        causes.extend(names.map(|name| json!({"kind": "argument", "name": name, "change": change})));
    }
    if newer.options.contains_key("noCache") {
        causes.insert(0, json!({"kind": "no-cache"}));
    } else if older.options != newer.options {
        causes.push(json!({"kind": "options"}));
    }
    if causes.is_empty() {
        causes.push(json!({"kind": "unknown"}));
    }
    Some(json!({"step": record.name, "seconds": record.seconds, "causes": causes}))
}

/// Returns the steps of both builds, those of the newer one first, each with whether it was cached and its time in
/// either build.
fn list_all_steps_of_both_builds(older: &[EndedStepRecord], newer: &[EndedStepRecord]) -> Vec<Value> {
    let key = |record: &EndedStepRecord| {
        let step = DockerfileStep::parse(&record.name);
        step.map_or_else(
            || record.name.clone(),
            |step| step.text_without_base_digest().to_owned(),
        )
    };
    // Steps of the same text are paired in their order.
    let mut earlier: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, record) in older.iter().enumerate().rev() {
        earlier.entry(key(record)).or_default().push(at);
    }
    let show = |record: &EndedStepRecord| {
        let mut shown = json!({"cached": record.cached, "seconds": record.seconds});
        if record.failed {
            shown["failed"] = json!(true);
        }
        shown
    };
    let mut paired = vec![false; older.len()];
    let mut steps = Vec::new();
    for record in newer {
        let at = earlier.get_mut(&key(record)).and_then(Vec::pop);
        let before = at.and_then(|at| {
            *paired.get_mut(at)? = true;
            older.get(at)
        });
        steps.push(json!({"name": record.name, "a": before.map(show), "b": show(record)}));
    }
    let only_older = older.iter().zip(paired).filter(|(_, is_paired)| !is_paired);
    steps.extend(only_older.map(|(record, _)| json!({"name": record.name, "a": show(record), "b": null})));
    steps
}

/// Returns the base images of both builds with their digests.
fn list_base_images_of_both_builds(older: &[EndedStepRecord], newer: &[EndedStepRecord]) -> Vec<Value> {
    let bases = |steps: &'_ [EndedStepRecord]| -> BTreeMap<String, String> {
        let steps = steps.iter().filter_map(|step| DockerfileStep::parse(&step.name));
        let bases = steps.filter_map(|step| {
            step.base_image_with_digest()
                .map(|base| (base.name.to_owned(), base.digest.to_owned()))
        });
        bases.collect()
    };
    let (older, newer) = (bases(older), bases(newer));
    let names = newer
        .keys()
        .chain(older.keys().filter(|name| !newer.contains_key(*name)));
    names
        .map(|name| json!({"image": name, "a": older.get(name), "b": newer.get(name)}))
        .collect()
}

/// Returns the names of two maps whose values differ, or which only one of them has. Values are compared only if they
/// are `are_values_comparable`.
fn compare_maps(
    older: &BTreeMap<String, String>,
    newer: &BTreeMap<String, String>,
    are_values_comparable: bool,
) -> Value {
    let changed = newer
        .iter()
        .filter(|(name, value)| are_values_comparable && older.get(*name).is_some_and(|old| old != *value));
    let changed: Vec<_> = changed.map(|(name, _)| name).collect();
    let missing_in = |one: &'_ BTreeMap<String, String>, other: &BTreeMap<String, String>| -> Vec<String> {
        one.keys()
            .filter(|name| !other.contains_key(*name))
            .cloned()
            .collect()
    };
    json!({
        "changed": changed,
        "added": missing_in(newer, older),
        "removed": missing_in(older, newer),
    })
}

/// Returns the options that differ, with their values in both builds.
fn compare_options(older: &BTreeMap<String, String>, newer: &BTreeMap<String, String>) -> Value {
    let keys = newer.keys().chain(older.keys());
    let differing = keys.filter(|key| older.get(*key) != newer.get(*key));
    let values = differing.map(|key| (key.clone(), json!({"a": older.get(key), "b": newer.get(key)})));
    Value::Object(values.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, cached: bool) -> EndedStepRecord {
        EndedStepRecord {
            name: name.into(),
            cached,
            seconds: if cached { 0.0 } else { 1.5 },
            failed: false,
        }
    }

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        let entries = entries.iter();
        entries
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Returns a build of a usual Dockerfile, whose first `cached_steps` steps are cached.
    fn build(cached_steps: usize, base_digest: &str) -> BuildInputs {
        let from = format!("[1/4] FROM r.example/base:1@sha256:{base_digest}");
        let names = [
            &from,
            "[2/4] COPY package.json ./",
            "[3/4] RUN npm ci",
            "[4/4] COPY src ./src",
        ];
        let steps = names
            .iter()
            .enumerate()
            .map(|(at, name)| step(name, at < cached_steps));
        let internal = step("[internal] load build context", false);
        BuildInputs {
            key: "k".into(),
            steps: [internal].into_iter().chain(steps).collect(),
            ..BuildInputs::default()
        }
    }

    fn first_miss_or_null(
        older: &BuildInputs,
        newer: &BuildInputs,
        files: &ChangedAddedAndRemovedPaths,
    ) -> Value {
        json!(explain_first_uncached_step(older, newer, Some(files)))
    }

    fn difference_with_changed(paths: &[&str]) -> ChangedAddedAndRemovedPaths {
        ChangedAddedAndRemovedPaths {
            changed: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..ChangedAddedAndRemovedPaths::default()
        }
    }

    #[test]
    fn the_first_step_without_its_cache_and_the_file_that_it_reads_are_named() {
        let miss = first_miss_or_null(
            &build(4, "a"),
            &build(1, "a"),
            &difference_with_changed(&["README.md", "package.json", "src/index.js"]),
        );
        assert_eq!(miss["step"], "[2/4] COPY package.json ./");
        assert_eq!(
            miss["causes"],
            json!([{"kind": "file", "path": "package.json", "change": "changed", "more": 0}])
        );
        let miss = first_miss_or_null(
            &build(4, "a"),
            &build(3, "a"),
            &difference_with_changed(&["src/a.js", "src/b.js"]),
        );
        assert_eq!(
            miss["causes"],
            json!([{"kind": "file", "path": "src/a.js", "change": "changed", "more": 1}])
        );
    }

    #[test]
    fn a_base_image_an_argument_an_instruction_and_no_cache_are_causes_of_the_first_miss() {
        let none = ChangedAddedAndRemovedPaths::default();
        let miss = first_miss_or_null(&build(4, "a"), &build(1, "b"), &none);
        assert_eq!(
            miss["causes"],
            json!([{"kind": "base", "image": "r.example/base:1", "before": "sha256:a", "after": "sha256:b"}])
        );

        let mut newer = build(2, "a");
        newer.arguments = map(&[("VERSION", "2"), ("NEW", "1")]);
        let mut older = build(4, "a");
        older.arguments = map(&[("VERSION", "1")]);
        let miss = first_miss_or_null(&older, &newer, &none);
        assert_eq!(
            miss["causes"],
            json!([
                {"kind": "argument", "name": "VERSION", "change": "changed"},
                {"kind": "argument", "name": "NEW", "change": "added"},
            ])
        );

        let mut newer = build(2, "a");
        newer.steps[3].name = "[3/4] RUN npm install".into();
        let miss = first_miss_or_null(&build(4, "a"), &newer, &none);
        assert_eq!(
            miss["causes"],
            json!([{"kind": "instruction", "before": "RUN npm ci"}])
        );

        let mut newer = build(0, "a");
        newer.options = map(&[("noCache", "true")]);
        let miss = first_miss_or_null(&build(4, "a"), &newer, &none);
        assert_eq!(miss["causes"], json!([{"kind": "no-cache"}]));
        let miss = first_miss_or_null(&build(4, "a"), &build(2, "a"), &none);
        assert_eq!(miss["causes"], json!([{"kind": "unknown"}]));
        assert_eq!(
            first_miss_or_null(&build(4, "a"), &build(4, "a"), &none),
            Value::Null
        );
    }

    #[test]
    fn a_step_may_read_what_its_copy_sources_or_bind_mounts_name() {
        for (text, path, reads) in [
            ("COPY . .", "a/b", true),
            ("COPY src/ /app/", "src/a", true),
            ("COPY ./src /app", "src", true),
            ("COPY src /app", "srcs/a", false),
            ("COPY src/deep /app", "src/", true),
            ("COPY *.json ./", "package.json", true),
            ("COPY pack*.json ./", "package.json", true),
            ("COPY pack*.json ./", "other.json", false),
            ("COPY --chown=1:1 a b c/", "b", true),
            ("COPY --chown=1:1 a b c/", "c", false),
            ("COPY --from=builder /out /out", "out", false),
            ("COPY [\"a\", \"b/\"]", "a", true),
            ("RUN make", "a", false),
            ("RUN --mount=type=bind,target=/src make", "a", true),
            ("RUN --mount=type=bind,from=builder make", "a", false),
        ] {
            let step = DockerfileStep { place: "1/1", text };
            assert_eq!(step.may_read(path), reads, "{text} {path}");
        }
    }

    #[test]
    fn steps_are_paired_by_their_text_wherever_they_are() {
        let older = [
            step("[1/2] FROM b@sha256:1", true),
            step("[2/2] RUN make", false),
            step("exporting", false),
        ];
        let newer = [
            step("[1/3] FROM b@sha256:2", false),
            step("[2/3] COPY a b", false),
            step("[3/3] RUN make", false),
        ];
        let steps = list_all_steps_of_both_builds(&older, &newer);
        let pairs: Vec<_> = steps
            .iter()
            .map(|step| {
                (
                    step["name"].as_str().unwrap_or(""),
                    !step["a"].is_null(),
                    !step["b"].is_null(),
                )
            })
            .collect();
        assert_eq!(
            pairs,
            [
                ("[1/3] FROM b@sha256:2", true, true),
                ("[2/3] COPY a b", false, true),
                ("[3/3] RUN make", true, true),
                ("exporting", true, false),
            ]
        );
    }

    #[test]
    fn digests_under_different_keys_are_not_compared() {
        let mut older = build(4, "a");
        older.arguments = map(&[("A", "1")]);
        let mut newer = build(4, "a");
        newer.arguments = map(&[("A", "2")]);
        newer.key = "another".into();
        let answer = compare_inputs(&older, &newer);
        assert_eq!(answer["arguments"]["changed"], json!([]));
        assert!(json!(answer["notes"]).to_string().contains("deploy-secret"));
        assert!(!answer.contains_key("files"));
    }

    #[test]
    fn only_names_of_dockerfile_instructions_are_parsed_into_place_and_text() {
        for (name, expected) in [
            ("[2/3] RUN a", Some(("2/3", "RUN a"))),
            ("[builder 2/3] RUN a", Some(("builder 2/3", "RUN a"))),
            (
                "[linux/arm64 builder 2/3] RUN a",
                Some(("linux/arm64 builder 2/3", "RUN a")),
            ),
            ("[internal] load build context", None),
            ("[deploy] hello", None),
            ("exporting to image", None),
        ] {
            let parsed = DockerfileStep::parse(name).map(|step| (step.place, step.text));
            assert_eq!(parsed, expected, "{name}");
        }
    }
}
