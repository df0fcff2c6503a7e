//! The corpus that the program makes itself, so that a first run needs nothing but this program.
//! Preparation calls it for the dataset `quickstart`.
//!
//! One tiny story a line, drawn from the grammar below. A line can be read back into its choices
//! and lines are independent, so the entropy per character is exactly E\[entropy of a line's
//! choices\] / E\[characters of a line\]: in the long run no model does better. A model that sees
//! windows of T characters, cut anywhere, pays some four nats more per window to find its place.

use crate::philox::{Philox, Sequence, Stream};

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    /// ASCII; ends with a whole line.
    pub text: String,
    /// Entropy of the source, nats per character.
    pub entropy_per_char: f64,
}

/// Makes the first lines of the corpus, up to the end of the line in which character `chars` lies.
/// A shorter corpus is the beginning of a longer one.
pub fn generate(chars: usize) -> Corpus {
    let mut draws = Philox::new(SEED, Stream::Corpus).sequence([0; 3]);
    let mut text = String::new();
    while text.len() < chars {
        draw(&mut draws).write(&mut text);
    }
    let (nats, chars) = line_means();
    Corpus {
        text,
        entropy_per_char: nats / chars,
    }
}

const SEED: u64 = 1337;

/// Words of which each is equally likely.
///
/// The lists are made to be learned in a minute: words of one list differ in their first letter
/// (numbers aside), so that a word is decided where it begins and the rest is spelling, and most
/// share an ending (deeds `d`, looks `y`, animals `s`), so that it says what may come next. What
/// takes longer follows from earlier choices and costs nothing once a model attends to them: a
/// pronoun, a name or pastime said again, one less than a number.
type Words = &'static [&'static str];

/// One kind of line.
struct Template {
    weight: u32,
    /// The choices of the line, independent of each other.
    slots: &'static [Words],
    parts: &'static [Part],
}

/// A piece of a line. Numbers are places in the template's `slots`.
#[derive(Clone, Copy, Debug)]
enum Part {
    Text(&'static str),
    /// The word of a slot; again, where the slot was said before.
    Word(usize),
    /// `she` or `he`, as the name in the slot calls for.
    Pronoun(usize),
    /// One less than the number in the slot.
    OneLess(usize),
}

/// A line as its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// Place in [`TEMPLATES`].
    template: usize,
    /// The place of the word chosen for each slot.
    choices: Vec<usize>,
}

use Part::{OneLess, Pronoun, Text, Word};

/// No two can make the same line; the tests prove it.
const TEMPLATES: &[Template] = &[
    // ida told oily newts. she wept.
    Template {
        weight: 5,
        slots: &[NAMES, DEEDS, LOOKS, ANIMALS, PASTIMES],
        parts: &[
            Word(0),
            Text(" "),
            Word(1),
            Text(" "),
            Word(2),
            Text(" "),
            Word(3),
            Text(". "),
            Pronoun(0),
            Text(" "),
            Word(4),
            Text(".\n"),
        ],
    },
    // puny ants eyed wary cats.
    Template {
        weight: 5,
        slots: &[LOOKS, ANIMALS, DEEDS, LOOKS, ANIMALS],
        parts: &[
            Word(0),
            Text(" "),
            Word(1),
            Text(" "),
            Word(2),
            Text(" "),
            Word(3),
            Text(" "),
            Word(4),
            Text(".\n"),
        ],
    },
    // una fed otto. otto read oily newts.
    Template {
        weight: 1,
        slots: &[GIRLS, DEEDS, BOYS, DEEDS, LOOKS, ANIMALS],
        parts: &[
            Word(0),
            Text(" "),
            Word(1),
            Text(" "),
            Word(2),
            Text(". "),
            Word(2),
            Text(" "),
            Word(3),
            Text(" "),
            Word(4),
            Text(" "),
            Word(5),
            Text(".\n"),
        ],
    },
    // ciro, ciro! foxy goats crept.
    Template {
        weight: 1,
        slots: &[NAMES, LOOKS, ANIMALS, PASTIMES],
        parts: &[
            Word(0),
            Text(", "),
            Word(0),
            Text("! "),
            Word(1),
            Text(" "),
            Word(2),
            Text(" "),
            Word(3),
            Text(".\n"),
        ],
    },
    // six shy hens sat. one left, five sat.
    Template {
        weight: 1,
        slots: &[NUMBERS, LOOKS, ANIMALS, PASTIMES, PASTIMES],
        parts: &[
            Word(0),
            Text(" "),
            Word(1),
            Text(" "),
            Word(2),
            Text(" "),
            Word(3),
            Text(". one "),
            Word(4),
            Text(", "),
            OneLess(0),
            Text(" "),
            Word(3),
            Text(".\n"),
        ],
    },
];

const NAMES: Words = &[
    "ada", "bea", "ciro", "eva", "gino", "hugo", "ida", "jago", "lea", "mia", "nico", "otto",
    "remo", "teo", "una", "zia",
];

/// Those of [`NAMES`] who are `she`.
const GIRLS: Words = &["ada", "bea", "eva", "ida", "lea", "mia", "una", "zia"];

/// Those of [`NAMES`] who are `he`.
const BOYS: Words = &[
    "ciro", "gino", "hugo", "jago", "nico", "otto", "remo", "teo",
];

const DEEDS: Words = &[
    "aided", "bored", "cured", "eyed", "fed", "hid", "led", "moved", "named", "owed", "paid",
    "read", "sold", "told", "used", "wed",
];

const LOOKS: Words = &[
    "airy", "bony", "coy", "dry", "foxy", "grey", "holy", "icy", "lazy", "nosy", "oily", "puny",
    "rosy", "shy", "tiny", "wary",
];

const ANIMALS: Words = &[
    "ants", "bees", "cats", "dogs", "elks", "frogs", "goats", "hens", "lambs", "moles", "newts",
    "owls", "pigs", "rams", "toads", "yaks",
];

const PASTIMES: Words = &[
    "bet", "crept", "dreamt", "knelt", "left", "quit", "sat", "wept",
];

const NUMBERS: Words = &[
    "three", "four", "five", "six", "seven", "eight", "nine", "ten",
];

/// One less than each of [`NUMBERS`].
const NUMBERS_LESS_ONE: Words = &[
    "two", "three", "four", "five", "six", "seven", "eight", "nine",
];

fn draw(draws: &mut Sequence) -> Line {
    let total = TEMPLATES
        .iter()
        .map(|template| template.weight)
        .sum::<u32>();
    let mut place = draws.below(total.into());
    let template = TEMPLATES
        .iter()
        .position(|template| match place.checked_sub(template.weight.into()) {
            Some(rest) => {
                place = rest;
                false
            }
            None => true,
        })
        .expect("the draw lies below the sum of the weights");
    let slots = TEMPLATES[template].slots.iter();
    Line {
        template,
        choices: slots
            .map(|words| draws.below(words.len() as u64) as usize)
            .collect(),
    }
}

impl Line {
    fn write(&self, text: &mut String) {
        let template = &TEMPLATES[self.template];
        for part in template.parts {
            text.push_str(part.text(template, |slot| self.choices[slot]));
        }
    }
}

impl Part {
    fn text(self, template: &Template, choice: impl Fn(usize) -> usize) -> &'static str {
        let word = |slot: usize| template.slots[slot][choice(slot)];
        match self {
            Text(text) => text,
            Word(slot) => word(slot),
            Pronoun(slot) if GIRLS.contains(&word(slot)) => "she",
            Pronoun(_) => "he",
            OneLess(slot) => NUMBERS_LESS_ONE[choice(slot)],
        }
    }

    /// The slot whose choice this part shows.
    fn slot(self) -> Option<usize> {
        match self {
            Text(_) => None,
            Word(slot) | Pronoun(slot) | OneLess(slot) => Some(slot),
        }
    }
}

/// Mean entropy of a line's choices in nats, and its mean length in characters.
fn line_means() -> (f64, f64) {
    let total: u32 = TEMPLATES.iter().map(|template| template.weight).sum();
    let (mut nats, mut chars) = (0.0, 0.0);
    for template in TEMPLATES {
        let share = f64::from(template.weight) / f64::from(total);
        nats -= share * share.ln();
        for words in template.slots {
            nats += share * (words.len() as f64).ln();
        }
        for part in template.parts {
            let choices = part.slot().map_or(1, |slot| template.slots[slot].len());
            let lengths = (0..choices).map(|choice| part.text(template, |_| choice).len());
            chars += share * lengths.sum::<usize>() as f64 / choices as f64;
        }
    }
    (nats, chars)
}

#[cfg(test)]
mod tests;
