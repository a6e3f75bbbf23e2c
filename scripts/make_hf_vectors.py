#!/usr/bin/env python3
"""Makes tests/golden/hf-tiny: a small random DeepSeek-V4 model run by HF transformers in float32, as an oracle that
shares no code and no author with ours. Needs torch and transformers >= 5.16:

    python3 scripts/make_hf_vectors.py tests/golden/hf-tiny

Traps that are avoided on purpose (deepseek-v4.md 8.3): attention_factor 1.0 is written out, 16 index heads so that
scores do not tie, everything that HF initialises to constants is randomised, the context is longer than two windows of
the 128-ratio layer, and the model runs in eager float32. All weights are bf16 numbers and are stored as such.
"""
import argparse
import json
import pathlib

import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

TOKENS = 320
POSITIONS = (0, 1, 2, 3, 4, 6, 7, 15, 16, 31, 40, 127, 128, 129, 200, 255, 256, 257, 300, 319)  # whole logits


def config() -> DeepseekV4Config:
    rope = 8 / 32
    return DeepseekV4Config(
        vocab_size=101, hidden_size=64, moe_intermediate_size=32, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, q_lora_rank=32, o_groups=2, o_lora_rank=16, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=3, routed_scaling_factor=1.5, swiglu_limit=0.75, sliding_window=16,
        index_n_heads=16, index_head_dim=16, index_topk=6, hc_mult=4, hc_sinkhorn_iters=20, hc_eps=1e-6,
        rms_norm_eps=1e-6, max_position_embeddings=1024, num_nextn_predict_layers=0, tie_word_embeddings=False,
        layer_types=["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
                     "compressed_sparse_attention", "heavily_compressed_attention"],
        mlp_layer_types=["hash_moe", "hash_moe", "moe", "moe", "moe"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        partial_rotary_factor=rope,
        rope_parameters={
            "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rope},
            "compress": {"rope_type": "yarn", "rope_theta": 160000.0, "partial_rotary_factor": rope, "factor": 16.0,
                         "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
                         "attention_factor": 1.0},
        },
    )


def randomise(model: DeepseekV4ForCausalLM, generator: torch.Generator) -> None:
    def normal(shape, scale):
        return torch.randn(shape, generator=generator) * scale

    named = list(model.named_parameters()) + list(model.named_buffers())
    for name, tensor in named:
        last = name.rsplit(".", 1)[-1]
        if last.endswith("inv_freq"):
            continue
        if last == "tid2eid":  # distinct experts per token
            rows = [torch.randperm(model.config.n_routed_experts, generator=generator)[: tensor.shape[1]]
                    for _ in range(tensor.shape[0])]
            tensor.copy_(torch.stack(rows).to(tensor.dtype))
            continue
        if "norm" in name:
            value = 1 + normal(tensor.shape, 0.2)
        elif last in ("sinks", "position_bias", "base", "hc_base"):
            value = normal(tensor.shape, 0.7)
        elif last in ("scale", "hc_scale"):
            value = 0.6 + normal(tensor.shape, 0.2)
        elif last == "e_score_correction_bias":
            value = normal(tensor.shape, 0.2)
        elif last in ("fn", "hc_fn"):
            value = normal(tensor.shape, 0.1)
        elif "embed_tokens" in name:
            value = normal(tensor.shape, 1.0)
        else:
            value = normal(tensor.shape, 1.0 / tensor.shape[-1] ** 0.5)
        tensor.copy_(value.to(torch.bfloat16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    directory = parser.parse_args().directory
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(20260422)

    model_config = config()
    model_config._attn_implementation = "eager"
    model_config._experts_implementation = "eager"
    model = DeepseekV4ForCausalLM(model_config).to(torch.float32).eval()
    randomise(model, generator)
    tokens = torch.randint(0, model_config.vocab_size, (1, TOKENS), generator=generator)

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, use_cache=False).logits[0].double()

    logits = logits_of(tokens)
    double = model.double()
    exact = logits_of(tokens)
    print(f"float32 against float64 inside HF: {(logits - exact).abs().max():.2e}")
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0]

    # The default of transformers 5.23 renames most tensors half way back to the official names.
    double.to(torch.bfloat16).save_pretrained(directory, save_original_format=False)
    (directory / "generation_config.json").unlink(missing_ok=True)
    expected = {
        "what": "logits of HF transformers in float32 (eager); logprobs[i] is that of token i + 1 after tokens 0..i",
        "made_by": "scripts/make_hf_vectors.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tokens": tokens[0].tolist(),
        "logits": {str(p): [round(v, 6) for v in logits[p].tolist()] for p in POSITIONS},
        "logprobs": [round(v, 6) for v in chosen.tolist()],
        "argmax": logits.argmax(-1).tolist(),
    }
    (directory / "expected.json").write_text(json.dumps(expected) + "\n")
    for path in sorted(directory.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
