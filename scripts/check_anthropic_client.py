#!/usr/bin/env python3
"""Talks to a running `thermocline serve` with the official `anthropic` package and says what does not hold.

    venv/bin/pip install anthropic && venv/bin/python scripts/check_anthropic_client.py --base-url http://127.0.0.1:8000

Exit status 0 when every check holds. Needs nothing of the model but that it produces
tokens, so that tool use is checked as history, not as a wish.
"""

import argparse
import sys

import anthropic

failures = 0
# Newer packages have no argument for what newer models of Anthropic do not take.
GREEDY = {"temperature": 0}


def check(holds, what):
    global failures
    print(("ok    " if holds else "FAIL  ") + what, flush=True)
    failures += not holds


WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL_TURNS = [
    {"role": "user", "content": "How is the weather in Rome?"},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "I look.", "signature": "none"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sun."}]},
]


def text_of(message):
    return "".join(getattr(block, "thinking", "") or getattr(block, "text", "") for block in message.content)


def check_messages(client, model):
    ask = dict(model=model, max_tokens=24, extra_body=GREEDY, messages=[{"role": "user", "content": "Tell me a story."}])
    whole = client.messages.create(**ask)
    text = text_of(whole)
    check(text != "" and whole.role == "assistant", f"messages answers: {text[:60]!r}")
    check(whole.stop_reason in ("end_turn", "max_tokens"), f"stop_reason {whole.stop_reason}")
    check(0 < whole.usage.output_tokens <= 24, f"usage counts {whole.usage.output_tokens} tokens")

    kinds = []
    with client.messages.stream(**ask) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_message()
    check(text_of(final) == text, "the stream joins to the same text")
    check(kinds[0] == "message_start" and kinds[-1] == "message_stop", "the stream's first and last events")
    check(final.usage.output_tokens == whole.usage.output_tokens, "usage in the stream")

    thinking = client.messages.create(**{**ask, "max_tokens": 1100}, thinking={"type": "enabled", "budget_tokens": 1024},
                                      stop_sequences=["and"])
    check(thinking.content[0].type == "thinking" and thinking.content[0].signature, "a thinking block with a signature")
    check(thinking.stop_reason != "stop_sequence" or thinking.stop_sequence == "and",
          f"stop_reason {thinking.stop_reason}, stop_sequence {thinking.stop_sequence!r}")


def check_tools(client, model):
    ask = dict(model=model, max_tokens=16, extra_body=GREEDY, messages=TOOL_TURNS, tools=[WEATHER])
    answer = client.messages.create(**ask)
    check(answer.usage.output_tokens > 0, f"goes on after a tool's result: {text_of(answer)[:60]!r}")
    counted = client.messages.count_tokens(model=model, messages=TOOL_TURNS, tools=[WEATHER])
    usage = answer.usage
    total = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    check(counted.input_tokens == total, f"count_tokens says {counted.input_tokens}, the answer {total}")
    without = client.messages.count_tokens(model=model, messages=TOOL_TURNS)
    check(without.input_tokens < counted.input_tokens, "tools take room in the prompt")
    with client.messages.stream(**ask) as stream:
        check(text_of(stream.get_final_message()) == text_of(answer), "the same as a stream")


def check_errors(client, model):
    def refused(kind, **change):
        ask = dict(model=model, max_tokens=4, messages=[{"role": "user", "content": "x"}])
        try:
            client.messages.create(**{**ask, **change})
        except kind as error:
            return error.body["type"] == "error" and error.body["error"]["message"]
        return None

    check(refused(anthropic.NotFoundError, model="no-such-model"), "unknown model is a NotFoundError")
    check(refused(anthropic.BadRequestError, extra_body={"temperature": 9}), "temperature 9 is a BadRequestError")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    check(refused(anthropic.BadRequestError, messages=[{"role": "user", "content": [image]}]), "an image is refused")
    long = refused(anthropic.BadRequestError, messages=[{"role": "user", "content": "word " * 200000}])
    check(long and long.startswith("prompt is too long: "), f"a long prompt: {long!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = anthropic.Anthropic(base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0, timeout=300)
    model = client.models.list().data[0].id
    check_messages(client, model)
    check_tools(client, model)
    check_errors(client, model)
    print("all checks hold" if failures == 0 else f"{failures} checks failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
