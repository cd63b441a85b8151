//! Damaged and hostile files: each kind has its error, with file, place and remedy.

mod common;

use std::fs;

use common::{folder, open_bytes, safetensors, small_gguf, with_header, write};
use longview_weights::{WeightFile, WeightsError};

fn refuse(bytes: &[u8]) -> WeightsError {
    open_bytes("bad.gguf", bytes).expect_err("a damaged file must be refused")
}

/// Asserts that opening gives this kind of error and a message with all of these words.
macro_rules! assert_refused {
    ($result:expr, $kind:pat, $($words:literal),+) => {{
        let error = $result;
        let message = error.to_string();
        assert!(matches!(error, $kind), "{message}\n{error:?}");
        $(assert!(message.contains($words), "{:?} is not in: {message}", $words);)+
    }};
}

/// A GGUF header made by hand, part by part.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Raw {
        let mut raw = Raw(b"GGUF".to_vec());
        raw.u32(version).u64(tensors).u64(entries);
        raw
    }

    fn u32(&mut self, value: u32) -> &mut Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Raw {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Raw {
        self.u64(text.len() as u64).0.extend(text.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, dims: &[u64], format: u32, offset: u64) -> &mut Raw {
        self.text(name).u32(dims.len() as u32);
        for &dim in dims {
            self.u64(dim);
        }
        self.u32(format).u64(offset)
    }

    /// Pads the header as the format asks and adds so many bytes of data.
    fn data(&mut self, bytes: usize) -> &mut Raw {
        let header = self.0.len().next_multiple_of(32);
        self.0.resize(header + bytes, 1);
        self
    }
}

mod gguf {
    use super::*;

    #[test]
    fn other_files_are_told_apart() {
        assert_refused!(
            refuse(b""),
            WeightsError::NotWeights { .. },
            "not a GGUF file",
            "0 bytes"
        );
        assert_refused!(
            refuse(b"PK\x03\x04zip"),
            WeightsError::NotWeights { .. },
            "begins with"
        );
        assert_refused!(
            refuse(b"tjgg\x03\0\0\0"),
            WeightsError::NotWeights { .. },
            "older"
        );
        assert_refused!(
            refuse(&Raw::new(3u32.swap_bytes(), 0, 0).0),
            WeightsError::BigEndian { .. },
            "little endian"
        );
        for version in [0, 1, 4, u32::MAX] {
            assert_refused!(
                refuse(&Raw::new(version, 0, 0).0),
                WeightsError::Version { .. },
                "versions 2 and 3"
            );
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = small_gguf();
        // The last tensor has 20 bytes; 12 bytes of padding behind it may be missing.
        for length in 0..bytes.len() - 12 {
            let message = refuse(&bytes[..length]).to_string();
            assert!(message.contains("bad.gguf"), "{message}");
        }
        open_bytes("a.gguf", &bytes[..bytes.len() - 12]).unwrap();
        assert_refused!(
            refuse(&bytes[..bytes.len() - 40]),
            WeightsError::TensorOutside { .. },
            "output_norm.weight",
            "incomplete"
        );
    }

    #[test]
    fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
        for (tensors, entries) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 1), (0, 1 << 40)] {
            assert_refused!(
                refuse(&Raw::new(3, tensors, entries).0),
                WeightsError::Header { .. },
                "damaged header at byte",
                "at most"
            );
        }
        assert_refused!(
            refuse(&Raw::new(3, 0, 60_000).0),
            WeightsError::Truncated { .. },
            "60000 metadata entries"
        );
        assert_refused!(
            refuse(&Raw::new(3, 250_000, 0).0),
            WeightsError::Truncated { .. },
            "250000 tensors"
        );
    }

    #[test]
    fn lengths_beyond_the_file_are_refused() {
        let mut raw = Raw::new(3, 0, 1);
        raw.u64(1 << 50).data(64);
        assert_refused!(
            refuse(&raw.0),
            WeightsError::Header { .. },
            "key of metadata entry 0"
        );
        let mut raw = Raw::new(3, 0, 1);
        raw.text("a").u32(8).u64(u64::MAX);
        assert_refused!(
            refuse(&raw.0),
            WeightsError::Truncated { .. },
            "value of \"a\""
        );
        for (item, count) in [(4, u64::MAX / 2), (4, 1 << 40), (8, 1 << 40), (9, u64::MAX)] {
            let mut raw = Raw::new(3, 0, 1);
            raw.text("a").u32(9).u32(item).u64(count).data(64);
            assert_refused!(
                refuse(&raw.0),
                WeightsError::Truncated { .. },
                "value of \"a\""
            );
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| {
            let mut raw = Raw::new(3, 0, 1);
            raw.text("a").u32(9);
            for _ in 1..depth {
                raw.u32(9).u64(1);
            }
            raw.u32(4).u64(1).u32(7);
            raw.0
        };
        common::touch(&open_bytes("a.gguf", &nested(3)).unwrap());
        for depth in [4, 10_000] {
            assert_refused!(
                refuse(&nested(depth)),
                WeightsError::Header { .. },
                "nests arrays"
            );
        }
    }

    #[test]
    fn damaged_keys_and_values_are_refused() {
        let entry = |key: &str, kind: u32, value: u64| {
            let mut raw = Raw::new(3, 0, 1);
            raw.text(key).u32(kind).u64(value);
            refuse(&raw.0)
        };
        assert_refused!(entry("", 4, 0), WeightsError::Header { .. }, "is empty");
        assert_refused!(
            entry("k", 13, 0),
            WeightsError::Header { .. },
            "value type 13"
        );
        assert_refused!(
            entry("k", 7, 2),
            WeightsError::Header { .. },
            "bool with the value 2"
        );
        for alignment in [0, 3, 1 << 30] {
            let error = entry("general.alignment", 4, alignment);
            assert_refused!(error, WeightsError::Header { .. }, "power of two");
        }
        let error = entry("general.alignment", 10, 32);
        assert_refused!(error, WeightsError::Header { .. }, "(u64)");

        let mut raw = Raw::new(3, 0, 1);
        raw.u64(2).0.extend([0xff, 0xfe]);
        raw.u32(4).u32(0);
        assert_refused!(refuse(&raw.0), WeightsError::Header { .. }, "not UTF-8");

        let mut raw = Raw::new(3, 0, 2);
        raw.text("k").u32(4).u32(1).text("k").u32(4).u32(2);
        assert_refused!(
            refuse(&raw.0),
            WeightsError::DuplicateKey { .. },
            "\"k\"",
            "byte 41"
        );
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_where_it_is_asked_for() {
        let mut raw = Raw::new(3, 0, 1);
        raw.text("k").u32(8).u64(2).0.extend([0xff, 0xfe]);
        let WeightFile::Gguf(file) = open_bytes("a.gguf", &raw.0).unwrap() else {
            panic!()
        };
        assert_refused!(
            file.str("k").unwrap_err(),
            WeightsError::WrongType { .. },
            "UTF-8 text is expected"
        );
    }

    fn one_tensor(dims: &[u64], format: u32, offset: u64, data: usize) -> WeightsError {
        let mut raw = Raw::new(3, 1, 0);
        raw.tensor("w", dims, format, offset).data(data);
        refuse(&raw.0)
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let shape = |dims: &[u64], format| one_tensor(dims, format, 0, 64);
        use WeightsError::TensorShape;
        assert_refused!(shape(&[], 0), TensorShape { .. }, "\"w\"", "0 dimensions");
        assert_refused!(
            shape(&[1, 1, 1, 1, 1], 0),
            TensorShape { .. },
            "5 dimensions"
        );
        assert_refused!(shape(&[4, 0], 0), TensorShape { .. }, "without elements");
        assert_refused!(
            shape(&[1 << 40, 1 << 40], 0),
            TensorShape { .. },
            "overflows"
        );
        assert_refused!(shape(&[u64::MAX], 0), TensorShape { .. }, "overflows");
        assert_refused!(shape(&[1 << 62, 2], 0), TensorShape { .. }, "overflows");
        assert_refused!(
            shape(&[33], 2),
            TensorShape { .. },
            "blocks of 32 that Q4_0"
        );
        // 512 elements, but in rows of 128: blocks may not cross rows.
        assert_refused!(
            shape(&[128, 4], 12),
            TensorShape { .. },
            "rows of 128",
            "Q4_K"
        );
        let mut raw = Raw::new(3, 1, 0);
        raw.text("w").u32(u32::MAX).data(64);
        assert_refused!(refuse(&raw.0), TensorShape { .. }, "4294967295 dimensions");
    }

    #[test]
    fn unknown_types_are_named() {
        let error = one_tensor(&[256], 16, 0, 256);
        assert_refused!(
            error,
            WeightsError::UnknownType { .. },
            "type 16 (IQ2_XXS)",
            "Q4_K",
            "\"w\""
        );
        let error = one_tensor(&[256], 9999, 0, 256);
        assert_refused!(error, WeightsError::UnknownType { .. }, "type 9999, which");
    }

    #[test]
    fn data_outside_the_file_is_refused() {
        use WeightsError::TensorOutside;
        assert_refused!(one_tensor(&[16], 0, 32, 64), TensorOutside { .. }, "\"w\"");
        assert_refused!(one_tensor(&[17], 0, 0, 64), TensorOutside { .. }, "\"w\"");
        assert_refused!(
            one_tensor(&[1 << 60], 0, 0, 64),
            TensorOutside { .. },
            "\"w\""
        );
        assert_refused!(
            one_tensor(&[8], 0, u64::MAX - 31, 64),
            TensorOutside { .. },
            "\"w\""
        );
        let error = one_tensor(&[8], 0, 4, 64);
        assert_refused!(
            error,
            WeightsError::TensorShape { .. },
            "not a multiple of the alignment"
        );
    }

    #[test]
    fn names_and_bytes_belong_to_one_tensor() {
        let two = |name: &str, offset| {
            let mut raw = Raw::new(3, 2, 0);
            raw.tensor("w", &[16], 0, 0)
                .tensor(name, &[8], 0, offset)
                .data(128);
            refuse(&raw.0)
        };
        assert_refused!(
            two("w", 64),
            WeightsError::DuplicateTensor { .. },
            "\"w\" occurs twice"
        );
        assert_refused!(
            two("v", 32),
            WeightsError::TensorOverlap { .. },
            "\"w\" and \"v\""
        );
        assert_refused!(
            two("v", 0),
            WeightsError::TensorOverlap { .. },
            "overlap at byte"
        );
    }

    /// A vocabulary without tensors is a complete file, even where it ends before the padding.
    #[test]
    fn no_tensors_is_no_error() {
        let mut raw = Raw::new(3, 0, 1);
        raw.text("general.architecture").u32(8).text("llama");
        common::touch(&open_bytes("vocabulary.gguf", &raw.0).unwrap());
    }
}

mod safetensors_files {
    use super::*;

    fn single(bytes: &[u8]) -> WeightsError {
        let folder = folder(&[("model.safetensors", bytes)]);
        WeightFile::open(folder.path()).expect_err("a damaged file must be refused")
    }

    fn good() -> Vec<u8> {
        safetensors(&[
            ("a", "F16", &[2, 3], 12),
            ("b", "BF16", &[4], 8),
            ("c", "F32", &[1], 4),
        ])
    }

    #[test]
    fn a_small_folder_is_read() {
        let folder = folder(&[("model.safetensors", &good())]);
        let model = WeightFile::open(folder.path()).unwrap();
        common::touch(&model);
        assert_eq!(model.tensor("a").unwrap().shape, [2, 3]);
        assert_eq!(model.tensor("b").unwrap().data, &common::pattern(20)[12..]);
        assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_refused!(
            model.tensor("d").unwrap_err(),
            WeightsError::MissingTensor { .. },
            "no tensor \"d\""
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = good();
        for length in 0..bytes.len() {
            let message = single(&bytes[..length]).to_string();
            assert!(message.contains("model.safetensors"), "{message}");
        }
        assert_refused!(
            single(&bytes[..bytes.len() - 1]),
            WeightsError::Truncated { .. },
            "the tensor data",
            "incomplete"
        );
    }

    #[test]
    fn damaged_headers_are_refused() {
        assert_refused!(
            single(&[0xff; 64]),
            WeightsError::Header { .. },
            "is this a safetensors file"
        );
        let longer = [1000u64.to_le_bytes().to_vec(), vec![b'{'; 10]].concat();
        assert_refused!(
            single(&longer),
            WeightsError::Truncated { .. },
            "the header"
        );
        let mut extra = good();
        extra.push(0);
        assert_refused!(
            single(&extra),
            WeightsError::Header { .. },
            "1 bytes after the last tensor"
        );
        for header in [
            "",
            "[]",
            "{",
            r#"{"a": 3}"#,
            r#"{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#,
            r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#,
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#,
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#,
            r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
            r#"{"a": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets": [0, 4]}}"#,
        ] {
            assert_refused!(
                single(&with_header(header, 8)),
                WeightsError::Header { .. },
                "damaged header at byte 8"
            );
        }
        let nested = "[".repeat(100_000);
        assert_refused!(
            single(&with_header(&nested, 0)),
            WeightsError::Header { .. },
            "byte 8"
        );
    }

    /// Eight tensors of 2^61 bytes each end near 2^64, where a sum that wraps would fit any file.
    #[test]
    fn sizes_that_sum_beyond_the_address_space_are_refused() {
        let size = 1u64 << 60;
        let tensors: Vec<String> = (0..15u64)
            .map(|i| {
                let (start, end) = (i * size, (i + 1) * size);
                format!(r#""t{i}": {{"dtype": "U8", "shape": [{size}], "data_offsets": [{start}, {end}]}}"#)
            })
            .collect();
        let header = format!("{{{}}}", tensors.join(", "));
        assert_refused!(
            single(&with_header(&header, 16)),
            WeightsError::Truncated { .. },
            "the tensor data"
        );
    }

    #[test]
    fn other_data_types_are_refused_by_name_when_asked_for() {
        let bytes = safetensors(&[("w", "F8_E4M3", &[4], 4), ("b", "F32", &[1], 4)]);
        let folder = folder(&[("model.safetensors", &bytes)]);
        let model = WeightFile::open(folder.path()).unwrap();
        assert_refused!(
            model.tensor("w").unwrap_err(),
            WeightsError::UnsupportedDtype { .. },
            "\"w\"",
            "F8_E4M3",
            "BF16"
        );
        assert!(model.tensor("b").is_ok());
    }
}

mod indexes {
    use super::*;

    const INDEX: &str = "model.safetensors.index.json";

    fn index(map: &str) -> tempfile::TempDir {
        let index = format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
        let a = safetensors(&[("a", "F32", &[1], 4), ("unlisted", "F32", &[1], 4)]);
        let b = safetensors(&[("b", "F32", &[2], 8)]);
        folder(&[
            (INDEX, index.as_bytes()),
            ("1.safetensors", &a),
            ("2.safetensors", &b),
        ])
    }

    #[test]
    fn the_parts_make_one_model() {
        let folder = index(r#"{"b": "2.safetensors", "a": "1.safetensors"}"#);
        let model = WeightFile::open(folder.path()).unwrap();
        common::touch(&model);
        assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn paths_out_of_the_folder_are_refused() {
        for target in [
            "../secret.safetensors",
            "/etc/passwd",
            "a/../../b",
            "sub/1.safetensors",
            "",
        ] {
            let folder = index(&format!(r#"{{"a": "{target}"}}"#));
            assert_refused!(
                WeightFile::open(folder.path()).unwrap_err(),
                WeightsError::IndexEscapes { .. },
                "tensor \"a\"",
                "refused"
            );
        }
    }

    #[test]
    fn missing_parts_and_tensors_are_named() {
        let folder = index(r#"{"a": "1.safetensors", "c": "3.safetensors"}"#);
        assert_refused!(
            WeightFile::open(folder.path()).unwrap_err(),
            WeightsError::Shard { .. },
            "3.safetensors: part 2 of 2",
            "download every part"
        );
        let folder = index(r#"{"a": "2.safetensors"}"#);
        assert_refused!(
            WeightFile::open(folder.path()).unwrap_err(),
            WeightsError::MissingTensor { .. },
            "2.safetensors: no tensor \"a\"",
            "places it there"
        );
    }

    #[test]
    fn damaged_indexes_are_refused() {
        for map in ["[]", "7", r#"{"a": 3}"#, "{}"] {
            let folder = index(map);
            assert_refused!(
                WeightFile::open(folder.path()).unwrap_err(),
                WeightsError::Json { .. },
                "model.safetensors.index.json"
            );
        }
        let folder = folder(&[(INDEX, b"not json")]);
        assert_refused!(
            WeightFile::open(folder.path()).unwrap_err(),
            WeightsError::Json { .. },
            "not valid JSON"
        );
    }
}

mod paths {
    use super::*;

    #[test]
    fn folders_without_a_model_say_what_is_expected() {
        let empty = tempfile::tempdir().unwrap();
        assert_refused!(
            WeightFile::open(empty.path()).unwrap_err(),
            WeightsError::EmptyFolder { .. },
            "the folder is empty",
            "config.json"
        );
        assert_refused!(
            WeightFile::open(empty.path().join("absent")).unwrap_err(),
            WeightsError::NotFound { .. },
            "absent: there is no such file or folder"
        );
        write(empty.path(), "notes.txt", b"");
        assert_refused!(
            WeightFile::open(empty.path()).unwrap_err(),
            WeightsError::NoModel { .. },
            "it holds notes.txt"
        );
        let no_weights = folder(&[]);
        assert_refused!(
            WeightFile::open(no_weights.path()).unwrap_err(),
            WeightsError::MissingFile { .. },
            "model.safetensors: missing"
        );
        fs::remove_file(no_weights.path().join("config.json")).unwrap();
        write(no_weights.path(), "model.safetensors", b"");
        assert_refused!(
            WeightFile::open(no_weights.path()).unwrap_err(),
            WeightsError::MissingFile { .. },
            "config.json: missing"
        );
    }

    #[test]
    fn one_gguf_in_a_folder_is_opened_and_several_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.gguf", &small_gguf());
        write(folder.path(), "README.md", b"");
        assert!(WeightFile::open(folder.path()).is_ok());
        write(folder.path(), "b.gguf", &small_gguf());
        assert_refused!(
            WeightFile::open(folder.path()).unwrap_err(),
            WeightsError::SeveralModels { .. },
            "a.gguf, b.gguf"
        );
    }

    #[test]
    fn a_safetensors_file_points_to_its_folder() {
        assert_refused!(
            open_bytes("model.safetensors", &[]).unwrap_err(),
            WeightsError::NotWeights { .. },
            "give the folder"
        );
    }

    /// Opening a pipe waits for a writer that never comes.
    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.gguf");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        if made.is_ok_and(|status| status.success()) {
            assert_refused!(
                WeightFile::open(&path).unwrap_err(),
                WeightsError::NotWeights { .. },
                "not a regular file"
            );
        }
    }

    #[test]
    fn damaged_configurations_are_named() {
        let folder = folder(&[("config.json", b"{"), ("model.safetensors", b"")]);
        assert_refused!(
            WeightFile::open(folder.path()).unwrap_err(),
            WeightsError::Json { .. },
            "config.json: not valid JSON"
        );
    }

    #[test]
    fn tokenizer_and_template_files_are_found_in_their_order() {
        let weights = safetensors(&[("a", "F32", &[1], 4)]);
        let folder = folder(&[("model.safetensors", &weights), ("tokenizer.model", b"")]);
        let open = || match WeightFile::open(folder.path()).unwrap() {
            WeightFile::HuggingFace(folder) => folder,
            _ => panic!("a folder"),
        };
        assert_refused!(
            open().tokenizer_path().unwrap_err(),
            WeightsError::MissingFile { .. },
            "tokenizer.json: missing; tokenizer.model alone"
        );
        assert_eq!(open().chat_template().unwrap(), None);
        write(
            folder.path(),
            "tokenizer_config.json",
            br#"{"chat_template": "three"}"#,
        );
        assert_eq!(open().chat_template().unwrap().as_deref(), Some("three"));
        write(
            folder.path(),
            "chat_template.json",
            br#"{"chat_template": "two"}"#,
        );
        assert_eq!(open().chat_template().unwrap().as_deref(), Some("two"));
        write(folder.path(), "chat_template.jinja", b"one");
        assert_eq!(open().chat_template().unwrap().as_deref(), Some("one"));
        write(folder.path(), "chat_template.jinja", &[0xff]);
        assert_refused!(
            open().chat_template().unwrap_err(),
            WeightsError::Json { .. },
            "chat_template.jinja: not UTF-8"
        );
    }
}
