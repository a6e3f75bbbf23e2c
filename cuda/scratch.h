// What each step asks of a plan and of scratch memory; limits.cpp asks for all of them. The rules stand beside the code
// that launches the kernels.
#pragma once

#include "src/ops/plan.h"

#include <cstdint>
#include <string>

namespace thermocline::cuda {

/// About so many blocks keep every multiprocessor of the largest cards busy.
inline constexpr int64_t kFillingBlocks = 256;

/// Why no kernel plays the step, in a clause; empty: one does.
std::string why_not(const ops::Plan& plan, const ops::HyperIn& step);
std::string why_not(const ops::Plan& plan, const ops::HyperOut& step);
std::string why_not(const ops::Plan& plan, const ops::HyperHead& step);
std::string why_not(const ops::Plan& plan, const ops::RoundKv& step);
std::string why_not(const ops::Plan& plan, const ops::Compress& step);
std::string why_not(const ops::Plan& plan, const ops::SelectEntries& step);
std::string why_not(const ops::Plan& plan, const ops::Attention& step);
std::string why_not(const ops::Plan& plan, const ops::StoreWindow& step);
std::string why_not(const ops::Plan& plan, const ops::Route& step);
std::string why_not(const ops::Plan& plan, const ops::Linear& step);
std::string why_not(const ops::Plan& plan, const ops::Experts& step);

/// The same for what all steps ask of keys with `width` channels, the last `rope` of them rotary.
std::string why_not_keys(int64_t width, int64_t rope);

/// Runs of columns that share a scale when a vector is rounded to e4m3.
inline int64_t column_groups(int64_t width) { return (width + 127) / 128; }

/// Bytes of scratch for `max_rows` rows.
int64_t linear_scratch(const ops::Plan& plan, const ops::Linear& step, int64_t max_rows);
int64_t select_scratch(const ops::SelectEntries& step, int64_t max_rows);
int64_t attention_scratch(const ops::Attention& step, int64_t max_rows);

}  // namespace thermocline::cuda
