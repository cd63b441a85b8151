//! Tasks as they are made, and evaluations as they are run.

use longview_engine::{Control, Engine, EngineOptions, ModelSource};
use longview_eval::{
    EvalError, Evaluation, Making, Material, Plan, Prompter, Record, Row, Setup, Share, Sight,
    Subject, Task, Turn, Wording,
};

fn making(material: &Material, depth: Option<f64>) -> Making<'_> {
    Making {
        wording: &material.wording,
        haystack: &material.haystack,
        questions: &material.questions,
        depth,
        turn: Turn::default(),
    }
}

fn plan(subjects: &[&str], setups: &str, length: usize) -> Plan {
    Plan {
        subjects: subjects
            .iter()
            .flat_map(|name| Subject::find(name).unwrap())
            .collect(),
        lengths: vec![length],
        setups: Setup::parse_list(setups).unwrap(),
        floors: false,
        samples: 2,
        depths: vec![0.0, 1.0],
        question: Sight::Unseen,
        generate: 24,
        seed: 7,
        share: Share::ALL,
    }
}

/// The reference model's tokenizer and keys and values, of small random matrices: what it answers is nonsense, and
/// the same nonsense only where the same was computed.
fn stand_in() -> Engine {
    stand_in_by(EngineOptions::default().chunk_tokens)
}

/// The same, reading prompts `chunk_tokens` tokens at a time.
fn stand_in_by(chunk_tokens: usize) -> Engine {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/stand-in");
    Engine::open(&EngineOptions {
        model: ModelSource::Path(model.into()),
        chunk_tokens,
        // Threads that wait for one another take the processor from other tests.
        threads: Some(1),
        ..EngineOptions::default()
    })
    .unwrap()
}

/// What `plan` gives under `engine`; nothing of it may be refused.
fn measured(engine: &Engine, plan: &Plan) -> Vec<Row> {
    let material = Material::shipped(Wording::needle());
    let evaluation = Evaluation::new(engine, &material, plan).unwrap();
    let mut record = Record::in_memory();
    let refused = evaluation
        .run(&mut record, &mut |_| Control::Continue)
        .unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    evaluation.rows(&record)
}

#[test]
fn a_question_that_is_seen_is_a_prompt_of_its_own_but_in_a_conversation() {
    let engine = Engine::open(&EngineOptions::default()).unwrap();
    let material = Material::shipped(Wording::needle());
    let method = "snapkv(budget=5%, kernel=21)";
    let scores = |task: &str| {
        let mut plan = plan(&[task], method, 2500);
        plan.question = Sight::Seen;
        let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
        let mut record = Record::in_memory();
        let refused = evaluation
            .run(&mut record, &mut |_| Control::Continue)
            .unwrap();
        assert!(refused.is_empty());
        let rows = evaluation.rows(&record);
        let of = |dense: bool| rows.iter().find(|row| (row.setup == "dense") == dense);
        (of(true).unwrap().score, of(false).unwrap().score)
    };
    // Four keys, each asked for when the document is there whole; eight, of which one was known.
    let (dense, four) = scores("niah-multiquery");
    assert!(dense >= 75.0 && four >= dense - 12.5, "{dense} {four}");
    let (dense, eight) = scores("reuse");
    assert!(dense >= 75.0 && eight < 50.0, "{dense} {eight}");
}

#[test]
fn every_task_fills_its_length_and_holds_what_it_asks_for() {
    let engine = Engine::open(&EngineOptions::default()).unwrap();
    let prompter = Prompter::new(engine.text()).unwrap();
    for wording in [Wording::needle(), Wording::general()] {
        let material = Material::shipped(wording);
        let making = making(&material, None);
        for task in Task::all() {
            for length in [3000, 5000] {
                let (sample, prompt) = prompter.fitted(task, &making, 1, length).unwrap();
                let answer = sample
                    .questions
                    .iter()
                    .map(|asked| asked.max_tokens)
                    .max()
                    .unwrap();
                let tokens = prompt.tokens() + answer;
                // A passage is the largest unit there is.
                let unit = if task.name.starts_with("qa") { 600 } else { 60 };
                assert!(
                    tokens <= length && tokens + unit > length,
                    "{}: {tokens} of {length}",
                    task.name
                );
                for question in &sample.questions {
                    for answer in &question.answers {
                        let times = sample.document.matches(answer.as_str()).count();
                        // One of several spellings is enough where any is right.
                        let any = question.answers.iter().any(|a| sample.document.contains(a));
                        assert!(times > 0 || any, "{}: no {answer}", task.name);
                    }
                }
                let again = prompter.fitted(task, &making, 1, length).unwrap();
                assert_eq!(again, (sample, prompt), "{}", task.name);
            }
        }
    }
    let other = |seed| {
        let material = Material::shipped(Wording::needle());
        Task::find("vt")
            .unwrap()
            .sample(&making(&material, None), seed, 50)
    };
    assert_ne!(other(1), other(2));
}

#[test]
fn the_fact_stands_at_the_depth_that_was_said() {
    let material = Material::shipped(Wording::needle());
    let heatmap = Task::find("heatmap").unwrap();
    for depth in [0.0, 0.25, 0.5, 1.0] {
        let sample = heatmap.sample(&making(&material, Some(depth)), 3, 3000);
        let at = sample.document.find("The special magic number").unwrap();
        let rest = sample.document[at..]
            .find(". ")
            .map_or(sample.document.len(), |end| at + end);
        let (before, after) = (at as f64, (sample.document.len() - rest) as f64);
        assert!((before / (before + after) - depth).abs() < 0.02, "{depth}");
    }
    // Four values of one thing are four facts; all of eight questions have facts of their own.
    let values = Task::find("niah_multivalue")
        .unwrap()
        .sample(&making(&material, None), 3, 2000);
    assert_eq!(
        values.document.matches("The special magic number").count(),
        4
    );
    let reuse = Task::find("reuse")
        .unwrap()
        .sample(&making(&material, None), 3, 2000);
    assert_eq!(
        reuse.document.matches("The special magic number").count(),
        16
    );
    assert_eq!(reuse.questions.len(), 8);
    let common = Task::find("cwe")
        .unwrap()
        .sample(&making(&material, None), 3, 40);
    for word in &common.questions[0].answers {
        assert_eq!(
            common.document.split(' ').filter(|w| w == word).count(),
            30,
            "{word}"
        );
    }
    let frequent = Task::find("fwe")
        .unwrap()
        .sample(&making(&material, None), 3, 1000);
    let counts: Vec<usize> = frequent.questions[0]
        .answers
        .iter()
        .map(|word| frequent.document.split(' ').filter(|w| w == word).count())
        .collect();
    // Shares of ranks 2 to 4: 1/n² ÷ (π²/6).
    assert_eq!(counts, [152, 68, 38]);
}

#[test]
fn two_runs_agree_and_a_stopped_one_goes_on() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    let subjects = ["niah-single-2", "reuse", "heatmap", "continuation", "drift"];
    let plan = Plan {
        samples: 1,
        ..plan(&subjects, "q4,f16", 500)
    };
    let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
    let mut whole = Record::in_memory();
    let mut seen = Vec::new();
    let go_on = &mut |progress: &longview_eval::RunProgress| {
        seen.push((progress.done, progress.total));
        Control::Continue
    };
    evaluation.run(&mut whole, go_on).unwrap();
    // Six cases of a sample each, under the dense path and two setups.
    assert_eq!((whole.outcomes().len(), seen.last()), (18, Some(&(18, 18))));

    let folder = tempfile::tempdir().unwrap();
    let open = || Record::open(folder.path(), Share::ALL, &evaluation.identity()).unwrap();
    let mut record = open();
    let mut left = 6;
    let error = evaluation.run(&mut record, &mut |_| {
        left -= 1;
        if left == 0 {
            Control::Stop
        } else {
            Control::Continue
        }
    });
    assert!(matches!(error, Err(EvalError::Stopped)));
    let finished = record.outcomes().len();
    assert!(finished > 0 && finished < 18);
    drop(record);
    let mut record = open();
    assert_eq!(record.outcomes().len(), finished);
    evaluation
        .run(&mut record, &mut |_| Control::Continue)
        .unwrap();
    assert_eq!(record.outcomes().len(), 18);
    for a in whole.outcomes() {
        let b = record.find(&a.case, &a.setup).unwrap();
        assert_eq!((a.score, &a.answers), (b.score, &b.answers));
        assert_eq!((a.divergence, a.bytes_held), (b.divergence, b.bytes_held));
    }

    let rows = evaluation.rows(&whole);
    assert_eq!(rows.len(), 18);
    let find = |task: &str, setup: &str| {
        let found = rows
            .iter()
            .find(|row| row.task == task && row.setup == setup);
        found.unwrap_or_else(|| panic!("{task} {setup}"))
    };
    let of = |setup| find("niah-single-2", setup);
    assert_eq!(of("f16").bytes_held, of("dense").bytes_held);
    assert!(of("q4").bytes_held < of("dense").bytes_held / 3);
    // The dense path does not differ from itself, and four bits do.
    assert_eq!(find("continuation", "f16").divergence, Some(0.0));
    assert!(find("continuation", "q4").divergence.unwrap() > 1e-6);
    let drift = find("drift", "f16");
    assert_eq!((drift.score, drift.same_until), (100.0, Some(24.0)));
}

#[test]
fn what_is_found_scores_and_is_shown_beside_the_dense_path() {
    let engine = Engine::open(&EngineOptions::default()).unwrap();
    let material = Material::shipped(Wording::needle());
    let plan = Plan {
        samples: 1,
        ..plan(&["niah-single-2"], "q4,f16", 500)
    };
    let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
    let mut record = Record::in_memory();
    evaluation
        .run(&mut record, &mut |_| Control::Continue)
        .unwrap();
    let rows = evaluation.rows(&record);
    let find = |setup: &str| rows.iter().find(|row| row.setup == setup).unwrap();
    assert_eq!(
        find("dense").score,
        100.0,
        "the reference model finds one number in 500 tokens"
    );
    assert_eq!(find("f16").score, 100.0);
    assert_eq!(find("q4").dense_score, Some(100.0));
}

#[test]
fn what_was_foretold_is_not_exceeded() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    let setups = "snapkv(budget=20%),streaming-llm(budget=128),knorm(budget=30%)+q8,q4";
    let plan = plan(&["niah-single-2"], setups, 500);
    let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
    let foretold = evaluation.foretell();
    let known: Vec<&str> = foretold.iter().map(|told| told.setup.as_str()).collect();
    assert_eq!(
        known.len(),
        3,
        "a form without a keep method takes what it takes: {known:?}"
    );
    let mut record = Record::in_memory();
    evaluation
        .run(&mut record, &mut |_| Control::Continue)
        .unwrap();
    let rows = evaluation.rows(&record);
    for told in foretold {
        assert!(told.bytes.steady < told.dense / 2 && told.bytes.steady <= told.bytes.peak);
        let row = rows.iter().find(|row| row.setup == told.setup).unwrap();
        assert!(row.bytes_held <= told.bytes.steady, "{}", told.setup);
        assert!(
            row.peak_bytes <= told.bytes.peak,
            "{}: {} {}",
            told.setup,
            row.peak_bytes,
            told.bytes.peak
        );
    }
}

#[test]
fn what_leaves_while_a_document_is_read_takes_no_more_than_was_foretold() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    let setups = "streaming-llm(budget=50%),keydiff(budget=50%),streaming-llm(budget=50%)+read=quest,\
        snapkv(budget=50%),snapkv(budget=20%),kvzip(budget=50%),h2o(budget=50%)+kivi";
    for (question, task) in [
        (Sight::Unseen, "niah-single-2"),
        (Sight::Seen, "niah-single-2"),
        // Four questions, each a prompt of its own.
        (Sight::Seen, "niah-multiquery"),
    ] {
        let plan = Plan {
            question,
            samples: 1,
            ..plan(&[task], setups, 2000)
        };
        let rows = measured(&engine, &plan);
        let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
        let foretold = evaluation.foretell();
        assert_eq!(foretold.len(), 7);
        for told in foretold {
            let row = rows.iter().find(|row| row.setup == told.setup).unwrap();
            // What a read method keeps to choose by comes to that.
            let index = if told.setup.contains("quest") { 5 } else { 0 };
            let most = told.bytes.peak + told.bytes.peak * index / 100;
            assert!(row.bytes_held < row.peak_bytes, "{}", told.setup);
            assert!(
                row.peak_bytes <= most,
                "{} {question:?} {task}: {} {most}",
                told.setup,
                row.peak_bytes
            );
        }
    }
}

#[test]
fn floors_hold_as_many_bytes_as_the_form_at_every_length() {
    let engine = stand_in();
    for setup in [
        "q8",
        "kivi",
        "kivi(residual=66)",
        "mustafar",
        "q4, recent=100",
        "accllm(window=1024)",
    ] {
        let plan = Plan {
            lengths: vec![1000, 2200],
            samples: 1,
            floors: true,
            ..plan(&["niah-single-2"], setup, 0)
        };
        let rows = measured(&engine, &plan);
        for rows in rows.chunks(4) {
            let [dense, form, floors @ ..] = rows else {
                panic!("{rows:?}")
            };
            assert_eq!(floors.len(), 2, "{setup} at {}", form.length);
            let a_pair = dense.bytes_held / dense.length as u64;
            for floor in floors {
                let (less, held) = (
                    form.bytes_held as i64 - floor.bytes_held as i64,
                    form.bytes_held,
                );
                // A layer is given pages of 64 slots, which its two heads share; where pairs are from may be a
                // little more.
                assert!(
                    (-(held as i64) / 100..=32 * a_pair as i64).contains(&less),
                    "{} at {}: {less} less than {held} of {setup}",
                    floor.setup,
                    floor.length
                );
            }
        }
    }
}

#[test]
fn what_is_held_does_not_depend_on_the_chunk() {
    let setups = "kivi,mustafar,q4, recent=100,kivi+snapkv(budget=70%)";
    let held = |chunk_tokens: usize, question: Sight| -> Vec<(String, u64)> {
        let plan = Plan {
            question,
            samples: 1,
            ..plan(&["niah-single-2"], setups, 1400)
        };
        let rows = measured(&stand_in_by(chunk_tokens), &plan);
        rows.into_iter()
            .map(|row| (row.setup, row.bytes_held))
            .collect()
    };
    for question in [Sight::Unseen, Sight::Seen] {
        assert_eq!(held(512, question), held(64, question), "{question:?}");
    }
}

#[test]
fn a_task_that_no_sample_fits_is_left_out_before_anything_is_measured() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    let plan = Plan {
        lengths: vec![500, 3000],
        samples: 1,
        ..plan(&["cwe", "niah-single-2"], "q4", 0)
    };
    let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
    let [left_out] = evaluation.left_out() else {
        panic!("{:?}", evaluation.left_out())
    };
    assert_eq!((&*left_out.task, left_out.length), ("cwe", 500));
    assert!(left_out.why.contains("cwe needs at least"), "{left_out:?}");
    let rows = measured(&engine, &plan);
    let of = |row: &Row| (row.task.clone(), row.length);
    let found: Vec<(String, usize)> = rows.iter().step_by(2).map(of).collect();
    let expected = [
        ("niah-single-2", 500),
        ("cwe", 3000),
        ("niah-single-2", 3000),
    ];
    assert_eq!(
        found,
        expected.map(|(task, length)| (task.to_owned(), length))
    );
}

#[test]
fn setups_that_cannot_be_used_are_named_before_anything_is_measured() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    for (setup, words) in [
        ("accllm+keydiff", "choose one of the two"),
        ("kivi+h2o(budget=5%)", "give at least"),
    ] {
        let plan = plan(&["niah-single-2"], &format!("q4,{setup}"), 800);
        let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
        let message = evaluation.check_setups().unwrap_err().to_string();
        let name = setup.split(['+', '(']).next().unwrap();
        for words in [words, name, "--methods", "800 tokens"] {
            assert!(message.contains(words), "{words} in {message}");
        }
    }
    let plan = plan(&["niah-single-2"], "q4,kivi+h2o(budget=50%)", 800);
    let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
    evaluation.check_setups().unwrap();
}

#[test]
fn the_reference_model_is_asked_in_its_own_words_whatever_its_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/needle");
    let opened = |model: ModelSource| {
        let options = EngineOptions {
            model,
            ..EngineOptions::default()
        };
        let engine = Engine::open(&options).unwrap();
        Wording::suiting(engine.model().fingerprint()).name
    };
    assert_eq!(opened(ModelSource::Embedded), "needle");
    assert_eq!(opened(ModelSource::Path(path.into())), "needle");
    let file = format!("{path}/needle-f16.gguf");
    assert_eq!(opened(ModelSource::Path(file.into())), "needle");
    assert_eq!(Wording::suiting("another").name, "general");
}

#[test]
fn what_setups_share_changes_no_answer() {
    let engine = stand_in();
    let material = Material::shipped(Wording::needle());
    let setups = "kvzip(budget=30%),kvzip(budget=30%, alloc=uniform),expected-attention(budget=40%),\
        expected-attention(budget=20%),snapkv(budget=30%),snapkv(budget=30%, alloc=adakv)";
    let run = |setups: &str| {
        let plan = plan(&["niah-single-2"], setups, 400);
        let evaluation = Evaluation::new(&engine, &material, &plan).unwrap();
        let mut record = Record::in_memory();
        evaluation
            .run(&mut record, &mut |_| Control::Continue)
            .unwrap();
        record
    };
    let together = run(setups);
    for setup in Setup::parse_list(setups).unwrap() {
        for alone in run(&setup.to_string()).outcomes() {
            let found = together.find(&alone.case, &alone.setup).unwrap();
            assert_eq!(
                (found.score, found.divergence, found.bytes_held),
                (alone.score, alone.divergence, alone.bytes_held),
                "{setup}"
            );
            assert_eq!(found.answers, alone.answers, "{setup}");
        }
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let message = Subject::find("niah-multykey-1").unwrap_err().to_string();
    assert!(
        message.contains("did you mean \"niah-multikey-1\"?"),
        "{message}"
    );
    assert_eq!(Subject::find("ruler").unwrap().len(), 13);
    let engine = Engine::open(&EngineOptions::default()).unwrap();
    let material = Material::shipped(Wording::needle());
    let limit = engine.model().blueprint().max_positions;
    let refused = |plan: &Plan| {
        let run = |evaluation: Evaluation<'_>| {
            evaluation.run(&mut Record::in_memory(), &mut |_| Control::Continue)
        };
        let ran = Evaluation::new(&engine, &material, plan).and_then(run);
        ran.unwrap_err().to_string()
    };
    let message = refused(&plan(&["vt"], "q8", limit + 1));
    assert!(message.contains("reads at most"), "{message}");
    let message = refused(&plan(&["cwe"], "q8", 200));
    assert!(message.contains("cwe needs at least"), "{message}");
    let message = refused(&plan(&["continuation"], "q8", 200_000));
    assert!(message.contains("--text"), "{message}");
}
