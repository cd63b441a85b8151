//! Paths that lead to no model, and the small files beside one.

use std::fs;

use longview_weights::{WeightFile, WeightsError};

use crate::common::{folder, open_bytes, safetensors, small_gguf, write};

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
        open().tokenizer_json().unwrap_err(),
        WeightsError::MissingFile { .. },
        "tokenizer.json: missing; tokenizer.model alone"
    );
    let path = folder.path().join("tokenizer.json");
    write(folder.path(), "tokenizer.json", b"{}");
    assert_eq!(open().tokenizer_json().unwrap(), b"{}");
    // A file without blocks behind it: its size alone is believed, and nothing is allocated for it.
    let sparse = std::fs::File::create(path).unwrap();
    sparse.set_len(200 << 30).unwrap();
    assert_refused!(
        open().tokenizer_json().unwrap_err(),
        WeightsError::TooLarge { .. },
        "tokenizer.json"
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
