//! Damaged and hostile files: each kind has its error, with file, place and remedy.

#[path = "../common/mod.rs"]
mod common;

/// Asserts that opening gives this kind of error and a message with all of these words.
macro_rules! assert_refused {
    ($result:expr, $kind:pat, $($words:literal),+) => {{
        let error = $result;
        let message = error.to_string();
        assert!(matches!(error, $kind), "{message}\n{error:?}");
        $(assert!(message.contains($words), "{:?} is not in: {message}", $words);)+
    }};
}

// After the macro, which they use.
mod gguf;
mod indexes;
mod paths;
mod safetensors_files;
