//! Templates of faas-cli: `template/NAME/template.yml` in the working folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;
use crate::suggestion::did_you_mean;

/// The folder of templates, relative to the working folder.
const TEMPLATES_FOLDER: &str = "template";

/// The folder of a template that the handler is laid over, unless the template names another one.
const DEFAULT_HANDLER_FOLDER: &str = "function";

/// A template of faas-cli.
#[derive(Debug)]
pub(crate) struct Template {
    /// The folder of the template.
    pub(crate) folder: PathBuf,
    /// The folder within the context that the handler is laid over.
    pub(crate) handler_folder: String,
    /// The command of functions of this template.
    pub(crate) fprocess: Option<String>,
    build_options: Vec<BuildOptionEntry>,
}

/// The content of a `template.yml`.
#[derive(Debug, Default, Deserialize)]
struct TemplateDocument {
    fprocess: Option<String>,
    handler_folder: Option<String>,
    build_options: Option<Vec<BuildOptionEntry>>,
}

/// A named list of packages in a template.
#[derive(Debug, Deserialize)]
struct BuildOptionEntry {
    name: String,
    packages: Option<Vec<String>>,
}

impl Template {
    /// Reads the template with this name in the working folder.
    ///
    /// # Errors
    /// Fails if there is none, or its `template.yml` is not valid.
    pub(crate) fn read(name: &str) -> Result<Self, Failure> {
        Self::read_from(Path::new(TEMPLATES_FOLDER), name)
    }

    /// Reads the template with this name in `templates_folder`.
    fn read_from(templates_folder: &Path, name: &str) -> Result<Self, Failure> {
        let folder = templates_folder.join(name);
        let is_name = !name.contains('/') && name != "." && name != "..";
        if !is_name || !folder.is_dir() {
            return Err(missing_template(templates_folder, name));
        }
        let path = folder.join("template.yml");
        let reject = |reason: String| {
            Failure::usage(
                format!("could not read {}: {reason}", path.display()),
                format!("pull the template again: faas-cli template store pull {name}"),
            )
        };
        let text = fs::read_to_string(&path).map_err(|error| reject(error.to_string()))?;
        let document = match text.trim().is_empty() {
            true => TemplateDocument::default(),
            false => serde_saphyr::from_str(&text).map_err(|error| reject(error.to_string()))?,
        };
        let handler_folder = document.handler_folder.filter(|folder| !folder.is_empty());
        Ok(Self {
            folder,
            handler_folder: handler_folder.unwrap_or_else(|| DEFAULT_HANDLER_FOLDER.to_owned()),
            fprocess: document.fprocess.filter(|fprocess| !fprocess.is_empty()),
            build_options: document.build_options.unwrap_or_default(),
        })
    }

    /// Returns a template in `folder` that defines its handler's folder only.
    #[cfg(test)]
    pub(crate) fn without_options(folder: PathBuf, handler_folder: &str) -> Self {
        Self {
            folder,
            handler_folder: handler_folder.to_owned(),
            fprocess: None,
            build_options: Vec::new(),
        }
    }

    /// Returns the packages of the build options with these names.
    ///
    /// # Errors
    /// Fails with the options that the template does not define.
    pub(crate) fn packages_of(&self, options: &[String]) -> Result<Vec<String>, String> {
        let mut packages = Vec::new();
        let mut unknown = Vec::new();
        for wanted in options {
            match self.build_options.iter().find(|option| option.name == *wanted) {
                Some(option) => packages.extend(option.packages.iter().flatten().cloned()),
                None => unknown.push(wanted.as_str()),
            }
        }
        if unknown.is_empty() {
            return Ok(packages);
        }
        let known: Vec<_> = self
            .build_options
            .iter()
            .map(|option| option.name.as_str())
            .collect();
        Err(format!(
            "{} has no build option {}; it has {}",
            self.folder.display(),
            unknown.join(", "),
            match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            }
        ))
    }
}

/// Creates the error for a template that is not in the folder of templates.
fn missing_template(templates_folder: &Path, name: &str) -> Failure {
    let entries = fs::read_dir(templates_folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut known: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    known.sort();
    let message = format!(
        "there is no template {name:?} in ./{}{}",
        templates_folder.display(),
        did_you_mean(name, known.iter().map(String::as_str))
    );
    let next = match known.is_empty() {
        true => format!(
            "pull it with `faas-cli template store pull {name}`, or run slipway in the folder that has ./template"
        ),
        false => format!(
            "correct `lang` (here are {}), or pull it with `faas-cli template store pull {name}`",
            known.join(", ")
        ),
    };
    Failure::usage(message, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates_folder_with_small(template_yml: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("small")).expect("a folder");
        fs::write(folder.path().join("small/template.yml"), template_yml).expect("a file");
        folder
    }

    #[test]
    fn a_template_has_defaults_for_all_that_it_does_not_name() {
        let folder = templates_folder_with_small("language: small\n");
        let template = Template::read_from(folder.path(), "small").expect("a template");
        assert_eq!(
            (template.handler_folder.as_str(), template.fprocess),
            ("function", None)
        );
    }

    #[test]
    fn build_options_are_packages_and_unknown_ones_are_named() {
        let folder = templates_folder_with_small(
            "build_options:\n  - name: dev\n    packages: [make, gcc]\n  - name: empty\n",
        );
        let template = Template::read_from(folder.path(), "small").expect("a template");
        assert_eq!(
            template.packages_of(&["dev".into(), "empty".into()]),
            Ok(vec!["make".into(), "gcc".into()])
        );
        let error = template.packages_of(&["dve".into()]).expect_err("unknown");
        assert!(
            error.contains("no build option dve; it has dev, empty"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_template_is_an_error_that_names_the_nearest_one() {
        let folder = templates_folder_with_small("");
        let failure = Template::read_from(folder.path(), "smal").expect_err("no such template");
        assert!(failure.message.contains("did you mean \"small\"?"), "{failure:?}");
        for name in ["..", "small/../small", "nothing"] {
            Template::read_from(folder.path(), name).expect_err(name);
        }
    }
}
