//! `--keep`: contexts that hold less than they have read.

mod common;

use std::fs::{self, File};

use common::{Folder, STAND_IN, command, longview, longview_reading, story};

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

#[test]
fn a_question_is_answered_from_a_tenth_of_the_pairs() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(900));
    let method = "snapkv(budget=10%, kernel=15, alloc=adakv(floor=0.2))";
    let ran = longview(&["ask", "--json", "--keep", method, "--file", &book, FALCON]).done();
    let json = ran.json();
    assert_eq!(
        json["answer"],
        "The special magic number for amber falcon is 48213."
    );
    let keep = &json["keep"];
    let count = |key: &str| keep[key].as_u64().unwrap();
    let (seen, kept) = (count("pairs_seen"), count("pairs_kept"));
    assert_eq!(kept + count("pairs_dropped"), seen);
    // A tenth of the prompt and the answer itself, and 2,048 bytes for the eight pairs of a token.
    let answer = json["generated_tokens"].as_u64().unwrap();
    let tenth = json["prompt_tokens"].as_u64().unwrap() / 10 * 8;
    assert!(kept.abs_diff(tenth + 8 * answer) <= 16, "{json}");
    assert!(
        json["kv_bytes"].as_u64().unwrap() < seen / 8 * 2048 / 4,
        "{json}"
    );
    assert_eq!(count("compactions"), 1);
    assert_eq!(
        json["methods"]["keep"],
        "snapkv(budget=10%, window=32, kernel=15, pool=avg, sinks=0, alloc=adakv(floor=0.2), \
         merge=none, decode=never)"
    );
    let notices = json["notices"].to_string();
    assert!(
        notices.contains("keep: at most") && notices.contains("dropped"),
        "{notices}"
    );
}

#[test]
fn what_a_method_takes_is_said_before_anything_is_written() {
    let folder = Folder::new();
    let prompt = folder.write("prompt.txt", story(300));
    let arguments = [
        "run",
        "--model",
        STAND_IN,
        "--prompt-file",
        &prompt,
        "--keep",
        "knorm(budget=50%)",
        "--max-tokens",
        "6",
        "--ignore-eos",
        "--temperature",
        "0",
    ];
    let json = longview(&[&arguments[..], &["--json"]].concat())
        .done()
        .json();
    let text = json["answer"].as_str().unwrap_or_else(|| panic!("{json}"));
    // Both streams in the order in which they are written.
    let both = folder.path("both");
    let file = File::create(&both).unwrap();
    let status = command(&arguments)
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status();
    assert!(status.unwrap().success());
    let both = fs::read_to_string(both).unwrap();
    let at = |words: &str| {
        both.find(words)
            .unwrap_or_else(|| panic!("{words:?}: {both}"))
    };
    assert!(at("keep: at most") < at(text.trim()), "{both}");
    assert!(at(text.trim()) < at("dropped"), "{both}");
}

#[test]
fn a_document_is_compressed_once_and_a_window_forgets() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(700));
    let window = "streaming-llm(budget=200, block=64)";
    let ask = |keep: &str| {
        longview(&[
            "ask", "--json", "--keep", keep, "--file", &book, FALCON, KETTLE,
        ])
        .done()
        .json()
    };
    let json = ask(window);
    for answer in json["answers"].as_array().unwrap() {
        assert!(!answer["answer"].to_string().contains("48213"), "{json}");
        // Decided block by block while the document was read, and never again.
        assert!(
            answer["keep"]["compactions"].as_u64().unwrap() > 5,
            "{json}"
        );
        assert!(answer["kv_bytes"].as_u64().unwrap() < 400 * 2048, "{json}");
    }
    let whole = ask("streaming-llm(budget=100%)");
    assert_eq!(
        whole["answers"][1]["answer"],
        "The code of the silver kettle is 5182."
    );
}

#[test]
#[cfg(target_os = "linux")]
fn the_memory_of_what_leaves_is_given_back_while_a_text_is_read() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(5000));
    let peak = |keep: &str| {
        let json = longview(&[
            "ask",
            "--json",
            "--model",
            STAND_IN,
            "--store",
            "f32",
            "--threads",
            "2",
            "--keep",
            keep,
            "--file",
            &book,
            FALCON,
        ])
        .done()
        .json();
        json["peak_memory_bytes"].as_u64().unwrap()
    };
    // 4,096 bytes a token in f32: 20 MiB whole, 2 MiB in a window.
    let (all, window) = (peak("all"), peak("streaming-llm(budget=512)"));
    assert!(window + (14 << 20) < all, "{window} of {all}");
}

#[test]
fn a_budget_for_everything_answers_with_the_same_tokens() {
    let prompt = story(300);
    let run = |keep: &str| {
        let arguments = [
            "run",
            "--json",
            "--model",
            STAND_IN,
            "--max-tokens",
            "30",
            "--keep",
            keep,
            "--prompt",
            &prompt,
        ];
        longview(&arguments).done().json()
    };
    let (dense, kept) = (run("all"), run("knorm(budget=4k)"));
    assert_eq!(dense["generated_ids"], kept["generated_ids"]);
    assert_eq!(kept["keep"]["pairs_dropped"], 0);
    assert!(dense["keep"].is_null());
}

#[test]
fn a_text_is_repeated_once_and_every_question_finds_its_fact() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(500));
    let keep = "kvzip(budget=50%, part=200)";
    let ran = longview(&[
        "ask", "--json", "--keep", keep, "--file", &book, FALCON, KETTLE,
    ])
    .done();
    let json = ran.json();
    let answers = json["answers"].as_array().unwrap();
    assert!(answers[0]["answer"].to_string().contains("48213"), "{json}");
    assert!(answers[1]["answer"].to_string().contains("5182"), "{json}");
    for answer in answers {
        // Nothing of the repetition stays: half of the document, and the question and the answer.
        assert_eq!(answer["keep"]["compactions"], 1);
        let (seen, kept) = (&answer["keep"]["pairs_seen"], &answer["keep"]["pairs_kept"]);
        let share = kept.as_f64().unwrap() / seen.as_f64().unwrap();
        assert!((0.45..0.58).contains(&share), "{json}");
    }
}

#[test]
fn a_conversation_goes_on_within_its_budget() {
    let said = format!("{} {FALCON}\n{KETTLE}\n", story(400).replace('\n', " "));
    let arguments = [
        "chat",
        "--json",
        "--max-tokens",
        "24",
        "--keep",
        "snapkv(budget=128)",
    ];
    let json = longview_reading(&arguments, said.as_bytes()).done().json();
    let answers = json["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let kept = answer["keep"]["pairs_kept"].as_u64().unwrap();
        assert!(kept <= 8 * (128 + 24), "{json}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused_before_work_starts() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(300));
    let refused = |keep: &str, words: &[&str]| {
        longview(&["ask", "--keep", keep, "--file", &book, FALCON]).refused(2, words);
    };
    refused("snapkv(budget=0)", &["--keep: snapkv: budget = 0", "10%"]);
    refused("snapkv(budget=16)", &["budget of 16 pairs", "at least 32"]);
    refused("snapkv(budget=101%)", &["101%", "up to 100%"]);
    refused("snapkv(windw=3)", &["windw", "did you mean \"window\"?"]);
    refused("snapkv(alloc=adkv)", &["adkv", "did you mean \"adakv\"?"]);
    refused(
        "snapkv(merge=uniform)",
        &["merge = uniform", "known: none, d2o"],
    );
    refused("adakv", &["there is no keep method \"adakv\""]);
    refused(
        "streaming-llm(sinks=-1)",
        &["sinks = -1 is not a whole number"],
    );
    refused(
        "snapkv(pool=median)",
        &["pool = median is not one of avg, max"],
    );
    // What it takes at its peak does not fit, although what stays would.
    let tight = [
        "ask", "--memory", "40MiB", "--keep", "snapkv", "--file", &book, FALCON,
    ];
    longview(&tight).refused(2, &["--memory allows", "KV cache"]);
}

#[test]
fn nothing_compressed_is_kept_for_another_run() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(400));
    let cache = folder.path("cache");
    let ask = |keep: &str| {
        longview(&[
            "ask",
            "--json",
            "--cache-dir",
            &cache,
            "--cache-max",
            "1GiB",
            "--keep",
            keep,
            "--file",
            &book,
            FALCON,
        ])
        .done()
        .json()
    };
    let window = ask("streaming-llm(budget=200, block=64)");
    assert!(
        window["notices"].to_string().contains("not kept"),
        "{window}"
    );
    let exact = ask("all");
    // Blocks from before the first pair left are exact, and found; nothing after them is.
    assert!(exact["reused_tokens"].as_u64().unwrap() <= 256, "{exact}");
    assert_eq!(
        exact["answer"],
        "The special magic number for amber falcon is 48213."
    );
    // The window that asks must have been seen: the end of the document is read again.
    let snap = ask("snapkv(budget=20%, kernel=15)");
    assert_eq!(snap["answer"], exact["answer"]);
    let reused = snap["reused_tokens"].as_u64().unwrap();
    let prompt = snap["prompt_tokens"].as_u64().unwrap();
    assert!(reused > 280 && reused + 32 <= prompt, "{snap}");
}

#[test]
fn heads_are_found_and_keep_what_is_asked_for() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(500));
    let scores = folder.path("heads.tsv");
    let calibrate = [
        "calibrate",
        "--length",
        "700",
        "--samples",
        "1",
        "--json",
        "--output",
    ];
    let json = longview(&[&calibrate[..], &[&scores]].concat())
        .done()
        .json();
    let found: Vec<Vec<f64>> = serde_json::from_value(json["scores"].clone()).unwrap();
    assert_eq!((found.len(), found[0].len()), (4, 2));
    let all = || found.iter().flatten().copied();
    assert!(all().all(|score| (0.0..=1.0).contains(&score)), "{json}");
    // The same again gives the same, and what is there is not overwritten unasked.
    let text = std::fs::read_to_string(&scores).unwrap();
    longview(&[&calibrate[..], &[&scores]].concat()).refused(2, &["--force"]);
    longview(&[&calibrate[..], &[&scores, "--force"]].concat()).done();
    assert_eq!(std::fs::read_to_string(&scores).unwrap(), text);

    let ask = |scores: &str| {
        let method = format!("duo-attention(scores=\"{scores}\", budget=50%, sinks=4, recent=32)");
        longview(&["ask", "--json", "--keep", &method, "--file", &book, FALCON])
            .done()
            .json()
    };
    assert_eq!(
        ask(&scores)["answer"],
        "The special magic number for amber falcon is 48213."
    );
    // Turned round, the heads that retrieve stream, and the number is gone.
    let line = |scores: &Vec<f64>| -> String {
        let words: Vec<String> = scores
            .iter()
            .map(|score| (1.0 - score).to_string())
            .collect();
        words.join("\t") + "\n"
    };
    let wrong = folder.write("wrong.tsv", found.iter().map(line).collect::<String>());
    assert!(!ask(&wrong)["answer"].to_string().contains("48213"));
    let other = text.replace("fingerprint: ", "fingerprint: 0");
    let other = folder.write("other.tsv", other);
    let method = format!("duo-attention(scores=\"{other}\", budget=50%)");
    longview(&["ask", "--keep", &method, "--file", &book, FALCON]).refused(
        2,
        &[
            "made for a model with the fingerprint 0",
            "make one for this model",
        ],
    );
}

#[test]
fn a_conversation_that_is_repeated_holds_its_budget_turn_by_turn() {
    let keep = "kvzip(budget=300, part=128, alloc=uniform)";
    let lines = [
        format!(
            "{} The special magic number for olive wagon is 70127. {}",
            story(150),
            story(150)
        ),
        story(320),
        "What is the special magic number for olive wagon?".to_owned(),
    ]
    .join("\n");
    let args = ["chat", "--json", "-n", "24", "--keep", keep];
    let json = longview_reading(&args, lines.as_bytes()).done().json();
    let answers = json["answers"].as_array().unwrap();
    let number = |turn: usize, name: &str| answers[turn]["keep"][name].as_u64().unwrap();
    for turn in 0..3 {
        assert_eq!(number(turn, "compactions"), turn as u64 + 1, "{json}");
        // 8 heads; what was written since stays beside the budget.
        let kept = number(turn, "pairs_kept");
        assert!((8 * 300..=8 * (300 + 24)).contains(&kept), "{json}");
    }
    assert!(
        answers[2]["answer"].as_str().unwrap().contains("70127"),
        "{json}"
    );
}

#[test]
fn finished_tool_results_leave_a_conversation() {
    let chat = |keep: &str, lines: &str| {
        let chat = ["chat", "--json", "-n", "24", "--keep", keep];
        longview_reading(&chat, lines.as_bytes()).done().json()
    };
    let page = |fact: &str| format!("/tool {} {fact} {}", story(40), story(20));
    let lines = [
        "Look the numbers up.".to_owned(),
        page("The special magic number for olive wagon is 70127."),
        page("The special magic number for vivid kitten is 93358."),
        "What is the special magic number for vivid kitten?".to_owned(),
    ]
    .join("\n");
    let json = chat("timrun(last=1)", &lines);
    let answers = json["answers"].as_array().unwrap();
    assert_eq!(
        answers[3]["answer"],
        "The special magic number for vivid kitten is 93358."
    );
    // After the first result there is one piece of finished work, which stays; after the second the first
    // leaves.
    assert!(answers[1]["pruned"].is_null(), "{json}");
    let pruned = &answers[2]["pruned"];
    assert_eq!(pruned["pieces"], 1, "{json}");
    let tokens = pruned["tokens"].as_u64().unwrap();
    assert!(tokens > 100, "{json}");
    // 2,048 bytes a token, in blocks of 64.
    let freed = pruned["bytes_freed"].as_u64().unwrap();
    assert!(
        freed > 2048 * (tokens - 128) && freed < 2048 * (tokens + 64),
        "{json}"
    );
    assert!(
        json["notices"]
            .to_string()
            .contains("left the conversation"),
        "{json}"
    );

    // What is left is what a conversation holds that never had the first result.
    let spoken = |index: usize| answers[index]["answer"].as_str().unwrap().to_owned();
    let prompt = format!(
        "<|bos|><|user|> Look the numbers up.<|assistant|> {}<|eos|><|user|> <|assistant|> {}<|eos|><|user|> \
         {}<|assistant|> {}<|eos|><|user|> What is the special magic number for vivid kitten?<|assistant|>",
        spoken(0),
        spoken(1),
        lines
            .lines()
            .nth(2)
            .unwrap()
            .strip_prefix("/tool ")
            .unwrap()
            .trim(),
        spoken(2),
    );
    let fresh = longview_reading(
        &[
            "run",
            "--json",
            "-n",
            "24",
            "--special-tokens",
            "--prompt-file",
            "-",
        ],
        prompt.as_bytes(),
    );
    let fresh = fresh.done().json();
    assert_eq!(fresh["generated_ids"], answers[3]["generated_ids"]);
    assert_eq!(fresh["prompt_tokens"], answers[3]["prompt_tokens"]);

    longview(&["run", "--keep", "timrun", "--prompt", "x"])
        .refused(2, &["between the turns of a conversation: longview chat"]);
}

/// The reference model, said to have so many positions.
#[cfg(unix)]
fn model_with_positions(folder: &Folder, positions: usize) -> String {
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/needle");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config = config.replace("1048576", &positions.to_string());
    folder.write("model/config.json", config);
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::os::unix::fs::symlink(model.join(name), folder.path(&format!("model/{name}")))
            .unwrap();
    }
    folder.path("model")
}

#[test]
#[cfg(unix)]
fn by_slots_a_text_may_be_longer_than_the_model_s_positions() {
    let folder = Folder::new();
    let model = model_with_positions(&folder, 700);
    // The fact stands two thirds into the text, and within the window when it is asked for.
    let text = format!(
        "{} The code of the silver kettle is 5182. {}",
        story(900),
        story(60)
    );
    let prompt = format!(" {text}<|user|> {KETTLE}<|assistant|>");
    let run = |keep: &str| {
        let arguments = [
            "run",
            "--json",
            "--model",
            &model,
            "--chunk",
            "128",
            "--special-tokens",
            "-n",
            "24",
            "--keep",
            keep,
            "--prompt",
            &prompt,
        ];
        longview(&arguments)
    };
    run("streaming-llm(budget=300, block=64, decode=16)")
        .refused(2, &["the model reads at most 700"]);
    run("streaming-llm(budget=600, positions=slots, block=64, decode=16)").refused(
        2,
        &["holds up to 792 tokens at once, but the model has 700 positions"],
    );
    let json = run("streaming-llm(budget=300, positions=slots, block=64, decode=16)")
        .done()
        .json();
    assert!(json["prompt_tokens"].as_u64().unwrap() > 900, "{json}");
    let answer = json["answer"].as_str().unwrap();
    assert!(
        answer.starts_with(" The code of the silver kettle is 5182"),
        "{json}"
    );
}

#[test]
fn trained_heads_keep_a_fact_while_a_text_is_read() {
    let folder = Folder::new();
    let book = folder.write("book.txt", story(1200));
    let heads = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/needle/locret.safetensors"
    );
    let method =
        format!("locret(heads=\"{heads}\", budget=300, stabilizers=64, local=16, block=128)");
    let ask = ["ask", "--json", "--file", &book, "--keep", &method, KETTLE];
    // Trained on the folder, the heads are for every file of the same model: the program's is a GGUF.
    let json = longview(&ask).done().json();
    assert_eq!(json["answer"], "The code of the silver kettle is 5182.");
    let keep = &json["keep"];
    assert!(keep["pairs_kept"].as_u64().unwrap() * 3 < keep["pairs_seen"].as_u64().unwrap());
    assert!(keep["compactions"].as_u64().unwrap() > 5, "{json}");
}
