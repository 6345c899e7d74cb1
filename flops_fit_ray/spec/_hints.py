"""Suggestions for unknown keys: misspelt, in another section, or named as in another library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, get_args

from flops_fit_ray.spec._sections import SweepSpec
from flops_fit_ray.spec._values import Section

ALIKE, NEARLY_ALIKE = 0.6, 0.85  # likeness (difflib) of a misspelling: where one key is likely, and where several are


class Hint(NamedTuple):
    """Key of a spec, its names in other libraries, and a note on how the value differs."""

    path: str
    names: str  # separated by spaces
    note: str = ""


# Names in transformers.TrainingArguments, lightning.Trainer, torchtitan, nanoGPT, DeepSpeed, Megatron-LM, Ray Tune.
HINTS = (
    Hint("model.target", "model_class model_cls model_name model_path class class_path cls constructor architecture"),
    Hint("model.size_param", "model_size_param size_parameter size_arg size_key scale_param width_param"),
    Hint("model.sizes", "model_sizes widths hidden_sizes param_counts model_scales", "a list of values of size_param"),
    Hint("model.kwargs", "model_kwargs model_args model_config init_args config_kwargs hparams hyperparameters"),
    Hint(
        "model.kwargs",
        "d_model n_embd n_layer n_layers n_head n_heads num_layers num_heads num_hidden_layers num_attention_heads "
        "hidden_size hidden_dim intermediate_size vocab_size dropout width depth activation bias",
        "arguments of the model's constructor stand under it",
    ),
    Hint("model.flops_per_token", "flops_fn count_flops flops_counter"),
    Hint("data.train", "dataset train_dataset train_data train_file training_data training_set train_path dataset_name"
         " dataset_path data_path data_dir train_dataloader train_dataloaders"),
    Hint("data.eval", "eval_dataset eval_data val val_dataset val_data val_file valid valid_data validation "
         "validation_file validation_data validation_dataset validation_set dev test test_dataset test_data "
         "val_dataloaders"),
    Hint("data.kwargs", "data_kwargs dataset_kwargs dataset_args data_args dataloader_kwargs"),
    Hint("data.context", "context_length context_size ctx_len block_size seq_len seq_length sequence_length "
         "max_seq_len max_seq_length max_length n_ctx n_positions max_position_embeddings"),
    Hint("data.tokens_per_sample", "tokens_per_item tokens_per_example"),
    Hint("data.eval_fraction", "val_fraction val_split validation_split eval_split test_size holdout holdout_fraction"),
    Hint("data.eval_samples", "eval_iters eval_batches max_eval_samples limit_val_batches val_steps",
         "it counts samples, not batches"),
    Hint("data.eval_every_tokens", "eval_steps eval_interval eval_every eval_freq eval_frequency val_check_interval "
         "eval_strategy evaluation_strategy", "tokens between evaluations = steps * batch_size * tokens per sample"),
    Hint("data.max_epochs", "epochs epoch num_epochs num_train_epochs n_epochs train_epochs",
         "D follows from the budget; this only allows samples to be repeated"),
    Hint("loss", "loss_fn loss_function loss_func criterion objective"),
    Hint("budgets", "flops compute compute_budget compute_budgets flop_budgets flops_budgets total_flops max_flops "
         "isoflop_budgets compute_grid", "each in FLOPs"),
    Hint("budgets", "max_steps num_steps total_steps n_steps num_train_steps training_steps train_steps train_iters "
         "max_iters num_iterations steps iterations iters tokens "
         "max_train_steps max_tokens num_tokens train_tokens total_tokens training_tokens",
         "steps and D of every experiment follow from its budget"),
    Hint("train.lr", "learning_rate peak_lr max_lr base_lr init_lr initial_lr peak_learning_rate max_learning_rate "
         "base_learning_rate lr_peak lr_max"),
    Hint("train.batch_size", "train_batch_size global_batch_size total_batch_size effective_batch_size "
         "mini_batch_size bs",
         "samples of one optimizer step over all workers"),
    Hint("train.batch_size", "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size "
         "per_gpu_batch_size device_batch_size local_batch_size",
         "batch_size = batch of a device * devices * accumulation steps"),
    Hint("train.micro_batch_size", "gradient_accumulation_steps accumulate_grad_batches grad_accum grad_accum_steps "
         "gradient_accumulation grad_acc_steps accumulation_steps num_micro_batches num_microbatches",
         "micro_batch_size = batch_size / (workers_per_trial * accumulation steps)"),
    Hint("train.micro_batch_size", "microbatch_size train_micro_batch_size_per_gpu mbs"),
    Hint("train.precision", "bf16 fp16 fp32 mixed_precision mixed_precision_param dtype amp use_amp torch_dtype "
         "autocast half_precision param_dtype training_dtype", "fp32, bf16, fp16 or auto"),
    Hint("train.compile", "torch_compile use_compile compile_model torchcompile"),
    Hint("train.cuda_graph", "cuda_graphs use_cuda_graph use_cuda_graphs cudagraph cudagraphs"),
    Hint("train.optimizer", "optim optimizer_name optimizer_type optimizer_class opt optimiser"),
    Hint("train.betas", "adam_beta1 adam_beta2 adam_betas beta1 beta2 beta_1 beta_2 optimizer_betas",
         "both, as [beta1, beta2]"),
    Hint("train.momentum", "sgd_momentum optimizer_momentum"),
    Hint("train.weight_decay", "wd adam_weight_decay l2 l2_penalty decay_weight"),
    Hint("train.grad_clip", "max_grad_norm clip_grad clip_grad_norm gradient_clipping gradient_clip_val gradient_clip "
         "grad_norm_clip grad_clip_norm max_norm clip_norm clip_gradients"),
    Hint("train.schedule", "lr_scheduler lr_scheduler_type lr_schedule scheduler scheduler_type lr_decay_style "
         "lr_policy decay_lr learning_rate_schedule schedule_type"),
    Hint("train.decay_shape", "decay_type decay_style lr_decay_type lr_wsd_decay_style"),
    Hint("train.decay_fraction", "decay_ratio cooldown cooldown_fraction cooldown_frac decay_frac warmdown_ratio "
         "lr_decay_iters decay_steps lr_decay_steps", "a part of the training"),
    Hint("train.final_lr_fraction", "min_lr min_lr_ratio min_lr_factor final_lr final_lr_frac final_lr_ratio lr_min "
         "eta_min end_lr min_learning_rate", "final_lr_fraction = final rate / peak rate"),
    Hint("train.warmup_tokens", "warmup warmup_steps warmup_ratio warmup_iters lr_warmup_iters lr_warmup_steps "
         "num_warmup_steps warmup_fraction warmup_frac warmup_epochs",
         "tokens = warmup steps * batch_size * tokens per sample, or auto"),
    Hint("train.seed", "random_seed manual_seed torch_seed data_seed rng_seed training_seed random_state"),
    Hint("grid.max_experiments", "num_samples num_trials max_trials n_trials max_runs num_runs"),
    Hint("grid.seeds", "num_seeds n_seeds repeats num_repeats replicates"),
    Hint("grid.lr_guard", "lr_sweep lr_search lr_find auto_lr_find lr_finder"),
    Hint("grid.tokens_per_param", "tokens_per_parameter token_param_ratio chinchilla_ratio data_param_ratio"),
    Hint("checkpoint.steps", "interval save_steps save_interval save_every checkpoint_interval checkpoint_steps "
         "ckpt_interval checkpoint_every checkpoint_frequency save_freq every_n_train_steps save_strategy"),
    Hint("checkpoint.minutes", "checkpoint_minutes save_minutes train_time_interval"),
    Hint("checkpoint.keep", "save_total_limit save_top_k keep_latest_k num_to_keep max_checkpoints keep_last "
         "keep_last_n"),
    Hint("checkpoint.best", "save_best load_best_model_at_end keep_best best_checkpoint"),
    Hint("checkpoint.weights", "save_safetensors save_model save_weights export_weights save_only_model"),
    Hint("metrics", "compute_metrics eval_metrics metric metric_fns"),
    Hint("resources_per_trial", "gpu gpus num_gpus n_gpu n_gpus num_gpu gpus_per_trial gpu_per_trial gpus_per_worker "
         "devices device accelerator cpu cpus num_cpus cpus_per_trial cpu_per_trial cpus_per_worker resources "
         "resources_per_worker trial_resources", "a mapping such as {gpu: 1} or {cpu: 4}"),
    Hint("workers_per_trial", "workers num_workers n_workers world_size nproc_per_node num_processes num_nodes nnodes "
         "ddp data_parallel data_parallel_size data_parallel_replicate_degree dp_size", "processes that share a batch"),
    Hint("shard_model", "fsdp fsdp2 fully_shard sharded deepspeed zero zero_stage data_parallel_shard_degree "
         "sharding_strategy"),
    Hint("max_retries", "retries max_failures num_retries max_attempts max_restarts"),
    Hint("fit.draws", "bootstrap bootstraps n_bootstrap num_bootstrap bootstrap_draws bootstrap_samples n_boot"),
    Hint("fit.confidence", "confidence_level ci ci_level"),
    Hint("fit.method", "fit_method approach fitting_method"),
    Hint("fit.delta", "huber_delta huber"),
    Hint("fit.curve", "valley_curve polynomial curve_type"),
    Hint("trackers", "report_to logger loggers log_with tracker tracking logging callbacks",
         "each is a mapping, for example wandb: {}"),
    Hint("trackers.wandb", "use_wandb wandb_log enable_wandb weights_and_biases", "a mapping; {} takes every default"),
    Hint("trackers.wandb.project", "project wandb_project project_name"),
    Hint("trackers.wandb.entity", "entity team wandb_entity wandb_team"),
    Hint("trackers.wandb.mode", "wandb_mode wandb_offline offline"),
    Hint("trackers.mlflow", "use_mlflow enable_mlflow", "a mapping; {} takes every default"),
    Hint("trackers.mlflow.tracking_uri", "mlflow_tracking_uri mlflow_uri"),
    Hint("trackers.mlflow.experiment", "mlflow_experiment mlflow_experiment_name"),
    Hint("trackers.tensorboard", "use_tensorboard enable_tensorboard tensorboard_dir tb"),
    Hint("train", "training trainer training_args training_arguments"),
    Hint("grid", "sweep search search_space planner"),
    Hint("model", "network net"),
    Hint("data", "dataloader datamodule data_module"),
    Hint("name", "run_name wandb_run_name job_name sweep_name experiment_name title"),
    Hint("output", "output_dir out_dir outdir save_dir save_path default_root_dir root_dir logging_dir log_dir "
         "storage_path results_dir checkpoint_dir dump_folder work_dir run_dir"),
)  # fmt: skip
BY_NAME = {name: hint for hint in HINTS for name in hint.names.split()}
EXTRA_KEYS = {"model": "arguments of the constructor belong in model.kwargs",
              "data": "arguments of the dataset's factory belong in data.kwargs"}  # fmt: skip


def meant_key(key: str, known: Sequence[str]) -> str:
    """Return the known key of the same section that an unknown one stands for; empty where none is likely."""
    plain = _snake(key)
    if plain in known or _is_path(key):
        return plain if plain in known else ""
    elsewhere = plain in BY_NAME or plain in _paths_by_key()
    near = difflib.get_close_matches(plain, known, 1, NEARLY_ALIKE if elsewhere else ALIKE)
    return near[0] if near else ""


def meant_paths(key: str) -> tuple[tuple[str, ...], str]:
    """Return the paths that an unknown key of any section may stand for, and a note on how the value differs."""
    if _is_path(key):
        return (key,), ""
    plain = _snake(key)
    names = [*BY_NAME, *_paths_by_key()]
    near = difflib.get_close_matches(plain, names, 1, NEARLY_ALIKE)
    if plain not in names and near:
        plain = near[0]
    hint, paths = BY_NAME.get(plain), _paths_by_key().get(plain, ())
    if hint is None:
        return paths, ""
    return tuple(dict.fromkeys([hint.path, *paths])), hint.note


def way_out(key: str, section: Sequence[int | str], known: Sequence[str]) -> str:
    """Return what to write instead of an unknown key.

    Args:
        section: path of the section in which it stands.
        known: the keys of that section.
    """
    if near := meant_key(key, known):
        return f"did you mean {near!r}?"
    if _is_path(key):
        *sections, last = key.split(".")
        return f"a key holds no dots; write {': {'.join(sections)}: {{{last}: ...{'}' * len(sections)}"
    paths, note = meant_paths(key)
    if paths:
        return f"write {' or '.join(paths)}" + (f" ({note})" if note else "")
    extra = EXTRA_KEYS.get(".".join(map(str, section)))
    return f"known keys: {', '.join(known)}" + (f"; {extra}" if extra else "")


def _is_path(key: str) -> bool:
    first, dot, _ = key.partition(".")
    return bool(dot) and first in SweepSpec.model_fields


def _snake(key: str) -> str:
    """Return a key as a spec writes it: learning-rate, learningRate and "learning rate" are learning_rate."""
    return re.sub(r"[\s.-]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).strip("_").lower()


@cache
def _paths_by_key() -> dict[str, tuple[str, ...]]:
    """Paths of a spec by their last key."""
    paths: dict[str, tuple[str, ...]] = {}
    for path in all_paths(SweepSpec):
        key = path.rpartition(".")[2]
        paths[key] = (*paths.get(key, ()), path)
    return paths


def all_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Paths of all keys of a section and of the sections within it."""
    for key, field in section.model_fields.items():
        yield f"{prefix}{key}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from all_paths(kind, f"{prefix}{key}.")
