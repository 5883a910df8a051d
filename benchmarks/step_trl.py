"""TRL's half of `step.py`: the wall time of whole GRPO steps of TRL's GRPOTrainer, on CPU.

Runs inside TRL's own virtual environment (`requirements-trl.txt`) and imports nothing of Lockstep, so that neither
side's versions bind the other. In: a Hugging Face model folder, and prompts as a JSON list of lists of token ids.
Out: one JSON object with the times, the tokens trained and the settings, written to `--out`.

A step samples `group-size` completions for each of `num-prompts` prompts, exactly `max-new-tokens` long (no token
ends one early), and trains on all of them once: one optimizer update, KL weight 0, float32. The first step is
warm-up. The defaults were the fastest for TRL on two CPU cores with a model like `recipes/ledger.py`'s, as far as a
busy machine could tell: microbatches of 8 to 64 and the two experts implementations differ by less than its noise.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time GRPO steps of TRL's GRPOTrainer.")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder: model and tokenizer")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON: list of lists of token ids")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--num-prompts", type=int, default=16, help="prompts a step")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--steps", type=int, default=3, help="steps in all, 2 or more; the first is not counted")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--microbatch", type=int, default=32, help="sequences a forward and backward pass")
    parser.add_argument("--experts", default="grouped_mm", choices=["eager", "grouped_mm", "batched_mm"])
    parser.add_argument("--attention", default="eager", help="transformers' attn_implementation")
    parser.add_argument("--cache", default="dynamic", help="transformers' cache_implementation")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training forward (needs g++)")
    parser.add_argument("--continuous-batching", action="store_true", help="transformers' paged generate_batch")
    parser.add_argument("--malloc", default="keep", choices=["keep", "default"], help="keep: freed memory is reused")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's default, slower")
    return parser.parse_args()


OPTIONS = parse_options()
# OpenMP reads its thread count once, when torch loads: hence before the imports below. TRL must not reach for a
# network.
os.environ.update(
    OMP_NUM_THREADS=str(OPTIONS.threads),
    MKL_NUM_THREADS=str(OPTIONS.threads),
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="disabled",
    TRL_EXPERIMENTAL_SILENCE="1",
)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's mallopt
if OPTIONS.malloc == "keep" and platform.libc_ver()[0] == "glibc":
    # As on Lockstep's side. Otherwise every large tensor is mapped and unmapped anew, and page faults slow training.
    ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

NO_TOKEN = -1  # an id that is never sampled: TRL and transformers want an end-of-sequence id, and no token may be one


class StepTimer(TrainerCallback):
    """Wall seconds from the end of one optimizer step to the end of the next, so that nothing is left out."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.cpu_s: list[float] = []  # of all threads: tells a slow step from a busy machine
        self._previous = self._previous_cpu = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous, self._previous_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        now, cpu = time.perf_counter(), time.process_time()
        self.step_s.append(now - self._previous)
        self.cpu_s.append(cpu - self._previous_cpu)
        self._previous, self._previous_cpu = now, cpu


class TokenExactTrainer(GRPOTrainer):
    """GRPOTrainer that takes prompts as token ids, and measures and counts what it does; nothing else is changed."""

    prompt_tokens: dict[str, list[int]]  # the dataset's "prompt" column is a key into this

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ignored_stops = torch.tensor(self.eos_token_ids)
        self.eos_token_ids = [NO_TOKEN]  # else TRL cuts a completion at the model's stop tokens
        self.generate_s: list[float] = []
        self.trained_tokens: list[tuple[int, int]] = []  # a step: prompt tokens, completion tokens

    def _tokenize_prompts(self, prompts):
        return [self.prompt_tokens[name] for name in prompts], None, {}

    def _generate_single_turn(self, *args, **kwargs):
        start = time.perf_counter()
        self.model.generation_config.eos_token_id = None  # Trainer sets it from the tokenizer when training begins
        output = super()._generate_single_turn(*args, **kwargs)
        self.generate_s.append(time.perf_counter() - start)
        return output

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self.trained_tokens:  # the checks cost time: once, in the warm-up step
            self._check_tokens(batch, [self.prompt_tokens[example["prompt"]] for example in inputs])
        self.trained_tokens.append((int(batch["prompt_mask"].sum()), int(batch["completion_mask"].sum())))
        return batch

    def _check_tokens(self, batch: dict[str, torch.Tensor], prompts: list[list[int]]) -> None:
        """The comparison is fair only if TRL trains on the tokens given, and samples every token that it trains on."""
        prompt_mask = batch["prompt_mask"].bool()
        if [row[mask].tolist() for row, mask in zip(batch["prompt_ids"], prompt_mask, strict=True)] != prompts:
            raise RuntimeError("TRL trains on other prompt tokens than it was given: has _tokenize_prompts changed?")
        completions = batch["completion_ids"]
        ended = torch.isin(completions, self.ignored_stops).cumsum(dim=1)[:, :-1] > 0
        if ended.any() and (completions[:, 1:][ended] == self._tokenizer.pad_token_id).all():
            raise RuntimeError("sampling stops at a stop token and pads: is generation_config.eos_token_id still None?")


def reward_token_parity(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """A coin toss that costs nothing: groups get advantages that are not zero."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def read_prompts(path: Path, *, num_prompts: int) -> list[list[int]]:
    """Prompts for whole steps; TRL takes them in this order, `num_prompts` a step, and begins again at the end."""
    prompts = json.loads(path.read_text())
    if len(prompts) < num_prompts:
        sys.exit(f"{path} holds {len(prompts)} prompts: --num-prompts={num_prompts} needs as many or more")
    return prompts[: len(prompts) // num_prompts * num_prompts]


def grpo_config(options: argparse.Namespace, output_dir: str) -> GRPOConfig:
    num_sequences = options.num_prompts * options.group_size
    if options.steps < 2:
        sys.exit(f"--steps={options.steps}: the first step is warm-up and not counted; give 2 or more")
    if num_sequences % options.microbatch:
        sys.exit(f"--microbatch={options.microbatch} must divide num-prompts x group-size = {num_sequences}")
    return GRPOConfig(
        output_dir=output_dir,
        # the step
        num_generations=options.group_size,
        generation_batch_size=num_sequences,
        per_device_train_batch_size=options.microbatch,
        gradient_accumulation_steps=num_sequences // options.microbatch,
        max_completion_length=options.max_new_tokens,
        temperature=1.0,
        beta=0.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_steps=options.steps,
        shuffle_dataset=False,
        # speed
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=options.gradient_checkpointing,
        router_aux_loss_coef=0.0,  # the load-balancing loss of the checkpoint's config is no part of GRPO
        torch_compile=options.compile,
        cache_implementation=options.cache,
        use_transformers_continuous_batching=options.continuous_batching,
        generation_kwargs={"eos_token_id": NO_TOKEN if options.continuous_batching else None},
        dataloader_pin_memory=False,
        # nothing besides
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def train(options: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(options.threads)
    prompts = read_prompts(options.prompts, num_prompts=options.num_prompts)
    model = AutoModelForCausalLM.from_pretrained(
        options.model,
        dtype=torch.float32,
        attn_implementation=options.attention,
        experts_implementation=options.experts,
    )
    model.generation_config.eos_token_id = None
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = TokenExactTrainer(
            model=model,
            reward_funcs=reward_token_parity,
            args=grpo_config(options, output_dir),
            train_dataset=Dataset.from_list([{"prompt": str(index)} for index in range(len(prompts))]),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[timer],
        )
        trainer.prompt_tokens = {str(index): tokens for index, tokens in enumerate(prompts)}
        trainer.train()
    return result(options, trainer, timer)


def result(options: argparse.Namespace, trainer: TokenExactTrainer, timer: StepTimer) -> dict[str, object]:
    prompt_tokens, completion_tokens = zip(*trainer.trained_tokens, strict=True)
    wanted = options.num_prompts * options.group_size * options.max_new_tokens
    if set(completion_tokens) != {wanted}:
        raise RuntimeError(f"completion tokens a step: {completion_tokens}, not {wanted}: some stopped early")
    train_s = [step - generate for step, generate in zip(timer.step_s, trainer.generate_s, strict=True)]
    logs = [entry for entry in trainer.state.log_history if "reward_std" in entry]
    step_s = statistics.median(timer.step_s[1:])
    return {
        "step_s": step_s,
        "generate_s": statistics.median(trainer.generate_s[1:]),
        "train_s": statistics.median(train_s[1:]),
        "cpu_s": statistics.median(timer.cpu_s[1:]),
        "tokens": prompt_tokens[1] + wanted,
        "prompt_tokens": prompt_tokens[1],
        "completion_tokens": wanted,
        "tokens_per_s": (prompt_tokens[1] + wanted) / step_s,
        "completion_tokens_per_s": wanted / step_s,
        "all_step_s": timer.step_s,
        "all_generate_s": trainer.generate_s,
        "grad_norm": [entry["grad_norm"] for entry in logs],
        "reward_std": [entry["reward_std"] for entry in logs],
        "threads": torch.get_num_threads(),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "versions": {name: version(name) for name in ("torch", "trl", "transformers", "accelerate")},
    }


if __name__ == "__main__":
    measured = train(OPTIONS)
    OPTIONS.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))
