//! The repository's rules, as a test: what reviewers would otherwise have to say every time.
//!
//! `UPDATE=1 cargo tidy` rewrites the README's generated tables.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use frugal_models::arch::{Architecture, TABLE};
use frugal_models::gguf::Gguf;

/// Lines of code in a file that are not its tests.
const FILE_LINES_MAX: usize = 600;

/// Where `unsafe` may be: kernels, and readers of mapped files.
const UNSAFE: &[&str] =
    &["models/src/cpu", "models/src/gpu", "models/src/quant", "models/src/gguf", "models/src/weights"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Files below `folder` with this extension, as (path from the root, content), in order.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push((path.strip_prefix(root()).expect("below").to_string_lossy().into_owned(), text));
            }
        }
    }
    found.sort();
    found
}

fn rust() -> Vec<(String, String)> {
    files(".", "rs")
}

/// Fails with all complaints at once.
fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The lines before the module of unit tests.
fn without_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.windows(2).position(|w| w[0] == "#[cfg(test)]" && w[1].starts_with("mod tests {"));
    lines[..end.unwrap_or(lines.len())].to_vec()
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

#[test]
fn every_dependency_has_a_reason() {
    let mut complaints = Vec::new();
    for (path, text) in files(".", "toml").into_iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let (mut in_dependencies, mut has_reason) = (false, false);
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies]");
                has_reason = false;
            } else if line.starts_with('#') {
                has_reason = true;
            } else if line.is_empty() {
                has_reason = false;
            } else if in_dependencies && !has_reason && line.contains(" = ") {
                let known = line.contains("workspace = true") || line.contains("path = ");
                if !known {
                    complaints.push(format!("{path}: no reason above `{line}`"));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn unsafe_code_is_confined() {
    let mut complaints = Vec::new();
    for (path, text) in rust() {
        if UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let block =
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|u| code.contains(u));
            // This file names what it looks for.
            if block && path != "tests/tidy.rs" {
                complaints.push(format!("{path}:{}: unsafe code outside {UNSAFE:?}", i + 1));
            }
        }
    }
    report(&complaints);
}

/// Requests are handled by the server's library. Its binary reads files: those that the configuration names.
#[test]
fn nothing_that_handles_requests_knows_of_files() {
    let main = fs::read_to_string(root().join("server/src/main.rs")).expect("server/src/main.rs");
    let binary = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let binary: Vec<String> = binary.chain(["main"]).map(str::to_owned).collect();
    let of_binary = |path: &str| {
        let below = path.strip_prefix("server/src/").expect("below");
        binary.iter().any(|name| below == format!("{name}.rs") || below.starts_with(&format!("{name}/")))
    };
    let mut handling = files("server/src", "rs");
    handling.retain(|(path, _)| !of_binary(path) && !is_test(path));
    assert!(handling.len() > 40, "the library is larger than that");
    // Templates are had from the model's file and the configuration, never by name.
    handling.extend(files("models/src/template", "rs"));
    let mut complaints = Vec::new();
    for (path, text) in handling {
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let words =
                ["fs::", "File::", "std::path", "PathBuf", "OpenOptions", "set_loader", "path_loader"];
            for word in words.iter().filter(|word| code.contains(**word)) {
                complaints.push(format!("{path}:{}: {word} where requests are handled", i + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn nothing_is_left_undone() {
    let everywhere = [
        concat!("to", "do!("),
        concat!("unimplemen", "ted!("),
        concat!("db", "g!("),
        concat!("#[ign", "ore"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let in_tests = [concat!("thread::sl", "eep"), concat!("time::sl", "eep")];
    let mut complaints = Vec::new();
    for (path, text) in rust() {
        for (i, line) in text.lines().enumerate() {
            for word in everywhere.iter().filter(|w| line.contains(**w)) {
                complaints.push(format!("{path}:{}: {word}", i + 1));
            }
            for word in in_tests.iter().filter(|w| is_test(&path) && line.contains(**w)) {
                complaints.push(format!("{path}:{}: {word} in a test", i + 1));
            }
        }
    }
    report(&complaints);
}

/// `eprintln` is kept by the test harness when a test passes, which one that skips something does.
#[test]
fn what_is_skipped_is_seen() {
    let words = [concat!("SKIP", "PED"), concat!("NOT TES", "TED")];
    let mut complaints = Vec::new();
    for (path, text) in rust() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| words.iter().any(|w| line.contains(w))) {
            // Long lines are broken behind the bracket.
            if [i.checked_sub(1), Some(i)].into_iter().flatten().any(|i| lines[i].contains("eprintln!(")) {
                complaints.push(format!(
                    "{path}:{}: write it to `std::io::stderr()`: {}",
                    i + 1,
                    line.trim()
                ));
            }
        }
    }
    report(&complaints);
}

#[test]
fn files_do_one_thing() {
    let long = rust().into_iter().filter(|(path, _)| !is_test(path)).filter_map(|(path, text)| {
        let lines = without_tests(&text).len();
        (lines > FILE_LINES_MAX).then(|| format!("{path}: {lines} lines; what second thing does it do?"))
    });
    report(&long.collect::<Vec<_>>());
}

#[test]
fn every_source_file_is_part_of_its_crate() {
    let all = rust();
    let mut complaints = Vec::new();
    for (path, _) in all.iter().filter(|(path, _)| path.contains("/src/")) {
        let (folder, name) = path.rsplit_once('/').expect("a folder");
        let stem = name.trim_end_matches(".rs");
        if ["lib", "main", "mod"].contains(&stem)
            || folder.ends_with("/src/bin")
            || folder.contains("/benches")
        {
            continue;
        }
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/mod.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
        ];
        let declared = all
            .iter()
            .filter(|(p, _)| parents.contains(p))
            .any(|(_, text)| text.contains(&format!("mod {stem};")));
        if !declared {
            complaints.push(format!("{path} is in no `mod`"));
        }
    }
    report(&complaints);
}

#[test]
fn every_endpoint_is_merged() {
    let merged = fs::read_to_string(root().join("server/src/lib.rs")).expect("server/src/lib.rs");
    let routes = files("server/src/routes", "rs");
    let missing = routes.iter().filter(|(_, text)| text.contains("pub fn route(")).filter_map(|(path, _)| {
        let stem = Path::new(path).file_stem().expect("a name").to_string_lossy().into_owned();
        (!merged.contains(&format!("routes::{stem}::route(")))
            .then(|| format!("{path} is not merged in lib.rs"))
    });
    report(&missing.collect::<Vec<_>>());
}

#[test]
fn product_text_speaks_of_the_product() {
    let mut complaints = Vec::new();
    let mut all = rust();
    all.extend(files(".", "toml"));
    all.extend(files(".", "md"));
    all.extend(files(".", "py"));
    for (path, text) in all {
        for (i, line) in text.lines().enumerate().filter(|(_, line)| line.contains(concat!("/wo", "rk/"))) {
            complaints.push(format!("{path}:{}: {line}", i + 1));
        }
    }
    report(&complaints);
}

/// Keys with defaults and reasons, from `default.toml`.
fn config_table() -> String {
    let layers = frugal_config::Layers::new();
    let mut table = String::from("| key | default | meaning |\n|---|---|---|\n");
    let (mut section, mut reason) = (String::new(), Vec::new());
    for line in frugal_config::DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
            reason.clear();
            continue;
        }
        let bare = line.trim_start_matches("# ");
        let key = bare.split_once(" = ").map(|(name, value)| (format!("{section}.{name}"), value));
        match key.filter(|(key, _)| layers.keys().any(|k| k == key)) {
            Some((key, value)) => {
                let default = if line.starts_with('#') { String::new() } else { format!("`{value}`") };
                let meaning = reason.join(" ").replace('|', "\\|");
                writeln!(table, "| `{key}` | {default} | {meaning} |").expect("a string");
                reason.clear();
            }
            None if line.starts_with("# ") => reason.push(bare.to_owned()),
            None => reason.clear(),
        }
    }
    table
}

/// Each architecture, and the models with goldens that it is tested with.
fn architectures() -> String {
    let fixtures = root().join("tests/fixtures");
    let mut tested: Vec<(String, String)> = Vec::new();
    for (golden, _) in files("tests/fixtures/golden", "json") {
        let name = Path::new(&golden).file_stem().expect("a name").to_string_lossy().into_owned();
        if let Ok(gguf) = Gguf::open(&fixtures.join(format!("{name}.gguf"))) {
            tested.push((gguf.str("general.architecture").expect("an architecture").to_owned(), name));
        }
    }
    let mut table = String::from("| `general.architecture` | models | goldens |\n|---|---|---|\n");
    for Architecture { name, models, .. } in &TABLE {
        let own = tested.iter().filter(|(architecture, _)| architecture == name);
        let own = own.map(|(_, file)| file.strip_prefix(&format!("{name}-")).unwrap_or(file));
        let goldens = own.collect::<Vec<_>>().join(", ");
        assert!(!goldens.is_empty(), "{name} has no golden");
        writeln!(table, "| `{name}` | {models} | {goldens} |").expect("a string");
    }
    table
}

/// Each module and the first sentence of its documentation.
fn code_map() -> String {
    let mut map = String::new();
    for crate_name in ["config", "models", "scheduler", "server"] {
        writeln!(map, "\n**{crate_name}**\n").expect("a string");
        for (path, text) in files(&format!("{crate_name}/src"), "rs") {
            if is_test(&path) {
                continue;
            }
            let doc = text.lines().map_while(|l| l.strip_prefix("//!")).map(str::trim);
            let first = doc.take_while(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
            let sentence = first.split(". ").next().unwrap_or_default().trim_end_matches('.');
            let path = path.replacen(&format!("{crate_name}/src/"), "", 1);
            writeln!(map, "- `{path}`: {sentence}").expect("a string");
        }
    }
    map.push('\n');
    map
}

#[test]
fn every_module_says_what_it_is() {
    let silent = rust().into_iter().filter(|(path, _)| path.contains("/src/") && !is_test(path));
    let silent =
        silent.filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| format!("{path} has no `//!`"));
    report(&silent.collect::<Vec<_>>());
}

/// What an image's build is given: below `.dockerignore`'s exceptions, all of every crate that is compiled, and of the others, which
/// the workspace names, the manifest. What is compiled includes no file from elsewhere.
#[test]
fn images_are_given_what_is_compiled() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let workspace = read("Cargo.toml");
    let list = workspace.lines().find_map(|line| line.strip_prefix("members = [")?.strip_suffix(']'));
    // A crate within another's folder comes with it.
    let members = list.expect("one line of members").split(", ").map(|m| m.trim_matches('"'));
    let members: Vec<&str> = members.filter(|member| !member.contains('/')).collect();
    let compiled: Vec<&str> = members.iter().copied().filter(|&member| member != "tests").collect();
    let ignored = read(".dockerignore");
    let mut complaints = Vec::new();
    for image in ["deploy/Dockerfile", "deploy/Dockerfile.cuda"] {
        let text = read(image);
        let (from, to) = (" AS build\n", " AS runtime\n");
        let stage = text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).map(|(stage, _)| stage);
        let mut given = Vec::new();
        for line in stage.expect("a stage that builds, and one that runs").lines() {
            let Some(copied) = line.strip_prefix("COPY ") else { continue };
            let mut paths: Vec<&str> = copied.split_whitespace().collect();
            let to = paths.pop().unwrap_or_default();
            given.extend(paths.iter().map(|path| (path.to_string(), to.trim_end_matches('/').to_owned())));
        }
        let to = |path: &str| given.iter().find(|(from, _)| from == path).map(|(_, to)| to.as_str());
        let mut needed = vec![("Cargo.toml".to_owned(), "."), ("Cargo.lock".to_owned(), ".")];
        needed.extend(compiled.iter().map(|member| ((*member).to_owned(), *member)));
        needed.extend(members.iter().map(|member| (format!("{member}/Cargo.toml"), *member)));
        for (path, place) in needed {
            let whole = path.strip_suffix("/Cargo.toml").and_then(to);
            if to(&path).or(whole) != Some(place) {
                complaints.push(format!("{image}: no `COPY {path}` to {place}"));
            }
        }
        for (path, _) in &given {
            let allowed =
                |rule: &str| path == rule || path.strip_prefix(rule).is_some_and(|p| p.starts_with('/'));
            if !ignored.lines().filter_map(|line| line.strip_prefix('!')).any(allowed) {
                complaints.push(format!("{image}: .dockerignore keeps `{path}` out"));
            }
        }
    }
    for (path, text) in compiled.iter().flat_map(|member| files(&format!("{member}/src"), "rs")) {
        let including = ["include_str!(\"", "include_bytes!(\""];
        for rest in including.iter().flat_map(|macro_| text.split(macro_).skip(1)) {
            let included = rest.split('"').next().unwrap_or_default();
            // Folders from the file up to its crate's.
            if included.matches("../").count() > path.matches('/').count() - 1 && !is_test(&path) {
                complaints.push(format!("{path} includes {included}, which images are not given"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn the_readme_is_current() {
    let path = root().join("README.md");
    let readme = fs::read_to_string(&path).expect("README.md");
    let mut current = readme.clone();
    let tables = [
        ("commands", frugal_config::cli::reference()),
        ("architectures", architectures()),
        ("config", config_table()),
        ("endpoints", frugal::openapi::reference()),
        ("metrics", frugal::metrics::reference()),
        ("code map", code_map()),
    ];
    for (name, table) in tables {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let from = current.find(&begin).unwrap_or_else(|| panic!("README.md has no `{}`", begin.trim()))
            + begin.len();
        let to = from + current[from..].find(&end).unwrap_or_else(|| panic!("README.md has no `{end}`"));
        current.replace_range(from..to, &table);
    }
    if current != readme && std::env::var_os("UPDATE").is_some() {
        fs::write(&path, current).expect("README.md can be written");
        return;
    }
    assert!(current == readme, "README.md is out of date: run UPDATE=1 cargo tidy\n\nexpected:\n{current}");
}
