// All kernels. Whoever launches one includes this; device/*.cu compile them for cards, emulation/device.cpp for the
// CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/compress.h"
#include "cuda/kernels/hyper.h"
#include "cuda/kernels/kv.h"
#include "cuda/kernels/route.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/select.h"

namespace thermocline::cuda {

using Kernels = KernelList<Rotations, CopyRows, RmsNorm, Rope, SwiGlu, AddRows, HyperIn, HyperHead, HyperOut, Route,
                           RoundKv, StoreWindow, MakeEntries, StoreState, ScoreEntries, ChooseEntries,
                           AttentionParts<4>, AttentionParts<16>, JoinParts>;

template <typename Kernel>
void launch(Stream& stream, const Grid& grid, const Kernel& kernel) {
    stream.launch(Kernels::index_of<Kernel>(), grid, &kernel, sizeof kernel);
}

}  // namespace thermocline::cuda
