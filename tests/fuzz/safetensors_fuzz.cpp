// Input: a safetensors file. It must be read or refused with Error; every tensor that comes out lies inside the file,
// and inspecting it (schemes, scales, codes) reads nothing else.
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/model/inspect.h"
#include "src/model/safetensors.h"

#include <cstddef>
#include <cstdint>

using namespace thermocline;
using namespace thermocline::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        Checkpoint checkpoint;
        checkpoint.container = "safetensors";
        checkpoint.config = Json::object();
        const auto file = MappedFile::from_bytes(text, "fuzz.safetensors");
        read_safetensors(file, checkpoint.weights);
        const std::byte* begin = file->bytes().data();
        for (const auto& [name, entry] : checkpoint.weights.tensors) {
            CHECK(entry.name == name && entry.bytes >= 0 && entry.offset >= 8);
            CHECK(entry.data == begin + entry.offset);
            CHECK(static_cast<size_t>(entry.offset + entry.bytes) <= size);
        }
        report_text(inspect(checkpoint));
    } catch (const Error&) {
    }
    try {
        files_of_index(text, "fuzz.index.json");
    } catch (const Error&) {
    }
    return 0;
}
