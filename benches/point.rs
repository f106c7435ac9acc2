//! Point reads through `Box<dyn StateStore>`.

fn main() {}
