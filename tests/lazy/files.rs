//! Images in files: all errors name the file, including errors of later reads.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use opstate::{GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, StateError, UnverifiedImage};

use crate::support::images::{damaged, image_of, is_damage, numbered};
use crate::support::layout::{Segment, TRAILER, assemble, seal, set_u64};

/// Checks that an error names the file, and returns the error inside.
fn in_file(error: StateError, expected: &Path) -> StateError {
    let text = error.to_string();
    assert!(text.contains(expected.to_str().unwrap()), "{text}");
    let StateError::File { path, source } = error else { panic!("{text}") };
    assert_eq!(path, expected);
    assert!(text.contains(&source.to_string()), "{text}");
    assert!(!matches!(*source, StateError::File { .. }), "{text}");
    *source
}

#[test]
fn files_that_are_no_images_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let snapshot = numbered(100, 8);
    let image = image_of(&snapshot, 200);
    for len in 0..image.len() {
        fs::write(&path, &image[..len]).unwrap();
        let error = in_file(UnverifiedImage::open(&path).expect_err("a truncation goes unnoticed"), &path);
        assert!(matches!(error, StateError::Truncated { .. } | StateError::MissingTrailer { .. }), "{len}: {error}");
        assert!(UnverifiedImage::from_reader(File::open(&path).unwrap()).is_err());
        // The kind is checked before what is cut off.
        let error = in_file(GroupedImage::open(&path).unwrap_err(), &path);
        assert!(matches!(error, StateError::Truncated { .. } | StateError::UnexpectedKind { .. }), "{len}: {error}");
    }
    fs::write(&path, b"something else, and long enough to be an image".repeat(9)).unwrap();
    assert!(matches!(in_file(UnverifiedImage::open(&path).unwrap_err(), &path), StateError::NotAnImage { .. }));

    let error = in_file(UnverifiedImage::open(directory.path()).unwrap_err(), directory.path());
    assert!(matches!(error, StateError::Io(_)), "{error}");
    assert!(error.to_string().contains("this is no file"), "{error}");
    let missing = directory.path().join("missing");
    let error = in_file(UnverifiedImage::open(&missing).unwrap_err(), &missing);
    assert!(matches!(&error, StateError::Io(cause) if cause.kind() == io::ErrorKind::NotFound), "{error}");

    // A file that is open keeps its contents after it is deleted or replaced.
    fs::write(&path, &image).unwrap();
    let opened = UnverifiedImage::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"another").unwrap();
    assert_eq!(opened.verify().unwrap(), snapshot);

    let mut grouped = Vec::new();
    let groups = KeyGroups::new(9).unwrap();
    snapshot.write_grouped(groups, |key| key, ImageOptions::new(), &mut grouped).unwrap();
    fs::write(directory.path().join("grouped"), grouped).unwrap();
    let opened = GroupedImage::open(directory.path().join("grouped")).unwrap();
    assert_eq!(opened.slice(0..9).unwrap(), snapshot);
    assert_eq!(UnverifiedImage::open(directory.path().join("grouped")).unwrap().verify().unwrap(), snapshot);
}

#[test]
fn errors_of_later_reads_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged");
    let snapshot = numbered(200, 20);
    let (image, at) = damaged(&snapshot);
    fs::write(&path, &image).unwrap();
    let opened = UnverifiedImage::open(&path).unwrap();
    let key = snapshot.iter().find(|(key, _)| opened.get(key).is_err()).unwrap().0;
    let mut forged = assemble(&[Segment::of(&[(b"a", b"1")])]);
    let trailer = forged.len() - TRAILER;
    set_u64(&mut forged, trailer + 32, 0);
    seal(&mut forged);
    for error in [
        opened.get(&key).unwrap_err(),
        opened.iter().find_map(Result::err).unwrap(),
        opened.iter().rev().find_map(Result::err).unwrap(),
        opened.visit_range(.., |_, _| ControlFlow::Continue(())).unwrap_err(),
        opened.verify().unwrap_err(),
        opened.restore_into(&mut HotStore::new()).unwrap_err(),
        opened.restore_into(&mut InMemoryStore::new()).unwrap_err(),
        opened.get_typed::<u64>(&key).unwrap_err(),
        opened.diff(&opened.clone()).find_map(Result::err).unwrap_or_else(|| opened.fingerprint().unwrap_err()),
    ] {
        assert!(is_damage(&in_file(error, &path), at));
    }
    // The error also names the file if only the sums are wrong.
    fs::write(directory.path().join("forged"), &forged).unwrap();
    let forged = directory.path().join("forged");
    let opened = UnverifiedImage::open(&forged).unwrap();
    for error in [opened.verify().unwrap_err(), opened.iter().find_map(Result::err).unwrap()] {
        let error = in_file(error, &forged);
        assert!(error.to_string().contains("the length of all keys is not true"), "{error}");
    }

    let mut grouped = Vec::new();
    let options = ImageOptions::new().segment_bytes(200);
    snapshot.write_grouped(KeyGroups::new(3).unwrap(), |key| key, options, &mut grouped).unwrap();
    let extent = GroupedImage::from_bytes(grouped.clone()).unwrap().extent(1).unwrap();
    grouped[extent.start as usize + 40] ^= 1;
    fs::write(&path, &grouped).unwrap();
    let opened = UnverifiedImage::open(&path).unwrap();
    let by_group = GroupedImage::open(&path).unwrap();
    for error in [
        opened.iter().find_map(Result::err).unwrap(),
        opened.restore_into(&mut HotStore::new()).unwrap_err(),
        by_group.group(1).unwrap_err(),
        by_group.slice(0..3).unwrap_err(),
    ] {
        assert!(is_damage(&in_file(error, &path), 32));
    }
    assert!(by_group.group(0).is_ok());
}
