//! Rust source with its comments and literals blanked out, so that rules can search what is left
//! as text. Called by the rules of `tidy`.

/// Source whose comments, strings and characters are spaces; lines are where they were.
pub(super) struct Code {
    chars: Vec<char>,
}

/// Where a function stands and how long it is, from its `fn` to its closing brace.
#[derive(Debug, PartialEq)]
pub(super) struct Function {
    pub(super) name: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) lines: usize,
}

/// A word of the source: an identifier with where it begins and ends.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Code {
    pub(super) fn new(source: &str) -> Self {
        let mut chars: Vec<char> = source.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let end = literal_end(&chars, at);
            for c in &mut chars[at..end.max(at)] {
                if *c != '\n' {
                    *c = ' ';
                }
            }
            at = end.max(at + 1);
        }
        Self { chars }
    }

    /// The source up to its first inline `#[cfg(test)] mod … {`.
    pub(super) fn without_tests(mut self) -> Self {
        let words = self.words();
        let inline_tests = words.windows(4).find(|w| {
            let names: Vec<&str> = w.iter().map(|w| w.text.as_str()).collect();
            names[..3] == ["cfg", "test", "mod"] && self.next_mark(w[3].end) == Some('{')
        });
        if let Some(w) = inline_tests {
            let start = w[0].start;
            self.chars.truncate(start);
        }
        self
    }

    pub(super) fn words(&self) -> Vec<Word> {
        let mut words = Vec::new();
        let mut at = 0;
        while at < self.chars.len() {
            let length = self.chars[at..].iter().take_while(|c| is_word(**c)).count();
            if length > 0 {
                let text = self.chars[at..at + length].iter().collect();
                words.push(Word {
                    text,
                    start: at,
                    end: at + length,
                });
            }
            at += length.max(1);
        }
        words
    }

    /// The first character from `at` that is not white space.
    pub(super) fn next_mark(&self, at: usize) -> Option<char> {
        self.chars[at..]
            .iter()
            .copied()
            .find(|c| !c.is_whitespace())
    }

    /// Whether `text` stands at `at`, white space aside; if so, the index after it.
    pub(super) fn follows(&self, at: usize, text: &str) -> Option<usize> {
        let mut at = at;
        for c in text.chars() {
            at += self.chars[at..]
                .iter()
                .take_while(|c| c.is_whitespace())
                .count();
            if self.chars.get(at) != Some(&c) {
                return None;
            }
            at += 1;
        }
        Some(at)
    }

    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.chars[..at].iter().filter(|c| **c == '\n').count()
    }

    /// The index of the bracket that closes the one at `open`.
    pub(super) fn closing(&self, open: usize) -> usize {
        let mut depth = 0;
        for (i, c) in self.chars.iter().enumerate().skip(open) {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return i;
            }
        }
        self.chars.len()
    }

    /// Every function that has a body, nested ones too.
    pub(super) fn functions(&self) -> Vec<Function> {
        let words = self.words();
        let pairs = words.windows(2).filter(|w| w[0].text == "fn");
        // `fn(A) -> B` is a type: no name follows at once.
        let named = pairs.filter(|w| self.next_mark(w[0].end) == w[1].text.chars().next());
        let mut functions = Vec::new();
        for w in named {
            let mut at = w[1].end;
            while at < self.chars.len() && !matches!(self.chars[at], '{' | ';') {
                at = if matches!(self.chars[at], '(' | '[') {
                    self.closing(at)
                } else {
                    at
                };
                at += 1;
            }
            if self.chars.get(at) == Some(&'{') {
                let (first, last) = (self.line(w[0].start), self.line(self.closing(at)));
                let name = w[1].text.clone();
                functions.push(Function {
                    name,
                    line: first,
                    lines: last - first + 1,
                });
            }
        }
        functions
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The end of the comment or literal that begins at `at`, or `at` if none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let starts = |text: &str| {
        text.chars()
            .enumerate()
            .all(|(i, c)| rest.get(i) == Some(&c))
    };
    if starts("//") {
        return at + rest.iter().take_while(|c| **c != '\n').count();
    }
    if starts("/*") {
        return at + block_comment_length(rest);
    }
    if rest[0] == '"' {
        return at + quoted_length(rest, '"');
    }
    let begins_word = at == 0 || !is_word(chars[at - 1]) || matches!(chars[at - 1], 'b' | 'c');
    if rest[0] == 'r' && begins_word {
        let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
        if rest.get(1 + hashes) == Some(&'"') {
            return at + raw_length(rest, hashes);
        }
    }
    // A lifetime has no closing quote: 'a' is a character, 'a a lifetime.
    if rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
        return at + quoted_length(rest, '\'');
    }
    at
}

fn block_comment_length(rest: &[char]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match (rest[i], rest.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn quoted_length(rest: &[char], quote: char) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != quote {
        i += if rest[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

fn raw_length(rest: &[char], hashes: usize) -> usize {
    let mut i = hashes + 2;
    while i < rest.len() {
        let closed = rest[i] == '"' && rest[i + 1..].iter().take(hashes).all(|c| *c == '#');
        i += 1;
        if closed {
            break;
        }
    }
    (i + hashes).min(rest.len())
}
