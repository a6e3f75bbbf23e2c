#include "cuda/run_logits.h"

#include "cuda/kernels/list.h"

namespace thermocline::cuda {

namespace {

int64_t parts_of(int64_t vocab) { return (vocab + kLogitPart - 1) / kLogitPart; }

}  // namespace

LogitsMemory logits_memory(int64_t vocab, int64_t max_rows, const std::function<std::byte*(int64_t)>& take) {
    const int64_t parts = max_rows * parts_of(vocab);
    return {reinterpret_cast<TopRow*>(take(max_rows * int64_t{sizeof(TopRow)})),
            reinterpret_cast<Candidate*>(take(parts * kTopLogits * int64_t{sizeof(Candidate)})),
            reinterpret_cast<LogitSum*>(take(parts * int64_t{sizeof(LogitSum)}))};
}

void top_logits(Stream& stream, const float* logits, const float* factors, int64_t vocab, int64_t rows,
                const LogitsMemory& memory) {
    const auto count = static_cast<int32_t>(vocab), parts = static_cast<int32_t>(parts_of(vocab));
    launch(stream, {.x = parts, .y = rows, .threads = ScanLogits::kThreads, .shared_bytes = ScanLogits::kSharedBytes},
           ScanLogits{logits, factors, memory.candidates, memory.sums, count});
    launch(stream,
           {.x = rows,
            .threads = ChooseLogits::kThreads,
            .shared_bytes = threshold_bytes(ChooseLogits::kThreads) + take_bytes(ChooseLogits::kThreads)},
           ChooseLogits{logits, factors, memory.candidates, memory.sums, memory.rows, count, parts});
}

}  // namespace thermocline::cuda
