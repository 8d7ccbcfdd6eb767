//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Around the name of a temporary file.
const NAME: (&str, &str) = (".frugal-", ".tmp");

/// A file that could not be written; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// Where it was to appear.
    pub path: PathBuf,
    /// Why: a full disk, a missing folder, no permission.
    pub source: io::Error,
}

/// Where a file is to appear. Made of a path alone, it replaces a regular file that is there.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    path: &'a Path,
    replace: bool,
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Target<'a> {
    fn from(path: &'a P) -> Self {
        Self::new(path.as_ref(), true)
    }
}

impl<'a> Target<'a> {
    /// Without `replace`, whatever is there stays.
    pub fn new(path: &'a Path, replace: bool) -> Self {
        Self { path, replace }
    }

    /// What can be known before the work is done.
    ///
    /// # Errors
    /// If there is no folder for it, or something in its place that stays.
    pub fn check(self) -> Result<(), WriteError> {
        let folder = self.folder();
        if !folder.is_dir() {
            let problem = format!("there is no folder {}", folder.display());
            return Err(self.failed(io::Error::new(io::ErrorKind::NotFound, problem)));
        }
        let taken = |problem| Err(self.failed(io::Error::new(io::ErrorKind::AlreadyExists, problem)));
        match fs::symlink_metadata(self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.file_name().is_some() => {
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
            Ok(data) if !data.is_file() => taken("it exists and is no regular file; give another name"),
            Ok(_) if !self.replace => taken("it exists; --force replaces it"),
            Ok(_) => Ok(()),
        }
    }

    /// Gives a finished file its name.
    fn publish(self, temporary: NamedTempFile) -> Result<(), WriteError> {
        if !self.replace {
            match temporary.persist_noclobber(self.path) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    self.check()?;
                    // Nothing is there: this file system has no way to give a name that is surely free.
                    return self.rename(error.file);
                }
            }
        }
        self.rename(temporary)
    }

    fn rename(self, temporary: NamedTempFile) -> Result<(), WriteError> {
        temporary.persist(self.path).map(|_| ()).map_err(|e| self.failed(e.error))
    }

    fn folder(self) -> &'a Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn failed(self, source: io::Error) -> WriteError {
        WriteError { path: self.path.to_owned(), source }
    }
}

/// Calls `fill` with a temporary file beside the target, then renames it to that, all of it on disk.
///
/// On any failure, and if `fill` fails, the temporary file is removed and the target stays as it was. What a killed process
/// left is removed too: a file in the making is locked by who makes it.
pub(crate) fn write<'a, E: From<WriteError>>(
    target: impl Into<Target<'a>>,
    fill: impl FnOnce(&mut Output) -> Result<(), E>,
) -> Result<(), E> {
    let target = target.into();
    let failed = |source| target.failed(source);
    let folder = target.folder();
    sweep(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(NAME.0).suffix(NAME.1);
    // What any new file gets, narrowed by the umask, instead of the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(failed)?;
    // Where there are no locks, nothing is swept either.
    temporary.as_file().try_lock().ok();
    let mut output = Output { target, file: BufWriter::with_capacity(1 << 20, temporary) };
    fill(&mut output)?;
    let temporary = output.file.into_inner().map_err(|e| failed(e.into_error()))?;
    temporary.as_file().sync_all().map_err(failed)?;
    target.publish(temporary)?;
    // The name too must survive a power cut. Some file systems cannot sync a folder; the file is good anyway.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
    Ok(())
}

/// Removes temporary files that no process writes any more. An empty one may be about to be locked, and takes no room.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with(NAME.0) && name.ends_with(NAME.1);
        if !ours || !entry.metadata().is_ok_and(|data| data.is_file() && data.len() > 0) {
            continue;
        }
        let path = entry.path();
        if File::options().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            tracing::info!(path = %path.display(), "removing what a killed process left");
            fs::remove_file(&path).ok();
        }
    }
}

/// Refuses an output that is one of the files it is made of, by whatever name or link: what appears by renaming would take its place.
pub(crate) fn apart(target: Target<'_>, inputs: &[PathBuf]) -> Result<(), WriteError> {
    use std::os::unix::fs::MetadataExt as _;
    let file = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    let Some(output) = file(target.path) else { return Ok(()) };
    if inputs.iter().all(|input| file(input) != Some(output)) {
        return Ok(());
    }
    let source = io::Error::other("it is the model that is read, which would be lost; give another name");
    Err(target.failed(source))
}

/// The file being written; its errors name the path.
pub(crate) struct Output<'a> {
    target: Target<'a>,
    file: BufWriter<NamedTempFile>,
}

impl Output<'_> {
    /// For errors of writing to it.
    pub(crate) fn failed(&self, source: io::Error) -> WriteError {
        self.target.failed(source)
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "old").unwrap();
        write::<WriteError>(&path, |out| {
            out.write_all(b"new").map_err(|e| out.failed(e))?;
            assert_eq!(std::fs::read(&path).unwrap(), b"old");
            Ok(())
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn what_is_there_stays_unless_it_is_a_file_and_may_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "old").unwrap();
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let refused = |name: &str, replace| {
            let error = Target::new(&path(name), replace).check().err();
            error.map_or(String::new(), |error| error.source.to_string())
        };
        let other = "it exists and is no regular file; give another name";
        for (name, kept, replaced) in [
            ("new", "", ""),
            ("file", "it exists; --force replaces it", ""),
            ("folder", other, other),
            ("link", other, other),
            ("dangling", other, other),
        ] {
            assert_eq!(
                (refused(name, false).as_str(), refused(name, true).as_str()),
                (kept, replaced),
                "{name}"
            );
        }
        assert!(refused("no/new", true).starts_with("there is no folder "));
        assert!(Target::from("").check().is_err() && Target::from("..").check().is_err());
        Target::from("new").check().unwrap();
    }

    #[test]
    fn what_appears_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let error = write::<WriteError>(Target::new(&path, false), |out| {
            std::fs::write(&path, "another's").unwrap();
            out.write_all(b"ours").map_err(|e| out.failed(e))
        })
        .unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put(".frugal-dead.tmp", "half");
        put(".frugal-new.tmp", "");
        put("other.tmp", "half");
        write::<WriteError>(&folder.path().join("a"), |out| {
            out.write_all(&vec![1; 3 << 20]).map_err(|e| out.failed(e))?;
            write::<WriteError>(&folder.path().join("b"), |out| {
                out.write_all(b"b").map_err(|e| out.failed(e))
            })
        })
        .unwrap();
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, [".frugal-new.tmp", "a", "b", "other.tmp"]);
    }

    #[test]
    fn an_input_is_no_output_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a", "b", "other"] {
            std::fs::write(path(name), "model").unwrap();
        }
        std::fs::hard_link(path("b"), path("hard")).unwrap();
        std::os::unix::fs::symlink("a", path("soft")).unwrap();
        let inputs = [path("a"), path("b")];
        for name in ["a", "b", "hard", "soft", "./b"] {
            assert_eq!(apart(Target::from(&path(name)), &inputs).unwrap_err().path, path(name));
        }
        for name in ["other", "new", "no/folder"] {
            apart(Target::from(&path(name)), &inputs).unwrap();
        }
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = write::<WriteError>(&path, |out| {
            out.write_all(&vec![1; 3 << 20]).map_err(|e| out.failed(e))?;
            Err(out.failed(full))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
        assert_eq!(names(folder.path()), [""; 0]);
        let nowhere = folder.path().join("no/a");
        assert_eq!(write::<WriteError>(&nowhere, |_| Ok(())).unwrap_err().path, nowhere);
    }
}
