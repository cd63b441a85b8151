//! From the word splitting in a `tokenizer.json` to the name that GGUF files have for it.

use longview_weights::gguf::{GPT2_WORDS, PRESPLITS, Presplit};
use serde_json::Value;

/// The contractions of English as most files write them, and as the others do.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const CONTRACTIONS_BY_CASE: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

const DIGIT: &str = r"\p{N}";

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
    let splits_so = |family: &&Presplit| {
        let same = family.patterns.iter().map(|pattern| canonical(pattern));
        same.eq(patterns.iter().cloned())
    };
    let mut alike: Vec<&Presplit> = PRESPLITS.iter().filter(splits_so).collect();
    // Where whole words tell two families apart; for others the file's own flag is what counts.
    alike.sort_by_key(|family| family.whole_words != whole_words);
    alike.first().map(|family| family.names[0]).ok_or_else(|| {
        let names: Vec<&str> = PRESPLITS.iter().map(|family| family.names[0]).collect();
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
                patterns.push(canonical(GPT2_WORDS));
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
    let mut spelled = pattern.replace(CONTRACTIONS_BY_CASE, CONTRACTIONS);
    while let Some((before, rest)) = spelled.split_once(r"\u{") {
        let escaped = rest.split_once('}').and_then(|(code, after)| {
            let code = u32::from_str_radix(code, 16).ok()?;
            Some((char::from_u32(code)?, after))
        });
        let Some((character, after)) = escaped else {
            break;
        };
        spelled = format!("{before}{character}{after}");
    }
    spelled
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
    fn every_family_is_known_by_its_patterns_however_they_are_spelled() {
        for family in PRESPLITS {
            let steps = |spell: &dyn Fn(&str) -> String| {
                let splits = family.patterns.iter().map(|pattern| {
                    json!({"type": "Split", "pattern": {"Regex": spell(pattern)},
                           "behavior": "Isolated", "invert": false})
                });
                let bytes = json!({"type": "ByteLevel", "add_prefix_space": false,
                                   "use_regex": false});
                let steps: Vec<Value> = splits.chain([bytes]).collect();
                json!({"type": "Sequence", "pretokenizers": steps})
            };
            for spelled in [
                steps(&str::to_owned),
                steps(&|pattern| pattern.replace(CONTRACTIONS_BY_CASE, CONTRACTIONS)),
                steps(&|pattern| pattern.replace(r"\u{3040}", "\u{3040}")),
            ] {
                let name = name_of(Some(&spelled), family.whole_words).unwrap();
                assert_eq!(name, family.names[0]);
            }
        }
    }

    #[test]
    fn splitting_without_patterns_has_names_too() {
        let name = |value: &Value| name_of(Some(value), false).unwrap();
        let plain = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert_eq!(name(&plain), "gpt-2");
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, plain]});
        assert_eq!(name(&digits), "smollm");
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
