// What may come out next: the face through which a request restricts the tokens that the sampler draws. One object per
// choice; from submit() on only the engine thread uses it.
#pragma once

#include "src/base/error.h"

#include <cstdint>
#include <span>

namespace thermocline::engine {

/// What a request asks of its output cannot be done: it fails, and no fault of the engine is to be looked for.
class RequestFault : public Error {
public:
    using Error::Error;
};

class TokenConstraint {
public:
    virtual ~TokenConstraint() = default;
    /// Bit i % 64 of word i / 64 says whether token i may be drawn; empty: any may. Valid until accept(). At least one
    /// bit is set unless ended(). Throws RequestFault where what is asked for takes too long.
    virtual std::span<const uint64_t> mask() = 0;
    /// Takes the token that was drawn: one of the mask.
    virtual void accept(int32_t id) = 0;
    /// Nothing may follow: the sequence is over, without an EOS.
    virtual bool ended() const = 0;
};

}  // namespace thermocline::engine
