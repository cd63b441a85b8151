//! Paper: <https://arxiv.org/abs/2410.01805> (Huang et al., Locret: Enhancing Eviction in Long-Context
//! LLM Inference with Trained Retaining Heads, 2024).
//!
//! A small network a layer, trained beside the frozen model, says of every token how much later ones
//! will look at it, from its own query, key and value before rotary embedding. The number is made once
//! and never changes, so pairs leave while a text of any length is read. `stabilizers` of the last
//! tokens stay until more was read, `local` ones at the end. The published code reads the last tokens
//! after it has decided for good; here they count as part of the budget. Distances are counted among
//! what is held, as the networks were made for (`positions=text` counts them in the text).
//! `tools/locret/train.py` trains the heads of any model that transformers reads; those of the
//! reference model are `models/needle/locret.safetensors`.

use std::fs;
use std::sync::Mutex;

use longview_kernels::activation::Activation;
use longview_kernels::{Activations, Exec, Format, Need, Packed, Pool, matmul};
use longview_kv::KvError;
use longview_kv::keep::{Gather, LayerShape, LayerView, Needs, PlainRows, Question, Score, Scores};
use safetensors::{Dtype, SafeTensors};

use super::{keep, parameter};
use crate::arguments::Arguments;
use crate::error::MethodError;
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `locret(heads, budget, stabilizers, local, sinks, positions, alloc, block, decode, chunks)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "locret",
    exact: false,
    paper: Some("https://arxiv.org/abs/2410.01805"),
    claim: Some("8 to 20 times less memory with little loss"),
    doc: "the pairs that a network trained for it expects later tokens to look at stay",
    parameters: &[
        Parameter {
            name: "heads",
            default: "",
            unit: "",
            doc: "a safetensors file with model.layers.N.self_attn.fc1.weight and fc2.weight",
            domain: Domain::Path,
        },
        parameter::budget("6000"),
        Parameter {
            name: "stabilizers",
            default: "2500",
            unit: "tokens",
            doc: "last tokens that stay while more of the prompt is to come; half of the budget where they \
                  are all of it or more",
            domain: Domain::Whole,
        },
        Parameter {
            name: "local",
            default: "100",
            unit: "tokens",
            doc: "last tokens of the prompt that always stay",
            domain: Domain::Whole,
        },
        parameter::sinks("0"),
        parameter::positions("slots"),
        parameter::alloc("uniform"),
        parameter::block("3072"),
        parameter::decode("never"),
        parameter::CHUNKS,
    ],
    build: Build::Keep(|arguments| {
        let (heads, made_for) = Locret::read(arguments)?;
        let mut plan = keep(arguments, Question::Unseen, heads)?;
        plan.protected.recent = arguments.count("local");
        plan.protected.reading = arguments.count("stabilizers");
        plan.made_for = made_for;
        Ok(plan)
    }),
};

struct Locret {
    layers: Vec<Retaining>,
    /// Rows in the form that products read; kept from one pass to the next.
    rooms: Mutex<[Activations; 2]>,
}

/// The network of one layer.
struct Retaining {
    /// `[middle][(heads + 2 KV heads) · head_dim]`
    first: Packed,
    /// `[KV heads][middle]`
    second: Packed,
}

impl Score for Locret {
    fn needs(&self) -> Needs {
        Needs {
            own: Gather::Yes,
            ..Needs::default()
        }
    }

    fn refuses(&self, layers: &[LayerShape]) -> Option<String> {
        if layers.len() != self.layers.len() {
            return Some(format!(
                "its heads are of {} layers, but the model has {}: they are another model's",
                self.layers.len(),
                layers.len()
            ));
        }
        let mut both = layers.iter().zip(&self.layers).enumerate();
        both.find_map(|(index, (shape, heads))| {
            let inputs = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.v_dim;
            let differs = (heads.first.k(), heads.second.n()) != (inputs, shape.kv_heads);
            differs.then(|| {
                format!(
                    "its heads read {} numbers of a token in layer {index} and score {} KV heads, but the \
                     model has {inputs} and {}: they are another model's",
                    heads.first.k(),
                    heads.second.n(),
                    shape.kv_heads
                )
            })
        })
    }

    fn own(&self, exec: &Exec, rows: &PlainRows<'_>, out: &mut [Vec<f32>]) {
        let Retaining { first, second } = &self.layers[rows.layer];
        let count = out.first().map_or(0, Vec::len);
        if count == 0 {
            return;
        }
        let mut all = Vec::with_capacity(count * first.k());
        for row in 0..count {
            for part in [rows.q, rows.k, rows.v] {
                let len = part.len() / count;
                all.extend_from_slice(&part[row * len..(row + 1) * len]);
            }
        }
        let mut rooms = self.rooms.lock().unwrap_or_else(|error| error.into_inner());
        let [inputs, middles] = &mut *rooms;
        let mut middle = vec![0.0; count * first.n()];
        inputs.set(exec, &all, count, first.k(), Need::F32);
        matmul(exec, inputs, first, &mut middle);
        Activation::Silu.apply(exec.isa, &mut middle);
        let mut scores = vec![0.0; count * second.n()];
        middles.set(exec, &middle, count, first.n(), Need::F32);
        matmul(exec, middles, second, &mut scores);
        for (row, scores) in scores.chunks_exact(second.n()).enumerate() {
            for (out, &score) in out.iter_mut().zip(scores) {
                out[row] = score;
            }
        }
    }

    fn score(&self, layer: &LayerView<'_>, scores: &mut Scores) -> Result<(), KvError> {
        for head in 0..layer.heads() {
            scores.head_mut(head).copy_from_slice(layer.own(head)?);
        }
        Ok(())
    }
}

impl Locret {
    /// The networks of the file, and what tells their model from others where the file says it.
    fn read(arguments: &Arguments) -> Result<(Locret, Option<String>), MethodError> {
        let path = arguments.path("heads");
        let wrong = |problem: String| MethodError::File {
            method: METHOD.name.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| {
            wrong(format!(
                "it is no safetensors file ({error}); convert a PyTorch checkpoint's fc1 and fc2 with \
                 safetensors.torch.save_file"
            ))
        })?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let pool = Pool::new(1);
        let matrix = |layer: usize, name: &str| -> Result<Packed, String> {
            let name = format!("model.layers.{layer}.self_attn.{name}.weight");
            let tensor = tensors
                .tensor(&name)
                .map_err(|_| format!("it lacks {name}"))?;
            let &[n, k] = tensor.shape() else {
                return Err(format!("{name} is no matrix"));
            };
            let format = match tensor.dtype() {
                Dtype::F32 => Format::F32,
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::BF16,
                other => return Err(format!("{name} holds {other:?}, not f32, f16 or bf16")),
            };
            if !finite(format, tensor.data()) {
                return Err(format!("{name} holds what is no number"));
            }
            Packed::pack(format, n, k, tensor.data(), &|row| row, &pool)
                .map_err(|error| format!("{name}: {error}"))
        };
        let count = (0..)
            .take_while(|layer| {
                let name = format!("model.layers.{layer}.self_attn.fc1.weight");
                tensors.tensor(&name).is_ok()
            })
            .count();
        if count == 0 {
            return Err(wrong(
                "it lacks model.layers.0.self_attn.fc1.weight".to_owned(),
            ));
        }
        let layer = |layer: usize| -> Result<Retaining, String> {
            let (first, second) = (matrix(layer, "fc1")?, matrix(layer, "fc2")?);
            match first.n() == second.k() && first.n() > 0 && first.k() > 0 {
                true => Ok(Retaining { first, second }),
                false => Err(format!(
                    "layer {layer}: fc1 gives {} numbers and fc2 takes {}",
                    first.n(),
                    second.k()
                )),
            }
        };
        let layers: Vec<Retaining> = (0..count)
            .map(layer)
            .collect::<Result<_, _>>()
            .map_err(wrong)?;
        let about = header.metadata().as_ref();
        let made_for = about.and_then(|about| about.get("fingerprint")).cloned();
        let rooms = Mutex::new([Activations::new(), Activations::new()]);
        Ok((Locret { layers, rooms }, made_for))
    }
}

fn finite(format: Format, bytes: &[u8]) -> bool {
    // All ones in the exponent stand for infinities and for what is no number.
    match format {
        Format::F16 => all_below(bytes, 0x7c00),
        Format::BF16 => all_below(bytes, 0x7f80),
        _ => {
            let mut numbers = bytes.chunks_exact(4);
            numbers.all(|bytes| {
                f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).is_finite()
            })
        }
    }
}

fn all_below(bytes: &[u8], exponent: u16) -> bool {
    let mut numbers = bytes.chunks_exact(2);
    numbers.all(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]) & exponent != exponent)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use safetensors::tensor::TensorView;

    use super::super::testing::Toy;
    use super::*;
    use crate::choice::Methods;

    /// A file with the networks of one layer, `fc1 [middle][inputs]` and `fc2 [heads][middle]`.
    fn file(fc1: &[&[f32]], fc2: &[&[f32]], fingerprint: &str) -> tempfile::NamedTempFile {
        let bytes = |rows: &[&[f32]]| -> Vec<u8> {
            rows.concat().iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        let (first, second) = (bytes(fc1), bytes(fc2));
        let view = |rows: &[&[f32]], bytes| {
            TensorView::new(Dtype::F32, vec![rows.len(), rows[0].len()], bytes).unwrap()
        };
        let tensors = [
            ("model.layers.0.self_attn.fc1.weight", view(fc1, &first)),
            ("model.layers.0.self_attn.fc2.weight", view(fc2, &second)),
        ];
        let about = HashMap::from([("fingerprint".to_owned(), fingerprint.to_owned())]);
        let file = tempfile::NamedTempFile::new().unwrap();
        safetensors::serialize_to_file(tensors, Some(about), file.path()).unwrap();
        file
    }

    fn text(path: &Path, rest: &str) -> String {
        format!("locret(heads=\"{}\", {rest})", path.display())
    }

    /// One layer, one head of two channels: inputs are q0, q1, k0, k1, v0, v1.
    fn key_reader() -> tempfile::NamedTempFile {
        // The first channel of the key, by SiLU; the other output of fc1 counts half against it.
        let fc1: [&[f32]; 2] = [
            &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
            &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ];
        file(&fc1, &[&[1.0, -0.5]], "toy")
    }

    #[test]
    fn scores_by_hand_and_the_best_stay() {
        let heads = key_reader();
        let mut toy = Toy::new(1, 1, 2);
        toy.keep(&text(heads.path(), "budget=2, local=0, stabilizers=0"), 4);
        toy.read_keys_and_queries(
            &[[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [-1.0, 9.0]],
            &[[0.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
        );
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let wanted = [
            silu(1.0),
            silu(3.0) - 0.5 * silu(4.0),
            silu(2.0),
            silu(-1.0),
        ];
        let mut got = Vec::new();
        toy.look(&mut |layer| got = layer.own(0).unwrap().to_vec());
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-5, "{got} {wanted}");
        }
        toy.compress();
        // 0.73, 0.89, 1.76 and -0.27.
        assert_eq!(toy.positions(0, 0), [1, 2]);
    }

    #[test]
    fn a_score_is_the_token_s_own_whatever_the_chunks_and_stays_with_it() {
        let heads = key_reader();
        let scores = |chunks: &[usize]| {
            let mut toy = Toy::turning(1, 1, 2);
            toy.keep(&text(heads.path(), "budget=500"), 300);
            chunks.iter().for_each(|&count| toy.read(count));
            let mut own = Vec::new();
            toy.look(&mut |layer| own = layer.own(0).unwrap().to_vec());
            own
        };
        assert_eq!(scores(&[300]), scores(&[7, 1, 64, 128, 100]));
    }

    #[test]
    fn stabilizers_stay_while_more_is_to_come_and_local_ones_at_the_end() {
        let heads = key_reader();
        let mut toy = Toy::new(1, 1, 2);
        toy.keep(
            &text(
                heads.path(),
                "budget=6, stabilizers=4, local=1, block=6, positions=text",
            ),
            18,
        );
        // The first tokens score highest, each later one lower.
        let keys: Vec<[f32; 2]> = (0..18).map(|token| [18.0 - token as f32, 0.0]).collect();
        toy.read_keys(&keys[..12]);
        toy.compress();
        assert_eq!(toy.positions(0, 0), [0, 1, 8, 9, 10, 11]);
        toy.read_keys(&keys[12..]);
        toy.compress();
        // Four of the best that are left, the best of the rest, and the newest.
        assert_eq!(toy.positions(0, 0), [0, 1, 8, 9, 10, 17]);
    }

    #[test]
    fn a_document_s_last_decision_is_the_last_although_a_question_follows() {
        let heads = key_reader();
        let keys: Vec<[f32; 2]> = (0..12).map(|token| [18.0 - token as f32, 0.0]).collect();
        let kept = |stabilizers: usize, decide: fn(&mut Toy)| {
            let rest =
                format!("budget=6, stabilizers={stabilizers}, local=1, block=6, positions=text");
            let mut toy = Toy::new(1, 1, 2);
            toy.keep(&text(heads.path(), &rest), 18);
            toy.read_keys(&keys);
            decide(&mut toy);
            toy.positions(0, 0)
        };
        let on_the_way = |toy: &mut Toy| {
            toy.compress();
        };
        assert_eq!(kept(4, Toy::compress_document), [0, 1, 2, 3, 4, 11]);
        // Stabilizers that would be all of the budget leave half of it to what scores best.
        assert_eq!(kept(99, on_the_way), [0, 1, 2, 9, 10, 11]);
    }

    #[test]
    fn heads_of_other_models_and_files_that_are_none_are_refused() {
        let set = |path: &Path| {
            let mut methods = Methods::new();
            let set = methods.set(Stage::Keep, &text(path, "budget=20"));
            set.map(|()| methods).map_err(|error| error.to_string())
        };
        let heads = key_reader();
        let methods = set(heads.path()).unwrap();
        let refusal = |toy: Toy| toy.refusal(methods.keep().unwrap());
        assert!(refusal(Toy::new(2, 1, 2)).contains("of 1 layers, but the model has 2"));
        assert!(refusal(Toy::new(1, 1, 4)).contains("read 6 numbers of a token in layer 0"));
        let other = file(&[&[0.0; 6]], &[&[1.0]], "other");
        let methods = set(other.path()).unwrap();
        let message = Toy::new(1, 1, 2).refusal(methods.keep().unwrap());
        assert!(message.contains("fingerprint other"), "{message}");

        let broken = file(&[&[f32::NAN; 6]], &[&[1.0]], "toy");
        assert!(
            set(broken.path())
                .unwrap_err()
                .contains("fc1.weight holds what is no number")
        );
        let apart = file(&[&[0.0; 6]], &[&[1.0, 2.0]], "toy");
        assert!(
            set(apart.path())
                .unwrap_err()
                .contains("fc1 gives 1 numbers and fc2 takes 2")
        );
        let nothing = tempfile::NamedTempFile::new().unwrap();
        fs::write(nothing.path(), "nothing like it").unwrap();
        assert!(
            set(nothing.path())
                .unwrap_err()
                .contains("no safetensors file")
        );
    }
}
