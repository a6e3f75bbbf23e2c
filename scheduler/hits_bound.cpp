#include "scheduler/hits_bound.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <queue>
#include <utility>
#include <vector>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kHit = 1 << 16;  // what a hit is worth; prices are of the same unit
constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;

/// Paths of least cost, one unit after the other, in a network without circles.
class Flow {
public:
    explicit Flow(size_t nodes) : from_(nodes), height_(nodes, kFar), distance_(nodes), by_(nodes) {}

    /// Nodes are numbered so that every edge leads to a larger number. Returns the edge.
    size_t add(size_t from, size_t to, int64_t room, int64_t cost) {
        from_[from].push_back(edges_.size());
        edges_.push_back({to, room, cost});
        from_[to].push_back(edges_.size());
        edges_.push_back({from, 0, -cost});
        return edges_.size() - 2;
    }
    int64_t used(size_t edge) const { return edges_[edge ^ 1].room; }
    int64_t cost() const { return cost_; }

    /// From the first node to the last, as long as that lowers the cost.
    void push(int64_t units) {
        height_[0] = 0;
        for (size_t node = 0; node < from_.size(); ++node)
            for (const size_t e : from_[node])
                if (edges_[e].room > 0 && height_[node] < kFar)
                    height_[edges_[e].to] = std::min(height_[edges_[e].to], height_[node] + edges_[e].cost);
        for (; units > 0 && find(); --units)
            for (size_t node = from_.size() - 1; node != 0; node = edges_[by_[node] ^ 1].to) {
                --edges_[by_[node]].room;
                ++edges_[by_[node] ^ 1].room;
                cost_ += edges_[by_[node]].cost;
            }
    }

private:
    struct Edge {
        size_t to;
        int64_t room, cost;
    };

    /// Dijkstra over costs that heights make positive.
    bool find() {
        std::fill(distance_.begin(), distance_.end(), kFar);
        std::priority_queue<std::pair<int64_t, size_t>, std::vector<std::pair<int64_t, size_t>>, std::greater<>> next;
        next.push({distance_[0] = 0, 0});
        while (!next.empty()) {
            const auto [far, node] = next.top();
            next.pop();
            if (far > distance_[node]) continue;
            for (const size_t e : from_[node]) {
                const Edge& edge = edges_[e];
                const int64_t there = far + edge.cost + height_[node] - height_[edge.to];
                if (edge.room == 0 || there >= distance_[edge.to]) continue;
                distance_[edge.to] = there;
                by_[edge.to] = e;
                next.push({there, edge.to});
            }
        }
        if (distance_.back() == kFar || distance_.back() + height_.back() >= 0) return false;
        for (size_t node = 0; node < from_.size(); ++node)
            if (distance_[node] < kFar) height_[node] += distance_[node];
        return true;
    }

    std::vector<std::vector<size_t>> from_;  // edges out of each node, also those back
    std::vector<Edge> edges_;                // and after each the one back
    std::vector<int64_t> height_, distance_;
    std::vector<size_t> by_;
    int64_t cost_ = 0;
};

struct Use {
    size_t expert, pass;
    int64_t rows;
};

/// In the order of passes, these counted from `from`.
std::vector<Use> uses_after(const RoutingTrace& trace, size_t from) {
    std::vector<Use> uses;
    for (size_t p = from; p < trace.passes.size(); ++p) {
        std::map<size_t, int64_t> rows;
        size_t first = 0;
        for (size_t layer = 0; layer < trace.layers.size(); ++layer) {
            for (const int32_t id : trace.passes[p].ids[layer]) ++rows[first + static_cast<size_t>(id)];
            first += static_cast<size_t>(trace.layers[layer].experts);
        }
        for (const auto& [expert, count] : rows) uses.push_back({expert, p - from, count});
    }
    return uses;
}

struct Played {
    int64_t worth, changes;
};

/// The best of all if a change costs `price`. A unit of flow is a slot: it waits from pass to pass, or has an expert
/// from one use, after which it may be brought, to the next.
Played play(const std::vector<Use>& uses, size_t passes, int64_t slots, int64_t price) {
    // Node of a pass: the slots that are free before it; then two for each of its uses.
    std::vector<size_t> pass_node(passes + 1);
    std::vector<size_t> use_node(uses.size());
    size_t nodes = 1;  // the first is where slots begin
    for (size_t p = 0, i = 0; p <= passes; ++p) {
        pass_node[p] = nodes++;
        for (; i < uses.size() && uses[i].pass == p; ++i, nodes += 2) use_node[i] = nodes;
    }
    Flow flow(nodes);
    flow.add(0, pass_node[0], slots, 0);
    for (size_t p = 0; p < passes; ++p) flow.add(pass_node[p], pass_node[p + 1], slots, 0);
    std::map<size_t, size_t> last;  // use of each expert
    std::vector<size_t> brought;
    for (size_t i = 0; i < uses.size(); ++i) {
        const size_t in = use_node[i], out = in + 1;
        flow.add(in, out, 1, -uses[i].rows * kHit);
        if (const auto before = last.find(uses[i].expert); before != last.end()) {
            flow.add(use_node[before->second] + 1, in, 1, 0);
            brought.push_back(flow.add(pass_node[uses[before->second].pass + 1], in, 1, price));
        } else {
            flow.add(0, in, 1, 0);  // it lay there from the start
        }
        flow.add(out, pass_node[uses[i].pass + 1], 1, 0);
        last[uses[i].expert] = i;
    }
    flow.push(slots);
    Played played{-flow.cost(), 0};
    for (const size_t edge : brought) played.changes += flow.used(edge);
    return played;
}

}  // namespace

double most_hits(const RoutingTrace& trace, int64_t slots, size_t from, int64_t changes) {
    const std::vector<Use> uses = uses_after(trace, from);
    int64_t least = kFar;
    const auto too_many_at = [&](int64_t price) {
        const Played played = play(uses, trace.passes.size() - from, slots, price);
        least = std::min(least, played.worth + price * changes);
        return played.changes > changes;
    };
    int64_t low = 0, high = kHit;
    while (too_many_at(high) && high < kHit * std::ssize(uses)) low = high, high *= 2;
    const int64_t near = kHit * std::ssize(uses) / 4096;  // 0.02 % of all that could be found
    while ((high - low) * std::max<int64_t>(changes, 1) > near && high - low > 1) {
        const int64_t price = low + (high - low) / 2;
        (too_many_at(price) ? low : high) = price;
    }
    return static_cast<double>(least) / static_cast<double>(kHit);
}

}  // namespace thermocline::scheduler
