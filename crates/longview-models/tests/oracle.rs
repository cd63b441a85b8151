//! The fast forward pass against a slow one that can be read aloud: llama in f64, straight from a
//! GGUF file's tensors, whole attention rows, no blocks, no panels, no int8.

use std::path::Path;

use longview_kernels::{Exec, Isa, Numerics, Pool};
use longview_kv::{KvType, Ledger, Segment, Wanted};
use longview_models::{ModelFile, Recipe, Workspace, quantize};
use longview_weights::{GgufFile, WeightFile};

/// Sizes of the reference model.
const LAYERS: usize = 4;
const HIDDEN: usize = 384;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const THETA: f64 = 1e10;
const EPSILON: f64 = 1e-5;

/// `[rows][k]` of a tensor, dequantised.
struct Matrix {
    values: Vec<f32>,
    k: usize,
}

impl Matrix {
    fn read(file: &GgufFile, name: &str) -> Matrix {
        let tensor = file.tensor(&format!("{name}.weight")).unwrap();
        Matrix {
            values: tensor.to_f32(),
            k: tensor.row_len(),
        }
    }

    fn row(&self, row: usize) -> impl Iterator<Item = f64> + '_ {
        self.values[row * self.k..(row + 1) * self.k]
            .iter()
            .map(|&x| f64::from(x))
    }

    /// `W x`
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.values.len() / self.k;
        (0..rows)
            .map(|row| self.row(row).zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }
}

/// Logits of every position of `ids`.
fn oracle(file: &GgufFile, ids: &[u32]) -> Vec<Vec<f64>> {
    let embedding = Matrix::read(file, "token_embd");
    let mut hidden: Vec<Vec<f64>> = ids
        .iter()
        .map(|&id| embedding.row(id as usize).collect())
        .collect();
    for layer in 0..LAYERS {
        let part = |name: &str| Matrix::read(file, &format!("blk.{layer}.{name}"));
        let [wq, wk, wv, wo] = ["attn_q", "attn_k", "attn_v", "attn_output"].map(part);
        let [gate, up, down] = ["ffn_gate", "ffn_up", "ffn_down"].map(part);
        let [attention_norm, ffn_norm] = ["attn_norm", "ffn_norm"].map(part);

        let normed: Vec<Vec<f64>> = hidden.iter().map(|x| norm(x, &attention_norm)).collect();
        let turned = |w: &Matrix| -> Vec<Vec<f64>> {
            normed
                .iter()
                .enumerate()
                .map(|(at, x)| rotate(w.times(x), at))
                .collect()
        };
        let (q, k) = (turned(&wq), turned(&wk));
        let v: Vec<Vec<f64>> = normed.iter().map(|x| wv.times(x)).collect();
        for at in 0..ids.len() {
            let heads: Vec<f64> = (0..HEADS)
                .flat_map(|head| attend(head, &q[at], &k[..=at], &v[..=at]))
                .collect();
            add(&mut hidden[at], &wo.times(&heads));
            let x = norm(&hidden[at], &ffn_norm);
            let inner: Vec<f64> = gate
                .times(&x)
                .iter()
                .zip(up.times(&x))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            add(&mut hidden[at], &down.times(&inner));
        }
    }
    let (output_norm, output) = (
        Matrix::read(file, "output_norm"),
        Matrix::read(file, "output"),
    );
    hidden
        .iter()
        .map(|x| output.times(&norm(x, &output_norm)))
        .collect()
}

fn norm(x: &[f64], weight: &Matrix) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(weight.row(0))
        .map(|(x, w)| x / (mean + EPSILON).sqrt() * w)
        .collect()
}

/// GGUF's order of llama rows: channel 2i turns with channel 2i + 1.
fn rotate(mut x: Vec<f64>, position: usize) -> Vec<f64> {
    for head in x.chunks_exact_mut(DIM) {
        for (i, pair) in head.chunks_exact_mut(2).enumerate() {
            let angle = position as f64 * THETA.powf(-2.0 * i as f64 / DIM as f64);
            let (sin, cos) = angle.sin_cos();
            let (a, b) = (pair[0], pair[1]);
            (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }
    x
}

/// What one head of one row gathers from all keys and values it sees.
fn attend(head: usize, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let q = &q[head * DIM..(head + 1) * DIM];
    let shared = head / (HEADS / KV_HEADS) * DIM..(head / (HEADS / KV_HEADS) + 1) * DIM;
    let scores: Vec<f64> = keys
        .iter()
        .map(|k| {
            q.iter()
                .zip(&k[shared.clone()])
                .map(|(q, k)| q * k)
                .sum::<f64>()
        })
        .map(|dot| (dot / (DIM as f64).sqrt()).exp())
        .collect();
    let total: f64 = scores.iter().sum();
    let mut out = vec![0.0; DIM];
    for (score, v) in scores.iter().zip(values) {
        out.iter_mut()
            .zip(&v[shared.clone()])
            .for_each(|(o, v)| *o += score / total * v);
    }
    out
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// The largest difference of any logit, over the largest logit, at the worst position.
fn error(fast: &[f32], slow: &[Vec<f64>]) -> f64 {
    let vocab = slow[0].len();
    assert_eq!(fast.len(), slow.len() * vocab);
    let of_row = |(fast, slow): (&[f32], &Vec<f64>)| {
        let largest = slow.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let worst = fast
            .iter()
            .zip(slow)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .fold(
                0.0,
                |most: f64, x| if x > most || x.is_nan() { x } else { most },
            );
        worst / largest
    };
    fast.chunks(vocab).zip(slow).map(of_row).fold(0.0, f64::max)
}

/// The default class may differ by what int8 activations cost on random tokens; the exact one may
/// not differ by more than f32 rounding.
#[test]
fn every_instruction_set_and_recipe_follows_the_slow_pass() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/needle");
    let source = ModelFile::new(WeightFile::open(reference.join("needle-f16.gguf")).unwrap());
    let source = source.unwrap();
    let ids: Vec<u32> = (0..12).map(|i| (i * 397 + 11) % 4096).collect();
    let folder = tempfile::tempdir().unwrap();
    for recipe in ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] {
        let path = folder.path().join(format!("{recipe}.gguf"));
        let parsed: Recipe = recipe.parse().unwrap();
        let go =
            &mut |_: longview_models::convert::Progress<'_>| std::ops::ControlFlow::Continue(());
        quantize(&source, parsed, &path, &Pool::new(2), go).unwrap();
        let slow = oracle(&GgufFile::open(&path).unwrap(), &ids);
        assert_eq!((slow.len(), embedding_width(&path)), (ids.len(), HIDDEN));
        for isa in Isa::available() {
            for (numerics, kv_type, bound) in [
                (Numerics::F32, KvType::F32, 1e-4),
                (Numerics::Default, KvType::F16, 0.2),
            ] {
                let exec = Exec::new(2, isa, numerics);
                let file = ModelFile::new(WeightFile::open(&path).unwrap()).unwrap();
                let ledger = Ledger::unlimited();
                let model = file.load(&exec, kv_type, &ledger, &mut |_, _| {}).unwrap();
                let mut context = model.new_context(ids.len(), &ledger).unwrap();
                let mut workspace = Workspace::new();
                let segment = Segment {
                    context: &mut context,
                    tokens: &ids,
                    wanted: Wanted::All,
                };
                model.forward(&exec, vec![segment], &mut workspace).unwrap();
                let error = error(workspace.logits(), &slow);
                assert!(error < bound, "{recipe}, {isa}, {numerics}: {error:e}");
            }
        }
    }
}

fn embedding_width(path: &Path) -> usize {
    GgufFile::open(path)
        .unwrap()
        .tensor("token_embd.weight")
        .unwrap()
        .row_len()
}
