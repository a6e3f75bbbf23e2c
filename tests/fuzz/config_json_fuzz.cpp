// Input: a config.json. It becomes a model shape, or is refused with Error; a shape that comes out is within the
// limits that make it safe to size things by it.
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/model/deepseek_v4.h"
#include "src/model/weights.h"

#include <cstddef>
#include <cstdint>

using namespace thermocline;
using namespace thermocline::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const Json config = parse_config({reinterpret_cast<const char*>(data), size});
        const deepseek_v4::Shape shape = deepseek_v4::read_shape(config);
        CHECK(shape.vocab > 0 && shape.hidden > 0 && shape.heads > 0 && shape.head_dim > 0);
        CHECK(!shape.layers.empty() && shape.layers.size() < 100'000);
        for (const deepseek_v4::LayerShape& layer : shape.layers)
            CHECK((layer.ratio == 0) == (layer.context == deepseek_v4::Context::kWindow));
        CHECK(deepseek_v4::rope_frequencies(shape.window_rope, shape.rope_dim).size() ==
              deepseek_v4::rope_frequencies(shape.context_rope, shape.rope_dim).size());
    } catch (const Error&) {
    }
    return 0;
}
