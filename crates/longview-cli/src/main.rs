//! The `longview` program: arguments → plan → act.

fn main() {}
