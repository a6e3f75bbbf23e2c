// Whether the experts on a card pay: now and then passes are played in turn with and without them, all by the CPU, and
// if those without are clearly faster the card's experts are left out until another trial says otherwise. What is
// compared are neighbours of equal size, so that longer contexts and other load count on both sides. Pure. One thread.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline::scheduler {

struct TrialRules {
    int64_t first = 64;         ///< passes before the first trial
    int64_t most_apart = 8192;  ///< passes between two trials; they begin `first` apart, and twice that each time that
                                ///< one confirms how things are
    int pairs = 6;              ///< that are compared in a trial; one more before them warms up
    double clearly = 0.03;      ///< share of a pass by which the other way must be faster
    double least_gain = 0;      ///< share of a pass that must be gained for it to pay
};

class ResidencyTrial {
public:
    explicit ResidencyTrial(const TrialRules& rules = {}) : rules_(rules), apart_(rules.first), left_(rules.first) {}

    /// Whether the next pass, over so many rows, shall use the experts on the card.
    bool use(int64_t rows);
    /// That pass took so long. Returns whether this has changed on().
    bool took(double seconds);

    /// Outside of trials.
    bool on() const { return on_; }
    bool under_way() const { return trying_; }
    /// What use() would say of a pass as the last one.
    bool would_use() const { return trying_ ? (done_ % 2 == 0) == with_first() : on_; }
    /// How much longer a pass without them took in the last trial, as a share of one with; 0 before.
    double gain() const { return gain_; }

private:
    bool with_first() const { return done_ / 2 % 2 == 0; }
    void judge();

    TrialRules rules_;
    bool on_ = true, trying_ = false, counted_ = false;
    int64_t apart_, left_;
    int64_t rows_ = 0;  // of the passes of the trial
    int done_ = 0;      // passes of it
    int64_t strangers_ = 0;
    double first_seconds_ = 0, gain_ = 0;
    std::vector<double> ratios_;  // without / with
};

}  // namespace thermocline::scheduler
