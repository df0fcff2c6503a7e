//! The device at hand against the recorded outputs.
//!
//! `golden/outputs.txt` is a line `# made by …`, then for each case a line with its name and lines
//! of hexadecimal words. With ANNEAL_CONFORMANCE_OUT=FOLDER the outputs of the first device are
//! written there in the same form, to become the golden file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::cases::{Case, Compare, cases};
use crate::cuda::testing::for_each_device;
use crate::cuda::{Device, Grid};

const GOLDEN: &str = include_str!("golden/outputs.txt");
const WORDS_PER_LINE: usize = 10;

#[test]
fn device_gives_the_recorded_outputs() {
    let golden = parse(GOLDEN);
    let mut write_to = std::env::var_os("ANNEAL_CONFORMANCE_OUT");
    let mut faults = Vec::new();
    for_each_device(|device| {
        let mut outputs = Vec::new();
        for case in cases() {
            if device.properties().compute_capability < case.compute_capability_min {
                continue;
            }
            let output = run(device, &case);
            match golden.get(case.name) {
                Some(expected) => faults.extend(fault(&case, device.name(), &output, expected)),
                None => faults.push(format!("{}: not in golden/outputs.txt", case.name)),
            }
            outputs.push((case.name, output));
        }
        if let Some(folder) = write_to.take() {
            std::fs::create_dir_all(&folder).unwrap();
            let text = format(device.name(), &outputs);
            std::fs::write(Path::new(&folder).join("outputs.txt"), text).unwrap();
        }
    });
    assert!(
        faults.is_empty(),
        "{} difference(s):\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// What else runs with ANNEAL_TEST_DEVICE=cuda means nothing where this fails.
#[test]
fn device_is_the_one_that_was_asked_for() {
    let cuda = std::env::var("ANNEAL_TEST_DEVICE").is_ok_and(|device| device == "cuda");
    for_each_device(|device| {
        assert_eq!(
            !device.name().starts_with("emulator"),
            cuda,
            "{}",
            device.name()
        );
    });
}

#[test]
fn golden_file_has_every_case_and_no_other() {
    let mut expected: Vec<&str> = cases().iter().map(|case| case.name).collect();
    expected.sort_unstable();
    let names: Vec<String> = parse(GOLDEN).into_keys().collect();
    assert_eq!(names, expected);
}

#[test]
fn comparisons_tell_differences() {
    let bits = f32::to_bits;
    assert!(!Compare::Bits.same(bits(0.0), bits(-0.0)));
    assert!(!Compare::Float.same(bits(1.0), bits(1.0) + 1));
    assert!(!Compare::Float.same(bits(f32::NAN), bits(f32::INFINITY)));
    assert!(Compare::Float.same(0x7FFF_FFFF, 0xFFC0_0000));
    let near = Compare::Near {
        relative: 0.0,
        absolute: 0.25,
    };
    assert!(near.same(bits(1.25), bits(1.0)));
    assert!(!near.same(bits(1.3), bits(1.0)));
    assert!(!near.same(bits(f32::NAN), bits(1.0)));
    assert!(!near.same(bits(f32::INFINITY), bits(1.0)));
    assert!(near.same(bits(f32::INFINITY), bits(f32::INFINITY)));
}

#[test]
fn golden_text_is_read_as_it_is_written() {
    let outputs = vec![("b/x", vec![0, u32::MAX, 7]), ("a", (0..25).collect())];
    let text = format("a device", &outputs);
    assert!(text.starts_with("# made by a device\n"));
    let read = parse(&text);
    assert_eq!(read.len(), 2);
    for (name, words) in outputs {
        assert_eq!(read[name], words);
    }
}

fn run(device: &Device, case: &Case) -> Vec<u32> {
    let kernel = case.name.split('/').next().unwrap();
    let input = device.upload(&case.input).unwrap();
    let mut output = device.alloc::<u32>(case.output_words).unwrap();
    let stream = device.stream().unwrap();
    let grid = Grid::linear(1, case.threads).with_shared(case.shared_bytes);
    #[expect(unsafe_code, reason = "a launch")]
    // SAFETY: `cases` gives each kernel the input that it reads and the words that it writes.
    unsafe {
        let arguments = [output.arg_mut(), input.arg()];
        stream.launch(&format!("conformance_{kernel}"), grid, &arguments)
    }
    .unwrap();
    stream.synchronize().unwrap();
    output.download().unwrap()
}

/// How the output differs from what was expected, if it does.
fn fault(case: &Case, device: &str, output: &[u32], expected: &[u32]) -> Option<String> {
    let name = case.name;
    if output.len() != expected.len() {
        let (got, expected) = (output.len(), expected.len());
        return Some(format!(
            "{name} on {device}: expected {expected} words, got {got}"
        ));
    }
    let differ: Vec<usize> = (0..output.len())
        .filter(|&i| !case.compare.same(output[i], expected[i]))
        .collect();
    let &first = differ.first()?;
    let (got, expected) = (output[first], expected[first]);
    Some(format!(
        "{name} on {device}: {} of {} words differ, the first is word {first}: \
         expected {expected:08x} ({:e}), got {got:08x} ({:e})",
        differ.len(),
        output.len(),
        f32::from_bits(expected),
        f32::from_bits(got),
    ))
}

fn format(device: &str, outputs: &[(&str, Vec<u32>)]) -> String {
    let mut text = format!("# made by {device}\n");
    for (name, words) in outputs {
        writeln!(text, "\n{name}").unwrap();
        for line in words.chunks(WORDS_PER_LINE) {
            let line: Vec<String> = line.iter().map(|word| format!("{word:08x}")).collect();
            writeln!(text, "{}", line.join(" ")).unwrap();
        }
    }
    text
}

fn parse(text: &str) -> BTreeMap<String, Vec<u32>> {
    let mut outputs = BTreeMap::new();
    for block in text.split("\n\n").skip(1) {
        let (name, words) = block.split_once('\n').unwrap();
        let words = words.split_whitespace();
        let words = words
            .map(|word| u32::from_str_radix(word, 16).unwrap())
            .collect();
        assert!(
            outputs.insert(name.to_owned(), words).is_none(),
            "{name} twice"
        );
    }
    outputs
}
