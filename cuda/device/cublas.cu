#include "cuda/device/check.cuh"
#include "cuda/device/cublas.cuh"
#include "src/base/check.h"

#include <dlfcn.h>
#include <string>

namespace thermocline::cuda {

namespace {

bool is_alike(const DenseProduct& a, const DenseProduct& b) {
    return a.rows == b.rows && a.cols == b.cols && a.x_stride == b.x_stride && a.out_stride == b.out_stride &&
           a.adds == b.adds;
}

}  // namespace

/// What we call of it. Never unloaded.
struct Cublas::Functions {
    std::string why_none;  // empty: all are there

    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtGetStatusName) status_name;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) create_product;
    decltype(&cublasLtMatmulDescDestroy) destroy_product;
    decltype(&cublasLtMatmulDescSetAttribute) set_product;
    decltype(&cublasLtMatrixLayoutCreate) create_layout;
    decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
    decltype(&cublasLtMatmulPreferenceCreate) create_preference;
    decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
    decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
    decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithm;
    decltype(&cublasLtMatmulAlgoCheck) check_algorithm;

    Functions() {
        void* library = nullptr;
        for (const char* name : {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"})
            if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            why_none =
                "libcublasLt.so.13 was not found (it comes with the CUDA toolkit 13; LD_LIBRARY_PATH says where)";
            return;
        }
        find(library, create, "cublasLtCreate");
        find(library, destroy, "cublasLtDestroy");
        find(library, version, "cublasLtGetVersion");
        find(library, status_name, "cublasLtGetStatusName");
        find(library, matmul, "cublasLtMatmul");
        find(library, create_product, "cublasLtMatmulDescCreate");
        find(library, destroy_product, "cublasLtMatmulDescDestroy");
        find(library, set_product, "cublasLtMatmulDescSetAttribute");
        find(library, create_layout, "cublasLtMatrixLayoutCreate");
        find(library, destroy_layout, "cublasLtMatrixLayoutDestroy");
        find(library, create_preference, "cublasLtMatmulPreferenceCreate");
        find(library, destroy_preference, "cublasLtMatmulPreferenceDestroy");
        find(library, set_preference, "cublasLtMatmulPreferenceSetAttribute");
        find(library, find_algorithm, "cublasLtMatmulAlgoGetHeuristic");
        find(library, check_algorithm, "cublasLtMatmulAlgoCheck");
    }

    template <typename Function>
    void find(void* library, Function*& function, const char* name) {
        function = reinterpret_cast<Function*>(dlsym(library, name));
        if (function == nullptr) why_none = std::string("libcublasLt.so.13 lacks ") + name;
    }

    static const Functions& loaded() {
        static const Functions all;
        return all;
    }

    void check(cublasStatus_t status, int device, const char* doing) const {
        if (status != CUBLAS_STATUS_SUCCESS) fail("GPU ", device, ": cuBLASLt, ", doing, ": ", status_name(status));
    }
};

/// A product as the library wants it. Its matrices lie column by column: ours are their transposes, and
/// out[rows, vectors] = (w[cols, rows])^T x[cols, vectors].
struct Cublas::Question {
    const Functions& functions;
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;

    explicit Question(const Functions& given) : functions(given) {}
    Question(const Functions& given, const DenseProduct& p, int device) : Question(given) {
        const cublasOperation_t transposed = CUBLAS_OP_T;
        const auto make = [&](cublasLtMatrixLayout_t& layout, cudaDataType_t type, int64_t rows, int64_t cols,
                              int64_t stride) {
            return functions.create_layout(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                           stride);
        };
        for (const cublasStatus_t status :
             {functions.create_product(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              functions.set_product(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
              make(w, CUDA_R_16BF, p.cols, p.rows, p.cols), make(x, CUDA_R_16BF, p.cols, p.vectors, p.x_stride),
              make(out, CUDA_R_32F, p.rows, p.vectors, p.out_stride)})
            functions.check(status, device, "describing a product");
    }
    ~Question() {
        for (const cublasLtMatrixLayout_t layout : {w, x, out})
            if (layout != nullptr) functions.destroy_layout(layout);
        if (product != nullptr) functions.destroy_product(product);
    }
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;
};

Cublas::~Cublas() {
    if (handle_ != nullptr) functions_->destroy(handle_);
}

void Cublas::load() {
    const Functions& functions = Functions::loaded();
    library_.why_none = functions.why_none;
    if (!library_.why_none.empty()) return;
    use(device_);
    const cublasStatus_t status = functions.create(&handle_);
    if (status != CUBLAS_STATUS_SUCCESS) {
        library_.why_none = std::string("cuBLASLt does not start: ") + functions.status_name(status);
        return;
    }
    functions_ = &functions;
    const size_t version = functions.version();
    library_.name = "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
                    std::to_string(version % 100);
}

const Library& Cublas::library() {
    const std::lock_guard lock(mutex_);
    if (!looked_for_) load();
    looked_for_ = true;
    return library_;
}

/// Without a workspace and without sums that are formed in parts: the result of a vector does not depend on how many
/// there are, as long as it is the same algorithm.
cublasLtMatmulAlgo_t Cublas::algorithm(const DenseProduct& p, const Question& q) {
    const std::lock_guard lock(mutex_);
    cublasLtMatmulHeuristicResult_t result{};
    for (const Chosen& one : chosen_) {
        if (!is_alike(one.product, p)) continue;
        const cublasStatus_t status =
            functions_->check_algorithm(handle_, q.product, q.w, q.x, q.out, q.out, &one.algorithm, &result);
        if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize == 0) return one.algorithm;
    }

    cublasLtMatmulPreference_t preference = nullptr;
    functions_->check(functions_->create_preference(&preference), device_, "choosing an algorithm");
    const uint64_t no_workspace = 0;
    const uint32_t no_parts = CUBLASLT_REDUCTION_SCHEME_NONE, strip = 16 * sizeof(float);  // out begins at strips
    int found = 0;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
        return functions_->set_preference(preference, what, &value, sizeof value);
    };
    const cublasStatus_t steps[] = {
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, no_workspace),
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, no_parts),
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, strip),
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, strip),
        functions_->find_algorithm(handle_, q.product, q.w, q.x, q.out, q.out, preference, 1, &result, &found)};
    functions_->destroy_preference(preference);
    for (const cublasStatus_t status : steps) functions_->check(status, device_, "choosing an algorithm");
    if (found == 0) functions_->check(CUBLAS_STATUS_NOT_SUPPORTED, device_, "choosing an algorithm");
    chosen_.push_back({p, result.algo});
    return result.algo;
}

void Cublas::multiply(const DenseProduct& p, cudaStream_t stream) {
    CHECK(handle_ != nullptr);
    use(device_);
    const Question question(*functions_, p, device_);
    const cublasLtMatmulAlgo_t chosen = algorithm(p, question);
    const float beta = p.adds ? 1.0f : 0.0f;
    functions_->check(functions_->matmul(handle_, question.product, &p.factor, p.w, question.w, p.x, question.x, &beta,
                                         p.out, question.out, p.out, question.out, &chosen, nullptr, 0, stream),
                      device_, "multiplying");
}

}  // namespace thermocline::cuda
