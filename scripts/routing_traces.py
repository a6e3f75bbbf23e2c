#!/usr/bin/env python3
"""Records routing of the demo model over four classes of text and replays it against the policies of --residency.

    scripts/routing_traces.py --build build/release OUT

Scripture (models/demo/heldout.txt), code (sources of this repository) and tables (its machine files) are fed as they
are: 64 tokens as a prompt, the others one by one, as if they had been generated. In chats the model answers itself.
A fifth trace is drawn, not recorded: four layers of 256 experts whose choices come back as those of V4-Flash do by what
is published (hybrid-engine.md 1.4: experts of 2 to 5 tokens together, hit rates of LRU).
Writes OUT/CLASS.jsonl, OUT/published.jsonl for bench/residency_replay, OUT/profile.json and OUT/report.html, and
prints a line a class and resident share: hit rates, and adaptive beside the better of LRU and static, and beside the
offline optimum."""
import argparse
import glob
import json
import math
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEQUENCES, LENGTH, PROMPT = 8, 512, 64
QUESTIONS = [
    "Who was Noah, and what did he build?", "Tell me of the sea.", "Write a letter to a friend in a far country.",
    "What did the king say to his servants?", "How many days did it rain?", "Name three mountains and why they matter.",
    "Tell a story of two brothers and a field.", "What is wisdom worth?", "Describe the temple, its doors and pillars.",
    "Why were the people afraid?", "Give me a law about oxen.", "Sing a song of praise."]


# Of the experts of a layer in the order in which they were last chosen: each of those up to the first number is chosen
# by this share of the tokens.
PUBLISHED = [(6, 0.39), (16, 0.15), (22, 0.06), (64, 0.0157), (128, 0.0084), (256, 0.0047)]


def draw_published(path, layers=4, experts=256, top_k=6, tokens=3000):
    draw = random.Random(5)
    shares = [next(share for end, share in PUBLISHED if place < end) for place in range(experts)]
    odds = [share / (1 - share) for share in shares]
    last = [draw.sample(range(experts), experts) for _ in range(layers)]
    with open(path, "w", encoding="utf-8") as file:
        shape = [{"experts": experts, "top_k": top_k}] * layers
        print(json.dumps({"thermocline_routing": 1, "model": "drawn", "layers": shape}), file=file)
        for _ in range(tokens):
            ids = []
            for layer in range(layers):
                places = sorted(range(experts), key=lambda place: -math.log(1 - draw.random()) / odds[place])[:top_k]
                chosen = [last[layer][place] for place in places]
                last[layer] = chosen + [expert for expert in last[layer] if expert not in chosen]
                ids.append([chosen])
            print(json.dumps({"phase": "decode", "ids": ids}), file=file)


def texts_of(kind):
    if kind == "scripture":
        return open(f"{ROOT}/models/demo/heldout.txt", encoding="utf-8").read()
    pattern = "scheduler/*.cpp" if kind == "code" else "configs/machines/*.json"
    return "\n".join(open(path, encoding="utf-8").read() for path in sorted(glob.glob(f"{ROOT}/{pattern}")))


def post(port, path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))


def tokens_of(port, kind):
    """SEQUENCES stretches of LENGTH tokens, as far apart as the text allows."""
    text, sequences = texts_of(kind), []
    for i in range(SEQUENCES):
        piece = text[i * len(text) // SEQUENCES:][:8 * LENGTH]
        sequences.append(post(port, "/tokenize", {"content": piece})["tokens"][:LENGTH])
    return sequences


def with_server(binary, port, body):
    server = subprocess.Popen([binary, "serve", "--port", str(port), "--log-level", "error"])
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}: is port {port} taken?")
        return body()
    finally:
        server.terminate()
        server.wait()


def name_class(path, kind):
    lines = open(path, encoding="utf-8").read().splitlines()
    with open(path, "w", encoding="utf-8") as file:
        print(lines[0], file=file)
        for line in lines[1:]:
            print(json.dumps({**json.loads(line), "class": kind}), file=file)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--build", required=True, help="with thermocline and the target residency_replay")
    arguments.add_argument("--port", type=int, default=8471, help="of a server that cuts texts into tokens")
    arguments.add_argument("--fractions", nargs="*", default=[], help="resident shares of all experts")
    arguments.add_argument("out")
    flags = arguments.parse_args()
    binary, out = f"{flags.build}/src/app/thermocline", flags.out
    os.makedirs(out, exist_ok=True)
    fed = ["scripture", "code", "tables"]
    tokens = with_server(binary, flags.port, lambda: {kind: tokens_of(flags.port, kind) for kind in fed})
    for kind in fed:
        with open(f"{out}/{kind}.tokens.json", "w", encoding="utf-8") as file:
            json.dump(tokens[kind], file)
        subprocess.run([binary, "score", f"{ROOT}/models/demo", "--tokens", f"{out}/{kind}.tokens.json",
                        "--decode-from", str(PROMPT), "--top", "1", "--record-routing", f"{out}/{kind}.jsonl"],
                       check=True, stdout=subprocess.DEVNULL)
        name_class(f"{out}/{kind}.jsonl", kind)
    with open(f"{out}/questions.jsonl", "w", encoding="utf-8") as file:
        for question in QUESTIONS:
            json.dump({"messages": [{"role": "user", "content": question}], "class": "chat"}, file)
            file.write("\n")
    subprocess.run([binary, "profile", "-f", f"{out}/questions.jsonl", "--max-tokens", "300", "--temperature", "0.7",
                    "--record-routing", f"{out}/chat.jsonl", "--log-level", "error"],
                   check=True, stdout=subprocess.DEVNULL)
    traces = [flag for kind in fed + ["chat"] for flag in ("--from-trace", f"{out}/{kind}.jsonl")]
    subprocess.run([binary, "profile", *traces, "-o", f"{out}/profile.json", "--report", f"{out}/report.html"],
                   check=True, stdout=open(f"{out}/profile.txt", "w", encoding="utf-8"))
    draw_published(f"{out}/published.jsonl")
    for kind in fed + ["chat", "published"]:
        print(f"## {kind}", flush=True)
        fractions = ["--fractions", *flags.fractions] if flags.fractions else []
        subprocess.run([f"{flags.build}/bench/residency_replay", f"{out}/{kind}.jsonl", *fractions], check=True)


if __name__ == "__main__":
    main()
