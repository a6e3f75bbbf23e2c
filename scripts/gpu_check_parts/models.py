"""V4-Flash at full width with random weights, as many layers as host memory and minutes allow. A budget that holds a part
of the experts of all layers is scaled so that it holds the same part of those that are there."""
import json
import subprocess
import time

from .check import CutShort
from .places import REFERENCE, ROOT, program
from .stages import SANITIZER_SECONDS, available_memory, bf16_tflops, card_memory, sanitizer


class Model:
    def __init__(self, check):
        self.check = check
        self.name, self.budgets = ("deepseek-v4-flash", ("32GB", "96GB")) if check.real else ("demo", ("0.011GB", "0.013GB"))
        self.prompt, self.tokens = (4096, 48) if check.real else (40, 2)
        self.all_layers = json.loads((ROOT / f"configs/models/{self.name}.json").read_text())["num_hidden_layers"]
        self.seconds_a_layer = None  # of a whole run, measured by the first one
        self.card_bytes = card_memory() if check.real else 1 << 40

    def plan(self, budget, layers=0):
        said = subprocess.run([str(program("thermocline", self.check.options.build)), "plan", self.name, "--machine",
                               str(ROOT / REFERENCE), "--context", str(self.prompt + self.tokens), "--gpu-memory", budget,
                               "--layers", str(layers), "--json"],
                              capture_output=True, text=True, timeout=60, env=self.check.environment)
        if not said.stdout.startswith("{"):  # exit status 1 also says that host memory is not enough: of no matter here
            raise RuntimeError(f"plan {self.name} --gpu-memory {budget}: {said.stderr.strip()}")
        return json.loads(said.stdout)

    def budget(self, layers, share):
        """Bytes with which `share` of the experts of `layers` layers lie on the card."""
        budget = 130e9
        for _ in range(4):  # the safety is a part of the budget
            gpu = self.plan(f"{budget / 1e9:.4f}GB", layers)["gpu"]
            bytes_of = {line["name"]: line["bytes"] for line in gpu["lines"]}
            of_budget = 1 - bytes_of.pop("safety") / gpu["budget_bytes"]
            budget = (sum(bytes_of.values()) + (share * gpu["experts"] + 0.5) * gpu["expert_bytes"]) / of_budget
        return int(budget)

    def layer_bytes(self):
        gpu = self.plan("130GB")["gpu"]
        return gpu["experts"] / self.all_layers * gpu["expert_bytes"] * 1.14  # with the rest and what loading takes

    def layers(self, seconds, share):
        """As many as memory and time allow, and what they are bounded by."""
        bounds = {"the model": self.all_layers,
                  "host memory": int((available_memory() - (16 << 30 if self.check.real else 0)) // self.layer_bytes())}
        # The first run says how long the others take; what it shows does not depend on the number of layers.
        if self.seconds_a_layer is None:
            bounds["the script"] = 8
        else:
            bounds["time"] = int(seconds / self.seconds_a_layer)
        by = min(bounds, key=bounds.get)
        most = bounds[by]
        while most > 1 and share == 1 and self.budget(most, share) > 0.97 * self.card_bytes:
            most, by = most - 1, "memory of the card"
        if most < 1:
            raise CutShort(f"not even one layer fits: {bounds}")
        return most, by

    def bench(self, layers, seconds, *flags):
        began = time.monotonic()

        def a_layer():
            return (time.monotonic() - began) / layers

        command = [program("thermocline", self.check.options.build), "bench", self.name, "--load-format", "dummy", "--layers",
                   layers, "-r", "1" if self.check.options.quick else "2", "-o", "jsonl", "--log-level", "error",
                   *self.check.card(), *flags]
        try:
            said = self.check.run(command, seconds)
        except CutShort:
            self.seconds_a_layer = 2 * a_layer()  # at least so many for what comes
            raise
        self.seconds_a_layer = max(a_layer(), self.seconds_a_layer or 0)
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        if not rows:
            raise RuntimeError(f"bench said no row: {said[-300:]}")
        return rows

    def text(self, rows, layers):
        measured = self.check.detail("kernel speed")
        words = []
        for row in rows:
            text = f"{row['test']} {row['tokens_per_s']:.1f} tok/s"
            if row["test"].startswith("pp") and measured and self.check.real:
                text += f" ({row['gflops'] * 1e-3 / bf16_tflops(measured):.0%} of measured bf16 products)"
            if row["fraction_of_bandwidth"] is not None:
                over = (1 - row["fraction_of_bandwidth"]) / row["tokens_per_s"] / layers * 1e6
                text += f" ({row['fraction_of_bandwidth']:.0%} of the roofline, {over:.0f} us a layer above it)"
            words.append(text)
        return ", ".join(words) + f"; {rows[-1]['placement']}"


def dummy_model(check, model, runs_to_come, budget=None, flags=(), tests_of=("-p", "0", "-n")):
    """One run; `budget` of the whole model."""
    seconds = (check.left() - (SANITIZER_SECONDS if sanitizer(check)[0] else 10)) / runs_to_come
    scales = budget and check.real  # an emulated card plays all layers
    share = 1.0 if "none" in flags else model.plan(budget)["resident_share"] if scales else 0.0
    layers, by = model.layers(seconds, share)
    limits, asked = ("--gpu-memory", budget) if budget else (), f", {budget}" if budget else ""
    if scales:
        scaled = model.budget(layers, share)
        if scaled > model.card_bytes:
            return (f"{share:.0%} of the experts of {layers} layers need {scaled / 1e9:.1f} GB, the card has "
                    f"{model.card_bytes / 1e9:.1f} GB"), None
        limits = ("--gpu-memory", f"{scaled / 1e9:.4f}GB")
        asked = f", {limits[1]} for {share:.1%} of the experts, as {budget} with all layers"
    rows = model.bench(layers, seconds, *tests_of, *flags, *limits)
    return (f"{layers} of {model.all_layers} layers (bound by {by}){asked}: {model.text(rows, layers)}",
            {"layers": layers, "bound_by": by, "share_asked": share, "rows": rows})


def dummy_models(check):
    model = Model(check)
    prompt, tokens = str(model.prompt), str(model.tokens)
    what = ("V4-Flash" if check.real else "demo model") + " with random weights"
    both = ("-p", prompt, "-n", tokens)
    check.stage(f"{what}, all experts on the card",
                lambda: dummy_model(check, model, 5, None, ("--offload-experts", "none"), both))
    check.stage(f"{what}, all experts on the CPU",
                lambda: dummy_model(check, model, 4, None, ("--offload-experts", "cpu"), both))
    check.stage(f"{what}, experts of prompts through the card",
                lambda: dummy_model(check, model, 3, model.budgets[0], ("--offload-experts", "stream"),
                                    ("-p", prompt, "-n", "0")))
    for to_come, budget in zip((2, 1), model.budgets):
        check.stage(f"{what}, experts as with {budget} for all layers",
                    lambda budget=budget, to_come=to_come: dummy_model(check, model, to_come, budget, (), both))
