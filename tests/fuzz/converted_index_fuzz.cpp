// Input: the index of a converted model, beside weights of a megabyte of zeros. It must be read or refused with Error;
// everything that comes out lies inside the weights, and decoding and inspecting it reads nothing else.
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/model/converted.h"
#include "src/model/inspect.h"
#include "src/quant/reference.h"

#include <cstddef>
#include <cstdint>

using namespace thermocline;
using namespace thermocline::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const auto weights = MappedFile::from_bytes(std::string(size_t{1} << 20, '\0'), "weights.bin");
    const std::byte* begin = weights->bytes().data();
    const auto inside = [&](const std::byte* at, int64_t bytes) {
        CHECK(at > begin && bytes >= 0 && at + bytes <= begin + weights->size());
    };
    try {
        Checkpoint checkpoint;
        checkpoint.container = "converted";
        checkpoint.config = Json::object();
        read_converted_index({reinterpret_cast<const char*>(data), size}, weights, checkpoint);
        for (const auto& [name, entry] : checkpoint.weights.tensors) {
            CHECK(entry.name == name);
            inside(entry.data, entry.bytes);
            if (!entry.converted) continue;
            const quant::Matrix& matrix = *entry.converted;
            if (matrix.scales) inside(matrix.scales, matrix.scale_stride);
            if (matrix.rows * matrix.cols < 1 << 22) quant::decode_matrix(matrix);
        }
        report_text(inspect(checkpoint));
        damaged_tensors(checkpoint, [](int64_t) {});
    } catch (const Error&) {
    }
    return 0;
}
