#!/usr/bin/env python3
"""Write a GGUF v3 file with the shapes of a DeepSeek-V4 model, cut to a few layers, with random weights.

    python3 scripts/make_gguf_slice.py OUT.gguf [--layers 2] [--first-layer 2] [--vocab 129280]    # about 8.3 GB

Routed experts are MXFP4, every other matrix is Q8_0; norms, router, hyper-connections, position biases and other small
tensors are F32. Names and metadata keys are llama.cpp's (architecture deepseek4). Layer 0 of the file takes the
compress ratio of layer --first-layer of the config, and so on; no layer routes by hash. Matrix entries have a standard
deviation of 1/sqrt(inputs). Codes repeat from a pool of --pool MB. The vocabulary holds the 256 bytes; the rest of it
is unused padding. The output matrix is read once per decoded token: --vocab 2048 leaves only the layers to measure.
Needs numpy.
"""
import argparse
import json
import struct
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ALIGNMENT = 32
F32, Q8_0, MXFP4 = 0, 8, 39
BLOCK = {F32: (1, 4), Q8_0: (32, 34), MXFP4: (32, 17)}  # elements, bytes
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
PACK = {U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?"}
CHUNK = 16 << 20  # bytes per write
E2M1_MEAN_SQUARE = (0 + 0.25 + 1 + 2.25 + 4 + 9 + 16 + 36) / 8  # of uniformly drawn codes
TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_UNUSED = 1, 3, 5


def tensors(c, ratios, vocab):
    """[(name, type, dimensions fastest first, mean, standard deviation)] in file order; quantised types ignore mean."""
    out = []

    def matrix(name, inputs, outputs, kind=Q8_0, count=1):
        dims = [inputs, outputs] + [count] * (count > 1)
        out.append((name + ".weight", kind, dims, 0, inputs**-0.5))

    def vector(name, dims, mean=0.0, std=0.1, suffix=".weight"):
        out.append((name + suffix, F32, dims, mean, std))

    def hyper(name, rows, scales):
        matrix(name + "_fn", mult * d, rows, F32)
        vector(name + "_base", [rows], std=0.5)
        vector(name + "_scale", [scales], mean=0.5)

    def compressor(name, ratio, width):
        wide = width * (2 if ratio == 4 else 1)
        vector(name + "_ape", [wide, ratio])
        matrix(name + "_kv", d, wide)
        matrix(name + "_gate", d, wide)
        vector(name + "_norm", [width], mean=1.0)

    d, mult, heads, head = c["hidden_size"], c["hc_mult"], c["num_attention_heads"], c["head_dim"]
    groups, experts, inter = c["o_groups"], c["n_routed_experts"], c["moe_intermediate_size"]
    lora, wide = c["q_lora_rank"], c["o_lora_rank"] * c["o_groups"]
    matrix("token_embd", d, vocab)
    matrix("output", d, vocab)
    hyper("output_hc", mult, 1)
    vector("output_norm", [d], mean=1.0)
    for layer, ratio in enumerate(ratios):
        p = f"blk.{layer}."
        for site in ("attn", "ffn"):
            vector(p + site + "_norm", [d], mean=1.0)
            hyper(p + "hc_" + site, (2 + mult) * mult, 3)
        vector(p + "attn_sinks", [heads], std=1.0)
        matrix(p + "attn_q_a", d, lora)
        vector(p + "attn_q_a_norm", [lora], mean=1.0)
        matrix(p + "attn_q_b", lora, heads * head)
        matrix(p + "attn_kv", d, head)
        vector(p + "attn_kv_a_norm", [head], mean=1.0)
        matrix(p + "attn_output_a", heads * head // groups, wide)
        matrix(p + "attn_output_b", wide, d)
        if ratio:
            compressor(p + "attn_compressor", ratio, head)
        if ratio == 4:
            matrix(p + "indexer.attn_q_b", lora, c["index_n_heads"] * c["index_head_dim"])
            matrix(p + "indexer.proj", d, c["index_n_heads"])
            compressor(p + "indexer_compressor", ratio, c["index_head_dim"])
        matrix(p + "ffn_gate_inp", d, experts, F32)
        vector(p + "exp_probs_b", [experts], std=0.01, suffix=".bias")
        matrix(p + "ffn_gate_exps", d, inter, MXFP4, experts)
        matrix(p + "ffn_down_exps", inter, d, MXFP4, experts)
        matrix(p + "ffn_up_exps", d, inter, MXFP4, experts)
        matrix(p + "ffn_gate_shexp", d, inter)
        matrix(p + "ffn_down_shexp", inter, d)
        matrix(p + "ffn_up_shexp", d, inter)
    return out


def byte_characters():
    """GPT-2's printable character for each byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b if b in keep else next(other)) for b in range(256)]


def vocabulary(size):
    tokens = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", *byte_characters()]
    merges = [pair for pair in ("Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he") if size > len(tokens) + 7]
    tokens += [merge.replace(" ", "") for merge in merges]
    types = [TOKEN_CONTROL] * 2 + [TOKEN_NORMAL] * (len(tokens) - 2)
    if size < len(tokens):
        raise SystemExit(f"--vocab {size}: expected at least {len(tokens)}")
    types += [TOKEN_UNUSED] * (size - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    return tokens, types, merges


def metadata(c, name, ratios, vocab):
    """[(key, type, value)]; arrays are (ARRAY, element type)."""
    layers, scaling = len(ratios), c["rope_scaling"]
    tokens, types, merges = vocabulary(vocab)
    clamp = [float(c["swiglu_limit"])] * layers
    model = [
        ("block_count", U32, layers),
        ("context_length", U32, c["max_position_embeddings"]),
        ("embedding_length", U32, c["hidden_size"]),
        ("embedding_length_out", U32, c["hc_mult"] * c["hidden_size"]),
        ("vocab_size", U32, vocab),
        ("attention.head_count", U32, c["num_attention_heads"]),
        ("attention.head_count_kv", U32, c["num_key_value_heads"]),
        ("attention.layer_norm_rms_epsilon", FLOAT, c["rms_norm_eps"]),
        ("rope.freq_base", FLOAT, c["rope_theta"]),
        ("attention.key_length", U32, c["head_dim"]),
        ("attention.value_length", U32, c["head_dim"]),
        ("expert_count", U32, c["n_routed_experts"]),
        ("expert_used_count", U32, c["num_experts_per_tok"]),
        ("expert_gating_func", U32, 4),  # sqrtsoftplus
        ("rope.dimension_count", U32, c["qk_rope_head_dim"]),
        ("attention.q_lora_rank", U32, c["q_lora_rank"]),
        ("attention.sliding_window", U32, c["sliding_window"]),
        ("rope.scaling.type", STRING, scaling["type"]),
        ("rope.scaling.factor", FLOAT, scaling["factor"]),
        ("rope.scaling.original_context_length", U32, scaling["original_max_position_embeddings"]),
        ("rope.scaling.yarn_beta_fast", FLOAT, scaling["beta_fast"]),
        ("rope.scaling.yarn_beta_slow", FLOAT, scaling["beta_slow"]),
        ("expert_feed_forward_length", U32, c["moe_intermediate_size"]),
        ("expert_shared_count", U32, c["n_shared_experts"]),
        ("expert_weights_scale", FLOAT, c["routed_scaling_factor"]),
        ("expert_weights_norm", BOOL, c["norm_topk_prob"]),
        ("swiglu_clamp_exp", (ARRAY, FLOAT), clamp),
        ("swiglu_clamp_shexp", (ARRAY, FLOAT), clamp),
        ("attention.indexer.head_count", U32, c["index_n_heads"]),
        ("attention.indexer.key_length", U32, c["index_head_dim"]),
        ("attention.indexer.top_k", U32, c["index_topk"]),
        ("attention.output_group_count", U32, c["o_groups"]),
        ("attention.output_lora_rank", U32, c["o_lora_rank"]),
        ("attention.compress_ratios", (ARRAY, I32), ratios),
        ("attention.compress_rope_freq_base", FLOAT, c["compress_rope_theta"]),
        ("hyper_connection.count", U32, c["hc_mult"]),
        ("hyper_connection.sinkhorn_iterations", U32, c["hc_sinkhorn_iters"]),
        ("hyper_connection.epsilon", FLOAT, c["hc_eps"]),
        ("hash_layer_count", U32, 0),
    ]
    return [
        ("general.architecture", STRING, "deepseek4"),
        ("general.name", STRING, name),
        *[("deepseek4." + key, kind, value) for key, kind, value in model],
        ("general.file_type", U32, 38),  # MXFP4_MOE
        ("general.quantization_version", U32, 2),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "joyai-llm"),
        ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.token_type", (ARRAY, I32), types),
        ("tokenizer.ggml.merges", (ARRAY, STRING), merges),
        ("tokenizer.ggml.bos_token_id", U32, c["bos_token_id"]),
        ("tokenizer.ggml.eos_token_id", U32, c["eos_token_id"]),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
    ]


def encoded(kind, value):
    if kind == STRING:
        text = value.encode()
        return struct.pack("<Q", len(text)) + text
    if isinstance(kind, tuple):
        return struct.pack("<IQ", kind[1], len(value)) + b"".join(encoded(kind[1], v) for v in value)
    return struct.pack(PACK[kind], value)


def size_of(kind, dims):
    elements, size = BLOCK[kind]
    return int(np.prod(dims)) // elements * size


def padding(size):
    return -size % ALIGNMENT


def header(keys, directory):
    out = [b"GGUF", struct.pack("<IQQ", 3, len(directory), len(keys))]
    for key, kind, value in keys:
        out += [encoded(STRING, key), struct.pack("<I", kind[0] if isinstance(kind, tuple) else kind)]
        out.append(encoded(kind, value))
    offset = 0
    for name, kind, dims, _, _ in directory:
        out.append(encoded(STRING, name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        offset += size_of(kind, dims) + padding(size_of(kind, dims))
    text = b"".join(out)
    return text + bytes(padding(len(text))), offset


class Weights:
    """Random blocks of each type and standard deviation, made once; tensors are pieces of them."""

    def __init__(self, rng, pool_bytes):
        self.rng, self.pool_bytes, self.pools = rng, pool_bytes, {}

    def pool(self, kind, std):
        """[blocks, bytes of a block] of uint8"""
        if (kind, std) in self.pools:
            return self.pools[kind, std]
        size = BLOCK[kind][1]
        blocks = np.frombuffer(self.rng.bytes(self.pool_bytes // size * size), np.uint8).reshape(-1, size).copy()
        if kind == Q8_0:
            codes = blocks[:, 2:].view(np.int8)
            codes[codes == -128] = 127  # quantisers do not write it
            scale = np.float16(std / np.sqrt(127 * 128 / 3))
            blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        else:  # scales 2^e and 2^(e+1), mixed for the wanted mean square
            want = std**2 / E2M1_MEAN_SQUARE
            low = int(np.floor(np.log2(want) / 2))
            share = (want / 4.0**low - 1) / 3
            blocks[:, 0] = 127 + low + (self.rng.random(len(blocks)) < share)
        self.pools[kind, std] = blocks
        return blocks

    def write(self, file, kind, dims, mean, std):
        if kind == F32:
            file.write((mean + std * self.rng.standard_normal(int(np.prod(dims)), np.float32)).tobytes())
            return
        pool, size = self.pool(kind, std), BLOCK[kind][1]
        left = size_of(kind, dims) // size
        while left:
            count = min(left, CHUNK // size, len(pool) // 2)
            start = int(self.rng.integers(len(pool) - count + 1))
            file.write(pool[start : start + count].data)
            left -= count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/models/deepseek-v4-flash.json")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--first-layer", type=int, default=2, help="of the config, for compress ratios (default 2)")
    parser.add_argument("--vocab", type=int, default=0, help="entries of the vocabulary (default: the config's)")
    parser.add_argument("--pool", type=int, default=64, help="MB of random blocks per type and width (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    ratios = config["compress_ratios"][args.first_layer :][: args.layers]
    if args.layers < 1 or len(ratios) < args.layers:
        parser.error(f"the config has no {args.layers} layers from {args.first_layer} on")
    vocab = args.vocab or config["vocab_size"]
    directory = tensors(config, ratios, vocab)
    start, size = header(metadata(config, args.out.stem, ratios, vocab), directory)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights = Weights(np.random.default_rng(args.seed), args.pool << 20)
    with open(args.out, "wb") as file:
        file.write(start)
        for _, kind, dims, mean, std in directory:
            weights.write(file, kind, dims, mean, std)
            file.write(bytes(padding(size_of(kind, dims))))
        if file.tell() != len(start) + size:
            raise SystemExit(f"{args.out}: {file.tell()} bytes, expected {len(start) + size}")
    routed = sum(size_of(k, d) for n, k, d, _, _ in directory if k == MXFP4)
    dense = sum(size_of(k, d) for n, k, d, _, _ in directory if k != MXFP4 and n != "token_embd.weight")
    token = dense + routed * config["num_experts_per_tok"] // config["n_routed_experts"]
    print(f"{args.out}: {len(start) + size} bytes, {len(directory)} tensors, ratios {ratios}, {token} bytes per token")


if __name__ == "__main__":
    main()
