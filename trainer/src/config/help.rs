//! The list of keys in `--help`, from the table.

use super::table::{Config, Group, KEYS};
use super::validate::CHOICES;

/// Columns; with the indentation of its snapshot in the tests, a hundred.
const WIDTH: usize = 92;

/// Every key: name, type, default, meaning.
pub(super) fn text() -> String {
    let default = Config::default();
    let rows: Vec<_> = KEYS
        .iter()
        .map(|key| {
            let (_, words) = CHOICES
                .iter()
                .find(|(name, _)| *name == key.name)
                .unwrap_or(&("", &[]));
            let help = match words {
                [] => key.help.to_owned(),
                words => format!("{} ({})", key.help, words.join(", ")),
            };
            let value = (key.get)(&default).to_string();
            (
                key.group,
                format!("--{}", key.name),
                key.kind.name(),
                value,
                help,
            )
        })
        .collect();
    let names = rows.iter().map(|row| row.1.len()).max().unwrap_or(0);
    let kinds = rows.iter().map(|row| row.2.len()).max().unwrap_or(0);
    let values = rows.iter().map(|row| row.3.len()).max().unwrap_or(0);

    let mut text = String::new();
    for (group, title) in [
        (
            Group::NanoGpt,
            "nanoGPT's keys, with their types and defaults:\n",
        ),
        (Group::Ours, "\nFurther keys:\n"),
    ] {
        text.push_str(title);
        for (_, name, kind, value, help) in rows.iter().filter(|row| row.0 == group) {
            let mut line = format!("  {name:names$}  {kind:kinds$}  {value:values$} ");
            let indent = line.len();
            for word in help.split(' ') {
                if line.len() + 1 + word.len() > WIDTH {
                    text.push_str(&line);
                    text.push('\n');
                    line = " ".repeat(indent);
                }
                line.push(' ');
                line.push_str(word);
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}
