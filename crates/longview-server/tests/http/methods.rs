//! Methods of single requests.

use longview::{Control, GenerateOptions, Specials};
use serde_json::json;

use crate::support::{Running, engine, words};

#[test]
fn a_keep_method_is_a_requests_own_and_does_what_it_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = words(5, 400);
    let methods = [
        "snapkv(budget=128, window=16)",
        "streaming-llm(budget=128, block=64, decode=8)",
    ];
    let alone = engine(folder.path(), None);
    let tokens = alone.tokenizer().encode(&prompt, Specials::AsText).unwrap();
    let tokens = alone.text().with_prefix(tokens);
    let wanted = methods.map(|text| {
        let mut chosen = longview::methods::Methods::new();
        chosen.set(longview::methods::Stage::Keep, text).unwrap();
        let (methods, count) = (chosen.acting(), tokens.len());
        let mut context = alone.new_context_with(&methods, count, count + 24).unwrap();
        let mut options = GenerateOptions::greedy(24);
        let go_on = &mut |_: longview::Event<'_>| Control::Continue;
        let generated = alone.generate(&mut context, &tokens, &mut options, go_on);
        (generated.unwrap().text, context.keep_report().unwrap())
    });
    drop(alone);
    let server = Running::usual(folder.path());
    let ask = |keep: Option<&str>| {
        let mut request = json!({ "prompt": prompt, "max_tokens": 24, "temperature": 0 });
        if let Some(keep) = keep {
            request["longview"] = json!({ "keep": keep });
        }
        server.post("/v1/completions", &request).good()
    };
    let whole = ask(None);
    for (method, (text, report)) in methods.iter().zip(&wanted) {
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| ask(None));
            let answer = ask(Some(method));
            assert_eq!(answer["choices"][0]["text"], text.as_str(), "{method}");
            let kept = &answer["longview"]["keep"];
            assert_eq!(kept["pairs_kept"], report.pairs_kept, "{method}");
            assert!(kept["pairs_dropped"].as_u64().unwrap() > 0);
            assert_eq!(
                answer["longview"]["methods"]["keep"],
                report.method.as_str()
            );
            // Whoever keeps everything gets the same text beside it.
            assert_eq!(beside.join().unwrap()["choices"], whole["choices"]);
        });
    }
    assert!(whole["longview"]["keep"].is_null());
}
