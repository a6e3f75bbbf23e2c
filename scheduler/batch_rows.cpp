#include "scheduler/batch_rows.h"

#include "src/base/check.h"

namespace thermocline::scheduler {

BatchRows::BatchRows(const ExecutorLimits& limits) : limits_(limits) {
    tokens_.reserve(static_cast<size_t>(limits.max_rows));
    positions_.reserve(static_cast<size_t>(limits.max_rows));
    output_rows_.reserve(static_cast<size_t>(limits.max_outputs));
    segments_.reserve(static_cast<size_t>(limits.max_parts));
}

ops::Batch BatchRows::gather(std::span<const Part> parts) {
    tokens_.clear();
    positions_.clear();
    output_rows_.clear();
    segments_.clear();
    for (const Part& part : parts) {
        const auto rows = static_cast<int32_t>(part.tokens.size());
        const int64_t position = part.sequence->position();
        CHECK(rows > 0 && part.outputs >= 0 && part.outputs <= rows);
        CHECK(part.sequence->can_go_on());
        CHECK(part.sequence->reserve(position + rows));  // room was made by the caller; this finds it there
        segments_.push_back({static_cast<int32_t>(tokens_.size()), rows, position, part.sequence->views()});
        for (int32_t i = 0; i < rows; ++i) {
            if (i >= rows - part.outputs) output_rows_.push_back(static_cast<int32_t>(tokens_.size()));
            tokens_.push_back(part.tokens[static_cast<size_t>(i)]);
            positions_.push_back(position + i);
        }
    }
    CHECK(rows() <= limits_.max_rows && outputs() <= limits_.max_outputs && std::ssize(parts) <= limits_.max_parts);
    return {tokens_, positions_, segments_, output_rows_};
}

}  // namespace thermocline::scheduler
