#include "scheduler/residency_trial.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kMostStrangers = 64;  // passes of another size, after which a trial starts anew with that size

}  // namespace

bool ResidencyTrial::use(int64_t rows) {
    if (!trying_) {
        if (--left_ > 0) return on_;
        trying_ = true;
        rows_ = rows;
        done_ = 0;
        strangers_ = 0;
        ratios_.clear();
    }
    counted_ = rows == rows_;
    if (!counted_) {
        if (++strangers_ > kMostStrangers) trying_ = false, left_ = 1;
        return on_;
    }
    return (done_ % 2 == 0) == with_first();
}

bool ResidencyTrial::took(double seconds) {
    if (!trying_ || !counted_) return false;
    counted_ = false;
    if (done_++ % 2 == 0) {
        first_seconds_ = seconds;
        return false;
    }
    const bool with_was_first = (done_ - 1) / 2 % 2 == 0;
    const double with = with_was_first ? first_seconds_ : seconds, without = with_was_first ? seconds : first_seconds_;
    if (done_ > 2) ratios_.push_back(without / std::max(with, 1e-9));
    if (std::ssize(ratios_) < rules_.pairs) return false;
    const bool before = on_;
    judge();
    return on_ != before;
}

void ResidencyTrial::judge() {
    const auto middle = ratios_.begin() + std::ssize(ratios_) / 2;
    std::nth_element(ratios_.begin(), middle, ratios_.end());
    gain_ = *middle - 1.0;
    trying_ = false;
    if (on_ ? gain_ < rules_.least_gain - rules_.clearly : gain_ > rules_.least_gain + rules_.clearly) {
        on_ = !on_;
        apart_ = rules_.first;
    } else {
        apart_ = std::min(2 * apart_, rules_.most_apart);
    }
    left_ = apart_;
}

}  // namespace thermocline::scheduler
