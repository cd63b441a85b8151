//! Chat templates render as Python's Jinja2 renders them: `expected.json` is what
//! `tools/make_template_fixtures.py` wrote, for every template and conversation.

use std::collections::BTreeMap;
use std::path::Path;

use longview_text::{
    AskFrame, ChatTemplate, GenerationPrompt, Message, Moment, TemplateVars, TextError,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The moment the fixtures were rendered at.
const NOW: i64 = 1_722_816_305;

#[derive(Deserialize)]
struct Case {
    template: String,
    source: Option<String>,
    conversation: String,
    messages: Vec<Message>,
    variables: Map<String, Value>,
    rendered: Option<String>,
    refused: Option<String>,
    failed: Option<String>,
}

fn read(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat-templates");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn vars() -> TemplateVars {
    TemplateVars::new("<s>", "</s>", Moment::from_unix(NOW))
}

#[test]
fn every_case_equals_python() {
    let cases: Vec<Case> = serde_json::from_str(&read("expected.json")).unwrap();
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in cases {
        let source = case.source.clone().unwrap_or_else(|| read(&case.template));
        let mut vars = vars();
        vars.extra = case.variables;
        vars.tools = vars.extra.shift_remove("tools");
        if vars.extra.shift_remove("add_generation_prompt") == Some(Value::Bool(false)) {
            vars.generation_prompt = GenerationPrompt::Omit;
        }
        let got = ChatTemplate::new(&source)
            .unwrap()
            .render(&case.messages, &vars);
        let agrees = match (&got, &case.rendered, &case.refused, &case.failed) {
            (Ok(text), Some(expected), None, None) => text == expected,
            (Err(TextError::TemplateRefused(text)), None, Some(expected), None) => text == expected,
            (Err(TextError::TemplateRender(_)), None, None, Some(_)) => true,
            _ => false,
        };
        *counts.entry(case.template.clone()).or_insert(0) += 1;
        if !agrees {
            let expected = (case.rendered, case.refused, case.failed);
            let place = format!("{} / {}", case.template, case.conversation);
            wrong.push(format!(
                "{place}\n  expected {expected:?}\n  got      {got:?}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(
        counts.len(),
        12,
        "six published templates and six small ones: {counts:?}"
    );
    assert!(counts.values().all(|&count| count >= 25), "{counts:?}");
}

#[test]
fn documents_go_into_the_users_message_of_published_templates() {
    let cases = [
        (
            "Qwen-Qwen3-0.6B.jinja",
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "google-gemma-2-2b-it.jinja",
            "<s><start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "microsoft-Phi-3.5-mini-instruct.jinja",
            "<|user|>\n",
            "<|end|>\n<|assistant|>\n",
        ),
        (
            "mistralai-Mistral-Nemo-Instruct-2407.jinja",
            "<s>[INST]",
            "[/INST]",
        ),
    ];
    for (name, head, tail) in cases {
        let template = ChatTemplate::new(&read(name)).unwrap();
        let frame = AskFrame::new(&template, &vars()).unwrap();
        let expected = AskFrame {
            head: head.into(),
            document_lead: String::new(),
            between: "\n\n".into(),
            question_lead: String::new(),
            tail: tail.into(),
        };
        assert_eq!(frame, expected, "{name}");
    }
    let llama = ChatTemplate::new(&read("meta-llama-Llama-3.1-8B-Instruct.jinja")).unwrap();
    let frame = AskFrame::new(&llama, &vars()).unwrap();
    assert!(
        frame
            .head
            .ends_with("<|start_header_id|>user<|end_header_id|>\n\n"),
        "{frame:?}"
    );
    assert!(frame.head.contains("Today Date: 26 Jul 2024"), "{frame:?}");
}
