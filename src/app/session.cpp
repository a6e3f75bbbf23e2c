#include "src/app/session.h"

#include "scheduler/topology.h"
#include "src/base/log.h"
#include "src/engine/pack.h"
#include "src/engine/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace thermocline::app {

Session open_session(const ModelFlags& flags, int64_t rows) {
    log::start(flags.log_level);
    const cpu::KernelTable& kernels = cpu::select_kernels(flags.isa.c_str());
    const auto slices = scheduler::weight_slices(scheduler::detect_machine(), flags.numa_mode());
    const scheduler::WorkerPlaces places = scheduler::worker_places(slices, flags.threads);
    Session session;
    session.model = model::load_model(flags.path(), flags.load_options());
    session.max_tokens = flags.context(session.model->max_context);
    scheduler::ExecutorLimits limits{.max_rows = rows, .max_outputs = rows, .max_tokens = session.max_tokens};
    session.gpus = std::make_unique<scheduler::Gpus>(flags.gpu_wishes());
    session.gpus->reserve(session.model->trunk, engine::model_name(session.model->checkpoint), limits, 1,
                          !flags.weights_in_place,
                          {.draft = session.model->mtp ? &*session.model->mtp : nullptr,
                           .mapped = flags.weights_in_place || engine::is_mapped(*session.model)});
    if (!flags.weights_in_place)
        session.packed = engine::pack_weights(*session.model, slices, session.gpus->card_only(session.model->trunk));
    session.workers = std::make_unique<cpu::Workers>(places.cpus, places.slices);
    session.watch = std::make_unique<cpu::WorkerWatch>(*session.workers, flags.worker_patience());
    session.executor =
        session.gpus->new_executor(session.model->trunk, *session.workers, kernels, limits, session.packed.get());
    return session;
}

LogSoftmax::LogSoftmax(const float* logits, int64_t vocab) : logits_(logits), vocab_(vocab) {
    const double top = *std::max_element(logits, logits + vocab);
    double sum = 0.0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - top);
    log_sum_ = top + std::log(sum);
}

std::vector<int32_t> LogSoftmax::top(int64_t count) const {
    std::vector<int32_t> ids(static_cast<size_t>(vocab_));
    std::iota(ids.begin(), ids.end(), 0);
    count = std::min(count, vocab_);
    std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](int32_t a, int32_t b) {
        return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
    });
    ids.resize(static_cast<size_t>(count));
    return ids;
}

}  // namespace thermocline::app
