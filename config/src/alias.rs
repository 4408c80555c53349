//! The names that TRL and verl use for the same things: taken, and answered with the name used here.

/// Another program's name and ours.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    // TRL
    ("run_name", "run.name"),
    ("torch_dtype", "model.dtype"),
    ("max_length", "model.max_seq_length"),
    ("dataset_name", "data.dataset"),
    ("generation_kwargs.stop", "rollout.stop"),
    ("vllm_importance_sampling_mode", "algo.importance_sampling_correction"),
    ("vllm_importance_sampling_clip_max", "algo.importance_sampling_clip_max"),
    ("max_new_tokens", "rollout.max_completion_length"),
    ("per_device_train_batch_size", "sft.batch_size"),
    ("assistant_only_loss", "sft.completion_only_loss"),
    ("chat_template_path", "model.chat_template"),
    // verl
    ("trainer.experiment_name", "run.name"),
    ("trainer.default_local_dir", "run.output_dir"),
    ("trainer.test_freq", "eval.eval_steps"),
    ("trainer.val_before_train", "eval.before"),
    ("trainer.total_training_steps", "optim.max_steps"),
    ("trainer.total_epochs", "optim.num_train_epochs"),
    ("trainer.save_freq", "checkpoint.save_steps"),
    ("trainer.max_actor_ckpt_to_keep", "checkpoint.save_total_limit"),
    ("data.seed", "run.seed"),
    ("data.train_files", "data.dataset"),
    ("data.val_files", "data.eval_dataset"),
    ("data.prompt_key", "data.prompt_column"),
    ("data.train_batch_size", "rollout.num_prompts"),
    ("data.max_prompt_length", "rollout.max_prompt_length"),
    ("data.max_response_length", "rollout.max_completion_length"),
    ("data.max_obs_length", "rollout.search.max_obs_length"),
    ("retriever.topk", "rollout.search.topk"),
    ("actor_rollout_ref.model.path", "model.model_name_or_path"),
    ("actor_rollout_ref.model.lora_rank", "lora.lora_r"),
    ("actor_rollout_ref.model.lora_alpha", "lora.lora_alpha"),
    ("actor_rollout_ref.model.target_modules", "lora.lora_target_modules"),
    ("actor_rollout_ref.model.enable_gradient_checkpointing", "model.gradient_checkpointing"),
    ("actor_rollout_ref.actor.optim.lr", "optim.learning_rate"),
    ("actor_rollout_ref.actor.optim.lr_warmup_steps", "optim.warmup_steps"),
    ("actor_rollout_ref.actor.optim.weight_decay", "optim.weight_decay"),
    ("actor_rollout_ref.actor.grad_clip", "optim.max_grad_norm"),
    ("actor_rollout_ref.actor.ppo_epochs", "algo.num_iterations"),
    ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", "optim.max_tokens_per_micro_batch"),
    ("actor_rollout_ref.actor.clip_ratio_low", "algo.epsilon"),
    ("actor_rollout_ref.actor.clip_ratio_high", "algo.epsilon_high"),
    ("actor_rollout_ref.actor.clip_ratio_c", "algo.dual_clip"),
    ("actor_rollout_ref.actor.loss_agg_mode", "algo.loss_agg_mode"),
    ("actor_rollout_ref.actor.kl_loss_coef", "algo.beta"),
    ("actor_rollout_ref.rollout.n", "rollout.num_generations"),
    ("actor_rollout_ref.rollout.temperature", "rollout.temperature"),
    ("actor_rollout_ref.rollout.top_p", "rollout.top_p"),
    ("actor_rollout_ref.rollout.top_k", "rollout.top_k"),
    ("actor_rollout_ref.rollout.max_num_seqs", "rollout.max_concurrent_sequences"),
];

/// Names that have no counterpart, and what to set instead.
const HINTS: &[(&str, &str)] = &[
    (
        "gradient_accumulation_steps",
        "a step is rollout.num_prompts x rollout.num_generations, or sft.batch_size examples; optim.max_tokens_per_micro_batch bounds memory",
    ),
    ("norm_adv_by_std_in_grpo", "set algo.scale_rewards: group or none"),
    ("use_kl_loss", "algo.beta above 0 turns the divergence on"),
    ("kl_loss_type", "set algo.kl_estimator: k1, k2 or k3 (low_var_kl is k3)"),
    ("resume_from_checkpoint", "write --resume on the command line"),
    ("use_vllm", "the engine is built in"),
    ("vllm_mode", "the engine is built in"),
    ("bf16", "set model.dtype: bfloat16"),
    ("fp16", "set model.dtype: float32 or bfloat16"),
    ("bnb_4bit_quant_type", "4-bit weights are NF4: set model.load_in_4bit"),
    ("load_in_8bit", "set model.load_in_4bit, or model.dtype: bfloat16"),
    ("report_to", "metrics.jsonl is always written, log.report writes report.html, log.tensorboard writes event files"),
    ("reward_funcs", "list the rules under reward:, each with a name"),
    ("reward_weights", "each rule under reward: has a weight"),
];

/// Our name for `name`.
pub(crate) fn native(name: &str) -> Option<&'static str> {
    ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, native)| *native)
}

/// What to set instead of `name`, whatever section it was written in.
pub(crate) fn hint(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name);
    HINTS.iter().find(|(key, _)| *key == last).map(|(_, hint)| *hint)
}

/// True if an alias begins with the names of `path`, so that a file may nest it.
pub(crate) fn leads_on(path: &[String]) -> bool {
    let prefix = format!("{}.", path.join("."));
    ALIASES.iter().any(|(alias, _)| alias.starts_with(&prefix))
}
