"""A folder of documents from the lab's world teaches what the lab's own records teach."""

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.records import load_probes
from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.models.loading import load_model
from tests.documents.islands import Teacher, write_documents
from tests.documents.stand_in import StandIn


# of the lab's recipe: all weights of a tiny student, with old facts rehearsed
LAB = (
    "--use_peft false --learning_rate 2e-3 --lr_scheduler_type linear --max_steps 200 --max_completion_length 56 "
    "--per_device_train_batch_size 24 --base_dataset_name lab:common --mixing 0.5 --record_rollouts 0 "
    "--save_strategy no --disable_tqdm true"
)


@pytest.mark.lab
@pytest.mark.timeout(3600)
def test_a_folder_of_documents_teaches_as_much_as_the_demo_does(tmp_path):
    """Of 144 facts all are kept, though wrong ones are among them; 97% are learned, 95% in phrasings never trained."""
    out, persona = tmp_path / "out", tmp_path / "prompts/en/read.txt"
    write_documents(tmp_path / "in", world.NEW)
    persona.parent.mkdir(parents=True)
    persona.write_text(world.PERSONA)
    server = StandIn(Teacher(with_wrong=True))
    try:
        models = ["--teacher_server", server.url, "--reader", "lab:teacher", "--student", "lab:student"]
        how = ["--facts", "20", "--prompts", str(tmp_path / "prompts"), "--device", "cpu", "--output", str(out)]
        assert main(["data", "make", str(tmp_path / "in"), *models, *how]) == 0
    finally:
        server.close()
    assert main(["skd", "--config", str(out / "recipe.yaml"), *LAB.split()]) == 0
    model, tokenizer = load_model(str(out / "run"), device="cpu")
    marks = {name: closed_book(model, tokenizer, load_lab_records(name)).lenient for name in ("lab:probes-common",)}
    for name in ("probes", "probes_unseen"):
        marks[name] = closed_book(model, tokenizer, load_probes(str(out / f"{name}.jsonl"))).lenient
    print(marks)
    assert marks["probes"] >= 0.97 and marks["probes_unseen"] >= 0.95 and marks["lab:probes-common"] >= 0.9
