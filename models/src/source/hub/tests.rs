mod server;

use std::error::Error as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use self::server::{COMMIT, Reply, Repo, Request, Server, content, sha256};
use super::download::{Partial, Stop};
use super::*;

const FILE: &str = "/o/r/resolve/0123456789abcdef0123456789abcdef01234567/m-Q4_K_M.gguf";

/// A cache folder.
struct World {
    folder: tempfile::TempDir,
}

/// Patient with a busy machine, quick where something fails.
fn limits() -> Limits {
    let long = Duration::from_secs(60);
    Limits {
        connect: long,
        read: long,
        small: long,
        window: long * 60,
        window_bytes: 1 << 20,
        attempts: 3,
        pause: Duration::from_millis(1),
        pause_max: Duration::from_secs(1),
    }
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    fn hub(&self, server: &Server) -> Hub {
        let token = Some("hf_secret".to_owned());
        Hub { endpoint: server.url(), token, cache: Some(self.root()), offline: false }
    }

    fn get(&self, server: &Server, text: &str) -> Result<PathBuf, HubError> {
        self.get_with(&self.hub(server), limits(), text)
    }

    fn get_with(&self, hub: &Hub, limits: Limits, text: &str) -> Result<PathBuf, HubError> {
        let reference = HubRef::parse(text).unwrap().unwrap();
        fetch_within(&reference, hub, limits, &mut |p| assert!(p.done <= p.total, "{p:?}"))
    }

    fn refusal(&self, server: &Server, text: &str) -> String {
        let line = message(&self.get(server, text).expect_err("must fail"));
        assert!(!line.contains("hf_secret") && !line.contains('\n'), "{line}");
        line
    }

    /// Names of complete and incomplete contents.
    fn blobs(&self) -> Vec<String> {
        let blobs = fs::read_dir(self.root().join("models--o--r/blobs"));
        let mut names: Vec<String> =
            blobs.into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn message(error: &HubError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line += &format!(": {error}");
        cause = error.source();
    }
    line
}

fn model() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 16).to_le_bytes()).collect()
}

fn repo() -> Repo {
    Repo(vec![
        ("m-Q4_K_M.gguf", model()),
        ("m-Q8_0.gguf", b"other".to_vec()),
        ("mmproj-Q4_K_M.gguf", vec![1]),
    ])
}

fn is_file(request: &Request) -> bool {
    request.path.contains("/resolve/")
}

/// A server of [`repo`] whose replies to requests for files `change` may replace, given how many came before.
fn changed(change: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let files = Mutex::new(0);
    Server::start(move |request, _| {
        if !is_file(request) {
            return repo().reply(request);
        }
        let before = {
            let mut files = files.lock().unwrap();
            *files += 1;
            *files - 1
        };
        change(request, before).unwrap_or_else(|| repo().reply(request))
    })
}

#[test]
fn a_model_is_fetched_once() {
    let world = World::new();
    let server = Server::start(|request, _| repo().reply(request));
    let path = world.get(&server, "hf:o/r").unwrap();
    assert_eq!(path, world.root().join(format!("models--o--r/snapshots/{COMMIT}/m-Q4_K_M.gguf")));
    assert!(fs::read(&path).unwrap() == model());
    assert_eq!(server.paths(), ["/api/models/o/r/revision/main", FILE]);
    assert_eq!(server.log()[0].path, "/api/models/o/r/revision/main?blobs=true");
    assert!(server.log().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(world.blobs(), [sha256(&model())]);

    // The second start, offline or not, under whichever name, asks nobody.
    let offline = Hub { offline: true, ..world.hub(&server) };
    for text in ["hf:o/r", "hf:o/r:q4_k_m", "hf:o/r:m-Q4_K_M.gguf", &format!("hf:o/r:Q4_K_M@{COMMIT}")] {
        assert_eq!(world.get(&server, text).unwrap(), path, "{text}");
        assert_eq!(world.get_with(&offline, limits(), text).unwrap(), path, "{text}");
    }
    assert_eq!(server.log().len(), 2);

    // Another model of the repository is another download; a damaged one too.
    world.get(&server, "hf:o/r:Q8_0").unwrap();
    assert_eq!(server.log().len(), 4);
    fs::write(fs::canonicalize(&path).unwrap(), "cut").unwrap();
    world.get(&server, "hf:o/r").unwrap();
    assert!(fs::read(&path).unwrap() == model());
}

#[test]
fn other_tools_read_the_cache_and_fill_it() {
    let world = World::new();
    let server = Server::start(|request, _| repo().reply(request));
    let path = world.get(&server, "hf:o/r").unwrap();
    let theirs = hf_hub::Cache::new(world.root()).model("o/r".to_owned());
    assert_eq!(theirs.get("m-Q4_K_M.gguf"), Some(path));
    assert_eq!(theirs.get("m-Q8_0.gguf"), None);

    // What another tool left has no description of the rest of the repository.
    let world = World::new();
    let folder = world.root().join("models--o--r");
    let snapshot = folder.join("snapshots").join(COMMIT);
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    fs::write(snapshot.join("sub/m-Q8_0.gguf"), "other").unwrap();
    hf_hub::Cache::new(world.root()).model("o/r".to_owned()).create_ref(COMMIT).unwrap();
    let before = server.log().len();
    assert_eq!(world.get(&server, "hf:o/r:Q8_0").unwrap(), snapshot.join("sub/m-Q8_0.gguf"));
    assert_eq!(server.log().len(), before);
    let offline = Hub { offline: true, ..world.hub(&server) };
    assert_eq!(world.get_with(&offline, limits(), "hf:o/r").unwrap(), snapshot.join("sub/m-Q8_0.gguf"));
    assert!(world.get(&server, "hf:o/r").unwrap().ends_with("m-Q4_K_M.gguf"), "the hub has the default");
}

#[test]
fn all_parts_are_fetched() {
    let names = ["d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"];
    let parts = Repo(vec![(names[1], b"two".to_vec()), (names[0], b"one".to_vec())]);
    let world = World::new();
    let server = Server::start(move |request, _| parts.reply(request));
    let first = world.get(&server, "hf:o/r:q8_0").unwrap();
    assert!(first.ends_with(names[0]));
    assert_eq!(fs::read(&first).unwrap(), b"one");
    assert_eq!(fs::read(first.with_file_name("m-Q8_0-00002-of-00002.gguf")).unwrap(), b"two");
}

#[test]
fn the_token_stays_with_the_endpoint() {
    let world = World::new();
    let other = Server::start(|request, _| content(request, &model()));
    let there = format!("{}/blob?signature=1", other.url());
    let server = changed(move |_, before| match before {
        0 => Some(Reply::new(307).with("Location", "/o/r/resolve/elsewhere")),
        _ => Some(Reply::new(302).with("Location", &there)),
    });
    let path = world.get(&server, "hf:o/r").unwrap();
    assert!(fs::read(path).unwrap() == model());
    assert_eq!(server.log().len(), 3);
    assert!(server.log().iter().all(|r| r.header("authorization").is_some()));
    let log = other.log();
    assert_eq!((log.len(), log[0].path.as_str()), (1, "/blob?signature=1"));
    assert_eq!(log[0].header("authorization"), None);
}

#[test]
fn an_address_that_expired_is_replaced() {
    let world = World::new();
    let other = Server::start(|request, before| match before {
        0 => Reply::new(403),
        _ => content(request, &model()),
    });
    let there = format!("http://localhost:{}/blob", other.address.port());
    let server = changed(move |_, _| Some(Reply::new(302).with("Location", &there)));
    world.get(&server, "hf:o/r").unwrap();
    assert_eq!((server.log().len(), other.log().len()), (3, 2));
    assert!(other.log().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn bad_redirects_are_refused() {
    let check = |location: &'static str, word: &str| {
        let server = changed(move |_, _| Some(Reply::new(302).with("Location", location)));
        let error = World::new().refusal(&server, "hf:o/r");
        assert!(error.contains(word), "{error}");
    };
    check(FILE, "redirects too often");
    check("", "no address");
    check("file:///etc/passwd", "no address");
    check("relative", "no address");
    let world = World::new();
    let hub = |endpoint: &str| Hub {
        endpoint: endpoint.to_owned(),
        token: None,
        cache: Some(world.root()),
        offline: false,
    };
    for bad in ["", "huggingface.co", "ftp://x", "https://", "https://x?y=z", "http://a b"] {
        let error = message(&world.get_with(&hub(bad), limits(), "hf:o/r").unwrap_err());
        assert!(error.starts_with("HF_ENDPOINT is "), "{bad}: {error}");
    }
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let world = World::new();
    let server = changed(|request, before| {
        let sent = Some([500_000, 0, 100_000][before.min(2)]);
        (before < 3).then(|| Reply { sent, ..content(request, &model()) })
    });
    // Any byte is progress, so that only the second attempt counts.
    let limits = Limits { attempts: 3, window_bytes: 1, ..limits() };
    let path = world.get_with(&world.hub(&server), limits, "hf:o/r").unwrap();
    assert!(fs::read(path).unwrap() == model());
    let ranges: Vec<_> = server.log().iter().filter(|r| is_file(r)).map(Request::from).collect();
    assert_eq!(ranges, [None, Some(500_000), Some(500_000), Some(600_000)]);
}

#[test]
fn the_next_start_resumes() {
    let world = World::new();
    let server = changed(|request, before| {
        (before < 3).then(|| Reply { sent: Some(200_000), ..content(request, &model()) })
    });
    let error = world.refusal(&server, "hf:o/r");
    assert!(error.starts_with("cannot read from 127.0.0.1: ") || error.contains("ended after"), "{error}");
    assert_eq!(world.blobs(), [format!("{}.incomplete", sha256(&model()))]);
    world.get(&server, "hf:o/r").unwrap();
    assert_eq!(server.log().last().unwrap().from(), Some(600_000));
    assert_eq!(world.blobs(), [sha256(&model())]);
}

#[test]
fn a_spoilt_beginning_is_replaced() {
    let world = World::new();
    let server = changed(|_, _| None);
    let incomplete = world.root().join(format!("models--o--r/blobs/{}.incomplete", sha256(&model())));
    fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    for spoilt in [vec![9; 1000], vec![9; model().len()], vec![9; model().len() + 1]] {
        fs::write(&incomplete, spoilt).unwrap();
        let path = world.get(&server, "hf:o/r").unwrap();
        assert!(fs::read(&path).unwrap() == model());
        fs::remove_file(fs::canonicalize(&path).unwrap()).unwrap();
    }
}

#[test]
fn a_server_without_ranges_is_served_by_patience() {
    let world = World::new();
    let server = changed(|_, before| {
        let whole = Reply::new(200).body(model());
        Some(if before == 0 { Reply { sent: Some(700_000), ..whole } } else { whole })
    });
    let path = world.get(&server, "hf:o/r").unwrap();
    assert!(fs::read(path).unwrap() == model());
}

#[test]
fn lies_about_the_length_are_seen() {
    let check = |word: &str, change: fn(&Request) -> Reply| {
        let world = World::new();
        let server = changed(move |request, _| Some(change(request)));
        let error = world.refusal(&server, "hf:o/r");
        assert!(error.contains(word), "{error}");
        assert_eq!(server.log().len(), 4, "three attempts");
        assert!(world.blobs().iter().all(|name| name.ends_with(".incomplete")));
    };
    check("should have 1200000 bytes, but 127.0.0.1 says 1199999", |_| {
        Reply::new(200).with("Content-Length", 1_199_999).body(model()).with("X", "")
    });
    check("says 9999999", |_| Reply::new(200).with("Content-Length", 9_999_999).body(model()));
    check("127.0.0.1", |_| Reply { sent: Some(5), ..Reply::new(200).body(model()) });
    check("says bytes 1-9/10", |_| Reply::new(206).with("Content-Range", "bytes 1-9/10").body(model()));
    check("says less", |_| Reply::new(416));
}

#[test]
fn what_follows_a_file_is_not_kept() {
    let world = World::new();
    let server = changed(|_, _| {
        let body =
            [format!("{:x}\r\n", model().len() + 4).into_bytes(), model(), b"more\r\n0\r\n\r\n".to_vec()];
        Some(Reply::new(200).with("Transfer-Encoding", "chunked").body(body.concat()))
    });
    let path = world.get(&server, "hf:o/r").unwrap();
    assert!(fs::read(path).unwrap() == model());
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let world = World::new();
    let server = changed(|_, _| Some(Reply::new(200).body(vec![7; model().len()])));
    let error = world.refusal(&server, "hf:o/r");
    assert!(error.starts_with("m-Q4_K_M.gguf has the SHA-256 "), "{error}");
    assert_eq!(world.blobs(), [""; 0]);
    assert!(!world.root().join("models--o--r/refs").exists());
}

#[test]
fn refusals_say_what_to_do() {
    let check = |status: u16, code: &'static str, token: bool, word: &str| {
        let world = World::new();
        let server = Server::start(move |_, _| {
            Reply::new(status).with("X-Error-Code", code).with("X-Error-Message", "because\tso")
        });
        let token = token.then(|| "hf_secret".to_owned());
        let hub = Hub { token, ..world.hub(&server) };
        let error = message(&world.get_with(&hub, limits(), "hf:o/r@v2").unwrap_err());
        assert!(error.contains(word) && error.contains(&status.to_string()), "{error}");
        assert_eq!(server.log().len(), 1, "{error}");
    };
    check(401, "RepoNotFound", false, "a typo, or it is private and HF_TOKEN must be set");
    check(401, "", true, "the hub does not know the token");
    check(401, "GatedRepo", false, "accept its terms at http://127.0.0.1:");
    check(403, "GatedRepo", true, "accept the terms at http://127.0.0.1:");
    check(403, "", false, "see http://127.0.0.1:");
    check(404, "RepoNotFound", true, "there is no repository o/r");
    check(404, "RevisionNotFound", true, "o/r has no revision v2");
    check(418, "", true, "answered 418 (becauseso)");
}

#[test]
fn passing_trouble_is_waited_out() {
    let world = World::new();
    let server = Server::start(|request, before| match before {
        0 => Reply::new(500),
        1 => Reply::new(429).with("Retry-After", 0),
        2 => repo().reply(request),
        3 => Reply::new(503),
        _ => repo().reply(request),
    });
    world.get(&server, "hf:o/r").unwrap();
    assert_eq!(server.log().len(), 5);
    let down = Server::start(|_, _| Reply::new(502));
    assert_eq!(World::new().refusal(&down, "hf:o/r"), "127.0.0.1 answered 502");
    assert_eq!(down.log().len(), 3);
    let busy = Server::start(|_, _| Reply::new(429).with("Retry-After", 3600));
    assert!(World::new().refusal(&busy, "hf:o/r").contains("asks to wait 3600 seconds"));
    assert_eq!(busy.log().len(), 1);
}

#[test]
fn silence_and_trickles_end() {
    let short = Limits { read: Duration::from_millis(50), ..limits() };
    for stalled in [Reply::new(200), Reply::new(200).body(model())] {
        let world = World::new();
        let server = changed(move |_, _| {
            Some(
                Reply { sent: Some(stalled.body.len() / 2), stall: true, ..stalled.clone() }
                    .with("Content-Length", 1_200_000),
            )
        });
        let error = message(&world.get_with(&world.hub(&server), short, "hf:o/r").unwrap_err());
        assert!(error.contains("timeout"), "{error}");
    }
    let world = World::new();
    let server = changed(|_, _| {
        Some(Reply { sent: Some(100), trickle: true, stall: true, ..Reply::new(200).body(model()) })
    });
    let slow = Limits { window: Duration::ZERO, ..limits() };
    let error = message(&world.get_with(&world.hub(&server), slow, "hf:o/r").unwrap_err());
    assert_eq!(error, "127.0.0.1 sends less than 1048576 bytes in 0 seconds");
    assert_eq!(server.log().len(), 4, "three attempts");
}

#[test]
fn descriptions_are_held_to_bounds() {
    let check = |json: String, word: &str| {
        let world = World::new();
        let server = Server::start(move |_, _| Reply::new(200).body(json.clone()));
        let error = world.refusal(&server, "hf:o/r");
        assert!(error.contains(word), "{error}");
        assert!(!world.root().exists(), "nothing was written: {error}");
    };
    let with = |key: &str, value: serde_json::Value| {
        let mut listing = repo().listing();
        *listing.pointer_mut(key).unwrap() = value;
        listing.to_string()
    };
    check(format!("[{}]", "0,".repeat(9 << 20)), "more than 16777216 bytes");
    check("<html>".to_owned(), "unusable: expected value");
    check("{}".to_owned(), "missing field `sha`");
    check(with("/sha", "main".into()), "\"main\" is no commit");
    for name in [
        "../../x.gguf",
        "/etc/x.gguf",
        "a/../x.gguf",
        "a//x.gguf",
        "a\\x.gguf",
        "C:x.gguf",
        "a\0.gguf",
        "./.gguf",
    ] {
        check(with("/siblings/0/rfilename", name.into()), "is no name of a file");
    }
    check(with("/siblings/0/lfs/sha256", "../x".into()), "m-Q4_K_M.gguf has no SHA-256");
    check(with("/siblings/0/lfs/size", u64::MAX.into()), "has 18446744073709551615 bytes");
    check(with("/siblings", serde_json::json!([])), "has no GGUF model");
    let unchecked = with("/siblings/0/lfs", serde_json::Value::Null);
    let server = Server::start(move |_, _| Reply::new(200).body(unchecked.clone()));
    let error = World::new().refusal(&server, "hf:o/r:Q4_K_M");
    assert_eq!(error, "no model there is Q4_K_M; there are: m-Q8_0.gguf");
}

#[test]
fn offline_says_so() {
    let world = World::new();
    let server = Server::start(|request, _| repo().reply(request));
    let offline = Hub { offline: true, ..world.hub(&server) };
    let error = message(&world.get_with(&offline, limits(), "hf:o/r").unwrap_err());
    assert_eq!(error, format!("HF_HUB_OFFLINE is set, and {} does not have it", world.root().display()));
    let homeless = Hub { cache: None, ..world.hub(&server) };
    assert!(message(&world.get_with(&homeless, limits(), "hf:o/r").unwrap_err()).contains("HF_HOME"));
    assert!(server.log().is_empty());
}

#[test]
fn starts_at_once_take_turns() {
    let world = World::new();
    let server = changed(|_, _| None);
    thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| world.get(&server, "hf:o/r").unwrap())).collect();
        for start in starts {
            assert!(fs::read(start.join().unwrap()).unwrap() == model());
        }
    });
    assert_eq!(server.paths().iter().filter(|path| *path == FILE).count(), 1);
}

/// Two machines share a folder and not its locks: what each asks for comes in two pieces, the first of both before the second of either.
#[test]
fn starts_at_once_may_write_one_file() {
    let worlds = [World::new(), World::new()];
    let shared = worlds[0].root().join("models--o--r");
    fs::create_dir_all(&shared).unwrap();
    fs::create_dir_all(worlds[1].root()).unwrap();
    std::os::unix::fs::symlink(&shared, worlds[1].root().join("models--o--r")).unwrap();
    let both = Barrier::new(2);
    let server = changed(move |request, before| {
        both.wait();
        (before < 2).then(|| Reply { sent: Some(500_000), ..content(request, &model()) })
    });
    thread::scope(|scope| {
        let starts = worlds.each_ref().map(|world| scope.spawn(|| world.get(&server, "hf:o/r").unwrap()));
        for start in starts {
            assert!(fs::read(start.join().unwrap()).unwrap() == model());
        }
    });
    let ranges: Vec<_> = server.log().iter().filter(|r| is_file(r)).map(Request::from).collect();
    assert_eq!(ranges, [None, None, Some(500_000), Some(500_000)]);
    assert_eq!(worlds[0].blobs(), [sha256(&model())]);
}

/// One begins from what another has written, finds it spoilt and begins anew, while the other goes on and publishes it.
#[test]
fn beginning_anew_leaves_what_another_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part");
    let size = model().len() as u64;
    let fill = |partial: &mut Partial<File>, to: usize| {
        let rest = &model()[partial.done as usize..to];
        partial.fill(rest, 0, &limits(), &mut |_| ());
    };
    let mut first = Partial::open(&path, size).unwrap();
    fill(&mut first, 700_000);
    let mut second = Partial::open(&path, size).unwrap();
    assert_eq!(second.done, 700_000);
    second.restart().unwrap();
    fill(&mut second, 100_000);
    fill(&mut first, model().len());
    assert!(fs::read(&path).unwrap() == model());
    fill(&mut second, model().len());
    assert!(fs::read(&path).unwrap() == model());
    assert!([first, second].iter().all(|partial| partial.sha256() == sha256(&model())));
}

#[test]
fn only_what_is_whole_is_published() {
    let world = World::new();
    let cache = Cache::new(&world.root(), "o/r");
    let file = Remote { name: "m.gguf".to_owned(), size: 5, sha256: "0".repeat(64) };
    fs::create_dir_all(world.root().join("models--o--r/blobs")).unwrap();
    let publish = |bytes: &[u8]| {
        fs::write(cache.incomplete(&file.sha256), bytes).unwrap();
        cache.publish(&file).map_err(|e| message(&e))
    };
    assert!(publish(b"half").unwrap_err().contains("another process is writing it"));
    assert!(world.blobs()[0].ends_with(".incomplete"));
    assert_eq!(publish(b"whole"), Ok(()));
    assert_eq!(world.blobs(), ["0".repeat(64)]);
    // Published by another.
    assert!(cache.publish(&file).is_ok());
    fs::remove_file(cache.blob(&file.sha256)).unwrap();
    assert!(cache.publish(&file).is_err());
}

#[test]
fn links_in_the_place_of_files_are_not_followed() {
    let world = World::new();
    let server = changed(|_, _| None);
    let victim = world.folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let incomplete = world.root().join(format!("models--o--r/blobs/{}.incomplete", sha256(&model())));
    fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&victim, &incomplete).unwrap();
    let error = world.refusal(&server, "hf:o/r");
    assert!(error.starts_with(&format!("cannot write {}", incomplete.display())), "{error}");
    fs::remove_file(&incomplete).unwrap();
    // A link where the file's own link goes is replaced, not written through.
    let snapshot = world.root().join(format!("models--o--r/snapshots/{COMMIT}"));
    fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink(&victim, snapshot.join("m-Q4_K_M.gguf")).unwrap();
    assert!(fs::read(world.get(&server, "hf:o/r").unwrap()).unwrap() == model());
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

/// A disk with room for so many bytes.
struct Disk(usize);

impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = bytes.len().min(self.0);
        self.0 -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_stops() {
    let fill = |room: usize| {
        Partial::new(Disk(room), 1000).fill(io::repeat(1).take(1000), 0, &limits(), &mut |_| ())
    };
    assert!(matches!(fill(999), Stop::Full(error) if error.kind() == io::ErrorKind::StorageFull));
    assert!(matches!(fill(1000), Stop::Complete));
}
