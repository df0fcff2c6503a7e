//! Words that the command line takes before the config sees the rest.

use super::*;

fn words(list: &[&str]) -> Words {
    Words {
        words: list.iter().map(|&word| word.to_owned()).collect(),
    }
}

#[test]
fn a_named_word_is_taken_in_both_spellings_and_the_last_counts() {
    let mut words = words(&["--config", "a", "--seed=1", "--config=b=c", "--steps", "7"]);
    assert_eq!(words.take("config").unwrap().as_deref(), Some("b=c"));
    assert_eq!(words.take_number("steps", 1).unwrap(), 7);
    assert_eq!(words.take("config").unwrap(), None);
    assert_eq!(words.words, ["--seed=1"]);
}

#[test]
fn a_named_word_without_its_value_is_a_fault() {
    let error = words(&["--seed=1", "--config"])
        .take("config")
        .unwrap_err()
        .to_string();
    assert_eq!(error, "--config: expected a value, got none");
    let error = words(&["--steps=many"])
        .take_number("steps", 1)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "--steps: expected a whole number, got \"many\"");
}

#[test]
fn resume_has_three_spellings() {
    for (list, mode, rest) in [
        (
            vec!["--resume", "--seed=1"],
            Some("resume"),
            vec!["--seed=1"],
        ),
        (vec!["--resume=auto"], Some("auto"), vec![]),
        (
            vec!["--resume", "auto", "--seed=1"],
            Some("auto"),
            vec!["--seed=1"],
        ),
        (vec!["--seed=1"], None, vec!["--seed=1"]),
        (vec!["--resume=yes"], None, vec!["--resume=yes"]),
    ] {
        let mut words = words(&list);
        assert_eq!((words.take_resume(), words.words), (mode, words_of(rest)));
    }
}

fn words_of(list: Vec<&str>) -> Vec<String> {
    list.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_command_line_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_short_word_is_spelled_out() {
    let mut words = words(&["-v", "--seed=1"]);
    words.spell_out();
    assert_eq!(words.words, ["--verbose=true", "--seed=1"]);
}
