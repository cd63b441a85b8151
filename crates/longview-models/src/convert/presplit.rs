//! From the word splitting in a `tokenizer.json` to the name that GGUF files have for it.

use serde_json::Value;

/// The contractions of English as most files write them, and as the others do.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const CONTRACTIONS_BY_CASE: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";

/// Patterns in their order, whether words that are tokens are taken whole, and the name.
const KNOWN: [(&[&str], Option<bool>, &str); 7] = [
    (&[LLAMA3], Some(true), "llama-bpe"),
    (&[LLAMA3], Some(false), "dbrx"),
    (&[QWEN2], None, "qwen2"),
    (&[GPT2], None, "gpt-2"),
    (&[DIGIT, GPT2], None, "smollm"),
    (&[TEKKEN], None, "tekken"),
    (&[GPT4O], None, "gpt-4o"),
];

/// The name for `pre_tokenizer`, or what stands in the way of one. `whole_words` is the model's
/// `ignore_merges`.
pub(super) fn name_of(
    pre_tokenizer: Option<&Value>,
    whole_words: bool,
) -> Result<&'static str, String> {
    let mut patterns = Vec::new();
    if let Some(value) = pre_tokenizer {
        collect(value, &mut patterns)?;
    }
    let known = KNOWN.iter().find(|(known, whole, _)| {
        let same = known.iter().map(|pattern| canonical(pattern));
        same.eq(patterns.iter().cloned()) && whole.is_none_or(|whole| whole == whole_words)
    });
    known.map(|(_, _, name)| *name).ok_or_else(|| {
        let names: Vec<&str> = KNOWN.iter().map(|(_, _, name)| *name).collect();
        format!(
            "splits words by {patterns:?}, which GGUF files have no name for; known kinds: {}",
            names.join(", ")
        )
    })
}

/// Appends the patterns of a step and the steps inside it.
fn collect(step: &Value, patterns: &mut Vec<String>) -> Result<(), String> {
    let flag =
        |name: &str, default: bool| step.get(name).and_then(Value::as_bool).unwrap_or(default);
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let steps = step.get("pretokenizers").and_then(Value::as_array);
            for step in steps.into_iter().flatten() {
                collect(step, patterns)?;
            }
        }
        Some("Split") => {
            let pattern = step.get("pattern").and_then(|pattern| pattern.get("Regex"));
            let pattern = pattern
                .and_then(Value::as_str)
                .ok_or("splits words by a plain text, which GGUF files cannot say")?;
            let behavior = step.get("behavior").and_then(Value::as_str);
            // Where a pattern covers all text, keeping only what it matches loses nothing.
            let isolated = behavior == Some("Isolated") && !flag("invert", false);
            let kept = behavior == Some("Removed") && flag("invert", false);
            if !isolated && !kept {
                return Err(format!(
                    "splits words with the behaviour {behavior:?}, which GGUF files cannot say"
                ));
            }
            patterns.push(canonical(pattern));
        }
        Some("Digits") if flag("individual_digits", false) => patterns.push(DIGIT.to_owned()),
        Some("ByteLevel") => {
            if flag("add_prefix_space", true) {
                return Err("puts a space before texts, which GGUF files cannot say".to_owned());
            }
            if flag("use_regex", true) {
                patterns.push(canonical(GPT2));
            }
        }
        other => {
            let kind = other.unwrap_or("without a type");
            return Err(format!(
                "has the pre-tokenizer {kind}, which GGUF files cannot say"
            ));
        }
    }
    Ok(())
}

/// A pattern in the one of its spellings that others are compared in.
fn canonical(pattern: &str) -> String {
    pattern.replace(CONTRACTIONS_BY_CASE, CONTRACTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> Value {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
    }

    #[test]
    fn known_patterns_get_their_names() {
        let name = |value: &Value, whole| name_of(Some(value), whole).unwrap();
        assert_eq!(name(&split(LLAMA3), true), "llama-bpe");
        assert_eq!(name(&split(LLAMA3), false), "dbrx");
        assert_eq!(name(&split(QWEN2), false), "qwen2");
        assert_eq!(
            name(
                &split(&QWEN2.replace(CONTRACTIONS, CONTRACTIONS_BY_CASE)),
                false
            ),
            "qwen2"
        );
        let plain = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert_eq!(name(&plain, false), "gpt-2");
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, plain]});
        assert_eq!(name(&digits, false), "smollm");
    }

    #[test]
    fn others_are_refused_by_what_they_are() {
        let unknown = name_of(Some(&split("a|b")), false).unwrap_err();
        assert!(
            unknown.contains("a|b") && unknown.contains("llama-bpe"),
            "{unknown}"
        );
        let spaced = json!({"type": "ByteLevel", "add_prefix_space": true});
        assert!(
            name_of(Some(&spaced), false)
                .unwrap_err()
                .contains("space before")
        );
        let scripts = json!({"type": "UnicodeScripts"});
        assert!(
            name_of(Some(&scripts), false)
                .unwrap_err()
                .contains("UnicodeScripts")
        );
    }
}
