use serde_json::Value;

use super::*;
use crate::template::Template;

/// A project in a folder of its own.
struct TestProject {
    folder: tempfile::TempDir,
}

impl TestProject {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, content).expect("a file");
        }
        Self { folder }
    }

    fn function(&self, template: Option<&str>, handler_folder: &str) -> Function {
        Function {
            name: "fn".into(),
            namespace: None,
            image: "r.example/fn:1".into(),
            template: template
                .map(|name| Template::without_options(self.folder.path().join(name), handler_folder)),
            handler: self.folder.path().join("handler"),
            copied_paths: Vec::new(),
            build_args: BTreeMap::new(),
            platforms: Vec::new(),
            build_secrets: BTreeMap::new(),
            deploy: Value::Null,
        }
    }

    /// Lays out the function, and returns the paths, those of folders with a slash at the end.
    fn layout_paths(&self, function: &Function) -> Vec<String> {
        let layout = Layout::of_function(function).expect("a layout");
        let paths = layout.entries().map(|(path, entry)| match entry {
            LayoutEntry::Folder => format!("{path}/"),
            LayoutEntry::File(_) => path.to_owned(),
        });
        paths.collect()
    }
}

#[test]
fn the_handler_is_laid_over_the_template_without_its_build_and_template_folders() {
    let project = TestProject::new(&[
        ("t/Dockerfile", ""),
        ("t/function/main.rs", "template"),
        ("t/function/kept.rs", ""),
        ("t/build/x", ""),
        ("handler/main.rs", "handler"),
        ("handler/build/out", ""),
        ("handler/template/x", ""),
        ("handler/src/build/kept", ""),
    ]);
    let function = project.function(Some("t"), "function");
    assert_eq!(
        project.layout_paths(&function),
        [
            "Dockerfile",
            "build/",
            "build/x",
            "function/",
            "function/kept.rs",
            "function/main.rs",
            "function/src/",
            "function/src/build/",
            "function/src/build/kept",
        ]
    );
    let layout = Layout::of_function(&function).expect("a layout");
    let main = layout
        .entries()
        .find(|(path, _)| *path == "function/main.rs")
        .expect("the file");
    assert_eq!(
        *main.1,
        LayoutEntry::File(project.folder.path().join("handler/main.rs"))
    );
}

#[test]
fn a_handler_without_a_template_is_the_context_and_empty_folders_stay() {
    let project = TestProject::new(&[("handler/Dockerfile", ""), ("handler/a/b", "")]);
    fs::create_dir(project.folder.path().join("handler/empty")).expect("a folder");
    assert_eq!(
        project.layout_paths(&project.function(None, "")),
        ["Dockerfile", "a/", "a/b", "empty/"]
    );
}

#[test]
fn the_ignore_file_at_the_root_decides_and_never_excludes_what_the_build_needs() {
    let project = TestProject::new(&[
        ("t/Dockerfile", ""),
        (
            "t/.dockerignore",
            "**/target\nDockerfile\n.dockerignore\nfunction/notes\n!function/notes/keep\n*.md\n",
        ),
        ("t/readme.md", ""),
        ("handler/target/debug/a", ""),
        ("handler/src/main.rs", ""),
        ("handler/notes/other", ""),
        ("handler/notes/keep", ""),
        ("handler/.dockerignore", "src\n"),
        ("handler/inner.md", ""),
    ]);
    let function = project.function(Some("t"), "function");
    assert_eq!(
        project.layout_paths(&function),
        [
            ".dockerignore",
            "Dockerfile",
            "function/",
            "function/.dockerignore",
            "function/inner.md",
            "function/notes/",
            "function/notes/keep",
            "function/src/",
            "function/src/main.rs",
        ]
    );
    assert_eq!(
        Layout::of_function(&function).expect("a layout").ignored_count(),
        3
    );
}

#[test]
fn symbolic_links_within_the_project_are_followed_and_one_that_leads_back_is_an_error() {
    let project = TestProject::new(&[("t/Dockerfile", ""), ("t/shared/file", ""), ("handler/a", "")]);
    let handler = project.folder.path().join("handler");
    std::os::unix::fs::symlink("../t/shared", handler.join("linked")).expect("a link");
    let function = project.function(Some("t"), "function");
    assert!(
        project
            .layout_paths(&function)
            .contains(&"function/linked/file".to_owned())
    );
    std::os::unix::fs::symlink(".", handler.join("self")).expect("a link");
    let failure = Layout::of_function(&function).expect_err("a loop");
    assert!(failure.message.contains("folder that contains it"), "{failure:?}");
}

#[test]
fn a_symbolic_link_out_of_the_project_is_an_error() {
    for target in ["/etc", "/etc/hostname", "../outside"] {
        let project = TestProject::new(&[("handler/Dockerfile", ""), ("outside/key", "")]);
        let link = project.folder.path().join("handler/link");
        std::os::unix::fs::symlink(target, link).expect("a link");
        let failure = Layout::of_function(&project.function(None, "")).expect_err(target);
        assert!(failure.message.contains("outside of the project"), "{failure:?}");
    }
}

#[test]
fn what_the_ignore_file_excludes_is_not_looked_at() {
    let project = TestProject::new(&[
        ("handler/Dockerfile", ""),
        ("handler/.dockerignore", "ignored\n**/*.sock\n"),
        ("handler/ignored/file", ""),
    ]);
    let handler = project.folder.path().join("handler");
    for (link, target) in [
        ("ignored/self", "."),
        ("ignored/out", "/etc"),
        ("ignored/nowhere", "no-such-file"),
        ("broken.sock", "no-such-file"),
    ] {
        std::os::unix::fs::symlink(target, handler.join(link)).expect("a link");
    }
    let function = project.function(None, "");
    assert_eq!(project.layout_paths(&function), [".dockerignore", "Dockerfile"]);
    assert_eq!(
        Layout::of_function(&function).expect("a layout").ignored_count(),
        2
    );
}

#[test]
fn a_build_secret_in_the_context_is_an_error_unless_the_ignore_file_excludes_it() {
    let project = TestProject::new(&[("handler/Dockerfile", ""), ("handler/token", "hush")]);
    let handler = project.folder.path().join("handler");
    std::os::unix::fs::symlink("token", handler.join("other-name")).expect("a link");
    let mut function = project.function(None, "");
    function.build_secrets = [("token".to_owned(), handler.join("other-name"))].into();
    let failure = Layout::of_function(&function).expect_err("the secret would be sent");
    assert!(failure.message.contains("build secret token"), "{failure:?}");
    fs::write(handler.join(".dockerignore"), "token\nother-name\n").expect("a file");
    Layout::of_function(&function).expect("the secret is excluded");
}

#[test]
fn a_context_without_a_dockerfile_and_a_broken_ignore_file_are_errors() {
    let project = TestProject::new(&[("handler/main.rs", "")]);
    let failure = Layout::of_function(&project.function(None, "")).expect_err("no Dockerfile");
    assert!(failure.message.contains("no Dockerfile"), "{failure:?}");
    let project = TestProject::new(&[("handler/Dockerfile", ""), ("handler/.dockerignore", "a[\n")]);
    let failure = Layout::of_function(&project.function(None, "")).expect_err("a malformed pattern");
    assert!(
        failure.message.contains(".dockerignore") && failure.message.contains("a["),
        "{failure:?}"
    );
}

#[test]
fn copied_paths_outside_or_missing_in_the_working_folder_or_all_of_it_are_errors() {
    for path in ["..", "/etc", "a/../../b", ".", "./", "no-such-folder"] {
        existing_copied_path_in_project(path).expect_err(path);
    }
    assert_eq!(
        existing_copied_path_in_project("./src/").expect("it exists"),
        Path::new("src")
    );
}
