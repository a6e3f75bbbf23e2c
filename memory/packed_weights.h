// The weights of a model in the packed layout (src/quant/strips.h), made while loading: every matrix of the plans that
// has a packed form is rewritten into memory of ours, and the plans' views then point there. The source pages are given
// back as they are read, so memory is never needed twice. Matrices without a packed form stay where they lie. Every
// matrix, those of an expert too, has a part in every slice of the memory: all nodes read at once whatever is needed.
// What a card alone is to hold is packed only while it is brought there.
#pragma once

#include "memory/arena.h"
#include "memory/deferred_weights.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::memory {

class PackedWeights {
public:
    /// Rewrites the views of `plans`; this object must outlive them. `source`: null if they point into files, whose
    /// pages the kernel may drop anyway; else what they point to is made if need be, matrices without a packed form
    /// where they lie. Matrices are cut into a slice for each of `slices`, packed by its cores. `progress` is told of
    /// bytes done and in all, from the calling thread. `card_only`: views of the plans that get addresses and no memory
    /// (whoever else shows the same bytes too); those without a packed form stay as they are. Throws Error if the
    /// weights do not fit into memory.
    PackedWeights(std::span<ops::Plan* const> plans, std::shared_ptr<const DeferredWeights> source,
                  std::span<const Slice> slices, const std::function<void(int64_t done, int64_t all)>& progress = {},
                  std::span<const quant::Matrix* const> card_only = {});

    /// Packs the matrices of `card_only` in which these places lie; those made before that are not among them, and with
    /// drop() all, are gone again. To touch what is not made ends the program. Throws Error if there is no memory.
    void make(std::span<const std::byte* const> places);
    void drop() { make({}); }

    /// In memory.
    int64_t bytes() const { return bytes_; }
    /// Of `card_only`.
    int64_t card_only_bytes() const { return card_only_bytes_; }
    /// Where they lie; null if there are none.
    const Arena* arena() const { return arena_ ? &*arena_ : nullptr; }
    std::span<std::byte> memory() const { return arena_ ? arena_->bytes() : std::span<std::byte>(); }
    /// Of the matrices that stayed as they lie.
    int64_t unpacked_bytes() const { return unpacked_bytes_; }

private:
    struct Unmade {
        quant::Matrix from, to;
        int64_t bytes;
        bool made;
    };
    std::span<std::byte> pages_of(const Unmade& matrix) const;

    std::shared_ptr<const DeferredWeights> source_;
    std::vector<Slice> slices_;
    std::optional<Arena> arena_;
    std::optional<Pages> addresses_;             // of what is unmade
    std::map<const std::byte*, Unmade> unmade_;  // by where they begin
    int64_t bytes_ = 0, card_only_bytes_ = 0, unpacked_bytes_ = 0;
};

/// The views of `plans` that PackedWeights would rewrite.
std::vector<quant::Matrix*> packable_views(std::span<ops::Plan* const> plans);

}  // namespace thermocline::memory
