#include "scheduler/gpu_speed.h"

#include "scheduler/bandwidth.h"
#include "src/base/thread.h"

#include <future>
#include <stop_token>
#include <thread>

namespace thermocline::scheduler {

namespace {

/// The link while workers on `cpus` read, from before the first copy until after the last.
void measure_busy_link(std::span<const int> cpus, GpuSpeed& speed) {
    std::promise<void> started;
    double reads = 0.0;
    int passes = 0;
    std::jthread reader([&](std::stop_token stop) {
        try {
            pin_this_thread(cpus.front());
            cpu::Workers workers(cpus);
            BandwidthProbe probe(workers);
            started.set_value();
            do {
                reads += probe.read();
                ++passes;
            } while (!stop.stop_requested());
        } catch (...) {
            started.set_exception(std::current_exception());
        }
    });
    started.get_future().get();
    speed.busy_link = cuda::measure_link(speed.device.index);
    reader.request_stop();
    reader.join();
    speed.busy_cpu_read = reads / passes;
}

}  // namespace

GpuSpeed measure_gpu(const cuda::DeviceInfo& device, std::span<const int> cpus) {
    GpuSpeed speed;
    speed.device = device;
    speed.link = cuda::measure_link(device.index);
    speed.memory_read = cuda::measure_memory_read(device.index);
    speed.handoffs = cuda::measure_handoffs([&](cuda::FlagWait way) {
        return cuda::open_device(device.index, {&way, 1});
    });
    speed.handoff_us = cuda::used(speed.handoffs).us;
    measure_busy_link(cpus, speed);
    return speed;
}

}  // namespace thermocline::scheduler
