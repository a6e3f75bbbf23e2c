// Routed experts (deepseek-v4.md 2.8) on a card: the job for the CPU, the experts that lie here, and the sum of both.
#include "cuda/kernels/list.h"
#include "cuda/packed.h"
#include "cuda/run.h"
#include "cuda/scratch.h"
#include "cuda/weights.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

const ops::ExpertSet& set_of(const ops::Plan& plan, const ops::Experts& s) {
    return plan.experts[static_cast<size_t>(s.experts)];
}

/// Null: none lies here.
const ExpertSlots* slots_of(const ops::Experts& s, const Frame& f) {
    if (f.expert_slots == nullptr) return nullptr;
    const ExpertSlots& slots = f.expert_slots[static_cast<size_t>(s.experts)];
    return slots.slot_of == nullptr ? nullptr : &slots;
}

const int32_t* ids_of(const ops::Experts& s, const Frame& f) { return reinterpret_cast<const int32_t*>(f.slot(s.ids)); }

bool is_alike(const quant::Matrix& a, const quant::Matrix& b) {
    return a.format == b.format && a.rows == b.rows && a.cols == b.cols && a.layout == b.layout &&
           a.scale_format == b.scale_format && a.scale_rows == b.scale_rows && a.scale_cols == b.scale_cols &&
           (a.scales == nullptr) == (b.scales == nullptr) && placed_bytes(a) == placed_bytes(b);
}

/// Experts of a set that so many rows may choose.
int64_t most_chosen(const ops::Plan& plan, const ops::Experts& s, int64_t rows) {
    return std::min<int64_t>(std::ssize(set_of(plan, s).w1), rows * s.top_k);
}

/// `Few`, `Many2`, `Many8`: the kernels, which are made of a product.
template <typename Few, typename Many2, typename Many8, typename Product>
void multiply(const Product& product, int64_t pairs, int64_t experts, const Frame& f) {
    const int64_t strips = product.matrices * product.w.rows / quant::kStripRows;
    const int64_t chosen = std::min(pairs, experts), mean = pairs / experts;  // experts 1: of an arrived one
    const auto many = [&]<typename Kernel>() {
        constexpr int64_t kStrips = Kernel::kWarps * Kernel::kStrips;
        launch(f.stream,
               {.x = (strips + kStrips - 1) / kStrips,
                .y = chosen,
                .threads = Kernel::kWarps * kWarp,
                .shared_bytes = Kernel::shared_bytes()},
               Kernel{product});
    };
    if (mean > 16 && !f.batch_invariant) return many.template operator()<Many8>();
    if (mean > 1 && !f.batch_invariant) return many.template operator()<Many2>();
    const auto warps =
        static_cast<int>(std::min<int64_t>(product.w.cols / quant::kStripBlock, int64_t{Few::kMostWarps}));
    launch(f.stream, {.x = strips, .y = chosen, .threads = warps * kWarp, .shared_bytes = Few::shared_bytes(warps)},
           Few{product});
}

/// How the vectors of a set's products lie in f.pairs.x and .h: codes with scales behind them, or pieces of bf16.
struct VectorForm {
    bool codes;
    int x_pieces, h_pieces;
};

VectorForm form_of(const ops::Experts& s, const ExpertSlots& here, const Frame& f) {
    const bool mx = f.variants.mx_experts && s.rounding == ops::InputRounding::kE4M3 &&
                    here.w1.format == Format::kE2M1Pair && here.w1.scale_format == Format::kE8M0 &&
                    here.w2.format == Format::kE2M1Pair && here.w2.scale_format == Format::kE8M0;
    return {mx, pieces_for(here.w1, s.rounding), pieces_for(here.w2, s.rounding)};
}

void prepare_x(const ops::Experts& s, const VectorForm& form, const Frame& f) {
    const int64_t width = f.cols(s.x);
    if (form.codes) {
        auto* codes = reinterpret_cast<uint8_t*>(f.pairs.x);
        launch(f.stream, {.x = f.batch.rows, .y = column_groups(width), .threads = kWarp},
               PrepareCodes{f.slot(s.x), codes, codes + f.batch.rows * width, width});
        return;
    }
    launch(
        f.stream, {.x = f.batch.rows, .y = column_groups(width), .threads = kWarp},
        PrepareVectors{f.slot(s.x), f.pairs.x, nullptr, width, form.x_pieces, s.rounding == ops::InputRounding::kE4M3});
}

/// product.x, the vectors of `vectors` rows or pairs, in that form.
void multiply(const PairsProduct& product, bool codes, int pieces, int64_t vectors, int64_t pairs, int64_t experts,
              const Frame& f) {
    if (codes) {
        const auto* first = reinterpret_cast<const uint8_t*>(product.x);
        return multiply<FewPairsMx, ManyPairsMx<2>, ManyPairsMx<8>>(
            PairsProductMx{product, first, first + vectors * product.w.cols}, pairs, experts, f);
    }
    with_codes(product.w, pieces, [&]<typename Codes, int kPieces>() {
        multiply<FewPairs<Codes, kPieces>, ManyPairs<Codes, kPieces, 2>, ManyPairs<Codes, kPieces, 8>>(product, pairs,
                                                                                                       experts, f);
    });
}

/// f.pairs.h of `pairs` pairs, all or those listed.
void swiglu_pairs(const ops::Experts& s, const VectorForm& form, const Frame& f, const float* gate_up, int64_t pairs,
                  const PairLists* listed) {
    const int64_t width = set_of(f.plan, s).intermediate, all = f.batch.rows * s.top_k;
    const int32_t* taken = listed == nullptr ? f.pairs.lists.taken : nullptr;
    const int32_t *chosen = listed == nullptr ? nullptr : listed->pairs,
                  *first = listed == nullptr ? nullptr : listed->begin;
    const int32_t pairs_per_row = listed == nullptr ? 1 : s.top_k;
    const Grid grid{.x = pairs, .y = column_groups(width), .threads = kWarp};
    if (form.codes) {
        auto* codes = reinterpret_cast<uint8_t*>(f.pairs.h);
        return launch(f.stream, grid,
                      SwiGluPairsMx{gate_up, f.slot(s.weights), ids_of(s, f), taken, chosen, first, codes,
                                    codes + all * width, width, pairs_per_row, s.limit});
    }
    launch(f.stream, grid,
           SwiGluPairs{gate_up, f.slot(s.weights), ids_of(s, f), taken, chosen, first, f.pairs.h, width, form.h_pieces,
                       pairs_per_row, s.limit, s.rounding == ops::InputRounding::kE4M3});
}

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::Experts& s) {
    const ops::ExpertSet& set = set_of(plan, s);
    if (ListPairs::shared_bytes(std::ssize(set.w1)) > kMaxSharedBytes)
        return std::to_string(set.w1.size()) + " experts, more than fit into shared memory";
    for (size_t i = 0; i < set.w1.size(); ++i) {
        for (const quant::Matrix* w : {&set.w1[i], &set.w2[i], &set.w3[i]})
            if (!is_packed(*w))
                return set.name + " are " + std::string(quant::traits(w->format).name) +
                       " without a packed form that a GPU kernel takes";
        if (!is_alike(set.w1[i], set.w1[0]) || !is_alike(set.w3[i], set.w1[0]) || !is_alike(set.w2[i], set.w2[0]))
            return set.name + " are not all of one format";
    }
    return "";
}

PairsMemory pairs_memory(const ops::Plan& plan, int64_t max_rows, const std::function<std::byte*(int64_t)>& take) {
    int64_t listed = 0, pairs = 0, experts = 0, all = 0, x = 0, h = 0, sums = 0, arrived = 0;
    for (const ops::Step& step : plan.steps) {
        const auto* s = std::get_if<ops::Experts>(&step);
        if (s == nullptr || !why_not(plan, *s).empty()) continue;
        const ops::ExpertSet& set = set_of(plan, *s);
        const int64_t own = max_rows * s->top_k;
        listed = std::max(listed, most_chosen(plan, *s, max_rows));
        pairs = std::max(pairs, own);
        experts = std::max(experts, std::ssize(set.w1));
        all += std::ssize(set.w1);
        arrived = std::max(arrived, max_rows * 2 * set.intermediate);
        x = std::max(x, max_rows * pieces_for(set.w1[0], s->rounding) * set.hidden);
        h = std::max(h, own * pieces_for(set.w2[0], s->rounding) * set.intermediate);
        sums = std::max(sums, own * std::max(2 * set.intermediate, set.hidden));
    }
    const auto numbers = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count * 4)); };
    return {{numbers(listed), numbers(listed + 1), numbers(pairs), numbers(2), numbers(experts)},
            reinterpret_cast<uint16_t*>(take(x * 2)),
            reinterpret_cast<uint16_t*>(take(h * 2)),
            reinterpret_cast<float*>(take(sums * 4)),
            reinterpret_cast<float*>(take(arrived * 4)),
            {numbers(ArrivedLists::kSlotNumbers + all + kMostRing), numbers(experts + 1), numbers(pairs)}};
}

void send_job(const ops::Experts& s, const Frame& f, const HostJob& job) {
    const ExpertSlots* here = slots_of(s, f);
    if (here != nullptr) {
        const auto experts = static_cast<int32_t>(set_of(f.plan, s).w1.size());
        launch(f.stream, {.threads = ListPairs::kThreads, .shared_bytes = ListPairs::shared_bytes(experts)},
               ListPairs{ids_of(s, f), here->slot_of, f.pairs.lists, f.batch.rows * s.top_k, experts, f.balance});
    }
    launch(f.stream, {.x = f.batch.rows},
           SendJob{f.slot(s.x), ids_of(s, f), f.slot(s.weights), here == nullptr ? nullptr : f.pairs.lists.taken, job.x,
                   job.ids, job.weights, job.chosen, f.cols(s.x), s.top_k});
    launch(f.stream, {.threads = kWarp},
           RaiseJob{job.job, job.done, here == nullptr ? nullptr : f.pairs.lists.count + 1});
}

void run(const ops::Experts& s, const Frame& f) {
    const ExpertSlots* here = slots_of(s, f);
    if (here == nullptr) return;
    const int64_t pairs = f.batch.rows * s.top_k, experts = std::ssize(set_of(f.plan, s).w1);
    const VectorForm form = form_of(s, *here, f);
    prepare_x(s, form, f);
    multiply({here->w1, here->slot_bytes, 2, here->w3.data - here->w1.data, here->multipliers, f.pairs.lists, f.pairs.x,
              f.pairs.sums, s.top_k, 1},
             form.codes, form.x_pieces, f.batch.rows, pairs, experts, f);
    swiglu_pairs(s, form, f, f.pairs.sums, pairs, nullptr);
    multiply({here->w2, here->slot_bytes, 1, 0, here->multipliers + 2, f.pairs.lists, f.pairs.h, f.pairs.sums, 1, 1},
             form.codes, form.h_pieces, pairs, pairs, experts, f);
}

void run_arrived(const ops::Experts& s, const Frame& f, int64_t number, int32_t slot, int64_t pairs) {
    const ArrivedLists& own = f.pairs.arrived_lists;
    const PairLists lists{own.numbers + ArrivedLists::kSlotNumbers + slot, own.begin + number, own.pairs, own.numbers,
                          nullptr};
    const ExpertSlots& here = *slots_of(s, f);
    const VectorForm form = form_of(s, here, f);
    multiply({here.w1, here.slot_bytes, 2, here.w3.data - here.w1.data, here.multipliers, lists, f.pairs.x,
              f.pairs.arrived, s.top_k, s.top_k},
             form.codes, form.x_pieces, f.batch.rows, pairs, 1, f);
    swiglu_pairs(s, form, f, f.pairs.arrived, pairs, &lists);
    multiply({here.w2, here.slot_bytes, 1, 0, here.multipliers + 2, lists, f.pairs.h, f.pairs.sums, 1, 1}, form.codes,
             form.h_pieces, f.batch.rows * s.top_k, pairs, 1, f);
}

void raise_flag(Stream& stream, Flag* flag) { launch(stream, {.threads = kWarp}, RaiseJob{flag, flag, nullptr}); }

void sum_experts(const ops::Experts& s, const Frame& f, const float* host, ops::Slot shared, ops::Slot out) {
    const ExpertSlots* here = slots_of(s, f);
    launch(
        f.stream, {.x = f.batch.rows},
        SumExperts{host, here == nullptr ? nullptr : f.pairs.lists.count + 1, here == nullptr ? nullptr : f.pairs.sums,
                   ids_of(s, f), here == nullptr ? nullptr : f.pairs.lists.taken,
                   shared == ops::kNone ? nullptr : f.slot(shared), f.slot(out), f.cols(out), s.top_k});
}

}  // namespace thermocline::cuda
