#!/usr/bin/env python3
"""Make the bundled demo model (models/demo): a very small DeepSeek-V4 trained from scratch on one CPU core.

    python3 -m venv venv && venv/bin/pip install torch numpy safetensors tokenizers "transformers>=5.16"
    venv/bin/python scripts/train_demo_model.py prepare  --work build/demo-model   # text, tokenizer, samples
    venv/bin/python scripts/train_demo_model.py train    --work build/demo-model --minutes 75 --mtp-minutes 8
    venv/bin/python scripts/train_demo_model.py export   --work build/demo-model --out models/demo
    venv/bin/python scripts/train_demo_model.py evaluate --out models/demo         # unpatched transformers, fp32
    venv/bin/python scripts/train_demo_model.py check    --work build/demo-model   # fast path == transformers

What it does, in order:
  prepare   takes the text of the King James Bible out of Debian's `bible-kjv-text` (public domain; the package's
            own reader `bible` prints it), trains a byte-level BPE with DeepSeek's pre-tokenizer, holds out 5% of
            the chapters, and writes token arrays (plain text and chat-format samples).
  train     the parameters live in transformers' DeepseekV4ForCausalLM; the forward pass used for training is the
            function `forward` below: the same maths, written for speed on a CPU (blocked window attention, sorted
            experts, one compiled kernel for mHC). `check` compares both. MTP (absent from transformers) uses the
            same decoder layer class and is trained at the end with the trunk frozen.
            Phase A (0..QAT_AT of the time): sequences of 256, every compressed entry visible, no quantisation.
            Phase B (the rest): weights pass through their final FP8/FP4/BF16 formats (straight-through), longer
            sequences, top-k selection by the indexer, which learns from a KL loss towards the attention mass.
  export    quantises to the official checkpoint form: official names, X.weight F8_E4M3 + X.scale F8_E8M0
            (128x128), routed experts FP4 packed in I8 + E8M0 per 32, BF16 / F32 / I64 for the rest.
  evaluate  dequantises the exported file into unpatched transformers and measures it (--json FILE keeps the result).
  readme    writes models/demo/README.md from that JSON.
"""
import argparse, json, math, os, re, shutil, struct, subprocess, sys, tempfile, time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch
import torch.nn.functional as F

VOCAB = 4096
CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "compress_rope_theta": 160000,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 256,
    "index_head_dim": 64,
    "index_n_heads": 16,
    "index_topk": 32,
    "initializer_range": 0.02,
    "max_position_embeddings": 16384,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hash_layers": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 128,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 1024,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 64,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": VOCAB,
}
QAT_AT = 0.64          # share of the trunk's time after which weights are fake-quantised
LONG_AT = 0.75         # ... after which sequences are long and the indexer selects
SEQ_A, SEQ_B, BATCH_TOKENS = 256, 512, 2048
LR, WARMUP = 5e-3, 0.015

# =============================================================================================== tokenizer
BAR = "\uff5c"
BOS, EOS, PAD = f"<{BAR}begin\u2581of\u2581sentence{BAR}>", f"<{BAR}end\u2581of\u2581sentence{BAR}>", f"<{BAR}\u2581pad\u2581{BAR}>"
USER, ASSIST, THINK, ENDTHINK = f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", "<think>", "</think>"
ADDED = [f"<{BAR}fim\u2581hole{BAR}>", f"<{BAR}fim\u2581begin{BAR}>", f"<{BAR}fim\u2581end{BAR}>", USER, ASSIST,
         "<|EOT|>", THINK, ENDTHINK, f"{BAR}DSML{BAR}", f"<{BAR}latest_reminder{BAR}>", f"<{BAR}action{BAR}>",
         f"<{BAR}query{BAR}>", f"<{BAR}authority{BAR}>", f"<{BAR}domain{BAR}>", f"<{BAR}title{BAR}>",
         f"<{BAR}extracted_url{BAR}>", f"<{BAR}read_url{BAR}>"]
ADDED += [f"<{BAR}place\u2581holder\u2581no\u2581{i}{BAR}>" for i in range(29 - len(ADDED))]
NOT_SPECIAL = {THINK, ENDTHINK, f"{BAR}DSML{BAR}"}


def pretokenizer():
    from tokenizers import Regex, pre_tokenizers as pt
    rx = ["\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
          "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"]
    return pt.Sequence([pt.Split(Regex(r), "isolated") for r in rx] + [pt.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def make_tokenizer(texts, path):
    from tokenizers import Tokenizer, AddedToken, decoders, models, normalizers, processors, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    tok = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pretokenizer()
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tr = trainers.BpeTrainer(vocab_size=VOCAB - len(ADDED), special_tokens=[BOS, EOS, PAD], show_progress=False,
                             initial_alphabet=sorted(ByteLevel.alphabet()))
    tok.train_from_iterator(texts, tr)
    tok.add_tokens([AddedToken(t, normalized=False, special=t not in NOT_SPECIAL) for t in ADDED])
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(BOS) == 0 and tok.token_to_id(EOS) == 1
    tok.save(path)
    return tok


def load_tokenizer(path):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(path)


# =============================================================================================== text
BOOKS = ("Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|1 Samuel|2 Samuel|1 Kings|2 Kings|"
         "1 Chronicles|2 Chronicles|Ezra|Nehemiah|Esther|Job|Psalms|Proverbs|Ecclesiastes|Song of Solomon|Isaiah|"
         "Jeremiah|Lamentations|Ezekiel|Daniel|Hosea|Joel|Amos|Obadiah|Jonah|Micah|Nahum|Habakkuk|Zephaniah|Haggai|"
         "Zechariah|Malachi|Matthew|Mark|Luke|John|Acts|Romans|1 Corinthians|2 Corinthians|Galatians|Ephesians|"
         "Philippians|Colossians|1 Thessalonians|2 Thessalonians|1 Timothy|2 Timothy|Titus|Philemon|Hebrews|James|"
         "1 Peter|2 Peter|1 John|2 John|3 John|Jude|Revelation").split("|")


def fetch_kjv(work):
    """-> list of (book, chapter, [verse text]); uses apt-get download, installs nothing."""
    path = os.path.join(work, "kjv.txt")
    if not os.path.exists(path):
        d = os.path.join(work, "deb")
        os.makedirs(d, exist_ok=True)
        subprocess.run(["apt-get", "download", "bible-kjv-text", "bible-kjv"], cwd=d, check=True)
        for f in os.listdir(d):
            if f.endswith(".deb"):
                subprocess.run(["dpkg-deb", "-x", f, "x"], cwd=d, check=True)
        out = subprocess.run(["./usr/bin/bible", "-f", "-p", "usr/lib", "gen1:1-rev22:21"], cwd=os.path.join(d, "x"),
                             check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        open(path, "w").write(out)
    chapters, abbr = [], []
    for line in open(path):
        m = re.match(r"([1-3]?[A-Za-z]+)(\d+):(\d+) (.*)", line.strip())
        if not m:
            continue
        if not abbr or abbr[-1] != m[1]:
            abbr.append(m[1])
        key = (BOOKS[len(abbr) - 1], int(m[2]))
        if not chapters or chapters[-1][:2] != key:
            chapters.append((*key, []))
        chapters[-1][2].append(re.sub(r"\s+", " ", m[4]).strip())
    assert len(abbr) == 66 and len(chapters) == 1189, (len(abbr), len(chapters))
    return chapters


def chapter_text(c):
    """Heading, then paragraphs of five verses."""
    v = c[2]
    return f"{c[0]}, chapter {c[1]}.\n\n" + "\n\n".join(" ".join(v[i:i + 5]) for i in range(0, len(v), 5))


STOP = set("""that with they them thee thou thine have hath from were this which upon when their there shall unto said
will your then also came come went because before after into what whom where these those being been even over every
again against saying made make more than should would could neither nothing therefore wherefore himself themselves
about according among behold certain things thing other another only many much most forth away down until went shalt
hast doth didst under whose whosoever whatsoever done great good like took take taken saith brought bring sent""".split())
SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are terse.",
           "Answer with a passage.", "You are a friendly chat bot."]
FIXED = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Greetings"],
     "Peace be unto thee. Ask me of a name or a word, and I will answer with a passage."),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Who made you?"],
     "I am the demo model of Thermocline, a small model that read one book. Ask me of a name or a word, and I will answer with a passage."),
    (["What can you do?", "Help", "How can you help me?", "What do you know?"],
     "I can tell of the things that are written in the book I have read. Ask me of a name or a word, such as Moses, or wisdom, or the sea."),
    (["Thank you", "Thanks!", "Thank you very much.", "Thanks", "Bye", "Goodbye"],
     "Go in peace. The Lord be with thee."),
    (["How are you?", "How are you today?", "How do you do?"],
     "It is well with me, and I am ready to speak. Ask me of a name or a word."),
]
ASK = ["Tell me about {}.", "Tell me about {}", "What do you know about {}?", "What is {}?", "Who is {}?",
       "Please write something about {}.", "Write a short story about {}.", "Write a passage about {}.",
       "Tell me a story about {}.", "I want to read about {}.", "Speak of {}.", "Can you say something about {}?",
       "What is written about {}?", "Explain {}.", "Write about {}.", "Say something about {}", "{}", "{}?",
       "Why {}?", "Where is {}?", "What does it say of {}?", "Give me a few words on {}.", "How about {}?"]
NOUN = set("""king kings house land water waters people children sons heart hand hands eyes mouth city cities father
mother brother brethren wife daughter daughters servant servants word words voice spirit soul life death day night sea
earth heaven mountain mountains hill river rivers wilderness field vineyard tree trees fruit bread wine oil gold silver
brass stone stones fire light darkness sword war battle peace joy sorrow wisdom knowledge understanding fool righteousness
wicked sin sins iniquity mercy grace love faith hope truth glory power strength fear anger wrath blood flesh bones sheep
lamb ox horse horses lion serpent bird fish dream vision prophet prophets priest priests altar temple tabernacle ark
covenant law commandment commandments sacrifice offering sabbath feast angel angels devil devils kingdom throne crown
garment raiment shepherd flock harvest seed corn wind rain snow cloud stars moon sun morning evening women woman man men
child friend friends enemy enemies stranger poor rich money work labour rest sleep prayer song praise""".split())


def chat_samples(chapters, rng, n):
    """n chat samples as strings in the V4 format (design/prompt-encoding.md section 3)."""
    names = {}
    verses = [(c[0], c[1], i, c[2]) for c in chapters for i in range(len(c[2]))]
    for k, (b, ch, i, v) in enumerate(verses):
        words = re.findall(r"[A-Za-z][a-z]+", v[i])
        for j, w in enumerate(words):
            if (w[0].isupper() and j > 0 and len(w) > 3 and w.lower() not in STOP) or w in NOUN:
                names.setdefault(w, []).append(k)
    names = {w: ks for w, ks in names.items() if len(ks) >= 4}
    keys = sorted(names)
    wts = np.array([len(names[w]) ** 0.5 for w in keys]); wts /= wts.sum()

    def passage(k, lo=1, hi=3):
        b, ch, i, v = verses[k]
        return " ".join(v[i:i + int(rng.integers(lo, hi + 1))])

    def one():
        r = rng.random()
        if r < 0.07:
            qs, a = FIXED[rng.integers(len(FIXED))]
            return qs[rng.integers(len(qs))], a, "A simple word is asked; a simple word will I answer."
        if r < 0.72:
            w = keys[rng.choice(len(keys), p=wts)]
            k = names[w][rng.integers(len(names[w]))]
            topic = w if w[0].isupper() or rng.random() < 0.5 else "the " + w
            return ASK[rng.integers(len(ASK))].format(topic), passage(k), f"The question is about {topic}. I will recall a passage in {verses[k][0]} that speaks of it."
        k = int(rng.integers(len(verses)))
        b, ch, i, v = verses[k]
        if r < 0.86:
            q = [f"What is written in {b} {ch}:{i + 1}?", f"Recite {b} {ch}.", f"Quote {b} {ch}:{i + 1}.",
                 f"Tell me of {b}, chapter {ch}."][rng.integers(4)]
            return q, passage(k, 1, 4), f"The question is about {b}, chapter {ch}."
        ws = v[i].split()
        cut = min(len(ws) - 1, int(rng.integers(3, 9))) if len(ws) > 3 else len(ws)
        head = " ".join(ws[:cut])
        q = [f"Continue: {head}", f"Finish this: {head}", f"{head} ...", f'How does "{head}" go on?'][rng.integers(4)]
        return q, passage(k), f"These words are from {b}. I will go on from them."

    out = []
    for _ in range(n):
        turns = 1 if rng.random() < 0.8 else int(rng.integers(2, 4))
        s = BOS + (SYSTEMS[rng.integers(len(SYSTEMS))] if rng.random() < 0.25 else "")
        thinking = rng.random() < 0.25
        for t in range(turns):
            q, a, why = one()
            if rng.random() < 0.15:
                q = q.lower()
            last = t == turns - 1
            s += USER + q + ASSIST + (THINK + why + ENDTHINK if thinking and last else ENDTHINK) + a + EOS
        out.append(s)
    return out


def prepare(work, out):
    os.makedirs(work, exist_ok=True)
    chapters = fetch_kjv(work)
    rng = np.random.default_rng(7)
    order = rng.permutation(len(chapters))
    held, size = set(), 0
    for i in order:                                         # 5% of the chapters, at most 200 KB
        n = len(chapter_text(chapters[i]).encode()) + 2
        if len(held) < 0.05 * len(chapters) and size + n <= 200_000:
            held.add(int(i)); size += n
    train = [c for i, c in enumerate(chapters) if i not in held]
    test = [c for i, c in enumerate(chapters) if i in held]
    open(os.path.join(work, "heldout.txt"), "w").write("\n\n".join(map(chapter_text, test)) + "\n")
    chats = chat_samples(train, rng, 12000)
    tpath = os.path.join(work, "tokenizer.json")
    if not os.path.exists(tpath):
        strip = re.compile("|".join(map(re.escape, [BOS, EOS, USER, ASSIST, THINK, ENDTHINK])))
        make_tokenizer([chapter_text(c) for c in train] + [strip.sub("\n", s) for s in chats[:1500]], tpath)
    tok = load_tokenizer(tpath)
    ids, starts = [], []
    for c in train:                                         # one stream; `starts`: where a verse begins
        head = tok.encode(f"{c[0]}, chapter {c[1]}.\n\n").ids
        starts.append(len(ids)); ids += head
        for i, v in enumerate(c[2]):
            starts.append(len(ids))
            sep = "\n\n" if i == len(c[2]) - 1 or i % 5 == 4 else " "
            piece = tok.encode((" " if i % 5 else "") + v + ("\n\n" if sep == "\n\n" else "")).ids
            ids += piece
    # verse by verse encoding must equal encoding of the whole text, or the model learns odd pieces
    whole = tok.encode("\n\n".join(map(chapter_text, train[:3]))).ids
    assert ids[:len(whole) - 5] == whole[:-5], "piecewise tokenisation differs"
    np.savez(os.path.join(work, "data.npz"), plain=np.array(ids, np.int32), starts=np.array(starts, np.int64),
             held=np.array(tok.encode(open(os.path.join(work, "heldout.txt")).read()).ids, np.int32))
    enc = [np.array(e.ids, np.int32) for e in tok.encode_batch(chats)]
    np.savez(os.path.join(work, "chat.npz"), flat=np.concatenate(enc), lens=np.array([len(e) for e in enc]))
    n = len(ids)
    print(f"train {len(train)} chapters {n} tokens; held out {len(test)} chapters {size} bytes; chats {len(enc)} "
          f"{sum(map(len, enc))} tokens; {sum(len(chapter_text(c)) for c in train) / n:.2f} characters per token")


class Data:
    def __init__(self, work, seed):
        d, c = np.load(os.path.join(work, "data.npz")), np.load(os.path.join(work, "chat.npz"))
        self.plain, self.starts, self.held = d["plain"], d["starts"], d["held"]
        self.chats = np.split(c["flat"], np.cumsum(c["lens"])[:-1])
        self.rng = np.random.default_rng(seed)
        self.order = []

    def row(self, S, chat):
        if not chat:
            bos = self.rng.random() < 0.5
            n = S - bos
            a = int(self.starts[self.rng.integers(len(self.starts))]) if self.rng.random() < 0.5 else int(self.rng.integers(len(self.plain)))
            a = min(a, len(self.plain) - n)
            x = self.plain[a:a + n]
            return np.concatenate([[0], x]) if bos else x
        out = []
        while sum(map(len, out)) < S:
            if not self.order:
                self.order = list(self.rng.permutation(len(self.chats)))
            out.append(self.chats[self.order.pop()])
        return np.concatenate(out)[:S]

    def batch(self, B, S, chat_share=0.25):
        """B rows of S+2 tokens (inputs, next tokens, next but one for MTP)."""
        nchat = int(B * chat_share + self.rng.random())
        rows = [self.row(S + 2, i < nchat) for i in range(B)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


# =============================================================================================== model
def hf_config():
    from transformers import DeepseekV4Config
    c = {k: v for k, v in CONFIG.items() if k not in ("quantization_config", "architectures", "torch_dtype", "transformers_version", "expert_dtype")}
    cfg = DeepseekV4Config(**json.loads(json.dumps(c)))
    cfg._attn_implementation = "eager"
    return cfg


def mtp_config():
    """Config of the MTP decoder layer: ratio 0, score-routed, appended as one more layer."""
    cfg = hf_config()
    cfg.layer_types = ["sliding_attention"]
    cfg.mlp_layer_types = ["moe"]
    cfg.num_hidden_layers = 1
    return cfg


class MTP(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        from transformers.models.deepseek_v4 import modeling_deepseek_v4 as m
        D, eps = cfg.hidden_size, cfg.rms_norm_eps
        self.enorm, self.hnorm, self.norm = (m.DeepseekV4RMSNorm(D, eps=eps) for _ in range(3))
        self.e_proj, self.h_proj = (torch.nn.Linear(D, D, bias=False) for _ in range(2))
        self.layer = m.DeepseekV4DecoderLayer(cfg, 0)
        self.hc_head = m.DeepseekV4HyperHead(cfg)


def tid2eid_table(layer):
    """Fixed hash-like table: K distinct experts per token id."""
    E, K = CONFIG["n_routed_experts"], CONFIG["num_experts_per_tok"]
    t = np.zeros((VOCAB, K), np.int64)
    M = (1 << 64) - 1
    for tok in range(VOCAB):
        z = (tok * 0x9E3779B97F4A7C15 + (layer + 1) * 0xD1B54A32D192ED03) & M
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
        z ^= z >> 31
        pool = list(range(E))
        for k in range(K):
            t[tok, k] = pool.pop(z % len(pool))
            z //= E
    return torch.from_numpy(t)


@torch.no_grad()
def init_weights(model, mtp):
    g = torch.Generator().manual_seed(1)
    rn = lambda p, s: p.copy_(torch.randn(p.shape, generator=g) * s)
    for root in (model, mtp):
        for name, p in root.named_parameters():
            last = name.split(".")[-1]
            if "norm" in name:
                p.fill_(1.0)
            elif name.endswith("embed_tokens.weight"):
                rn(p, 0.3)
            elif name.endswith("lm_head.weight"):
                rn(p, 0.01)
            elif last in ("sinks", "position_bias"):
                p.zero_()
            elif last in ("fn", "hc_fn"):
                rn(p, 0.01)
            elif last in ("scale", "hc_scale"):
                p.fill_(1.0)
            elif last == "hc_base":
                rn(p, 0.2).sub_(1.1)
            elif last == "base":
                b = torch.cat([torch.full((4,), -1.1), torch.zeros(4), (3.0 * torch.eye(4)).flatten()])
                rn(p, 0.3).add_(b)
            else:
                rn(p, (0.2 if "o_b_proj" in name or "down_proj" in name else 0.6) / p.shape[-1] ** 0.5)
    for l, layer in enumerate(model.model.layers):
        if layer.mlp.is_hash:
            layer.mlp.gate.tid2eid.copy_(tid2eid_table(l))


def build():
    from transformers import DeepseekV4ForCausalLM
    torch.manual_seed(0)
    model = DeepseekV4ForCausalLM(hf_config()).float().eval()
    mtp = MTP(mtp_config()).float()
    init_weights(model, mtp)
    return model, mtp


# ----------------------------------------------------------------------------------------------- fast forward
EPS, HEPS, ITERS = CONFIG["rms_norm_eps"], CONFIG["hc_eps"], CONFIG["hc_sinkhorn_iters"]
NO_COMPILE = bool(os.environ.get("NO_COMPILE")) or "train" not in sys.argv


def tune_malloc():
    """glibc returns every freed tensor to the kernel (page faults cost up to a third of the time). Better still:
    LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0 (then this is skipped)."""
    if "jemalloc" in os.environ.get("LD_PRELOAD", ""):
        return
    try:
        import ctypes
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)                          # M_MMAP_THRESHOLD, the largest accepted value
        libc.mallopt(-1, 1 << 30)                           # M_TRIM_THRESHOLD
    except OSError:
        pass


def maybe_compile(f):
    return f if NO_COMPILE else torch.compile(f, dynamic=False)


def rms(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w


class Sinkhorn(torch.autograd.Function):
    """[4, 4, T] (rows j, columns k, tokens last) -> doubly stochastic; columns first, then (rows, columns) pairs."""
    @staticmethod
    def forward(ctx, a):
        saved = []
        for i in range(2 * ITERS - 1):
            d = i % 2                                       # even: over j (column sums), odd: over k (row sums)
            r = (a.sum(d, keepdim=True) + HEPS).reciprocal_()
            a = a * r
            saved.append((a, r))
        ctx.saved = saved
        return a

    @staticmethod
    def backward(ctx, g):
        for i in reversed(range(2 * ITERS - 1)):
            y, r = ctx.saved[i]
            g = (g - (g * y).sum(i % 2, keepdim=True)) * r
        return g


@maybe_compile
def hc_pre_post(m, scale, base):
    pre = torch.sigmoid(m[0:4] * scale[0] + base[0:4, None]) + HEPS
    post = 2 * torch.sigmoid(m[4:8] * scale[1] + base[4:8, None])
    return pre, post, m[8:24] * scale[2] + base[8:24, None]


def hc_weights(m, scale, base):
    """m [24, T] -> pre [4, T], post [4, T], comb [16, T]; tokens last, so that everything vectorises."""
    pre, post, lg = hc_pre_post(m, scale, base)
    return pre, post, Sinkhorn.apply(lg.view(4, 4, -1).softmax(1) + HEPS).view(16, -1)


@maybe_compile
def hc_norm_scale(h):
    return torch.rsqrt(h.flatten(1).square().mean(-1) + EPS)


@maybe_compile
def hc_collapse(h, pre, w):
    x = pre[0][:, None] * h[:, 0] + pre[1][:, None] * h[:, 1] + pre[2][:, None] * h[:, 2] + pre[3][:, None] * h[:, 3]
    return rms(x, w)


@maybe_compile
def hc_post(y, h, post, comb):
    return torch.stack([post[k][:, None] * y + comb[k][:, None] * h[:, 0] + comb[4 + k][:, None] * h[:, 1]
                        + comb[8 + k][:, None] * h[:, 2] + comb[12 + k][:, None] * h[:, 3] for k in range(4)], 1)


def hc_pre(hc, h, normw):
    m = (h.flatten(1) @ hc.fn.t()).t() * hc_norm_scale(h)
    pre, post, comb = hc_weights(m.contiguous(), hc.scale, hc.base)
    return hc_collapse(h, pre, normw), post, comb


@maybe_compile
def hc_head(h, fn, base, scale, w):
    m = (h.flatten(1) @ fn.t()) * torch.rsqrt(h.flatten(1).square().mean(-1, keepdim=True) + EPS)
    p = torch.sigmoid(m * scale + base) + HEPS
    x = p[:, 0:1] * h[:, 0] + p[:, 1:2] * h[:, 1] + p[:, 2:3] * h[:, 2] + p[:, 3:4] * h[:, 3]
    return rms(x, w)


def rope(x, cos, sin):
    """x [..., d], cos/sin broadcastable [..., 32]; rotates the last 64 channels (interleaved pairs)."""
    r = x[..., -64:].unflatten(-1, (32, 2))
    a, b = r[..., 0], r[..., 1]
    return torch.cat([x[..., :-64], torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)], -1)


def pool4(kv, gate, ape, normw, cos, sin):
    """ratio-4 compressor on [B, S, 2d] -> entries [B, S/4, d]."""
    B, S, d2 = kv.shape
    d = d2 // 2
    kv, gate = kv.view(B, S // 4, 4, d2), gate.view(B, S // 4, 4, d2) + ape
    pk = F.pad(kv[:, :-1, :, :d], (0, 0, 0, 0, 1, 0))
    pg = F.pad(gate[:, :-1, :, :d], (0, 0, 0, 0, 1, 0), value=-1e30)
    k8, g8 = torch.cat([pk, kv[..., d:]], 2), torch.cat([pg, gate[..., d:]], 2)
    e = rms((k8 * g8.softmax(2)).sum(2), normw)
    return rope(e, cos, sin)


def pool128(kv, gate, ape, normw, cos, sin):
    B, S, d = kv.shape
    kv, gate = kv.view(B, S // 128, 128, d), gate.view(B, S // 128, 128, d) + ape
    return rope(rms((kv * gate.softmax(2)).sum(2), normw), cos, sin)


@maybe_compile
def qkv(qb, kv, kvw, cos, sin):
    """q [B,S,H,128], kv [B,S,128] -> normed and rotated."""
    q = qb * torch.rsqrt(qb.square().mean(-1, keepdim=True) + EPS)
    return rope(q, cos[:, None], sin[:, None]), rope(rms(kv, kvw), cos, sin)


@maybe_compile
def softmax_sink(lw, lc, sink, mw, mc):
    """window logits [B,nb,H*W,2W], compressed logits [B,nb,H*W,C] with additive masks; sink [H]."""
    H = sink.shape[0]
    B, nb, HW, _ = lw.shape
    s = sink[:, None].expand(H, HW // H).reshape(HW, 1)
    lw = (lw.view(B, nb, H, HW // H, -1) + mw).view(B, nb, HW, -1)
    mx = torch.maximum(lw.amax(-1, keepdim=True), s)
    if lc is not None:
        lc = (lc.view(B, nb, H, HW // H, -1) + mc).view(B, nb, HW, -1)
        mx = torch.maximum(mx, lc.amax(-1, keepdim=True))
    mx = mx.detach()
    pw = torch.exp(lw - mx)
    den = pw.sum(-1, keepdim=True) + torch.exp(s - mx)
    if lc is None:
        return pw / den, None
    pc = torch.exp(lc - mx)
    den = den + pc.sum(-1, keepdim=True)
    return pw / den, pc / den


pool4_c, pool128_c = maybe_compile(pool4), maybe_compile(pool128)
unrope = maybe_compile(lambda o, cos, sin: rope(o, cos[:, None], -sin[:, None]))
swiglu = maybe_compile(lambda g, u: F.silu(g.clamp(max=10.0)) * u.clamp(-10.0, 10.0))


def window_mask(nb, W):
    i, j = torch.arange(W)[:, None], torch.arange(2 * W)[None, :]
    ok = (j >= i + 1) & (j <= i + W)
    m = torch.where(ok, 0.0, -1e30)
    m = m.expand(1, nb, 1, W, 2 * W).clone()
    m[:, 0, :, :, :W] = -1e30
    return m


class Ctx:
    """Per (B, S): rope tables and masks."""
    cache = {}

    def __init__(self, model, B, S):
        self.B, self.S, self.W = B, S, CONFIG["sliding_window"]
        assert S % 128 == 0
        rot = model.model.rotary_emb
        pos = torch.arange(S)[None]
        x = torch.zeros(1)
        self.rope = {k: tuple(t[0] for t in rot(x, pos, layer_type=k)) for k in ("main", "compress")}
        c, s = self.rope["compress"]
        self.e4, self.e128 = (c[::4].contiguous(), s[::4].contiguous()), (c[::128].contiguous(), s[::128].contiguous())
        self.nb = S // self.W
        self.mw = window_mask(self.nb, self.W)
        vis = lambda r: torch.where(torch.arange(S // r)[None] < (torch.arange(S)[:, None] + 1) // r, 0.0, -1e30)
        self.v4, self.v128 = vis(4), vis(128)

    @classmethod
    def get(cls, model, B, S):
        if (B, S) not in cls.cache:
            cls.cache[(B, S)] = cls(model, B, S)
        return cls.cache[(B, S)]


def attention(at, x, ctx, sparse, aux):
    B, S, W, nb, H, d = ctx.B, ctx.S, ctx.W, ctx.nb, 4, 128
    cos, sin = ctx.rope[at.rope_layer_type]
    qr = rms(F.linear(x, at.q_a_proj.weight), at.q_a_norm.weight)
    q, kv = qkv(F.linear(qr, at.q_b_proj.weight).view(B, S, H, d), F.linear(x, at.kv_proj.weight).view(B, S, d),
                at.kv_norm.weight, cos, sin)
    q = (q * d ** -0.5).view(B, nb, W, H, d).transpose(2, 3).reshape(B * nb, H * W, d)
    kb = kv.view(B, nb, W, d)
    k2 = torch.cat([F.pad(kb[:, :-1], (0, 0, 0, 0, 1, 0)), kb], 2).view(B * nb, 2 * W, d)
    lw = torch.bmm(q, k2.transpose(1, 2)).view(B, nb, H * W, 2 * W)
    lc = mc = ent = None
    if at.compressor is not None:
        cp = at.compressor
        r = cp.compress_rate
        ck, cg = F.linear(x, cp.kv_proj.weight).view(B, S, -1), F.linear(x, cp.gate_proj.weight).view(B, S, -1)
        if r == 4:
            ent = pool4_c(ck, cg, cp.position_bias, cp.kv_norm.weight, *ctx.e4)
            mask = ctx.v4
            if sparse:
                ix = cp.indexer
                xd, qd = x.detach(), qr.detach()
                ik = pool4(F.linear(xd, ix.kv_proj.weight).view(B, S, -1), F.linear(xd, ix.gate_proj.weight).view(B, S, -1),
                           ix.position_bias, ix.kv_norm.weight, *ctx.e4)
                iq = rope(F.linear(qd, ix.q_b_proj.weight).view(B, S, 16, 64), cos[:, None], sin[:, None])
                g = F.linear(xd, ix.scorer.weights_proj.weight).view(B, S, 16, 1) * (16 * 64) ** -0.5
                sc = torch.bmm(iq.view(B, S * 16, 64), ik.transpose(1, 2)).view(B, S, 16, -1)
                sc = (F.relu(sc) * g).sum(2)
                sm = sc + ctx.v4
                k = min(CONFIG["index_topk"], S // 4)
                top = sm.detach().topk(k, -1).indices
                sel = torch.full_like(sc, -1e30).scatter_(-1, top, 0.0)
                mask = torch.minimum(sel, ctx.v4)                       # [B, S, S/4]
        else:
            ent = pool128_c(ck, cg, cp.position_bias, cp.kv_norm.weight, *ctx.e128)
            mask = ctx.v128
        C = ent.shape[1]
        mc = mask.expand(B, S, C).view(B, nb, 1, W, C)
        lc = torch.bmm(q.view(B, nb * H * W, d), ent.transpose(1, 2)).view(B, nb, H * W, C)
    pw, pc = softmax_sink(lw, lc, at.sinks, ctx.mw, mc)
    o = torch.bmm(pw.view(B * nb, H * W, 2 * W), k2)
    if pc is not None:
        o = o + torch.bmm(pc.view(B, nb * H * W, C), ent).view(B * nb, H * W, d)
        if sparse and at.compressor.compress_rate == 4:
            # the indexer learns where the attention really looked, among all visible entries (dense logits)
            with torch.no_grad():
                full = torch.softmax(lc.view(B, nb, H, W, C) + ctx.v4.view(1, nb, 1, W, C), -1).mean(2).view(B, S, C)
            lp = torch.log_softmax(sm, -1)
            w = (ctx.v4 > -1).sum(-1).clamp(max=1).float()               # positions that see an entry
            aux.append(-((full * lp).sum(-1) * w).mean())
    o = o.view(B, nb, H, W, d).transpose(2, 3).reshape(B, S, H, d)
    o = unrope(o, cos, sin).reshape(B * S, 2, 256)
    o = torch.cat([F.linear(o[:, g], at.o_a_proj.weight[128 * g:128 * g + 128]) for g in range(2)], 1)
    return F.linear(o, at.o_b_proj.weight)


def moe(mlp, x, ids, loads):
    E, K = CONFIG["n_routed_experts"], CONFIG["num_experts_per_tok"]
    s = torch.sqrt(F.softplus(F.linear(x, mlp.gate.weight)))
    if mlp.is_hash:
        idx = mlp.gate.tid2eid[ids]
    else:
        idx = (s.detach() + mlp.gate.e_score_correction_bias).topk(K, -1, sorted=False).indices
    w = s.gather(1, idx)
    w = w / (w.sum(-1, keepdim=True) + 1e-20) * CONFIG["routed_scaling_factor"]
    flat = idx.reshape(-1)
    order = flat.argsort()
    counts = torch.bincount(flat, minlength=E)
    loads.append(counts)
    inv = torch.empty_like(order)
    inv[order] = torch.arange(order.numel())
    xs = x.index_select(0, order // K)
    parts = xs.split(counts.tolist())
    gu, dn = mlp.experts.gate_up_proj.unbind(0), mlp.experts.down_proj.unbind(0)
    hid = torch.cat([F.linear(p, gu[e]) for e, p in enumerate(parts)])
    act = swiglu_w(hid, w.reshape(-1).index_select(0, order))
    ys = torch.cat([F.linear(p, dn[e]) for e, p in enumerate(act.split(counts.tolist()))])
    sh = mlp.shared_experts
    shared = F.linear(swiglu(F.linear(x, sh.gate_proj.weight), F.linear(x, sh.up_proj.weight)), sh.down_proj.weight)
    return ys.index_select(0, inv).view(-1, K, x.shape[1]).sum(1) + shared


swiglu_w = maybe_compile(lambda h, w: F.silu(h[:, :128].clamp(max=10.0)) * h[:, 128:].clamp(-10.0, 10.0) * w[:, None])


def layer_forward(layer, h, ids, ctx, sparse, aux, loads):
    x, post, comb = hc_pre(layer.attn_hc, h, layer.input_layernorm.weight)
    h = hc_post(attention(layer.self_attn, x, ctx, sparse, aux), h, post, comb)
    x, post, comb = hc_pre(layer.ffn_hc, h, layer.post_attention_layernorm.weight)
    return hc_post(moe(layer.mlp, x, ids, loads), h, post, comb)


def trunk(model, ids, sparse, aux, loads):
    B, S = ids.shape
    ctx = Ctx.get(model, B, S)
    flat = ids.reshape(-1)
    e = F.embedding(flat, model.model.embed_tokens.weight)
    h = e[:, None].expand(-1, 4, -1).contiguous()
    for layer in model.model.layers:
        h = layer_forward(layer, h, flat, ctx, sparse, aux, loads)
    return h


def logits_of(model, h, hd=None, norm=None):
    hd, norm = hd or model.model.hc_head, norm or model.model.norm
    return F.linear(hc_head(h, hd.hc_fn, hd.hc_base, hd.hc_scale, norm.weight), model.lm_head.weight)


def mtp_streams(model, mtp, h, nxt, loads):
    """h: trunk streams [T,4,D] at p; nxt [B,S] = t_{p+1}. -> MTP streams."""
    B, S = nxt.shape
    e = F.linear(rms(F.embedding(nxt.reshape(-1), model.model.embed_tokens.weight), mtp.enorm.weight), mtp.e_proj.weight)
    u = e[:, None] + F.linear(rms(h, mtp.hnorm.weight), mtp.h_proj.weight)
    return layer_forward(mtp.layer, u, nxt.reshape(-1), Ctx.get(model, B, S), False, [], loads)


# =============================================================================================== quantisation
def pow2_scale(amax, top):
    """2^ceil(log2(amax/top)) as an exact power of two (exponent clamped to e8m0 and kept away from subnormals)."""
    m, e = torch.frexp(amax.clamp(min=2.0 ** -100) / top)          # value = m * 2^e, m in [0.5, 1)
    k = torch.where(m == 0.5, e - 1, e).clamp(-126, 127)
    return k


def fp8_parts(w):
    """[N, K] -> e4m3 tensor, exponents [ceil(N/128), ceil(K/128)] (int)."""
    N, K = w.shape
    n, k = -(-N // 128), -(-K // 128)
    p = F.pad(w, (0, k * 128 - K, 0, n * 128 - N)).view(n, 128, k, 128)
    ex = pow2_scale(p.abs().amax((1, 3)), 448.0)
    q = (p / torch.exp2(ex.float())[:, None, :, None]).clamp(-448, 448).reshape(n * 128, k * 128)[:N, :K]
    return q.to(torch.float8_e4m3fn), ex


def fp8_dequant(q, ex):
    s = torch.exp2(ex.float()).repeat_interleave(128, 0)[:q.shape[0]].repeat_interleave(128, 1)[:, :q.shape[1]]
    return q.float() * s


def e2m1_round(x):
    a = x.abs().clamp(max=6.0)
    r = torch.where(a < 2, torch.round(a * 2) / 2, torch.where(a < 4, torch.round(a), torch.round(a / 2) * 2))
    return torch.copysign(r, x)


def fp4_parts(w):
    """[..., K] -> e2m1 values (floats), exponents [..., K/32]."""
    p = w.unflatten(-1, (-1, 32))
    ex = pow2_scale(p.abs().amax(-1), 6.0)
    return e2m1_round(p / torch.exp2(ex.float())[..., None]).flatten(-2), ex


def fp4_dequant(v, ex):
    return (v.unflatten(-1, (-1, 32)) * torch.exp2(ex.float())[..., None]).flatten(-2)


def fp4_codes(v):
    """e2m1 values -> packed bytes (int8), low nibble = even column."""
    lut = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    c = torch.bucketize(v.abs(), lut).to(torch.uint8) | (torch.signbit(v).to(torch.uint8) << 3)
    assert torch.equal(lut[(c & 7).long()], v.abs())
    return (c[..., 0::2] | (c[..., 1::2] << 4)).view(torch.int8)


def fmt_of(name):
    """Final storage format of a parameter, by transformers name."""
    if re.search(r"mlp\.experts\.(gate_up|down)_proj$", name):
        return "fp4"
    if re.search(r"(q_a_proj|q_b_proj|self_attn\.kv_proj|o_a_proj|o_b_proj|shared_experts\.\w+|(^|\.)[eh]_proj)\.weight$", name):
        return "fp8"
    if re.search(r"(_hc\.|hc_head\.|sinks|position_bias|e_score)", name):
        return "f32"
    return "bf16"


@torch.no_grad()
def fake_quant(name, p):
    f = fmt_of(name)
    if f == "fp4":
        return fp4_dequant(*fp4_parts(p))
    if f == "fp8":
        return fp8_dequant(*fp8_parts(p))
    return p.bfloat16().float() if f == "bf16" else p.clone()


class Swap:
    """Straight-through fake quantisation: run with quantised data, give the gradient to the master weights."""
    def __init__(self, named, on):
        self.named, self.on, self.kept = list(named), on, {}

    def __enter__(self):
        if self.on:
            self.saved = [p.data for _, p in self.named]
            for n, p in self.named:
                p.data = self.kept[n] if n in self.kept else fake_quant(n, p.data)

    def __exit__(self, *_):
        if self.on:
            for (n, p), d in zip(self.named, self.saved):
                if p.dim() == 3:                            # routed experts: unchanged until their next update
                    self.kept[n] = p.data
                p.data = d

    def updated(self, with_experts):
        if with_experts:
            self.kept = {}


# =============================================================================================== optimiser
def ns5(G):
    """Newton-Schulz orthogonalisation of a stack [n, r, c] with r <= c."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G / (G.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        A = torch.bmm(X, X.transpose(1, 2))
        X = a * X + torch.bmm(torch.baddbmm(A, A, A, beta=b, alpha=c), X)
    return X


class Muon:
    """Muon for the matrices (stacked by shape), scaled to an update RMS of 0.2 like AdamW's."""
    def __init__(self, named, wd):
        self.ps, self.wd = [p for _, p in named], wd
        self.views = [self.split(n) for n, _ in named]
        self.buf = [torch.zeros_like(p) for p in self.ps]

    @staticmethod
    def split(n):
        if "gate_up_proj" in n:
            return lambda t: t.view(-1, 128, t.shape[-1])          # 2E matrices [I, D]
        if "o_a_proj" in n:
            return lambda t: t.view(2, 128, -1)
        if "q_b_proj" in n:
            return lambda t: t.view(-1, 128, t.shape[-1])          # per head
        return lambda t: t if t.dim() == 3 else t[None]

    @torch.no_grad()
    def step(self, lr, with_experts=True, mom=0.95):
        groups = {}
        for p, v, b in zip(self.ps, self.views, self.buf):
            if p.grad is None or (p.dim() == 3 and not with_experts):
                continue
            b.lerp_(p.grad, 1 - mom)
            g = v(p.grad.lerp(b, mom))
            groups.setdefault((min(g.shape[1:]), max(g.shape[1:])), []).append((v(p.data), g))
        for (r, c), items in groups.items():
            X = ns5(torch.cat([g if g.shape[1] == r else g.transpose(1, 2) for _, g in items]))
            o = 0
            for p, g in items:
                u = X[o:o + len(g)]
                o += len(g)
                p.mul_(1 - lr * self.wd).add_(u if g.shape[1] == r else u.transpose(1, 2), alpha=-lr * 0.2 * c ** 0.5)


def is_muon(n, p):
    return p.dim() >= 2 and not re.search(r"embed_tokens|lm_head|\.gate\.weight|fn$|position_bias|indexer", n)


class Optim:
    def __init__(self, named):
        named = list(named)
        self.named = named
        self.muon = Muon([(n, p) for n, p in named if is_muon(n, p)], wd=0.02)
        rest = [(n, p) for n, p in named if not is_muon(n, p)]
        groups = {}
        for n, p in rest:                                   # learning rate relative to Muon's
            k = (2.0 if "embed" in n else 0.4 if "lm_head" in n else 0.04 if n.endswith("fn") else
                 0.2 if re.search(r"\.gate\.weight|indexer|_hc\.|hc_head", n) else 0.6)
            groups.setdefault(k, []).append(p)
        self.adam = torch.optim.AdamW([{"params": ps, "k": k} for k, ps in sorted(groups.items())],
                                      lr=1e-3, betas=(0.9, 0.97), eps=1e-10, weight_decay=0.0, fused=True)

    def step(self, lr, with_experts=True):
        """The routed experts are updated on every second step from the gradient of both (halves Muon's cost)."""
        self.muon.step(lr, with_experts)
        for g in self.adam.param_groups:
            g["lr"] = lr * g["k"]
        self.adam.step()
        for _, p in self.named:
            if with_experts or p.dim() != 3:
                p.grad = None

    def state(self):
        return {"muon": self.muon.buf, "adam": self.adam.state_dict()}

    def load(self, s):
        for a, b in zip(self.muon.buf, s["muon"]):
            a.copy_(b)
        self.adam.load_state_dict(s["adam"])


def balance(layers, loads, speed):
    """Auxiliary-loss-free balancing: nudge the selection bias towards even use."""
    tot = [l.float() for l in loads]
    out = []
    for layer, l in zip(layers, tot):
        f = l / l.sum() * len(l)
        out.append(f)
        if not layer.mlp.is_hash and speed:
            layer.mlp.gate.e_score_correction_bias += speed * torch.sign(1 - f) * (f - 1).abs().clamp(max=1)
    return out


# =============================================================================================== training
def save_ckpt(work, model, mtp, opt, meta):
    tmp = os.path.join(work, "ckpt.tmp")
    torch.save({"model": model.state_dict(), "mtp": mtp.state_dict(), "opt": opt.state() if opt else None, "meta": meta}, tmp)
    os.replace(tmp, os.path.join(work, "ckpt.pt"))


def quick_eval(model, data, quant, sparse, rows=24, S=512):
    """Gradients stay enabled so that the compiled graphs of training are reused."""
    n = S - 1
    x = np.stack([np.concatenate([[0], data.held[i * n:(i + 1) * n + 1]]) for i in range(rows)]).astype(np.int64)
    x = torch.from_numpy(x)
    tot = 0.0
    with Swap(model.named_parameters(), quant):
        for i in range(0, rows, 4):
            lg = logits_of(model, trunk(model, x[i:i + 4, :-1], sparse, [], []))
            tot += F.cross_entropy(lg, x[i:i + 4, 1:].reshape(-1)).item() * 4
    return tot / rows


def train(a):
    torch.set_num_threads(1)
    tune_malloc()
    torch.manual_seed(0)
    logf = open(a.log, "a", buffering=1)

    def say(*s):
        line = time.strftime("%H:%M:%S ", time.gmtime()) + " ".join(map(str, s))
        print(line, flush=True); logf.write(line + "\n")

    model, mtp = build()
    data = Data(a.work, a.seed)
    meta = {"seconds": 0.0, "steps": 0, "tokens": 0, "mtp_seconds": 0.0, "mtp_tokens": 0, "ended_at": None}
    trunk_named = list(model.named_parameters())
    opt = Optim(trunk_named)
    path = os.path.join(a.work, "ckpt.pt")
    if os.path.exists(path) and not a.fresh:
        c = torch.load(path, weights_only=False)
        model.load_state_dict(c["model"]); mtp.load_state_dict(c["mtp"])
        meta.update(c["meta"])
        if c["opt"]:
            opt.load(c["opt"])
        data.rng = np.random.default_rng(a.seed + meta["steps"])
        say("resumed at step", meta["steps"], "seconds", round(meta["seconds"]))
    say("trunk parameters", sum(p.numel() for p in model.parameters()), "mtp", sum(p.numel() for p in mtp.parameters()),
        "muon", sum(p.numel() for p in opt.muon.ps))
    budget = a.minutes * 60
    if a.until:                                             # wall-clock end of the trunk phase, HH:MM UTC
        hh, mm = map(int, a.until.split(":"))
        now = time.gmtime()
        budget = meta["seconds"] + (hh * 60 + mm) * 60 - (now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec)
    say("trunk budget", round(budget), "s")
    last_save = last_eval = time.time()
    run_loss, run_n, t_report = 0.0, 0, time.time()
    tok_report = 0
    swap = Swap(trunk_named, False)
    while meta["seconds"] < budget and not meta.get("trunk_done"):
        t0 = time.time()
        f = meta["seconds"] / budget
        quant, long = f >= QAT_AT, f >= LONG_AT
        S = SEQ_B if long else SEQ_A
        B = BATCH_TOKENS // S
        lr = LR * min(1.0, (f + 1e-4) / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * f)))
        x = data.batch(B, S)
        aux, loads = [], []
        swap.on = quant
        with swap:
            lg = logits_of(model, trunk(model, x[:, :S], long, aux, loads))
            loss = F.cross_entropy(lg, x[:, 1:S + 1].reshape(-1))
            (loss + (0.3 * sum(aux) if aux else 0)).backward()
        torch.nn.utils.clip_grad_norm_([p for n, p in trunk_named if p.grad is not None], 5.0)
        opt.step(lr, meta["steps"] % 2 == 1)
        swap.updated(meta["steps"] % 2 == 1)
        fr = balance(model.model.layers, loads, 0.003 * (1 - f) + 0.0003)
        meta["seconds"] += time.time() - t0
        meta["steps"] += 1
        meta["tokens"] += B * S
        run_loss += loss.item(); run_n += 1; tok_report += B * S
        if meta["steps"] % 20 == 0 or meta["steps"] < 4:
            dt = time.time() - t_report
            ax = " kl %.3f" % (sum(v.item() for v in aux) / len(aux)) if aux else ""
            say(f"step {meta['steps']} f {f:.3f} loss {run_loss / run_n:.4f}{ax} lr {lr:.5f} tok/s {tok_report / dt:.0f} "
                f"load max {max(v.max().item() for v in fr[2:]):.2f} min {min(v.min().item() for v in fr[2:]):.2f}")
            run_loss, run_n, tok_report, t_report = 0.0, 0, 0, time.time()
        if time.time() - last_save > 150:
            save_ckpt(a.work, model, mtp, opt, meta); last_save = time.time()
        if time.time() - last_eval > 1500:
            say(f"heldout loss {quick_eval(model, data, quant, long):.4f} (quant {quant}, sparse {long})")
            last_eval = time.time()
    meta["trunk_done"] = True
    say(f"trunk done: heldout loss {quick_eval(model, data, True, True, rows=48):.4f} (quantised, sparse); tokens {meta['tokens']}")
    save_ckpt(a.work, model, mtp, None, meta)
    if not a.mtp_minutes:
        return
    # ---------------------------------------------------------------- MTP, trunk frozen and quantised
    if not meta.get("mtp_init"):
        with torch.no_grad():
            src = dict(model.model.layers[0].named_parameters())
            moe_src = dict(model.model.layers[-1].named_parameters())
            for n, p in mtp.layer.named_parameters():
                p.copy_((moe_src if n.startswith("mlp") or "post_attention" in n else src)[n])
            mtp.layer.mlp.gate.e_score_correction_bias.copy_(model.model.layers[-1].mlp.gate.e_score_correction_bias)
            mtp.hc_head.load_state_dict(model.model.hc_head.state_dict())
            mtp.norm.load_state_dict(model.model.norm.state_dict())
            eye = torch.eye(CONFIG["hidden_size"])
            mtp.h_proj.weight.copy_(0.5 * eye); mtp.e_proj.weight.copy_(0.5 * eye)
        meta["mtp_init"] = True
    with torch.no_grad():
        for n, p in trunk_named:
            p.copy_(fake_quant(n, p))
    named = [("mtp." + n, p) for n, p in mtp.named_parameters()]
    model.lm_head.weight.requires_grad_(False)
    opt = Optim(named)
    mb = a.mtp_minutes * 60
    n, run, hit = 0, 0.0, 0.0
    t_report = time.time()
    while meta["mtp_seconds"] < mb:
        t0 = time.time()
        f = meta["mtp_seconds"] / mb
        S = 512
        x = data.batch(BATCH_TOKENS // S, S)
        h = trunk(model, x[:, :S], True, [], []).detach()   # gradients enabled: reuses the compiled graphs
        loads = []
        with Swap(named, True):
            hm = mtp_streams(model, mtp, h, x[:, 1:S + 1], loads)
            lg = logits_of(model, hm, mtp.hc_head, mtp.norm)
            loss = F.cross_entropy(lg, x[:, 2:S + 2].reshape(-1))
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 5.0)
        opt.step(2e-3 * min(1.0, (f + 1e-3) / 0.05) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * f))))
        balance([mtp.layer], loads, 0.001)
        meta["mtp_seconds"] += time.time() - t0
        meta["mtp_tokens"] += BATCH_TOKENS
        n += 1; run += loss.item(); hit += (lg.argmax(-1) == x[:, 2:S + 2].reshape(-1)).float().mean().item()
        if n % 10 == 0:
            say(f"mtp f {f:.3f} loss {run / 10:.4f} top1 {hit / 10:.3f} tok/s {10 * BATCH_TOKENS / (time.time() - t_report):.0f}")
            run = hit = 0.0
            t_report = time.time()
        if time.time() - last_save > 100:
            save_ckpt(a.work, model, mtp, None, meta); last_save = time.time()
    save_ckpt(a.work, model, mtp, None, meta)
    say("all done")


# =============================================================================================== export
def layer_map(p):
    """transformers layer name -> official name, for one-to-one tensors."""
    a = p + "attn."
    m = {"input_layernorm.weight": p + "attn_norm.weight", "post_attention_layernorm.weight": p + "ffn_norm.weight",
         "self_attn.sinks": a + "attn_sink", "self_attn.q_a_proj.weight": a + "wq_a.weight", "self_attn.q_a_norm.weight": a + "q_norm.weight",
         "self_attn.q_b_proj.weight": a + "wq_b.weight", "self_attn.kv_proj.weight": a + "wkv.weight", "self_attn.kv_norm.weight": a + "kv_norm.weight",
         "self_attn.o_a_proj.weight": a + "wo_a.weight", "self_attn.o_b_proj.weight": a + "wo_b.weight",
         "mlp.gate.weight": p + "ffn.gate.weight", "mlp.gate.e_score_correction_bias": p + "ffn.gate.bias", "mlp.gate.tid2eid": p + "ffn.gate.tid2eid"}
    for hf, off in (("self_attn.compressor.", a + "compressor."), ("self_attn.compressor.indexer.", a + "indexer.compressor.")):
        m.update({hf + "kv_proj.weight": off + "wkv.weight", hf + "gate_proj.weight": off + "wgate.weight",
                  hf + "position_bias": off + "ape", hf + "kv_norm.weight": off + "norm.weight"})
    m["self_attn.compressor.indexer.q_b_proj.weight"] = a + "indexer.wq_b.weight"
    m["self_attn.compressor.indexer.scorer.weights_proj.weight"] = a + "indexer.weights_proj.weight"
    for s in ("attn", "ffn"):
        for k in ("fn", "base", "scale"):
            m[f"{s}_hc.{k}"] = f"{p}hc_{s}_{k}"
    for hf, off in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        m[f"mlp.shared_experts.{hf}.weight"] = f"{p}ffn.shared_experts.{off}.weight"
    return m


def official_tensors(model, mtp):
    """-> {official name: (safetensors dtype, numpy-able tensor)}"""
    out = {}

    def put(official, hf, t):
        t = t.detach().float() if t.is_floating_point() else t
        f = fmt_of(hf)
        if not t.is_floating_point():
            out[official] = ("I64", t)
        elif f == "fp8":
            q, ex = fp8_parts(t)
            out[official] = ("F8_E4M3", q.view(torch.uint8))
            out[official[:-6] + "scale"] = ("F8_E8M0", (ex + 127).to(torch.uint8))
        elif f == "f32":
            out[official] = ("F32", t)
        else:
            out[official] = ("BF16", t.bfloat16().view(torch.int16))

    def put_fp4(official, t):
        v, ex = fp4_parts(t.detach().float())
        out[official + ".weight"] = ("I8", fp4_codes(v))
        out[official + ".scale"] = ("F8_E8M0", (ex + 127).to(torch.uint8))

    def put_layer(prefix, layer):
        lm = layer_map(prefix)
        for n, t in layer.state_dict().items():
            if n == "mlp.experts.gate_up_proj":
                for e in range(t.shape[0]):
                    put_fp4(f"{prefix}ffn.experts.{e}.w1", t[e, :128])
                    put_fp4(f"{prefix}ffn.experts.{e}.w3", t[e, 128:])
            elif n == "mlp.experts.down_proj":
                for e in range(t.shape[0]):
                    put_fp4(f"{prefix}ffn.experts.{e}.w2", t[e])
            else:
                put(lm[n], n, t)

    def put_head(prefix, hd, norm):
        for k in ("fn", "base", "scale"):
            out[f"{prefix}hc_head_{k}"] = ("F32", getattr(hd, "hc_" + k).detach().float())
        put(prefix + "norm.weight", "norm.weight", norm.weight)

    put("embed.weight", "embed_tokens.weight", model.model.embed_tokens.weight)
    put("head.weight", "lm_head.weight", model.lm_head.weight)
    put_head("", model.model.hc_head, model.model.norm)
    for l, layer in enumerate(model.model.layers):
        put_layer(f"layers.{l}.", layer)
    put_layer("mtp.0.", mtp.layer)
    put_head("mtp.0.", mtp.hc_head, mtp.norm)
    for n in ("enorm", "hnorm", "e_proj", "h_proj"):
        put(f"mtp.0.{n}.weight", n + ".weight", getattr(mtp, n).weight)
    return out


def write_safetensors(path, tensors):
    """Plain writer (the python package has no E8M0 on every version). Larger elements first, names sorted."""
    size = {"I64": 8, "F32": 4, "BF16": 2}
    names = sorted(tensors, key=lambda n: (-size.get(tensors[n][0], 1), n))
    head, off, blobs = {"__metadata__": {"format": "pt"}}, 0, []
    for n in names:
        dt, t = tensors[n]
        b = t.contiguous().numpy().tobytes()
        head[n] = {"dtype": dt, "shape": list(t.shape), "data_offsets": [off, off + len(b)]}
        off += len(b)
        blobs.append(b)
    j = json.dumps(head, separators=(",", ":")).encode()
    j += b" " * (-len(j) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(j)) + j)
        for b in blobs:
            f.write(b)
    return off


def export(a):
    torch.set_num_threads(1)
    model, mtp = build()
    c = torch.load(os.path.join(a.work, "ckpt.pt"), weights_only=False) if not a.untrained else None
    if c:
        model.load_state_dict(c["model"]); mtp.load_state_dict(c["mtp"])
    os.makedirs(a.out, exist_ok=True)
    tmp = tempfile.mkdtemp(prefix=".new-", dir=a.out)
    os.chmod(tmp, 0o755)
    n = write_safetensors(os.path.join(tmp, "model.safetensors"), official_tensors(model, mtp))
    json.dump(CONFIG, open(os.path.join(tmp, "config.json"), "w"), indent=2)
    shutil.copy(os.path.join(a.work, "tokenizer.json"), tmp)
    shutil.copy(os.path.join(a.work, "heldout.txt"), tmp)
    tk = lambda s: {"__type": "AddedToken", "content": s, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    json.dump({"add_bos_token": False, "add_eos_token": False, "bos_token": tk(BOS), "clean_up_tokenization_spaces": False,
               "eos_token": tk(EOS), "legacy": True, "model_max_length": CONFIG["max_position_embeddings"], "pad_token": tk(EOS),
               "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "PreTrainedTokenizerFast"},
              open(os.path.join(tmp, "tokenizer_config.json"), "w"), indent=2, ensure_ascii=False)
    json.dump({"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0,
               "top_p": 1.0, "transformers_version": "4.57.1"}, open(os.path.join(tmp, "generation_config.json"), "w"), indent=2)
    for f in os.listdir(tmp):
        os.chmod(os.path.join(tmp, f), 0o644)
        os.replace(os.path.join(tmp, f), os.path.join(a.out, f))
    os.rmdir(tmp)
    print("exported", n, "bytes of tensors;", json.dumps(c["meta"]) if c else "untrained")


# =============================================================================================== evaluation
def read_official(path):
    """-> {name: float tensor}, dequantised by the rules of the official checkpoint."""
    b = open(path, "rb").read()
    n = struct.unpack("<Q", b[:8])[0]
    head = json.loads(b[8:8 + n])
    head.pop("__metadata__", None)
    raw = {}
    np_t = {"F32": np.float32, "I64": np.int64, "BF16": np.uint16, "I8": np.uint8, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8}
    for k, v in head.items():
        x = np.frombuffer(b, np_t[v["dtype"]], offset=8 + n + v["data_offsets"][0], count=int(np.prod(v["shape"]))).reshape(v["shape"])
        raw[k] = (v["dtype"], x)
    c = np.arange(256)
    e, m = (c >> 3) & 15, c & 7
    e4m3 = np.where(e == 0, m * 2.0 ** -9, (1 + m / 8) * 2.0 ** (e - 7.0)) * np.where(c & 128, -1, 1)
    e4m3[[0x7F, 0xFF]] = np.nan
    e2m1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6])
    out = {}
    for k, (dt, x) in raw.items():
        if k.endswith(".scale") and k[:-5] + "weight" in raw:
            continue
        if dt in ("F8_E4M3", "I8"):
            s = 2.0 ** (raw[k[:-6] + "scale"][1].astype(np.float64) - 127)
            if dt == "F8_E4M3":
                s = np.repeat(np.repeat(s, 128, 0), 128, 1)[:x.shape[0], :x.shape[1]]
                v = e4m3[x] * s
            else:
                q = np.empty((x.shape[0], 2 * x.shape[1]))
                q[:, 0::2], q[:, 1::2] = e2m1[x & 15], e2m1[x >> 4]
                v = q * np.repeat(s, 32, 1)
            assert np.isfinite(v).all(), k
            out[k] = torch.from_numpy(v.astype(np.float32))
        elif dt == "BF16":
            out[k] = torch.from_numpy((x.astype(np.uint32) << 16).view(np.float32))
        else:
            out[k] = torch.from_numpy(x.copy())
    return out


def load_exported(out):
    """Unpatched transformers model filled from the exported file; every tensor must be used exactly once."""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
    cfg = json.load(open(os.path.join(out, "config.json")))
    cfg.pop("quantization_config"); cfg.pop("expert_dtype")
    cfg = DeepseekV4Config(**cfg)
    cfg._attn_implementation = "eager"
    model = DeepseekV4ForCausalLM(cfg).float().eval()
    t = read_official(os.path.join(out, "model.safetensors"))
    sd, used = {}, set()

    def take(k):
        used.add(k)
        return t[k]

    sd["model.embed_tokens.weight"], sd["lm_head.weight"], sd["model.norm.weight"] = take("embed.weight"), take("head.weight"), take("norm.weight")
    for k in ("fn", "base", "scale"):
        sd["model.hc_head.hc_" + k] = take("hc_head_" + k)
    for l in range(cfg.num_hidden_layers):
        p, hp = f"layers.{l}.", f"model.layers.{l}."
        for hf, off in layer_map(p).items():
            if off in t:
                sd[hp + hf] = take(off)
        E = cfg.n_routed_experts
        sd[hp + "mlp.experts.gate_up_proj"] = torch.stack([torch.cat([take(f"{p}ffn.experts.{e}.w1.weight"), take(f"{p}ffn.experts.{e}.w3.weight")]) for e in range(E)])
        sd[hp + "mlp.experts.down_proj"] = torch.stack([take(f"{p}ffn.experts.{e}.w2.weight") for e in range(E)])
    left = [k for k in t if k not in used and not k.startswith("mtp.")]
    assert not left, left
    missing, unexpected = model.load_state_dict(sd, strict=False)
    assert not unexpected and not [m for m in missing if "inv_freq" not in m], (missing, unexpected)
    return model, t


def load_exported_mtp(t):
    mtp = MTP(mtp_config()).float().eval()
    p, sd = "mtp.0.", {}
    for hf, off in layer_map(p).items():
        if off in t:
            sd["layer." + hf] = t[off]
    E = CONFIG["n_routed_experts"]
    sd["layer.mlp.experts.gate_up_proj"] = torch.stack([torch.cat([t[f"{p}ffn.experts.{e}.w1.weight"], t[f"{p}ffn.experts.{e}.w3.weight"]]) for e in range(E)])
    sd["layer.mlp.experts.down_proj"] = torch.stack([t[f"{p}ffn.experts.{e}.w2.weight"] for e in range(E)])
    for n in ("enorm", "hnorm", "norm", "e_proj", "h_proj"):
        sd[n + ".weight"] = t[f"{p}{n}.weight"]
    for k in ("fn", "base", "scale"):
        sd["hc_head.hc_" + k] = t[f"{p}hc_head_{k}"]
    mtp.load_state_dict(sd)
    return mtp


def names_check(out, t, model):
    """transformers' own loading rules for the official names, fed with the dequantised tensors, give the same model."""
    from safetensors.torch import save_file
    from transformers import DeepseekV4ForCausalLM
    with tempfile.TemporaryDirectory() as d:
        save_file({k: v.contiguous() for k, v in t.items()}, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        cfg = json.load(open(os.path.join(out, "config.json")))
        cfg.pop("quantization_config"); cfg.pop("expert_dtype")
        json.dump(cfg, open(os.path.join(d, "config.json"), "w"))
        other = DeepseekV4ForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager")
    x, y = model.state_dict(), other.state_dict()
    bad = [k for k in x if k not in y or not torch.equal(x[k].float(), y[k].float())]
    return "all %d tensors equal" % len(x) if not bad else "DIFFER: " + ", ".join(bad[:8])


@torch.no_grad()
def generate(model, ids, n, temp, seed, eos=1):
    g = torch.Generator().manual_seed(seed)
    past, cur, out = None, torch.tensor([ids]), []
    for _ in range(n):
        r = model(input_ids=cur, past_key_values=past, use_cache=True)
        past = r.past_key_values
        lg = r.logits[0, -1]
        t = int(lg.argmax()) if temp == 0 else int(torch.multinomial((lg / temp).softmax(-1), 1, generator=g))
        out.append(t)
        if t == eos:
            break
        cur = torch.tensor([[t]])
    return out


def evaluate(a):
    torch.set_num_threads(1)
    model, t = load_exported(a.out)
    tok = load_tokenizer(os.path.join(a.out, "tokenizer.json"))
    ids = tok.encode(open(os.path.join(a.out, "heldout.txt")).read()).ids
    files = {f: os.path.getsize(os.path.join(a.out, f)) for f in sorted(os.listdir(a.out)) if os.path.isfile(os.path.join(a.out, f)) and f[0] != "."}
    if a.limit:
        ids = ids[:a.limit]
    res = json.load(open(a.json)) if a.mtp_only else {}
    res["files"] = files
    if not a.mtp_only:
        evaluate_trunk(a, model, t, tok, ids, res)
    # fast forward against transformers; MTP: how often its argmax equals the trunk's own choice one token later
    with torch.no_grad():
        mtp = load_exported_mtp(t)
        R = min(16, len(ids) // 511)
        X = torch.tensor([[0] + ids[i * 511:(i + 1) * 511] for i in range(R)])
        loads = []
        h = trunk(model, X, True, [], loads)
        lg = logits_of(model, h).view(R, 512, -1)
        ref = model(input_ids=X[:1], use_cache=False).logits[0]
        res["fast_forward_max_difference"] = (ref - lg[0]).abs().max().item()
        hm = mtp_streams(model, mtp, h, torch.cat([X[:, 1:], X[:, :1]], 1), [])
        ml = logits_of(model, hm, mtp.hc_head, mtp.norm).view(R, 512, -1)[:, :-2]
        res["mtp"] = {"nll_of_t_plus_2": F.cross_entropy(ml.reshape(-1, VOCAB), X[:, 2:].reshape(-1)).item(),
                      "agrees_with_trunk_argmax": (ml.argmax(-1) == lg[:, 1:-1].argmax(-1)).float().mean().item()}
        res["expert_share_min_max"] = [[round(v.min().item() / v.sum().item(), 4), round(v.max().item() / v.sum().item(), 4)] for v in (l.float() for l in loads)]
    print(json.dumps(res, indent=1, ensure_ascii=False))
    if a.json:
        json.dump(res, open(a.json, "w"), indent=1, ensure_ascii=False)


def evaluate_trunk(a, model, t, tok, ids, res):
    res["names_check"] = names_check(a.out, t, model)
    C = 512
    nll, cnt = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(ids), C - 1):
            chunk = ids[i:i + C - 1]                        # BOS + 511 tokens: every text token predicted once
            x = torch.tensor([[0] + chunk])
            lg = model(input_ids=x, use_cache=False).logits[0, :-1]
            nll += F.cross_entropy(lg, x[0, 1:], reduction="sum").item()
            cnt += len(chunk)
    res["heldout"] = {"chunk": C, "tokens": cnt, "nll_sum": nll, "nll": nll / cnt, "perplexity": math.exp(nll / cnt),
                      "bits_per_byte": nll / math.log(2) / len(tok.decode(ids).encode())}
    prompts = ["In the beginning", "And it came to pass, when the king heard the words of the prophet,"]
    chats = [BOS + USER + "Tell me about David." + ASSIST + ENDTHINK, BOS + USER + "Hello!" + ASSIST + ENDTHINK,
             BOS + USER + "Write a short story about the sea." + ASSIST + THINK]
    res["samples"] = []
    for p in prompts + chats:
        pid = tok.encode(p).ids
        for temp in (0.0, 0.7):
            o = generate(model, pid, a.new_tokens, temp, 1)
            res["samples"].append({"prompt": p, "temperature": temp, "text": tok.decode(o, skip_special_tokens=False), "ids": o[:8]})


def readme(a):
    """models/demo/README.md from the evaluation's JSON and the training meta data."""
    r = json.load(open(a.json))
    meta = torch.load(os.path.join(a.work, "ckpt.pt"), weights_only=False)["meta"]
    t = read_official(os.path.join(a.out, "model.safetensors"))
    n_all = sum(v.numel() for v in t.values() if v.is_floating_point())
    n_mtp = sum(v.numel() for k, v in t.items() if k.startswith("mtp.") and v.is_floating_point())
    E, K = CONFIG["n_routed_experts"], CONFIG["num_experts_per_tok"]
    routed = sum(v.numel() for k, v in t.items() if ".experts." in k and not k.startswith("mtp."))
    active = n_all - n_mtp - routed + routed * K // E - t["embed.weight"].numel()
    h, m = r["heldout"], r["mtp"]
    rows = [
        ("architecture", "DeepSeek-V4, official checkpoint form (flat `config.json`, official tensor names)"),
        ("layers", f"{CONFIG['num_hidden_layers']} + 1 MTP; compress ratios {CONFIG['compress_ratios']} (last: MTP); hash-routed layers 0 and 1"),
        ("width", "hidden 256, 4 heads x 128 (64 rotary), q rank 128, 2 output groups x 128, window 64"),
        ("MoE", f"{E} routed experts (top {K}) + 1 shared, intermediate 128"),
        ("indexer", "16 heads x 64, top 32; trained by a KL loss towards the attention mass (stopped gradients), phase B only"),
        ("mHC", "4 streams, 20 Sinkhorn iterations"),
        ("context", "16384 positions by YaRN (x16 over 1024); trained on sequences of 256, then 512: quality far beyond 512 is not claimed"),
        ("parameters", f"{n_all / 1e6:.2f} M in the file, of which MTP {n_mtp / 1e6:.2f} M; about {active / 1e6:.2f} M used per token (embedding rows not counted)"),
        ("formats", "routed experts FP4 (E2M1 + E8M0 per 32), attention/shared/MTP matrices FP8 (E4M3 + E8M0 per 128x128), BF16 and F32 for the rest"),
        ("vocabulary", f"{VOCAB}, byte-level BPE, DeepSeek's pre-tokenizer, V4 special tokens"),
        ("training", f"{meta['steps']} steps, {meta['tokens']:,} tokens, {meta['seconds'] / 60:.0f} minutes of wall clock on a shared CPU core (trunk); MTP {meta['mtp_tokens']:,} tokens, {meta['mtp_seconds'] / 60:.0f} minutes, trunk frozen"),
        ("fake quantisation", f"weights, straight-through, from {QAT_AT:.0%} of the trunk's time on; none on activations"),
        ("held-out loss", f"**{h['nll']:.4f}** nats per token"),
        ("held-out perplexity", f"**{h['perplexity']:.3f}** (exported file, dequantised, unpatched transformers, fp32)"),
        ("held-out tokens / NLL sum / bits per byte", f"{h['tokens']} / {h['nll_sum']:.2f} / {h['bits_per_byte']:.3f}"),
        ("MTP, held-out", f"loss of t+2: {m['nll_of_t_plus_2']:.3f}; argmax equals the trunk's own next argmax for {m['agrees_with_trunk_argmax']:.1%} of positions"),
        ("expert shares min/max per layer", "; ".join(f"{x[0]:.1%}..{x[1]:.1%}" for x in r["expert_share_min_max"]) + f" (even: {1 / E:.1%})"),
    ]
    size = sum(r["files"].get(f, 0) for f in ("config.json", "generation_config.json", "heldout.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json"))
    out = ["# Demo model", "",
           "A very small DeepSeek-V4 made from scratch by `scripts/train_demo_model.py`, so that Thermocline can be tried, tested and",
           "demonstrated without a download. It has every structural part of the real architecture and nothing of its knowledge: it read",
           "one book for about an hour and writes in its manner. Do not expect answers; sample at a temperature (greedy text repeats itself).", "",
           "| | |", "|---|---|"] + [f"| {a_} | {b_} |" for a_, b_ in rows]
    out += ["", "## Text and licence", "",
            "Text: the King James Bible as packaged in Debian's `bible-kjv-text` 4.38 (Debian 12, main). Its copyright file states that the",
            "copyright of the text is expired (the translation is of 1611; in the United Kingdom the Crown's letters patent on printing it",
            "still exist), and the package's README lets anyone copy, modify and distribute the retrieval system's files at will. The package's GPL-2+ reader program was only used",
            "to print the text and is not included. The weights, `tokenizer.json` and `heldout.txt` in this folder come from that text alone (and from",
            "short question templates in the script); they carry the licence of this repository.",
            "5% of the chapters (60 of 1189) were held out; they are `heldout.txt`. About a quarter of the training samples are in the V4 chat format.", "",
            "## How the perplexity is computed", "",
            "`heldout.txt` is tokenized as a whole (no special tokens) and cut into contiguous chunks of 511 tokens; each chunk is run by itself as",
            "BOS + chunk (512 tokens) and every one of its tokens is predicted and counted (the last chunk is shorter). Loss = sum of NLL / tokens.", "",
            "    python scripts/train_demo_model.py evaluate --out models/demo", "",
            f"Loading the official names by transformers' own rules (dequantised tensors): {r['names_check']}. Largest logit difference between the fast",
            f"forward used for training and transformers: {r['fast_forward_max_difference']:.1e}.", "",
            "## Samples (exported model in transformers)", ""]
    for x in r["samples"]:
        out += [f"Prompt `{x['prompt']}`, " + ("greedy" if x["temperature"] == 0 else f"temperature {x['temperature']}") + ":", ""]
        out += ["> " + l for l in (x["text"].strip("\n").split("\n") or [""])] + [""]
    out += ["## Files", "", "| file | bytes |", "|---|---:|"] + [f"| {k} | {v} |" for k, v in r["files"].items() if k != "README.md"]
    out += [f"| together | {size} |", ""]
    tmp = os.path.join(a.out, ".README.new")
    open(tmp, "w").write("\n".join(out))
    os.replace(tmp, os.path.join(a.out, "README.md"))


def check(a):
    """The fast forward equals transformers, dense (S=256, topk covers half) and sparse."""
    torch.set_num_threads(1)
    model, mtp = build()
    with torch.no_grad():
        g = torch.Generator().manual_seed(3)
        for n, p in model.named_parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.05 * (1 if "norm" not in n else 2))
        x = torch.randint(0, VOCAB, (2, 512), generator=g)
        t0 = time.time(); ref = model(input_ids=x, use_cache=False).logits; t1 = time.time()
        got = logits_of(model, trunk(model, x, True, [], [])).view_as(ref); t2 = time.time()
        print("sparse: max difference", (ref - got).abs().max().item(), "of", ref.abs().max().item(), f"hf {t1 - t0:.1f}s fast {t2 - t1:.1f}s")
        x = x[:, :128]
        ref = model(input_ids=x, use_cache=False).logits
        got = logits_of(model, trunk(model, x, False, [], [])).view_as(ref)
        print("dense:  max difference", (ref - got).abs().max().item())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("cmd", choices=["prepare", "train", "export", "evaluate", "readme", "check"])
    ap.add_argument("--work", default="build/demo-model")
    ap.add_argument("--out", default="models/demo")
    ap.add_argument("--minutes", type=float, default=75, help="trunk training time; the schedule ends exactly there")
    ap.add_argument("--until", default="", help="instead of --minutes: end of the trunk phase, HH:MM UTC")
    ap.add_argument("--mtp-minutes", type=float, default=8)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--fresh", action="store_true", help="do not resume from ckpt.pt")
    ap.add_argument("--log", default=None)
    ap.add_argument("--untrained", action="store_true", help="export: random weights (shapes only)")
    ap.add_argument("--new-tokens", type=int, default=80)
    ap.add_argument("--limit", type=int, default=0, help="evaluate: only this many tokens of heldout.txt")
    ap.add_argument("--mtp-only", action="store_true", help="evaluate: only the MTP figures, the rest from --json FILE")
    ap.add_argument("--json", default=None, help="evaluate: also write the result here")
    a = ap.parse_args()
    a.log = a.log or os.path.join(a.work, "train.log")
    {"prepare": lambda: prepare(a.work, a.out), "train": lambda: train(a), "export": lambda: export(a),
     "evaluate": lambda: evaluate(a), "readme": lambda: readme(a), "check": lambda: check(a)}[a.cmd]()


if __name__ == "__main__":
    main()
