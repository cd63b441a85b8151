//! GGUF files: what is written is read, shards make one model, and the vocabulary opens at once.

mod common;

use common::{open_bytes, pattern, small_gguf};
use longview_kernels::Format;
use longview_weights::{GgufFile, GgufHeader, WeightFile, WeightsError};

fn gguf(model: WeightFile) -> GgufFile {
    match model {
        WeightFile::Gguf(file) => file,
        other => panic!("{} is no GGUF file", other.name()),
    }
}

#[test]
fn what_is_written_is_read() {
    let file = gguf(open_bytes("a.gguf", &small_gguf()).unwrap());
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.u32("llama.block_count").unwrap(), 2);
    assert_eq!(file.f32("llama.rope.freq_base").unwrap(), 1e4);
    assert!(file.bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(
        file.strings("tokenizer.ggml.tokens").unwrap(),
        ["<s>", "a", "", "ä"]
    );
    let scores = [0.0, -1.5, 2.0, f32::INFINITY];
    assert_eq!(file.f32s("tokenizer.ggml.scores").unwrap(), scores);
    assert_eq!(
        file.i32s("tokenizer.ggml.token_type").unwrap(),
        [3, 1, 1, -1]
    );
    assert_eq!(file.bools("llama.windowed").unwrap(), [true, false]);
    assert_eq!(file.u32s("llama.attention.head_count_kv").unwrap(), [4, 2]);
    assert_eq!(file.find_u32("llama.absent").unwrap(), None);
    assert_eq!(file.metadata().count(), 9);

    let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(
        names,
        [
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "output_norm.weight"
        ]
    );
    let q = file.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!(
        (q.format, q.shape, q.rows(), q.row_len()),
        (Format::Q8_0, &[3, 64][..], 3, 64)
    );
    assert_eq!(q.data, pattern(204));
    assert_eq!(q.row(1), &pattern(204)[68..136]);
    assert_eq!(file.tensor("token_embd.weight").unwrap().shape, [4, 8]);
    assert_eq!(file.tensor("output_norm.weight").unwrap().rows(), 1);
}

/// Alignment is part of the format: other readers map tensors and read them in place.
#[test]
fn tensor_data_is_aligned_in_the_file() {
    let bytes = small_gguf();
    let model = open_bytes("a.gguf", &bytes).unwrap();
    for tensor in model.tensors() {
        let data = tensor.data;
        let starts = bytes
            .windows(data.len())
            .enumerate()
            .filter(|(_, window)| *window == data);
        assert!(
            starts.into_iter().any(|(start, _)| start % 32 == 0),
            "{}",
            tensor.name
        );
    }
}

#[test]
fn version_two_has_the_same_layout() {
    let mut bytes = small_gguf();
    bytes[4] = 2;
    let file = gguf(open_bytes("a.gguf", &bytes).unwrap());
    assert_eq!(file.u32("llama.block_count").unwrap(), 2);
    assert_eq!(file.tensor_count(), 3);
}

#[test]
fn a_value_of_another_type_is_named() {
    let file = gguf(open_bytes("a.gguf", &small_gguf()).unwrap());
    let message = |error: WeightsError| error.to_string().split_once(": ").unwrap().1.to_owned();
    assert_eq!(
        message(file.u32("general.architecture").unwrap_err()),
        "metadata \"general.architecture\" is \"llama\" (string), where an integer from 0 to 2^32 - 1 is expected"
    );
    assert_eq!(
        message(file.u32s("tokenizer.ggml.token_type").unwrap_err()),
        "metadata \"tokenizer.ggml.token_type[3]\" is -1 (i32), where a list of integers from 0 to 2^32 - 1 is expected"
    );
    assert_eq!(
        message(file.u32("llama.embedding_length").unwrap_err()),
        "the metadata has no \"llama.embedding_length\", which this model needs; convert the model again"
    );
    assert_eq!(
        message(file.tensor("blk.1.attn_q.weight").unwrap_err()),
        "no tensor \"blk.1.attn_q.weight\"; there is \"blk.0.attn_q.weight\""
    );
}

#[test]
fn embedded_bytes_open_without_a_file() {
    let bytes: &'static [u8] = small_gguf().leak();
    let file = GgufFile::from_static("embedded", bytes).unwrap();
    assert_eq!(file.name(), "embedded");
    assert_eq!(file.file_bytes(), bytes.len() as u64);
    let file = WeightFile::Gguf(file);
    file.read_ahead("output_norm.weight", 0..usize::MAX);
    file.release("output_norm.weight", 0..usize::MAX);
    assert_eq!(file.tensor("output_norm.weight").unwrap().data, pattern(20));
}

/// Pages given back are read again from the file; asking for what is not there does nothing.
#[test]
fn a_released_tensor_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let data = pattern(1 << 16);
    let mut header = GgufHeader::new();
    header.tensor("w", Format::F32, &[64, 256]).unwrap();
    let mut writer = header.create(&path).unwrap();
    writer.append("w", &data).unwrap();
    writer.finish().unwrap();
    let file = WeightFile::open(&path).unwrap();
    assert_eq!(file.tensor("w").unwrap().data, data);
    file.release("w", 0..usize::MAX);
    file.read_ahead("no such tensor", 0..1);
    file.read_ahead("w", 0..usize::MAX);
    file.read_ahead_first(1);
    file.read_ahead_first(usize::MAX);
    file.read_ahead("w", usize::MAX..usize::MAX);
    assert_eq!(file.tensor("w").unwrap().data, data);
}

#[test]
fn metadata_copies_from_file_to_file() {
    let source = gguf(open_bytes("a.gguf", &small_gguf()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.gguf");
    let mut header = GgufHeader::new();
    header.u32("llama.block_count", 7);
    for (key, value) in source.metadata() {
        header.value(key, value);
    }
    let expected = header.file_bytes();
    header.create(&path).unwrap().finish().unwrap();
    let copy = GgufFile::open(&path).unwrap();
    assert_eq!(copy.file_bytes(), expected);
    assert_eq!(
        copy.u32("llama.block_count").unwrap(),
        7,
        "what was set first stays"
    );
    for (key, value) in source
        .metadata()
        .filter(|(key, _)| *key != "llama.block_count")
    {
        assert_eq!(copy.value(key), Some(value), "{key}");
    }
}

/// Three parts, the first with the metadata, as gguf-split makes them.
fn write_parts(folder: &std::path::Path, tensors_announced: u32) {
    for part in 0..3u32 {
        // The writer keeps split keys to itself, so they are spelled out under names of the same
        // length and renamed in the bytes.
        let mut header = GgufHeader::new();
        header.u32("xplit.no", part).u32("xplit.count", 3);
        header.u32("xplit.tensors.count", tensors_announced);
        if part == 0 {
            header.str("general.architecture", "llama");
        }
        let name = format!("w{part}");
        header.tensor(&name, Format::F32, &[8]).unwrap();
        let path = folder.join(format!("m-{:05}-of-00003.gguf", part + 1));
        let mut writer = header.create(&path).unwrap();
        writer.append(&name, &pattern(32)).unwrap();
        writer.finish().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() - 6 {
            if &bytes[at..at + 6] == b"xplit." {
                bytes[at] = b's';
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn a_split_model_opens_by_any_part_and_by_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), 3);
    for path in ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", ""] {
        let file = gguf(WeightFile::open(folder.path().join(path)).unwrap());
        assert_eq!(file.str("general.architecture").unwrap(), "llama", "{path}");
        let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["w0", "w1", "w2"], "{path}");
    }
}

#[cfg(unix)]
#[test]
fn a_split_model_opens_below_a_folder_whose_name_is_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder
        .path()
        .join(std::ffi::OsStr::from_bytes(b"mod\xe8les"));
    std::fs::create_dir(&folder).unwrap();
    write_parts(&folder, 3);
    for path in ["m-00002-of-00003.gguf", ""] {
        let file = gguf(WeightFile::open(folder.join(path)).unwrap());
        assert_eq!(file.tensor_count(), 3, "{path}");
    }
}

#[test]
fn a_split_model_with_a_part_missing_or_foreign_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), 4);
    let error = WeightFile::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("the parts hold 3 tensors where 4 are announced"),
        "{error}"
    );

    write_parts(folder.path(), 3);
    let second = folder.path().join("m-00002-of-00003.gguf");
    std::fs::copy(folder.path().join("m-00003-of-00003.gguf"), &second).unwrap();
    let error = WeightFile::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("part 2 of 3 of the model: it says it is another part"),
        "{error}"
    );

    std::fs::remove_file(&second).unwrap();
    let error = WeightFile::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("m-00002-of-00003.gguf: part 2 of 3"),
        "{error}"
    );

    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(folder.path().join("m-00001-of-00003.gguf"), &renamed).unwrap();
    let error = WeightFile::open(&renamed).unwrap_err().to_string();
    assert!(
        error.contains("its name must end in -00001-of-00003.gguf"),
        "{error}"
    );
}

#[test]
fn a_large_vocabulary_opens_in_milliseconds() {
    let tokens: Vec<String> = (0..128_000).map(|i| format!("token {i}")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    let mut header = GgufHeader::new();
    header.strings("tokenizer.ggml.tokens", &tokens);
    header.create(&path).unwrap().finish().unwrap();
    let start = std::time::Instant::now();
    let file = GgufFile::open(&path).unwrap();
    let opened = start.elapsed();
    assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap(), tokens);
    eprintln!("opened in {opened:?}");
    // Far above what it takes (about 1 ms), far below what an allocation for each token would.
    assert!(opened.as_millis() < 100, "{opened:?}");
}

mod writing {
    use super::*;

    #[test]
    fn mistakes_are_refused_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut header = GgufHeader::new();
        assert!(header.tensor("w", Format::Q4_K, &[2, 128]).is_err());
        assert!(header.tensor("w", Format::F32, &[]).is_err());
        assert!(header.tensor("w", Format::F32, &[0, 8]).is_err());
        assert!(header.tensor("w", Format::F32, &[usize::MAX, 8]).is_err());
        header.tensor("w", Format::F32, &[8]).unwrap();
        assert!(
            header.tensor("w", Format::F32, &[8]).is_err(),
            "the name is taken"
        );
        let mut writer = header.create(&path).unwrap();
        assert!(writer.append("v", &[0; 32]).is_err(), "not declared");
        assert!(writer.append("w", &[0; 33]).is_err(), "too long");
        writer.append("w", &[0; 16]).unwrap();
        let error = writer.finish().unwrap_err().to_string();
        assert!(
            error.contains("\"w\" was declared and is not complete"),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_file_appears_only_when_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, "the old file").unwrap();
        let writer = GgufHeader::new().create(&path).unwrap();
        drop(writer);
        assert_eq!(std::fs::read(&path).unwrap(), b"the old file");
        GgufHeader::new().create(&path).unwrap().finish().unwrap();
        assert!(GgufFile::open(&path).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/m.gguf");
        let error = GgufHeader::new().create(&path).unwrap_err().to_string();
        assert!(error.contains("create the folder"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_permission_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o555)).unwrap();
        let path = folder.path().join("m.gguf");
        // Permissions do not stop root: this thread asks for files as nobody.
        let asked = std::thread::spawn(move || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            GgufHeader::new().create(path).map(drop)
        });
        let error = asked.join().unwrap().unwrap_err();
        assert!(
            error
                .to_string()
                .contains("choose a folder you may write to"),
            "{error}"
        );
        assert!(error.is_request_error());
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_not_replaced_by_a_file() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        symlink("/dev/full", &path).unwrap();
        let error = GgufHeader::new().create(&path).unwrap_err().to_string();
        assert!(
            error.contains("not a file") && error.contains("name a file"),
            "{error}"
        );
        let kind = std::fs::metadata(&path).unwrap().file_type();
        assert!(kind.is_char_device(), "it is still the device");
        let error = GgufHeader::new()
            .create(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a file"), "{error}");
    }
}
