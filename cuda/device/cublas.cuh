// cuBLASLt as the library of a card (Stream::multiply). It is of hundreds of megabytes, so it is neither linked nor
// brought along: who has it installed gains by it. Included by *.cu only.
#pragma once

#include "cuda/device.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <mutex>
#include <vector>

namespace thermocline::cuda {

/// Used by several threads at once.
class Cublas {
public:
    explicit Cublas(int device) : device_(device) {}
    ~Cublas();
    Cublas(const Cublas&) = delete;
    Cublas& operator=(const Cublas&) = delete;

    /// Loads it when this is first asked.
    const Library& library();
    /// Only if there is one. Throws Error if it refuses.
    void multiply(const DenseProduct& product, cudaStream_t stream);

private:
    struct Functions;
    struct Question;
    struct Chosen {
        DenseProduct product;  // for a product like this, but for its vectors
        cublasLtMatmulAlgo_t algorithm;
    };

    void load();
    cublasLtMatmulAlgo_t algorithm(const DenseProduct& product, const Question& question);

    const int device_;
    std::mutex mutex_;  // guards what follows
    bool looked_for_ = false;
    Library library_;
    const Functions* functions_ = nullptr;
    cublasLtHandle_t handle_ = nullptr;
    /// Of every shape the first was chosen for the largest prompt, others for counts of vectors that it does not take.
    std::vector<Chosen> chosen_;
};

}  // namespace thermocline::cuda
