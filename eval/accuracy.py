r"""Accuracy of whole answers by method, many questions at once: whether a rule changes what is answered.

    python -m eval.accuracy --bench gsm8k --protocol eagle80 --methods plain chain+token chain+hsd chain+published \
        --base-model-path qwen2.5-coder-1.5b --draft-model-path qwen2.5-coder-0.5b --output results/accuracy

A batch takes less time per answer than one question after the other; how much is not the subject here (python -m eval;
python -m eval.measure.batch). With `--samples` every question is answered several times, which narrows the interval. A
lossless rule has plain decoding's accuracy up to chance; the difference is paired over questions, with a 95 % bootstrap
interval over them.

    DIR/METHOD.jsonl      the settings, then one line per finished batch; the same command goes on behind the last one,
                          also with more questions
    DIR/accuracy.json     the table, as `python -m eval.report.embed` takes it
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from eagle import chat_template, command, jsonl
from eagle.digests import seed_of
from eagle.files import check_writable, write_whole
from eval import provenance
from eval.questions import benchmarks, prompts
from eval.questions.grading import can_be_marked, is_correct
from eval.report.estimates import bootstrap, ratio, wilson
from eval.report.markdown import Table, markdown_table, percent
from eval.run.load_models import add_model_flags, load_from_flags, resolve_flags, weights_of
from eval.run.methods import PLAIN, Decoding, Method, answer_batch, resolve_own

Answer = dict[str, Any]


class Work(NamedTuple):
    """The engine, the questions with their prompts, and how they are answered, `batch` at a time."""

    engine: Any
    questions: list[benchmarks.Question]
    prompts: list[list[int]]
    decoding: Decoding
    batch: int
    samples: int
    seed: int

    @property
    def total(self) -> int:
        """Answers of one method: the samples of a question follow each other."""
        return len(self.questions) * self.samples


def answer_some(work: Work, method: Method, first: int) -> list[Answer]:
    """The answers numbered from `first` on, a batch of them."""
    numbers = [number // work.samples for number in range(first, min(first + work.batch, work.total))]
    rows = [work.prompts[number] for number in numbers]
    found = answer_batch(work.engine, method, rows, work.decoding, seed_of(work.seed, first, 0))
    answers = []
    for number, row in zip(numbers, found, strict=True):
        question, text = work.questions[number], work.engine.tokenizer.decode(row.new_tokens, skip_special_tokens=True)
        answers.append(
            {
                "question_id": question.question_id,
                "correct": is_correct(text, question.reference or ""),
                "tokens": len(row.new_tokens),
                "steps": len(row.steps),
                "stop_reason": row.stop_reason,
                "text": text,
            }
        )
    return answers


def answer_all(
    work: Work, methods: list[Method], output: Path, settings: dict[str, Any], quiet: bool
) -> dict[str, list[Answer]]:
    """Every method's answers, from its file or given now and appended to it.

    The method with the fewest goes next, so that a stopped run can be compared. Raises ValueError for a file of other
    settings.
    """
    session, found, files = provenance.provenance(), {}, {}
    with contextlib.ExitStack() as stack:
        for method in methods:
            path = output / f"{method.name}.jsonl"
            head = settings | {"method": method.name, "lossy": method.lossy}
            file, records = stack.enter_context(jsonl.measured(path, head))
            files[method] = file, path
            found[method] = [answer for record in records for answer in record["answers"]]
        have = sum(map(len, found.values()))
        bar = stack.enter_context(tqdm(total=work.total * len(methods), initial=have, unit="answer", disable=quiet))
        while len(found[method := min(methods, key=lambda method: len(found[method]))]) < work.total:
            answers = answer_some(work, method, len(found[method]))
            file, path = files[method]
            jsonl.append(file, {"answers": answers, "session": session}, path)
            found[method] += answers
            bar.update(len(answers))
    return {method.name: answers for method, answers in found.items()}


def table(found: dict[str, list[Answer]], methods: list[Method], questions: int, samples: int) -> Table:
    """One row per method; differences are over the questions that both answered."""
    header = [
        "method",
        "accuracy",
        "minus plain",
        "tokens per call",
        "tokens per answer",
        "cut at the limit",
        "answers",
    ]
    shares = {name: correct_shares(answers) for name, answers in found.items()}
    rows = []
    for method in methods:
        answers = found[method.name]
        difference = None if method.name == PLAIN else minus(shares[method.name], shares.get(PLAIN, {}))
        tokens, steps = (sum(answer[name] for answer in answers) for name in ("tokens", "steps"))
        rows.append(
            [
                method.name + (" (lossy)" if method.lossy else ""),
                percent(wilson(sum(answer["correct"] for answer in answers), len(answers))),
                percent(difference, "+"),
                f"{(tokens - len(answers)) / steps:.2f}" if steps else "–",  # the prompt's forward gives the first one
                f"{tokens / len(answers):.0f}",
                f"{sum(answer['stop_reason'] != 'eos' for answer in answers) / len(answers):.0%}",
                str(len(answers)),
            ]
        )
    note = f"{questions} questions, {samples} answer(s) each. Accuracy has Wilson's interval, over answers."
    return Table("Accuracy by method", note, header, rows)


def correct_shares(answers: list[Answer]) -> dict[int, float]:
    """Question -> share of its answers that are right."""
    by_question: dict[int, list[bool]] = {}
    for answer in answers:
        by_question.setdefault(answer["question_id"], []).append(answer["correct"])
    return {question: sum(found) / len(found) for question, found in by_question.items()}


def minus(first: dict[int, float], second: dict[int, float]) -> Any:
    """The mean difference over common questions, with its bootstrap interval."""
    both = sorted(first.keys() & second.keys())
    differences = np.array([first[question] - second[question] for question in both])
    return bootstrap(ratio, differences, np.ones(len(both)))


def write(
    found: dict[str, list[Answer]],
    methods: list[Method],
    output: Path,
    settings: dict[str, Any],
    asked: benchmarks.QuestionSet,
) -> str:
    """Write accuracy.json; returns the table as Markdown."""
    made = table(found, methods, len(asked.questions), settings["samples"])
    session = provenance.provenance()
    below = (
        f"{settings['bench']} ({asked.protocol}), temperature {settings['temperature']:g}, at most "
        f"{settings['max_new_tokens']} tokens, batches of {settings['batch']}; seed {settings['seed']}, "
        f"{settings['dtype']}, {session['hardware']['cpu']}, torch {session['versions']['torch']}, commit "
        f"{(session['git']['commit'] or 'unknown')[:9]}."
    )
    write_whole(output / "accuracy.json", json.dumps({"tables": [made._asdict()], "caption": below}, indent=1) + "\n")
    return f"{markdown_table(made.header, made.rows)}\n\n{made.note} {below}"


def run(options: argparse.Namespace) -> None:
    """Answer what is missing, print and write the table."""
    methods, output = resolve_own(options.methods), Path(options.output)
    check_writable(output / "accuracy.json")
    resolve_flags(options)
    asked = benchmarks.load(options.bench, options.protocol, options.question_file, options.num_questions)
    unjudged = next((one for one in asked.questions if not can_be_marked(one.reference)), None)
    if unjudged:
        raise ValueError(
            f"question {unjudged.question_id} has no `#### n` or `\\boxed{{...}}` reference: expected GSM8K's or MATH's"
        )
    decoding = Decoding(
        options.temperature, max_new_tokens=options.max_new_tokens, nodes=options.nodes, depth=options.depth
    )
    settings = {
        "bench": asked.bench,
        "protocol": options.question_file or asked.protocol,
        **{name: getattr(options, name) for name in ("temperature", "max_new_tokens", "nodes", "depth")},
        **{name: getattr(options, name) for name in ("batch", "samples", "seed", "dtype")},
        "models": weights_of(options),
    }
    if options.chat_template_kwargs:
        settings["chat_template_kwargs"] = options.chat_template_kwargs
    engine = load_from_flags(options)
    encoded = prompts.encode_first_turns(
        engine.tokenizer, options.base_model_path, asked.questions, options.chat_template_kwargs
    )
    work = Work(engine, asked.questions, encoded, decoding, options.batch, options.samples, options.seed)
    found = answer_all(work, methods, output, settings, options.quiet)
    print(write(found, methods, output, settings, asked))


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.accuracy", __doc__)
    add = parser.add_argument
    benchmarks.add_flags(parser, 80)
    add_model_flags(parser)
    add("--methods", nargs="+", default=[PLAIN, "hybrid+token", "hybrid+hsd"], metavar="M", help="as of python -m eval")
    add("--temperature", type=command.TEMPERATURE, default=1.0, metavar="T")
    add("--max-new-tokens", type=command.COUNT, default=320, metavar="N")
    add("--nodes", "--total-token", type=command.NODES, default=16, metavar="N", help="of a draft, the root included")
    add("--depth", type=command.COUNT, default=6, metavar="K", help="longest draft")
    add("--batch", type=command.COUNT, default=16, metavar="B", help="answers at a time (memory: their caches)")
    add("--samples", type=command.COUNT, default=1, metavar="S", help="answers per question")
    chat_template.add_flag(parser)
    add("--seed", type=command.SEED, default=0)
    add("--output", required=True, metavar="DIR")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv, command.resumable("batches"))


if __name__ == "__main__":
    raise SystemExit(main())
