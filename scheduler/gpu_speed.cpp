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

Json link_json(const cuda::LinkSpeed& link) {
    return {{"to_device_gb_per_s", rounded(link.to_device)},
            {"to_host_gb_per_s", rounded(link.to_host)},
            {"both_gb_per_s", rounded(link.both)}};
}

}  // namespace

GpuSpeed measure_gpu(const cuda::DeviceInfo& device, std::span<const int> cpus) {
    GpuSpeed speed;
    speed.device = device;
    speed.link = cuda::measure_link(device.index);
    speed.memory_read = cuda::measure_memory_read(device.index);
    speed.handoff_us = cuda::measure_handoff_us(device.index);
    measure_busy_link(cpus, speed);
    return speed;
}

Json gpu_json(const GpuSpeed& speed) {
    Json busy = link_json(speed.busy_link);
    busy["cpu_read_gb_per_s"] = rounded(speed.busy_cpu_read);
    return {{"name", speed.device.name},
            {"compute", std::to_string(speed.device.compute_major) + "." + std::to_string(speed.device.compute_minor)},
            {"memory_bytes", speed.device.memory_bytes},
            {"multiprocessors", speed.device.multiprocessors},
            {"pci_address", speed.device.pci_address},
            {"memory_read_gb_per_s", rounded(speed.memory_read)},
            {"link", link_json(speed.link)},
            {"link_while_cpu_reads", std::move(busy)},
            {"handoff_us", rounded(speed.handoff_us)}};
}

}  // namespace thermocline::scheduler
