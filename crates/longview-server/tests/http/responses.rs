//! Responses that go on from stored ones.

use serde_json::{Value, json};

use crate::support::{ANSWER, DOCUMENT, QUESTION, Running, with};

fn output_text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"]
        .as_str()
        .unwrap()
}

#[test]
fn a_response_goes_on_from_a_stored_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Running::usual(folder.path());
    let first = json!({
        "input": [{ "role": "system", "content": DOCUMENT }, { "role": "user", "content": QUESTION }],
        "max_output_tokens": 24
    });
    let answer = server.post("/v1/responses", &first).good();
    assert_eq!(output_text(&answer), ANSWER);
    assert_eq!(
        (&answer["store"], &answer["previous_response_id"]),
        (&json!(true), &Value::Null)
    );
    let id = answer["id"].as_str().unwrap();
    let at = format!("/v1/responses/{id}");
    assert_eq!(server.get(&at).good(), answer);

    // The same as if the whole conversation had been sent, streamed or not.
    let question = "What is the code of the tower?";
    let next = json!({ "input": question, "previous_response_id": id, "max_output_tokens": 24 });
    let next_request = next.clone();
    let went_on = server.post("/v1/responses", &next).good();
    let whole = with(
        first.clone(),
        json!({ "store": false, "input": [
            { "role": "system", "content": DOCUMENT }, { "role": "user", "content": QUESTION },
            { "role": "assistant", "content": ANSWER }, { "role": "user", "content": question }
        ] }),
    );
    let whole = server.post("/v1/responses", &whole).good();
    assert_eq!(output_text(&went_on), output_text(&whole));
    assert_eq!(
        went_on["usage"]["input_tokens"],
        whole["usage"]["input_tokens"]
    );
    assert_eq!(went_on["previous_response_id"], id);
    let events: Vec<_> = server
        .events("/v1/responses", &with(next, json!({ "stream": true })))
        .collect();
    let done = events.last().unwrap();
    assert_eq!(done.name.as_deref(), Some("response.completed"));
    let streamed = done.json()["response"].clone();
    assert_eq!(output_text(&streamed), output_text(&whole));
    let shown = server.get(&format!(
        "/v1/responses/{}",
        streamed["id"].as_str().unwrap()
    ));
    assert_eq!(shown.good(), streamed);

    // What was not to be stored is not.
    assert_eq!(whole["store"], false);
    let not_stored = format!("/v1/responses/{}", whole["id"].as_str().unwrap());
    assert_eq!(server.get(&not_stored).status, 404);

    let items = server.get(&format!("{at}/input_items?order=asc")).good();
    let said: Vec<&str> = items["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["content"].as_str().unwrap())
        .collect();
    assert_eq!(
        (said, &items["has_more"]),
        (vec![DOCUMENT, QUESTION], &json!(false))
    );
    let newest = server.get(&format!("{at}/input_items?limit=1")).good();
    assert_eq!(
        (&newest["data"][0]["content"], &newest["has_more"]),
        (&json!(QUESTION), &json!(true))
    );
    let after = newest["last_id"].as_str().unwrap();
    let rest = server
        .get(&format!("{at}/input_items?limit=1&after={after}"))
        .good();
    assert_eq!(rest["data"][0]["content"], DOCUMENT);
    for wrong in ["limit=0", "limit=x", "order=up", "after=nothing"] {
        assert_eq!(
            server.get(&format!("{at}/input_items?{wrong}")).status,
            400,
            "{wrong}"
        );
    }

    // It is there after a restart, and can be gone on with.
    server.stop();
    server.wait().unwrap();
    let server = Running::usual(folder.path());
    assert_eq!(server.get(&at).good(), answer);
    let again = server.post("/v1/responses", &next_request).good();
    assert_eq!(output_text(&again), output_text(&whole));

    // Deleted, it can neither be seen nor gone on from; what went on from it before is whole.
    assert_eq!(server.send("DELETE", &at, &[], b"").good()["deleted"], true);
    assert_eq!(server.get(&at).status, 404);
    assert_eq!(server.send("DELETE", &at, &[], b"").status, 404);
    let refused = server.post(
        "/v1/responses",
        &json!({ "input": "x", "previous_response_id": id }),
    );
    assert_eq!(refused.status, 404);
    assert_eq!(
        refused.json()["error"]["code"],
        "previous_response_not_found"
    );
    assert_eq!(refused.refusal().2.as_deref(), Some("previous_response_id"));
    let third = json!({
        "input": QUESTION, "previous_response_id": went_on["id"], "max_output_tokens": 24
    });
    let third = server.post("/v1/responses", &third).good();
    assert!(third["usage"]["input_tokens"].as_u64() > went_on["usage"]["input_tokens"].as_u64());
    let refused = server.post(
        "/v1/responses",
        &json!({ "input": "x", "conversation": "conv_1" }),
    );
    assert_eq!(
        (refused.status, refused.refusal().2.as_deref()),
        (400, Some("conversation"))
    );
}
