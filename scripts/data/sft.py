"""Fine-tunes a model on prompts with answers, with TRL's SFT trainer.

    python -m scripts.data.sft MODEL EXAMPLES.parquet --out DIR [--prompt-style tag] [--ranks 4]

EXAMPLES has the columns messages (chat, or a text), language and answer, as scripts.data.warm_start_data and
scripts.data.cold_start write them, or those that ``--columns question=NAME,answer=NAME,language=NAME`` names. A row
that cannot be taught is an error. An answer is taught as it stands, thought and language header included, up to the
token that ends it in a run; where the chat template opens the thought itself, its ``<think>`` is not taught again. With
the style ``tag``, tags that the tokenizer lacks are added to it, and rows to the embeddings where there are too few.
The loss of a step is the mean cross-entropy over the answer tokens of all its examples. Weights are kept in float32; a
GPU computes in bfloat16. Ranks share the examples of a step; on GPUs they also shard the weights, with FSDP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from common.config import LearnerConfig, ModelConfig, load
from common.gpus import has_cuda
from common.instructions import NONE_OWN
from common.languages import code_of, tag
from common.parent import die_with_launcher
from common.process import FatalError
from common.prompts import PROMPT_STYLES, ChatTemplate, PromptError
from common.tokenizer import load_tokenizer
from learner.data.problems import Problems
from learner.data.rows import Rules, read_question_rows
from learner.export import writing
from learner.generation_settings import mend_sampling, try_to_save
from learner.launch import launch
from scripts.data.prepare import pairs
from scripts.ops.command_line import command, languages_flag


def read_examples(source: str, columns: Mapping[str, str], language: str) -> list[dict[str, Any]]:
    """The examples of a source: messages, language, answer.

    Args:
        columns: the source's names of question, answer and language, where they are not messages, answer and language.
        language: of the rows that name none.

    Raises:
        FatalError: the source cannot be read, a row is no example, or there is none.
    """
    problems = Problems()
    rules = Rules({"question": "messages", **columns}, language)
    rows = [
        {"messages": row.messages, "language": row.language, "answer": row.reference}
        for row in read_question_rows(source, rules, problems)
    ]
    if problems.found:
        listed = "; ".join(line for kind in problems.counts for line in problems.lines(kind))
        raise FatalError(f"{len(problems.found)} rows of {source} cannot be taught. Mend or remove them: {listed}")
    if not rows:
        raise FatalError(f"{source} holds no examples")
    return rows


def example(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    style: str,
    instructions: Mapping[str, str] = NONE_OWN,
) -> dict[str, list[int]]:
    """The prompt that a run would send, and the answer as the policy is to write it, with the token that ends it.

    Returns:
        ``input_ids``, and ``completion_mask``, which is 1 at the tokens of the answer and 0 elsewhere.

    Raises:
        FatalError: the template refuses the prompt, or opens a thought that the answer does not end.
    """
    messages = PROMPT_STYLES[style].style_messages(row["messages"], code_of(row["language"]), instructions)
    try:
        prompt = template(messages)
    except PromptError as error:
        raise FatalError(str(error)) from None
    if template.opens_thought and "</think>" not in row["answer"]:
        raise FatalError(
            "the chat template ends a prompt with <think>, and the answer has no </think>: it would be taught as a "
            "thought that never ends. Give answers with their thoughts, or what switches thoughts off, as "
            "--template-args '{enable_thinking = false}'"
        )
    prompt_ids, answer_ids = (
        tokenizer.encode(text, add_special_tokens=False) for text in (prompt, template.answer(row["answer"]))
    )
    answer_ids += [] if template.answer_end is None else [template.answer_end]
    return {
        "input_ids": prompt_ids + answer_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(answer_ids),
    }


def add_tags(tokenizer: PreTrainedTokenizerBase, languages: set[str]) -> None:
    """Adds the tags of the languages to the tokenizer. Tags that it has already keep their ids."""
    tags = [tag(language) for language in sorted(languages)]
    missing = [one for one in tags if len(tokenizer.encode(one, add_special_tokens=False)) != 1]
    tokenizer.add_tokens(missing, special_tokens=True)


def build_trainer(
    model_path: str, rows: list[dict[str, Any]], out: Path, *, style: str, epochs: int, batch_size: int,
    micro_batch: int, lr: float, seed: int, prompts: ModelConfig | None = None,
) -> Any:  # fmt: skip
    """TRL's trainer of a model on rows of messages, language and answer. Call it on every rank.

    Args:
        out: where ``trainer.save_model()`` writes; nothing is written before.
        batch_size: examples of a step, of all ranks together; a multiple of the number of ranks.
        micro_batch: the most examples that a rank computes at a time.
        prompts: its template_args and date are for the chat template.

    Raises:
        FatalError: the model cannot be loaded or could not be written again, has no chat template, or a row cannot be
            taught with it.
    """
    from datasets import Dataset  # these are slow to import, and the help does not need them
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    share = batch_size // ranks
    at_a_time = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
    tokenizer = load_tokenizer(model_path)
    prompts = prompts or ModelConfig()
    template = ChatTemplate(tokenizer, prompts)
    if style == "tag":
        add_tags(tokenizer, {code_of(row["language"]) for row in rows})
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot load the model {model_path!r}: {error}") from None
    mend_sampling(model, model_path)
    try_to_save(model, model_path)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    steps = epochs * -(-len(rows) // batch_size)
    settings = SFTConfig(
        output_dir=str(out),
        num_train_epochs=epochs,
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=share // at_a_time,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        packing=False,
        completion_only_loss=True,
        seed=seed,
        use_cpu=not has_cuda(),
        bf16=has_cuda(),
        gradient_checkpointing=has_cuda(),
        fsdp=cast(Any, ranks > 1 and has_cuda()),  # a truth value, whatever its annotation says
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
    )
    data = Dataset.from_list(_examples(rows, tokenizer, template, style, prompts.instructions))
    return SFTTrainer(model, args=settings, train_dataset=data, processing_class=tokenizer)


def _examples(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    style: str,
    instructions: Mapping[str, str],
) -> list[dict[str, list[int]]]:
    made = []
    for number, row in enumerate(rows):
        try:
            made.append(example(row, tokenizer, template, style, instructions))
        except FatalError as error:
            raise FatalError(f"row {number} cannot be taught: {error}") from None
    return made


@command()
def main(
    model: Annotated[str, typer.Argument(help="Hugging Face directory or hub name.")],
    examples: Annotated[str, typer.Argument(help="File of messages, language and answer.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the model to write.")],
    columns: Annotated[str, typer.Option(help="OURS=THEIRS,... where ours are question, answer and language.")] = "",
    language: Annotated[str, typer.Option(help="Language of the examples that do not name one.")] = "",
    prompt_style: Annotated[
        Literal["tag", "system", "select", "plain"],
        typer.Option(help="How the language is asked for; as model.prompt_style."),
    ] = "tag",
    instructions: Annotated[
        str, typer.Option(help="As model.instructions of the run, for example '{default = \"Answer in {language}.\"}'.")
    ] = "{}",
    template_args: Annotated[
        str, typer.Option(help="As model.template_args of the run, for example '{enable_thinking = false}'.")
    ] = "{}",
    date: Annotated[str, typer.Option(help="As model.date of the run.")] = str(ModelConfig().date),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 32,
    micro_batch: Annotated[int, typer.Option(min=1, help="Most examples that a rank computes at a time.")] = 8,
    lr: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = 1e-5,
    ranks: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order.")] = 0,
) -> None:
    if batch % ranks:
        raise FatalError(f"--batch {batch} is not a multiple of --ranks {ranks}")
    style_flags = ["--model.prompt_style", prompt_style, "--model.instructions", instructions]
    # Each example is asked for in its own language, whatever the router of a run would do.
    style_flags += ["--router.mode", "monolingual"]
    prompts = load([*style_flags, "--model.template_args", template_args, "--model.date", date]).model
    rows = read_examples(examples, pairs(columns), language)  # before ranks are started: an error is said once
    if ranks > 1 and "RANK" not in os.environ:
        words = [model, examples, "--out", str(out), "--prompt-style", prompt_style, "--epochs", str(epochs)]
        words += ["--columns", columns, "--language", language, "--template-args", template_args, "--date", date]
        words += ["--instructions", instructions, *languages_flag()]
        words += ["--batch", str(batch), "--micro-batch", str(micro_batch), "--lr", str(lr), "--seed", str(seed)]
        return launch("scripts.data.sft", LearnerConfig(ranks=ranks), words)
    if "RANK" in os.environ:
        die_with_launcher()
    else:
        # One rank uses one GPU: with several visible, the trainer would use DataParallel, which TRL refuses.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    trainer = build_trainer(
        model, rows, out, style=prompt_style, epochs=epochs, batch_size=batch, micro_batch=micro_batch, lr=lr,
        seed=seed, prompts=prompts,
    )  # fmt: skip
    trainer.train()
    with writing("model", out, "mend what the message says and give the same command again, which trains it anew"):
        trainer.save_model()
        if trainer.is_world_process_zero():
            (out / "training_args.bin").unlink()  # a pickle of no use to whoever loads the model


if __name__ == "__main__":
    main()
