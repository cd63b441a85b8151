//! How byte-level BPE vocabularies split text into words before merging: the families that GGUF files
//! name, as chains of the `tokenizers` crate.

use longview_weights::gguf::{PRESPLITS, Presplit};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::TextError;

/// The family that files call `name`.
///
/// # Errors
/// An unknown name, with the list of known ones: a guess would give wrong ids in silence.
pub(crate) fn named(name: &str) -> Result<&'static Presplit, TextError> {
    PRESPLITS
        .iter()
        .find(|family| family.names.contains(&name))
        .ok_or_else(|| TextError::Unsupported {
            part: "pre-tokenizer",
            found: name.into(),
            known: PRESPLITS
                .iter()
                .flat_map(|family| family.names)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// The splitting as a chain of the `tokenizers` crate, ending in the byte alphabet.
pub(crate) fn chain(family: &Presplit) -> Result<PreTokenizerWrapper, TextError> {
    let mut steps = Vec::with_capacity(family.patterns.len() + 1);
    for pattern in family.patterns {
        let pattern = SplitPattern::Regex((*pattern).into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(TextError::building)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(Sequence::new(steps).into())
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let chain = chain(named(name).unwrap()).unwrap();
        let mut pre = PreTokenizedString::from(text);
        chain.pre_tokenize(&mut pre).unwrap();
        pre.get_splits(OffsetReferential::Original, OffsetType::Byte)
            .iter()
            .map(|(_, (start, end), _)| text[*start..*end].to_owned())
            .collect()
    }

    #[test]
    fn every_family_compiles_and_loses_nothing() {
        let text = "It's 12345 l'été, Привет\n\n  x=1; 你好 ﬁ DON'T\t\u{3000}end ";
        for kind in PRESPLITS {
            assert_eq!(
                words(kind.names[0], text).concat(),
                text,
                "{:?}",
                kind.names
            );
        }
    }

    #[test]
    fn families_differ_where_their_models_do() {
        assert_eq!(words("gpt-2", "a 12345"), ["a", " 12345"]);
        assert_eq!(words("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
        assert_eq!(words("qwen2", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(words("starcoder", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(words("falcon", "12345"), ["123", "45"]);
        assert_eq!(words("tekken", "fooBar 12"), ["foo", "Bar", " ", "1", "2"]);
        assert_eq!(
            words("gpt-4o", "fooBar's 1234"),
            ["foo", "Bar's", " ", "123", "4"]
        );
        assert_eq!(
            words("deepseek-coder", "a 12\nb"),
            ["a", " ", "1", "2", "\n", "b"]
        );
        assert_eq!(
            words("deepseek-llm", "a 123 ΑΒγ你好"),
            ["a", " ", "123", " ΑΒγ", "你好"]
        );
        assert_eq!(
            words("deepseek-v3", "x.foo 1234"),
            ["x", ".foo", " ", "123", "4"]
        );
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = named("klingon").unwrap_err().to_string();
        assert!(
            error.contains("klingon") && error.contains("llama-bpe"),
            "{error}"
        );
    }
}
