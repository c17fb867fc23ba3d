//! Shell completions and manual pages.

use std::fs;

use crate::project::Project;

#[tokio::test]
async fn every_shell_has_completions_of_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let printed = Project::empty().run(&["completions", shell]).await;
        assert_eq!(printed.code, Some(0), "{printed:?}");
        for command in ["up", "dev", "builds", "cancel", "rollback", "diff"] {
            assert!(printed.stdout.contains(command), "{shell}: {command}");
        }
    }
}

#[tokio::test]
async fn manual_pages_are_written_to_a_folder_that_does_not_exist_yet() {
    let project = Project::empty();
    let printed = project.run(&["man", "pages/man1"]).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for page in ["slipway.1", "slipway-up.1", "slipway-policy-check.1"] {
        let text = fs::read_to_string(project.path().join("pages/man1").join(page)).expect(page);
        assert!(text.contains(".SH NAME"), "{page}");
    }
}
