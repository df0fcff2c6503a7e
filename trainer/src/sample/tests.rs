//! Drawing by temperature, top-k and top-p, and ending at a stop text.

use super::*;

const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

fn options(temperature: f64, top_k: usize, top_p: f64) -> SampleOptions {
    SampleOptions {
        temperature,
        top_k,
        top_p,
        max_new_tokens: 1,
        seed: 1,
        stop: Vec::new(),
    }
}

/// How often each id is drawn.
fn shares(options: &SampleOptions) -> [f64; 5] {
    const DRAWS: usize = 40_000;
    let mut random = Philox::new(9, Stream::Sample).sequence([0; 3]);
    let mut counts = [0.0; 5];
    for _ in 0..DRAWS {
        counts[pick(&LOGITS, options, &mut random) as usize] += 1.0 / DRAWS as f64;
    }
    counts
}

fn softmax(temperature: f64, kept: &[usize]) -> [f64; 5] {
    let mut p = [0.0; 5];
    for &id in kept {
        p[id] = (f64::from(LOGITS[id]) / temperature).exp();
    }
    let total: f64 = p.iter().sum();
    p.map(|x| x / total)
}

fn assert_close(got: [f64; 5], expected: [f64; 5]) {
    for (a, b) in got.iter().zip(expected) {
        assert!(
            (a - b).abs() < 0.01 && (b > 0.0 || *a == 0.0),
            "{got:?} {expected:?}"
        );
    }
}

#[test]
fn greedy_takes_the_likeliest_and_the_first_of_equals() {
    let mut random = Philox::new(9, Stream::Sample).sequence([0; 3]);
    for _ in 0..100 {
        assert_eq!(pick(&LOGITS, &options(0.0, 0, 1.0), &mut random), 1);
        assert_eq!(pick(&LOGITS, &options(1.0, 1, 1.0), &mut random), 1);
    }
}

#[test]
fn temperature_top_k_and_top_p_shape_the_distribution() {
    assert_close(
        shares(&options(1.0, 0, 1.0)),
        softmax(1.0, &[0, 1, 2, 3, 4]),
    );
    assert_close(
        shares(&options(0.5, 0, 1.0)),
        softmax(0.5, &[0, 1, 2, 3, 4]),
    );
    assert_close(shares(&options(1.0, 3, 1.0)), softmax(1.0, &[1, 4, 2]));
    assert_close(
        shares(&options(1.0, 99, 1.0)),
        softmax(1.0, &[0, 1, 2, 3, 4]),
    );
    // The two likeliest hold 0.41 each: the first reaches 0.3 alone, three reach 0.9.
    assert_close(shares(&options(1.0, 0, 0.3)), softmax(1.0, &[1]));
    assert_close(shares(&options(1.0, 0, 0.9)), softmax(1.0, &[1, 4, 2]));
}

#[test]
fn a_logit_of_minus_infinity_is_never_drawn() {
    let mut random = Philox::new(1, Stream::Sample).sequence([0; 3]);
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    for _ in 0..1000 {
        assert_eq!(pick(&logits, &options(1.0, 0, 1.0), &mut random), 1);
    }
}

/// What comes out of the filter for these pieces, and whether it said stop.
fn filtered(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let mut text = String::new();
    let mut emit = |piece: &str| {
        text.push_str(piece);
        Ok(())
    };
    let mut filter = StopFilter::new(&stops);
    for piece in pieces {
        if filter.push(piece, &mut emit).unwrap() {
            return (text, true);
        }
    }
    filter.finish(&mut emit).unwrap();
    (text, false)
}

#[test]
fn a_stop_text_ends_the_sample_even_across_pieces() {
    assert_eq!(
        filtered(&["\n\n"], &["one\n", "two\n", "\nthree"]),
        ("one\ntwo".to_owned(), true)
    );
    assert_eq!(
        filtered(&["END"], &["an E", "N", "d"]),
        ("an ENd".to_owned(), false)
    );
    assert_eq!(
        filtered(&["END", "é"], &["caf", "é"]),
        ("caf".to_owned(), true)
    );
    assert_eq!(
        filtered(&["aab"], &["a", "a", "a", "b", "c"]),
        ("a".to_owned(), true)
    );
    assert_eq!(filtered(&[""], &["x", "y"]), ("xy".to_owned(), false));
    assert_eq!(
        filtered(&["END"], &["tail E"]),
        ("tail E".to_owned(), false)
    );
}
