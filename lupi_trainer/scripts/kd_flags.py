"""Short names of keys on the command line of `lupi kd`, and what its names of data sets mean."""

from ..lab import LAB_PREFIX


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


def evaluation_source(dataset_name: str | None, eval_dataset_name: str | None) -> str | None:
    """The questions for the perplexity: those that are named, else another split of a dataset from the Hub."""
    if eval_dataset_name is not None or dataset_name is None:
        return eval_dataset_name
    one_set = dataset_name.startswith(LAB_PREFIX) or dataset_name.endswith((".json", ".jsonl"))
    return None if one_set else dataset_name
