// All kernels. Whoever launches one includes this; device/*.cu compile them for cards, emulation/device.cpp for the
// CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_tiles.h"
#include "cuda/kernels/compress.h"
#include "cuda/kernels/handoff.h"
#include "cuda/kernels/hyper.h"
#include "cuda/kernels/kv.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/route.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/select.h"

namespace thermocline::cuda {

using RowKernels =
    KernelList<Rotations, CopyRows, RmsNorm, Rope, SwiGlu, AddRows, SumRows, SendJob, AwaitFlag, RaiseFlag>;

template <typename Codes, int kPieces>
using PackedKernels =
    KernelList<FewVectors<Codes, kPieces, 1>, FewVectors<Codes, kPieces, 4>, ManyVectors<Codes, kPieces>>;

using LinearKernels =
    Joined<KernelList<PrepareVectors, RowProduct>, PackedKernels<E4M3Codes, 1>, PackedKernels<E4M3Codes, 2>,
           PackedKernels<Mxfp4Codes, 1>, PackedKernels<Mxfp4Codes, 2>, PackedKernels<Nvfp4Codes, 1>,
           PackedKernels<Nvfp4Codes, 2>, PackedKernels<Int4Codes<32>, 2>, PackedKernels<Int4Codes<128>, 2>,
           PackedKernels<Q8Codes, 2>, PackedKernels<Bf16Codes, 2>>;

using StateKernels = KernelList<HyperIn, HyperHead, HyperOut, Route, RoundKv, StoreWindow, MakeEntries, StoreState>;

using AttentionKernels =
    KernelList<ScoreEntries<PlainScores>, ScoreEntries<TileScores>, ChooseEntries, AttentionParts<4>,
               AttentionParts<16>, JoinParts, AttentionTiles<16>, AttentionTiles<64>>;

/// The order of the tables in device/entries.cuh.
using Kernels = Joined<RowKernels, LinearKernels, StateKernels, AttentionKernels>;

template <typename Kernel>
void launch(Stream& stream, const Grid& grid, const Kernel& kernel) {
    stream.launch(Kernels::index_of<Kernel>(), grid, &kernel, sizeof kernel);
}

}  // namespace thermocline::cuda
