// One thread of a block on a card: what emulation/thread.h is on the CPU, function by function. All inline PTX of the
// engine is here.
#pragma once

#include "cuda/launch.h"

#include <cstdint>
#include <cuda/atomic>

namespace thermocline::cuda::device {

extern __shared__ __align__(16) unsigned char block_memory[];

/// Numbers in the block's shared memory, [count], from byte `offset` on.
template <typename T>
class Shared {
public:
    __device__ explicit Shared(int64_t offset) : data_(reinterpret_cast<T*>(block_memory + offset)) {}

    __device__ T operator[](int64_t i) const { return data_[i]; }
    __device__ void set(int64_t i, T value) { data_[i] = value; }
    template <typename Word>
    __device__ Word as(int64_t i) const {
        return *reinterpret_cast<const Word*>(data_ + i);
    }
    template <typename Word>
    __device__ void set_as(int64_t i, Word word) {
        *reinterpret_cast<Word*>(data_ + i) = word;
    }

private:
    T* data_;
};

class Thread {
public:
    __device__ int id() const { return static_cast<int>(threadIdx.x); }
    __device__ int threads() const { return static_cast<int>(blockDim.x); }
    __device__ int lane() const { return id() % kWarp; }
    __device__ int warp() const { return id() / kWarp; }
    __device__ int warps() const { return threads() / kWarp; }
    __device__ int64_t block() const { return blockIdx.x; }
    __device__ int64_t block_y() const { return blockIdx.y; }
    __device__ int64_t blocks() const { return gridDim.x; }

    __device__ void sync() { __syncthreads(); }
    __device__ void sync_warp() { __syncwarp(); }
    __device__ void leave() {}  // barriers count threads that have not ended

    template <typename T>
    __device__ T shuffle(T value, int lane) {
        return __shfl_sync(kAll, value, lane);
    }
    template <typename T>
    __device__ T shuffle_xor(T value, int mask) {
        return __shfl_xor_sync(kAll, value, mask);
    }
    __device__ uint32_t ballot(bool yes) { return __ballot_sync(kAll, yes); }

    template <typename T>
    __device__ Shared<T> shared(int64_t offset, int64_t) {
        return Shared<T>(offset);
    }

    __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __device__ void mma_mx(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t a_scale,
                           uint32_t b_scale) {  // SM120 family only
        asm("mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e2m1.e4m3.f32.ue8m0 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(a_scale), "r"(b_scale));
    }
    __device__ void mma_mxf4(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t a_scales,
                             uint32_t b_scales) {  // SM120 family only
        asm("mma.sync.aligned.kind::mxf4.block_scale.scale_vec::2X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(a_scales), "r"(b_scales));
    }
    __device__ uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t d;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
        return d;
    }
    __device__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
        return __byte_perm(low, high, selector);
    }

    __device__ uint32_t add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
    __device__ void fence() { __threadfence(); }
    __device__ uint64_t load_flag(const uint64_t* flag) {
        return Flag(*const_cast<uint64_t*>(flag)).load(::cuda::memory_order_acquire);
    }
    __device__ void store_flag(uint64_t* flag, uint64_t value) {
        __threadfence_system();
        Flag(*flag).store(value, ::cuda::memory_order_release);
    }
    __device__ void store_number(int32_t* number, int32_t value) {
        ::cuda::atomic_ref<int32_t, ::cuda::thread_scope_system>(*number).store(value, ::cuda::memory_order_relaxed);
    }
    __device__ void pause() { __nanosleep(100); }

    template <typename T>
    __device__ T stream(const T* from) {
        static_assert(sizeof(T) == 4);
        uint32_t word;
        asm("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(word) : "l"(from));
        T value;
        memcpy(&value, &word, sizeof value);
        return value;
    }

private:
    using Flag = ::cuda::atomic_ref<uint64_t, ::cuda::thread_scope_system>;
    static constexpr uint32_t kAll = 0xffffffff;
};

}  // namespace thermocline::cuda::device
