// Input: tokenizer.json, a zero byte, tokenizer_config.json, a zero byte, text. The file must be read or refused with
// Error; what it then encodes must come back byte for byte, streamed and at once.
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/text/detokenizer.h"
#include "src/text/tokenizer_json.h"

#include <string_view>

namespace {

using namespace thermocline;

std::string_view take_part(std::string_view& rest) {
    const size_t end = rest.find('\0');
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    return part;
}

void check_round_trip(const text::Tokenizer& tokenizer, std::string_view input, bool parse_special) {
    const std::vector<int32_t> ids = tokenizer.encode(input, parse_special);
    text::Detokenizer detokenizer(tokenizer);
    std::string bytes;
    std::string streamed;
    for (const int32_t id : ids) {
        bytes += tokenizer.token_bytes(id);
        streamed += detokenizer.push(id);
    }
    streamed += detokenizer.flush();
    CHECK(streamed == tokenizer.decode(ids));
    CHECK(bytes == input);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string_view rest(reinterpret_cast<const char*>(data), size);
    const std::string_view json = take_part(rest);
    const std::string_view config = take_part(rest);
    try {
        const text::Tokenizer tokenizer(text::parse_tokenizer_json(json, config, "fuzz"));
        check_round_trip(tokenizer, rest, true);
        check_round_trip(tokenizer, rest, false);
    } catch (const Error&) {
        // The one exception that bad input may cause.
    }
    return 0;
}
