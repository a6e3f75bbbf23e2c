// Input: a GGUF file. It must be read or refused with Error; every tensor that comes out lies inside the file, its
// metadata become a config or an Error, and inspecting it reads nothing else.
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/model/gguf.h"
#include "src/model/gguf_config.h"
#include "src/model/inspect.h"

#include <cstddef>
#include <cstdint>

using namespace thermocline;
using namespace thermocline::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        Checkpoint checkpoint;
        checkpoint.container = "gguf";
        const auto file = MappedFile::from_bytes({reinterpret_cast<const char*>(data), size}, "fuzz.gguf");
        read_gguf(file, checkpoint.weights, checkpoint.metadata);
        const std::byte* begin = file->bytes().data();
        for (const auto& [name, entry] : checkpoint.weights.tensors) {
            CHECK(entry.name == name && entry.bytes >= 0);
            CHECK(entry.data == begin + entry.offset);
            CHECK(static_cast<size_t>(entry.offset + entry.bytes) <= size);
        }
        checkpoint.config = config_from_gguf(checkpoint.metadata, checkpoint.weights);
        report_text(inspect(checkpoint));
    } catch (const Error&) {
    }
    return 0;
}
