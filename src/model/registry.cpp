#include "src/model/registry.h"

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/model/config_fields.h"
#include "src/model/deepseek_v4.h"
#include "src/model/dummy.h"
#include "src/model/matrices.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <set>

namespace thermocline::model {

namespace {

struct Architecture {
    const char* model_type;
    void (*build)(MatrixFinder&, const LoadOptions&, Model&);
    std::vector<DummyTensor> (*dummy_tensors)(const Json& config, int32_t layers);
};

constexpr std::array kArchitectures = {Architecture{"deepseek_v4", deepseek_v4::build, deepseek_v4::dummy_tensors}};

const Architecture& architecture_of(const Checkpoint& checkpoint) {
    const ConfigFields fields(checkpoint.config, checkpoint.path + ": config.json");
    const std::string type = fields.string_or({"model_type"}, "");
    const auto found = std::find_if(kArchitectures.begin(), kArchitectures.end(),
                                    [&](const Architecture& a) { return type == a.model_type; });
    if (found == kArchitectures.end())
        fail(checkpoint.path, ": model_type is \"", printable(type), "\", supported: deepseek_v4");
    return *found;
}

/// The first id of a field that may be a number or a list of numbers; -1 if absent.
int32_t first_id(const Json& config, const char* name) {
    const auto found = config.find(name);
    if (found == config.end()) return -1;
    const Json& value = found->is_array() && !found->empty() ? found->front() : *found;
    if (!value.is_number_integer()) return -1;
    const auto id = value.get<int64_t>();
    return id >= 0 && id < (1 << 24) ? static_cast<int32_t>(id) : -1;
}

/// Bytes of all different matrices that the plans read, and parameters, vectors included; views of the same bytes count
/// once.
void count_weights(Model& model) {
    std::set<const std::byte*> seen;
    const auto count = [&](const quant::Matrix& matrix) {
        if (!seen.insert(matrix.data).second) return;
        model.weight_bytes += matrix.bytes();
        model.parameters += matrix.rows * matrix.cols;
    };
    for (const ops::Plan* plan : {&model.trunk, model.mtp ? &*model.mtp : nullptr}) {
        if (plan == nullptr) continue;
        for (const ops::NamedMatrix& named : plan->matrices) count(named.matrix);
        for (const ops::ExpertSet& set : plan->experts)
            for (const auto* projection : {&set.w1, &set.w2, &set.w3})
                for (const quant::Matrix& matrix : *projection) count(matrix);
        for (const ops::NamedVector& named : plan->vectors) model.parameters += std::ssize(named.values);
    }
}

void make_dummy_tensors(const std::vector<DummyTensor>& tensors, const LoadOptions& options, Checkpoint& checkpoint) {
    const auto start = std::chrono::steady_clock::now();
    add_dummy_tensors(tensors, options.seed, options.defer_codes, checkpoint);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto& files = checkpoint.weights.files;
    log::info("{:.2f} GB of dummy weights made in {:.2f} s, {:.2f} GB left to be made while packing",
              static_cast<double>(files[0]->size()) * 1e-9, seconds, static_cast<double>(files[1]->size()) * 1e-9);
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& path, const LoadOptions& options) {
    auto model = std::make_unique<Model>();
    const bool from_config = options.format != LoadFormat::kAuto;
    model->checkpoint = from_config ? open_config(path) : open_checkpoint(path);
    const Architecture& architecture = architecture_of(model->checkpoint);
    model->architecture = architecture.model_type;
    model->bos_id = first_id(model->checkpoint.config, "bos_token_id");
    model->eos_id = first_id(model->checkpoint.config, "eos_token_id");

    if (from_config) {
        if (options.dummy_vocab > 0) model->checkpoint.config["vocab_size"] = options.dummy_vocab;
        const auto tensors = architecture.dummy_tensors(model->checkpoint.config, options.layers);
        if (options.format == LoadFormat::kOutline)
            add_outline(tensors, model->checkpoint);
        else
            make_dummy_tensors(tensors, options, model->checkpoint);
    }
    MatrixFinder finder(model->checkpoint);
    architecture.build(finder, options, *model);
    model->warnings = finder.warnings();
    count_weights(*model);
    for (const std::string& warning : model->warnings) log::warn("{}", warning);
    if (const auto unused = finder.unused(); !unused.empty() && options.layers == 0)
        log::info("{} tensors are not used, for example {}", unused.size(), unused.front());
    return model;
}

}  // namespace thermocline::model
