"""Renders families/*.jinja with Jinja2 as Hugging Face transformers does, into families.json.

    python families.py        (needs the PyPI package jinja2)

The templates are written for these tests, in the manner of the model families that they are named after and with the
constructs that the published ones use. families.json has `chats`, `variables`, `texts` (each once), and `cases`: template,
chat, whether a generation prompt is added, variables, and the index in `texts`, or the words of the error.
"""

import json
from datetime import datetime
from pathlib import Path

import render  # its environment: the settings and functions of transformers

HERE = Path(__file__).parent


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "get_weather", "arguments": {"place": "Zürich \"Nord\"", "days": 2, "units": ["C", "F"], "now": True}}}
OTHER = {"id": "jklmnopqr", "type": "function", "function": {"name": "noop", "arguments": {}}}
TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather's <forecast> & more",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "A town, e.g. Zürich"},
            "days": {"type": "integer", "default": 1},
            "units": {"type": "array", "items": {"type": "string", "enum": ["C", "F"]}},
            "kind": {"type": "string", "enum": ["rain", "sun"], "default": "sun"}}}}},
    {"type": "function", "function": {"name": "noop", "description": "Nothing", "parameters": {"type": "object", "properties": {}}}},
]

CHATS = {
    "user": [m("user", "Hi")],
    "system": [m("system", " Be brief.\n"), m("user", "What's 1 + 1?")],
    "turns": [m("system", "Be brief."), m("user", " Hi "), m("assistant", "Hello!\n"), m("user", "And\n\nnow?"), m("assistant", "Bye.")],
    "four": [m("user", "1"), m("assistant", "2"), m("user", "3"), m("assistant", "4"), m("user", "5")],
    "unicode": [m("user", "é 漢字 🦈 <b>\"x\"</b> & 'y' \\n {{ z }} {% if %} <|im_end|></s>[INST]")],
    "empty": [m("user", ""), m("assistant", ""), m("user", "")],
    "thought": [m("user", "Hi"), m("assistant", "Hello!", reasoning_content="\nThe user greets.\n", thinking="\nThe user greets.\n"), m("user", "Bye")],
    "tagged": [m("user", "Hi"), m("assistant", "<think>\nHm.\n</think>\n\nHello!"), m("user", "Bye"), m("assistant", "<think>\nAh.\n</think>\n\nBye!")],
    "last thought": [m("user", "Hi"), m("assistant", "Hello!", reasoning_content="Hm.", thinking="Hm.")],
    "tool": [m("system", "Use tools."), m("user", "Weather?"), m("assistant", "", tool_calls=[CALL]),
             m("tool", "{\"sky\": \"grau\"}", tool_call_id="abcdefghi", name="get_weather"), m("assistant", "Grey.")],
    "tools": [m("user", "Weather?"), m("assistant", "Let me see.", tool_calls=[CALL, OTHER]),
              m("tool", "grau", tool_call_id="abcdefghi"), m("tool", "-", tool_call_id="jklmnopqr")],
    "parts": [m("user", [{"type": "text", "text": " Look "}, {"type": "image"}, {"type": "text", "text": "there"}])],
    "wrong": [m("user", "Hi"), m("user", "Hi?")],
    "nobody": [m("narrator", "It rains.")],
}
VARIABLES = [{}, {"tools": TOOLS}, {"enable_thinking": False}, {"enable_thinking": True}, {"thinking": True}]


def wanted(chat, source, extra):
    """Variables that a template does not know change nothing; tools are for conversations with and without calls."""
    for key in extra:
        if key not in source:
            return False
    if "tools" in extra:
        return chat in ("user", "system", "tool", "tools")
    if extra:
        return chat in ("system", "turns", "thought", "last thought")
    return True


def main():
    env = render.env
    env.globals["strftime_now"] = datetime(2024, 2, 5, 9, 7, 3).strftime
    texts, cases = {}, []
    paths = sorted((HERE / "families").glob("*.jinja"))
    for path in paths:
        source = path.read_text()
        template = env.from_string(source)
        for chat, messages in CHATS.items():
            for extra in VARIABLES:
                if not wanted(chat, source, extra):
                    continue
                for prompt in (True, False):
                    try:
                        arguments = {"tools": None, "documents": None, **extra}
                        text = template.render(messages=json.loads(json.dumps(messages)), add_generation_prompt=prompt,
                                               bos_token="<s>", eos_token="</s>", **arguments)
                        result = texts.setdefault(text, len(texts))
                    except render.TemplateError as e:
                        result = str(e)
                    except (TypeError, AttributeError, KeyError, IndexError) as e:
                        # Python's own errors have Python's words.
                        result = ""
                    cases.append([path.stem, chat, prompt, VARIABLES.index(extra), result])
    dump = lambda x: json.dumps(x, ensure_ascii=False, separators=(",", ":"))
    rows = lambda x: "[\n" + ",\n".join(dump(i) for i in x) + "\n]"
    out = '{"chats":' + dump(CHATS) + ',\n"variables":' + dump(VARIABLES) + ',\n"texts":' + rows(texts) + ',\n"cases":' + rows(cases) + "}\n"
    (HERE / "families.json").write_text(out)
    print(len(paths), "templates,", len(cases), "cases,", len(texts), "texts,", sum(isinstance(c[4], str) for c in cases), "errors")


main()
