#include "scheduler/routing_watch.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <utility>

namespace thermocline::scheduler {

RoutingWatch::RoutingWatch(std::string model, std::vector<RoutedLayer> layers)
    : model_(std::move(model)), layers_(std::move(layers)) {
    for (const RoutedLayer& layer : layers_) counts_.chosen.emplace_back(static_cast<size_t>(layer.experts));
}

void RoutingWatch::write_to(const std::string& path) {
    if (layers_.empty()) fail(printable(model_), " has no routers: there is nothing to record");
    const std::lock_guard lock(writing_);
    if (writer_) fail("routing is being recorded already");
    auto writer = std::make_unique<RoutingTraceWriter>(path, model_, layers_);
    if (writer->failed()) fail(printable(path), ": cannot write");
    writer_ = std::move(writer);
    written_ = 0;
}

int64_t RoutingWatch::stop_writing() {
    const std::lock_guard lock(writing_);
    const std::unique_ptr<RoutingTraceWriter> writer = std::move(writer_);
    if (!writer) return 0;
    writer->close();
    return written_;
}

void RoutingWatch::keep() {
    if (layers_.empty()) fail(printable(model_), " has no routers: there is nothing to record");
    kept_ = RoutingTrace{model_, layers_, {}};
    record_.wants_foretold = true;
}

/// The end of the trace may still wait to be written.
RoutingWatch::~RoutingWatch() {
    try {
        if (writer_) writer_->close();
    } catch (const Error& error) {
        log::warn("the recorded routing is not whole: {}", error.what());
    }
}

void RoutingWatch::passed(std::span<const Part> parts, const ResidencyCounters& residency) {
    {
        const std::lock_guard lock(mutex_);
        counts_.residency = residency;
        for (const Part& part : parts) counts_.rows += std::ssize(part.tokens);
        for (size_t i = 0; i < record_.ids.size(); ++i)
            for (const int32_t id : record_.ids[i]) ++counts_.chosen[i][static_cast<size_t>(id)];
    }
    const std::lock_guard lock(writing_);
    int64_t first = 0;
    for (const Part& part : parts) {
        const auto rows = std::ssize(part.tokens);
        const bool decode = rows == 1;
        if (writer_) {
            writer_->add(record_, first, rows, decode, kind_);
            written_ += rows;
        }
        if (kept_) kept_->passes.push_back(part_of(record_, layers_, first, rows, decode, kind_));
        first += rows;
    }
    if (!writer_ || !writer_->failed()) return;
    log::warn("the routing is recorded no more: its file cannot be written");
    writer_.reset();
}

void RoutingWatch::place(std::vector<ExpertName> resident) {
    const std::lock_guard lock(mutex_);
    counts_.resident = std::move(resident);
}

RoutingWatch::Counts RoutingWatch::counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
}

}  // namespace thermocline::scheduler
