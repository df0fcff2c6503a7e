//! Pickles of Python's, ones that mean harm, and damaged ones.

use proptest::prelude::*;

use super::*;

/// `pickle.dumps({"vocab_size": 3, "itos": {0: "\n", 1: "a", 2: "é"}}, protocol)`.
const PROTOCOL_2: &[u8] =
    b"\x80\x02}q\x00(X\n\x00\x00\x00vocab_sizeq\x01K\x03X\x04\x00\x00\x00itos\
    q\x02}q\x03(K\x00X\x01\x00\x00\x00\nq\x04K\x01X\x01\x00\x00\x00aq\x05K\x02X\x02\x00\x00\x00\
    \xc3\xa9q\x06uu.";
const PROTOCOL_4: &[u8] = b"\x80\x04\x952\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\nvocab_size\x94K\
    \x03\x8c\x04itos\x94}\x94(K\x00\x8c\x01\n\x94K\x01\x8c\x01a\x94K\x02\x8c\x02\xc3\xa9\x94uu.";

fn refused(bytes: &[u8]) -> String {
    Pickle::parse(bytes, &[]).unwrap_err()
}

#[test]
fn dictionaries_of_both_protocols_are_read() {
    for bytes in [PROTOCOL_2, PROTOCOL_4] {
        let pickle = Pickle::parse(bytes, &[]).unwrap();
        let size = pickle.entry(pickle.root(), "vocab_size").unwrap();
        assert_eq!(pickle.get(size), &Value::Int(3));
        let itos = pickle.entry(pickle.root(), "itos").unwrap();
        let Value::Dict(entries) = pickle.get(itos) else {
            panic!("itos is a dictionary");
        };
        let texts: Vec<&Value> = entries.iter().map(|(_, text)| pickle.get(*text)).collect();
        let expected = ["\n", "a", "é"].map(|text| Value::Text(text.to_owned()));
        assert_eq!(texts, expected.iter().collect::<Vec<_>>());
        assert_eq!(pickle.entry(pickle.root(), "stoi"), None);
    }
}

#[test]
fn numbers_are_read() {
    for (bytes, expected) in [
        (&b"\x80\x02J\xfe\xff\xff\xff."[..], Value::Int(-2)),
        (b"M\x01\x02.", Value::Int(0x201)),
        (b"\x8a\x00.", Value::Int(0)),
        (b"\x8a\x05\x00\x00\x00\x00\x01.", Value::Int(1 << 32)),
        (b"\x8a\x01\xff.", Value::Int(-1)),
        (b"G?\xf8\x00\x00\x00\x00\x00\x00.", Value::Float(1.5)),
    ] {
        let pickle = Pickle::parse(bytes, &[]).unwrap();
        assert_eq!(pickle.get(pickle.root()), &expected);
    }
}

#[test]
fn code_is_refused_by_name_and_not_run() {
    // What `os.system("…")` pickles to, in both spellings.
    for bytes in [
        &b"cposix\nsystem\n(X\x09\x00\x00\x00touch /x\x85R."[..],
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x08touch /x\x85R.",
    ] {
        let fault = refused(bytes);
        assert!(fault.contains("\"posix.system\""), "{fault}");
        assert!(fault.contains("nothing here runs code"), "{fault}");
    }
    let long = [b"c", "x".repeat(5000).as_bytes(), b"\ny\n."].concat();
    assert!(refused(&long).len() < 300);
}

#[test]
fn a_listed_name_is_kept_as_a_call() {
    let bytes = b"ca\nb\nK\x07\x85R.";
    let pickle = Pickle::parse(bytes, &["a.b"]).unwrap();
    let Value::Call {
        callable,
        arguments,
    } = pickle.get(pickle.root())
    else {
        panic!("a call");
    };
    assert_eq!(callable, "a.b");
    assert_eq!(pickle.get(pickle.items(*arguments)[0]), &Value::Int(7));
}

#[test]
fn what_is_shared_takes_no_memory_and_what_is_nested_no_stack() {
    // Each list holds the one before twice: 2^30 items if they were copied.
    let mut doubled = b"]q\x00".to_vec();
    for _ in 0..30 {
        doubled.extend(b"0](h\x00h\x00eq\x00");
    }
    doubled.push(b'.');
    assert!(Pickle::parse(&doubled, &[]).is_ok());

    let deep = [b"]".repeat(200_000), b"a".repeat(199_999), b".".to_vec()].concat();
    drop(Pickle::parse(&deep, &[]).unwrap());
}

#[test]
fn lies_about_lengths_are_found_out_before_memory_is_taken() {
    for bytes in [
        &b"X\xff\xff\xff\xffabc"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
        b"\x8c\x05abc",
    ] {
        let fault = refused(bytes);
        assert!(fault.contains("cut short"), "{fault}");
    }
}

#[test]
fn every_beginning_of_a_pickle_is_refused() {
    for whole in [PROTOCOL_2, PROTOCOL_4] {
        for len in 0..whole.len() {
            assert!(Pickle::parse(&whole[..len], &[]).is_err(), "{len}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_bring_it_down(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Whether it is read is of no matter here, only that it returns.
        drop(Pickle::parse(&bytes, &["a.b"]));
    }
}
