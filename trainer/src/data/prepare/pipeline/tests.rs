//! Order, the first error, and how far ahead reading runs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::Error;

#[test]
fn results_keep_the_order_of_the_items_whatever_each_takes() {
    for threads in [1, 2, 7] {
        let mut out = Vec::new();
        let items = (0..500u64).map(Ok);
        let slow = |n: u64| {
            thread::sleep(Duration::from_micros(n * 7919 % 300));
            Ok(n * n)
        };
        in_order(threads, items, slow, |n| {
            out.push(n);
            Ok(())
        })
        .unwrap();
        assert_eq!(out, (0..500).map(|n| n * n).collect::<Vec<_>>());
    }
}

#[test]
fn the_first_error_in_the_order_of_the_items_counts_and_ends_the_work() {
    let fault = |n: u64| Error::Data(format!("item {n}"));
    for threads in [1, 3] {
        let read = AtomicUsize::new(0);
        let items = (0..).map(|n| {
            read.fetch_add(1, Ordering::Relaxed);
            if n == 90 { Err(fault(n)) } else { Ok(n) }
        });
        let work = |n| if n % 50 == 49 { Err(fault(n)) } else { Ok(n) };
        let error = in_order(threads, items, work, |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "item 49");
        assert!(read.load(Ordering::Relaxed) <= 91);

        let only_the_reader = (0..).map(|n| if n == 90 { Err(fault(n)) } else { Ok(n) });
        let error = in_order(threads, only_the_reader, Ok, |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "item 90");

        let sink = |n| if n == 5 { Err(fault(n)) } else { Ok(()) };
        let error = in_order(threads, (0..).map(Ok), Ok, sink).unwrap_err();
        assert_eq!(error.to_string(), "item 5");
    }
}

#[test]
fn reading_runs_no_further_ahead_than_it_may() {
    let (threads, read, written) = (2, AtomicUsize::new(0), AtomicUsize::new(0));
    let items = (0..300).map(|n| {
        let ahead = read.fetch_add(1, Ordering::SeqCst) - written.load(Ordering::SeqCst);
        // Those in the two queues, in the hands of the reader, the workers and the sink.
        assert!(
            ahead <= 2 * threads * AHEAD_PER_THREAD + threads + 2,
            "{ahead}"
        );
        Ok(n)
    });
    in_order(threads, items, Ok, |_: usize| {
        thread::sleep(Duration::from_micros(200));
        written.fetch_add(1, Ordering::SeqCst);
        Ok(())
    })
    .unwrap();
}
