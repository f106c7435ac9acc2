//! Short form of the stress of what threads share. `tests/sharing` runs it for as long as wanted.

use crate::support::stress::stress;

#[test]
fn readers_on_other_threads_see_what_was_there_whatever_the_writer_does() {
    stress(0..60);
}
