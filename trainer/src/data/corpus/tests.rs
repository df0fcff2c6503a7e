//! The corpus is fixed, can be read back in one way only, and has the entropy that is claimed.

use std::collections::{BTreeSet, HashMap};

use sha2::{Digest, Sha256};

use super::*;

const CHARS: usize = 1_000_000;

/// Every way in which the grammar makes `line`.
fn parses(line: &str) -> Vec<Line> {
    let mut found = Vec::new();
    for (template, Template { slots, parts, .. }) in TEMPLATES.iter().enumerate() {
        // Readings of the parts so far: what is left of the line, and the choices made.
        let mut readings = vec![(line, vec![None; slots.len()])];
        for part in *parts {
            let mut longer = Vec::new();
            for (rest, choices) in readings {
                let alternatives = part.slot().map_or(1, |slot| slots[slot].len());
                for choice in 0..alternatives {
                    let agrees = part
                        .slot()
                        .is_none_or(|slot| choices[slot].is_none_or(|made| made == choice));
                    if !agrees {
                        continue;
                    }
                    let text = part.text(&TEMPLATES[template], |_| choice);
                    if let Some(rest) = rest.strip_prefix(text) {
                        let mut choices = choices.clone();
                        if let Some(slot) = part.slot() {
                            choices[slot] = Some(choice);
                        }
                        longer.push((rest, choices));
                    }
                }
            }
            readings = longer;
        }
        found.extend(
            readings
                .into_iter()
                .filter(|(rest, _)| rest.is_empty())
                .map(|(_, choices)| Line {
                    template,
                    choices: choices.into_iter().map(|choice| choice.unwrap()).collect(),
                }),
        );
    }
    found
}

fn probability(line: &Line) -> f64 {
    let template = &TEMPLATES[line.template];
    let total: u32 = TEMPLATES.iter().map(|template| template.weight).sum();
    let alternatives: usize = template.slots.iter().map(|words| words.len()).product();
    f64::from(template.weight) / f64::from(total) / alternatives as f64
}

#[test]
fn the_text_is_pinned() {
    let corpus = generate(CHARS);
    let digest = Sha256::digest(corpus.text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "c0d7317e4c0af4c4cab259398925545b6589a4746d4a0865e1522d7b7c4bb365"
    );
    expect_test::expect![[r#"
        bea fed ciro. ciro cured tiny rams.
        bony ants eyed nosy rams.
        jago aided tiny toads. he quit.
        ida told oily newts. she wept.
        mia moved oily cats. she knelt.
        ida, ida! lazy toads wept.
        holy bees bored coy dogs.
        una fed otto. otto read oily newts.
        una told holy bees. she quit.
        oily newts moved lazy ants.
        ciro, ciro! foxy goats crept.
        bea led wary moles. she sat.
        puny ants eyed wary cats."#]]
    .assert_eq(&corpus.text[..corpus.text[..400].rfind('\n').unwrap()]);
    assert!(corpus.text.ends_with(".\n"));
    assert!((CHARS..CHARS + 80).contains(&corpus.text.len()));
    assert!(corpus.text.starts_with(&generate(1_000).text));
}

#[test]
fn every_line_reads_back_into_the_choices_that_made_it() {
    let mut draws = Philox::new(SEED, Stream::Corpus).sequence([0; 3]);
    let corpus = generate(CHARS);
    for line in corpus.text.split_inclusive('\n') {
        assert_eq!(parses(line), [draw(&mut draws)], "{line:?}");
    }
}

/// The proof for all lines, not only the million characters above: words of a line stand at fixed
/// places, a place shows one slot at most, every slot is shown by a word that differs for each of
/// its choices, and two templates differ at some place whatever is chosen.
#[test]
fn no_two_choices_make_the_same_line() {
    let mut places_by_template: Vec<Vec<BTreeSet<String>>> = Vec::new();
    for (index, template) in TEMPLATES.iter().enumerate() {
        let words_of = |choices: &[usize]| -> Vec<String> {
            let mut text = String::new();
            let line = Line {
                template: index,
                choices: choices.to_vec(),
            };
            line.write(&mut text);
            assert_eq!(text.find('\n'), Some(text.len() - 1), "a line ends once");
            text.trim_end().split(' ').map(str::to_owned).collect()
        };
        let first = vec![0; template.slots.len()];
        let base = words_of(&first);
        let mut places: Vec<BTreeSet<String>> = base
            .iter()
            .map(|word| BTreeSet::from([word.clone()]))
            .collect();
        let mut owner = vec![None; base.len()];
        for (slot, words) in template.slots.iter().enumerate() {
            let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); base.len()];
            for choice in 0..words.len() {
                let mut choices = first.clone();
                choices[slot] = choice;
                let line = words_of(&choices);
                assert_eq!(line.len(), base.len(), "template {index}, slot {slot}");
                for (place, word) in line.into_iter().enumerate() {
                    if word != base[place] {
                        assert!(owner[place].is_none_or(|other| other == slot), "{word}");
                        owner[place] = Some(slot);
                    }
                    seen[place].insert(word.clone());
                    places[place].insert(word);
                }
            }
            let alternatives = words.len();
            assert!(
                seen.iter().any(|words| words.len() == alternatives),
                "template {index}: slot {slot} cannot be read back"
            );
        }
        for (other, others) in places_by_template.iter().enumerate() {
            let apart = others.len() != places.len()
                || others.iter().zip(&places).any(|(a, b)| a.is_disjoint(b));
            assert!(
                apart,
                "templates {other} and {index} can make the same line"
            );
        }
        places_by_template.push(places);
    }
}

#[test]
fn the_measured_code_length_is_the_analytic_one() {
    let corpus = generate(CHARS);
    let nats: f64 = corpus
        .text
        .split_inclusive('\n')
        .map(|line| -probability(&parses(line)[0]).ln())
        .sum();
    let measured = nats / corpus.text.len() as f64;
    assert!(
        (measured / corpus.entropy_per_char - 1.0).abs() < 0.01,
        "measured {measured}, analytic {}",
        corpus.entropy_per_char
    );
    assert!(
        (0.4..0.6).contains(&corpus.entropy_per_char),
        "{}",
        corpus.entropy_per_char
    );
}

#[test]
fn line_lengths_are_the_analytic_ones() {
    let corpus = generate(CHARS);
    let lengths: Vec<usize> = corpus.text.lines().map(|line| line.len() + 1).collect();
    let measured = corpus.text.len() as f64 / lengths.len() as f64;
    let (_, chars) = line_means();
    assert!(
        (measured / chars - 1.0).abs() < 0.01,
        "measured {measured}, analytic {chars}"
    );
    // What a line refers to lies within reach of a context of 64.
    assert!(lengths.iter().all(|length| (20..=60).contains(length)));
}

#[test]
fn the_alphabet_is_small() {
    let letters: BTreeSet<char> = generate(CHARS).text.chars().collect();
    let letters: String = letters.into_iter().collect();
    assert_eq!(letters, "\n !,.abcdefghijklmnopqrstuvwxyz");
}

#[test]
fn the_text_is_varied() {
    let text = generate(CHARS).text;
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        *counts.entry(line).or_default() += 1;
    }
    let lines = text.lines().count();
    let most = counts.values().max().unwrap();
    assert!(most * 500 < lines, "a line occurs {most} times in {lines}");
    assert!(
        counts.len() * 2 > lines,
        "{} different of {lines}",
        counts.len()
    );
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_lowercase()).collect();
    assert!((60..=120).contains(&words.len()), "{} words", words.len());
}

#[test]
fn the_words_are_what_the_grammar_says_of_them() {
    for template in TEMPLATES {
        for words in template.slots.iter().filter(|words| **words != NUMBERS) {
            let initials: BTreeSet<&str> = words.iter().map(|word| &word[..1]).collect();
            assert_eq!(initials.len(), words.len(), "{words:?}");
        }
    }
    let names: BTreeSet<&str> = GIRLS.iter().chain(BOYS).copied().collect();
    assert_eq!(names, NAMES.iter().copied().collect());
    assert_eq!(NUMBERS[..NUMBERS.len() - 1], NUMBERS_LESS_ONE[1..]);
}
