// All kernels. Whoever launches one includes this; device/*.cu compile them for cards, emulation/device.cpp for the
// CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_tiles.h"
#include "cuda/kernels/compress.h"
#include "cuda/kernels/expand.h"
#include "cuda/kernels/experts.h"
#include "cuda/kernels/experts_mx.h"
#include "cuda/kernels/handoff.h"
#include "cuda/kernels/hyper.h"
#include "cuda/kernels/kv.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/linear_mx.h"
#include "cuda/kernels/logits.h"
#include "cuda/kernels/route.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/select.h"
#include "cuda/kernels/select_fp4.h"
#include "cuda/kernels/together.h"

namespace thermocline::cuda {

using RowKernels =
    KernelList<Rotations, CopyRows, RmsNorm, Rope, SwiGlu, AddRows, SendJob, SendEarly, AwaitFlag, RaiseJob>;

template <typename Codes, int kPieces>
using VectorKernels =
    KernelList<FewVectors<Codes, kPieces, 1>, FewVectors<Codes, kPieces, 4>, ManyVectors<Codes, kPieces>>;

template <typename Codes, int kPieces>
using PairKernels = KernelList<FewPairs<Codes, kPieces>, ManyPairs<Codes, kPieces, 2>, ManyPairs<Codes, kPieces, 8>>;

/// One list for all packed formats, with vectors in as many pieces as they are multiplied with (packed.h).
template <template <typename Codes, int kPieces> typename Of>
using PackedKernels =
    Joined<Of<E4M3Codes, 1>, Of<E4M3Codes, 2>, Of<Mxfp4Codes, 1>, Of<Mxfp4Codes, 2>, Of<Nvfp4Codes, 1>,
           Of<Nvfp4Codes, 2>, Of<Int4Codes<32>, 2>, Of<Int4Codes<128>, 2>, Of<Q8Codes, 2>, Of<Bf16Codes, 2>>;

/// Of the formats that are exact in bf16 with their scales.
using ExpandKernels =
    KernelList<ExpandRows<E4M3Codes>, ExpandRows<Mxfp4Codes>, ExpandRows<Nvfp4Codes>, ExpandRows<Bf16Codes>>;

using LinearKernels =
    Joined<KernelList<PrepareVectors, PrepareCodes, RowProduct>, PackedKernels<VectorKernels>, ExpandKernels>;

using ExpertKernels = Joined<KernelList<ListPairs, SwiGluPairs, SumExperts>, PackedKernels<PairKernels>>;

using StateKernels =
    KernelList<HyperIn, HyperHead, HyperOut, HyperSite, Route, FinishVectors, StoreWindow, MakeEntries, StoreState>;

using AttentionKernels =
    KernelList<ScoreEntries<PlainScores>, ScoreEntries<TileScores>, ChooseEntries, AttentionParts<4>,
               AttentionParts<16>, JoinParts, AttentionTiles<16>, AttentionTiles<64>, ScanLogits, ChooseLogits>;

/// Those that may share a launch (kernels/together.h): what goes over rows, what makes entries, what a layer multiplies
/// few vectors with. MakeEntries stands alone because it would take the registers that the rows need.
using RowMeeting = KernelList<CopyRows, RmsNorm, Rope, SwiGlu, AddRows, SendJob, SendEarly, PrepareVectors,
                              PrepareCodes, Route, FinishVectors, StoreWindow, StoreState>;
using EntryMeeting = KernelList<MakeEntries>;
using ProductMeeting = KernelList<RowProduct, FewVectors<E4M3Codes, 1, 1>, FewVectors<E4M3Codes, 2, 1>,
                                  FewVectors<Mxfp4Codes, 1, 1>, FewVectors<Bf16Codes, 2, 1>>;
using MeetingKernels = KernelList<Together<RowMeeting>, Together<EntryMeeting>, Together<ProductMeeting>>;

/// With instructions of the SM120 family: no code for other cards.
using FamilyKernels =
    KernelList<FewVectorsMx, FewPairsMx, ManyPairsMx<2>, ManyPairsMx<8>, SwiGluPairsMx, ScoreEntries<Fp4Scores>>;

/// The order of the tables in device/entries.cuh.
using Kernels =
    Joined<RowKernels, LinearKernels, ExpertKernels, StateKernels, AttentionKernels, MeetingKernels, FamilyKernels>;

template <typename Kernel>
void launch(Stream& stream, const Grid& grid, const Kernel& kernel) {
    stream.launch(Kernels::index_of<Kernel>(), grid, &kernel, sizeof kernel);
}

}  // namespace thermocline::cuda
