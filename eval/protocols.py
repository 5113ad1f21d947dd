"""Protocols of others: the question set, the prompt and the decoding behind the numbers that they print.

    eagle    EAGLE's scripts gen_*_answer_llama3chat: its 80-question samples (MT-Bench whole), zero-shot behind its
             system prompt, temperature 0, 512 new tokens, its own tree of 60 nodes, verified token by token. `--depth`
             counts as there, the head's passes after the first: their 5 is a longest draft of 6 tokens
    dspark   arXiv 2607.05147: temperature 1, chains of 7 draft tokens, verified token by token, 2,048 new tokens

They fill what the command line leaves open; what it states wins. EAGLE's other flags are taken where they have a
meaning here, else refused with the command that does the same.
"""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from eagle import command
from eagle.autotune.candidates import AUTO

EAGLE, DSPARK = "eagle", "dspark"
EAGLE_SYSTEM_PROMPT = (  # two spaces behind "safe." as in the scripts: another text is another prompt
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question "
    "does not make any sense, or is not factually coherent, explain why instead of answering something not "
    "correct. If you don't know the answer to a question, please don't share false information."
)


class Protocol(NamedTuple):
    """Which of a benchmark's question sets is asked (not named: its first), and what flags stand for by default."""

    questions: Mapping[str, str]
    method: tuple[str, str]
    defaults: Mapping[str, Any]


PROTOCOLS = {
    EAGLE: Protocol(
        {"gsm8k": "eagle80", "humaneval": "eagle80"},
        ("topk", "token"),
        {
            "system_prompt": EAGLE_SYSTEM_PROMPT,
            "temperature": 0.0,
            "max_new_tokens": 512,
            "nodes": 60,
            "depth": 5,
            "width": 10,
        },
    ),
    DSPARK: Protocol({}, ("chain", "token"), {"temperature": 1.0, "max_new_tokens": 2048, "nodes": 8, "depth": 7}),
}
NEUTRAL = {"temperature": 1.0}
KEPT_ELSEWHERE = {  # EAGLE's flags that are refused at more than 1: what does the same
    "num_choices": "one answer per question and run; for {0} of each run it {0} times with --seed 0, 1, ... and an "
    "--answer-file each, or mark samples with python -m eval.accuracy --samples {0}",
    "num_gpus_per_model": "python -m eval loads a target on one device; to spread one over {0}, "
    "EagleModel.from_pretrained(..., device_map='auto')",
    "num_gpus_total": "torchrun --nproc-per-node {0} -m eval ... answers with a process per GPU",
}


UNUSED_THERE = {"--load-in-8bit": 0, "--max-gpu-memory": 1, "--tree-choices": 1, "--threshold": 1}  # and their values


class Refused(argparse.Action):
    """A flag that EAGLE's scripts take and do nothing with."""

    def __call__(self, *_: Any) -> None:
        """Refuse it."""
        raise argparse.ArgumentError(self, "is parsed by EAGLE's scripts and does nothing there; leave it out")


def add_eagle_flags(parser: argparse.ArgumentParser) -> None:
    """EAGLE's flags that have no other name here; its --bench-name, --total-token, --top-k, ... are names of others."""
    group = parser.add_argument_group("EAGLE's spellings (see --protocol eagle)")
    add = group.add_argument
    add(
        "--model-id",
        metavar="ID",
        help="names the answers; without --answer-file they go to BENCH/ID-temperature-T.jsonl",
    )
    add("--question-begin", type=command.INDEX, default=0, metavar="N", help="skip the first N questions (default 0)")
    add("--question-end", type=command.COUNT, metavar="N", help="ask none from the N-th on, counted from 0")
    add(
        "--hsd",
        action="store_true",
        help="--tree hybrid --verifier hsd: another tree as well, not only another verifier",
    )
    add("--use_eagle3", "--use-eagle3", action="store_true", help="taken without effect: heads here are EAGLE-3's")
    for name in KEPT_ELSEWHERE:
        add(f"--{name.replace('_', '-')}", type=command.COUNT, default=1, metavar="N", help="1; more is refused")
    for name, values in UNUSED_THERE.items():
        add(name, action=Refused, nargs=values, help=argparse.SUPPRESS)


def apply(options: argparse.Namespace) -> None:
    """Fill the flags that were not given, by the protocol that --protocol names if it is one of these.

    Raises ValueError for a flag of EAGLE's that cannot be kept, or two that contradict each other.
    """
    for name, instead in KEPT_ELSEWHERE.items():
        count = getattr(options, name)
        if count > 1:
            raise ValueError(f"--{name.replace('_', '-')} {count}: {instead.format(count)}")
    if options.hsd:
        _choose(options, "--hsd", ("hybrid", "hsd"))
    protocol = PROTOCOLS.get(options.protocol)
    if protocol is not None:
        _fill_from(protocol, options)
    _fill(options, NEUTRAL)
    if options.model_id:
        options.model_id += f"-temperature-{options.temperature}"
        if not (options.answer_file or options.output):
            options.answer_file = f"{options.bench}/{options.model_id}.jsonl"


def _fill_from(protocol: Protocol, options: argparse.Namespace) -> None:
    name = options.protocol
    options.protocol = None if options.question_file is not None else protocol.questions.get(options.bench)
    if not (options.methods or options.tree or options.verifier):
        _choose(options, f"--protocol {name}", protocol.method)
    if name == EAGLE and options.max_new_tokens not in (None, protocol.defaults["max_new_tokens"]):
        command.say(
            f"--max-new-token {options.max_new_tokens}: kept here; EAGLE's scripts parse it and answer with 512 tokens "
            "all the same. Leave it out for their numbers."
        )
    defaults = dict(protocol.defaults)
    if AUTO in (options.nodes, options.tree):
        del defaults["nodes"], defaults["depth"]
    _fill(options, defaults)
    if name == EAGLE and options.depth is not None:
        options.depth += 1


def _choose(options: argparse.Namespace, flag: str, method: tuple[str, str]) -> None:
    """Set the method. ValueError where flags name another one."""
    for name, value in zip(("tree", "verifier"), method, strict=True):
        if options.methods or getattr(options, name) not in (None, value):
            raise ValueError(
                f"{flag} is --tree {method[0]} --verifier {method[1]}; leave it out, or --tree, --verifier "
                "and --methods"
            )
        setattr(options, name, value)


def _fill(options: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
