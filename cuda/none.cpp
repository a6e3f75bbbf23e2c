// The face of cuda.h in a build without CUDA.
#include "cuda/device.h"
#include "cuda/remedies.h"
#include "src/base/error.h"

namespace thermocline::cuda {

namespace {

constexpr const char* kWhy = "built without CUDA, for want of nvcc 12.9 or newer (or by -DTHERMOCLINE_CUDA=OFF)";

[[noreturn]] void refuse(int device) { fail("GPU ", device, ": ", kWhy, "; ", kNoCardRemedy); }

}  // namespace

Devices find_devices() { return {{}, kWhy}; }
LinkSpeed measure_link(int device) { refuse(device); }
double measure_memory_read(int device) { refuse(device); }
std::unique_ptr<Device> open_device(int index, std::span<const FlagWait>) { refuse(index); }

}  // namespace thermocline::cuda
