//! The configs that ship inside the binary, and finding one by name.

macro_rules! shipped {
    ($($name:ident)*) => {
        /// Name and TOML text of each.
        pub(super) const CONFIGS: &[(&str, &str)] = &[$((
            stringify!($name),
            include_str!(concat!("../../../configs/", stringify!($name), ".toml")),
        ),)*];
    };
}

shipped! {
    quickstart
    shakespeare_char
    shakespeare
    finetune_shakespeare
    gpt2
    gpt2_124m
    gpt2_350m
    gpt2_774m
    gpt2_1558m
    eval_gpt2
    eval_gpt2_medium
    eval_gpt2_large
    eval_gpt2_xl
}

/// The shipped config of this name, with or without nanoGPT's `train_`; or the fault that it is
/// none, with the nearest name and all of them.
pub(super) fn find(name: &str) -> Result<(&'static str, &'static str), String> {
    let plain = name.strip_prefix("train_").unwrap_or(name);
    if let Some(config) = CONFIGS.iter().find(|(known, _)| *known == plain) {
        return Ok(*config);
    }
    let names: Vec<_> = CONFIGS.iter().map(|(name, _)| *name).collect();
    let meant = nearest(plain, names.iter().copied())
        .map(|nearest| format!("; did you mean {nearest}?"))
        .unwrap_or_default();
    Err(format!(
        "--config: no config is named {name:?}{meant}\nhint: shipped are {}; a path contains / \
         or ends in .toml or .py",
        names.join(", ")
    ))
}

/// The candidate most like `word`, if any is like it.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    const LIKENESS_MIN: f64 = 0.8;
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
