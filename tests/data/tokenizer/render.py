"""Renders templates/*.jinja with Jinja2 as Hugging Face transformers does, into templates.json.

    python render.py        (needs the PyPI package jinja2)

The templates are written for these tests, in the manner of the model families that they are named after.
"""

import json
from datetime import datetime
from pathlib import Path

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
NOW = datetime(2024, 2, 5, 9, 7, 3)

CHATS = {
    "one": [("user", "Hi")],
    "system": [("system", "  Be brief.\n"), ("user", "What is 1 + 1?\nTell me <b>\"now\"</b> & it's é…")],
    "turns": [("system", "Be brief."), ("user", " Hi "), ("assistant", "<think>\nhm\n</think>\n\nHello! "), ("user", "Bye")],
    "answered": [("user", "Hi"), ("assistant", "\nHello!\n")],
    "empty": [("user", ""), ("assistant", "")],
    "wrong": [("user", "Hi"), ("user", "Hi?")],
    "tool": [("user", "Look"), ("assistant", "call"), ("tool", "{\"a\": 1}"), ("tool", "2")],
}


class Generation(Extension):
    """{% generation %} marks text and leaves it as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception


def main():
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        for name, chat in CHATS.items():
            for prompt in (False, True):
                for extra in ({}, {"enable_thinking": False}):
                    if extra and "enable_thinking" not in path.read_text():
                        continue
                    dated = "strftime_now" in path.read_text() and name != "one" or path.stem == "harmony"
                    if dated:
                        env.globals["strftime_now"] = NOW.strftime
                    else:
                        env.globals.pop("strftime_now", None)
                    try:
                        text = env.from_string(path.read_text()).render(
                            messages=[{"role": r, "content": c} for r, c in chat], add_generation_prompt=prompt,
                            bos_token="<s>", eos_token="</s>", tools=None, documents=None, **extra)
                        error = None
                    except TemplateError as e:
                        text, error = None, str(e)
                    cases.append({"template": path.stem, "chat": chat, "prompt": prompt, "extra": extra, "dated": dated,
                                  "text": text, "error": error})
    (HERE / "templates.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
