"""Words of other libraries for the keys of a spec, and words that no key stands for."""

from __future__ import annotations

from typing import NamedTuple


class Hint(NamedTuple):
    """Key of a spec, its names in other libraries, and a note on how the value differs."""

    path: str
    names: str  # separated by spaces
    note: str = ""


# Names in transformers.TrainingArguments, lightning.Trainer, torchtitan, nanoGPT, DeepSpeed, Megatron-LM, Ray Tune.
HINTS = (
    Hint("model.target", "model_class model_cls model_name model_path class class_path cls constructor architecture"),
    Hint("model.size_param", "model_size_param size_parameter size_arg size_key scale_param width_param"),
    Hint("model.sizes",
         "model_sizes widths hidden_sizes param_counts model_scales params num_params n_params num_parameters "
         "parameters model_params", "a list of values of size_param"),
    Hint("model.kwargs", "model_kwargs model_args model_config init_args config_kwargs hparams hyperparameters"),
    Hint("model.kwargs",
         "d_model n_embd n_layer n_layers n_head n_heads num_layers num_heads num_hidden_layers num_attention_heads "
         "hidden_size hidden_dim intermediate_size vocab_size dropout width depth activation bias ffn_hidden_size "
         "kv_channels attention_dropout hidden_dropout attn_pdrop resid_pdrop embd_pdrop head_dim aspect_ratio d_ff "
         "n_kv_head num_key_value_heads num_query_groups num_classes img_size patch_size tie_embeddings "
         "tie_word_embeddings window_pattern init_method_std initializer_range rope_theta "
         "norm_eps layer_norm_eps flavor", "arguments of the model's constructor stand under it"),
    Hint("model.flops_per_token", "flops_fn count_flops flops_counter"),
    Hint("data.train",
         "dataset train_dataset train_data train_file training_data training_set train_path dataset_name dataset_path "
         "data_path data_dir train_dataloader train_dataloaders train_data_path input_bin train_bin"),
    Hint("data.eval",
         "eval_dataset eval_data val val_dataset val_data val_file valid valid_data validation validation_file "
         "validation_data validation_dataset validation_set dev test test_dataset test_data val_dataloaders "
         "valid_data_path val_data_path eval_file test_file validation_path"),
    Hint("data.kwargs", "data_kwargs dataset_kwargs dataset_args data_args dataloader_kwargs"),
    Hint("data.context",
         "context_length context_size ctx_len block_size seq_len seq_length sequence_length max_seq_len "
         "max_seq_length max_length n_ctx n_positions max_position_embeddings encoder_seq_length"),
    Hint("data.tokens_per_sample", "tokens_per_item tokens_per_example"),
    Hint("data.eval_fraction", "val_fraction val_split validation_split eval_split test_size holdout holdout_fraction"),
    Hint("data.eval_samples",
         "eval_iters eval_batches max_eval_samples limit_val_batches val_steps limit_test_batches eval_tokens "
         "val_tokens num_sanity_val_steps", "it counts samples, not batches"),
    Hint("data.eval_every_tokens",
         "eval_steps eval_interval eval_every eval_freq eval_frequency val_check_interval eval_strategy "
         "evaluation_strategy check_val_every_n_epoch eval_delay core_metric_every",
         "tokens between evaluations = steps * batch_size * tokens per sample"),
    Hint("data.max_epochs",
         "epochs epoch num_epochs num_train_epochs n_epochs train_epochs",
         "D follows from the budget; this only allows samples to be repeated"),
    Hint("loss", "loss_fn loss_function loss_func criterion objective"),
    Hint("budgets",
         "target_flops flops_list isoflops compute_values flops compute compute_budget compute_budgets flop_budgets "
         "flops_budgets total_flops max_flops isoflop_budgets compute_grid", "each in FLOPs"),
    Hint("budgets",
         "max_steps num_steps total_steps n_steps num_train_steps training_steps train_steps train_iters max_iters "
         "num_iterations steps iterations iters tokens max_train_steps max_tokens num_tokens train_tokens "
         "total_tokens training_tokens train_samples num_train_samples token_budget n_tokens limit_train_batches "
         "max_time min_steps min_epochs exit_interval", "steps and D of every experiment follow from its budget"),
    Hint("train.lr",
         "learning_rate peak_lr max_lr base_lr init_lr initial_lr peak_learning_rate max_learning_rate "
         "base_learning_rate lr_peak lr_max lr_base step_size eta"),
    Hint("train.batch_size",
         "train_batch_size global_batch_size total_batch_size effective_batch_size mini_batch_size bs",
         "samples of one optimizer step over all workers"),
    Hint("train.batch_size",
         "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size per_gpu_batch_size "
         "device_batch_size local_batch_size", "batch_size = batch of a device * devices * accumulation steps"),
    Hint("train.micro_batch_size",
         "gradient_accumulation_steps accumulate_grad_batches grad_accum grad_accum_steps gradient_accumulation "
         "grad_acc_steps accumulation_steps num_micro_batches num_microbatches",
         "micro_batch_size = batch_size / (workers_per_trial * accumulation steps)"),
    Hint("train.micro_batch_size", "microbatch_size train_micro_batch_size_per_gpu mbs"),
    Hint("train.precision",
         "bf16 fp16 fp32 mixed_precision mixed_precision_param dtype amp use_amp torch_dtype autocast half_precision "
         "param_dtype training_dtype amp_dtype fp8 tf32 mixed_precision_reduce fp16_opt_level half_precision_backend "
         "fp16_backend bf16_full_eval fp16_full_eval export_dtype compute_dtype", "fp32, bf16, fp16 or auto"),
    Hint("train.compile",
         "torch_compile use_compile compile_model torchcompile torch_compile_backend torch_compile_mode torchdynamo "
         "jit"),
    Hint("train.cuda_graph", "cuda_graphs use_cuda_graph use_cuda_graphs cudagraph cudagraphs"),
    Hint("train.optimizer", "optim optimizer_name optimizer_type optimizer_class opt optimiser optimizers"),
    Hint("train.optimizer",
         "amsgrad nesterov fused foreach embedding_lr unembedding_lr "
         "matrix_lr scalar_lr layer_decay param_groups optim_args optim_target_modules optimizer_kwargs "
         "optimizer_args optimizer_params weight_decay_incr_style start_weight_decay end_weight_decay lr_mult",
         "your own as module:attribute, (model, lr) -> optimizer, sets what has no key"),
    Hint("train.betas",
         "opt_betas adam_beta1 adam_beta2 adam_betas beta1 beta2 beta_1 beta_2 optimizer_betas",
         "both, as [beta1, beta2]"),
    Hint("train.eps", "adam_epsilon adam_eps opt_eps epsilon optimizer_eps"),
    Hint("train.activation_checkpointing",
         "gradient_checkpointing use_gradient_checkpointing gradient_checkpointing_enable activation_checkpoint "
         "checkpoint_activations use_activation_checkpointing recompute recompute_granularity selective_ac_option",
         "true or false, for the blocks of the model"),
    Hint("train.momentum", "sgd_momentum optimizer_momentum"),
    Hint("train.weight_decay", "wd adam_weight_decay l2 l2_penalty decay_weight"),
    Hint("train.grad_clip",
         "max_grad_norm clip_grad clip_grad_norm gradient_clipping gradient_clip_val gradient_clip grad_norm_clip "
         "grad_clip_norm max_norm clip_norm clip_gradients max_gradient_norm clip_mode gradient_clip_algorithm"),
    Hint("train.schedule",
         "lr_scheduler lr_scheduler_type lr_schedule scheduler scheduler_type lr_decay_style lr_policy decay_lr "
         "learning_rate_schedule schedule_type sched lr_scheduler_kwargs lr_schedule_type"),
    Hint("train.decay_shape", "decay_type decay_style lr_decay_type lr_wsd_decay_style"),
    Hint("train.decay_fraction",
         "decay_ratio cooldown cooldown_fraction cooldown_frac decay_frac warmdown_ratio lr_decay_iters decay_steps "
         "lr_decay_steps lr_decay_samples cooldown_epochs warmdown_iters lr_wsd_decay_iters cooldown_steps",
         "a part of the training"),
    Hint("train.final_lr_fraction",
         "min_lr min_lr_ratio min_lr_factor final_lr final_lr_frac final_lr_ratio lr_min eta_min end_lr "
         "min_learning_rate", "final_lr_fraction = final rate / peak rate"),
    Hint("train.warmup_tokens",
         "warmup warmup_steps warmup_ratio warmup_iters lr_warmup_iters lr_warmup_steps num_warmup_steps "
         "warmup_fraction warmup_frac warmup_epochs lr_warmup_fraction lr_warmup_samples warmup_lr lr_warmup_init",
         "tokens = warmup steps * batch_size * tokens per sample, or auto"),
    Hint("train.seed",
         "deterministic full_determinism seed_everything random_seed manual_seed torch_seed data_seed rng_seed "
         "training_seed random_state"),
    Hint("grid.max_experiments", "num_samples num_trials max_trials n_trials max_runs num_runs"),
    Hint("grid.seeds", "num_seeds n_seeds repeats num_repeats replicates"),
    Hint("grid.lr_guard", "lr_sweep lr_search lr_find auto_lr_find lr_finder"),
    Hint("grid.tokens_per_param",
         "tokens_per_parameter token_param_ratio chinchilla_ratio data_param_ratio target_param_data_ratio "
         "tokens_params_ratio chinchilla"),
    Hint("checkpoint.steps",
         "interval save_steps save_interval save_every checkpoint_interval checkpoint_steps ckpt_interval "
         "checkpoint_every checkpoint_frequency save_freq every_n_train_steps save_strategy"),
    Hint("checkpoint.minutes", "checkpoint_minutes save_minutes train_time_interval"),
    Hint("checkpoint.keep",
         "save_total_limit save_top_k keep_latest_k num_to_keep max_checkpoints keep_last keep_last_n"),
    Hint("checkpoint.best", "save_best load_best_model_at_end keep_best best_checkpoint"),
    Hint("checkpoint.weights", "save_safetensors save_model save_weights export_weights save_only_model"),
    Hint("metrics", "compute_metrics eval_metrics metric metric_fns eval_metric metric_for_best_model"),
    Hint("loss",
         "label_smoothing label_smoothing_factor smoothing mixup cutmix z_loss ignore_index class_weights",
         "your own loss as module:attribute"),
    Hint("resources_per_trial",
         "gpu gpus num_gpus n_gpu n_gpus num_gpu gpus_per_trial gpu_per_trial gpus_per_worker devices "
         "accelerator cpu cpus num_cpus cpus_per_trial cpu_per_trial cpus_per_worker resources resources_per_worker "
         "trial_resources use_gpu use_cpu trainer_resources device_type local_rank",
         "a mapping such as {gpu: 1} or {cpu: 4}"),
    Hint("workers_per_trial",
         "workers num_workers n_workers world_size nproc_per_node num_processes num_nodes nnodes strategy "
         "ddp_strategy num_devices ddp data_parallel data_parallel_size data_parallel_replicate_degree dp_size",
         "processes that share a batch"),
    Hint("shard_model",
         "fsdp fsdp2 fully_shard sharded deepspeed zero zero_stage data_parallel_shard_degree sharding_strategy "
         "fsdp_config use_fsdp use_distributed_optimizer zero_optimization fsdp_reshard_after_forward"),
    Hint("max_retries", "retries max_failures num_retries max_attempts max_restarts fail_fast"),
    Hint("fit.draws", "bootstrap bootstraps n_bootstrap num_bootstrap bootstrap_draws bootstrap_samples n_boot"),
    Hint("fit.confidence", "confidence_level ci ci_level"),
    Hint("fit.method", "fit_method approach fitting_method"),
    Hint("fit.delta", "huber_delta huber"),
    Hint("fit.curve", "valley_curve polynomial curve_type"),
    Hint("trackers",
         "report_to logger loggers log_with tracker tracking logging callbacks logger_name",
         "each is a mapping, for example wandb: {}"),
    Hint("trackers.wandb",
         "log_wandb use_wandb wandb_log enable_wandb weights_and_biases", "a mapping; {} takes every default"),
    Hint("trackers.wandb.project", "project wandb_project project_name"),
    Hint("trackers.wandb.entity", "entity team wandb_entity wandb_team wandb_user"),
    Hint("trackers.wandb.mode", "wandb_mode wandb_offline offline"),
    Hint("trackers.mlflow", "use_mlflow enable_mlflow", "a mapping; {} takes every default"),
    Hint("trackers.mlflow.tracking_uri", "mlflow_tracking_uri mlflow_uri"),
    Hint("trackers.mlflow.experiment", "mlflow_experiment mlflow_experiment_name"),
    Hint("trackers.tensorboard", "use_tensorboard enable_tensorboard tensorboard_dir tb"),
    Hint("train", "training trainer training_args training_arguments"),
    Hint("grid", "sweep search search_space planner"),
    Hint("model", "network net"),
    Hint("data", "dataloader datamodule data_module"),
    Hint("name",
         "wandb_exp_name exp_name model_tag run run_name wandb_run_name job_name sweep_name experiment_name title"),
    Hint("output",
         "output_dir out_dir outdir save_dir save_path default_root_dir root_dir logging_dir log_dir storage_path "
         "results_dir checkpoint_dir dump_folder work_dir run_dir local_dir wandb_save_dir save_tb_folder folder "
         "output_directory output_path"),
    Hint("checkpoint", "save checkpointing save_on_each_node last_save_model_only async_mode"),
)  # fmt: skip
NO_KEYS = {  # words of the same libraries that no key of a spec stands for
    "the line of progress, curve and checkpoints are written anyway":
        "logging_steps logging_strategy logging_first_step log_interval log_every_n_steps log_freq log_level verbose "
        "disable_tqdm enable_progress_bar progress_bar enable_model_summary logging_nan_inf_filter print_config "
        "disable_color_printing description debug include_tokens_per_second skip_memory_metrics log_every "
        "sample_every",
    "the same command resumes a sweep":
        "resume_from_step init_from load load_path initial_load_path restore_callback_states_from_checkpoint "
        "ignore_data_skip pretrained pretrained_path load_checkpoint",
    "a spec is planned, checked and run by commands: plan, check, run":
        "do_train do_eval do_predict eval_only eval_on_start fast_dev_run dry_run overfit_batches barebones "
        "inference_mode prediction_loss_only",
    "make a DataLoader, or your own dataset, in the function that data.train names":
        "dataloader_num_workers dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor drop_last pin_memory prefetch_factor collate_fn shuffle group_by_length "
        "length_column_name remove_unused_columns label_names split reload_dataloaders_every_n_epochs "
        "use_distributed_sampler validation_batch_size per_device_eval_batch_size eval_batch_size val_batch_size "
        "rampup_batch_size train_split",
    "text becomes tokens in the module that data.train names":
        "tokenizer tokenizer_path tokenizer_dir tokenizer_name tokenizer_type vocab_file merge_file hf_assets_path "
        "make_vocab_size_divisible_by",
    "a model is trained by data parallel workers (workers_per_trial), whole or sharded (shard_model)":
        "tp pp cp tensor_parallel_degree tensor_parallel_size tensor_model_parallel_size pipeline_parallel_degree "
        "pipeline_parallel_size pipeline_model_parallel_size context_parallel_degree context_parallel_size "
        "expert_parallel_degree sequence_parallel enable_async_tensor_parallel disable_loss_parallel "
        "enable_cpu_offload sync_batchnorm parallelism_config accelerator_config",
    "the backend follows from the device: nccl on GPUs, gloo on CPUs":
        "backend ddp_backend distributed_backend ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_find_unused_parameters tpu_num_cores",
    "what is fitted comes out of `run` and `fit`, and is no setting":
        "alpha beta irreducible_loss e_irr",
    "profile one experiment in a script of your own":
        "profiler profile_freq enable_profiling save_traces_folder detect_anomaly benchmark gc_freq",
    "results stay in the sweep directory":
        "push_to_hub hub_model_id hub_token hub_strategy trackio_space_id",
    "fp16 scales its loss by itself":
        "loss_scale initial_loss_scale grad_scaler loss_scale_window",
    "the cluster decides, or --slots":
        "max_concurrent concurrency n_jobs ray_scope",
    "change it in the model, the loss or the optimizer of your own":
        "plugins neftune_noise_alpha use_liger_kernel torch_empty_cache_steps converters",
}  # fmt: skip
