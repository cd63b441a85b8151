//! Any bytes as a tokenizer, in each of its forms: refused or built, and what is built tokenises.
//!
//! Bytes that begin with `GGUF` are a GGUF file; a first byte `t` is followed by a `tokenizer.json`,
//! any other by a vocabulary as JSON.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longview_text::{ShowSpecials, Specials, Start, Tokenizer, Vocabulary};
use longview_weights::GgufFile;

const TEXT: &str = "Hello  wörld 42!\n\t<s>I'll été 漢字 \u{1F600}</s> end";

fuzz_target!(|bytes: &[u8]| {
    let Some(tokenizer) = build(bytes) else { return };
    for specials in [Specials::Parse, Specials::AsText] {
        let Ok(ids) = tokenizer.encode(TEXT, specials) else { continue };
        let _ = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream(Start::Text, ShowSpecials::Hide);
        for id in ids {
            let _ = stream.push(id);
        }
        let _ = stream.finish();
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
});

fn build(bytes: &[u8]) -> Option<Tokenizer> {
    if bytes.starts_with(b"GGUF") {
        let file = GgufFile::from_bytes("input", bytes.to_vec()).ok()?;
        return Tokenizer::from_vocabulary(Vocabulary::from_gguf(&file).ok()?).ok();
    }
    let (kind, rest) = bytes.split_first()?;
    match kind {
        b't' => Tokenizer::from_huggingface(rest, None, None).ok(),
        _ => Tokenizer::from_vocabulary(serde_json::from_slice(rest).ok()?).ok(),
    }
}
