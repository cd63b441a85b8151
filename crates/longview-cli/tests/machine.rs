//! The instruction set that is asked for, and what a bench says of time and memory.

mod common;

use common::{Folder, STAND_IN, command, longview, ran};

#[test]
fn an_instruction_set_is_the_one_that_is_named() {
    let folder = Folder::new();
    let model = folder.path("model.gguf");
    longview(&["quantize", STAND_IN, &model, "--type", "q4_k_m"]).done();
    let under = |isa: &str, arguments: &[&str]| {
        let mut command = command(arguments);
        ran(command.env("LONGVIEW_ISA", isa).output().unwrap())
    };
    let best = longview(&["doctor", "--json"]).done().json()["instruction_set"].clone();
    let mut used = 0;
    for isa in longview::Isa::available() {
        let isa = isa.to_string();
        let doctor = under(&isa, &["doctor", "--json"]).done().json();
        assert_eq!(doctor["instruction_set"], isa.as_str());
        // More rows than registers have sums for, so that tiles are used where there are any.
        let prompt = "one two three four five six seven eight ".repeat(12);
        let run = [
            "run", "--json", "--prompt", &prompt, "-n", "3", "--model", &model,
        ];
        let json = under(&isa, &run).done().json();
        assert!(json["prompt_tokens"].as_u64() >= Some(48), "{isa}: {json}");
        assert_eq!(json["generated_tokens"], 3, "{isa}: {json}");
        used += 1;
    }
    assert!(used >= 1 && best.is_string());
    // An empty name is no name.
    let doctor = under("", &["doctor", "--json"]).done().json();
    assert_eq!(doctor["instruction_set"], best);
    under("sse9", &["doctor"]).refused(2, &["unknown instruction set \"sse9\"", "scalar"]);
    let missing = longview::Isa::ALL
        .into_iter()
        .find(|isa| !isa.is_available());
    if let Some(missing) = missing {
        let words = ["does not offer", best.as_str().unwrap()];
        under(&missing.to_string(), &["doctor"]).refused(2, &words);
    }
}

#[test]
fn a_profile_accounts_for_the_whole_pass() {
    let arguments = [
        "bench",
        "--prompt",
        "64",
        "--generate",
        "4",
        "--rounds",
        "1",
        "--profile",
        "--json",
    ];
    let json = longview(&arguments).done().json();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{json}");
    for run in runs {
        let profile = &run["profile"];
        let layers = profile["layers"].as_array().unwrap();
        let parts = |layer: &serde_json::Value| -> f64 {
            let seconds = layer["seconds"].as_object().unwrap().values();
            seconds.map(|seconds| seconds.as_f64().unwrap()).sum()
        };
        let (sum, all) = (
            layers.iter().map(parts).sum::<f64>(),
            profile["seconds"].as_f64().unwrap(),
        );
        assert!((sum / all - 1.0).abs() < 0.02, "{sum} of {all}: {run}");
        let attention = layers
            .iter()
            .find(|layer| layer["kind"] == "full attention");
        for part in ["qkv", "attention", "gate/up", "down"] {
            assert!(
                attention.unwrap()["seconds"][part].as_f64() > Some(0.0),
                "{run}"
            );
            assert!(
                profile["share_of_limit"][part].as_f64() > Some(0.0),
                "{run}"
            );
        }
        // Of a run of its own, and in the same unit.
        let took = run["tokens"].as_f64().unwrap() / run["tokens_per_second"].as_f64().unwrap();
        assert!((0.1..10.0).contains(&(all / took)), "{all} {took}: {run}");
    }
}

#[test]
fn bench_measures_what_is_kept() {
    let bench = |more: &[&str]| {
        let all = [
            &["bench", "--json", "--model", STAND_IN, "--rounds", "1"][..],
            &["--prompt", "0", "--generate", "4"],
            more,
        ];
        longview(&all.concat()).done().json()
    };
    // Several texts at once go on from the same pairs; each reads its own.
    let keep = ["--keep", "knorm(budget=64)"];
    let answer = bench(&[&keep[..], &["--depth", "0,600", "--streams", "1,3"]].concat());
    // Four layers of two KV heads; nothing leaves an empty context.
    let kept = answer["kept"].as_array().unwrap();
    assert_eq!(kept.len(), 1, "{answer}");
    assert_eq!(
        (&kept[0]["depth"], &kept[0]["pairs_kept"]),
        (&600.into(), &(8 * 64).into())
    );
    assert_eq!(kept[0]["pairs_seen"], 8 * 600);
    let told = answer["notices"].to_string();
    assert!(
        told.contains("when the prompt of 600 tokens is read"),
        "{told}"
    );
    let runs = answer["runs"].as_array().unwrap();
    let streams = |run: &serde_json::Value| (run["streams"].as_u64(), run["tokens"].as_u64());
    let seen: Vec<_> = runs.iter().map(streams).collect();
    let of = |count| (Some(count), Some(4 * count));
    assert_eq!(seen, [of(1), of(3), of(1), of(3)], "{answer}");
    // Pages that a read method picks, and blocks that a prefill attended to, for each of them.
    let methods = ["--read", "quest(budget=10%)", "--prefill", "a-shape"];
    let json = bench(&[&methods[..], &["--depth", "600", "--streams", "2"]].concat());
    let of_two = &json["runs"][0];
    assert_eq!(
        (&of_two["streams"], &of_two["tokens"]),
        (&2.into(), &8.into()),
        "{json}"
    );
}
