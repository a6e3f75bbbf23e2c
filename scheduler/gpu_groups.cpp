#include "scheduler/gpu_groups.h"

namespace thermocline::scheduler {

namespace {

using ops::kNone;

class Grouper {
public:
    explicit Grouper(const ops::Plan& plan) : plan_(plan) {}

    Group group_at(size_t first) const {
        cuda::SiteSteps site;
        size_t next = first;
        take(next, site.out);
        if (take(next, site.mix) && take(next, site.in) && take(next, site.norm) && can_fuse(plan_, site))
            return group(first, next, site);
        cuda::VectorSteps vectors;
        next = first;
        take(next, vectors.norm);
        take(next, vectors.rope);
        take(next, vectors.round);
        if (next - first > 1 && can_fuse(plan_, vectors)) return group(first, next, vectors);
        return {static_cast<int32_t>(first), 1, {}};
    }

private:
    /// Whether step `next` is of this kind; then it is passed.
    template <typename Kind>
    bool take(size_t& next, const Kind*& step) const {
        if (next >= plan_.steps.size()) return false;
        step = std::get_if<Kind>(&plan_.steps[next]);
        if (step != nullptr) ++next;
        return step != nullptr;
    }
    template <typename Steps>
    static Group group(size_t first, size_t end, const Steps& steps) {
        return {static_cast<int32_t>(first), static_cast<int32_t>(end - first), steps};
    }

    const ops::Plan& plan_;
};

}  // namespace

std::vector<Group> group_steps(const ops::Plan& plan) {
    const Grouper grouper(plan);
    std::vector<Group> groups;
    for (size_t at = 0; at < plan.steps.size(); at += static_cast<size_t>(groups.back().count))
        groups.push_back(grouper.group_at(at));
    return groups;
}

ops::Uses uses_of(const cuda::VectorSteps& s) {
    const ops::Slot out = s.round ? s.round->x : s.rope ? s.rope->x : s.norm->out;
    return {.reads = {s.norm ? s.norm->in : out, kNone, kNone, kNone}, .writes = {out, kNone, kNone}};
}

ops::Uses uses_of(const cuda::SiteSteps& s) {
    ops::Uses uses = {.reads = {s.in->streams, kNone, kNone, kNone}, .writes = {s.in->x, s.in->post_comb, kNone}};
    if (s.out != nullptr) {
        uses.reads = {s.out->y, s.out->post_comb, kNone, kNone};
        uses.writes[2] = s.in->streams;
    }
    return uses;
}

}  // namespace thermocline::scheduler
