#!/usr/bin/env python3
"""Drives a real `longview serve` on the reference model with the clients people use: the `openai` and
`anthropic` packages and curl.

    python -m venv clients && clients/bin/pip install openai anthropic
    clients/bin/python tools/check_clients.py target/debug/longview

Ends with 1 and says what differs when something does; a missing package is said and skipped.
"""

import json
import subprocess
import sys
import time

from serving import serving

DOCUMENT = "The code of the harbor is 4711. The sea was grey."
QUESTION = "What is the code of the harbor?"
ANSWER = "The code of the harbor is 4711."


def check(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got!r} is not {wanted!r}")
    print(f"ok: {what}")


def with_openai(url):
    try:
        import openai
    except ImportError:
        print("skipped: openai is not installed")
        return
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="a-key-for-tests", max_retries=0)
    model = client.models.list().data[0].id
    messages = [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
    check("openai chat", answer.choices[0].message.content, ANSWER)
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    check("openai stream", text, ANSWER)
    check("openai usage", usage.completion_tokens, answer.usage.completion_tokens)
    check("openai cached tokens", usage.prompt_tokens_details.cached_tokens >= 0, True)
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {
        "type": "object", "properties": {"place": {"enum": ["harbor", "tower"]}}, "required": ["place"],
        "additionalProperties": False}}}]
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64, tools=tools, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    check("openai tools", (call.function.name, list(json.loads(call.function.arguments))), ("look_up", ["place"]))
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["n"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    check("openai schema", list(json.loads(answer.choices[0].message.content)), ["n"])
    check("openai completions", len(client.completions.create(
        model=model, prompt=["a", "b"], max_tokens=3, n=2).choices), 4)
    # As evaluation harnesses ask for the probabilities of a text.
    scored = client.completions.create(model=model, prompt=DOCUMENT, echo=True, logprobs=1, max_tokens=0).choices[0]
    told = scored.logprobs.token_logprobs
    check("openai echo", (scored.text, told[0], len(told) > 4, max(told[1:]) <= 0), (DOCUMENT, None, True, True))
    vector = client.embeddings.create(model=model, input=["the sea", "grey"]).data[0].embedding
    check("openai embeddings", abs(sum(x * x for x in vector) - 1) < 1e-3, True)
    response = client.responses.create(model=model, instructions=DOCUMENT, input=QUESTION, max_output_tokens=24, temperature=0)
    check("openai responses", response.output_text, ANSWER)
    with client.responses.stream(model=model, instructions=DOCUMENT, input=QUESTION, max_output_tokens=24, temperature=0) as stream:
        check("openai responses stream", stream.get_final_response().output_text, ANSWER)
    went_on = client.responses.create(
        model=model, previous_response_id=response.id, input="What is the code of the harbor?", max_output_tokens=24,
        temperature=0)
    check("openai responses going on", went_on.usage.input_tokens > response.usage.output_tokens, True)
    check("openai responses stored", client.responses.retrieve(response.id).output_text, ANSWER)
    check("openai responses items", len(client.responses.input_items.list(response.id).data), 1)
    client.responses.delete(response.id)
    try:
        client.responses.retrieve(response.id)
        sys.exit("openai: a deleted response is shown")
    except openai.NotFoundError as error:
        check("openai responses deleted", error.code, "response_not_found")
    lines = [json.dumps({"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions",
                         "body": {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}}) for at in range(3)]
    file = client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed") and time.monotonic() < deadline:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    check("openai batch", (batch.status, batch.request_counts.completed), ("completed", 3))
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    said = [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers]
    check("openai batch's answers", said, [ANSWER] * 3)
    try:
        client.chat.completions.create(model="gpt-9", messages=messages)
        sys.exit("openai: an unknown model is answered")
    except openai.NotFoundError as error:
        check("openai errors", error.code, "model_not_found")


def with_anthropic(url):
    try:
        import anthropic
    except ImportError:
        print("skipped: anthropic is not installed")
        return
    client = anthropic.Anthropic(base_url=url, api_key="a-key-for-tests", max_retries=0)
    asked = dict(
        model="longview", max_tokens=24, messages=[{"role": "user", "content": QUESTION}],
        system=[{"type": "text", "text": DOCUMENT, "cache_control": {"type": "ephemeral"}}])
    answer = client.messages.create(**asked)
    check("anthropic messages", answer.content[0].text, ANSWER)
    with client.messages.stream(**asked) as stream:
        check("anthropic stream", stream.get_final_text(), ANSWER)
    asked.pop("max_tokens")
    check("anthropic count", client.messages.count_tokens(**asked).input_tokens > 10, True)
    try:
        client.messages.create(model="longview", max_tokens=4, messages=[])
        sys.exit("anthropic: an empty conversation is answered")
    except anthropic.BadRequestError as error:
        check("anthropic errors", error.body["error"]["type"], "invalid_request_error")


def with_curl(url):
    body = json.dumps({"messages": [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": QUESTION}],
                       "max_tokens": 24, "temperature": 0})
    try:
        said = subprocess.run(
            ["curl", "-sS", f"{url}/v1/chat/completions", "-H", "authorization: Bearer a-key-for-tests",
             "-H", "content-type: application/json", "-d", body], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        print("skipped: curl is not installed")
        return
    check("curl", json.loads(said.stdout)["choices"][0]["message"]["content"], ANSWER)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/longview"
    with serving(program, keys="test=a-key-for-tests") as server:
        with_curl(server.url)
        with_openai(server.url)
        with_anthropic(server.url)
        check("the server ends well", server.end(), 0)


if __name__ == "__main__":
    main()
