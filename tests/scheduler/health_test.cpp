// What `doctor` makes of machines that this one is not: /proc and /sys made up in a temporary folder.
#include "scheduler/health.h"

#include "src/base/error.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

namespace thermocline::scheduler {
namespace {

namespace fs = std::filesystem;

const std::string kCard = "sys/devices/pci0000:00/0000:00:01.0/0000:c1:00.0/";
const std::string kSlot = "sys/devices/pci0000:00/0000:00:01.0/";

/// One socket, one RTX 5090, everything as it should be.
const std::map<std::string, std::string> kWorkstation = {
    {"proc/sys/kernel/osrelease", "6.12.0-amd64\n"},
    {"proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=UUID=1 quiet iommu=pt\n"},
    {"proc/driver/nvidia/version",
     "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
     "GCC version:  gcc version 12.2.0\n"},
    {"dev/nvidiactl", ""},
    {kSlot + "max_link_speed", "32.0 GT/s PCIe\n"},
    {kSlot + "max_link_width", "16\n"},
    {kCard + "vendor", "0x10de\n"},
    {kCard + "device", "0x2b85\n"},
    {kCard + "class", "0x030000\n"},
    {kCard + "current_link_speed", "32.0 GT/s PCIe\n"},
    {kCard + "current_link_width", "16\n"},
    {kCard + "max_link_speed", "32.0 GT/s PCIe\n"},
    {kCard + "max_link_width", "16\n"},
    {kCard + "numa_node", "0\n"},
    {"proc/meminfo",
     "MemTotal:       395000000 kB\nMemFree:        380000000 kB\nMemAvailable:   385000000 kB\n"
     "SwapTotal:        8000000 kB\nSwapFree:         8000000 kB\n"},
    {"sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:  395000000 kB\nNode 0 MemFree:  380000000 kB\n"},
    {"sys/devices/system/node/node0/cpulist", "0-1\n"},
    {"sys/devices/system/node/online", "0\n"},
    {"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"},
    {"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n"},
    {"sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"},
    {"sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"},
    {"proc/sys/kernel/numa_balancing", "0\n"},
    {"proc/self/limits",
     "Limit                     Soft Limit           Hard Limit           Units     \n"
     "Max locked memory         unlimited            unlimited            bytes     \n"},
    {"proc/self/cgroup", "0::/user.slice/session.scope\n"},
    {"sys/fs/cgroup/user.slice/memory.max", "max\n"},
    {"sys/fs/cgroup/user.slice/cpu.max", "max 100000\n"},
    {"sys/fs/cgroup/user.slice/session.scope/memory.max", "max\n"},
    {"proc/cpuinfo",
     "processor\t: 0\nflags\t\t: fpu avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 "
     "avx512_vbmi\n\nprocessor\t: 1\nflags\t\t: fpu\n"},
    {"sys/devices/system/cpu/smt/control", "on\n"},
    {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"},
    {"sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "amd-pstate\n"},
    {"sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n"},
    {"sys/devices/system/cpu/cpu1/online", "1\n"},
};

class Health : public testing::Test {
protected:
    void SetUp() override {
        char name[] = "/tmp/thermocline_health_XXXXXX";
        root_ = ::mkdtemp(name);
        for (const auto& [path, text] : kWorkstation) write(path, text);
        link("sys/bus/pci/devices/0000:c1:00.0", "../../../devices/pci0000:00/0000:00:01.0/0000:c1:00.0");
        link(kCard + "driver", "../../../../bus/pci/drivers/nvidia");
        gpus_.found = {{0, "NVIDIA GeForce RTX 5090", 12, 0, 34'190'000'000, 170, "0000:C1:00.0"}};
    }
    void TearDown() override { fs::remove_all(root_); }

    void write(const std::string& path, const std::string& text) const {
        fs::create_directories((root_ / path).parent_path());
        std::ofstream(root_ / path, std::ios::binary) << text;
    }
    void link(const std::string& path, const std::string& target) const {
        fs::create_directories((root_ / path).parent_path());
        fs::create_symlink(target, root_ / path);
    }
    void remove(const std::string& path) const { fs::remove_all(root_ / path); }

    std::vector<Finding> findings() const { return examine({read_system_facts(root_), gpus_, cuda_, isa_}); }
    /// The only finding that is not "ok", or a failure.
    Finding only() const {
        std::vector<Finding> all = findings();
        std::erase_if(all, [](const Finding& finding) { return finding.severity == Severity::kOk; });
        EXPECT_EQ(all.size(), 1u) << findings_text(all, false);
        return all.empty() ? Finding{} : all.front();
    }
    void expect_only(Severity severity, const std::string& check, const std::string& found,
                     const std::string& remedy) const {
        const Finding finding = only();
        EXPECT_EQ(finding.severity, severity) << findings_text({finding}, false);
        EXPECT_EQ(finding.check, check);
        EXPECT_NE(finding.found.find(found), std::string::npos) << finding.found;
        EXPECT_NE(finding.remedy.find(remedy), std::string::npos) << finding.remedy;
        EXPECT_FALSE(finding.why.empty());
    }

    fs::path root_;
    cuda::Devices gpus_;
    std::string cuda_ = "13.0.88", isa_ = "avx512_bf16";
};

TEST_F(Health, AGoodWorkstationHasNothingToMend) {
    const std::vector<Finding> all = findings();
    EXPECT_EQ(worst_of(all), Severity::kOk) << findings_text(all, false);
    const std::string text = findings_text(all, false);
    for (const char* part : {"580.95.05, open kernel module", "SM 12.0", "sm_120f", "generation 5 x16 (63.0 GB/s",
                             "404.5 GB", "avx512_bf16 kernels", "performance on 2 CPUs", "6.12.0-amd64"})
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    for (const Finding& finding : all) EXPECT_EQ(finding.why + finding.remedy, "") << finding.check;
}

TEST_F(Health, AMachineWithoutACardIsOnlyNoted) {
    remove("sys/bus");
    remove("proc/driver");
    gpus_ = {{}, "no CUDA-capable device is detected"};
    const Finding finding = only();
    EXPECT_EQ(finding.severity, Severity::kNote);
    EXPECT_EQ(finding.check, "cards");
}

TEST_F(Health, DriverFindings) {
    gpus_ = {{}, "CUDA driver version is insufficient"};
    remove("proc/driver");
    expect_only(Severity::kError, "driver", "not loaded", "apt install nvidia-open");
    write("sys/module/nouveau/refcnt", "1");
    expect_only(Severity::kError, "driver", "nouveau holds", "blacklist nouveau");
    remove("sys/module/nouveau");
    write("sys/module/nvidia/version", "580.95.05\n");
    remove("dev/nvidiactl");
    EXPECT_NE(findings_text(findings(), false).find("nvidia-modprobe"), std::string::npos);
    write(".dockerenv", "");
    EXPECT_NE(findings_text(findings(), false).find("docker run --gpus all"), std::string::npos);
}

TEST_F(Health, AnOldDriverIsNamedWithTheOneNeeded) {
    write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue\n");
    expect_only(Severity::kError, "driver", "550.163.01", "580 or newer");
    cuda_ = "12.9.86";  // runs on 525 and newer, but the card does not
    expect_only(Severity::kError, "driver", "CUDA 12.9.86", "570 or newer");
    write(kCard + "device", "0x2204\n");
    EXPECT_EQ(worst_of(findings()), Severity::kOk);
}

TEST_F(Health, BlackwellWantsTheOpenModule) {
    write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\n");
    EXPECT_EQ(worst_of(findings()), Severity::kOk);  // it is seen to work
    gpus_ = {{}, "no CUDA-capable device is detected"};
    const std::string text = findings_text(findings(), false);
    EXPECT_NE(text.find("proprietary kernel module"), std::string::npos) << text;
    EXPECT_NE(text.find("no CUDA-capable device"), std::string::npos) << text;
}

TEST_F(Health, ABinaryWithoutCudaAndACardWithoutCode) {
    const cuda::Devices seen = gpus_;
    gpus_ = {{}, "built without CUDA"};
    cuda_ = "";
    expect_only(Severity::kError, "CUDA", "built without CUDA", "cmake");
    gpus_ = seen;
    cuda_ = "13.0.88";
    gpus_.found[0].compute_major = 10;
    expect_only(Severity::kError, "GPU 0", "no kernels", "CUDA_VISIBLE_DEVICES");
}

TEST_F(Health, LinkFindings) {
    write(kCard + "current_link_width", "4\n");
    expect_only(Severity::kWarning, "GPU 0 link", "generation 5 x4, the card can x16", "slot");
    write(kCard + "current_link_width", "16\n");
    write(kCard + "current_link_speed", "2.5 GT/s PCIe\n");
    expect_only(Severity::kNote, "GPU 0 link", "generation 1 x16, up to generation 5 x16", "bench-machine");
    write(kSlot + "max_link_speed", "16.0 GT/s PCIe\n");
    expect_only(Severity::kWarning, "GPU 0 link", "the slot can generation 4 x16", "firmware");
    for (const char* which : {"current", "max"})
        for (const char* what : {"_link_speed", "_link_width"}) write(kCard + which + what, "Unknown\n");
    expect_only(Severity::kNote, "GPU 0 link", "not shown", "bench-machine");
}

TEST_F(Health, NodesOfCardsAndMemory) {
    write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  0 kB\n");
    write("sys/devices/system/node/node1/cpulist", "\n");
    write("proc/sys/kernel/numa_balancing", "1\n");
    expect_only(Severity::kNote, "NUMA balancing", "on", "sysctl kernel.numa_balancing=0");
    write("proc/sys/kernel/numa_balancing", "0\n");
    write(kCard + "numa_node", "1\n");
    expect_only(Severity::kWarning, "GPU 0 NUMA node", "node 1 of 2, which has no memory", "slot");
    write(kCard + "numa_node", "-1\n");
    expect_only(Severity::kNote, "GPU 0 NUMA node", "does not say", "SRAT");
    write(kCard + "numa_node", "0\n");
    write("sys/devices/system/node/node1/cpulist", "2-3\n");
    expect_only(Severity::kWarning, "NUMA nodes", "node 1: 0.0 GB", "channel");
    write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  390000000 kB\n");
    EXPECT_EQ(worst_of(findings()), Severity::kOk);
}

TEST_F(Health, MemoryFindings) {
    write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    expect_only(Severity::kWarning, "huge pages", "transparent: never", "echo madvise");
    write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "80000\n");  // then those are used
    EXPECT_EQ(worst_of(findings()), Severity::kOk);
    write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    write("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise madvise [never]\n");
    expect_only(Severity::kNote, "huge pages", "defrag: never", "defrag");
    remove("sys/kernel/mm/transparent_hugepage/defrag");
    write("proc/self/limits", "Max locked memory         8388608              8388608              bytes\n");
    expect_only(Severity::kWarning, "locked memory", "0.008 GB", "memlock unlimited");
    remove("proc/self/limits");
    write("proc/meminfo",
          "MemTotal: 395000000 kB\nMemAvailable: 385000000 kB\nSwapTotal: 8000000 kB\nSwapFree: 1 kB\n");
    expect_only(Severity::kWarning, "swap", "8.2 GB in use", "swapoff");
}

TEST_F(Health, CgroupsOfBothVersionsAndTheirParents) {
    write("sys/fs/cgroup/user.slice/memory.max", "64000000000\n");  // of the parent
    expect_only(Severity::kWarning, "cgroup limit", "64.0 GB", "MemoryMax");
    write("sys/fs/cgroup/user.slice/memory.max", "max\n");
    write("sys/fs/cgroup/user.slice/session.scope/cpu.max", "150000 100000\n");
    expect_only(Severity::kWarning, "cgroup limit", "1.50 of 2 CPUs", "--threads 1");
    remove("sys/fs/cgroup");
    write("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/\n");
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    write("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "32000000000\n");
    expect_only(Severity::kWarning, "cgroup limit", "32.0 GB", "docker");
    remove("sys/fs/cgroup/memory");
    write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");  // a container's own root
    write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    expect_only(Severity::kWarning, "cgroup limit", "0.50 of 2 CPUs", "cpuset");
    write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    EXPECT_EQ(worst_of(findings()), Severity::kOk);
}

TEST_F(Health, ProcessorFindings) {
    write("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n");
    expect_only(Severity::kWarning, "governor", "performance on 1 CPUs, powersave on 1", "echo performance");
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "amd-pstate-epp\n");
    expect_only(Severity::kNote, "governor", "amd-pstate-epp", "echo performance");
    remove("sys/devices/system/cpu/cpu1/cpufreq");
    isa_ = "avx2";
    write("proc/cpuinfo", "flags : hypervisor avx2 fma f16c avx512f\n");
    expect_only(Severity::kNote, "instructions", "does not show avx512bw avx512vl avx512dq", "-cpu host");
    isa_ = "scalar";
    expect_only(Severity::kWarning, "instructions", "scalar kernels", "-cpu host");
}

TEST_F(Health, SystemFindings) {
    write("proc/sys/kernel/osrelease", "5.15.153.1-Microsoft-standard-WSL2\n");
    expect_only(Severity::kWarning, "WSL", "Windows", ".wslconfig");
    write("proc/sys/kernel/osrelease", "6.12.0\n");
    write("proc/cmdline", "quiet numa=off iommu=pt intel_iommu=on\n");
    expect_only(Severity::kWarning, "boot parameter", "numa=off", "take it out");
    write("proc/cmdline", "quiet intel_iommu=on\n");
    expect_only(Severity::kNote, "boot parameter", "intel_iommu=on", "add iommu=pt");
    write("proc/cmdline", "");
    write("sys/module/nouveau/refcnt", "1");
    expect_only(Severity::kWarning, "nouveau", "beside", "blacklist");
}

TEST_F(Health, AnEmptyTreeIsNoError) {
    fs::remove_all(root_);
    gpus_ = {{}, "no driver"};
    EXPECT_LE(worst_of(findings()), Severity::kNote);
    fs::create_directories(root_);
    EXPECT_LE(worst_of(findings()), Severity::kNote);
}

TEST_F(Health, NoFileCanBreakIt) {
    const std::string noise = "\x01\xff\n\x1b[31m0x\0[[]:::/../../..\n-1 99999999999999999999999 NaN kB";
    const std::vector<std::string> hostile = {"",
                                              "\n\n",
                                              "-1",
                                              "0",
                                              "99999999999999999999999999",
                                              "9223372036854775807",
                                              "][",
                                              noise,
                                              std::string(200'000, ':'),
                                              std::string(200'000, '9'),
                                              "0::/../../../../etc\n:::\n1::\n",
                                              "MemTotal:\nMemTotal: 9223372036854775807 kB\n"};
    const auto expect_harmless = [&](const std::string& path) {
        const std::vector<Finding> all = findings();
        const std::string text = findings_text(all, false);
        EXPECT_LT(text.size(), 20'000u) << path;
        EXPECT_EQ(std::count_if(text.begin(), text.end(), [](char c) { return c > 0 && c < ' ' && c != '\n'; }), 0)
            << path;
        EXPECT_NO_THROW(parse_json(dump_json(findings_json(all)), "findings"));
    };
    for (const auto& [path, text] : kWorkstation) {
        for (const std::string& content : hostile) {
            write(path, content);
            expect_harmless(path);
        }
        remove(path);
        expect_harmless(path);
        ASSERT_EQ(::mkfifo((root_ / path).c_str(), 0600), 0);  // reading it would wait for ever
        expect_harmless(path);
        remove(path);
        fs::create_directories(root_ / path);
        expect_harmless(path);
        remove(path);
        write(path, text);
    }
    EXPECT_EQ(worst_of(findings()), Severity::kOk);  // as before
}

TEST(HealthText, ShowsSeverityWhyAndRemedy) {
    const std::vector<Finding> all = {{Severity::kOk, "A", "x", "fine", "", ""},
                                      {Severity::kWarning, "B", "long name", "bad", "it is slow", "sudo mend"}};
    EXPECT_EQ(findings_text(all, false),
              "A\n  ok       x          fine\n\nB\n  warning  long name  bad\n"
              "                      why:    it is slow\n                      remedy: sudo mend\n");
    EXPECT_NE(findings_text(all, true).find("\033[33mwarning"), std::string::npos);
    const Json json = findings_json(all);
    EXPECT_EQ(json["worst"], "warning");
    EXPECT_EQ(json["findings"][1]["remedy"], "sudo mend");
    EXPECT_EQ(worst_of({}), Severity::kOk);
}

}  // namespace
}  // namespace thermocline::scheduler
