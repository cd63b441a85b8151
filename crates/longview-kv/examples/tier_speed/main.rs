//! How fast a disk tier writes, and reads back what no cache holds, beside the disk itself.
//!
//! ```text
//! cargo run --release -p longview-kv --example tier_speed -- FOLDER [BLOCKS]
//! ```
//!
//! Writes blocks of the shape of a 1B model (16 layers of 128 KiB) into a new store inside FOLDER,
//! empties the system's page cache of them, and reads them layer by layer, as a pass over a context
//! that was spilled does. The disk's own rate is that of reading the same files one after another,
//! past the cache (`O_DIRECT`) and through it.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("this measurement empties the page cache the way Linux does; run it there");
}
