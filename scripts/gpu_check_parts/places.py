"""Where things lie, in a checkout and in a bundle."""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# In a build folder; in a bundle all lie in bin/.
PROGRAMS = {"thermocline": "src/app", "cuda_test": "tests/cuda", "cuda_steps_test": "tests/cuda",
            "gpu_executor_test": "tests/scheduler", "gpu_kernels": "bench"}
REFERENCE = "configs/machines/h200-box.json"  # with it `plan` says what budgets hold; its speeds do not matter


def refuse(why, status=2):
    print(f"gpu_check: {why}", file=sys.stderr)
    sys.exit(status)


def program(name, build):
    path = ROOT / "bin" / name if build is None else pathlib.Path(build) / PROGRAMS[name] / name
    if not path.is_file():
        refuse(f"{path} is not there: build it (cmake --build BUILD --target {' '.join(PROGRAMS)}), or say --build")
    return path.resolve()


def numbers(version):
    return [int(part) for part in version.split(".")]
