// What graphics cards can do for this program, in plain C++: no CUDA header, no CUDA type. Which implementation stands
// behind it is decided when building: *.cu where nvcc was found, none.cpp elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::cuda {

struct DeviceInfo {
    int index = 0;  // as CUDA numbers it
    std::string name;
    int compute_major = 0, compute_minor = 0;  // 12, 0: SM120
    int64_t memory_bytes = 0;
    int multiprocessors = 0;
    std::string pci_address;  // "0000:01:00.0"
};

struct Devices {
    std::vector<DeviceInfo> found;
    std::string why_none;  // in a sentence, when there are none
};

/// The cards that this process can use. Never fails: a machine without any is a normal one.
Devices find_devices();

/// The code of the fat binary that a card of this SM version runs ("sm_120f"); "": none.
std::string kernel_target(int compute_major, int compute_minor);

/// Copies between pinned host memory and a card, GB/s.
struct LinkSpeed {
    double to_device = 0.0, to_host = 0.0;  // one direction alone
    double both = 0.0;                      // both at once, sum
};

/// The functions below take up to a second and throw Error (no such device, memory or kernel refused).
LinkSpeed measure_link(int device);
/// What a kernel reads from the card's memory, GB/s.
double measure_memory_read(int device);

}  // namespace thermocline::cuda
