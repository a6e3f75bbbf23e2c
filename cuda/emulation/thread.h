// One thread of an emulated block: what device/thread.cuh is on a card, function by function. Collectives must be
// reached by all lanes of the warp.
#pragma once

#include "cuda/emulation/block.h"
#include "src/quant/scalar.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>

namespace thermocline::cuda::emulation {

/// Numbers in the block's shared memory, [count], from byte `offset` on.
template <typename T>
class Shared {
public:
    Shared(Block& block, int thread, int64_t offset, int64_t count)
        : block_(&block), thread_(thread), offset_(offset), count_(count) {
        if (offset < 0 || offset % alignof(T) != 0 ||
            offset + count * static_cast<int64_t>(sizeof(T)) > block.grid.shared_bytes)
            block.refuse("an array in shared memory does not fit, offset", offset);
    }

    T operator[](int64_t i) const { return as<T>(i); }
    void set(int64_t i, T value) { set_as(i, value); }
    /// A wider word whose first number is i.
    template <typename Word>
    Word as(int64_t i) const {
        Word word;
        std::memcpy(&word, at(i, sizeof(Word), false), sizeof(Word));
        return word;
    }
    template <typename Word>
    void set_as(int64_t i, Word word) {
        std::memcpy(at(i, sizeof(Word), true), &word, sizeof(Word));
    }

private:
    std::byte* at(int64_t i, size_t bytes, bool write) const {
        const auto size = static_cast<int64_t>(bytes);
        const int64_t begin = offset_ + i * static_cast<int64_t>(sizeof(T));
        if (i < 0 || i * static_cast<int64_t>(sizeof(T)) + size > count_ * static_cast<int64_t>(sizeof(T)) ||
            begin % size != 0)
            block_->refuse("an array in shared memory used out of bounds or unaligned, number", i);
        // Two threads may write the halves of a word: as hardware does, races are judged by words only where both
        // write whole words.
        if (size >= 4)
            for (int64_t word = begin / 4; word < (begin + size) / 4; ++word) block_->touch(thread_, word, write);
        return block_->shared() + begin;
    }

    Block* block_;
    int thread_;
    int64_t offset_, count_;
};

class Thread {
public:
    Thread(Block& block, int id) : block_(block), id_(id) {}

    int id() const { return id_; }
    int threads() const { return block_.grid.threads; }
    int lane() const { return id_ % kWarp; }
    int warp() const { return id_ / kWarp; }
    int warps() const { return threads() / kWarp; }
    int64_t block() const { return block_.x; }
    int64_t block_y() const { return block_.y; }
    int64_t blocks() const { return block_.grid.x; }

    /// Waits for all threads of the block; what they wrote before is seen after.
    void sync() { block_.barrier(id_); }
    /// Before a thread ends while others still have barriers to pass; whole warps only.
    void leave() { block_.leave(id_); }
    void sync_warp() { block_.exchange(id_, Collective::kBarrier, "", 1); }

    template <typename T>
    T shuffle(T value, int lane) {
        return given<T>(block_.exchange(id_, Collective::kShuffle, &value, sizeof value), lane % kWarp);
    }
    template <typename T>
    T shuffle_xor(T value, int mask) {
        return given<T>(block_.exchange(id_, Collective::kShuffle, &value, sizeof value), lane() ^ mask);
    }
    /// Bit i: what lane i says.
    uint32_t ballot(bool yes) {
        const Block::Given* all = block_.exchange(id_, Collective::kBallot, &yes, sizeof yes);
        uint32_t bits = 0;
        for (int i = 0; i < kWarp; ++i) bits |= static_cast<uint32_t>(given<bool>(all, i)) << i;
        return bits;
    }

    template <typename T>
    Shared<T> shared(int64_t offset, int64_t count) {
        return {block_, id_, offset, count};
    }

    /// d += a b of mma.m16n8k16 with bf16 operands, row.col. With g = lane / 4, c = lane % 4 (PTX ISA 9.7.14):
    ///   a[0] (g, 2c..2c+1), a[1] (g + 8, same), a[2] (g, 2c+8..2c+9), a[3] (g + 8, same)
    ///   b[0] (2c..2c+1, g), b[1] (2c+8..2c+9, g)
    ///   d[0], d[1] (g, 2c..2c+1), d[2], d[3] (g + 8, same)
    void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        const uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
        const Block::Given* all = block_.exchange(id_, Collective::kMma, own, sizeof own);
        const int g = lane() / 4, c = lane() % 4;
        const auto pair = [&](int from, int word) { return given<uint32_t>(all, from, word); };
        for (int i = 0; i < 4; ++i) {
            const int row = g + (i / 2) * 8, col = 2 * c + i % 2;
            float sum = d[i];
            for (int k = 0; k < 16; k += 2) {
                const uint32_t left = pair(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2);
                const uint32_t right = pair(col * 4 + k % 8 / 2, 4 + k / 8);
                sum += low(left) * low(right);
                sum += high(left) * high(right);
            }
            d[i] = sum;
        }
    }

    /// d += a b of mma.m16n8k32, kind mxf8f6f4, e2m1 times e4m3, row.col, with one e8m0 scale for the 32 numbers of a
    /// row of a and of a column of b. A byte holds a number of a in its bits 2 to 5. Element i of a lane is byte i % 4
    /// of register i / 4; with g = lane / 4, c = lane % 4 (PTX ISA 9.7.14, m16n8k32 and block scaling):
    ///   a: row g, or g + 8 for i in 4..7 and 12..15; column 4c + i % 4, and 16 more for i of 8 and above
    ///   b: row 4c + i % 4, and 16 more for i of 4 and above; column g
    ///   d as in mma(); scale of row g of a: of the lane with c = 0, of row g + 8: with c = 1; of column g of b: with c
    ///   = 0
    void mma_mx(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t a_scale, uint32_t b_scale) {
        const uint32_t own[8] = {a[0], a[1], a[2], a[3], b[0], b[1], a_scale, b_scale};
        const Block::Given* all = block_.exchange(id_, Collective::kMma, own, sizeof own);
        const int g = lane() / 4, c = lane() % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = g + (i / 2) * 8, col = 2 * c + i % 2;
            float sum = 0.0f;
            for (int k = 0; k < 32; ++k) {
                const int of_quad = k % 16 / 4, shift = k % 4 * 8;
                const uint32_t left = given<uint32_t>(all, row % 8 * 4 + of_quad, row / 8 + k / 16 * 2) >> shift;
                const uint32_t right = given<uint32_t>(all, col * 4 + of_quad, 4 + k / 16) >> shift;
                sum += quant::e2m1_to_float(static_cast<uint8_t>(left >> 2 & 15)) *
                       quant::e4m3_to_float(static_cast<uint8_t>(right));
            }
            const auto row_scale = static_cast<uint8_t>(given<uint32_t>(all, row % 8 * 4 + row / 8, 6));
            const auto col_scale = static_cast<uint8_t>(given<uint32_t>(all, col * 4, 7));
            d[i] += sum * quant::e8m0_to_float(row_scale) * quant::e8m0_to_float(col_scale);
        }
    }

    /// d += a b of mma.m16n8k64, kind mxf4, both e2m1, row.col, with an e8m0 scale for each 32 numbers of a row of a
    /// and of a column of b: byte 0 for the first, byte 1 for the others. Element i of a lane is nibble i % 8 of
    /// register i / 8 (PTX ISA 9.7.14, m16n8k64 and block scaling, scale_vec::2X):
    ///   a: row g, or g + 8 for i in 8..15 and 24..31; column 8c + i % 8, and 32 more for i of 16 and above
    ///   b: row 8c + i % 8, and 32 more for i of 8 and above; column g
    ///   d as in mma(), the lanes that give scales as in mma_mx()
    void mma_mxf4(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], uint32_t a_scales, uint32_t b_scales) {
        const uint32_t own[8] = {a[0], a[1], a[2], a[3], b[0], b[1], a_scales, b_scales};
        const Block::Given* all = block_.exchange(id_, Collective::kMma, own, sizeof own);
        const int g = lane() / 4, c = lane() % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = g + (i / 2) * 8, col = 2 * c + i % 2;
            const uint32_t row_scales = given<uint32_t>(all, row % 8 * 4 + row / 8, 6),
                           col_scales = given<uint32_t>(all, col * 4, 7);
            for (int part = 0; part < 2; ++part) {
                float sum = 0.0f;
                for (int k = 0; k < 32; ++k) {
                    const int of_quad = k / 8, shift = k % 8 * 4;
                    const uint32_t left = given<uint32_t>(all, row % 8 * 4 + of_quad, row / 8 + part * 2) >> shift;
                    const uint32_t right = given<uint32_t>(all, col * 4 + of_quad, 4 + part) >> shift;
                    sum += quant::e2m1_to_float(static_cast<uint8_t>(left & 15)) *
                           quant::e2m1_to_float(static_cast<uint8_t>(right & 15));
                }
                d[i] += sum * quant::e8m0_to_float(static_cast<uint8_t>(row_scales >> 8 * part)) *
                        quant::e8m0_to_float(static_cast<uint8_t>(col_scales >> 8 * part));
            }
        }
    }

    /// a b + c of two pairs of bf16, rounded to bf16.
    uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
        const auto one = [](uint32_t x, uint32_t y, uint32_t z) {
            return uint32_t{quant::float_to_bf16(std::fma(low(x), low(y), low(z)))};
        };
        return one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16;
    }
    /// Byte i is number selector >> 4 i & 7 of the bytes of `low` and `high`.
    uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
        const uint64_t bytes = low | uint64_t{high} << 32;
        uint32_t out = 0;
        for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
        return out;
    }

    /// Adds in memory of the card; what was there before. Everything this thread did before is seen by who finds the
    /// sum, if both fence().
    uint32_t add(uint32_t* to, uint32_t value) {
        return std::atomic_ref<uint32_t>(*to).fetch_add(value, std::memory_order_acq_rel);
    }
    void fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
    /// Flags in host memory.
    uint64_t load_flag(const uint64_t* flag) {
        return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(flag)).load(std::memory_order_acquire);
    }
    void store_flag(uint64_t* flag, uint64_t value) {
        std::atomic_ref<uint64_t>(*flag).store(value, std::memory_order_release);
    }
    /// In host memory, which the host reads meanwhile; orders nothing.
    void store_number(int32_t* number, int32_t value) {
        std::atomic_ref<int32_t>(*number).store(value, std::memory_order_relaxed);
    }
    /// Between two looks at a flag.
    void pause() {
        std::this_thread::yield();
        block_.yield();
    }

    /// Words that nobody reads again soon.
    template <typename T>
    T stream(const T* from) {
        return *from;
    }

private:
    template <typename T>
    static T given(const Block::Given* all, int lane, int index = 0) {
        T value;
        std::memcpy(&value, all[lane].bytes + static_cast<size_t>(index) * sizeof(T), sizeof value);
        return value;
    }
    static float low(uint32_t pair) { return quant::bf16_to_float(static_cast<uint16_t>(pair)); }
    static float high(uint32_t pair) { return quant::bf16_to_float(static_cast<uint16_t>(pair >> 16)); }

    Block& block_;
    int id_;
};

}  // namespace thermocline::cuda::emulation
