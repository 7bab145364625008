//! `vzbd conform`: what it says, what it writes, how it ends; and that our own disks keep every rule, at geometries chosen to hurt.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod common;
mod xml;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use common::{Daemon, Place, vzbd, vzbd_fails, vzbd_json, vzbd_ok};
use serde_json::Value;
use virtio_zbd_device::{Disk, DiskConfig};
use virtio_zbd_spec::Features;
use virtio_zbd_store::{EngineChoice, RamStore, Store};
use virtio_zbd_vhost_user::{
    Backend, ConfigRefused, FeaturesRefused, FrontendNotifier, Inflight, Server, Session, StartError, Vring,
};
use virtio_zbd_zones::{Geometry, GeometryConfig, Model, ZoneLayout, ZoneRun};
use vzbd::{DiskBackend, DiskQueue, DiskSession, ServeOptions, ServedDisk};

/// Geometries chosen to hurt, as `vzbd create` and `vzbd serve ram` take them. Most cells of the table of rules need a second zone,
/// or a third; the disks are small, so that zones can be filled.
const GEOMETRIES: [(&str, &str); 13] = [
    (
        "a runt, and capacity below the size",
        "--size 16640K --zone-size 1M --zone-capacity 768K --conventional 2 --max-open 4 --max-active 6",
    ),
    (
        "zones that are no power of two",
        "--size 8476K --zone-size 604K --zone-capacity 500K --conventional 1 --max-open 3 --max-active 5",
    ),
    ("no append", "--size 8M --zone-size 512K --max-append 0 --max-open 2 --max-active 3"),
    ("one open zone", "--size 8M --zone-size 512K --max-open 1 --max-active 4"),
    ("one active zone", "--size 8M --zone-size 512K --conventional 1 --max-open 1 --max-active 1"),
    (
        "a granularity of a sector",
        "--size 2M --zone-size 64K --zone-capacity 47K --block-size 512 --max-append 3584 --max-open 3 --max-active 4",
    ),
    (
        "a granularity of 64K",
        "--size 20M --zone-size 1M --zone-capacity 704K --block-size 64K --max-append 128K --max-open 3 --max-active 4",
    ),
    ("conventional zones only", "--size 4M --zone-size 512K --conventional 8"),
    ("one zone", "--size 1M --zone-size 1M --zone-capacity 640K"),
    ("a single runt", "--size 768K --zone-size 1M --zone-capacity 640K"),
    ("no limits", "--size 8M --zone-size 512K --max-open 0 --max-active 0 --conventional 1"),
    ("zones of a single granule", "--size 256K --zone-size 4K --max-append 4K --max-open 2 --max-active 2"),
    (
        "zones in the thousands",
        "--size 64M --zone-size 16K --zone-capacity 12K --conventional 100 --max-append 8K",
    ),
];

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Runs the cases; gives back the results as JSON and whether the program ended with 0.
fn conform(target: &str, more: &[&str]) -> (Value, bool) {
    let output = vzbd(&[&["conform", target, "--yes", "--json"], more].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{said}"));
    (json, output.status.success())
}

/// The ids of the cases with this outcome.
fn with_outcome(json: &Value, outcome: &str) -> BTreeSet<String> {
    let cases = json["cases"].as_array().unwrap().iter();
    let ids = cases.filter(|case| case["outcome"] == outcome).map(|case| case["id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

/// What came of several runs.
#[derive(Default)]
struct Seen {
    passed: BTreeSet<String>,
    failed: Vec<String>,
}

impl Seen {
    /// Runs all cases on a disk.
    fn run(&mut self, what: &str, target: &str, more: &[&str]) {
        let (json, success) = conform(target, more);
        let cases = json["cases"].as_array().unwrap();
        assert_eq!(cases.len(), vzbd_json(&["conform", "--list"]).as_array().unwrap().len());
        let failed: Vec<_> = cases.iter().filter(|case| case["outcome"] == "failed").collect();
        assert!(success || !failed.is_empty(), "{what}");
        for case in &failed {
            self.failed.push(format!("{what}: {}", serde_json::to_string_pretty(case).unwrap()));
        }
        let passed = with_outcome(&json, "passed");
        println!("{what}: {} passed, {} skipped", passed.len(), with_outcome(&json, "skipped").len());
        self.passed.extend(passed);
    }

    /// All that our device is asked it does: what is required, and what is recommended or ours as well.
    #[track_caller]
    fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "{} failed:\n{}", self.failed.len(), self.failed.join("\n"));
    }
}

/// What is skipped at all geometries shows nothing.
fn tell_what_was_never_tried(passed: &BTreeSet<String>) {
    let list = vzbd_json(&["conform", "--list"]);
    let all = list.as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap());
    println!("never tried: {:?}", all.filter(|id| !passed.contains(*id)).collect::<Vec<_>>());
}

#[test]
fn our_disk_in_ram_keeps_every_rule_at_all_geometries() {
    let place = Place::new();
    let mut seen = Seen::default();
    for (what, geometry) in GEOMETRIES {
        let daemon = place.ram(&format!("{geometry} --queues 4"));
        seen.run(what, daemon.socket(), &[]);
        let (status, _) = daemon.stop();
        assert!(status.success(), "{what}");
    }
    tell_what_was_never_tried(&seen.passed);
    seen.assert_passed();
}

#[test]
fn our_images_keep_every_rule_at_all_geometries() {
    let place = Place::new();
    let mut seen = Seen::default();
    for (what, geometry) in GEOMETRIES {
        let path = place.path("disk.zbd");
        vzbd_ok(&[&["create", path.to_str().unwrap(), "--force"], &words(geometry)[..]].concat());
        seen.run(what, path.to_str().unwrap(), &[]);
        // What was done to it left it whole.
        vzbd_ok(&["check", path.to_str().unwrap()]);
    }
    tell_what_was_never_tried(&seen.passed);
    seen.assert_passed();
}

#[test]
fn our_disk_without_zones_keeps_what_is_asked_of_one() {
    let place = Place::new();
    let daemon = place.ram("--zoned none --size 16M --queues 2");
    let mut seen = Seen::default();
    seen.run("ram without zones", daemon.socket(), &[]);
    drop(daemon);
    let path = place.path("disk.raw");
    fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    seen.run("a file without zones", path.to_str().unwrap(), &["--zoned", "none"]);
    seen.assert_passed();
    for id in ["V1-a", "S1-a", "V12-a"] {
        assert!(seen.passed.contains(id), "{id}: {:?}", seen.passed);
    }
}

/// Zones that an image was told to have given up: what else is refused there, and what can still be read.
#[test]
fn an_image_with_zones_that_are_given_up_keeps_every_rule() {
    let place = Place::new();
    let path = place.path("disk.zbd");
    let image = path.to_str().unwrap();
    let shape = "--size 16M --zone-size 1M --zone-capacity 768K --conventional 2 --max-open 3 --max-active 5";
    vzbd_ok(&[&["create", image], &words(shape)[..]].concat());
    // Written before, so that there is something to be read.
    common::vzbd_takes(&["write", image, "--zone", "14"], &common::pattern(1, 64 << 10));
    vzbd_ok(&["zone", "set-state", image, "14", "read-only"]);
    vzbd_ok(&["zone", "set-state", image, "15", "offline"]);
    let mut seen = Seen::default();
    seen.run("an image with a read-only and an offline zone", image, &[]);
    tell_what_was_never_tried(&seen.passed);
    seen.assert_passed();
    for id in ["V28-a", "V29-a", "S14-c"] {
        assert!(seen.passed.contains(id), "{id}: {:?}", seen.passed);
    }
}

#[test]
fn a_read_only_disk_keeps_every_rule() {
    let place = Place::new();
    let path = place.small_image();
    common::vzbd_takes(&["write", path.to_str().unwrap(), "--zone", "3"], &common::pattern(1, 64 << 10));
    let before = fs::read(&path).unwrap();
    let daemon = Daemon::start(&path, &place.path("sock"), &["--read-only", "--queues", "2"]);
    let mut seen = Seen::default();
    seen.run("a read-only image", daemon.socket(), &[]);
    drop(daemon);
    seen.assert_passed();
    for id in ["S18-a", "S18-b", "G5-a", "V4-a"] {
        assert!(seen.passed.contains(id), "{id}: {:?}", seen.passed);
    }
    assert!(fs::read(&path).unwrap() == before, "it was written to");
}

/// Serves a store as long as `with` takes.
fn with_served(store: Arc<dyn Store>, with: impl FnOnce(&str)) {
    let place = Place::new();
    let options = ServeOptions { queues: 4, ..ServeOptions::default() };
    let disk = ServedDisk::start(store, options, &place.path("sock")).unwrap();
    with(disk.socket().to_str().unwrap());
    disk.stop().unwrap();
}

#[test]
fn zones_of_different_capacities_and_kinds_keep_every_rule() {
    let config = GeometryConfig {
        capacity_sectors: 18 * 512 + 128,
        zone_sectors: 512,
        zone_capacity_sectors: 512,
        conventional_zones: 0,
        max_open_zones: 3,
        max_active_zones: 5,
        max_append_sectors: 64,
        write_granularity_bytes: 4096,
    };
    let capacities = ZoneLayout {
        model: Model::HostManaged,
        head: vec![ZoneRun::conventional(2), ZoneRun::required(1, 8), ZoneRun::conventional(1)],
        cycle: vec![ZoneRun::required(1, 504), ZoneRun::required(2, 128), ZoneRun::required(1, 512)],
    };
    let no_limits = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..config };
    let host_aware = ZoneLayout {
        model: Model::HostAware,
        head: vec![ZoneRun::conventional(1)],
        cycle: vec![ZoneRun::preferred(1, 512)],
    };
    let mut seen = Seen::default();
    for (what, config, layout) in
        [("a capacity of its own for each zone", config, capacities), ("host-aware", no_limits, host_aware)]
    {
        let geometry = Geometry::with_layout(config, layout).unwrap();
        with_served(Arc::new(RamStore::new(geometry).unwrap()), |socket| seen.run(what, socket, &[]));
    }
    tell_what_was_never_tried(&seen.passed);
    seen.assert_passed();
}

/// The table of cases in the documentation. `CONFORM_DOC=write` writes it.
#[test]
fn the_document_lists_the_cases() {
    let list = vzbd_json(&["conform", "--list"]);
    let mut table = String::from("| Case | Level | What is tried |\n|---|---|---|\n");
    for case in list.as_array().unwrap() {
        let word = |key: &str| case[key].as_str().unwrap().replace('|', "\\|");
        table += &format!("| {} | {} | {} |\n", word("id"), word("level"), word("title"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, listed) = text.split_at(text.find("| Case | Level |").unwrap());
    if std::env::var("CONFORM_DOC").is_ok_and(|wanted| wanted == "write") {
        fs::write(&path, format!("{before}{table}")).unwrap();
        return;
    }
    assert!(
        listed == table,
        "the cases are others than those in docs/conformance.md: CONFORM_DOC=write cargo test -p vzbd --test conform document"
    );
}

#[test]
fn without_yes_it_says_what_would_be_gone_and_touches_nothing() {
    let place = Place::new();
    let path = place.small_image();
    let image = path.to_str().unwrap();
    let before = fs::read(&path).unwrap();
    let said = vzbd_fails(2, &["conform", image]);
    for part in [image, "host-managed", "16M", "16 zones of 1M", "all that is on it will be gone", "--yes"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(fs::read(&path).unwrap() == before);

    let daemon = place.ram("--zoned none --size 24M");
    let said = vzbd_fails(2, &["conform", daemon.socket()]);
    assert!(said.contains("a disk of 24M, no zones"), "{said}");
    // It has let go of the disk.
    assert!(conform(daemon.socket(), &[]).1);
}

#[test]
fn the_list_needs_no_disk() {
    let text = vzbd_ok(&["conform", "--list"]);
    let list = vzbd_json(&["conform", "--list"]);
    let list = list.as_array().unwrap();
    let ids: BTreeSet<_> = list.iter().map(|case| case["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), list.len(), "an id stands for one case");
    for case in list {
        for part in ["id", "level", "title", "asks"] {
            assert!(text.contains(case[part].as_str().unwrap()), "{part} of {case}");
        }
    }
    let one = vzbd_json(&["conform", "--list", "--case", "V4-a"]);
    assert_eq!(one.as_array().unwrap().len(), 1);
}

#[test]
fn calls_that_can_not_be_meant() {
    let place = Place::new();
    let image = place.small_image();
    let image = image.to_str().unwrap();
    assert!(
        vzbd_fails(2, &["conform", image, "--yes", "--case", "V99"]).contains("no case and no rule 'V99'")
    );
    assert!(vzbd_fails(2, &["conform", image, "--yes", "--except", "v4-a"]).contains("'v4-a'"));
    vzbd_fails(2, &["conform", image, "--yes", "--case", "V4-a", "--except", "V4"]);
    vzbd_fails(2, &["conform"]);
    vzbd_fails(2, &["conform", image, "--list"]);
    assert!(vzbd_fails(2, &["conform", "/nowhere", "--yes"]).contains("/nowhere"));
    assert!(vzbd_fails(1, &["conform", "Cargo.toml", "--yes"]).contains("Cargo.toml"));
    let unwritable = place.path("no/such/dir.xml");
    let said = vzbd_fails(1, &["conform", image, "--yes", "--junit", unwritable.to_str().unwrap()]);
    assert!(said.contains("dir.xml"), "{said}");
}

#[test]
fn chosen_cases_in_a_table() {
    let place = Place::new();
    let image = place.small_image();
    let image = image.to_str().unwrap();
    let text = vzbd_ok(&["conform", image, "--yes", "--case", "V4", "--case", "V5-a", "--except", "V4-b"]);
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('V')).collect();
    assert_eq!(rows.len(), 3, "{text}");
    for (row, id) in rows.iter().zip(["V4-a", "V4-c", "V5-a"]) {
        assert!(row.starts_with(id) && row.contains("required") && row.contains("passed"), "{text}");
    }
    assert!(text.contains("\n3 passed, 0 failed, 0 skipped: all that is required"), "{text}");
    assert!(!text.contains("step"), "{text}");
    let text = vzbd_ok(&["conform", image, "--yes", "--case", "V4-a", "--verbose"]);
    assert!(text.contains("  step "), "{text}");
}

#[test]
fn the_same_seed_sends_the_same() {
    let place = Place::new();
    let daemon = place.ram(common::SMALL);
    let run = |seed: &str| {
        let (mut json, _) = conform(daemon.socket(), &["--seed", seed]);
        for case in json["cases"].as_array_mut().unwrap() {
            case["seconds"] = Value::Null;
        }
        json["cases"].take()
    };
    let first = run("7");
    assert_eq!(first, run("7"));
}

/// What is wrong with a disk that is wrong: it does not refuse a driver that does not know zones (V4).
#[derive(Clone)]
struct Lenient(DiskBackend);

struct LenientSession(DiskSession);

impl Backend for Lenient {
    type Session = LenientSession;

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queue_count(&self) -> u16 {
        self.0.queue_count()
    }

    fn queue_size_max(&self) -> u16 {
        self.0.queue_size_max()
    }

    fn keeps_inflight(&self) -> bool {
        false
    }

    fn connect(&self, notifier: FrontendNotifier) -> LenientSession {
        LenientSession(self.0.connect(notifier))
    }
}

impl Session for LenientSession {
    type Queue = DiskQueue;

    fn accept_features(&mut self, features: u64) -> Result<(), FeaturesRefused> {
        self.0.accept_features(features | Features::ZONED.bits())
    }

    fn read_config(&self, offset_bytes: u32, out: &mut [u8]) {
        self.0.read_config(offset_bytes, out);
    }

    fn write_config(&mut self, offset_bytes: u32, data: &[u8]) -> Result<(), ConfigRefused> {
        self.0.write_config(offset_bytes, data)
    }

    fn use_inflight(&mut self, buffer: &Inflight) {
        self.0.use_inflight(buffer);
    }

    fn start_queue(&mut self, index: u16, vring: Vring) -> Result<DiskQueue, StartError> {
        self.0.start_queue(index, vring)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Serves the disk that is wrong for as long as `with` takes.
fn with_a_wrong_disk(socket: &Path, with: impl FnOnce()) {
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 16 * 512,
        zone_sectors: 512,
        zone_capacity_sectors: 256,
        conventional_zones: 2,
        max_open_zones: 3,
        max_active_zones: 5,
        max_append_sectors: 64,
        write_granularity_bytes: 4096,
    });
    let store = Arc::new(RamStore::new(geometry.unwrap()).unwrap());
    let disk = Disk::new(store, DiskConfig { queues: 2, block_len_bytes: 4096, engine: EngineChoice::Auto })
        .unwrap();
    let server = Server::bind(socket).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| server.serve(&Lenient(DiskBackend::new(Arc::clone(&disk))), &stopped));
        with();
        drop(stop);
    });
    disk.close().unwrap();
}

#[test]
fn a_disk_that_is_wrong_fails_in_every_form() {
    let place = Place::new();
    let socket = place.path("sock");
    let junit = place.path("results.xml");
    with_a_wrong_disk(&socket, || {
        let socket = socket.to_str().unwrap();
        let args = ["conform", socket, "--yes", "--case", "V4", "--case", "V5", "--case", "V1"];
        let output = vzbd(&[&args[..], &["--junit", junit.to_str().unwrap()]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(output.stderr.is_empty(), "what failed is said in the table");
        let failed: Vec<_> = text.lines().filter(|line| line.contains(" FAILED ")).collect();
        assert!(!failed.is_empty() && failed.iter().all(|line| line.starts_with("V4-")), "{text}");
        for part in ["asked ", "sent ", "expected ", "found ", "step ", "(5.2.5.2)"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("the disk does not keep the specification"), "{text}");

        let (json, success) = conform(socket, &args[3..]);
        assert!(!success && json["conforms"] == false);
        let ids: Vec<_> = with_outcome(&json, "failed").into_iter().collect();
        assert!(ids.iter().any(|id| id == "V4-a"), "{ids:?}");
        assert_eq!(json["summary"]["failed_required"], ids.len());
        let case = json["cases"].as_array().unwrap().iter().find(|case| case["id"] == "V4-a").unwrap();
        for part in ["sent", "expected", "found"] {
            assert!(!case[part].as_str().unwrap().is_empty(), "{case}");
        }
        assert!(!case["exchange"].as_array().unwrap().is_empty(), "{case}");

        let document = xml::parse(&fs::read_to_string(&junit).unwrap());
        assert_eq!(document.name, "testsuites");
        let suite = &document.children[0];
        let cases: Vec<_> = suite.children.iter().filter(|child| child.name == "testcase").collect();
        let count = |name: &str| {
            cases
                .iter()
                .filter(|case| case.children.iter().any(|child| child.name == name))
                .count()
                .to_string()
        };
        assert_eq!(suite.attribute("tests"), cases.len().to_string());
        assert_eq!(
            (suite.attribute("failures"), suite.attribute("skipped")),
            (count("failure"), count("skipped"))
        );
        assert_eq!(count("failure"), ids.len().to_string());
        let broken = cases.iter().find(|case| case.attribute("name").starts_with("V4-a ")).unwrap();
        assert_eq!(broken.attribute("classname"), "V4");
        let failure = &broken.children[0];
        assert_eq!(
            failure.attribute("message"),
            format!(
                "after {}: expected {}, found {}",
                case["sent"].as_str().unwrap(),
                case["expected"].as_str().unwrap(),
                case["found"].as_str().unwrap()
            )
        );
        assert!(failure.text.contains(case["asks"].as_str().unwrap()), "{}", failure.text);
    });
}

#[test]
fn a_disk_that_goes_away_is_a_failure_and_an_end() {
    let place = Place::new();
    let daemon = Daemon::start(Path::new("ram"), &place.path("sock"), &words(common::SMALL));
    let socket = daemon.socket().to_owned();
    daemon.kill();
    let said = vzbd_fails(1, &["conform", &socket, "--yes"]);
    assert!(said.contains("nobody listens"), "{said}");
}
