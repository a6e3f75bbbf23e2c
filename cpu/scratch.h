// Scratch needs of the steps that have any; summed up by scratch_size() in run.cpp.
#pragma once

#include "cpu/run.h"

namespace thermocline::cpu {

int64_t attention_scratch(const ops::Attention& step);  // floats per worker
ScratchSize compress_scratch(const ops::Compress& step, const ops::Plan& plan);
ScratchSize select_scratch(const ops::SelectEntries& step, int64_t max_tokens);
ScratchSize experts_scratch(const ops::Experts& step, const ops::ExpertSet& set, int64_t max_rows);

}  // namespace thermocline::cpu
