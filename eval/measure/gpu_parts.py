"""The parts of `python -m eval.measure.gpu_check`: each measures with what the other commands of this folder have.

A part gets a `Findings` to write to and a `Setting` that says where and how large. What it adds is on disk at once, so
that a part that is stopped or crashes leaves what it measured.
"""

import importlib
import json
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import hsd
from eagle import EagleModel
from eagle.checkpoints.pairs import DEMO, Pair, pair_names, resolve_pair
from eagle.files import write_whole
from eagle.nn import tree_attention
from eagle.nn.precision import DTYPES
from eagle.trees import TREES
from eval.measure import batch, step_time, verification
from eval.provenance import REPOSITORY
from eval.run import methods
from eval.run.load_models import load
from eval.run.methods import padded, seconds_of, verifiers_of

EXACT = 1e-5  # largest difference of a probability between float32 on the device and float64 on the CPU
STEP_MS, STEP_CONTEXT = 7.0, 512  # bar of a step of the 8B shape, and the context it is meant for
VERIFICATION_SHARE = 0.01
RECORDED_TREES = REPOSITORY / "tests" / "golden" / "trees.safetensors"
DECODED = ("plain", "topk+token", "hybrid+hsd")


class Setting(NamedTuple):
    """Where a part runs and how large: the GPU's sizes, or those of a dry run.

    shape      flags of `eval.measure.step_time` that name the random pair; `short` those of a shallower one
    contexts   tokens before a step; nodes, depth: of the trees that are timed; steps, rounds: per variant
    heads      query heads, key/value heads and head size of the attention
    """

    device: torch.device
    dtype: str
    shape: tuple[str, ...]
    short: tuple[str, ...]
    contexts: tuple[int, ...]
    nodes: int
    depth: int
    steps: int
    rounds: int
    heads: tuple[int, int, int]
    vocabulary: tuple[int, int]
    seeds: int
    tokens: int
    problems: int
    batches: tuple[int, ...]
    repeats: int


def setting(dry: bool) -> Setting:
    """The sizes. Raises ValueError without a CUDA device where none was allowed for."""
    if dry:
        torch.set_num_threads(1)
        shape = ("--shape", "demo", "--layers", "8")
        return Setting(
            device=torch.device("cpu"),
            dtype="float32",
            shape=shape,
            short=shape,
            contexts=(80, 96, 128),
            nodes=9,
            depth=3,
            steps=2,
            rounds=1,
            heads=(4, 2, 16),
            vocabulary=(500, 200),
            seeds=2,
            tokens=6,
            problems=1,
            batches=(1, 4),
            repeats=3,
        )
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; run with --dry-run on a CPU")
    return Setting(
        device=torch.device("cuda", 0),
        dtype="bfloat16",
        shape=("--shape", "llama-3.1-8b"),
        short=("--shape", "llama-3.1-8b", "--layers", "8"),
        contexts=(STEP_CONTEXT, 2048, 8192),
        nodes=60,
        depth=7,
        steps=10,
        rounds=3,
        heads=(32, 8, 128),
        vocabulary=(128_256, 32_000),
        seeds=4,
        tokens=96,
        problems=3,
        batches=(1, 4, 16, 64),
        repeats=21,
    )


class Findings:
    """What one part found, written whole to `file` at every change.

    summary   one line; skipped: why nothing was measured
    rows      what was measured; notes: what a reader must know
    checks    {what, found, met}; met None where it could not be judged here
    """

    def __init__(self, file: Path):
        self.file = file
        self.content: dict[str, Any] = {"summary": "", "skipped": None, "rows": [], "notes": [], "checks": []}

    def save(self) -> None:
        """Write everything."""
        write_whole(self.file, json.dumps(self.content, indent=1))

    def set(self, **fields: Any) -> None:
        """Replace `summary` or `skipped`."""
        self.content.update(fields)
        self.save()

    def row(self, **row: Any) -> None:
        """Add a row, and print it to the log."""
        self.content["rows"].append(row)
        print(json.dumps(row), flush=True)
        self.save()

    def note(self, text: str) -> None:
        """Add a note."""
        self.content["notes"].append(text)
        self.save()

    def check(self, what: str, found: str, met: bool | None) -> None:
        """Add a check."""
        self.content["checks"].append({"what": what, "found": found, "met": met})
        self.save()


# The tests ---------------------------------------------------------------------------------------------------------


class TestRecorder:
    """A pytest plugin: a row per test that ran, failed or was skipped."""

    __test__ = False

    def __init__(self, findings: Findings):
        self.findings = findings

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for setup, call and teardown of every test."""
        if report.when == "call" or report.outcome != "passed":
            why = "" if report.outcome == "passed" else str(report.longrepr)[-400:]
            self.findings.row(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), why=why)

    def pytest_collectreport(self, report: Any) -> None:
        """Called for every file; one that cannot be imported counts as failed."""
        if report.failed:
            self.findings.row(test=report.nodeid, outcome="failed", seconds=0.0, why=str(report.longrepr)[-400:])


def gpu_tests(findings: Findings, at: Setting) -> None:
    """Every test file that marks a test `gpu`, by pytest in this process."""
    if find_spec("pytest") is None:
        findings.set(skipped="pytest is not installed")
        return
    pytest = importlib.import_module("pytest")  # only where it is installed: no dependency of the package

    files = [path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    names = [str(path.relative_to(REPOSITORY)) for path in files]
    options = ["-m", "gpu", "-v", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY)]
    pytest.main([*options, *names], plugins=[TestRecorder(findings)])
    outcomes = [row["outcome"] for row in findings.content["rows"]]
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    findings.set(summary=f"{found} in {', '.join(Path(name).name for name in names)}")
    met = counts["failed"] == 0 and counts["passed"] > 0
    findings.check("the tests marked gpu pass", found, met if at.device.type == "cuda" else None)


# Exactness ---------------------------------------------------------------------------------------------------------


def recorded_trees() -> Iterator[tuple[str, hsd.DraftTree, Tensor]]:
    """(name, tree, target probs) of every tree that the golden tests recorded."""
    found = load_file(RECORDED_TREES) if RECORDED_TREES.is_file() else {}
    for name in sorted({key.split(".")[0] for key in found}):
        tokens, parents, rows = (found[f"{name}.{field}"] for field in ("tokens", "parents", "proposal_rows"))
        proposals, support = found.get(f"{name}.proposals"), found.get(f"{name}.support")
        yield (
            f"recorded {name}",
            hsd.DraftTree(tokens, parents, rows, proposals, support),
            found[f"{name}.target_probs"],
        )


def random_trees(at: Setting) -> Iterator[tuple[str, hsd.DraftTree, Tensor]]:
    """60-node trees of `eval.measure.verification`, with a draft vocabulary and without."""
    full, draft = at.vocabulary
    for seed in range(at.seeds):
        for width in (full, draft):
            tree, logits = verification.hybrid_tree(full, width, "cpu", seed)
            yield f"random {seed}, q on {width:,} of {full:,} tokens", tree, logits.softmax(-1)


def placed(tree: hsd.DraftTree, device: torch.device, dtype: torch.dtype) -> hsd.DraftTree:
    """The same tree on a device, its draft distributions in `dtype`."""
    proposals = None if tree.proposals is None else tree.proposals.to(device, dtype)
    support = None if tree.support is None else tree.support.to(device)
    tokens, parents, rows = (x.to(device) for x in (tree.tokens, tree.parents, tree.proposal_rows))
    return hsd.DraftTree(tokens, parents, rows, proposals, support, tree.layout)


def verifiers_for(tree: hsd.DraftTree) -> list[str]:
    """The verifiers whose stopping distribution is compared."""
    chain = tree.parents.tolist() == list(range(-1, len(tree) - 1))
    return verifiers_of("chain" if chain else "multi")


def exactness(findings: Findings, at: Setting) -> None:
    """Stopping distributions and residuals in float32 on the device against float64 on the CPU."""
    if not RECORDED_TREES.is_file():
        findings.note(f"{RECORDED_TREES.relative_to(REPOSITORY)} is not here: random trees only")
    cpu, worst = torch.device("cpu"), 0.0
    for name, tree, probs in (*recorded_trees(), *random_trees(at)):
        for verifier in verifiers_for(tree):
            exact = hsd.stopping_law(placed(tree, cpu, torch.float64), probs.double(), verifier)
            found = hsd.stopping_law(placed(tree, at.device, torch.float32), probs.float().to(at.device), verifier)
            stop = (found.stop.double().cpu() - exact.stop).abs().max().item()
            likely = int(exact.stop.argmax())
            residual = (found.residual(likely).double().cpu() - exact.residual(likely)).abs().max().item()
            expected = abs(found.expected_accepted.item() - exact.expected_accepted.item())
            findings.row(tree=name, verifier=verifier, stop=stop, residual=residual, expected_accepted=expected)
            worst = max(worst, stop, residual)
    rows = findings.content["rows"]
    findings.set(summary=f"{len(rows)} trees x verifiers, largest difference of a probability {worst:.1e}")
    findings.check(f"stopping distributions and residuals equal to {EXACT:g}", f"{worst:.1e}", worst <= EXACT)


# CUDA graphs -------------------------------------------------------------------------------------------------------


def graph_tokens(engine: EagleModel, prompts: list[list[int]], tree: str, temperature: float, **options: Any) -> Any:
    """New tokens per row, and three numbers that show where the generator stands afterwards."""
    ids, mask = padded(prompts)
    generator = torch.Generator(engine.device).manual_seed(3)
    decoding: dict[str, Any] = methods.Decoding(temperature).sampling()
    common: dict[str, Any] = {
        "attention_mask": mask,
        "generator": generator,
        "return_dict_in_generate": True,
        "eos_token_id": [],
    }
    output: Any = engine.generate(ids, tree=tree, **common, **decoding, **options)
    rows = output.rows
    return [[row.new_tokens for row in rows], torch.rand(3, generator=generator, device=engine.device).tolist()]


def graphs(findings: Findings, at: Setting) -> None:
    """The demo pair in float32, two rows of different lengths, every tree: steps as they are, recorded, replayed."""
    engine = load(*resolve_pair(DEMO)[1:], "float32")
    prompts, on_gpu = batch.encoded(engine, 2), at.device.type == "cuda"
    for temperature in (0.0, 1.0):
        for tree in TREES:
            options: dict[str, Any] = {"max_new_tokens": 2 * at.tokens, "nodes": 16, "depth": 4}
            eager = graph_tokens(engine, prompts, tree, temperature, graphs=False, **options)
            runs = [graph_tokens(engine, prompts, tree, temperature, graphs=on_gpu or None, **options) for _ in "12"]
            equal = all(run == eager for run in runs)
            findings.row(tree=tree, temperature=temperature, same=equal, eager_because=engine.eager_because)
    rows = findings.content["rows"]
    same, used = sum(row["same"] for row in rows), sum(row["eager_because"] is None for row in rows)
    findings.set(summary=f"the same tokens in {same} of {len(rows)} cases; graphs were used in {used}")
    findings.check("the same tokens and generator state with graphs", f"{same} of {len(rows)}", same == len(rows))
    findings.check("steps are replayed as graphs", f"{used} of {len(rows)}", used == len(rows) if on_gpu else None)


# Time of a step ----------------------------------------------------------------------------------------------------


def timed_steps(at: Setting, shape: tuple[str, ...], context: int, trees: tuple[str, ...]) -> Any:
    """The options of `eval.measure.step_time` for one context."""
    sizes = ["--nodes", str(at.nodes), "--depth", str(at.depth), "--context", str(context)]
    rounds = ["--steps", str(at.steps), "--rounds", str(at.rounds)]
    where = ["--device", str(at.device), "--dtype", at.dtype, "--trees", *trees]
    return step_time.build_parser().parse_args([*shape, *sizes, *rounds, *where])


def add_step_rows(findings: Findings, engine: EagleModel, options: Any, **labels: Any) -> list[dict[str, Any]]:
    """Measure one context and add its rows."""
    rows = step_time.measure(engine, options)
    for row in rows:
        findings.row(**labels, graphs=options.graphs, **row, verify_share=row["verify"] / row["step"])
    return rows


def in_words(row: dict[str, Any]) -> str:
    """One row's step and floor."""
    graphs = "graphs" if row["graphs"] else "no graphs"
    step = f"{row['step']:.2f} ms, floor {row['floor']:.2f}, verification {row['verify_share']:.1%}"
    return f"{row['tree']} {row['nodes']} @ {row['context']}, {graphs}: {step}"


def step_times(findings: Findings, at: Setting) -> None:
    """Plain, topk and hybrid steps at every context, with graphs and without, on random weights."""
    on_gpu, options = at.device.type == "cuda", timed_steps(at, at.shape, at.contexts[0], ("topk", "hybrid"))
    engine = step_time.load_pair(options)
    for context in at.contexts:
        for graphs in (True, False) if on_gpu else (False,):
            options.context, options.graphs = [context], graphs
            add_step_rows(findings, engine, options)
            findings.set(summary="; ".join(in_words(row) for row in findings.content["rows"][-1:]))
    rows = findings.content["rows"]
    if on_gpu and engine.captured is not None and engine.captured.broken:
        findings.note(f"graphs were given up: {engine.captured.broken}")
    if not on_gpu:
        findings.note("graphs need a CUDA device: steps run as they are")
    drafted = [row for row in rows if row["context"] == at.contexts[0] and row["graphs"] == on_gpu and row["nodes"] > 1]
    findings.set(summary="; ".join(map(in_words, drafted)))
    for row in drafted:
        judged = row["step"] <= STEP_MS if on_gpu else None
        findings.check(f"a step of at most {STEP_MS:g} ms at {STEP_CONTEXT} tokens", in_words(row), judged)


def step_rows_of(results: Path) -> list[dict[str, Any]]:
    """The rows that the part before measured; empty where it did not run."""
    parts = json.loads(results.read_text(encoding="utf-8"))["parts"] if results.is_file() else []
    return [row for part in parts if part["part"] == "step-time" for row in part["rows"] if row["nodes"] > 1]


def verification_share(findings: Findings, at: Setting, out: Path) -> None:
    """One verification by itself in softmaxes of the same logits, and its share of the steps that were timed."""
    on_gpu = at.device.type == "cuda"
    flags = ["--device", at.device.type, "--no-scalar", "--repeats", str(at.repeats), *(["--graph"] if on_gpu else [])]
    widths = ["--vocabulary", str(at.vocabulary[0]), "--draft-vocabulary", *map(str, at.vocabulary)]
    for row in verification.measured_rows(verification.build_parser().parse_args([*flags, *widths])):
        findings.row(**row)
    alone = [row for row in findings.content["rows"] if row["what"] == ("graph hsd" if on_gpu else "verify hsd")]
    words = [f"{row['median_ms']:.3f} ms with q on {row['draft_vocabulary']:,} tokens" for row in alone]
    steps = [row for row in step_rows_of(out / "results.json") if row["graphs"] == on_gpu]
    if not steps:
        findings.note("no step was timed before this part: its share of a step is not known")
    findings.set(summary=f"hsd alone: {'; '.join(words)}; share of a step measured in {len(steps)} rows")
    for row in steps:
        met = row["verify_share"] <= VERIFICATION_SHARE if on_gpu else None
        findings.check(f"verification at most {VERIFICATION_SHARE:.0%} of a step", in_words(row), met)


# Attention ---------------------------------------------------------------------------------------------------------


class AttentionCase(NamedTuple):
    """query [1, H, n, E]; keys, values [1, G, n + C, E], the n scratch slots first.

    visible Bool[1, 1, n, n + C]: what each node sees; lengths Int64[1]: committed tokens.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    visible: Tensor
    lengths: Tensor


def attention_case(at: Setting, context: int) -> AttentionCase:
    """Random inputs on the device: a tree of `nodes` behind `context` committed tokens, and an eighth more slots."""
    heads, groups, size = at.heads
    random = torch.Generator().manual_seed(0)
    slots = at.nodes + context + context // 8
    draw = lambda *shape: torch.randn(*shape, generator=random).to(at.device, DTYPES[at.dtype])
    tree = verification.hybrid_tree(64, 64, "cpu")[0]
    ancestors = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(tree.parents.tolist()[1:], 1):
        ancestors[node] |= ancestors[parent]
    committed = (torch.arange(slots - at.nodes) < context).expand(at.nodes, -1)
    visible = torch.cat([ancestors[: at.nodes, : at.nodes], committed], -1)[None, None].to(at.device)
    query = draw(1, heads, at.nodes, size)
    keys, values = draw(1, groups, slots, size), draw(1, groups, slots, size)
    return AttentionCase(query, keys, values, visible, torch.tensor([context], device=at.device))


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen, the lowest number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def median_ms(work: Callable[[], object], at: Setting) -> float:
    """Milliseconds of one call, after three that warm up."""
    for _ in range(3):
        work()
    return 1e3 * statistics.median(seconds_of(work, at.device) for _ in range(at.repeats))


def compared_attention(at: Setting, context: int) -> dict[str, Any]:
    """One context: times of both, and their largest differences from SDPA in float32."""
    query, keys, values, visible, lengths = attention_case(at, context)
    mask = additive(visible, query.dtype)
    tree_mask = mask[..., : at.nodes].contiguous()
    sdpa = lambda: scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    split = lambda: tree_attention.split_prefix(None, query, keys, values, tree_mask, prefix_lengths=lengths)[0]
    raised = (query.float(), keys.float(), values.float())
    exact = scaled_dot_product_attention(*raised, attn_mask=additive(visible, torch.float32), enable_gqa=True)
    return {
        "context": context,
        "split_difference": (split().transpose(1, 2).float() - exact).abs().max().item(),
        "sdpa_difference": (sdpa().float() - exact).abs().max().item(),
        "split_ms": median_ms(split, at),
        "sdpa_ms": median_ms(sdpa, at),
    }


def attention(findings: Findings, at: Setting) -> None:
    """The attention function by itself, then whole steps of a shallow target with either."""
    dtype = DTYPES[at.dtype]
    ran = tree_attention.choose(at.device.type, dtype).__name__
    installed = "is installed" if find_spec("flash_attn") else "is not installed"
    findings.note(f"the prefix part ran {ran} on {at.device.type} in {at.dtype}; flash-attn {installed}")
    with torch.no_grad():
        for context in at.contexts:
            findings.row(prefix=ran, **compared_attention(at, context))
    rows = list(findings.content["rows"])
    words = [f"{row['context']}: {row['split_ms']:.3f} / {row['sdpa_ms']:.3f} ms" for row in rows]
    largest = max(row["split_difference"] for row in rows)
    bar = 1e-4 if dtype == torch.float32 else 2 * max(row["sdpa_difference"] for row in rows) + 4e-3
    findings.set(summary=f"{ran} / SDPA at {'; '.join(words)}; largest difference {largest:.1e}")
    findings.check(
        "the split attention is as close to float32 SDPA as rounding allows", f"{largest:.1e}", largest <= bar
    )
    options = timed_steps(at, at.short, at.contexts[-1], ("hybrid",))
    engine = step_time.load_pair(options)
    for name in ("sdpa", tree_attention.NAME):
        engine.target.model.set_attn_implementation(name)
        add_step_rows(findings, engine, options, attention=name)


# Pairs -------------------------------------------------------------------------------------------------------------


def pairs_here(findings: Findings) -> list[Pair]:
    """The pairs whose target and head are on this machine; a note names the others."""
    found, absent = [], []
    for name in pair_names():
        try:
            found.append(resolve_pair(name))
        except ValueError:
            absent.append(name)
    if absent:
        findings.note(
            f"target or head is not on this machine: {', '.join(absent)} (eagle.checkpoints.fetch gets targets)"
        )
    return found


class Decoded(NamedTuple):
    """All problems by one method: the row that is reported, and the new tokens per problem."""

    row: dict[str, Any]
    tokens: list[list[int]]


def decode(engine: EagleModel, problems: list[list[int]], name: str, temperature: float, at: Setting) -> Decoded:
    """One warm-up, then every problem by itself."""
    method, turns = methods.resolve(name), []
    decoding = methods.Decoding(temperature, max_new_tokens=at.tokens, nodes=at.nodes, depth=at.depth)
    for index, ids in enumerate([problems[0], *problems]):
        generator = torch.Generator(engine.device).manual_seed(index)
        turns.append(method.answer(methods.Models(engine), method, torch.tensor([ids]), decoding, generator))
    turns = turns[1:]
    steps = [step for turn in turns for step in turn.steps]
    tokens, seconds = sum(len(turn.tokens) for turn in turns), sum(turn.seconds for turn in turns)
    row = {
        "method": name,
        "temperature": temperature,
        "tokens_per_second": tokens / seconds,
        "tau": statistics.fmean(step.emitted for step in steps) if steps else None,
        "expected_accepted": statistics.fmean(step.expected_accepted for step in steps) if steps else None,
        "tokens": tokens,
        "eager_because": engine.eager_because,
    }
    return Decoded(row, [turn.tokens for turn in turns])


def decode_pair(findings: Findings, pair: Pair, dtype: str, temperature: float, at: Setting) -> list[dict[str, Any]]:
    """Every method on one pair; at temperature 0 also on how many problems its tokens are those of plain decoding."""
    engine = load(pair.target, pair.head, dtype)
    rows: list[dict[str, Any]] = []
    problems = batch.encoded(engine, at.problems)
    plain: list[list[int]] = []
    for name in DECODED:
        row, tokens = decode(engine, problems, name, temperature, at)
        plain = tokens if name == "plain" else plain
        equal = sum(a == b for a, b in zip(tokens, plain, strict=True)) if temperature == 0 else None
        speedup = row["tokens_per_second"] / (rows[0]["tokens_per_second"] if rows else row["tokens_per_second"])
        rows.append({"pair": pair.name, "dtype": dtype, **row, "speedup": speedup, "equal_to_plain": equal})
        findings.row(**rows[-1])
    return rows


def pairs(findings: Findings, at: Setting) -> None:
    """Every pair: temperatures 0 and 1 in the device's dtype; on a GPU temperature 0 in float32 too.

    Rounding of bfloat16 differs between one row and a tree of rows, so that a near tie may fall either way: equal
    tokens are required in float32 and counted in bfloat16.
    """
    summary: list[str] = []
    for pair in pairs_here(findings):
        equal = decode_pair(findings, pair, "float32", 0.0, at)
        rows = [] if at.dtype == "float32" else decode_pair(findings, pair, at.dtype, 0.0, at)
        rows += decode_pair(findings, pair, at.dtype, 1.0, at)
        count = min(row["equal_to_plain"] for row in equal)
        found = f"{pair.name}: {count} of {at.problems} problems"
        findings.check("greedy tokens in float32 are plain decoding's", found, count == at.problems)
        best = rows[-1]
        summary.append(f"{pair.name} T=1 hybrid+hsd tau {best['tau'] or 1:.2f}, {best['speedup']:.2f}x plain")
        findings.set(summary="; ".join(summary))


# Batches -----------------------------------------------------------------------------------------------------------


def batches(findings: Findings, at: Setting) -> None:
    """`eval.measure.batch` per batch size, on the demo pair first and then on the pairs that were fetched."""
    summary: list[str] = []
    for pair in pairs_here(findings):
        engine = load(pair.target, pair.head, at.dtype)
        for size in at.batches:
            sizes = ["--batch", str(size), "--problems", str(max(size, min(at.batches[-1], 16))), "--repeats", "1"]
            tree = ["--tokens", str(min(at.tokens, 64)), "--nodes", str(min(at.nodes, 21)), "--depth", str(at.depth)]
            for row in batch.measure(engine, batch.build_parser().parse_args([*sizes, *tree])):
                findings.row(pair=pair.name, **row)
            last = findings.content["rows"][-1]
            summary.append(f"{pair.name} {size}: {last['tokens_per_second']:.0f} tok/s, {last['speedup']:.2f}x")
            findings.set(summary="; ".join(summary))


def run_here(name: str, file: Path, out: Path, dry: bool) -> None:
    """Run one part in this process; findings go to `file`, earlier parts are read from OUT/results.json.

    Raises ValueError without a CUDA device unless `dry`, and whatever the part raises.
    """
    at, findings = setting(dry), Findings(file)
    work: dict[str, Callable[[], None]] = {
        "gpu-tests": lambda: gpu_tests(findings, at),
        "exactness": lambda: exactness(findings, at),
        "graphs": lambda: graphs(findings, at),
        "step-time": lambda: step_times(findings, at),
        "verification": lambda: verification_share(findings, at, out),
        "attention": lambda: attention(findings, at),
        "pairs": lambda: pairs(findings, at),
        "batch": lambda: batches(findings, at),
    }
    work[name]()
