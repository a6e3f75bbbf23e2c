"""Packs a bundle for machines that have nothing but a driver."""
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from .places import PROGRAMS, REFERENCE, ROOT, numbers, program, refuse

NAME = "thermocline-gpu-check"
MOST_BYTES = 60 << 20
# Of the machine itself: the C library and the driver's.
SYSTEM = ("linux-vdso", "ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libcuda.so")


def libraries(path):
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listed.splitlines():
        words = line.split()
        if "not found" in line:
            refuse(f"{path} wants {words[0]}, which is not on this machine", 1)
        if "=>" in words and not words[0].startswith(SYSTEM):
            found[words[0]] = words[2]
    return found


def glibc_of(files):
    """The newest version of the C library that any of the files asks for, "2.36"."""
    listed = subprocess.run(["objdump", "-T", *files], capture_output=True, text=True, check=True).stdout
    return max(re.findall(r"\bGLIBC_(\d+\.\d+)", listed), key=numbers)


def pack(options):
    if options.build is None:
        refuse("pack needs --build FOLDER")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / NAME
        for part in ("bin", "lib", "scripts"):
            (folder / part).mkdir(parents=True)
        for name in PROGRAMS:
            source = program(name, options.build)
            subprocess.run(["strip", "-o", folder / "bin" / name, source], check=True)
            for library, at in libraries(source).items():
                shutil.copy(os.path.realpath(at), folder / "lib" / library)
        shutil.copy(ROOT / "scripts/gpu_check", folder / "scripts")
        parts = pathlib.Path(__file__).parent
        shutil.copytree(parts, folder / "scripts" / parts.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "models/demo", folder / "models/demo")
        (folder / "tests/golden").mkdir(parents=True)
        shutil.copy(ROOT / "tests/golden/dsv4-tiny.json", folder / "tests/golden")
        shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("machines"))
        (folder / REFERENCE).parent.mkdir()
        shutil.copy(ROOT / REFERENCE, folder / REFERENCE)
        (folder / "glibc").write_text(glibc_of([*(folder / "bin").iterdir(), *(folder / "lib").iterdir()]) + "\n")
        with tarfile.open(options.output, "w:xz", preset=1) as archive:
            archive.add(folder, NAME)
    size = os.path.getsize(options.output)
    if size > MOST_BYTES:
        refuse(f"{options.output} is of {size} bytes, at most {MOST_BYTES} are allowed", 1)
    print(f"{options.output}: {size / 2**20:.1f} MiB")
