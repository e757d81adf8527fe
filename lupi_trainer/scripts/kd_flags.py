"""Short names of keys on the command line of `lupi kd`."""

FLAGS = {
    "base_dir": "model_name_or_path",
    "out_adapters": "output_dir",
    "qa_dataset": "dataset_name",
    "seq_len": "max_length",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "bs": "per_device_train_batch_size",
    "grad_acc": "gradient_accumulation_steps",
    "teacher_model": "teacher_model_name_or_path",
    "teacher_4bit": "teacher_load_in_4bit",
    "kd_T": "kd_temperature",
}
