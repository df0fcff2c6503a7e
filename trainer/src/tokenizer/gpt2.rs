//! GPT-2's tokenizer built offline: `tiktoken-rs` carries the ranks of r50k_base, from which the
//! merges follow. Called by `Tokenizer::gpt2`.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::bpe::Bpe;

/// The only special token of GPT-2: the end of a document.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";
/// Ids of ordinary tokens are below this; it is the id of [`END_OF_TEXT`].
const N_RANKS: u32 = 50_256;

/// Builds the tokenizer, a byte-level BPE of 50,257 tokens, and the fast way to encode text.
pub(super) fn build() -> tokenizers::Result<(Tokenizer, Bpe)> {
    let ranked = tiktoken_rs::r50k_base_singleton();
    let tokens = (0..N_RANKS)
        .map(|rank| ranked.decode_bytes(&[rank]))
        .collect::<Result<Vec<_>, _>>()?;
    let ranks: HashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();

    let printable = printable_alphabet();
    let print = |bytes: &[u8]| -> String {
        bytes
            .iter()
            .map(|byte| printable[usize::from(*byte)])
            .collect()
    };
    let mut vocab: Vocab = tokens.iter().map(|token| print(token)).zip(0..).collect();
    vocab.insert(END_OF_TEXT.to_owned(), N_RANKS);
    let id = |bytes: &[u8]| u16::try_from(ranks[bytes]).expect("ranks are below 2^16");
    let mut merges = Vec::new();
    let mut pairs = Vec::new();
    for token in tokens.iter().filter(|token| token.len() > 1) {
        let (left, right) = token.split_at(last_merge(token, &ranks));
        merges.push((print(left), print(right)));
        pairs.push(([id(left), id(right)], id(token)));
    }
    let bytes = std::array::from_fn(|byte| id(&[u8::try_from(byte).expect("an array of 256")]));
    let fast = Bpe::new(bytes, &pairs);

    let mut tokenizer = Tokenizer::new(BPE::builder().vocab_and_merges(vocab, merges).build()?);
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)])?;
    Ok((tokenizer, fast))
}

/// Where the last merge that makes `token` joins its two parts.
///
/// Merging goes on in the order of the ranks, and a merge has the rank of the token that it makes;
/// so with the ranks below the token's own, exactly two parts are left.
fn last_merge(token: &[u8], ranks: &HashMap<&[u8], u32>) -> usize {
    let own = ranks[token];
    // The parts are token[starts[i]..starts[i + 1]].
    let mut starts: Vec<usize> = (0..=token.len()).collect();
    loop {
        let lowest = starts
            .windows(3)
            .enumerate()
            .filter_map(|(i, part)| {
                let rank = *ranks.get(&token[part[0]..part[2]])?;
                (rank < own).then_some((rank, i + 1))
            })
            .min();
        match lowest {
            Some((_, joint)) => starts.remove(joint),
            None => break,
        };
    }
    assert_eq!(starts.len(), 3, "token {own} is no merge of two tokens");
    starts[1]
}

/// GPT-2's printable character for each byte: itself where it prints, else one above U+00FF.
pub(super) fn printable_alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = u8::try_from(byte).expect("an array of 256");
        match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("far below the surrogates")
            }
        }
    })
}
