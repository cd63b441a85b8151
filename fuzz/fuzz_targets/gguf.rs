//! Any bytes as a GGUF file: refused or read, never a panic, and no tensor outside the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longview_weights::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_bytes("input", bytes.to_vec()) else { return };
    for tensor in file.tensors() {
        assert_eq!(tensor.format.bytes_for(tensor.elements()), Some(tensor.data.len()));
        assert!(tensor.data.len() <= bytes.len());
        std::hint::black_box(tensor.to_f32());
        assert!(file.tensor(tensor.name).is_ok());
    }
    for (key, value) in file.metadata() {
        std::hint::black_box(value.to_string());
        if let Some(array) = value.array() {
            assert_eq!(array.iter().count(), array.len());
        }
        let _ = (file.u32(key), file.f32(key), file.str(key), file.bool(key));
        let _ = (file.strings(key), file.u32s(key), file.i32s(key), file.f32s(key));
        let _ = file.bools(key);
    }
});
