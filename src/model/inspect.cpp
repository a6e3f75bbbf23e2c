#include "src/model/inspect.h"

#include "src/base/error.h"
#include "src/model/linear.h"
#include "src/model/matrices.h"

#include <algorithm>
#include <cctype>
#include <iomanip>
#include <map>
#include <set>
#include <sstream>

namespace thermocline::model {

namespace {

using quant::Format;

constexpr size_t kCheckedPerLine = 256;  // matrices of a line whose scales and codes are looked at
constexpr size_t kMostProblems = 20;
constexpr int64_t kMostLayers = 4096;

constexpr const char* kSuffixes[] = {".weight",       ".weight_packed",       ".weight_scale",   ".weight_scale_inv",
                                     ".scale",        ".weight_global_scale", ".weight_scale_2", ".weight_shape",
                                     ".weight_g_idx", ".weight_zero_point",   ".input_scale",    ".input_global_scale"};

/// "layers.3.attn.wq_a.weight_scale" -> "layers.3.attn.wq_a"; a name without a known suffix stays.
std::string module_of(const std::string& name) {
    for (const std::string suffix : kSuffixes)
        if (name.ends_with(suffix)) return name.substr(0, name.size() - suffix.size());
    return name;
}

/// "layers.3.attn.wq_a" -> "layers.*.attn.wq_a"
std::string without_numbers(const std::string& name) {
    std::string text;
    for (size_t begin = 0; begin <= name.size();) {
        const size_t end = std::min(name.find('.', begin), name.size());
        const std::string part = name.substr(begin, end - begin);
        const bool number =
            !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
        text += (begin ? "." : "") + (number ? "*" : part);
        begin = end + 1;
    }
    return text;
}

const TensorEntry* codes_of(const LinearTensors& tensors) { return tensors.packed ? tensors.packed : tensors.weight; }

/// "F4, F8_E8M0 scales, strips"
std::string describe(const quant::Matrix& matrix) {
    const bool scales = matrix.scales || matrix.scale_in_strip;
    return std::string(quant::traits(matrix.format).name) +
           (scales ? ", " + std::string(quant::traits(matrix.scale_format).name) + " scales" : "") +
           (matrix.layout == quant::Layout::kStrips ? ", strips" : ", rows");
}

std::string describe(const LinearTensors& tensors) {
    const Scheme scheme = scheme_of(tensors);
    if (scheme == Scheme::kConverted) return describe(*tensors.weight->converted);
    if (scheme == Scheme::kPlain || scheme == Scheme::kUnknown) {
        const std::string format(quant::traits(codes_of(tensors)->format).name);
        return scheme == Scheme::kPlain ? format : format + ", scheme unknown";
    }
    return std::string(scheme_text(scheme)) + ", " + std::string(quant::traits(tensors.scales.front()->format).name) +
           " scales";
}

/// With what lies beside the codes of a matrix in a converted model; in others that is a tensor of its own.
int64_t bytes_of(const TensorEntry& entry) { return entry.converted ? entry.converted->bytes() : entry.bytes; }

/// Columns that the codes [rows, n] stand for.
int64_t columns(const LinearTensors& tensors) {
    const TensorEntry& codes = *codes_of(tensors);
    switch (scheme_of(tensors)) {
        case Scheme::kMxfp4:
        case Scheme::kNvfp4Divisor:
        case Scheme::kNvfp4Multiplier:
            return codes.format == Format::kE2M1Pair ? codes.shape[1] : 2 * codes.shape[1];
        case Scheme::kInt4:
            return 8 * codes.shape[1];
        default:
            return codes.shape[1];
    }
}

class Inspector {
public:
    explicit Inspector(const Checkpoint& checkpoint) : checkpoint_(checkpoint), naming_(recognise_naming(checkpoint)) {}

    Report run() {
        add_start();
        add_formats();
        add_matrices();
        add_layers();
        try {
            report_.warnings = MatrixFinder(checkpoint_).warnings();
        } catch (const Error& error) {
            add_problem(error.what());
        }
        return std::move(report_);
    }

private:
    void add_problem(const std::string& text) {
        const bool known = std::find(report_.problems.begin(), report_.problems.end(), text) != report_.problems.end();
        if (!known && report_.problems.size() < kMostProblems) report_.problems.push_back(text);
    }

    void add_start() {
        const Json& config = checkpoint_.config;
        report_.path = checkpoint_.path;
        report_.container = checkpoint_.container;
        report_.source = checkpoint_.source;
        report_.naming = naming_text(naming_);
        const auto names = config.find("architectures");
        if (names != config.end() && names->is_array() && !names->empty() && names->front().is_string())
            report_.architecture = names->front().get<std::string>();
        const auto type = config.find("model_type");
        if (type != config.end() && type->is_string()) report_.model_type = type->get<std::string>();
        report_.files = static_cast<int64_t>(checkpoint_.weights.files.size());
        report_.tensors = static_cast<int64_t>(checkpoint_.weights.tensors.size());
    }

    void add_formats() {
        std::map<Format, Report::FormatLine> lines;
        for (const auto& [name, entry] : checkpoint_.weights.tensors) {
            Report::FormatLine& line = lines[entry.format];
            line.format = quant::traits(entry.format).name;
            ++line.tensors;
            line.bytes += bytes_of(entry);
            report_.bytes += bytes_of(entry);
        }
        for (auto& [format, line] : lines) report_.formats.push_back(std::move(line));
        std::stable_sort(report_.formats.begin(), report_.formats.end(),
                         [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    }

    void add_matrices() {
        std::set<std::string> modules;
        for (const auto& [name, entry] : checkpoint_.weights.tensors) modules.insert(module_of(name));
        std::map<std::pair<std::string, std::string>, std::vector<LinearTensors>> lines;
        for (const std::string& module : modules) {
            LinearTensors tensors = linear_tensors(checkpoint_.weights, module);
            if (tensors.empty()) tensors.weight = checkpoint_.weights.find(module);  // a stack without suffix
            if (tensors.empty()) {
                add_problem("linear " + printable(module) + " has scales but no weight");
            } else if (codes_of(tensors)->shape.size() >= 2) {
                lines[{without_numbers(module), describe(tensors)}].push_back(std::move(tensors));
            }
        }
        for (const auto& [key, list] : lines) {
            Report::MatrixLine line{key.first, key.second, static_cast<int64_t>(list.size()), 0};
            for (const LinearTensors& tensors : list)
                for (const TensorEntry* tensor : tensors.all()) line.bytes += bytes_of(*tensor);
            report_.matrices.push_back(std::move(line));
            const size_t step = (list.size() + kCheckedPerLine - 1) / kCheckedPerLine;
            for (size_t i = 0; i < list.size(); i += step) check(list[i]);
        }
    }

    /// Tries to make the matrix. Integer tables, stacks of experts and parameters named like tables are none.
    void check(const LinearTensors& tensors) {
        const TensorEntry& codes = *codes_of(tensors);
        const bool table = tensors.scales.empty() && !tensors.packed && !quant::traits(codes.format).weight;
        if (codes.shape.size() != 2 || table) return;
        try {
            // U8 scales of FP8 are exponents or nothing that could be loaded; the config is not asked here.
            if (naming_ == Naming::kGguf)
                plain_matrix(codes, codes.shape[0], codes.shape[1]);
            else
                linear_matrix(tensors, codes.shape[0], columns(tensors), true);
        } catch (const Error& error) {
            add_problem(error.what());
        }
    }

    /// Layers are counted by their routers and attention norms, as far as names of this architecture are known.
    void add_layers() {
        const NameTable names(naming_, 0);
        const auto find = [&](const std::string& official) -> const TensorEntry* {
            for (const std::string& name : names.tensors(official))
                if (const TensorEntry* entry = checkpoint_.weights.find(name)) return entry;
            return nullptr;
        };
        const auto mtp = checkpoint_.config.find("num_nextn_predict_layers");
        const bool claimed = mtp != checkpoint_.config.end() && mtp->is_number_integer();
        while (report_.layers < kMostLayers) {
            const std::string layer = "layers." + std::to_string(report_.layers) + ".";
            const TensorEntry* gate = find(layer + "ffn.gate.weight");
            if (!gate && !find(layer + "attn_norm.weight")) break;
            report_.experts.push_back(gate && gate->shape.size() == 2 ? gate->shape[0] : 0);
            ++report_.layers;
        }
        while (report_.mtp_layers < kMostLayers &&
               checkpoint_.weights.find("mtp." + std::to_string(report_.mtp_layers) + ".attn_norm.weight"))
            ++report_.mtp_layers;
        if (naming_ != Naming::kGguf || report_.mtp_layers > 0 || !claimed) return;
        // GGUF counts MTP layers as the last blocks; the config was derived from the tensors.
        const int64_t last = std::clamp<int64_t>(mtp->get<int64_t>(), 0, report_.layers);
        report_.mtp_layers = last;
        report_.layers -= last;
        report_.experts.resize(static_cast<size_t>(report_.layers));
    }

    const Checkpoint& checkpoint_;
    Naming naming_;
    Report report_;
};

/// "1.23 GB"
std::string size_text(int64_t bytes) {
    constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
    auto value = static_cast<double>(bytes);
    size_t unit = 0;
    for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
    std::ostringstream text;
    text << std::fixed << std::setprecision(unit == 0 ? 0 : 2) << value << " " << kUnits[unit];
    return text.str();
}

/// "256 (layers 0-41), 160 (layer 42)"
std::string experts_text(const std::vector<int64_t>& experts) {
    std::string text;
    for (size_t begin = 0; begin < experts.size();) {
        size_t end = begin;
        while (end < experts.size() && experts[end] == experts[begin]) ++end;
        const std::string layers = end - begin == 1 ? "layer " + std::to_string(begin)
                                                    : "layers " + std::to_string(begin) + "-" + std::to_string(end - 1);
        text += (text.empty() ? "" : ", ") + std::to_string(experts[begin]) + " (" + layers + ")";
        begin = end;
    }
    return text.empty() ? "none" : text;
}

/// " from safetensors /models/x"
std::string source_text(const Checkpoint::Source& source) {
    return source.container.empty() ? "" : " from " + printable(source.container) + " " + printable(source.path, 400);
}

}  // namespace

Report inspect(const Checkpoint& checkpoint) { return Inspector(checkpoint).run(); }

std::string report_text(const Report& report) {
    std::ostringstream text;
    text << "model         " << printable(report.path, 400) << "\n"
         << "architecture  " << printable(report.architecture) << " (" << printable(report.model_type) << ")\n"
         << "container     " << report.container << source_text(report.source) << ", " << report.files << " files, "
         << report.tensors << " tensors, " << size_text(report.bytes) << "\n"
         << "names         " << report.naming << "\n"
         << "layers        " << report.layers << ", MTP " << report.mtp_layers << "\n"
         << "experts       " << experts_text(report.experts) << "\n\nformats\n";
    for (const Report::FormatLine& line : report.formats)
        text << "  " << std::left << std::setw(14) << line.format << std::right << std::setw(8) << line.tensors
             << " tensors" << std::setw(12) << size_text(line.bytes) << "\n";
    size_t width = 0;
    for (const Report::MatrixLine& line : report.matrices) width = std::max(width, printable(line.name).size());
    text << "\nmatrices\n";
    for (const Report::MatrixLine& line : report.matrices)
        text << "  " << std::left << std::setw(static_cast<int>(width)) << printable(line.name) << std::right
             << std::setw(8) << line.count << std::setw(12) << size_text(line.bytes) << "  " << line.scheme << "\n";
    for (const std::string& warning : report.warnings) text << "warning: " << warning << "\n";
    for (const std::string& problem : report.problems) text << "problem: " << problem << "\n";
    return text.str();
}

Json report_json(const Report& report) {
    Json formats = Json::array(), matrices = Json::array();
    for (const Report::FormatLine& line : report.formats)
        formats.push_back({{"format", line.format}, {"tensors", line.tensors}, {"bytes", line.bytes}});
    for (const Report::MatrixLine& line : report.matrices)
        matrices.push_back(
            {{"name", line.name}, {"count", line.count}, {"bytes", line.bytes}, {"scheme", line.scheme}});
    Json json = {{"model", report.path},
                 {"architecture", report.architecture},
                 {"model_type", report.model_type},
                 {"container", report.container},
                 {"naming", report.naming},
                 {"files", report.files},
                 {"tensors", report.tensors},
                 {"bytes", report.bytes},
                 {"layers", report.layers},
                 {"mtp_layers", report.mtp_layers},
                 {"experts", report.experts},
                 {"formats", std::move(formats)},
                 {"matrices", std::move(matrices)},
                 {"warnings", report.warnings},
                 {"problems", report.problems}};
    if (!report.source.container.empty())
        json["source"] = {{"container", report.source.container}, {"path", report.source.path}};
    return json;
}

}  // namespace thermocline::model
