//! Money by the clock, and the table.

use super::*;
use crate::provider::Kind;

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds))
}

fn price(per_hour: f64, storage_per_hour: f64, source: PriceSource) -> Price {
    Price {
        per_hour,
        storage_per_hour,
        source,
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn a_machine_costs_from_its_start_and_the_providers_word_holds_for_the_past() {
    let mut meter = Meter::new(at(0));
    assert_eq!(meter.total(at(3600)), 0.0);
    meter.set_price(price(1.0, 0.5, PriceSource::Table), at(3600));
    assert!(close(meter.total(at(3600)), 1.5), "boot is paid for, too");
    meter.set_price(price(2.0, 0.0, PriceSource::Provider), at(7200));
    assert!(close(meter.total(at(7200)), 4.0), "the guess is forgotten");
    // From here on a new price is of the future only.
    meter.set_price(price(10.0, 1.0, PriceSource::Provider), at(7200));
    assert!(close(meter.total(at(10_800)), 15.0));
    let (compute, storage) = meter.machine(at(10_800));
    assert!(close(compute, 14.0) && close(storage, 1.0));
}

#[test]
fn former_machines_count_and_none_counts_twice() {
    let mut meter = Meter::new(at(0));
    meter.set_price(price(3.6, 0.0, PriceSource::Job), at(0));
    meter.set_former(5.0, 0.0);
    assert!(close(meter.total(at(1000)), 6.0));
    // The process before us on this machine had counted a dollar of it already.
    meter.set_former(6.0, 1.0);
    assert!(close(meter.total(at(1000)), 6.0));
    meter.set_former(f64::NAN, -1.0);
    assert!(close(meter.total(at(1000)), 1.0));
}

#[test]
fn a_budget_is_a_moment() {
    let mut meter = Meter::new(at(0));
    assert_eq!(meter.reaches(1.0, at(0)), None, "nothing costs nothing");
    meter.set_price(price(3.6, 0.0, PriceSource::Job), at(0));
    assert_eq!(meter.reaches(1.0, at(200)), Some(at(1000)));
    assert_eq!(meter.reaches(0.1, at(200)), Some(at(200)));
    assert!(close(
        meter.total_after(at(0), Duration::from_secs(2000)),
        2.0
    ));
}

#[test]
fn the_shipped_table_knows_what_it_lists() {
    let table = Table::shipped();
    let of = |kind, name: &str, count, spot| {
        let found = table.price(kind, name, count, spot, Disk { gb: 0.0 });
        found.map(|(price, _)| price.per_hour)
    };
    assert_eq!(
        of(Kind::Modal, "NVIDIA H100 80GB HBM3", 1, None),
        Some(3.95)
    );
    assert_eq!(
        of(Kind::Modal, "NVIDIA A100-SXM4-80GB", 2, None),
        Some(5.00)
    );
    assert_eq!(of(Kind::Modal, "NVIDIA A100-PCIE-40GB", 1, None), Some(2.1));
    assert_eq!(
        of(Kind::Vast, "NVIDIA GeForce RTX 4090", 1, None),
        Some(0.35)
    );
    assert_eq!(of(Kind::Aws, "p3.8xlarge", 4, Some(false)), Some(12.24));
    assert_eq!(of(Kind::Aws, "p3.8xlarge", 4, Some(true)), Some(3.67));
    assert_eq!(of(Kind::Modal, "NVIDIA A1000", 1, None), None);
    assert_eq!(of(Kind::RunPod, "NVIDIA H100 80GB HBM3", 1, None), None);
    let disk = table.price(Kind::Aws, "p3.2xlarge", 1, None, Disk { gb: 730.0 });
    assert!(close(disk.unwrap().0.storage_per_hour, 0.08));
    assert_eq!(table.as_of(), "2025-01");
}

#[test]
fn a_table_with_a_mistake_is_refused() {
    let line = |provider: &str, price: &str| {
        format!(
            "storage = []\n[[gpu]]\nprovider = \"{provider}\"\nname = \"H100\"\n{price}\n\
             as_of = \"2025\""
        )
    };
    assert!(Table::parse(&line("modal", "on_demand = 1.0")).is_ok());
    for (provider, price) in [
        ("modal", ""),
        ("modal", "on_demand = -1.0"),
        ("modal", "on_demand = nan"),
        ("modal", "on_demnd = 1.0"),
        ("nodal", "on_demand = 1.0"),
    ] {
        assert!(
            Table::parse(&line(provider, price)).is_err(),
            "{provider} {price}"
        );
    }
}
