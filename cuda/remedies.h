// What to do about errors of cards, the same for real and emulated ones: each follows what failed.
#pragma once

namespace thermocline::cuda {

inline constexpr char kNoCardRemedy[] =
    "`thermocline doctor` says what is missing; --gpus none computes on the CPU alone";
inline constexpr char kTargets[] = "code for SM 8.x, 9.0 and 12.x";
inline constexpr char kNoCodeRemedy[] =
    "leave it out (CUDA_VISIBLE_DEVICES=...), or compute on the CPU alone (--gpus none)";
inline constexpr char kLostRemedy[] =
    "the device was lost: restart the server; `sudo dmesg | grep -i -e nvrm` says why";
inline constexpr char kHungRemedy[] =
    "Look for its errors (dmesg, nvidia-smi -q) and reset it (nvidia-smi --gpu-reset) or restart the machine before "
    "the "
    "next start";
inline constexpr char kPinRemedy[] =
    "raise the limit of pinned memory: `ulimit -l unlimited`, systemd LimitMEMLOCK=infinity, or docker run --ulimit "
    "memlock=-1; `thermocline doctor` shows it";

}  // namespace thermocline::cuda
