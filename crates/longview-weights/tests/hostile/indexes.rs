//! Models in several safetensors files.

use longview_weights::{WeightFile, WeightsError};

use crate::common::{self, folder, safetensors};

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
