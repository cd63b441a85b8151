//! How byte-level BPE vocabularies split text into words before merging: the pre-tokenizers that
//! GGUF files name in `tokenizer.ggml.pre`, as the models' own `tokenizer.json` publish them.
//!
//! Each pattern splits the pieces the one before left; what a pattern matches is one piece, and
//! so is what lies between two matches.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::TextError;

/// One family of word splitting.
#[derive(Debug)]
pub(crate) struct Presplit {
    /// The names files use for it.
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// Whether a word that is a token as a whole is taken without merging.
    pub(crate) whole_words: bool,
    /// Whether texts start with `bos` where the file does not say.
    pub(crate) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN2: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const QWEN35: &str = concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The letters of scripts with upper and lower case, as DeepSeek's tokenizer lists them.
const DEEPSEEK_CASED: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ",
    r"Ἐ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ",
    r"\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ",
    r"\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
    r"𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);

const KINDS: &[Presplit] = &[
    Presplit {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "lfm2",
        ],
        patterns: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    Presplit {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        patterns: &[LLAMA3],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[QWEN2],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["qwen35"],
        patterns: &[QWEN35],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "exaone4", "mellum",
        ],
        patterns: &[GPT2],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        patterns: &[r"\p{N}", GPT2],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["tekken"],
        patterns: &[TEKKEN],
        whole_words: true,
        add_bos: true,
    },
    Presplit {
        names: &["gpt-4o", "llama4", "minimax-m2", "kanana2"],
        patterns: &[GPT4O],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            DEEPSEEK_CASED,
            r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-\u{D7FF}]+",
            r"\p{N}+",
        ],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["deepseek-coder"],
        patterns: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[一-龥ࠀ-一가-\u{D7FF}]+",
            r"\p{N}",
        ],
        whole_words: false,
        add_bos: false,
    },
    Presplit {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        patterns: &[r"\p{N}{1,3}", r"[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
        whole_words: false,
        add_bos: false,
    },
];

impl Presplit {
    /// The family that files call `name`.
    ///
    /// # Errors
    /// An unknown name, with the list of known ones: a guess would give wrong ids in silence.
    pub(crate) fn named(name: &str) -> Result<&'static Self, TextError> {
        KINDS
            .iter()
            .find(|kind| kind.names.contains(&name))
            .ok_or_else(|| TextError::Unsupported {
                part: "pre-tokenizer",
                found: name.into(),
                known: KINDS
                    .iter()
                    .flat_map(|kind| kind.names)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// The splitting as a chain of the `tokenizers` crate, ending in the byte alphabet.
    pub(crate) fn chain(&self) -> Result<PreTokenizerWrapper, TextError> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(TextError::building)?;
            steps.push(split.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let chain = Presplit::named(name).unwrap().chain().unwrap();
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
        for kind in KINDS {
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
        let error = Presplit::named("klingon").unwrap_err().to_string();
        assert!(
            error.contains("klingon") && error.contains("llama-bpe"),
            "{error}"
        );
    }
}
