#include "src/engine/convert.h"

#include "memory/packed_weights.h"
#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/pages.h"
#include "src/engine/new_folder.h"
#include "src/model/converted.h"
#include "src/model/registry.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace thermocline::engine {
namespace {

namespace fs = std::filesystem;
using model::ConvertedTensor;
using quant::Matrix;

constexpr int64_t kPiece = int64_t{4} << 20;  // written at once

/// What the text of a model needs besides tokenizer.json and config.json, and its licence.
constexpr const char* kBeside[] = {"config.json",
                                   "generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "chat_template.jinja",
                                   "chat_template.json",
                                   "LICENSE"};

/// A tensor to be written: its place, and where its bytes are now.
struct Item {
    ConvertedTensor tensor;
    Matrix source;                 // of matrices
    const void* values = nullptr;  // of vectors and tables
};

/// All tensors of the plans in the order in which a pass reads them, with their places in the file.
class Contents {
public:
    explicit Contents(model::Model& model) {
        std::vector<ops::Plan*> plans = {&model.trunk};
        if (model.mtp) plans.push_back(&*model.mtp);
        for (const Matrix* view : memory::packable_views(plans)) packed_.insert(view);
        for (const ops::Plan* plan : plans) add(*plan);
    }

    std::vector<Item>& items() { return items_; }
    int64_t file_bytes() const { return (end_ + model::kWeightsPage - 1) / model::kWeightsPage * model::kWeightsPage; }

private:
    void add(const ops::Plan& plan) {
        for (const ops::Step& step : plan.steps) {
            if (const auto* embed = std::get_if<ops::Embed>(&step)) add(plan, embed->table);
            if (const auto* linear = std::get_if<ops::Linear>(&step)) add(plan, linear->weight);
            if (const auto* experts = std::get_if<ops::Experts>(&step))
                add(plan.experts[static_cast<size_t>(experts->experts)]);
        }
        for (const ops::NamedVector& vector : plan.vectors)
            add(vector.name, quant::Format::kF32, vector.shape, vector.values.data());
        for (const ops::NamedTable& table : plan.tables)
            add(table.name, quant::Format::kI32, table.shape, table.values.data());
    }

    void add(const ops::Plan& plan, ops::MatrixId id) {
        const ops::NamedMatrix& named = plan.matrices[static_cast<size_t>(id)];
        add(named.name, named.matrix);
    }

    void add(const ops::ExpertSet& set) {
        for (size_t e = 0; e < set.w1.size(); ++e) {
            const std::string expert = set.name + "." + std::to_string(e) + ".";
            add(expert + "w1", set.w1[e]);
            add(expert + "w3", set.w3[e]);
            add(expert + "w2", set.w2[e]);
        }
    }

    void add(const std::string& name, const Matrix& matrix) {
        if (!names_.insert(name + ".weight").second) return;  // trunk and MTP layer share the embedding and the head
        Item item;
        item.source = matrix;
        item.tensor.name = name + ".weight";
        item.tensor.shape = {matrix.rows, matrix.cols};
        item.tensor.is_matrix = true;
        item.tensor.matrix = packed_.contains(&matrix) ? packed_form(matrix) : matrix;
        Matrix& form = item.tensor.matrix;
        item.tensor.format = form.format;
        if (form.layout == quant::Layout::kRows) form.row_bytes = quant::bytes_of(form.format, form.cols);
        const model::PartSizes sizes = part_sizes(item.tensor);
        item.tensor.offset = take(sizes.data, model::kWeightsPage);
        if (sizes.scales > 0) item.tensor.scales = take(sizes.scales, model::kPartAlignment);
        if (sizes.zero_points > 0) item.tensor.zero_points = take(sizes.zero_points, model::kPartAlignment);
        items_.push_back(std::move(item));
    }

    void add(const std::string& name, quant::Format format, const Shape& shape, const void* values) {
        if (!names_.insert(name).second) return;
        Item item;
        item.tensor.name = name;
        item.tensor.format = format;
        item.tensor.shape = shape;
        item.values = values;
        item.tensor.offset = take(part_sizes(item.tensor).data, model::kPartAlignment);
        items_.push_back(std::move(item));
    }

    int64_t take(int64_t bytes, int64_t alignment) {
        const int64_t offset = (end_ + alignment - 1) / alignment * alignment;
        end_ = offset + bytes;
        return offset;
    }

    std::set<const Matrix*> packed_;
    std::set<std::string> names_;
    std::vector<Item> items_;
    int64_t end_ = model::kWeightsPage;
};

/// Writes the items, several threads side by side; each holds one piece in memory.
class WeightWriter {
public:
    WeightWriter(std::vector<Item>& items, const NewFile& file, const Conversion& conversion)
        : items_(items), file_(file), conversion_(conversion) {
        for (const Item& item : items) all_ += part_sizes(item.tensor).data;
    }

    void run() {
        std::vector<std::jthread> threads;
        for (int i = 0; i < std::max(1, conversion_.threads); ++i) threads.emplace_back([this] { work(); });
        while (done_ < all_ && !ending()) {
            if (conversion_.progress) conversion_.progress(done_, all_);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        threads.clear();  // joins
        if (error_) std::rethrow_exception(error_);
        if (interrupted()) fail("interrupted, nothing was kept");
    }

private:
    bool interrupted() const { return conversion_.interrupted && *conversion_.interrupted; }
    bool ending() const { return failed_ || interrupted(); }

    void work() {
        std::vector<std::byte> piece;
        try {
            for (size_t i = next_++; i < items_.size() && !ending(); i = next_++) write(items_[i], piece);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
            failed_ = true;
        }
    }

    void write(Item& item, std::vector<std::byte>& piece) {
        ConvertedTensor& tensor = item.tensor;
        const model::PartSizes sizes = part_sizes(tensor);
        tensor.checksum = kChecksumStart;
        if (!tensor.is_matrix) {
            put({static_cast<const std::byte*>(item.values), static_cast<size_t>(sizes.data)}, tensor.offset, tensor);
            done_ += sizes.data;
            return;
        }
        const Matrix &from = item.source, &to = tensor.matrix;
        if (to.layout == quant::Layout::kStrips)
            write_strips(item, piece);
        else
            write_rows({from.data, from.rows, from.row_bytes, to.row_bytes}, tensor.offset, tensor, piece, true);
        if (sizes.scales > 0) {
            const int64_t rows = (from.rows + from.scale_rows - 1) / from.scale_rows;
            write_rows({from.scales, rows, from.scale_stride, sizes.scales / rows}, tensor.scales, tensor, piece,
                       false);
        }
        if (sizes.zero_points > 0)
            put({from.zero_points, static_cast<size_t>(sizes.zero_points)}, tensor.zero_points, tensor);
    }

    void write_strips(Item& item, std::vector<std::byte>& piece) {
        const Matrix& form = item.tensor.matrix;
        const int64_t strips = form.rows / quant::kStripRows, each = std::max<int64_t>(1, kPiece / form.strip_bytes);
        const int64_t source_strip = quant::kStripRows * item.source.row_bytes;
        for (int64_t first = 0; first < strips && !ending(); first += each) {
            const int64_t count = std::min(each, strips - first);
            piece.resize(static_cast<size_t>(count * form.strip_bytes));
            pack_strips(item.source, first, count, piece.data());
            release_pages(item.source.data + first * source_strip, count * source_strip);
            put(piece, item.tensor.offset + first * form.strip_bytes, item.tensor);
            done_ += count * form.strip_bytes;
        }
    }

    struct Rows {
        const std::byte* data;
        int64_t rows, stride, bytes;  // bytes of a row, which follow one another in the file
    };

    void write_rows(const Rows& from, int64_t offset, ConvertedTensor& tensor, std::vector<std::byte>& piece,
                    bool counted) {
        const int64_t each = std::max<int64_t>(1, kPiece / from.bytes / 8) * 8;  // checksums go on after 8 bytes
        for (int64_t first = 0; first < from.rows && !ending(); first += each) {
            const int64_t count = std::min(each, from.rows - first);
            piece.resize(static_cast<size_t>(count * from.bytes));
            for (int64_t row = 0; row < count; ++row)
                std::memcpy(piece.data() + row * from.bytes, from.data + (first + row) * from.stride,
                            static_cast<size_t>(from.bytes));
            release_pages(from.data + first * from.stride, count * from.stride);
            put(piece, offset + first * from.bytes, tensor);
            if (counted) done_ += count * from.bytes;
        }
    }

    void put(std::span<const std::byte> bytes, int64_t offset, ConvertedTensor& tensor) {
        tensor.checksum = checksum_of(bytes, tensor.checksum);
        file_.write(offset, bytes);
    }

    std::vector<Item>& items_;
    const NewFile& file_;
    const Conversion& conversion_;
    int64_t all_ = 0;
    std::atomic<size_t> next_ = 0;
    std::atomic<int64_t> done_ = 0;
    std::atomic<bool> failed_ = false;
    std::mutex mutex_;  // guards error_
    std::exception_ptr error_;
};

/// The config of a model of the first `layers` layers of this one, whose MTP layers are gone then; of all: the config.
Json config_of(Json config, int32_t layers) {
    for (const char* key : {"num_hidden_layers", "n_layers"}) {
        const auto count = config.find(key);
        if (layers == 0 || count == config.end() || count->get<int64_t>() <= layers) continue;
        *count = layers;
        config["num_nextn_predict_layers"] = 0;
    }
    return config;
}

/// All files beside the weights.
void write_text(const model::Checkpoint& checkpoint, int32_t layers, const NewFolder& folder) {
    const Json config = config_of(checkpoint.config, layers);
    const bool gguf = checkpoint.container == "gguf", cut = config != checkpoint.config;
    if (gguf || cut) folder.write("config.json", dump_json(config, 2));
    if (gguf) {
        Json metadata = Json::object();
        for (const auto& [key, value] : checkpoint.metadata) metadata[key] = value;
        folder.write(model::kMetadataFile, dump_json(metadata));
        return;
    }
    const fs::path source = checkpoint.path;
    for (const char* name : kBeside) {
        if (cut && name == std::string_view("config.json")) continue;
        if (fs::is_regular_file(source / name)) folder.write(name, read_text(source / name));
    }
    if (!fs::is_directory(source / "encoding")) return;
    for (const auto& item : fs::directory_iterator(source / "encoding"))
        if (item.path().extension() == ".py" && item.is_regular_file())
            folder.write("encoding/" + item.path().filename().string(), read_text(item.path()));
}

void check_source(const Conversion& conversion) {
    std::error_code ignored;
    if (fs::equivalent(conversion.model, conversion.destination, ignored))
        fail(printable(conversion.model), ": is the model itself, give -o another directory");
    if (model::is_converted(conversion.model)) fail(printable(conversion.model), ": is converted already");
}

}  // namespace

int64_t convert(const Conversion& conversion) {
    check_source(conversion);
    const auto model = model::load_model(conversion.model, {.layers = conversion.layers});
    Contents contents(*model);
    constexpr int64_t kText = int64_t{64} << 20;  // index, tokenizer: far less
    NewFolder folder(conversion.destination, contents.file_bytes() + kText);
    write_text(model->checkpoint, conversion.layers, folder);

    NewFile weights(folder.path() / model::kWeightsFile, contents.file_bytes());
    WeightWriter(contents.items(), weights, conversion).run();
    std::vector<ConvertedTensor> tensors;
    for (const Item& item : contents.items()) tensors.push_back(item.tensor);
    std::error_code ignored;
    const model::Checkpoint::Source source = {model->checkpoint.container,
                                              fs::absolute(model->checkpoint.path, ignored).string()};
    const std::string index = converted_index(source, tensors);
    const std::string page = model::weights_page(index, contents.file_bytes());
    weights.write(0, {reinterpret_cast<const std::byte*>(page.data()), page.size()});
    weights.finish();
    folder.write(model::kIndexFile, index);
    folder.finish();
    return contents.file_bytes();
}

}  // namespace thermocline::engine
