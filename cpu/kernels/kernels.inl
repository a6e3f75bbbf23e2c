// All kernels over the vector type of the including ISA unit, and the table of them.

// In the order of use.
// clang-format off
#include "cpu/kernels/exp.inl"
#include "cpu/kernels/decode_plain.inl"
#include "cpu/kernels/decode_blocks.inl"
#include "cpu/kernels/decode_codebooks.inl"
#include "cpu/kernels/strips.inl"
#include "cpu/kernels/strips_gguf.inl"
#include "cpu/kernels/matmul.inl"
#include "cpu/kernels/elementwise.inl"
#include "cpu/kernels/strips_int8.inl"
#include "cpu/kernels/strips_gguf_int8.inl"
#include "cpu/kernels/selection.inl"
#include "cpu/kernels/cache_rows.inl"
#include "cpu/kernels/attention.inl"
#include "cpu/kernels/index_fp4.inl"
#include "cpu/kernels/peak.inl"
// clang-format on

constexpr KernelTable make_kernels(const char* name) {
    return {
        .name = name,
        .matmul = matmul,
        .matmul_int8 = matmul_int8,
        .matmul_fixed = nullptr,
        .matmul_bf16 = nullptr,
        .bf16_of_all = false,
        .put_in_panel = nullptr,
        .matmul_parts = nullptr,
        .put_parts = nullptr,
        .panel_tokens = kStripTokens,
        .decode_row = decode_row,
        .dot = dot,
        .sum_squares = sum_squares,
        .axpy = axpy,
        .scale = scale,
        .round_bf16 = round_bf16,
        .round_e4m3 = round_e4m3,
        .round_int8 = round_int8,
        .round_fixed = nullptr,
        .swiglu = swiglu,
        .rope = rope,
        .hadamard = hadamard,
        .route_scores = route_scores,
        .encode_kv = encode_kv,
        .decode_kv = decode_kv,
        .head_panel = head_panel,
        .head_block = kHeadBlock,
        .attention_scores = attention_scores,
        .softmax_keys = softmax_keys,
        .attention_values = attention_values,
        .index_scores = index_scores,
        .fp4_panel = fp4_panel,
        .index_scores_fp4 = index_scores_fp4,
        .pool = pool,
        .largest = largest,
        .kth_largest = kth_largest,
        .at_least = at_least,
        .exp_sum = exp_sum,
        .peak = peak,
    };
}
