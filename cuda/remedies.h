// What to do about errors of cards, the same for real and emulated ones: each follows what failed, after a semicolon.
#pragma once

namespace thermocline::cuda {

inline constexpr char kNoCardRemedy[] =
    "`thermocline doctor` says what is missing; --gpus none computes on the CPU alone";
inline constexpr char kLostRemedy[] =
    "the device was lost: restart the server; `sudo dmesg | grep -i -e nvrm` says why";
inline constexpr char kPinRemedy[] =
    "raise the limit of pinned memory: `ulimit -l unlimited`, systemd LimitMEMLOCK=infinity, or docker run --ulimit "
    "memlock=-1; `thermocline doctor` shows it";

}  // namespace thermocline::cuda
