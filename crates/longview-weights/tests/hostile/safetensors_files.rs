//! Single safetensors files.

use longview_weights::{WeightFile, WeightsError};

use crate::common::{self, folder, safetensors, with_header};

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
            format!(
                r#""t{i}": {{"dtype": "U8", "shape": [{size}], "data_offsets": [{start}, {end}]}}"#
            )
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
