"""Renders chat templates with Python's Jinja2, as transformers does, for the Rust tests to equal.

    python tools/make_template_fixtures.py

Needs `jinja2` from PyPI. Reads the templates in crates/longview-text/tests/fixtures/chat-templates
and a few small ones below, renders every conversation below with each, and writes `expected.json`
beside them: a list of {template, conversation, messages, variables, rendered | refused | failed}.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).parent.parent / "crates/longview-text/tests/fixtures/chat-templates"
# 2024-08-05 00:05:05: single digits show whether numbers are padded.
NOW = datetime.fromtimestamp(1722816305, tz=timezone.utc)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city — \"now\", it's <b>live</b> & free\n(°C)",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "integer", "minimum": 0, "default": 1},
                "scale": {"type": "number", "default": 1.0, "maximum": 1e-05},
                "flags": {"type": "array", "items": {}, "default": []},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


TOOL_TURN = [
    user("Weather in Zürich?"),
    assistant("", tool_calls=[call("get_weather", {"city": "Zürich", "days": 2}, id="abcdef123")]),
    {"role": "tool", "content": "{\"temperature\": 21.5}", "tool_call_id": "abcdef123"},
]

# name: (messages, variables)
CONVERSATIONS = {
    "one question": ([user("Who wrote Moby-Dick?")], {}),
    "no answer wanted": ([user("Hi"), assistant("Hello!")], {"add_generation_prompt": False}),
    "system": ([system("Be brief."), user("Hi")], {}),
    "several turns": (
        [system("Be brief."), user("One?"), assistant("1"), user("Two?"), assistant("2"), user("Three?")],
        {},
    ),
    "turns without system": ([user("One?"), assistant("1"), user("Two?")], {}),
    "unicode": ([system("Antworte höflich. 🦙"), user("日本語で → «ça» \u00a0 \u200b𝔘")], {}),
    "space around": ([system("  s \n"), user("\n\n  text with space  \n"), assistant(" a \n\n"), user(" ")], {}),
    "empty content": ([system(""), user(""), assistant(""), user("")], {}),
    "markup in content": ([user("<|im_end|>{{ bos_token }}{% if %}</s>[INST] \\n \"q\" 'r' & <b>")], {}),
    "thinking": (
        [user("2+2?"), assistant("<think>\nadd\n</think>\n\n4"), user("And 3+3?")],
        {},
    ),
    "thinking last": ([user("2+2?"), assistant("<think>\nadd\n</think>\n\n4")], {"add_generation_prompt": False}),
    "reasoning field": (
        [user("2+2?"), assistant("4", reasoning_content="\nadd\n"), user("3+3?"), assistant("6", reasoning_content="again")],
        {"add_generation_prompt": False},
    ),
    "thinking off": ([user("2+2?")], {"enable_thinking": False}),
    "tools": ([system("Use tools."), user("Weather?")], {"tools": [WEATHER, CLOCK]}),
    "tools without system": ([user("Weather?")], {"tools": [WEATHER]}),
    "tool turn": (TOOL_TURN, {"tools": [WEATHER, CLOCK]}),
    "tool turn answered": (TOOL_TURN + [assistant("21.5 °C."), user("Thanks")], {"tools": [WEATHER]}),
    "two calls": (
        [
            user("Both?"),
            assistant(
                "Looking.",
                tool_calls=[
                    call("get_weather", {"city": "東京", "exact": True, "none": None}, id="abcdef123"),
                    call("clock", {}, id="abcdef124"),
                ],
            ),
            {"role": "tool", "content": "sunny", "tool_call_id": "abcdef123"},
            {"role": "tool", "content": "12:00", "tool_call_id": "abcdef124"},
        ],
        {"tools": [WEATHER, CLOCK]},
    ),
    "arguments as text": (
        [user("Time?"), assistant("", tool_calls=[call("clock", '{"zone": "CET"}', id="abcdef125")])],
        {"tools": [CLOCK], "add_generation_prompt": False},
    ),
    "bad call id": (
        [user("Time?"), assistant("", tool_calls=[call("clock", {}, id="short")]), user("?")],
        {"tools": [CLOCK]},
    ),
    "tool result as object": (
        TOOL_TURN[:2] + [{"role": "tool", "content": {"t": 21.5, "ok": True, "n": None}, "tool_call_id": "abcdef123"}],
        {"tools": [WEATHER]},
    ),
    "builtin tools": (
        [user("Search."), assistant("", tool_calls=[call("brave_search", {"query": "llama"}, id="abcdef126")])],
        {"builtin_tools": ["brave_search", "code_interpreter"]},
    ),
    "tools in the system message": ([user("Weather?")], {"tools": [WEATHER], "tools_in_user_message": False}),
    "date": ([user("Today?")], {"date_string": "05 Aug 2024"}),
    "two users in a row": ([user("a"), user("b")], {}),
    "assistant first": ([assistant("a"), user("b")], {}),
    "late system": ([user("a"), system("s"), user("b")], {}),
    "unknown role": ([user("a"), {"role": "critic", "content": "c"}, user("b")], {}),
    "no messages": ([], {}),
}

# What the six templates do not exercise.
SMALL = {
    "values": "{{ messages[0] | tojson }}|{{ [1, 2.5, 1e-7, 1e16, true, none, 'é\\x1f\\x7f'] | tojson }}|"
    "{{ {'b': 1, 'a': {}} | tojson(sort_keys=true, indent=2) }}|{{ true }} {{ none }} {{ 1.0 }} {{ ['a', 1, {'k': false}] }}|"
    "{{ [1, [2, {'x': []}]] | tojson(indent=4) }}|{{ 'é𝔘' | tojson(ensure_ascii=true) }}|"
    "{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "dates": "{{ strftime_now('%d %b %Y|%-d %B %y|%A %a|%H:%M:%S %I %p|%j|%Y-%m-%d|%%') }}",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ m.role }};{% endfor %}\n",
    "methods": "{% set t = ' A-b c ' %}{{ t.strip() }}|{{ t.upper() }}|{{ t.lower() }}|{{ t.split() }}|{{ t.split('-', 1) }}|{{ t.replace('b', 'B') }}|"
    "{{ t.startswith(' A') }}|{{ t.endswith(('x', ' ')) }}|{{ 'a\\nb'.splitlines() }}|{{ t.find('b') }}|{{ 'ab'.title() }}|{{ ', '.join(['x', 'y']) }}|"
    "{{ {'k': 1}.get('z', 'none') }}|{{ {'k': 1}.items() | list }}|{{ t[1:3] }}|{{ [1, 2, 3][::-1] }}|{{ 'x' in t }}|{{ 'abc' | first }}",
    "blocks": "{%- macro turn(m, end='.') -%}\n  [{{ m.role }}: {{ m.content | default('-', true) }}]{{ end }}\n{%- endmacro -%}\n"
    "{% for m in messages %}\n    {% if m.content %}\n{{ turn(m) }}\n    {% else %}\nempty\n    {% endif %}\n{% endfor %}\n"
    "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}\n\n",
    "filters": "{{ messages | map(attribute='role') | unique | join(',') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list }}|{{ 'a b' | upper | replace(' ', '_') }}|{{ ' x ' | trim }}|"
    "{{ {'b': 1, 'a': 2} | dictsort }}|{{ [3, 1] | sort | string }}|{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ 7 / 2 }}|{{ 'yes' if messages else 'no' }}",
}


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, messages, variables):
    values = {
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        **variables,
    }
    try:
        return {"rendered": environment().from_string(source).render(messages=messages, **values)}
    except TemplateError as error:
        if type(error) is TemplateError:
            return {"refused": error.message}
        return {"failed": type(error).__name__}
    except (TypeError, AttributeError, IndexError) as error:
        return {"failed": type(error).__name__}


def main():
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
    cases = []
    for template, source in {**sources, **SMALL}.items():
        for conversation, (messages, variables) in CONVERSATIONS.items():
            case = {"template": template, "conversation": conversation, "messages": messages, "variables": variables}
            if template in SMALL:
                case["source"] = source
            cases.append({**case, **render(source, messages, variables)})
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "expected.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    for outcome in ("rendered", "refused", "failed"):
        print(outcome, sum(outcome in case for case in cases))


if __name__ == "__main__":
    main()
