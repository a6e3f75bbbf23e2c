// Every kernel against the oracle: the steps of the tiny model on a card.
#include "tests/cuda/stage.h"
#include "tests/model/engine_fixture.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

using model::KvCacheDtype;

TEST(CudaSteps, F32CachesMatchTheOracle) {
    CudaStage trunk(tiny_model(KvCacheDtype::kF32).trunk);
    expect_steps_match(tiny_model(KvCacheDtype::kF32).trunk, trunk, 2e-5, 0);
    CudaStage mtp(*tiny_model(KvCacheDtype::kF32).mtp);
    expect_steps_match(*tiny_model(KvCacheDtype::kF32).mtp, mtp, 2e-5, 0);
}

// A number that lies between two codes may be rounded to either.
TEST(CudaSteps, RoundedCachesMatchTheOracle) {
    constexpr int64_t kChunks[] = {1, 2, 40, 9, 1};
    for (const KvCacheDtype format : {KvCacheDtype::kBf16, KvCacheDtype::kFp8F32, KvCacheDtype::kFp8}) {
        CudaStage stage(tiny_model(format).trunk);
        expect_steps_match(tiny_model(format).trunk, stage, 2e-5, 1e-4, kChunks);
    }
}

}  // namespace
}  // namespace thermocline
