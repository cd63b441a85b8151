//! Answers that follow a JSON schema: tokens that would leave it are forbidden, step by step.

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use longview::Tokenizer;
use longview::sampling::{Candidates, Sampler};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::tools::Toolbox;

/// What a request's answers must look like.
#[derive(Clone)]
pub(crate) struct Grammar {
    /// At its beginning; every text gets a copy.
    start: Matcher,
    ends: Vec<u32>,
}

/// The vocabulary as grammars need it, made when the first one is asked for.
#[derive(Default)]
pub(crate) struct Vocabulary(OnceLock<Result<Arc<ParserFactory>, String>>);

/// The grammar of a request: what its `response_format` says, or a call that must be made.
pub(crate) fn of_request(
    app: &App,
    format: Option<&Value>,
    toolbox: Option<&Toolbox>,
) -> Result<Option<Grammar>, ApiError> {
    if let Some(schema) = toolbox.and_then(Toolbox::forced) {
        return Grammar::new(app, schema, "tools").map(Some);
    }
    let Some(format) = format else {
        return Ok(None);
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => {
            Grammar::new(app, json!({ "type": "object" }), "response_format").map(Some)
        }
        Some("json_schema") => {
            // The responses protocol has the schema beside its name.
            let schema = format
                .pointer("/json_schema/schema")
                .or_else(|| format.get("schema"));
            let schema = schema.filter(|schema| schema.is_object()).ok_or_else(|| {
                ApiError::field(
                    "response_format.json_schema.schema",
                    "response_format is json_schema, but there is no schema",
                )
                .code("invalid_schema")
            })?;
            // A turn is an answer of this form, or a call that leads to one.
            let schema = match toolbox {
                Some(toolbox) => either(schema.clone(), toolbox.calls()),
                None => schema.clone(),
            };
            Grammar::new(app, schema, "response_format").map(Some)
        }
        other => Err(ApiError::field(
            "response_format.type",
            format!(
                "{} is not text, json_object or json_schema",
                other.map_or_else(|| "nothing".to_owned(), |other| format!("{other:?}"))
            ),
        )),
    }
}

/// What lets through texts that follow `schema`.
fn matcher(factory: &ParserFactory, mut schema: Value) -> Matcher {
    if let Value::Object(fields) = &mut schema {
        // Models write JSON with these spaces; any number of them would let weak ones write
        // nothing else.
        fields.insert(
            "x-guidance".to_owned(),
            json!({
                "whitespace_flexible": false,
                "item_separator": ", ",
                "key_separator": ": ",
                "coerce_one_of": true,
            }),
        );
    }
    let grammar = TopLevelGrammar::from_json_schema(schema);
    Matcher::new(factory.create_parser(grammar))
}

/// What follows `schema` or one of `others`. Definitions stay where the schema's references look for them.
fn either(mut schema: Value, others: Vec<Value>) -> Value {
    let mut either = Map::new();
    for name in ["$schema", "$id", "$defs", "definitions"] {
        if let Some(part) = schema.as_object_mut().and_then(|all| all.remove(name)) {
            either.insert(name.to_owned(), part);
        }
    }
    let mut all = vec![schema];
    all.extend(others);
    either.insert("anyOf".to_owned(), all.into());
    either.into()
}

impl Grammar {
    /// Answers that follow `schema`, which came in the field `param`.
    fn new(app: &App, schema: Value, param: &str) -> Result<Grammar, ApiError> {
        let refused = |error: String| {
            ApiError::field(
                param,
                format!("the JSON schema cannot be followed: {error}"),
            )
            .code("invalid_schema")
        };
        let factory = app.vocabulary().factory(app.engine().tokenizer())?;
        let start = matcher(&factory, schema);
        match start.get_error() {
            Some(error) => Err(refused(error)),
            None => Ok(Grammar {
                start,
                ends: app.engine().tokenizer().eos_ids().to_vec(),
            }),
        }
    }

    /// What forbids tokens of one text.
    pub(crate) fn sampler(&self) -> Box<dyn Sampler> {
        Box::new(Follow {
            matcher: self.start.deep_clone(),
            ends: self.ends.clone(),
            seen: None,
        })
    }
}

impl Vocabulary {
    fn factory(&self, tokenizer: &Tokenizer) -> Result<Arc<ParserFactory>, ApiError> {
        let made = self.0.get_or_init(|| {
            let mut factory = ParserFactory::new_simple(&environment(tokenizer))
                .map_err(|error| error.to_string())?;
            // Errors go to the client.
            factory.quiet();
            Ok(Arc::new(factory))
        });
        made.clone().map_err(|error| {
            ApiError::failed(format!(
                "this model's vocabulary cannot be used with schemas: {error}"
            ))
        })
    }
}

/// The vocabulary's tokens as bytes; special ones are marked as no text.
fn environment(tokenizer: &Tokenizer) -> TokEnv {
    let word = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        match tokenizer.is_special(id) {
            true => [&[0xff][..], &bytes].concat(),
            false => bytes,
        }
    };
    let count = tokenizer.vocab_size() as u32;
    let words: Vec<Vec<u8>> = (0..count).map(word).collect();
    let ends = tokenizer.eos_ids();
    let mut info = TokRxInfo::new(count, ends.first().copied().unwrap_or(0));
    info.tok_bos = tokenizer.bos();
    let trie = TokTrie::from(&info, &words).with_eos_tokens(match ends {
        [] => &[0],
        ends => ends,
    });
    Arc::new(ApproximateTokEnv::new(trie))
}

/// Forbids what would leave the grammar.
struct Follow {
    matcher: Matcher,
    ends: Vec<u32>,
    /// Tokens of the history that are the prompt's or were taken in.
    seen: Option<usize>,
}

impl Sampler for Follow {
    fn apply(&mut self, candidates: &mut Candidates, history: &[u32]) {
        let seen = self.seen.replace(history.len()).unwrap_or(history.len());
        let mask = self
            .matcher
            .consume_tokens(&history[seen.min(history.len())..])
            .and_then(|()| self.matcher.compute_mask_or_eos());
        let any = match &mask {
            Ok(mask) => candidates.keep_masked(mask.as_slice()),
            Err(_) => false,
        };
        if !any {
            // The grammar is over, or too large to be followed: the text ends here.
            candidates.retain(|item| self.ends.contains(&item.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use longview::{Engine, EngineOptions, Specials};

    use super::*;

    #[test]
    fn beside_tools_an_answer_is_of_the_schema_or_a_call() {
        let engine = Engine::open(&EngineOptions::default()).unwrap();
        let factory = Vocabulary::default().factory(engine.tokenizer()).unwrap();
        let tools = [
            json!({ "type": "function", "function": { "name": "look_up", "parameters": {
            "type": "object", "properties": { "place": { "enum": ["harbor"] } }, "required": ["place"]
        } } }),
        ];
        let toolbox = Toolbox::new(Some(&tools), None).unwrap().unwrap();
        let schema = json!({
            "type": "object", "properties": { "code": { "$ref": "#/$defs/code" } },
            "required": ["code"], "additionalProperties": false,
            "$defs": { "code": { "type": "integer" } }
        });
        let start = matcher(&factory, either(schema, toolbox.calls()));
        assert_eq!(start.get_error(), None);
        let follows = |text: &str| {
            let tokens = engine.tokenizer().encode(text, Specials::AsText).unwrap();
            let mut matcher = start.deep_clone();
            matcher.consume_tokens(&tokens).is_ok() && matcher.is_accepting().unwrap()
        };
        assert!(follows("{\"code\": 4711}"));
        assert!(follows(
            "{\"name\": \"look_up\", \"arguments\": {\"place\": \"harbor\"}}"
        ));
        for neither in [
            "{\"code\": \"x\"}",
            "{\"name\": \"robbery\", \"arguments\": {}}",
            "{\"name\": \"look_up\", \"arguments\": {\"place\": \"gate\"}}",
        ] {
            assert!(!follows(neither), "{neither}");
        }
    }
}
