//! `granary man` and `granary completions`: what packages install beside the binary.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use granary::cli::Cli;
use tempfile::TempDir;

fn granary(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.args(arguments).env_clear().output().expect("it runs")
}

fn printed(arguments: &[&str]) -> String {
    let output = granary(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// `granary`, `granary-models`, `granary-models-list`: the name of each command's page.
fn page_names(command: &clap::Command, name: &str) -> Vec<String> {
    let below = command.get_subcommands().flat_map(|below| page_names(below, &format!("{name}-{}", below.get_name())));
    std::iter::once(name.to_owned()).chain(below).collect()
}

/// Whether a program is installed here.
fn has(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        println!("not tried: {program} is not installed");
    }
    there
}

#[test]
fn the_manual_page_names_every_command() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH granary 1"), "{page}");
    for command in Cli::command().get_subcommands() {
        // A hyphen is escaped in roff.
        let name = format!("granary\\-{}(1)", command.get_name());
        assert!(page.contains(&name), "no {name} in:\n{page}");
    }
}

#[test]
fn every_command_has_a_page_of_its_own() {
    let folder = TempDir::new().expect("a folder");
    let pages = folder.path().join("share/man/man1");
    printed(&["man", "--into", pages.to_str().expect("UTF-8")]);
    let mut found: Vec<String> = fs_err::read_dir(&pages)
        .expect("made")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let mut expected: Vec<String> =
        page_names(&Cli::command(), "granary").into_iter().map(|name| format!("{name}.1")).collect();
    expected.sort();
    assert_eq!(found, expected);
    let page = fs_err::read_to_string(pages.join("granary-serve.1")).expect("a page");
    assert!(page.contains("data\\-dir"), "{page}");
    if has("groff") {
        let warned = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(pages.join("granary.1")).output();
        let warned = warned.expect("groff runs");
        assert!(warned.status.success() && warned.stderr.is_empty(), "{warned:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    fs_err::write(&file, "").expect("written");
    let output = granary(&["man", "--into", file.join("man1").to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be written into") && said.contains("file/man1"), "{said}");
}

#[test]
fn shells_take_their_completions() {
    for (shell, script_of, check) in [
        ("bash", "_granary()", &["bash", "-n"][..]),
        ("zsh", "#compdef granary", &["zsh", "-n"]),
        ("fish", "complete -c granary", &["fish", "--no-execute"]),
    ] {
        let script = printed(&["completions", shell]);
        assert!(script.contains(script_of) && script.contains("snapshot"), "{script}");
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("script");
        fs_err::write(&file, &script).expect("written");
        if has(shell) {
            assert_accepted(check, &file);
        }
    }
    for shell in ["elvish", "powershell"] {
        assert!(printed(&["completions", shell]).contains("granary"));
    }
    assert_eq!(granary(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn bash_completes_commands_flags_and_their_values() {
    let folder = TempDir::new().expect("a folder");
    let script = folder.path().join("granary.bash");
    fs_err::write(&script, printed(&["completions", "bash"])).expect("written");
    for (typed, expected) in
        [("granary mod", "models"), ("granary models pu", "pull"), ("granary serve --po", "--port")]
    {
        let words: Vec<&str> = typed.split(' ').collect();
        let line = format!(
            "source '{}'; COMP_WORDS=({typed}); COMP_CWORD={}; _granary granary '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let output = Command::new("bash").args(["--norc", "-c", &line]).output().expect("bash runs");
        let offered = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(offered.split_whitespace().any(|word| word == expected), "{typed}: {output:?}");
    }
}

fn assert_accepted(check: &[&str], script: &Path) {
    let output = Command::new(check[0]).args(&check[1..]).arg(script).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}
