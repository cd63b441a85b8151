//! A folder of contexts that others use, own, damaged or made: each a clear message, and nothing lost.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Folder, Ran, STAND_IN, command, longview, ran, story};
#[cfg(target_os = "linux")]
use common::{as_reader, set_mode};
use longview::tier::{
    BlockInfo, BlockKey, BlockShape, DiskOptions, DiskTier, Origin, StoreFolder, Syncing, Tier,
};
use longview::{BlockHash, Ledger};
use longview_kv::Block;
use serde_json::Value;

const FALCON: &str = "What is the special magic number for amber falcon?";
const KETTLE: &str = "What is the code of the silver kettle?";

fn keeping(store: &str, arguments: &[&str]) -> Command {
    let flags = ["--cache-dir", store, "--cache-max", "1GiB"];
    command(&[arguments, &flags].concat())
}

fn run(mut command: Command) -> Ran {
    ran(command.output().unwrap())
}

fn number(json: &Value, key: &str) -> u64 {
    json[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {json}"))
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn two_writers_in_one_folder_are_both_right_and_nothing_is_lost() {
    let folder = Folder::new();
    // Alike for a thousand tokens, and then not.
    let texts = ["one", "two"].map(|end| {
        let text = story(1000) + &format!("This is book {end}. ").repeat(40);
        folder.write(&format!("{end}.txt"), text)
    });
    let ask = |store: &str, text: &str| {
        let store = folder.path(store);
        let ask = ["ask", "--json", "--model", STAND_IN, "--file", text];
        keeping(&store, &[&ask[..], &["-n", "8", FALCON, KETTLE]].concat())
    };
    let ids = |ran: Ran| ran.done().json()["generated_ids"].clone();
    let alone = [0, 1].map(|of| ids(run(ask(&format!("alone {of}"), &texts[of]))));
    // Twice each, all four at once.
    let started: Vec<(usize, Child)> = [0, 1, 0, 1]
        .map(|of| (of, ask("shared", &texts[of]).spawn().unwrap()))
        .into();
    for (of, child) in started {
        assert_eq!(ids(ran(child.wait_with_output().unwrap())), alone[of]);
    }
    let store = folder.path("shared");
    run(keeping(&store, &["contexts", "fsck"])).done();
    let listed = run(keeping(&store, &["contexts", "ls", "--json"]))
        .done()
        .json();
    let complete = |listed: &Value| {
        let all = listed["contexts"].as_array().unwrap().iter();
        all.filter(|one| one["complete"] == true).count()
    };
    assert!(complete(&listed) >= 2, "{listed}");
    for of in [0, 1] {
        let again = run(ask("shared", &texts[of])).done().json();
        let first = &again["answers"][0];
        let found = number(&first["reuse"], "disk");
        assert!(found + 128 > number(first, "prompt_tokens"), "{again}");
        assert_eq!(again["generated_ids"], alone[of]);
    }
}

#[cfg(target_os = "linux")]
fn set_modes(folder: &Path, folders: u32, of_files: u32) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => set_modes(&path, folders, of_files),
            false => set_mode(&path, of_files),
        }
    }
    set_mode(folder, folders);
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_may_only_be_read_is_read_and_one_that_may_not_is_refused() {
    let folder = Folder::new();
    let (store, spill) = (folder.path("store"), folder.path("spill"));
    let book = folder.write("book.txt", story(4000));
    let ask = |flags: &[&str]| {
        let arguments = [
            "ask", "--json", "--model", STAND_IN, "--file", &book, "-n", "4", FALCON,
        ];
        let mut command = keeping(&store, &[&arguments[..], flags].concat());
        command.env("TMPDIR", &spill);
        command
    };
    let short = folder.write("short.txt", story(200));
    let first = run(ask(&[])).done().json();
    let before = files(Path::new(&store)).len();
    fs::create_dir(&spill).unwrap();
    set_mode(Path::new(&folder.path("")), 0o755);
    set_mode(Path::new(&spill), 0o777);
    set_modes(Path::new(&store), 0o555, 0o444);

    let Some(read) = as_reader(ask(&[])) else {
        return;
    };
    let read = read.done().json();
    assert_eq!(read["generated_ids"], first["generated_ids"]);
    assert!(number(&read["reuse"], "disk") > 3000, "{read}");
    assert!(
        read["notices"].to_string().contains("cannot be written to"),
        "{read}"
    );
    // Another text is not kept, and what memory has no room for goes elsewhere.
    // The least memory that is not refused has no room for half of it.
    let limited = |mebibytes: u32| {
        let memory = format!("{mebibytes}MiB");
        as_reader(ask(&["--memory", &memory, "--salt", "another"])).unwrap()
    };
    let spilled = (26..120).step_by(2).map(limited);
    let spilled = spilled.into_iter().find(|ran| ran.code != Some(2));
    let spilled = spilled.unwrap().done().json();
    assert_eq!(spilled["generated_ids"], first["generated_ids"]);
    assert!(number(&spilled, "store_read_bytes") > 0, "{spilled}");
    let notices = spilled["notices"].to_string();
    assert!(notices.contains("until the program ends"), "{notices}");
    assert_eq!(
        files(Path::new(&spill)).len(),
        0,
        "it is gone with the program"
    );
    for refused in [
        &["contexts", "gc"][..],
        &["contexts", "save", "x", "--prompt", "y"],
    ] {
        let ran = as_reader(keeping(&store, refused)).unwrap();
        assert!(matches!(ran.code, Some(1 | 2)), "{ran:?}");
        assert!(
            !ran.stderr.contains("panicked") && ran.stderr.len() > 20,
            "{ran:?}"
        );
    }
    let listed = as_reader(keeping(&store, &["contexts", "ls", "--json"])).unwrap();
    assert_eq!(
        listed.done().json()["contexts"].as_array().unwrap().len(),
        1
    );

    set_modes(Path::new(&store), 0o700, 0o600);
    let arguments = ["ask", "--model", STAND_IN, "--file", &short, "x"];
    let ran = as_reader(keeping(&store, &arguments)).unwrap();
    ran.refused(2, &["store", "ermission denied"]);
    assert_eq!(files(Path::new(&store)).len(), before);
    let whole = run(ask(&[])).done().json();
    assert!(
        number(&whole["reuse"], "disk") > 3000,
        "nothing was lost: {whole}"
    );
}

#[test]
fn what_another_process_is_waited_for_is_told_while_it_is_waited_for() {
    let folder = Folder::new();
    let store = folder.path("store");
    let prompt = story(80);
    let asked = [
        "run", "--json", "--model", STAND_IN, "--prompt", &prompt, "-n", "2",
    ];
    let first = run(keeping(&store, &asked)).done().json();
    let lock = fs::File::open(Path::new(&store).join("LOCK")).or_else(|_| {
        // Nobody has needed it yet.
        fs::File::create(Path::new(&store).join("LOCK"))
    });
    let stopped = lock.unwrap();
    stopped.lock().unwrap();
    // One that computes, and one that does not.
    let started = [&asked[..], &["contexts", "gc", "--max", "1KiB"]].map(|arguments| {
        let mut child = keeping(&store, arguments).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        (child, said)
    });
    let told = started.map(|(mut child, mut said)| {
        let mut line = String::new();
        while !line.contains("waiting for another process") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "nothing was told");
        }
        assert!(line.contains("LOCK"), "{line}");
        assert!(child.try_wait().unwrap().is_none(), "it still waits");
        (child, said)
    });
    drop(stopped);
    let [computed, collected] = told.map(|(child, mut said)| {
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("waiting"), "told twice: {rest}");
        ran(child.wait_with_output().unwrap()).done()
    });
    let computed = computed.json();
    assert_eq!(computed["generated_ids"], first["generated_ids"]);
    assert!(
        computed["notices"]
            .to_string()
            .contains("waiting for another process"),
        "{computed}"
    );
    assert!(collected.stdout.contains("freed") || !collected.stdout.is_empty());
}

#[test]
fn files_stand_where_folders_belong() {
    let folder = Folder::new();
    let store = folder.path("store");
    let prompt = ["run", "--json", "--prompt", "Once upon a time", "-n", "2"];
    let first = run(keeping(&store, &prompt)).done().json();
    fs::remove_dir_all(Path::new(&store).join("extents")).unwrap();
    folder.write("store/extents", "in the way");
    let ran = run(keeping(&store, &prompt));
    match ran.code {
        Some(0) => assert_eq!(ran.json()["generated_ids"], first["generated_ids"]),
        Some(2) => assert!(ran.stderr.contains("extents"), "{ran:?}"),
        _ => panic!("{ran:?}"),
    }
    assert_eq!(
        fs::read(folder.path("store/extents")).unwrap(),
        b"in the way"
    );
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_every_command_and_left_alone() {
    let folder = Folder::new();
    folder.write("store/STORE", "longview store, format 99\n");
    let store = folder.path("store");
    let words = ["format 99", "nothing was changed"];
    for arguments in [
        &["contexts", "ls"][..],
        &["contexts", "gc"],
        &["contexts", "fsck", "--repair"],
        &["contexts", "save", "x", "--prompt", "y"],
        &["explain", "--prompt", "x"],
        &["chat"],
    ] {
        run(keeping(&store, arguments)).refused(2, &words);
    }
    assert_eq!(fs::read_dir(&store).unwrap().count(), 1);
}

#[test]
fn a_context_of_another_model_is_refused_by_name() {
    let folder = Folder::new();
    let (store, other) = (folder.path("store"), folder.path("other.gguf"));
    let needle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/needle/needle-f16.gguf"
    );
    longview(&["quantize", needle, &other, "--type", "Q8_0"]).done();
    let book = folder.write("book.txt", story(300));
    let save = ["contexts", "save", "the book", "--file", &book];
    run(keeping(&store, &save)).done();
    let ask = ["ask", "--load", "the book", FALCON, "-n", "4"];
    run(keeping(&store, &[&ask[..], &["--model", &other]].concat()))
        .refused(2, &["made by", "can be read anew"]);
    // Nor does it lose its name to what the other one reads.
    let take = [
        "ask", "--file", &book, "--label", "the book", FALCON, "--model", &other,
    ];
    run(keeping(&store, &take)).refused(2, &["the book", "already", "read by"]);
    // The text is not there for the other one, and explain says who has it.
    let explain = ["explain", "--json", "--file", &book, "--model", &other];
    let explained = run(keeping(&store, &explain)).done().json();
    assert_eq!(explained["end"]["reason"], "other_identity", "{explained}");
    run(keeping(&store, &ask)).done();
}

/// The stand-in in a folder, with other settings.
fn stand_in_with(folder: &Folder, file: &str, change: impl Fn(&mut Value)) -> String {
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let bytes = fs::read(Path::new(STAND_IN).join(name)).unwrap();
        folder.write(&format!("model/{name}"), bytes);
    }
    let path = format!("model/{file}");
    let mut settings: Value =
        serde_json::from_slice(&fs::read(folder.path(&path)).unwrap()).unwrap();
    change(&mut settings);
    folder.write(&path, settings.to_string());
    folder.path("model")
}

/// One with rotary frequencies of their own for contexts of more than 256 tokens.
fn longrope_model(folder: &Folder) -> String {
    stand_in_with(folder, "config.json", |config| {
        config["original_max_position_embeddings"] = 256.into();
        config["rope_scaling"] = serde_json::json!({
            "type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![1.25; 32],
            "attention_factor": 1.0,
        });
    })
}

#[test]
fn a_context_is_gone_on_with_under_the_other_set_of_rotary_frequencies() {
    let folder = Folder::new();
    let (store, model) = (folder.path("store"), longrope_model(&folder));
    let json = |arguments: &[&str]| {
        let flags = ["--json", "--model", &model];
        run(keeping(&store, &[arguments, &flags].concat()))
            .done()
            .json()
    };
    let (short, long) = (story(120), story(400));
    let saved = json(&["contexts", "save", "short", "--prompt", &short]);
    let tokens = number(&saved, "tokens");
    assert!((100..240).contains(&tokens), "{saved}");

    // With room for an answer it is planned for more than the first set covers.
    let greedy = ["-n", "200", "--temperature", "0"];
    let on = json(&[&["run", "--load", "short"][..], &greedy].concat());
    assert!(on["notices"].to_string().contains("rotary"), "{on}");
    let anew = json(&[&["run", "--prompt", &short][..], &greedy].concat());
    assert_eq!(on["generated_ids"], anew["generated_ids"]);

    // One that was read with the other set is found when it has become shorter.
    let saved = json(&["contexts", "save", "long", "--prompt", &long]);
    assert!(number(&saved, "tokens") > 256, "{saved}");
    for left in [200, 100] {
        let cut = json(&["contexts", "truncate", "long", &left.to_string()]);
        assert_eq!(number(&cut, "tokens"), left, "{cut}");
    }
}

#[test]
fn a_clock_that_was_ahead_loses_nothing() {
    let folder = Folder::new();
    let (store, book) = (folder.path("store"), folder.write("book.txt", story(600)));
    let ask = [
        "ask", "--json", "--model", STAND_IN, "--file", &book, "-n", "4", KETTLE,
    ];
    let first = run(keeping(&store, &ask)).done().json();
    // As if everything had been made in two years.
    let ahead = SystemTime::now() + Duration::from_secs(2 * 365 * 24 * 3600);
    for path in files(Path::new(&store)) {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(ahead).unwrap();
    }
    let again = run(keeping(&store, &ask)).done().json();
    assert_eq!(again["generated_ids"], first["generated_ids"]);
    assert!(number(&again["reuse"], "disk") > 500, "{again}");
    let collected = run(keeping(&store, &["contexts", "gc", "--json"]))
        .done()
        .json();
    assert_eq!(collected["expired"], serde_json::json!([]));
    assert_eq!(number(&collected, "freed_bytes"), 0);
    let table = run(keeping(&store, &["contexts", "ls"])).done().stdout;
    // Used seconds ago, on a slow machine too; not years ahead.
    assert!(
        table.contains("complete") && table.contains(" s ago"),
        "{table}"
    );
    run(keeping(&store, &["contexts", "fsck"])).done();
}

#[test]
fn less_memory_than_the_weights_take_is_refused_with_a_table_and_changes_nothing() {
    let folder = Folder::new();
    let (store, book) = (folder.path("store"), folder.write("book.txt", story(300)));
    for arguments in [
        &["ask", "--file", &book, KETTLE][..],
        &["contexts", "save", "x", "--file", &book],
        &["chat"],
    ] {
        let arguments = [arguments, &["--memory", "20MiB"]].concat();
        run(keeping(&store, &arguments)).refused(2, &["weights", "allowed", "20.0 MiB"]);
    }
    let listed = run(keeping(&store, &["contexts", "ls", "--json"]))
        .done()
        .json();
    assert_eq!(number(&listed["store"], "blocks"), 0);
}

/// One with a chat template that begins otherwise at every turn.
fn counting_model(folder: &Folder) -> String {
    stand_in_with(folder, "tokenizer_config.json", |config| {
        config["chat_template"] =
            "{{ bos_token }}{{ messages|length }} messages so far. {% for m in messages %}\
            {% if m['role'] == 'assistant' %}<|assistant|> {{ m['content'] }}{{ eos_token }}\
            {% else %}<|user|> {{ m['content'] }}{% endif %}{% endfor %}<|assistant|>"
                .into();
    })
}

#[test]
fn a_conversation_whose_beginning_changes_is_moved_only_when_asked_for() {
    let folder = Folder::new();
    let (store, model) = (folder.path("store"), counting_model(&folder));
    let talk = |flags: &[&str]| {
        let arguments = [
            "chat",
            "--json",
            "-n",
            "6",
            "--temperature",
            "0",
            "--model",
            &model,
        ];
        let mut child = keeping(&store, &[&arguments[..], flags].concat())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let said = format!("{}\nWhat is it?\n", story(300));
        child
            .stdin
            .take()
            .unwrap()
            .write_all(said.as_bytes())
            .unwrap();
        ran(child.wait_with_output().unwrap()).done().json()
    };
    let exact = talk(&[]);
    let second = &exact["answers"][1];
    assert!(number(second, "computed_tokens") > 300, "{exact}");
    assert!(
        exact["notices"].to_string().contains("read again"),
        "{exact}"
    );

    let shifted = talk(&["--reuse", "shift", "--label", "moved"]);
    let second = &shifted["answers"][1];
    let moved = number(&second["reuse"], "moved");
    assert!(moved > 250, "{shifted}");
    assert_eq!(
        number(second, "reused_tokens") + number(second, "computed_tokens"),
        number(second, "prompt_tokens")
    );
    assert!(number(second, "computed_tokens") < 100, "{shifted}");
    let text = |key: &str| shifted[key].to_string();
    assert!(text("methods").contains("shift"), "{shifted}");
    assert!(text("notices").contains("moved (approximate)"), "{shifted}");
    // It is listed as what it is, and an exact conversation does not go on from it unsaid.
    let listed = run(keeping(&store, &["contexts", "show", "moved", "--json"]));
    assert!(
        listed.done().json()["methods"]
            .to_string()
            .contains("shift")
    );
    let later = talk(&["--load", "moved", "--label", "exact"]);
    assert!(
        later["notices"].to_string().contains("read anew, exactly"),
        "{later}"
    );
}

/// Fills a folder with `count` small blocks of another model.
fn fill(store: &str, count: u32) {
    let folder = StoreFolder::open(Path::new(store)).unwrap();
    let options = DiskOptions {
        sync: Syncing::Never,
        ..DiskOptions::default()
    };
    let tier = DiskTier::open(&folder, options).unwrap();
    let block = Arc::new(Block::zeroed(64, &Ledger::unlimited()).unwrap());
    let mut parent = BlockHash::seed(&[("model", b"another")]);
    let origin = Arc::new(Origin {
        seed: parent,
        model: "another".to_owned(),
        identity: String::new(),
    });
    for index in 0..count {
        let tokens = [index; 64];
        let hash = parent.then(&tokens);
        let info = BlockInfo {
            key: BlockKey { hash, group: 0 },
            parent,
            index,
            tokens: tokens.into(),
            shape: BlockShape {
                layers: 1,
                layer_bytes: 64,
            },
            seconds: 1.0,
            origin: Arc::clone(&origin),
        };
        tier.put(&info, &block).unwrap();
        parent = hash;
    }
    drop(tier);
    // Long ago, so that no process syncs what others may have left.
    let then = SystemTime::now() - Duration::from_secs(3600);
    for file in files(&Path::new(store).join("extents")) {
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_modified(then).unwrap();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_holds_beside_a_folder_that_is_full_of_other_contexts() {
    let folder = Folder::new();
    let (full, empty) = (folder.path("full"), folder.path("empty"));
    fill(&full, 10_000);
    let book = folder.write("book.txt", story(7000));
    let ask = |store: &str, memory: u64, salt: &str| {
        let memory = memory.to_string();
        let arguments = [
            "ask", "--json", "--model", STAND_IN, "--file", &book, "-n", "4", FALCON,
        ];
        let flags = ["--memory", &memory, "--salt", salt];
        run(keeping(store, &[&arguments[..], &flags].concat()))
    };
    const STEP: u64 = 2 << 20;
    let least = |store: &str| {
        let limits = (10..80).map(|step| step * STEP);
        let mut refused = String::new();
        for limit in limits {
            let ran = ask(store, limit, "first");
            match ran.code {
                Some(2) => refused += &ran.stderr,
                _ => return (limit, ran.done().json(), refused),
            }
        }
        panic!("nothing is enough: {refused}")
    };
    let (small, free, _) = least(&empty);
    let (limit, first, refused) = least(&full);
    // What is known of each block takes most of a kilobyte.
    assert!(limit >= small + 2 * STEP, "{limit} beside {small}");
    assert!(refused.contains("index of the store"), "{refused}");
    let more = [limit + STEP, limit + 2 * STEP];
    let more = more.map(|limit| (limit, ask(&full, limit, "more").done().json()));
    let spilled = [&free, &first].map(|ran| number(ran, "store_read_bytes"));
    assert!(spilled.iter().all(|&bytes| bytes > 0), "{free} {first}");
    for (limit, ran) in [(small, free), (limit, first)].into_iter().chain(more) {
        let peak = number(&ran, "peak_memory_bytes");
        assert!(peak <= limit, "{peak} of {limit}: {ran}");
        // What is read back is near the least that such memory allows.
        let [read, least] =
            ["store_read_bytes", "least_bytes_read"].map(|key| number(&ran, key) as f64);
        println!("{limit} bytes: {read} read, {least} at least");
        let passes = number(&ran, "prompt_tokens") as f64 / 512.0 + 4.0;
        assert!(read <= 1.5 * least + passes * 2e6, "{ran}");
    }
}
