//! Compares the examples of clients in the documents with the clients that the end-to-end tests run.

use crate::repository;

#[test]
fn the_examples_are_lines_of_the_tested_clients() {
    let page = repository::read("docs/clients.md");
    let mut compared = 0;
    for block in page.split("<!-- tests/clients/").skip(1) {
        let (path, rest) = block
            .split_once(" -->\n```")
            .expect("a code block after the name of its file");
        let code = rest.split("```").next().unwrap();
        let client = repository::read(&format!("tests/clients/{path}"));
        for line in code.lines().skip(1) {
            let is_in_client = client.lines().any(|other| other.trim() == line.trim());
            assert!(is_in_client, "docs/clients.md: {path} has no line {line:?}");
            compared += 1;
        }
    }
    assert!(compared > 10, "only {compared} lines were compared");
}
