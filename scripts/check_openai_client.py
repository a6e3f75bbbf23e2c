#!/usr/bin/env python3
"""Talks to a running `thermocline serve` with the official `openai` package and says what does not hold.

    thermocline serve --port 8000 &
    python3 -m venv venv && venv/bin/pip install openai
    venv/bin/python scripts/check_openai_client.py --base-url http://127.0.0.1:8000/v1

Exit status 0 when every check holds. Needs nothing of the model but that it produces tokens.
"""

import argparse
import concurrent.futures
import json
import sys

import openai

failures = 0


def check(holds, what):
    global failures
    print(("ok    " if holds else "FAIL  ") + what, flush=True)
    failures += not holds


def refused(call, status, param=None):
    """The request must fail with this HTTP status and name the field."""
    try:
        call()
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return error.status_code == status and (param is None or body.get("param") == param)
    return False


def check_chat(client, model):
    ask = dict(model=model, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask)
    message = whole.choices[0].message
    text = (getattr(message, "reasoning_content", None) or "") + (message.content or "")
    check(text != "", f"chat answers: {text[:60]!r}")
    check(whole.choices[0].finish_reason in ("stop", "length"), f"finish_reason {whole.choices[0].finish_reason}")
    check(0 < whole.usage.completion_tokens <= 24, f"usage counts {whole.usage.completion_tokens} tokens")

    pieces, last = [], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            pieces.append((getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or ""))
        last = chunk
    check("".join(pieces) == text, "the stream joins to the same text")
    check(last.usage is not None and last.usage.completion_tokens == whole.usage.completion_tokens, "usage in the stream")

    plain = client.chat.completions.create(**ask, extra_body={"thinking": {"type": "disabled"}})
    check(getattr(plain.choices[0].message, "reasoning_content", None) is None, "thinking can be turned off")

    scored = client.chat.completions.create(**{**ask, "max_tokens": 3}, logprobs=True, top_logprobs=2)
    entries = scored.choices[0].logprobs.content
    check(all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries), "logprobs with two candidates")


def check_completions(client, model):
    ask = dict(model=model, prompt="Once upon a time", max_tokens=16, temperature=0)
    whole = client.completions.create(**ask)
    text = whole.choices[0].text
    check(len(text) > 0, f"completion continues: {text[:60]!r}")
    streamed = "".join(choice.text for chunk in client.completions.create(**ask, stream=True) for choice in chunk.choices)
    check(streamed == text, "the stream joins to the same text")
    word = text.split()[1] if len(text.split()) > 1 else text[-1]
    cut = client.completions.create(**ask, stop=[word]).choices[0]
    check(cut.text == text[: text.index(word)] and cut.finish_reason == "stop", f"stop string {word!r} cuts")
    echo = client.completions.create(**{**ask, "max_tokens": 1}, echo=True, logprobs=1).choices[0]
    check(echo.text.startswith("Once upon a time"), "echo")
    check(echo.logprobs.token_logprobs[0] is None and len(echo.logprobs.tokens) == len(echo.logprobs.text_offset),
          "prompt logprobs")
    scored = client.completions.create(**{**ask, "prompt": [5, 300, 301], "max_tokens": 0}, echo=True, logprobs=1).choices[0]
    best = [max(top.values()) for top in scored.logprobs.top_logprobs[1:]]
    check(len(best) == 2 and all(b >= own for b, own in zip(best, scored.logprobs.token_logprobs[1:])),
          "token arrays are scored, nothing is generated")
    hot = dict(model=model, prompt="The", max_tokens=12, temperature=1.5, n=2)
    first = client.completions.create(**hot, seed=11)
    again = client.completions.create(**hot, seed=11)
    check([c.text for c in first.choices] == [c.text for c in again.choices], "the same seed gives the same text")
    batch = client.completions.create(model=model, prompt=["a", "b"], max_tokens=2, temperature=0)
    check([choice.index for choice in batch.choices] == [0, 1], "a list of prompts")


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


def check_tools(client, model):
    """The model need not call; what a client sends back after a call must be understood."""
    turns = [{"role": "user", "content": "How is the weather in Rome?"},
             {"role": "assistant", "content": None, "tool_calls": [
                 {"id": "call_1", "type": "function",
                  "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}]},
             {"role": "tool", "tool_call_id": "call_1", "content": "Sun."}]
    ask = dict(model=model, messages=turns, tools=[WEATHER], max_tokens=16, temperature=0)
    whole = client.chat.completions.create(**ask)
    check(whole.usage.completion_tokens > 0, "goes on after a tool's result")
    plain = client.chat.completions.create(**{**ask, "tools": openai.omit})
    check(plain.usage.prompt_tokens < whole.usage.prompt_tokens, "tools take room in the prompt")
    check(refused(lambda: client.chat.completions.create(**ask, tool_choice={
        "type": "function", "function": {"name": "no_such_tool"}}), 400), "an unknown tool by name is a 400")


def check_json(client, model):
    """Only where the server has structured output: 501 says that it has not."""
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
              "required": ["name", "age"], "additionalProperties": False}
    ask = dict(model=model, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=200, temperature=0,
               extra_body={"thinking": {"type": "disabled"}})
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    try:
        choice = client.chat.completions.create(**ask, response_format=form).choices[0]
    except openai.APIStatusError as error:
        check(error.status_code == 501, f"response_format is refused with {error.status_code}")
        return
    if choice.finish_reason == "stop":
        person = json.loads(choice.message.content)
        check(set(person) == {"name", "age"} and isinstance(person["age"], int), f"json_schema gives {person}")
    else:
        check(choice.message.content.startswith("{"), f"json_schema, cut by length: {choice.message.content[:60]!r}")


def check_responses(client, model):
    ask = dict(model=model, input="Tell me a story.", max_output_tokens=24, temperature=0)
    whole = client.responses.create(**ask)
    texts = [part.text for item in whole.output if item.type in ("message", "reasoning") for part in item.content]
    check("".join(texts) != "", f"responses answers: {''.join(texts)[:60]!r}")
    check(whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 24, f"status {whole.status}")
    deltas, last = [], None
    for event in client.responses.create(**ask, stream=True):
        if event.type in ("response.output_text.delta", "response.reasoning_text.delta"):
            deltas.append(event.delta)
        last = event
    check("".join(deltas) == "".join(texts), "the events join to the same text")
    check(last.type in ("response.completed", "response.incomplete") and last.response.usage is not None,
          f"the last event is {last.type}")


def check_errors(client, model):
    user = [{"role": "user", "content": "x"}]
    check(refused(lambda: client.chat.completions.create(model=model, messages=user, temperature=3), 400, "temperature"),
          "temperature 3 is a 400 that names it")
    check(refused(lambda: client.chat.completions.create(model="no-such-model", messages=user), 404), "unknown model is a 404")
    check(refused(lambda: client.chat.completions.create(model=model, messages=[]), 400), "no messages is a 400")
    long = "word " * 200000
    check(refused(lambda: client.completions.create(model=model, prompt=long), 400), "a prompt over the context is a 400")


def check_clients_at_once(client, model):
    def one(i):
        return client.completions.create(model=model, prompt=f"Number {i} is", max_tokens=8, temperature=0).choices[0].text

    alone = [one(i) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    check(alone == together, "four clients at once get what each gets alone")

    stream = client.completions.create(model=model, prompt="Once", max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    check(len(one(9)) > 0, "the server goes on after a client left in the middle of a stream")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    check(client.models.retrieve(model).id == model, f"model {model}")
    check_chat(client, model)
    check_completions(client, model)
    check_tools(client, model)
    check_json(client, model)
    check_responses(client, model)
    check_errors(client, model)
    check_clients_at_once(client, model)
    print("all checks hold" if failures == 0 else f"{failures} checks failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
