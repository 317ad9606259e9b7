"""The programs that people point at a server, against a running one: chat, stream, tools, schema, a broken-off stream.

    pip install openai anthropic litellm langchain-openai pydantic-ai-slim[openai] openai-agents llm
    python tests/serve/clients.py --url http://127.0.0.1:8080 [--key KEY] [--only NAME]

Prints a table and exits with 1 where anything failed. The model must have a template with tools. Small models call what they are
told to: tools are required here, so that what is judged is the server. A client that is not installed is skipped by name.
"""

import argparse
import asyncio
import json
import os
import sys
import traceback

parser = argparse.ArgumentParser()
parser.add_argument("--url", default="http://127.0.0.1:8080")
parser.add_argument("--key", default="none")
parser.add_argument("--only", default="")
parser.add_argument("--trace", action="store_true")
args = parser.parse_args()
BASE = args.url.rstrip("/")
V1 = BASE + "/v1"
COLUMNS = ["chat", "stream", "tools", "schema", "abort"]

QUESTION = [{"role": "user", "content": "Say hello."}]
PLACE = {"type": "string", "enum": ["Oslo", "Rome"]}
PARAMETERS = {"type": "object", "properties": {"place": PLACE}, "required": ["place"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a place", "parameters": PARAMETERS}}
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
          "required": ["colour", "n"], "additionalProperties": False}


def need(truth, what=""):
    if not truth:
        raise AssertionError(str(what)[:300])


def place(arguments):
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    need(set(value) == {"place"} and value["place"] in PLACE["enum"], value)
    return value["place"]


def colour(text):
    value = json.loads(text) if isinstance(text, str) else text
    need(value["colour"] in ("red", "green") and 1 <= value["n"] <= 9, value)


def model_id():
    import urllib.request
    request = urllib.request.Request(V1 + "/models", headers={"Authorization": "Bearer " + args.key})
    return json.load(urllib.request.urlopen(request))["data"][0]["id"]


# --- one class a client, one method a column ----------------------------------------------------------


class OpenAI:
    name = "openai"

    def __init__(self, model):
        import openai
        self.model, self.client = model, openai.OpenAI(base_url=V1, api_key=args.key, max_retries=0)

    def ask(self, messages=QUESTION, **more):
        return self.client.chat.completions.create(model=self.model, messages=messages, temperature=0, max_tokens=more.pop("max_tokens", 160), **more)

    def chat(self):
        r = self.ask(max_tokens=16)
        need(r.choices[0].message.content and r.usage.completion_tokens > 0, r)

    def stream(self):
        pieces = [c for c in self.ask(max_tokens=16, stream=True, stream_options={"include_usage": True})]
        need("".join(c.choices[0].delta.content or "" for c in pieces if c.choices) and pieces[-1].usage, pieces[-1])

    def tools(self):
        m = self.ask([{"role": "user", "content": "The weather in Oslo?"}], tools=[TOOL], tool_choice="required").choices[0]
        need(m.finish_reason == "tool_calls", m)
        call = m.message.tool_calls[0]
        where = place(call.function.arguments)
        # Streamed, the pieces join to the same.
        joined = ""
        for c in self.ask([{"role": "user", "content": "The weather in Oslo?"}], tools=[TOOL], tool_choice="required", stream=True):
            for d in (c.choices[0].delta.tool_calls or []) if c.choices else []:
                # Of several calls the first: each has an index of its own.
                joined += (d.function.arguments or "") if d.index == 0 else ""
        need(json.loads(joined) == json.loads(call.function.arguments), joined)
        back = [{"role": "user", "content": "The weather in Oslo?"}, m.message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": f"Rain in {where}."}]
        need(self.ask(back, tools=[TOOL], tool_choice="none", max_tokens=24).choices[0].message.content, "no answer to the result")

    def schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
        colour(self.ask(response_format=form).choices[0].message.content)

    def abort(self):
        stream = self.ask(max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
        self.chat()


class Responses(OpenAI):
    name = "openai (responses)"

    def make(self, given="Say hello.", **more):
        return self.client.responses.create(model=self.model, input=given, temperature=0, max_output_tokens=more.pop("most", 160), **more)

    def chat(self):
        need(self.make(most=16).output_text, "no text")

    def stream(self):
        kinds = [e.type for e in self.make(most=16, stream=True)]
        need("response.output_text.delta" in kinds and kinds[-1] in ("response.completed", "response.incomplete"), kinds)

    def tools(self):
        tool = {"type": "function", "name": "get_weather", "description": "", "parameters": PARAMETERS, "strict": True}
        r = self.make("The weather in Oslo?", tools=[tool], tool_choice="required")
        call = [i for i in r.output if i.type == "function_call"][0]
        place(call.arguments)
        back = [{"role": "user", "content": "The weather in Oslo?"}, call.model_dump(exclude_none=True),
                {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}]
        need(self.make(back, tools=[tool], tool_choice="none", most=24).output_text, "no answer to the result")

    def schema(self):
        colour(self.make(text={"format": {"type": "json_schema", "name": "x", "strict": True, "schema": SCHEMA}}).output_text)

    def abort(self):
        stream = self.make(most=400, stream=True)
        next(iter(stream))
        stream.close()
        self.chat()


class Anthropic:
    name = "anthropic"

    def __init__(self, model):
        import anthropic
        self.model, self.client = model, anthropic.Anthropic(base_url=BASE, api_key=args.key, max_retries=0)

    def ask(self, messages=QUESTION, **more):
        return self.client.messages.create(model=self.model, messages=messages, extra_body={"temperature": 0}, max_tokens=more.pop("max_tokens", 160), **more)

    def chat(self):
        need(self.ask(max_tokens=16).content[0].text, "no text")

    def stream(self):
        with self.client.messages.stream(model=self.model, messages=QUESTION, max_tokens=16, extra_body={"temperature": 0}) as s:
            need("".join(s.text_stream) and s.get_final_message().usage.output_tokens, "no text")

    def tools(self):
        tool = {"name": "get_weather", "description": "The weather of a place", "input_schema": PARAMETERS}
        q = {"role": "user", "content": "The weather in Oslo?"}
        r = self.ask([q], tools=[tool], tool_choice={"type": "any"})
        use = [b for b in r.content if b.type == "tool_use"][0]
        need(r.stop_reason == "tool_use", r.stop_reason)
        place(use.input)
        back = [q, {"role": "assistant", "content": [use.model_dump(include={"type", "id", "name", "input"})]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}]}]
        need(self.ask(back, tools=[tool], tool_choice={"type": "none"}, max_tokens=24).content, "no answer to the result")

    schema = None

    def abort(self):
        stream = self.ask(max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
        self.chat()


class LiteLLM:
    name = "litellm"

    def __init__(self, model):
        import litellm
        litellm.telemetry = False
        self.lib, self.model = litellm, "openai/" + model

    def ask(self, messages=QUESTION, **more):
        return self.lib.completion(model=self.model, api_base=V1, api_key=args.key, messages=messages, temperature=0, max_tokens=more.pop("max_tokens", 160), **more)

    chat = OpenAI.chat

    def stream(self):
        need("".join(c.choices[0].delta.content or "" for c in self.ask(max_tokens=16, stream=True)), "no text")

    def tools(self):
        m = self.ask([{"role": "user", "content": "The weather in Oslo?"}], tools=[TOOL], tool_choice="required").choices[0].message
        place(m.tool_calls[0].function.arguments)
        back = [{"role": "user", "content": "The weather in Oslo?"}, m.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": m.tool_calls[0].id, "content": "Rain."}]
        need(self.ask(back, tools=[TOOL], tool_choice="none", max_tokens=24).choices[0].message.content, "no answer to the result")

    schema = OpenAI.schema
    abort = None


class LangChain:
    name = "langchain-openai"

    def __init__(self, model):
        from langchain_openai import ChatOpenAI
        self.chat_model = ChatOpenAI(model=model, base_url=V1, api_key=args.key, temperature=0, max_tokens=160, max_retries=0)

    def chat(self):
        need(self.chat_model.invoke("Say hello.").content, "no text")

    def stream(self):
        need("".join(c.content for c in self.chat_model.stream("Say hello.")), "no text")

    def tools(self):
        from langchain_core.messages import HumanMessage, ToolMessage
        q = HumanMessage("The weather in Oslo?")
        m = self.chat_model.bind_tools([TOOL], tool_choice="required").invoke([q])
        place(m.tool_calls[0]["args"])
        back = [q, m, ToolMessage("Rain.", tool_call_id=m.tool_calls[0]["id"])]
        need(self.chat_model.bind_tools([TOOL], tool_choice="none").invoke(back).content, "no answer to the result")

    def schema(self):
        colour(self.chat_model.with_structured_output({"title": "x", **SCHEMA}, method="json_schema").invoke("A colour and a number."))

    abort = None


class PydanticAI:
    name = "pydantic-ai"

    def __init__(self, model):
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
        self.agent = Agent
        self.model = OpenAIChatModel(model, provider=OpenAIProvider(base_url=V1, api_key=args.key))
        self.settings = {"temperature": 0, "max_tokens": 160}

    def chat(self):
        need(self.agent(self.model, model_settings=self.settings).run_sync("Say hello.").output, "no text")

    def stream(self):
        async def run():
            async with self.agent(self.model, model_settings=self.settings).run_stream("Say hello.") as r:
                return "".join([t async for t in r.stream_text(delta=True)])
        need(asyncio.run(run()), "no text")

    def tools(self):
        # Its tool for an output is a required call.
        from typing import Literal
        from pydantic import BaseModel
        Weather = type("Weather", (BaseModel,), {"__annotations__": {"place": Literal["Oslo", "Rome"]}})
        r = self.agent(self.model, output_type=Weather, model_settings=self.settings).run_sync("The weather in Oslo?")
        need(r.output.place in PLACE["enum"], r.output)

    def schema(self):
        from typing import Literal
        from pydantic import BaseModel
        from pydantic_ai import NativeOutput
        Pet = type("Pet", (BaseModel,), {"__annotations__": {"kind": Literal["cat", "dog"], "tame": bool}})
        r = self.agent(self.model, output_type=NativeOutput(Pet), model_settings=self.settings).run_sync("A pet.")
        need(r.output.kind in ("cat", "dog"), r.output)

    abort = None


class Agents:
    name = "openai-agents"

    def __init__(self, model):
        import agents
        import openai
        agents.set_tracing_disabled(True)
        self.lib = agents
        # One loop for all: the client keeps its connections.
        self.run = asyncio.new_event_loop().run_until_complete
        client = openai.AsyncOpenAI(base_url=V1, api_key=args.key, max_retries=0)
        self.model = agents.OpenAIChatCompletionsModel(model=model, openai_client=client)

    def agent(self, **more):
        settings = self.lib.ModelSettings(temperature=0, max_tokens=160, tool_choice=more.pop("tool_choice", None))
        return self.lib.Agent(name="x", instructions="Be brief.", model=self.model, model_settings=settings, **more)

    def chat(self):
        need(self.run(self.lib.Runner.run(self.agent(), "Say hello.")).final_output, "no text")

    def stream(self):
        async def run():
            r = self.lib.Runner.run_streamed(self.agent(), "Say hello.")
            return [e.type async for e in r.stream_events()]
        need("raw_response_event" in self.run(run()), "no events")

    def tools(self):
        called = []

        @self.lib.function_tool
        def stop_music() -> str:
            """Stops the music"""
            called.append(1)
            return "It is silent."
        # The result goes back to the model, which answers: the kit resets the choice after a call.
        r = self.run(self.lib.Runner.run(self.agent(tools=[stop_music], tool_choice="required"), "Stop the music.", max_turns=4))
        need(called and r.final_output is not None, r)

    def schema(self):
        from typing import Literal
        from pydantic import BaseModel
        Pet = type("Pet", (BaseModel,), {"__annotations__": {"kind": Literal["cat", "dog"], "tame": bool}, "__module__": __name__})
        need(self.run(self.lib.Runner.run(self.agent(output_type=Pet), "A pet.")).final_output.kind in ("cat", "dog"))

    abort = None


class Llm:
    name = "llm"

    def __init__(self, model):
        import llm
        from llm.default_plugins.openai_models import Chat
        self.llm, self.model = llm, Chat(model, model_name=model, api_base=V1, supports_schema=True, supports_tools=True)
        self.model.key = args.key

    def ask(self, **more):
        return self.model.prompt("Say hello.", temperature=0, max_tokens=160, **more)

    def chat(self):
        need(self.ask(stream=False).text(), "no text")

    def stream(self):
        need("".join(self.ask()), "no text")

    tools = None

    def schema(self):
        colour(self.ask(schema=SCHEMA, stream=False).text())

    abort = None


def main():
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        os.environ.setdefault(name, args.key)
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    model, failed, rows = model_id(), 0, []
    for client in (OpenAI, Responses, Anthropic, LiteLLM, LangChain, PydanticAI, Agents, Llm):
        if args.only not in client.name:
            continue
        try:
            one = client(model)
        except ImportError as e:
            rows.append([client.name, f"not installed ({e.name})"])
            continue
        row = [client.name]
        for column in COLUMNS:
            method = getattr(one, column)
            try:
                row.append("-" if method is None else method() or "pass")
            except Exception as e:  # a client may raise whatever it likes
                failed += 1
                row.append("FAIL")
                print(f"{client.name}, {column}: {type(e).__name__}: {str(e)[:300]}", file=sys.stderr)
                if args.trace:
                    traceback.print_exc()
        rows.append(row)
        print(" ".join(f"{c:<20}" if i == 0 else f"{c:<8}" for i, c in enumerate(row)), flush=True)
    print("\n" + " ".join([f"{'client':<20}"] + [f"{c:<8}" for c in COLUMNS]))
    for row in rows:
        print(" ".join(f"{c:<20}" if i == 0 else f"{c:<8}" for i, c in enumerate(row)))
    sys.exit(1 if failed else 0)


main()
