"""What the Hugging Face Trainer and its scripts call a setting, and what it is called here."""

from __future__ import annotations

TRAINER_NAMES = {
    "learning_rate": "optimizer.lr",
    "optim": "optimizer.name",
    "adam_epsilon": "optimizer.eps",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "data.batch_size",
    "per_device_eval_batch_size": "data.evaluation_batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "max_grad_norm": "train.clip_norm",
    "eval_steps": "train.evaluate_every",
    "logging_steps": "train.log_every",
    "lr_scheduler_type": "lr_schedule.name",
    "warmup_ratio": "lr_schedule.warmup",
    "label_smoothing_factor": "objective.label_smoothing",
    "dataloader_num_workers": "data.workers",
    "max_seq_length": "data.max_length",
    "bf16": "train.precision",
    "fp16": "train.precision",
}
