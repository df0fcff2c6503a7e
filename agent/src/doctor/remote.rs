//! What the machine talks to: its provider, metadata services, the store, and the store's clock.
//! Called by the doctor.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::{Asked, CHECK_MAX, Check, silent};
use crate::clock::{BootClock, Clock};
use crate::cost::{Disk, Table};
use crate::error::ExitStatus;
use crate::https;
use crate::provider::{Adapter, Instance, Kind, PowerOff, Services, detect};
use crate::storage::open::open;
use crate::storage::{Storage, StorageError, probe};

/// For the provider's API, of the time for all.
const PRICE_MAX: Duration = Duration::from_secs(3);
/// For the store's first answer, of the time for all.
const FIRST_MAX: Duration = Duration::from_secs(4);
/// For a name, a connection, the head of an answer.
const STEP_MAX: Duration = Duration::from_secs(3);

/// Who it is, what it costs, how it would be given back, and how long it may live.
pub(super) async fn provider(asked: &Asked) -> Vec<Check> {
    let services = Services::new(&asked.environment);
    let finding = detect(&asked.environment, asked.provider, &services);
    let Ok(instance) = timeout(CHECK_MAX.saturating_sub(PRICE_MAX), finding).await else {
        let hint = "--provider says whose machine it is";
        return vec![silent("provider", hint)];
    };
    let adapter = Adapter::new(instance, services, asked.environment.clone());
    let told = timeout(PRICE_MAX, adapter.price()).await.ok().flatten();
    let told = told.map(|price| (price.per_hour + price.storage_per_hour, "the provider"));
    let instance = adapter.instance();
    let mut checks = vec![
        who(instance),
        price(asked, instance, told),
        power_off(instance, &adapter.requests(PowerOff::Destroy)),
    ];
    checks.extend(time_left(instance));
    checks
}

fn who(instance: &Instance) -> Check {
    let mut found = format!("{} (by {})", instance.kind.name(), instance.found_by);
    let parts = [
        ("instance", &instance.id),
        ("region", &instance.region),
        ("machine", &instance.machine),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            found.push_str(&format!(", {name} {value}"));
        }
    }
    if instance.spot == Some(true) {
        found.push_str(", spot");
    }
    Check::ok("provider", found)
}

/// `told` is what the provider says.
pub(super) fn price(asked: &Asked, instance: &Instance, told: Option<(f64, &str)>) -> Check {
    let of_table = || {
        let name = instance.machine.as_deref()?;
        let table = Table::shipped();
        let found = table.price(instance.kind, name, 1, instance.spot, Disk::default());
        found.map(|(price, as_of)| (price.per_hour, format!("configs/prices.toml of {as_of}")))
    };
    let said = asked.price.map(|price| (price, "--price".to_owned()));
    let told = told.map(|(price, by)| (price, by.to_owned()));
    match said.or(told).or_else(of_table) {
        Some((per_hour, by)) => Check::ok("price", format!("${per_hour:.2} an hour, by {by}")),
        None if instance.kind == Kind::Local => {
            Check::ok("price", "unknown: a machine of your own")
        }
        None => Check::warning(
            "price",
            "unknown: no budget can be held",
            "--price (or AGENT_PRICE), dollars an hour",
        ),
    }
}

/// `requests` is what would be sent at the end; nothing is sent now.
pub(super) fn power_off(instance: &Instance, requests: &[String]) -> Check {
    let found = requests.join("; ");
    let denied = requests
        .iter()
        .all(|request| request.starts_with("nothing:"));
    let by_exit = requests
        .iter()
        .any(|request| request.contains("ends the bill"));
    match instance.kind {
        Kind::Local => Check::ok(
            "power off",
            "the machine stays on at the end: nobody rents it out",
        ),
        _ if by_exit => Check::ok("power off", "the end of the agent ends the bill"),
        _ if denied => Check::warning(
            "power off",
            format!("the machine stays on at the end and goes on costing: {found}"),
            "give the provider's key, or --power-off-command",
        ),
        _ => Check::ok("power off", format!("would send {found}")),
    }
}

fn time_left(instance: &Instance) -> Option<Check> {
    const LITTLE: Duration = Duration::from_secs(3600);
    let left = instance.ends_in?;
    let hours = left.as_secs_f64() / 3600.0;
    let found = format!("the provider ends it in {hours:.1} h at the latest");
    Some(if left < LITTLE {
        Check::warning(
            "time left",
            found,
            "start the job anew, it goes on where it stands",
        )
    } else {
        Check::ok("time left", found)
    })
}

/// Whether anything answers where clouds have their metadata services.
pub(super) async fn metadata(asked: &Asked) -> Check {
    let services = Services::new(&asked.environment);
    let url = &services.aws_metadata;
    let Some(address) = host_of(url) else {
        return Check::warning(
            "metadata",
            format!("{url}: no address"),
            "AGENT_AWS_METADATA_URL",
        );
    };
    match timeout(Duration::from_secs(1), TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Check::ok("metadata", format!("a service answers at {address}")),
        _ => Check::ok(
            "metadata",
            format!("nobody answers at {address}: no cloud's, or hidden"),
        ),
    }
}

/// `host:port` of a URL.
pub(super) fn host_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest
        .split(['/', '?'])
        .next()
        .filter(|host| !host.is_empty())?;
    let host = host.rsplit('@').next()?;
    let has_port = host
        .rsplit(':')
        .next()
        .is_some_and(|port| port.parse::<u16>().is_ok());
    let port = if scheme == "https" { 443 } else { 80 };
    Some(if has_port && host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    })
}

/// What the store can do, and how far away it and its clock are.
pub(super) async fn store(asked: &Asked) -> Vec<Check> {
    let Some(location) = &asked.store else {
        let own = own_clock(SystemTime::now());
        return vec![Check::ok("store", "none to look at (--store)"), own];
    };
    let hint = "s3://bucket/prefix or a folder; agent probe-store tells more";
    let store = match timeout(CHECK_MAX, open(location)).await {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => {
            let check = Check::error("store", ExitStatus::Failed, error.to_string(), hint);
            return vec![check, own_clock(SystemTime::now())];
        }
        Err(_) => return vec![silent("store", hint)],
    };
    // A bucket's address is known after a first request only.
    let start = BootClock.now();
    let first = first_request(&store).await;
    let left = CHECK_MAX.saturating_sub(BootClock.now().since(start));
    let address = store.address();
    let probing = async {
        match first {
            Ok(latency_ms) => probed(&store, latency_ms, left).await,
            Err(check) => check,
        }
    };
    let looking = timeout(left, network(address.as_deref()));
    let (probed, network) = tokio::join!(probing, looking);
    let mut checks = vec![probed];
    checks.extend(network.unwrap_or_else(|_| {
        let hint = "a firewall, or a resolver that is down";
        vec![silent("network", hint)]
    }));
    checks
}

/// Milliseconds of a request for what is not there.
async fn first_request(store: &Arc<dyn Storage>) -> Result<f64, Check> {
    let start = BootClock.now();
    match timeout(FIRST_MAX, store.get("doctor-latency")).await {
        Ok(Err(error)) if !error.is_missing() => Err(unreachable_store(&error)),
        Ok(_) => Ok(BootClock.now().since(start).as_secs_f64() * 1e3),
        Err(_) => Err(Check::error(
            "store",
            ExitStatus::Retryable,
            format!(
                "{}: no answer within {} s",
                store.name(),
                FIRST_MAX.as_secs()
            ),
            "is AWS_ENDPOINT_URL right, and is the network open?",
        )),
    }
}

/// The store at work: create-only, races, listing; what it writes is removed.
async fn probed(store: &Arc<dyn Storage>, latency_ms: f64, left: Duration) -> Check {
    let name = store.name();
    match timeout(left, probe::probe(store, fastrand::u64(..), |_| ())).await {
        Err(_) => Check::warning(
            "store",
            format!("{name}: {latency_ms:.0} ms a request, too slow for a whole look here"),
            "agent probe-store takes its time",
        ),
        Ok(Err(error)) => unreachable_store(&error),
        Ok(Ok(verdict)) => match (verdict.objection(), verdict.warning()) {
            (Some(why), _) => Check::error(
                "store",
                ExitStatus::Unfit,
                why,
                "another store, or --lease off if only one container runs this job",
            ),
            (None, Some(warning)) => Check::warning(
                "store",
                warning,
                "close it to strangers before it holds a job",
            ),
            (None, None) => Check::ok(
                "store",
                format!("{name}: leases are safe here, {latency_ms:.0} ms a request"),
            ),
        },
    }
}

/// Its own advice, where the error has one, before ours.
fn unreachable_store(error: &StorageError) -> Check {
    let text = error.to_string();
    let (found, hint) = text.split_once("; hint: ").unwrap_or((&text, ""));
    let (exit, ours) = if error.is_transient() {
        let hint = "is AWS_ENDPOINT_URL right, and is the network open?";
        (ExitStatus::Retryable, hint)
    } else {
        let hint = "check bucket, region and keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)";
        (ExitStatus::Failed, hint)
    };
    let hint = if hint.is_empty() { ours } else { hint };
    Check::error("store", exit, found, hint)
}

/// Name, way and clock of the store's server; of a folder only our own clock.
async fn network(address: Option<&str>) -> Vec<Check> {
    let Some(url) = address else {
        return vec![own_clock(SystemTime::now())];
    };
    let Some(host) = host_of(url) else {
        return Vec::new();
    };
    let start = BootClock.now();
    let resolved = timeout(STEP_MAX, lookup_host(&host)).await;
    let dns_ms = BootClock.now().since(start).as_secs_f64() * 1e3;
    let first = match resolved {
        Ok(Ok(mut addresses)) => addresses.next(),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(first) = first else {
        let found = format!("{host}: the name cannot be resolved");
        let hint = "/etc/resolv.conf, or the container's --dns";
        return vec![Check::error("network", ExitStatus::Retryable, found, hint)];
    };
    let start = BootClock.now();
    let connected = timeout(STEP_MAX, TcpStream::connect(first)).await;
    let connect_ms = BootClock.now().since(start).as_secs_f64() * 1e3;
    let network = match connected {
        Ok(Ok(_)) => Check::ok(
            "network",
            format!("{host}: name in {dns_ms:.0} ms, connection in {connect_ms:.0} ms"),
        ),
        _ => Check::error(
            "network",
            ExitStatus::Retryable,
            format!("{host} ({first}): no connection"),
            "a firewall, or a proxy that HTTPS_PROXY must name",
        ),
    };
    let mut checks = vec![network];
    checks.push(match server_date(url).await {
        Some(date) => skew(date, SystemTime::now()),
        None => own_clock(SystemTime::now()),
    });
    checks
}

/// The `Date` of an answer, whatever else it says.
async fn server_date(url: &str) -> Option<i64> {
    let client = https::builder()
        .timeout(STEP_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .ok()?;
    let answer = client.get(url).send().await.ok()?;
    let date = answer.headers().get("date")?.to_str().ok()?.to_owned();
    let zoned = jiff::fmt::rfc2822::parse(&date).ok()?;
    Some(zoned.timestamp().as_second())
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Our clock against the store's: S3 refuses what is signed 15 minutes off.
pub(super) fn skew(server: i64, own: SystemTime) -> Check {
    const NOTICEABLE_S: u64 = 30;
    const REFUSED_S: u64 = 15 * 60;
    let off = unix(own) - server;
    let direction = if off < 0 { "behind" } else { "ahead of" };
    let found = format!("{} s {direction} the store's", off.abs());
    match off.unsigned_abs() {
        off if off >= REFUSED_S => Check::error(
            "clock",
            ExitStatus::Retryable,
            format!("{found}: it refuses requests that are signed so"),
            "set the host's clock (chronyd, systemd-timesyncd)",
        ),
        off if off >= NOTICEABLE_S => Check::warning(
            "clock",
            format!("{found}: times in logs mislead, and at 15 min the store refuses requests"),
            "set the host's clock (chronyd, systemd-timesyncd)",
        ),
        _ => Check::ok("clock", found),
    }
}

/// Where no server tells the time: at least the year.
pub(super) fn own_clock(own: SystemTime) -> Check {
    /// 2026-01-01: before the program was written.
    const YEAR: i64 = 1_767_225_600;
    let seconds = unix(own);
    let time = jiff::Timestamp::from_second(seconds);
    let time = time.map_or_else(|_| "unreadable".to_owned(), |time| time.to_string());
    if seconds < YEAR {
        return Check::error(
            "clock",
            ExitStatus::Retryable,
            format!("{time}: in the past, stores refuse requests that are signed so"),
            "set the host's clock (chronyd, systemd-timesyncd)",
        );
    }
    Check::ok("clock", format!("{time}, compared with nobody's"))
}
