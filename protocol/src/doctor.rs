//! What an examination of a machine finds: a line and a JSON object for each thing that was looked
//! at, the same from `trainer doctor` and `agent doctor`. `E` is a program's own kind of exit.

use serde::Serialize;

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but slower, or not for long.
    Warning,
    /// The work would fail.
    Error,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(bound = "")]
pub struct Check<E> {
    pub check: &'static str,
    pub status: Verdict,
    /// What was found and, where it is not well, what that means.
    pub found: String,
    /// What to do.
    pub hint: Option<String>,
    /// How the program would end, where its work would fail.
    #[serde(skip)]
    pub exit: Option<E>,
}

impl<E> Check<E> {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Verdict::Ok,
            found: found.into(),
            hint: None,
            exit: None,
        }
    }

    pub fn warning(check: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            status: Verdict::Warning,
            hint: Some(hint.into()),
            ..Self::ok(check, found)
        }
    }

    pub fn error(
        check: &'static str,
        exit: E,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: Verdict::Error,
            exit: Some(exit),
            ..Self::warning(check, found, hint)
        }
    }

    /// `warning  memory      0.9 GiB available: …; hint: …`, on one line whatever was found.
    pub fn line(&self) -> String {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = self.hint.as_deref().map(one_line);
        format!(
            "{:<8} {:<11} {}{}",
            self.status.name(),
            self.check,
            one_line(&self.found),
            hint.map_or(String::new(), |hint| format!("; hint: {hint}"))
        )
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(bound = "")]
pub struct Report<E> {
    /// The worst of the checks.
    pub status: Verdict,
    pub checks: Vec<Check<E>>,
}

impl<E: Copy> Report<E> {
    pub fn new(checks: Vec<Check<E>>) -> Self {
        let worst = checks.iter().map(|check| check.status).max();
        Self {
            status: worst.unwrap_or(Verdict::Ok),
            checks,
        }
    }

    /// How the program would end: by the first error.
    pub fn exit(&self) -> Option<E> {
        self.checks.iter().find_map(|check| check.exit)
    }

    /// A line for each check, and how many are not well.
    pub fn lines(&self) -> Vec<String> {
        let count = |verdict: Verdict| {
            let of = self.checks.iter().filter(|check| check.status == verdict);
            match of.count() {
                1 => format!("1 {}", verdict.name()),
                count => format!("{count} {}s", verdict.name()),
            }
        };
        let mut lines: Vec<String> = self.checks.iter().map(Check::line).collect();
        let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
        lines.push(format!(
            "{} checks, {errors}, {warnings}",
            self.checks.len()
        ));
        lines
    }
}

#[cfg(test)]
mod tests;
