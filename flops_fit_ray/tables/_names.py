"""Names of columns in use: of the quantities of a fit, of settings that are swept, of what tells rows apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flops_fit_ray.tables._cells import COUNTS, DAYS, FLOPS, LOSSES, TIMES, unit_of

# Our name -> names in use; the first that a table has is taken. Compared as `normal` writes them.
NAMES: dict[str, tuple[str, ...]] = {
    "params": ("params", "n", "n_params", "num_params", "parameters", "num_parameters", "model_params", "model_size",
               "params_total", "total_params", "n_parameters", "parameter_count", "param_count", "params_count",
               "total_parameter_count", "total_param_count", "total_parameters", "num_total_params", "n_param",
               "nparams", "numparams", "num_param", "param", "model_parameters", "model_n_params",
               "number_of_parameters",
               "trainable_params", "trainable_parameters", "num_trainable_params", "params_active", "active_params",
               "n_active", "active_parameters", "activated_params", "params_non_embedding", "non_embedding_params",
               "n_non_embedding", "non_embedding_parameters", "size", "model", "model_name", "name"),
    "tokens": ("tokens_seen", "tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens",
               "tokens_trained", "total_tokens", "num_train_tokens", "n_train_tokens", "total_train_tokens",
               "num_training_tokens", "num_tokens_seen", "num_input_tokens_seen", "tokens_processed", "tokens_consumed",
               "consumed_tokens", "consumed_train_tokens", "token_count", "ntokens", "number_of_tokens",
               "samples_seen", "examples_seen", "consumed_samples"),
    "flops": ("flops", "actual_flops", "c", "compute", "train_flops", "training_flops", "total_flops", "flop",
              "training_flop", "num_flops", "total_flos", "flos", "train_flos", "total_train_flops", "flops_total",
              "total_training_flops", "training_compute", "train_compute", "total_compute", "training_compute_flop",
              "compute_flops", "model_flops", "total_model_flops", "cumulative_flops"),
    "loss": ("val_loss", "eval_loss", "validation_loss", "held_out_loss", "heldout_loss", "test_loss", "valid_loss",
             "dev_loss", "loss_val", "loss_eval", "loss_validation", "val_nll", "eval_nll", "val_ce",
             "val_cross_entropy", "eval_cross_entropy", "loss", "final_loss", "final_val_loss", "final_eval_loss",
             "lm_loss", "ce_loss",
             "cross_entropy", "cross_entropy_loss", "nll", "nll_loss", "xent", "val_bpb", "eval_bpb", "bpb", "val_bpc",
             "bpc", "bits_per_byte", "bits_per_char", "bits_per_character", "val_ppl", "val_perplexity", "eval_ppl",
             "eval_perplexity", "validation_perplexity", "test_ppl", "test_perplexity", "valid_ppl", "perplexity",
             "ppl", "l", "train_loss", "training_loss", "train_ce_loss", "train_nll"),
    "budget": ("budget", "compute_budget", "budget_tag", "flop_budget", "flops_budget", "isoflop", "target_flops",
               "nominal_flops", "isoflop_budget", "budget_flops", "target_compute"),
    "run": ("run", "run_id", "run_name", "run_key"),
    "weight": ("weight", "weights"),
    "seconds": ("seconds", "train_seconds", "wall_time_seconds", "wall_time", "duration_seconds", "elapsed_seconds",
                "runtime", "train_runtime"),
    "flops_per_token": ("flops_per_token", "flop_per_token", "train_flops_per_token", "training_flops_per_token"),
    "unique_tokens": ("unique_tokens", "tokens_unique", "n_unique_tokens", "num_unique_tokens", "unique_d", "d_unique",
                      "unique_train_tokens", "distinct_tokens", "dataset_tokens", "data_unique_tokens"),
    "epochs": ("epochs", "num_epochs", "n_epochs", "num_train_epochs", "total_epochs", "data_epochs"),
    "params_opt": ("n_opt", "params_opt", "opt_params", "optimal_params", "optimal_n", "n_optimal", "opt_n", "n*",
                   "n_star", "optimal_parameters", "optimal_model_size", "optimal_size", "best_params", "best_n"),
    "tokens_opt": ("d_opt", "tokens_opt", "opt_tokens", "optimal_tokens", "optimal_d", "d_optimal", "opt_d", "d*",
                   "d_star", "best_tokens", "best_d"),
}  # fmt: skip
TEXT_SIZES = ("model", "model_name", "name")  # taken as N only where every cell is a size with its unit, such as 1.3B
BITS = ("bpb", "bpc", "bits_per_byte", "bits_per_char", "bits_per_character")
OTHER_PARAMS = ("params_total", "total_params", "params_non_embedding", "non_embedding_params", "n_non_embedding",
                "params_matmul", "params_active", "active_params", "params_without_head")  # fmt: skip
ACTIVE = ("params_active", "active_params", "n_active", "active_parameters", "activated_params")
OTHER_FLOPS = ("flops_6nd", "flops_counted", "flops_without_attention", "flops_with_attention")

# Settings of training that people sweep at each (N, D) to take the best
RATES = ("lr", "learning_rate", "max_lr", "peak_lr", "base_lr", "lr_max", "lr_peak", "peak_learning_rate",
         "max_learning_rate", "matrix_lr", "eta")  # fmt: skip
BATCHES = ("batch", "batch_size", "global_batch_size", "bs", "gbs", "bsz", "train_batch_size", "batch_tokens",
           "tokens_per_batch", "batch_size_tokens", "total_batch_size", "device_batch_size")  # fmt: skip
SETTINGS = (*RATES, *BATCHES, "weight_decay", "wd", "warmup", "warmup_steps", "warmup_ratio", "warmup_tokens", "beta1",
            "beta2", "beta_1", "beta_2", "adam_beta1", "adam_beta2", "momentum", "dropout", "grad_clip", "clip",
            "init_std", "init_scale", "eps", "adam_eps", "lr_schedule", "schedule", "scheduler", "lr_scheduler",
            "min_lr", "lr_multiplier", "lr_mult", "label_smoothing", "decay_ratio")  # fmt: skip
PROGRESS = ("step", "global_step", "iteration", "iter", "iters", "epoch", "num_steps", "train_step")
REPEATS = ("seed", "random_seed", "data_seed", "init_seed", "rng_seed", "trial", "rep", "repeat", "replicate", "fold")
STATUS = ("status", "state", "run_status", "run_state", "job_status", "trial_status", "run_state_name")
# Text that tells kinds of runs apart, named even where the rows are too few to show it
KINDS = ("dataset", "data", "corpus", "data_mix", "tokenizer", "vocab", "vocab_size", "sparsity", "model_family",
         "family", "arch", "architecture", "model_type", "model", "optimizer", "task", "domain", "language", "modality",
         "experiment", "context_length", "seq_len", "sequence_length", "attention", "precision", "dtype",
         "parameterization", "group", "project", "sweep")  # fmt: skip
# Shape and length of a run, which follow from N and D and split nothing; and repeated data, which the fit must know
SHAPES = ("depth", "width", "n_layer", "n_layers", "layers", "num_layers", "num_blocks", "n_embd", "d_model", "dim",
          "hidden_size", "embedding_dim", "model_dim", "n_head", "n_heads", "num_heads", "heads", "head_dim", "d_ff",
          "ffn_dim", "intermediate_size", "steps", "num_train_steps", "train_steps", "num_iterations", "max_steps",
          "iterations", "total_steps", "size", "params_m", "l", "h", "aspect_ratio", "epochs", "num_epochs",
          "unique_tokens", "nodes", "num_nodes", "gpus", "num_gpus", "n_gpus", "world_size", "devices",
          "micro_batch_size", "microbatch_size", "grad_accum", "gradient_accumulation_steps")  # fmt: skip

_HEADER = re.compile(r"^(.*?)[\s_,]*[\[(]([^)\]]*)[\])]$")
_KINDS_OF_UNIT: Mapping[str, Mapping[str, float]] = {
    "params": COUNTS, "tokens": COUNTS, "flops": {**COUNTS, **FLOPS, **DAYS}, "budget": {**COUNTS, **FLOPS, **DAYS},
    "seconds": TIMES, "loss": LOSSES, "epochs": {}, "params_opt": COUNTS, "tokens_opt": COUNTS,
    "flops_per_token": {**COUNTS, **FLOPS},
}  # fmt: skip


def normal(name: str) -> str:
    """Normalise a header for comparison: 'Validation Loss', 'val/loss' and 'valLoss' -> words joined by _."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name).strip())
    return re.sub(r"[^a-z0-9*]+", "_", parted.lower()).strip("_")


def last_of(name: str) -> str:
    """Normalise the last part of a path: config/lr, params.lr -> lr."""
    return normal(re.split(r"[/.]", str(name))[-1])


def forms(header: str) -> list[list[tuple[str, str | None]]]:
    """Readings (name, unit) of a header, the most literal first: 'Tokens (B)' -> tokens, B; params_M -> params, m.

    Containers of logged values are left out last: summary.val_loss -> val_loss, throughput/total_tokens ->
    total_tokens.
    """
    literal: list[tuple[str, str | None]] = [(normal(header), None)]
    if match := _HEADER.match(str(header).strip()):
        literal.append((normal(match[1]), match[2]))
    if match := re.match(r"^(.+?)\s*/\s*(1?e\d+|10\^\d+)$", str(header).strip(), re.IGNORECASE):  # FLOPs/1e18
        literal.append((normal(match[1]), match[2] if match[2][0] == "1" else f"1{match[2]}"))
    derived = list(_with_units(normal(header)))
    parts = re.split(r"[/.]", str(header))
    dropped: list[tuple[str, str | None]] = []
    for i in range(1, len(parts)):
        if normal(parts[i - 1]).startswith("train") and "loss" in parts[-1].lower():
            break  # train/.../loss is a training loss whatever it stands in
        name = normal("/".join(parts[i:]))
        dropped += [(name, None), *_with_units(name)]
    return [literal, derived, dropped]


def _with_units(name: str) -> list[tuple[str, str | None]]:
    """Readings of a name that holds its unit: params_m, tokens_in_billions, total_gflops, exa_flops, c_e18."""
    found: list[tuple[str, str | None]] = []
    words = name.split("_")
    for size in (1, 2, 3):  # pf_s_days
        base, unit = "_".join(words[:-size]), "_".join(words[-size:])
        if base and unit_of(unit, (*COUNTS, *DAYS, *LOSSES)) is not None and not unit.isdigit():
            found.append((base.removesuffix("_in").removesuffix("_x"), unit))
        elif base and size == 1 and re.fullmatch(r"e\d+", unit):
            found.append((base.removesuffix("_in").removesuffix("_x"), f"1{unit}"))
    for i in range(len(words)):
        for size in (1, 2):
            unit = "_".join(words[i : i + size])
            if unit in FLOPS:
                found.append(("_".join([*words[:i], "flops", *words[i + size :]]), unit))
                for rest in (words[:i], words[i + size :]):  # compute_eflops
                    found.append(("_".join(rest), unit))
    return found


def unit_for(ours: str, word: str | None) -> float | None:
    """Value of a unit of one of our quantities; 1 without a word, None where it is no such unit."""
    return 1.0 if word is None else unit_of(word, _KINDS_OF_UNIT.get(ours, COUNTS))
