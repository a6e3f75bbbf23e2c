#!/usr/bin/env python3
"""Write a synthetic DeepSeek-V4 checkpoint of any size in the official form (FP8 + FP4 + BF16), for memory and load tests.

    python3 scripts/make_synthetic_checkpoint.py OUT [--layers 2] [--experts 170]     # about 7 GB with V4-Flash shapes

Weights are one block of random codes repeated; scales keep activations near 1. Needs numpy.
"""
import argparse
import json
import struct
from pathlib import Path

import numpy as np

D, H, HEAD, ROPE, LQ, G, RO, I, V, IH, IW = 4096, 64, 512, 64, 1024, 8, 1024, 2048, 129280, 64, 128


def tensors(layers, experts, ratios):
    """name -> (dtype, shape), in file order."""
    out = {}

    def fp8(name, n, k):
        out[name + ".weight"] = ("F8_E4M3", [n, k])
        out[name + ".scale"] = ("F8_E8M0", [n // 128, k // 128])

    def fp4(name, n, k):
        out[name + ".weight"] = ("I8", [n, k // 2])
        out[name + ".scale"] = ("F8_E8M0", [n, k // 32])

    def compressor(name, ratio, width):
        wide = width * (2 if ratio == 4 else 1)
        out[name + ".ape"] = ("F32", [ratio, wide])
        out[name + ".wkv.weight"] = out[name + ".wgate.weight"] = ("BF16", [wide, D])
        out[name + ".norm.weight"] = ("BF16", [width])

    out["embed.weight"] = out["head.weight"] = ("BF16", [V, D])
    out["norm.weight"] = ("BF16", [D])
    out["hc_head_fn"], out["hc_head_base"], out["hc_head_scale"] = ("F32", [4, 4 * D]), ("F32", [4]), ("F32", [1])
    for n in range(layers):
        p = f"layers.{n}."
        for site in ("attn", "ffn"):
            out[p + site + "_norm.weight"] = ("BF16", [D])
            out[p + f"hc_{site}_fn"] = ("F32", [24, 4 * D])
            out[p + f"hc_{site}_base"], out[p + f"hc_{site}_scale"] = ("F32", [24]), ("F32", [3])
        a = p + "attn."
        out[a + "attn_sink"] = ("F32", [H])
        fp8(a + "wq_a", LQ, D), fp8(a + "wq_b", H * HEAD, LQ), fp8(a + "wkv", HEAD, D)
        fp8(a + "wo_a", G * RO, H // G * HEAD), fp8(a + "wo_b", D, G * RO)
        out[a + "q_norm.weight"], out[a + "kv_norm.weight"] = ("BF16", [LQ]), ("BF16", [HEAD])
        if ratios[n]:
            compressor(a + "compressor", ratios[n], HEAD)
        if ratios[n] == 4:
            fp8(a + "indexer.wq_b", IH * IW, LQ)
            out[a + "indexer.weights_proj.weight"] = ("BF16", [IH, D])
            compressor(a + "indexer.compressor", 4, IW)
        f = p + "ffn."
        out[f + "gate.weight"], out[f + "gate.bias"] = ("BF16", [experts, D]), ("F32", [experts])
        for e in range(experts):
            fp4(f + f"experts.{e}.w1", I, D), fp4(f + f"experts.{e}.w2", D, I), fp4(f + f"experts.{e}.w3", I, D)
        fp8(f + "shared_experts.w1", I, D), fp8(f + "shared_experts.w2", D, I), fp8(f + "shared_experts.w3", I, D)
    return out


def pattern(name, dtype, rng):
    """64 KiB that repeat to fill a tensor."""
    n = 1 << 16
    if dtype == "F8_E8M0":
        return rng.integers(118, 121, n, dtype=np.uint8)  # 2^-9 .. 2^-7
    if dtype in ("I8", "F8_E4M3"):
        codes = rng.integers(0, 256, n, dtype=np.uint8)
        if dtype == "F8_E4M3":
            codes = np.where((codes & 0x7F) > 0x48, codes & 0xB8, codes).astype(np.uint8)  # small, never NaN
        return codes
    size = 2 if dtype == "BF16" else 4
    norm = "norm.weight" in name
    values = (1 + 0.1 * rng.standard_normal(n // size) if norm else 0.02 * rng.standard_normal(n // size)).astype("<f4")
    return ((values.view("<u4") >> 16).astype("<u2") if size == 2 else values).view(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=170)
    args = parser.parse_args()
    ratios = [(4, 128)[n % 2] for n in range(args.layers)]
    wanted = tensors(args.layers, args.experts, ratios)
    sizes = {"F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "BF16": 2, "F32": 4}
    header, offset = {}, 0
    for name, (dtype, shape) in wanted.items():
        size = int(np.prod(shape)) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    with open(args.out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape) in wanted.items():
            begin, end = header[name]["data_offsets"]
            block = pattern(name, dtype, rng).tobytes()
            whole, rest = divmod(end - begin, len(block))
            for _ in range(whole):
                file.write(block)
            file.write(block[:rest])
    config = dict(architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4", vocab_size=V, hidden_size=D,
                  num_hidden_layers=args.layers, num_attention_heads=H, num_key_value_heads=1, head_dim=HEAD,
                  qk_rope_head_dim=ROPE, q_lora_rank=LQ, o_groups=G, o_lora_rank=RO, sliding_window=128,
                  compress_ratios=ratios + [0], compress_rope_theta=160000, rope_theta=10000,
                  rope_scaling=dict(type="yarn", factor=16, original_max_position_embeddings=65536, beta_fast=32, beta_slow=1),
                  max_position_embeddings=1048576, index_n_heads=IH, index_head_dim=IW, index_topk=512, hc_mult=4,
                  hc_sinkhorn_iters=20, hc_eps=1e-6, n_routed_experts=args.experts, n_shared_experts=1,
                  num_experts_per_tok=6, moe_intermediate_size=I, scoring_func="sqrtsoftplus", norm_topk_prob=True,
                  routed_scaling_factor=1.5, num_hash_layers=0, swiglu_limit=10.0, rms_norm_eps=1e-6,
                  bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16")
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{args.out}: {len(wanted)} tensors, {offset / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
