//! Examples as built programs, for tests that run them.

#![cfg(not(miri))]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds an example in the profile of this test, and returns its path.
pub(crate) fn built(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile_dir = test.parent().and_then(Path::parent).unwrap();
    let example = profile_dir.join("examples").join(format!("{name}{}", env::consts::EXE_SUFFIX));
    // `cargo test --test main` builds no examples: without this, the one of an earlier build would be tested.
    let profile = profile_dir.file_name().and_then(|name| name.to_str()).unwrap();
    let build = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--example", name])
        .args(["--profile", if profile == "debug" { "dev" } else { profile }])
        .arg("--target-dir")
        .arg(profile_dir.parent().unwrap())
        .output();
    match build {
        Ok(build) => assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr)),
        Err(error) => eprintln!("cannot run cargo, so the example is tested as it is: {error}"),
    }
    assert!(example.exists(), "{} is missing; build it with `cargo build --example {name}`", example.display());
    example
}
