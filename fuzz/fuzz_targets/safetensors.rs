//! Any bytes as a folder: the first two are the length of the index, which follows, then come the
//! contents of `1.safetensors`. With a length of 0 there is no index and one `model.safetensors`.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use longview_weights::HuggingFaceFolder;
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (index, weights) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
    let folder = folder();
    if index.is_empty() {
        let _ = fs::remove_file(folder.join(INDEX));
        replace(&folder.join("model.safetensors"), weights);
    } else {
        replace(&folder.join(INDEX), index);
        replace(&folder.join("1.safetensors"), weights);
    }
    let Ok(model) = HuggingFaceFolder::open(folder) else { return };
    for tensor in model.tensors() {
        assert_eq!(tensor.format.bytes_for(tensor.elements()), Some(tensor.data.len()));
        assert!(tensor.data.len() <= weights.len().max(4));
        std::hint::black_box((tensor.to_f32(), tensor.rows()));
        assert!(model.tensor(tensor.name).is_ok());
    }
});

/// One folder for the whole run: with a configuration and a second, sound file of weights.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("the temporary folder takes files");
        let header = br#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let mut sound = (header.len() as u64).to_le_bytes().to_vec();
        sound.extend_from_slice(header);
        sound.extend_from_slice(&[0; 4]);
        replace(&folder.path().join("config.json"), b"{}");
        replace(&folder.path().join("2.safetensors"), &sound);
        folder
    });
    folder.path()
}

/// A new file each time: writing over one that is mapped would change it under the map.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("the temporary folder takes files");
}
