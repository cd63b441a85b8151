//! No body makes the server fail: bodies made after the OpenAPI document, right and wrong, for every route that
//! takes one.

use longview_server::ServerOptions;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::support::{Running, engine, options};

/// Bodies sent to each route.
const BODIES: u32 = 24;

/// Fields that say how much is written: a test has no time for much.
const LENGTHS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// A way in: where, of what type bodies are, and what they are made after.
struct Route {
    path: String,
    kind: String,
    schema: Value,
}

/// Every route of the document that takes a body.
fn routes(document: &Value) -> Vec<Route> {
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(content) = item.pointer("/post/requestBody/content") else {
            continue;
        };
        for (kind, media) in content.as_object().unwrap() {
            routes.push(Route {
                path: path.replace("{id}", "none"),
                kind: kind.clone(),
                schema: media["schema"].clone(),
            });
        }
    }
    routes
}

/// Anything that is JSON.
fn anything() -> BoxedStrategy<Value> {
    let numbers = [
        json!(0),
        json!(-1),
        json!(1e308),
        json!(u64::MAX),
        json!(0.5),
        json!(3),
    ];
    let texts = [
        "",
        "a",
        "user",
        "text",
        "\u{0}\u{fffd}",
        "<|im_end|>",
        "9999999999999999999999",
        "../x",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select(numbers.to_vec()),
        select(texts.to_vec()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let names = [
        "type",
        "role",
        "content",
        "text",
        "function",
        "name",
        "$ref",
        "properties",
        "input_schema",
    ];
    let nested = leaf.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((select(names.to_vec()), inner), 0..3).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    });
    nested.boxed()
}

/// What a schema allows, and now and then something else.
fn after(document: &Value, schema: &Value, depth: usize) -> BoxedStrategy<Value> {
    if depth == 0 {
        return anything();
    }
    if let Some(name) = schema["$ref"].as_str() {
        let named = document.pointer(name.trim_start_matches('#'));
        return after(document, named.unwrap(), depth - 1);
    }
    let inner = |schema: &Value| after(document, schema, depth - 1);
    let several = ["oneOf", "anyOf", "allOf"]
        .iter()
        .find_map(|word| schema[word].as_array());
    let right = if let Some(schemas) = several {
        Union::new(schemas.iter().map(inner)).boxed()
    } else if let Some(words) = schema["enum"].as_array() {
        select(words.clone()).boxed()
    } else if let Some(fields) = schema["properties"].as_object() {
        let one = |(name, schema): (&String, &Value)| {
            let name = name.clone();
            prop::option::of(inner(schema)).prop_map(move |value| Some((name.clone(), value?)))
        };
        let all: Vec<_> = fields.iter().map(one).collect();
        all.prop_map(|fields| fields.into_iter().flatten().collect())
            .boxed()
    } else {
        let kinds = match &schema["type"] {
            Value::String(kind) => vec![kind.clone()],
            Value::Array(kinds) => kinds
                .iter()
                .map(|kind| kind.as_str().unwrap().to_owned())
                .collect(),
            _ => Vec::new(),
        };
        let of_kind = |kind: &String| match kind.as_str() {
            "string" => select(vec![
                "",
                "a b",
                "user",
                "assistant",
                "system",
                "text",
                "low",
                "all",
                "greedy",
                "none",
            ])
            .prop_map(Value::from)
            .boxed(),
            "integer" => select(vec![json!(0), json!(1), json!(2), json!(17)]).boxed(),
            "number" => select(vec![json!(0), json!(0.5), json!(1), json!(2.5)]).boxed(),
            "boolean" => any::<bool>().prop_map(Value::from).boxed(),
            "array" => prop::collection::vec(inner(&schema["items"]), 0..3)
                .prop_map(Value::from)
                .boxed(),
            "null" => Just(Value::Null).boxed(),
            _ => anything(),
        };
        match kinds.is_empty() {
            true => anything(),
            false => Union::new(kinds.iter().map(of_kind)).boxed(),
        }
    };
    prop_oneof![9 => right, 1 => anything()].boxed()
}

/// Bytes for a route, and whether they are cut or damaged somewhere.
fn bodies(document: &Value, route: &Route) -> BoxedStrategy<Vec<u8>> {
    let good = match route.kind.as_str() {
        "application/json" => after(document, &route.schema, 5)
            .prop_map(|mut body| {
                for name in LENGTHS {
                    if body[name].as_f64().is_some_and(|length| length > 2.0) {
                        body[name] = json!(2);
                    }
                }
                body.to_string().into_bytes()
            })
            .boxed(),
        kind if kind.starts_with("multipart") => any::<Vec<u8>>()
            .prop_map(|bytes| {
                let head = b"--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"../a\"\r\n\r\n";
                [&head[..], &bytes, b"\r\n--b--\r\n"].concat()
            })
            .boxed(),
        _ => any::<Vec<u8>>().boxed(),
    };
    let harm = prop::option::weighted(0.15, (any::<prop::sample::Index>(), any::<u8>()));
    (good, harm)
        .prop_map(|(mut bytes, harm)| {
            if let Some((at, byte)) = harm.filter(|_| !bytes.is_empty()) {
                let at = at.index(bytes.len());
                match byte % 3 {
                    0 => bytes.truncate(at),
                    _ => bytes[at] = byte,
                }
            }
            bytes
        })
        .boxed()
}

#[test]
fn no_body_makes_the_server_fail() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        usual_answer_tokens: 2,
        max_prompt_tokens: Some(2000),
        ..options(folder.path())
    };
    let server = Running::start(engine(folder.path()), options);
    let document = server.get("/openapi.json").good();
    let routes = routes(&document);
    assert!(routes.len() >= 13, "{}", routes.len());
    for route in routes {
        let mut runner = TestRunner::new(ProptestConfig {
            cases: BODIES,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let kind = match route.kind.starts_with("multipart") {
            true => "multipart/form-data; boundary=b",
            false => &route.kind,
        };
        let tried = runner.run(&bodies(&document, &route), |body| {
            let answer = server.send("POST", &route.path, &[("content-type", kind)], &body);
            prop_assert!(
                answer.status < 500,
                "{} {}: {} {}",
                route.path,
                String::from_utf8_lossy(&body),
                answer.status,
                String::from_utf8_lossy(&answer.body)
            );
            Ok(())
        });
        tried.unwrap_or_else(|error| panic!("{}: {error}", route.path));
    }
    assert_eq!(server.get("/health").status, 200);
}
