//! Configuration by file, environment and flags: a configuration or an error, and what is printed of it means the same.
#![no_main]

use std::path::Path;

use frugal_config::{Config, Layers};
use libfuzzer_sys::fuzz_target;

fn resolved(layers: &Layers) -> Option<Config> {
    match Config::resolve(layers) {
        Ok(config) => Some(config),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fuzz_target!(|input: &[u8]| {
    // Lines of `key=value` for variables and flags in turn, an empty line, a file.
    let text = String::from_utf8_lossy(input);
    // These name files, and a file can be a device that never ends.
    if text.contains("_file") || text.contains("chat_template") || text.contains('\\') {
        return;
    }
    let (lines, file) = text.split_once("\n\n").unwrap_or(("", &text));
    let mut layers = Layers::new();
    let mut good = layers.file_text(Path::new("fuzz.toml"), file).is_ok();
    for (i, line) in lines.lines().enumerate() {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        good &= if i % 2 == 0 {
            let name = format!("FRUGAL_{}", key.to_uppercase().replace('.', "__"));
            layers.environment([(name, value.to_owned())]).is_ok()
        } else {
            layers.flag("--set", key, value).is_ok()
        };
    }
    let Some(config) = resolved(&layers).filter(|_| good) else { return };
    // Keys are not printed, so a configuration with keys cannot be read back.
    if config.auth.keys.is_empty() {
        let mut again = Layers::new();
        again.file_text(Path::new("printed.toml"), &layers.to_toml()).expect("what is printed can be read");
        assert_eq!(resolved(&again).expect("and is valid"), config);
    }
});
