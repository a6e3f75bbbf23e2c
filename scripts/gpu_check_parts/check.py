"""Runs programs as stages with time limits, and keeps the report."""
import json
import os
import signal
import subprocess
import tempfile
import time

from .places import ROOT

MOST_SECONDS = 9 * 60


class CutShort(RuntimeError):
    """A time limit ended it; what was found until then was right."""


class Check:
    def __init__(self, options, output):
        self.options = options
        self.real = options.gpus == "1"
        self.output = output
        self.start = time.monotonic()
        self.stages = []
        self.environment = dict(os.environ)
        if options.build is None:
            own, others = str(ROOT / "lib"), os.environ.get("LD_LIBRARY_PATH")
            self.environment["LD_LIBRARY_PATH"] = f"{own}:{others}" if others else own  # cuBLASLt may lie there
        if self.real:
            self.environment["THERMOCLINE_TEST_GPU"] = "1"

    def left(self):
        return MOST_SECONDS - (time.monotonic() - self.start)

    def card(self):
        return ("--gpus", self.options.gpus, "--allow-slow-fallback")

    def placements(self):
        """Flags of the runs that must give what the CPU gives, by where the routed experts lie."""
        return {"cpu": (*self.card(), "--offload-experts", "cpu")} | ({} if self.options.quick else {"auto": self.card()})

    def run(self, command, most_seconds, shards=1):
        """Standard output of the command, of all shards of a test program one after the other. Raises RuntimeError with
        the last lines of what was said, CutShort if it takes too long."""
        limit = min(most_seconds, self.left() - 5)
        if limit < 1:
            raise CutShort("no time was left for it")
        until = time.monotonic() + limit
        words = [str(word) for word in command]
        with tempfile.TemporaryDirectory() as scratch:
            running = []
            try:
                for shard in range(shards):
                    said = [open(f"{scratch}/{shard}.{name}", "w+", errors="replace") for name in ("out", "err")]
                    own = {"GTEST_TOTAL_SHARDS": str(shards), "GTEST_SHARD_INDEX": str(shard)} if shards > 1 else {}
                    running.append((subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said[0], stderr=said[1],
                                                     env=self.environment | own, cwd=ROOT), said))
                late = False
                for process, _ in running:
                    try:
                        process.wait(max(0.0, until - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        late = True
            finally:
                for process, _ in running:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
            outputs = []
            for process, said in running:
                texts = []
                for file in said:
                    file.seek(0)
                    texts.append(file.read())
                    file.close()
                outputs.append(texts)
        for (process, _), (out, err) in zip(running, outputs):
            if process.returncode not in (0, -signal.SIGKILL if late else 0):
                raise RuntimeError(f"exit status {process.returncode}: " +
                                   " | ".join((err.strip() or out.strip()).splitlines()[-8:]))
        said = "".join(out for out, _ in outputs)
        if late:
            last = [line for line in said.splitlines() if line.strip()][-3:]
            raise CutShort(f"took longer than {limit:.0f} s; the last it said: " + (" | ".join(last) or "nothing"))
        return said

    def stage(self, name, body):
        """body() gives (line for people, whatever belongs into the JSON; None: skipped). What it raises makes the stage
        fail. Both reports are written, so that they are there whatever comes next."""
        began = time.monotonic()
        stopped = None
        try:
            line, detail = body()
            status = "skipped" if detail is None else "passed"
        except CutShort as short:
            status, line, detail = "cut short", str(short), None
        except Exception as error:  # of whatever kind: the stages that come must run
            status, line, detail = "failed", f"{type(error).__name__}: {error}", None
        except KeyboardInterrupt as interrupt:
            status, line, detail, stopped = "failed", "stopped by a signal", None, interrupt
        seconds = time.monotonic() - began
        self.stages.append({"stage": name, "status": status, "seconds": round(seconds, 2), "summary": line, "detail": detail})
        self.write()
        print(f"{status:9} {name} ({seconds:.1f} s): {line}", flush=True)
        if stopped is not None:
            raise stopped

    def detail(self, name):
        """Of a stage that passed; None of others."""
        return next((one["detail"] for one in self.stages if one["stage"] == name and one["status"] == "passed"), None)

    def failed(self):
        return [one["stage"] for one in self.stages if one["status"] in ("failed", "cut short")]

    def write(self):
        report = {"gpus": self.options.gpus, "quick": self.options.quick,
                  "seconds": round(time.monotonic() - self.start, 1), "failed": self.failed(), "stages": self.stages}
        lines = [f"gpu_check, --gpus {self.options.gpus}{' --quick' if self.options.quick else ''}, {report['seconds']} s"]
        lines += [f"{one['status']:9} {one['stage']}: {one['summary']}" for one in self.stages]
        speeds = self.detail("kernel speed")
        lines += speed_lines(speeds) if speeds else []
        for file, text in (("report.json", json.dumps(report, indent=1)), ("report.txt", "\n".join(lines))):
            scratch = self.output / (file + ".new")  # a report is whole at any time
            scratch.write_text(text + "\n")
            scratch.replace(self.output / file)


def speed_lines(found):
    lines = []
    for row in found["kernels"]:
        share = row["fraction_of_memory_read"]
        lines.append(f"  {row['product']:24} {row['format']:6} x{row['vectors']}  {row['us']:9.2f} us  "
                     f"{row['gb_per_s']:8.1f} GB/s  {'' if share is None else f'{share:.0%}'}")
    for one in found["handoffs"]:
        lines.append(f"  hand-off by {one['way']}: " + (one["why_not"] if one["us"] is None else f"{one['us']:.2f} us"))
    return lines
