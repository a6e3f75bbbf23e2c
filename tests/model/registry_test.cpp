// From a checkpoint to a loaded model: what the registry itself reads of a config.
#include "src/model/registry.h"

#include "src/base/file.h"
#include "tests/model/model_files.h"

#include <gtest/gtest.h>

namespace thermocline::model {
namespace {

std::unique_ptr<Model> load_with(const std::string& key, const Json& value) {
    const std::string golden = golden_model("f0-control-valid");
    Json config = parse_json(read_text(golden + "/config.json"), "config.json");
    config[key] = value;
    const TemporaryFolder folder;
    folder.write("config.json", dump_json(config));
    folder.write("model.safetensors", read_text(golden + "/model.safetensors"));
    return load_model(folder.path().string(), {});
}

TEST(Registry, IdsAreNumbersOrListsOrNothing) {
    EXPECT_EQ(load_with("eos_token_id", 1)->eos_id, 1);
    EXPECT_EQ(load_with("eos_token_id", {7, 5})->eos_id, 7);
    EXPECT_EQ(load_with("bos_token_id", Json::array({3}))->bos_id, 3);
    for (const Json& none : {Json(), Json("x"), Json(-1), Json(1.5), Json::array(), Json(int64_t{1} << 40)})
        EXPECT_EQ(load_with("eos_token_id", none)->eos_id, -1) << none;
}

}  // namespace
}  // namespace thermocline::model
