//! GGUF files.

use longview_weights::{WeightFile, WeightsError};

use crate::common::{self, open_bytes, small_gguf};

fn refuse(bytes: &[u8]) -> WeightsError {
    open_bytes("bad.gguf", bytes).expect_err("a damaged file must be refused")
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
