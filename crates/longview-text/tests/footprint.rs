//! What turning a text into ids takes meanwhile stays within the bound that is told before.

mod shared;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longview_text::{Specials, Tokenizer, Vocabulary};
use serde_json::{Value, json};

use shared::{byte_level, tokenizer_json, vocabulary};

/// Counts the bytes that are held, and the most that ever were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn hold(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call is the system's own; only counts are kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while one is copied to the other.
        hold(size);
        // SAFETY: as the caller's.
        let moved = unsafe { System.realloc(memory, layout, size) };
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What other tests of this file hold would be counted, too.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Texts of one kind each, of the length of a chapter.
fn texts() -> Vec<(&'static str, String)> {
    let prose = "To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any \
                 other name.\nIn his eyes she eclipses and predominates the whole of her sex.\n";
    let code = "fn main() {\n    let x: Vec<u8> = (0..10).map(|i| i * 2).collect();\n}\n";
    [
        ("prose", prose),
        ("code", code),
        ("digits", "8402173"),
        ("numbers", "17, 204, 9, "),
        ("marks", "?!.,;:()[]"),
        ("marks apart", "? ! . , ; "),
        ("symbols apart", "+ = € < "),
        ("letters apart", "a b c d e "),
        ("letters and digits", "a1b2c3d4"),
        ("lines", "a\n"),
        ("blanks", "a \n\t"),
        ("spaces", " "),
        ("one letter", "a"),
        ("random letters", "xqzjkvbwpfhdmrtycgls"),
        ("Chinese", "漢字仮名交文"),
        ("Chinese and marks", "漢，字。文、"),
        ("emoji", "😀😁😂"),
    ]
    .into_iter()
    .flat_map(|(kind, text)| {
        // Lists that double are fullest just behind a power of two, and emptiest.
        [65_540, 100_000].map(|length| (kind, text.repeat(length / text.len() + 1)))
    })
    .chain([
        ("a word across lines", format!("!{}", "\n/".repeat(35_000))),
        ("characters that differ", ('\u{4e00}'..'\u{8000}').collect()),
    ])
    .collect()
}

/// The bytes for each byte of text that encoding takes, and the bound on them.
fn measured(tokenizer: &Tokenizer, text: &str) -> (f64, f64) {
    // The pattern engine keeps tables from one text to the next.
    let start = text
        .char_indices()
        .nth(500)
        .map_or(text.len(), |(at, _)| at);
    tokenizer.encode(&text[..start], Specials::AsText).unwrap();
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let ids = tokenizer.encode(text, Specials::AsText).unwrap();
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(!ids.is_empty());
    let by_byte = |bytes: f64| bytes / text.len() as f64;
    (
        by_byte(most as f64),
        by_byte(tokenizer.encoding_bytes(text) as f64),
    )
}

fn check(vocabulary: &str, tokenizer: &Tokenizer) {
    for (kind, text) in texts() {
        let (took, bound) = measured(tokenizer, &text);
        println!("{vocabulary}, {kind}: {took:.1} of {bound:.1} bytes a byte");
        assert!(
            took <= bound,
            "{vocabulary}, {kind}: {took:.1} of {bound:.1}"
        );
    }
}

#[test]
fn vocabularies_of_gguf_files_stay_within_the_bound() {
    let _alone = alone();
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm"] {
        check(name, &Tokenizer::from_vocabulary(vocabulary(name)).unwrap());
    }
    // A family whose words may go on over line ends.
    let tekken = Vocabulary {
        pre: Some("tekken".into()),
        ..vocabulary("llama-bpe")
    };
    check("tekken", &Tokenizer::from_vocabulary(tekken).unwrap());
}

#[test]
fn prose_takes_little_more_than_its_ids() {
    let _alone = alone();
    let tokenizer = Tokenizer::from_vocabulary(vocabulary("llama-bpe")).unwrap();
    let (took, bound) = measured(&tokenizer, &texts()[0].1);
    assert!(took < 4.0 && bound < 50.0, "{took:.1} of {bound:.1}");
}

#[test]
fn chains_of_steps_stay_within_the_bound() {
    let _alone = alone();
    let nfc = json!({"type": "NFC"});
    for (name, normalizer, split) in [
        ("prefixed", &Value::Null, byte_level(true, true)),
        ("normalised", &nfc, byte_level(false, true)),
    ] {
        let file = tokenizer_json("gpt-2", normalizer, &split);
        let tokenizer = Tokenizer::from_huggingface(file.as_bytes(), None, None).unwrap();
        check(name, &tokenizer);
    }
}
