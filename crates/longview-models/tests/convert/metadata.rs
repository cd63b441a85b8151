//! What a converted file says about itself.

use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;

use longview_kernels::{Format, Pool};
use longview_models::{ModelError, Recipe, Scaling, quantize};
use longview_weights::{GgufFile, GgufHeader};
use tempfile::TempDir;

use crate::fixtures::{convert, distance, logits, named, open};

#[test]
fn a_file_names_its_type_its_model_and_its_settings() {
    let folder = TempDir::new().unwrap();
    let (path, report) = convert(&named("gemma2"), Recipe::Q8_0, &folder).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.str("general.architecture").unwrap(), "gemma2");
    assert_eq!(file.str("general.name").unwrap(), "gemma2");
    assert_eq!(file.u32("general.file_type").unwrap(), 7);
    assert_eq!(file.u32("general.quantization_version").unwrap(), 2);
    assert_eq!(file.u32("gemma2.attention.sliding_window").unwrap(), 64);
    assert_eq!(file.f32("gemma2.attn_logit_softcapping").unwrap(), 4.0);
    assert_eq!(file.u32("gemma2.attention.key_length").unwrap(), 16);
    // The embedding makes the logits too and is stored once.
    assert!(file.find_tensor("output.weight").is_none());
    let told = report.notices.join("\n");
    assert!(told.contains("query_pre_attn_scalar"), "{told}");
    assert!(told.contains("tokenizer.json"), "{told}");
}

#[test]
fn hybrids_name_their_states_and_the_layers_that_keep_them() {
    let folder = TempDir::new().unwrap();
    let (path, _) = convert(&named("qwen3_5"), Recipe::Q8_0, &folder).unwrap();
    let file = GgufFile::open(&path).unwrap();
    for (key, value) in [
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 16),
        ("ssm.group_count", 2),
        ("ssm.time_step_rank", 4),
        ("ssm.inner_size", 64),
        ("full_attention_interval", 4),
        ("rope.dimension_count", 8),
    ] {
        assert_eq!(file.u32(&format!("qwen35.{key}")).unwrap(), value, "{key}");
    }
    let sections = file.value("qwen35.rope.dimension_sections").unwrap();
    assert_eq!(sections.array().unwrap().len(), 4);
    // What rules the states is never rounded, and rates are stored as they act.
    let rates = file.tensor("blk.0.ssm_a").unwrap();
    assert!(rates.format == Format::F32 && rates.to_f32().iter().all(|&rate| rate < 0.0));
    assert_eq!(
        file.tensor("blk.0.ssm_beta.weight").unwrap().format,
        Format::F32
    );
    assert_eq!(
        file.tensor("blk.0.attn_gate.weight").unwrap().format,
        Format::Q8_0
    );

    // Layers that follow no interval are listed.
    let (path, _) = convert(&named("qwen3_next_dense"), Recipe::Q6_K, &folder).unwrap();
    let listed = GgufFile::open(&path).unwrap();
    let listed = listed
        .bools("qwen3next.attention.recurrent_layers")
        .unwrap();
    assert_eq!(listed, [true, true, false, false]);
}

#[test]
fn what_other_programs_will_not_read_is_reported() {
    let told = |name: &str| {
        let folder = TempDir::new().unwrap();
        let (_, report) = convert(&named(name), Recipe::F16, &folder).unwrap();
        report.notices.join("\n")
    };
    assert!(told("mistral_window").contains("sliding windows"));
    assert!(told("qwen3_moe_step").contains("norm_topk_prob"));
    assert!(told("qwen3_moe").contains("no experts"));
    let plain = told("llama31");
    assert!(!plain.contains("llama.cpp"), "{plain}");
}

#[test]
fn a_gguf_source_keeps_all_its_metadata_but_the_type() {
    let folder = TempDir::new().unwrap();
    let (full, _) = convert(&named("llama31"), Recipe::F32, &folder).unwrap();
    // A key no program knows, and a chat template, put in by hand.
    let source = GgufFile::open(&full).unwrap();
    let tagged = folder.path().join("tagged.gguf");
    let mut header = GgufHeader::new();
    header.str("somebody.elses.key", "kept");
    header.str("tokenizer.chat_template", "{{ messages }}");
    for (key, value) in source.metadata() {
        header.value(key, value);
    }
    write_with(header, &source, &tagged);

    let (path, _) = convert(&tagged, Recipe::Q8_0, &folder).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.str("somebody.elses.key").unwrap(), "kept");
    assert_eq!(
        file.str("tokenizer.chat_template").unwrap(),
        "{{ messages }}"
    );
    assert_eq!(file.u32("general.file_type").unwrap(), 7);
    let same =
        |key: &str| file.value(key).unwrap().to_string() == source.value(key).unwrap().to_string();
    assert!(same("llama.rope.freq_base") && same("llama.block_count"));
    // Rotary factors and norms are as they were, matrices are not.
    let factors = file.tensor("rope_freqs.weight").unwrap();
    assert_eq!(
        factors.data,
        source.tensor("rope_freqs.weight").unwrap().data
    );
    assert_eq!(
        file.tensor("blk.0.ffn_norm.weight").unwrap().format,
        Format::F32
    );
    assert_eq!(
        file.tensor("blk.0.ffn_up.weight").unwrap().format,
        Format::Q8_0
    );
    assert_eq!(file.tensor_count(), source.tensor_count());
    assert!(distance(&logits(&path, 140), &logits(&tagged, 140)) < 0.1);
}

/// The tensors of `source` under another header.
fn write_with(mut header: GgufHeader, source: &GgufFile, path: &Path) {
    for tensor in source.tensors() {
        header
            .tensor(tensor.name, tensor.format, tensor.shape)
            .unwrap();
    }
    let mut writer = header.create(path).unwrap();
    for tensor in source.tensors() {
        writer.append(tensor.name, tensor.data).unwrap();
    }
    writer.finish().unwrap();
}

/// What a test writes into a header.
type Change = fn(&mut GgufHeader) -> &mut GgufHeader;

#[test]
fn a_factor_without_a_kind_scales_positions_linearly() {
    let folder = TempDir::new().unwrap();
    let (full, _) = convert(&named("llama_linear"), Recipe::F32, &folder).unwrap();
    let source = GgufFile::open(&full).unwrap();
    let (kind, factor) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    assert_eq!(source.str(kind).unwrap(), "linear");
    let scaling = |change: Change| {
        let mut header = GgufHeader::new();
        for (key, value) in source.metadata() {
            if key != kind && key != factor {
                header.value(key, value);
            }
        }
        change(&mut header);
        let path = folder.path().join("changed.gguf");
        write_with(header, &source, &path);
        open(&path).blueprint().ropes[0].scaling.clone()
    };
    let by_four = Scaling::Linear { factor: 4.0 };
    let changes: [(Change, Scaling); 5] = [
        (
            |header| header.f32("llama.rope.scaling.factor", 4.0),
            by_four.clone(),
        ),
        // How files had it before there were other kinds.
        (
            |header| header.f32("llama.rope.scale_linear", 4.0),
            by_four.clone(),
        ),
        (
            |header| {
                let header = header.str("llama.rope.scaling.type", "linear");
                header.f32("llama.rope.scale_linear", 4.0)
            },
            by_four,
        ),
        (
            |header| header.f32("llama.rope.scaling.factor", 1.0),
            Scaling::None,
        ),
        (|header| header, Scaling::None),
    ];
    for (change, expected) in changes {
        assert_eq!(scaling(change), expected);
    }
}

#[test]
fn from_the_folder_and_from_its_gguf_the_same_tensors_come() {
    for name in ["llama31_bias", "gemma3", "mixtral", "phi3_longrope"] {
        let folder = TempDir::new().unwrap();
        let (float, _) = convert(&named(name), Recipe::F32, &folder).unwrap();
        let other = TempDir::new().unwrap();
        let (straight, _) = convert(&named(name), Recipe::Q4_0, &folder).unwrap();
        let (by_way, _) = convert(&float, Recipe::Q4_0, &other).unwrap();
        let (straight, by_way) = (
            GgufFile::open(&straight).unwrap(),
            GgufFile::open(&by_way).unwrap(),
        );
        assert_eq!(straight.tensor_count(), by_way.tensor_count());
        for tensor in straight.tensors() {
            let twin = by_way.tensor(tensor.name).unwrap();
            assert!(
                tensor.data == twin.data && tensor.format == twin.format,
                "{name}: {}",
                tensor.name
            );
        }
    }
}

#[test]
fn progress_rises_to_the_total() {
    let folder = TempDir::new().unwrap();
    let model = open(&named("qwen2"));
    let mut steps = Vec::new();
    let out = folder.path().join("out.gguf");
    quantize(&model, Recipe::Q8_0, &out, &Pool::new(1), &mut |progress| {
        steps.push((progress.done, progress.total));
        Continue(())
    })
    .unwrap();
    assert!(steps.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let (done, total) = *steps.last().unwrap();
    assert_eq!(done, total);
}

#[test]
fn work_that_is_broken_off_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let model = open(&named("qwen2"));
    let out = folder.path().join("out.gguf");
    let mut pieces = 0;
    let stopped = quantize(&model, Recipe::Q8_0, &out, &Pool::new(2), &mut |_| {
        pieces += 1;
        if pieces < 5 { Continue(()) } else { Break(()) }
    });
    assert!(matches!(stopped, Err(ModelError::Stopped)));
    assert_eq!(pieces, 5);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
