"""Tests, the demo model, kernel speeds, sanitizers: what needs no large model."""
import ctypes
import json
import math
import os
import pathlib
import platform
import re
import shutil
import tempfile

from .places import program

SANITIZER_SECONDS = 75


def tests(check, name, most_seconds, under=()):
    arguments = []
    if check.options.quick:
        arguments.append("--gtest_filter=CudaLinear.FewVectors:Variants.*:HandoffSpeed.*:CudaHyper.*:CudaKv.*:GpuGroups.*")
    elif under:
        arguments.append("--gtest_filter=-Speed.*:HandoffSpeed.*")  # a sanitizer costs more than they allow
    # Most of it is host threads that play cards: many at once.
    shards = 1 if under or check.options.quick else max(1, min(4, (os.cpu_count() or 1) // 4))
    said = check.run([*under, program(name, check.options.build), *arguments], most_seconds, shards)
    counts = {word: len(re.findall(rf"^\[ +{word} +\] \S+ \(", said, re.M)) for word in ("OK", "SKIPPED")}
    if counts["OK"] == 0:
        raise RuntimeError("no test ran: " + said[-300:])
    skipped = f", {counts['SKIPPED']} left out" if counts["SKIPPED"] else ""
    return f"{counts['OK']} tests{skipped}", counts


def sanitizer(check):
    """Its path and why there is none."""
    if not check.real:
        return None, "only for real cards"
    tool = shutil.which("compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")
    return tool, "compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin"


def sanitized(check, what, most_seconds):
    tool, why_not = sanitizer(check)
    if tool is None:
        return why_not, None
    under = (tool, "--error-exitcode", "9")
    if what != "thermocline":
        return tests(check, what, most_seconds, under)
    with tempfile.TemporaryDirectory() as scratch:
        found = scores(check, pathlib.Path(scratch), most_seconds, check.card(), under)
    return f"{len(found)} log-probabilities of the demo model", {"count": len(found)}


def scores(check, folder, most_seconds, placement, under=()):
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(list(range(100, 100 + (6 if check.options.quick or under else 96)))))
    said = check.run([*under, program("thermocline", check.options.build), "score", "models/demo", "--tokens", tokens,
                      "--json", "--decode-from", "4", "--kv-cache-dtype", "f32", *placement], most_seconds)
    found = json.loads(said[said.index("{"):said.rindex("}") + 1])["sequences"][0]["logprobs"][1:]
    wrong = [(at, one) for at, one in enumerate(found, 1) if not isinstance(one, (int, float)) or not math.isfinite(one)]
    if wrong or not found:
        raise RuntimeError(f"{' '.join(placement)}: {len(wrong)} of {len(found)} log-probabilities are no finite numbers, "
                           f"the first at (place, value) {wrong[:1]}")
    return found


def demo_model(check):
    """Prefill and decode of the demo model: the card and the CPU together against the CPU alone."""
    placements = check.placements()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        alone = scores(check, folder, 120, ("--gpus", "none"))
        together = {experts: scores(check, folder, 120, flags) for experts, flags in placements.items()}
    apart = {experts: max(abs(a - b) for a, b in zip(alone, found, strict=True)) for experts, found in together.items()}
    largest = max(apart.values())
    if largest > 5e-3:
        raise RuntimeError(f"log-probabilities differ by {largest:.2e}, at most 5e-3 are allowed: {apart}")
    return f"{len(alone)} log-probabilities, largest difference {largest:.1e}", {"largest_difference": apart}


def same_text(check):
    count = 8 if check.options.quick else 256
    said = [check.run([program("thermocline", check.options.build), "run", "--log-level", "error", "--prompt",
                        "And it came to pass", "--max-tokens", count, "--temperature", "0", "--kv-cache-dtype", "f32",
                        *flags], 150) for flags in (("--gpus", "none"), *check.placements().values())]
    if len(set(said)) > 1:
        raise RuntimeError(f"greedy text differs, on the CPU and with the card: {said}")
    return f"the same greedy text of {count} tokens", {"tokens": count, "text": said[0]}


def kernels(check):
    quick = ["--quick"] if check.options.quick else []
    found = json.loads(check.run([program("gpu_kernels", check.options.build), "--gpus", check.options.gpus, *quick], 150))
    found["pcie_after_work"] = pcie(check)
    fractions = [row["fraction_of_memory_read"] for row in found["kernels"] if row["fraction_of_memory_read"] is not None]
    handoffs = ", ".join(f"{one['way']} {one['us']:.1f} us" for one in found["handoffs"] if one["us"] is not None)
    variants = found["variants"]
    tried = ", ".join(f"{name} {'as its twin' if variants[name] else 'WRONG, not used'}"
                      for name in ("mx_products", "mx_experts", "fp4_keys")) if variants["tried"] else "none on this card"
    if not fractions:
        return (f"{len(found['kernels'])} products (no real card: speeds mean nothing); hand-off: {handoffs}; "
                f"120f variants: {tried}"), found
    return (f"{min(fractions):.0%} to {max(fractions):.0%} of {found['memory_read_gb_per_s']:.0f} GB/s, experts "
            f"{fractions[-1]:.0%}; bf16 products {bf16_tflops(found):.0f} Tflop/s; hand-off: {handoffs}, used: "
            f"{found['flag_wait']}; 120f variants: {tried}; link {found['pcie_after_work']}"), found


def bf16_tflops(found):
    rates = found["bf16_product_tflops"]
    return max(rates["kernels"], rates["library"] or 0.0)


def available_memory():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def card_memory():
    """Bytes of the first card, by its driver."""
    driver, device, bytes_ = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_size_t()
    for status in (driver.cuInit(0), driver.cuDeviceGet(ctypes.byref(device), 0),
                   driver.cuDeviceTotalMem_v2(ctypes.byref(bytes_), device)):
        if status != 0:
            raise RuntimeError(f"the driver does not say how much memory the card has (error {status})")
    return bytes_.value


def smi(check, fields):
    tool = shutil.which("nvidia-smi")
    if tool is None or not check.real:
        return None
    return check.run([tool, f"--query-gpu={fields}", "--format=csv,noheader"], 20).strip()


def pcie(check):
    """What is negotiated now: an idle card lowers its link, so that this is asked again after work."""
    return smi(check, "pcie.link.gen.current,pcie.link.width.current")


def machine(check):
    found = {"host": platform.node(), "cpus": os.cpu_count(), "available_memory_bytes": available_memory(),
             "kernel": platform.release(), "c_library": " ".join(platform.libc_ver())}
    about = smi(check, "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max")
    if about is not None:
        found |= {"nvidia_smi": about, "pcie_idle": pcie(check)}
        return f"{about} (most), link {found['pcie_idle']} now", found
    return f"{found['cpus']} CPUs", found
