//! What `Dockerfile` relies on; `deploy/without-docker.sh` builds and runs the image.

use std::path::Path;
use std::process::Command;

use crate::tools::{Folder, run, text};

/// Its layer of dependencies is the workspace with empty crates: cargo must be able to read that.
#[test]
fn the_manifests_alone_are_a_workspace() {
    let (root, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), Folder::new("image"));
    let copy = |from: &str| {
        let to = folder.0.join(from);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(root.join(from), to).unwrap_or_else(|error| panic!("{from}: {error}"));
    };
    let dockerfile = text("Dockerfile");
    let (layer, _) = dockerfile.split_once("RUN for crate in ").expect("the layer of dependencies");
    for line in layer.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let (files, _) = line.rsplit_once(' ').expect("files and a folder");
        files.split(' ').for_each(copy);
    }
    for krate in ["models/src/quant", "models/src/cpu/kernels"] {
        folder.write(&format!("{krate}/mod.rs"), "");
    }
    for krate in ["config", "models", "scheduler", "server", "tests"] {
        std::fs::create_dir_all(folder.0.join(krate).join("src")).expect("a folder");
        folder.write(&format!("{krate}/src/lib.rs"), "");
    }
    folder.write("server/src/main.rs", "fn main() {}");
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(&folder.0);
    let metadata: serde_json::Value = serde_json::from_str(&run(&mut metadata)).expect("JSON");
    assert_eq!(metadata["workspace_members"].as_array().map(Vec::len), Some(7));
}

#[test]
fn only_what_is_copied_is_sent_to_the_build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sent = std::fs::read_to_string(root.join(".dockerignore")).expect("a file");
    let both = [text("Dockerfile"), text("Dockerfile.cuda")];
    for line in both.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("COPY ")) {
        let copied = line.split(' ').filter(|word| !word.starts_with("--"));
        let copied: Vec<&str> = copied.collect();
        let (_, files) = copied.split_last().expect("files and a folder");
        // What comes from another stage was not sent.
        for file in files.iter().filter(|file| !file.starts_with('/')) {
            let top = file.split('/').next().expect("a name");
            let is_sent = [*file, top].iter().any(|name| sent.lines().any(|line| line == format!("!{name}")));
            assert!(is_sent, "{file} is not sent");
        }
    }
}
